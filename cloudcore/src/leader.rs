//! Which replica does what is to be done once for the whole cluster: the one that holds a Lease, as
//! client-go's leader election has it. Clocks of replicas need not agree: a Lease is over when it was not
//! renewed for its time by the clock of who looks.
//!
//! What is done twice all the same, by one that hangs and goes on, is harmless: every write names what it
//! was decided on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{clock, telemetry};

const LEASE: &str = "holdfast-singletons";

/// Of client-go: a Lease lasts, its holder counts on it, and everybody looks at it again.
const DURATION: Duration = Duration::from_secs(15);
const HELD: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// Whether this replica is the one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Leadership(Arc<Mutex<Option<Instant>>>);

impl Leadership {
    /// Whether it is now.
    pub fn is_held(&self) -> bool {
        self.until().is_some_and(|until| clock::now() < until)
    }

    fn set(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn until(&self) -> Option<Instant> {
        // An instant is whole.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A replica that would do it.
pub struct Candidate {
    /// What others see of it.
    pub leadership: Leadership,
    /// For the Lease.
    pub client: Client,
    /// Where it is.
    pub namespace: String,
    /// Name of this replica.
    pub replica: String,
}

/// The Lease as it was last seen, and since when it is so.
type Seen = (Option<LeaseSpec>, Instant);

/// Tries until asked to stop; then another may at once.
pub async fn run(candidate: Candidate, stop: CancellationToken) {
    let mut seen: Option<Seen> = None;
    while stop.run_until_cancelled(candidate.turn(&mut seen)).await.is_some() {}
    if candidate.leadership.is_held() {
        candidate.leadership.set(None);
        drop(timeout(RETRY, candidate.give_back()).await);
    }
}

impl Candidate {
    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn turn(&self, seen: &mut Option<Seen>) {
        if let Ok(Err(error)) = timeout(HELD, self.try_hold(seen)).await {
            let error = telemetry::chain(&error);
            tracing::debug!(error, "cannot try to hold lease {LEASE}");
        }
        sleep(RETRY).await;
    }

    /// Takes the Lease, or keeps it, if nobody else has it.
    async fn try_hold(&self, seen: &mut Option<Seen>) -> Result<(), kube::Error> {
        let now = clock::now();
        let found = self.leases().get_opt(LEASE).await?;
        let spec = found.as_ref().and_then(|lease| lease.spec.clone());
        let since = match seen.take() {
            Some((before, since)) if before == spec => since,
            Some(_) | None => now,
        };
        *seen = Some((spec.clone(), since));
        let holder = spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        let is_over = now.saturating_duration_since(since) >= DURATION;
        if !(holder.is_empty() || holder == self.replica || is_over) {
            self.leadership.set(None);
            return Ok(());
        }
        match self.write(found, &self.replica).await {
            Ok(()) => {
                if !self.leadership.is_held() {
                    tracing::info!(before = holder, "this replica does what is done once");
                }
                self.leadership.set(Some(now + HELD));
                Ok(())
            }
            // Somebody was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn give_back(&self) -> Result<(), kube::Error> {
        let found = self.leases().get_opt(LEASE).await?;

        self.write(found, "").await
    }

    /// Replaced only as it was read.
    async fn write(&self, found: Option<Lease>, holder: &str) -> Result<(), kube::Error> {
        let exists = found.is_some();
        let mut lease = found.unwrap_or_default();
        lease.metadata.name = Some(LEASE.to_owned());
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            renew_time: Some(MicroTime(clock::timestamp())),
            ..LeaseSpec::default()
        });
        let params = PostParams::default();
        if exists {
            self.leases().replace(LEASE, &params, &lease).await.map(drop)
        } else {
            self.leases().create(&params, &lease).await.map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::tests::api::Api;

    fn candidate(api: &Api, replica: &str) -> Candidate {
        Candidate {
            leadership: Leadership::default(),
            client: api.client.clone(),
            namespace: "holdfast".to_owned(),
            replica: replica.to_owned(),
        }
    }

    #[tokio::test]
    async fn one_of_many_is_the_one_until_it_gives_up_or_falls_silent() {
        let api = Api::start().await;
        let (one, other) = (candidate(&api, "one"), candidate(&api, "other"));
        let (mut ones, mut others) = (None, None);
        let held = || (one.leadership.is_held(), other.leadership.is_held());
        for _ in 0..3 {
            one.try_hold(&mut ones).await.unwrap();
            other.try_hold(&mut others).await.unwrap();
            assert_eq!(held(), (true, false));
        }
        // Its next life needs not wait, another is there at once.
        let next = candidate(&api, "one");
        next.try_hold(&mut None).await.unwrap();
        assert!(next.leadership.is_held());
        one.give_back().await.unwrap();
        one.leadership.set(None);
        other.try_hold(&mut others).await.unwrap();
        assert_eq!(held(), (false, true));

        // Unchanged for its whole time, by the clock of who looks.
        one.try_hold(&mut ones).await.unwrap();
        assert_eq!(held(), (false, true));
        let (_, since) = ones.as_mut().unwrap();
        *since -= DURATION;
        one.try_hold(&mut ones).await.unwrap();
        assert!(one.leadership.is_held());
        // Who comes back sees it.
        other.try_hold(&mut others).await.unwrap();
        assert_eq!(held(), (true, false));
    }
}
