//! Join tokens in the cluster: one Secret each, in cloudcore's namespace, with the hash of the
//! token's secret only.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config};
use proto::ids::{NameError, NodeName};
use ring::rand::SystemRandom;
use serde::Serialize;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use crate::args::cluster::{ClusterArgs, CreateArgs, TokenCommand};
use crate::authority::kept::{CA_CERT, CA_SECRET, NEXT_KEY};
use crate::output::{self, Answer, Table};
use crate::token::{NoRandomness, Token};
use crate::{clock, exit, ui};

/// Prefix of the names of tokens' Secrets.
const SECRET_PREFIX: &str = "holdfast-join-";
/// Marks tokens' Secrets, with the value `true`.
const LABEL: &str = "holdfast.dev/join-token";

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
        TokenCommand::Create(args) => create(args).await?,
        TokenCommand::List { output, cluster } => {
            let found = Secrets::open(&cluster).await?.list().await?;
            let now = clock::now();
            let tokens = Listed(found.iter().map(|secret| Told::of(secret, now)).collect());
            output::show(output.output, &tokens);
        }
        TokenCommand::Revoke { id, cluster } => {
            let id = id.parse::<Token>().map_or(id, |token| token.id().to_owned());
            Secrets::open(&cluster).await?.delete(&id).await?;
            ui::answer(&format!("token {id} is revoked"));
        }
    }

    Ok(())
}

/// Makes a token and prints it.
pub async fn create(args: CreateArgs) -> Result<(), TokensError> {
    let node = args.node_name.map(NodeName::new).transpose().map_err(TokensError::NodeName)?;
    let expires = whole_seconds(clock::now() + args.ttl);
    let token = Secrets::open(&args.cluster).await?.create(expires, node, args.single_use).await?;
    let made = Made {
        id: token.id().to_owned(),
        token: token.reveal(),
        expires: expires.to_string(),
        join_command: args
            .print_join_command
            .then(|| join_command(&args.cloudcore.unwrap_or_default(), &token)),
    };
    output::show(args.output.output, &made);

    Ok(())
}

fn join_command(cloudcore: &str, token: &Token) -> String {
    format!("edgeadm join --cloudcore {cloudcore} --token {}", token.reveal())
}

/// A new token.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    id: String,
    token: String,
    expires: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    join_command: Option<String>,
}

impl Answer for Made {
    fn text(&self) -> String {
        self.join_command.clone().unwrap_or_else(|| self.token.clone())
    }
}

/// All tokens.
#[derive(Debug, Serialize)]
struct Listed(Vec<Told>);

impl Answer for Listed {
    fn text(&self) -> String {
        let mut table = Table::new(&["ID", "EXPIRES", "SINGLE-USE", "NODE"]);
        for token in &self.0 {
            let past = if token.expired { " (past)" } else { "" };
            let single_use = if token.single_use { "yes" } else { "no" };
            let expires = format!("{}{past}", token.expires);
            let node = token.node_name.as_deref().unwrap_or("any");
            table.row([token.id.as_str(), &expires, single_use, node]);
        }

        table.text()
    }
}

/// What is told of a token.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    id: String,
    expires: String,
    expired: bool,
    single_use: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
}

impl Told {
    fn of(secret: &Secret, now: Timestamp) -> Self {
        let field = |name: &str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(name));
            bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
        };
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        let expires = field(EXPIRES).unwrap_or_default();

        Self {
            id: name.strip_prefix(SECRET_PREFIX).unwrap_or(name).to_owned(),
            expired: expires.parse::<Timestamp>().is_ok_and(|until| until <= now),
            expires,
            single_use: field(SINGLE_USE).as_deref() == Some("true"),
            node_name: field(NODE_NAME),
        }
    }
}

/// The Secrets of one installation.
struct Secrets {
    api: Api<Secret>,
    namespace: String,
    server: String,
}

/// A client of the cluster, and where its API server is.
pub async fn connect(args: &ClusterArgs) -> Result<(Client, String), TokensError> {
    let config = match &args.kubeconfig {
        Some(path) => from_file(path).await?,
        None => Config::infer().await.map_err(TokensError::NoCluster)?,
    };
    let server = config.cluster_url.to_string();

    Ok((Client::try_from(config).map_err(TokensError::Client)?, server))
}

/// Makes a token for one day that lets in any machine, and answers what to give it.
pub async fn join_command_of_a_day(
    cluster: &ClusterArgs,
    cloudcore: &str,
) -> Result<String, TokensError> {
    let expires = whole_seconds(clock::now() + Duration::from_hours(24));
    let token = Secrets::open(cluster).await?.create(expires, None, false).await?;

    Ok(join_command(cloudcore, &token))
}

impl Secrets {
    async fn open(args: &ClusterArgs) -> Result<Self, TokensError> {
        let (client, server) = connect(args).await?;
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
        if ca.data.as_ref().is_some_and(|data| data.contains_key(NEXT_KEY)) {
            ui::step(
                "the authority is being replaced: the token is good until `edgeadm ca finish`",
            );
        }
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

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn secret(token: &Token, expires: Timestamp, node: Option<&NodeName>, single_use: bool) -> Secret {
    let mut fields = vec![(SECRET_HASH, token.secret_hash()), (EXPIRES, expires.to_string())];
    fields.extend(node.map(|node| (NODE_NAME, node.to_string())));
    fields.extend(single_use.then(|| (SINGLE_USE, "true".to_owned())));
    let bytes = |(name, value): (&str, String)| (name.to_owned(), ByteString(value.into_bytes()));
    let mut secret = Secret::default();
    secret.metadata.name = Some(format!("{SECRET_PREFIX}{}", token.id()));
    secret.metadata.labels = Some(BTreeMap::from([(LABEL.to_owned(), "true".to_owned())]));
    secret.data = Some(fields.into_iter().map(bytes).collect());

    secret
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_no_secret_and_is_listed() {
        let token = Token::generate(b"ca", &SystemRandom::new()).unwrap();
        let node = NodeName::new("edge-1").unwrap();
        let expires = whole_seconds("2026-11-24T10:00:00.5Z".parse().unwrap());
        let made = secret(&token, expires, Some(&node), true);
        let text = serde_json::to_string(&made).unwrap();
        let (before_secret, shown) = (token.reveal(), "2026-11-24T10:00:00Z");
        let raw = before_secret.rsplit('.').next().unwrap();

        assert!(!text.contains(raw));
        let listed = |now| Listed(vec![Told::of(&made, now)]).text();
        let row = listed("2026-11-23T10:00:00Z".parse().unwrap());
        let words: Vec<_> = row.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words, [token.id(), shown, "yes", "edge-1"]);
        assert!(listed(expires).contains("(past)"), "{}", listed(expires));
    }
}
