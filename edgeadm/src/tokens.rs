//! Join tokens in the cluster: one Secret each, in cloudcore's namespace, with the hash of the
//! token's secret only.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config};
use proto::ids::{NameError, NodeName};
use ring::rand::SystemRandom;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use crate::args::{ClusterArgs, TokenCommand};
use crate::token::{NoRandomness, Token};
use crate::{clock, exit, ui};

/// Prefix of the names of tokens' Secrets.
const SECRET_PREFIX: &str = "holdfast-join-";
/// Marks tokens' Secrets, with the value `true`.
const LABEL: &str = "holdfast.dev/join-token";
/// The Secret of the authority, made by cloudcore at its first start.
const CA_SECRET: &str = "holdfast-ca";
const CA_CERT: &str = "ca.crt";

// Fields of a token's Secret, as cloudcore reads them.
const SECRET_HASH: &str = "secretHash";
const EXPIRES: &str = "expires";
const NODE_NAME: &str = "nodeName";
const SINGLE_USE: &str = "singleUse";

/// Why a command on tokens failed.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// There is no usable kubeconfig.
    #[error("cannot use the kubeconfig {0}; give another with --kubeconfig")]
    Kubeconfig(String, #[source] KubeconfigError),
    /// There is nothing to reach a cluster with.
    #[error("cannot find out which cluster; give a kubeconfig with --kubeconfig or KUBECONFIG")]
    NoCluster(#[source] kube::config::InferConfigError),
    /// A client cannot be made of the kubeconfig.
    #[error("cannot reach a cluster with this kubeconfig")]
    Client(#[source] kube::Error),
    /// The API server does not answer, or forbids it.
    #[error("cannot {verb} {what} in namespace {namespace} of {server}")]
    Api {
        /// As in RBAC.
        verb: &'static str,
        /// Which objects.
        what: String,
        /// Where.
        namespace: String,
        /// Of which cluster.
        server: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// Cloudcore has never run there.
    #[error(
        "there is no secret {CA_SECRET} in namespace {0}: cloudcore makes it at its first start; \
         start cloudcore, or say with --namespace where it runs"
    )]
    NoAuthority(String),
    /// The authority's Secret is damaged.
    #[error("secret {CA_SECRET} in namespace {0} has no certificate in {CA_CERT}")]
    BadAuthority(String),
    /// No such node can be.
    #[error("--node-name")]
    NodeName(#[source] NameError),
    /// No such token.
    #[error("there is no token {0}; `edgeadm token list` shows those that are")]
    NotFound(String),
    /// No random bytes.
    #[error("cannot make a secret")]
    Random(#[source] NoRandomness),
}

impl TokensError {
    /// For `exit`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Api { source: kube::Error::Api(_), .. } | Self::NotFound(_) => {
                exit::NOT_PERMITTED
            }
            Self::Api { .. } | Self::NoAuthority(_) => exit::UNAVAILABLE,
            Self::Random(_) => exit::OS_ERROR,
            Self::Kubeconfig(..)
            | Self::NoCluster(_)
            | Self::Client(_)
            | Self::BadAuthority(_)
            | Self::NodeName(_) => exit::BAD_CONFIG,
        }
    }
}

/// Does one command.
pub async fn run(command: TokenCommand) -> Result<(), TokensError> {
    match command {
        TokenCommand::Create { ttl, node_name, single_use, cluster } => {
            let node = node_name.map(NodeName::new).transpose().map_err(TokensError::NodeName)?;
            let expires = clock::now() + ttl;
            let token = Secrets::open(&cluster).await?.create(expires, node, single_use).await?;
            ui::answer(&token.reveal());
        }
        TokenCommand::List { cluster } => {
            let found = Secrets::open(&cluster).await?.list().await?;
            ui::answer(&table(&found, clock::now()));
        }
        TokenCommand::Delete { id, cluster } => {
            let id = id.parse::<Token>().map_or(id, |token| token.id().to_owned());
            Secrets::open(&cluster).await?.delete(&id).await?;
            ui::answer(&format!("token {id} is deleted"));
        }
    }

    Ok(())
}

/// The Secrets of one installation.
struct Secrets {
    api: Api<Secret>,
    namespace: String,
    server: String,
}

impl Secrets {
    async fn open(args: &ClusterArgs) -> Result<Self, TokensError> {
        let config = match &args.kubeconfig {
            Some(path) => from_file(path).await?,
            None => Config::infer().await.map_err(TokensError::NoCluster)?,
        };
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(TokensError::Client)?;
        let namespace = args.namespace.clone();

        Ok(Self { api: Api::namespaced(client, &namespace), namespace, server })
    }

    fn failed(&self, verb: &'static str, what: &str) -> impl FnOnce(kube::Error) -> TokensError {
        let (what, namespace, server) =
            (what.to_owned(), self.namespace.clone(), self.server.clone());

        move |source| TokensError::Api { verb, what, namespace, server, source }
    }

    async fn create(
        &self,
        expires: Timestamp,
        node: Option<NodeName>,
        single_use: bool,
    ) -> Result<Token, TokensError> {
        let ca = self
            .api
            .get_opt(CA_SECRET)
            .await
            .map_err(self.failed("get", "secret holdfast-ca"))?
            .ok_or_else(|| TokensError::NoAuthority(self.namespace.clone()))?;
        let pem = ca.data.as_ref().and_then(|data| data.get(CA_CERT));
        let der = pem.and_then(|pem| CertificateDer::from_pem_slice(&pem.0).ok());
        let der = der.ok_or_else(|| TokensError::BadAuthority(self.namespace.clone()))?;
        let token = Token::generate(&der, &SystemRandom::new()).map_err(TokensError::Random)?;
        let secret = secret(&token, expires, node.as_ref(), single_use);
        self.api
            .create(&PostParams::default(), &secret)
            .await
            .map_err(self.failed("create", "secrets"))?;

        Ok(token)
    }

    async fn list(&self) -> Result<Vec<Secret>, TokensError> {
        let marked = ListParams::default().labels(&format!("{LABEL}=true"));
        let found = self.api.list(&marked).await.map_err(self.failed("list", "secrets"))?;

        Ok(found.items)
    }

    async fn delete(&self, id: &str) -> Result<(), TokensError> {
        let name = format!("{SECRET_PREFIX}{id}");
        match self.api.delete(&name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => {
                Err(TokensError::NotFound(id.to_owned()))
            }
            Err(error) => Err(self.failed("delete", &format!("secret {name}"))(error)),
        }
    }
}

async fn from_file(path: &Path) -> Result<Config, TokensError> {
    let failed = |source| TokensError::Kubeconfig(path.display().to_string(), source);
    let file = Kubeconfig::read_from(path).map_err(failed)?;

    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)
}

fn secret(token: &Token, expires: Timestamp, node: Option<&NodeName>, single_use: bool) -> Secret {
    let whole_seconds = Timestamp::from_second(expires.as_second()).unwrap_or(expires);
    let mut fields = vec![(SECRET_HASH, token.secret_hash()), (EXPIRES, whole_seconds.to_string())];
    fields.extend(node.map(|node| (NODE_NAME, node.to_string())));
    fields.extend(single_use.then(|| (SINGLE_USE, "true".to_owned())));
    let bytes = |(name, value): (&str, String)| (name.to_owned(), ByteString(value.into_bytes()));
    let mut secret = Secret::default();
    secret.metadata.name = Some(format!("{SECRET_PREFIX}{}", token.id()));
    secret.metadata.labels = Some(BTreeMap::from([(LABEL.to_owned(), "true".to_owned())]));
    secret.data = Some(fields.into_iter().map(bytes).collect());

    secret
}

fn table(secrets: &[Secret], now: Timestamp) -> String {
    let mut lines = vec![format!("{:<10}{:<30}{:<12}{}", "ID", "EXPIRES", "SINGLE-USE", "NODE")];
    for secret in secrets {
        let field = |name: &str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(name));
            bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
        };
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        let id = name.strip_prefix(SECRET_PREFIX).unwrap_or(name);
        let expires = field(EXPIRES).unwrap_or_default();
        let is_past = expires.parse::<Timestamp>().is_ok_and(|until| until <= now);
        let expires = if is_past { format!("{expires} (past)") } else { expires };
        let single_use = if field(SINGLE_USE).as_deref() == Some("true") { "yes" } else { "no" };
        let node = field(NODE_NAME).unwrap_or_else(|| "any".to_owned());
        lines.push(format!("{id:<10}{expires:<30}{single_use:<12}{node}"));
    }

    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_no_secret_and_is_listed() {
        let token = Token::generate(b"ca", &SystemRandom::new()).unwrap();
        let node = NodeName::new("edge-1").unwrap();
        let expires: Timestamp = "2026-11-24T10:00:00.5Z".parse().unwrap();
        let made = secret(&token, expires, Some(&node), true);
        let text = serde_json::to_string(&made).unwrap();
        let (before_secret, shown) = (token.reveal(), "2026-11-24T10:00:00Z");
        let raw = before_secret.rsplit('.').next().unwrap();

        assert!(!text.contains(raw));
        let listed = table(std::slice::from_ref(&made), "2026-11-23T10:00:00Z".parse().unwrap());
        let row = listed.lines().nth(1).unwrap();
        let words: Vec<_> = row.split_whitespace().collect();
        assert_eq!(words, [token.id(), shown, "yes", "edge-1"]);
        let listed = table(&[made], expires);
        assert!(listed.contains("(past)"), "{listed}");
    }
}
