//! Join tokens: Secrets of cloudcore's namespace that hold only a hash.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::cli::{ClusterArgs, CreateArgs, DeleteArgs};
use crate::ui;

/// Prefix of the names of tokens' Secrets.
const SECRET_PREFIX: &str = "holdfast-join-";
/// Label of tokens' Secrets.
const LABEL: &str = "holdfast.dev/join-token";
/// The Secret with the authority, made by cloudcore.
const CA_SECRET: &str = "holdfast-ca";

/// Makes a token and prints it.
pub async fn create(args: CreateArgs) -> Result<()> {
    let secrets = secrets(&args.cluster).await?;
    let ca = secrets.get(CA_SECRET).await.with_context(|| {
        format!(
            "cannot read secret {CA_SECRET} in namespace {}; is cloudcore running there?",
            args.cluster.namespace
        )
    })?;
    let ca = field(&ca, "ca.crt").context("secret holdfast-ca has no ca.crt")?;
    let pin = ca_hash(&ca)?;
    let (mut id, mut secret) = ([0; 4], [0; 32]);
    let random = SystemRandom::new();
    if random.fill(&mut id).is_err() || random.fill(&mut secret).is_err() {
        bail!("the operating system gives no random bytes");
    }
    let id = hex(&id);
    let expires = now() + SignedDuration::from_hours(i64::from(args.ttl_hours));
    let mut data = BTreeMap::from([
        ("secretHash", hex(ring::digest::digest(&ring::digest::SHA256, &secret).as_ref())),
        ("expires", expires.to_string()),
    ]);
    if let Some(node) = args.node_name {
        data.insert("nodeName", node);
    }
    if args.single_use {
        data.insert("singleUse", "true".to_owned());
    }
    let mut object = Secret::default();
    object.metadata.name = Some(format!("{SECRET_PREFIX}{id}"));
    object.metadata.labels = Some(BTreeMap::from([(LABEL.to_owned(), "true".to_owned())]));
    object.data =
        Some(data.into_iter().map(|(k, v)| (k.to_owned(), ByteString(v.into_bytes()))).collect());
    secrets.create(&PostParams::default(), &object).await.context("cannot create the token")?;
    let secret = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret);
    ui::answer(&format!("hf1.{pin}.{id}.{secret}"));

    Ok(())
}

/// Lists tokens without their secrets.
pub async fn list(args: ClusterArgs) -> Result<()> {
    let secrets = secrets(&args).await?;
    let params = ListParams::default().labels(LABEL);
    let listed = secrets.list(&params).await.context("cannot list tokens")?;
    ui::answer("ID        EXPIRES                   NODE");
    for secret in listed {
        let name = secret.metadata.name.clone().unwrap_or_default();
        let id = name.strip_prefix(SECRET_PREFIX).unwrap_or(&name);
        let expires = field(&secret, "expires").unwrap_or_default();
        let node = field(&secret, "nodeName").unwrap_or_else(|| "any".to_owned());
        ui::answer(&format!("{id:<9} {expires:<25} {node}"));
    }

    Ok(())
}

/// Deletes a token.
pub async fn delete(args: DeleteArgs) -> Result<()> {
    let secrets = secrets(&args.cluster).await?;
    let name = format!("{SECRET_PREFIX}{}", args.id);
    secrets
        .delete(&name, &DeleteParams::default())
        .await
        .with_context(|| format!("cannot delete token {}", args.id))?;

    Ok(())
}

async fn secrets(args: &ClusterArgs) -> Result<Api<Secret>> {
    let config = match &args.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("cannot use kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer().await.context("no kubeconfig; give one by --kubeconfig")?,
    };

    Ok(Api::namespaced(Client::try_from(config)?, &args.namespace))
}

fn field(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;

    String::from_utf8(bytes.0.clone()).ok()
}

/// SHA-256 of a certificate in PEM, of its DER.
pub(crate) fn ca_hash(pem: &str) -> Result<String> {
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;

    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| anyhow::anyhow!("the authority's certificate is not PEM: {error}"))?;

    Ok(hex(ring::digest::digest(&ring::digest::SHA256, &der).as_ref()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

fn now() -> Timestamp {
    Timestamp::now()
}
