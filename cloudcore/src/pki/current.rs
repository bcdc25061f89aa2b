//! The authority as it is now: the Secret is read again, so that another one counts without a restart.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Authority, CA_SECRET, PkiError, kept};
use crate::telemetry;

/// How often the Secret is read. `edgeadm ca` takes its next step when every replica has read the one before.
const PERIOD: Duration = Duration::from_secs(2);

/// The authority that counts; cheap to clone.
#[derive(Clone, Debug)]
pub struct Current(Arc<watch::Sender<Arc<Authority>>>);

impl Current {
    /// As it was read first.
    pub fn new(authority: Arc<Authority>) -> Self {
        Self(Arc::new(watch::Sender::new(authority)))
    }

    /// As it was read last.
    pub fn now(&self) -> Arc<Authority> {
        Arc::clone(&self.0.borrow())
    }

    /// Is told of every other one.
    pub fn changes(&self) -> watch::Receiver<Arc<Authority>> {
        self.0.subscribe()
    }

    /// Reads the Secret; whether it holds another authority now, which counts from here on.
    pub async fn read(&self, client: &Client, namespace: &str) -> Result<bool, PkiError> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let secret = secrets.get(CA_SECRET).await.map_err(|source| PkiError::Secret {
            verb: "get",
            namespace: namespace.to_owned(),
            source,
        })?;
        let found = kept::read(&secret)?;
        if found.is_same(&self.now()) {
            return Ok(false);
        }
        self.0.send_replace(Arc::new(found));

        Ok(true)
    }
}

/// Reads the Secret until asked to stop. What cannot be read or used changes nothing.
pub async fn reread(current: Current, client: Client, namespace: String, stop: CancellationToken) {
    let mut told = String::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(PERIOD) => {}
        }
        match current.read(&client, &namespace).await {
            Ok(is_other) => {
                told.clear();
                if is_other {
                    tracing::info!(
                        "the authority in secret {CA_SECRET} is another; it counts from now on"
                    );
                }
            }
            Err(error) => {
                let error = telemetry::chain(&error);
                if told != error {
                    tracing::warn!(error, "going on with the authority that was read before");
                    told = error;
                }
            }
        }
    }
}
