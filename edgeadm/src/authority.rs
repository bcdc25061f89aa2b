//! The cluster's side of the authority that nodes and cloudcore are believed by: another one takes its place without
//! any node being cut off. [`kept`] has the steps, [`told`] what is told of them.

pub mod kept;
pub mod told;

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use tokio::time::sleep;

use self::kept::{CA_SECRET, Kept, KeptError, Next, Stage};
use self::told::Told;
use crate::args::cluster::{CaCommand, ClusterArgs};
use crate::tokens::{self, TokensError};
use crate::{clock, exit, output, ui};

/// Marks records of nodes' sessions.
const RECORDS: &str = "holdfast.dev/session=true";

/// How long a replica may take to read the Secret: twice the time after which it does, and some more.
const READ_MAX: Duration = Duration::from_secs(5);

/// Nodes that are named in an error.
const NAMED_MAX: usize = 20;

/// Why a command on the authority failed.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// There is no cluster to talk to.
    #[error(transparent)]
    Cluster(Box<TokensError>),
    /// The API server does not answer, or refuses.
    #[error("cannot {verb} {what} in namespace {namespace} of {server}")]
    Api {
        /// As in RBAC.
        verb: &'static str,
        /// Which objects.
        what: &'static str,
        /// Where.
        namespace: String,
        /// Of which cluster.
        server: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// Cloudcore has never run there.
    #[error(
        "there is no secret {CA_SECRET} in namespace {0}: cloudcore makes it at its first start; \
         start cloudcore, or say with --namespace where it runs"
    )]
    NoAuthority(String),
    /// The Secret does not allow it.
    #[error("secret {CA_SECRET} in namespace {namespace}")]
    Kept {
        /// Where.
        namespace: String,
        /// Why not.
        #[source]
        source: KeptError,
    },
    /// Nodes would be cut off.
    #[error(
        "{count} nodes have certificates by the authority that would go: {named}; they get others as soon as they \
         connect. With --force they have to join again, or revoke those that are no more"
    )]
    NodesLeft {
        /// How many.
        count: usize,
        /// Some of them.
        named: String,
    },
    /// No key can be made.
    #[error("cannot make an authority")]
    Make(#[source] rcgen::Error),
}

impl AuthorityError {
    /// For `exit`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Cluster(error) => error.exit_code(),
            Self::Api { source, .. } if matches!(**source, kube::Error::Api(_)) => {
                exit::NOT_PERMITTED
            }
            Self::Api { .. } | Self::NoAuthority(_) => exit::UNAVAILABLE,
            Self::Kept { source: KeptError::Content(_), .. } => exit::BAD_CONFIG,
            Self::Kept { .. } | Self::NodesLeft { .. } => exit::FAILED,
            Self::Make(_) => exit::OS_ERROR,
        }
    }
}

/// Does one command.
pub async fn run(command: CaCommand) -> Result<(), AuthorityError> {
    let (cluster, output) = match &command {
        CaCommand::Status { output, cluster }
        | CaCommand::Start { output, cluster }
        | CaCommand::Finish { output, cluster, .. }
        | CaCommand::Abort { output, cluster } => (cluster, output.output),
    };
    let installation = Installation::open(cluster).await?;
    let kept = installation.read().await?;
    let kept = match command {
        CaCommand::Status { .. } => kept,
        CaCommand::Start { .. } => installation.start(kept).await?,
        CaCommand::Finish { force, .. } => installation.finish(kept, force).await?,
        CaCommand::Abort { .. } => installation.abort(kept).await?,
    };
    output::show(output, &Told::of(&kept, &installation.records().await?));

    Ok(())
}

/// Where cloudcore keeps what it must not lose.
struct Installation {
    client: Client,
    namespace: String,
    server: String,
}

impl Installation {
    async fn open(args: &ClusterArgs) -> Result<Self, AuthorityError> {
        let connected = tokens::connect(args).await;
        let (client, server) =
            connected.map_err(|error| AuthorityError::Cluster(Box::new(error)))?;

        Ok(Self { client, namespace: args.namespace.clone(), server })
    }

    fn failed(
        &self,
        verb: &'static str,
        what: &'static str,
    ) -> impl FnOnce(kube::Error) -> AuthorityError {
        let (namespace, server) = (self.namespace.clone(), self.server.clone());

        move |source| {
            let source = Box::new(source);
            AuthorityError::Api { verb, what, namespace, server, source }
        }
    }

    fn kept<T>(&self, kept: Result<T, KeptError>) -> Result<T, AuthorityError> {
        let namespace = self.namespace.clone();

        kept.map_err(|source| AuthorityError::Kept { namespace, source })
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn read(&self) -> Result<Kept, AuthorityError> {
        let found = self.secrets().get_opt(CA_SECRET).await;
        let found = found.map_err(self.failed("get", "secret holdfast-ca"))?;
        let secret = found.ok_or_else(|| AuthorityError::NoAuthority(self.namespace.clone()))?;

        self.kept(Kept::read(secret))
    }

    /// Only in the place of what it was made of.
    async fn write(&self, secret: &Secret) -> Result<Kept, AuthorityError> {
        let written = self.secrets().replace(CA_SECRET, &PostParams::default(), secret).await;
        let written = written.map_err(self.failed("update", "secret holdfast-ca"))?;

        self.kept(Kept::read(written))
    }

    async fn records(&self) -> Result<Vec<Lease>, AuthorityError> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = leases.list(&ListParams::default().labels(RECORDS)).await;

        Ok(found.map_err(self.failed("list", "leases"))?.items)
    }

    async fn start(&self, kept: Kept) -> Result<Kept, AuthorityError> {
        let next = Next::make(clock::now()).map_err(AuthorityError::Make)?;
        let trusted = self.write(&self.kept(kept.with(&next))?).await?;
        ui::step(
            "another authority is believed; waiting until every replica of cloudcore has read that",
        );
        sleep(READ_MAX).await;
        let rolling = self.write(&trusted.rolling(&next)).await?;
        ui::step("it signs certificates of nodes now; those that are connected get theirs at once");

        Ok(rolling)
    }

    async fn finish(&self, kept: Kept, force: bool) -> Result<Kept, AuthorityError> {
        if kept.stage() == Stage::Alone {
            return self.kept(Err(KeptError::NotUnderWay));
        }
        self.check(&kept, force).await?;
        let turned = if kept.stage() == Stage::Rolling {
            let turned = self.write(&self.kept(kept.turned())?).await?;
            ui::step(
                "it signs everything now, and join tokens that were made before are good no more; waiting until \
                 every replica of cloudcore has read that",
            );
            sleep(READ_MAX).await;
            // A replica that had not read the step before may have given somebody another certificate.
            self.check(&turned, force).await?;
            turned
        } else {
            kept
        };

        self.write(&self.kept(turned.alone())?).await
    }

    /// Whether no node needs what is to go.
    async fn check(&self, kept: &Kept, force: bool) -> Result<(), AuthorityError> {
        let left = told::with_others(kept, &self.records().await?);
        if left.is_empty() || force {
            return Ok(());
        }
        let named = left.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");

        Err(AuthorityError::NodesLeft { count: left.len(), named })
    }

    async fn abort(&self, kept: Kept) -> Result<Kept, AuthorityError> {
        let back = self.write(&self.kept(kept.back())?).await?;
        ui::step(
            "the authority of before signs everything again; waiting until every replica of cloudcore has read that",
        );
        sleep(READ_MAX).await;

        Ok(back)
    }
}
