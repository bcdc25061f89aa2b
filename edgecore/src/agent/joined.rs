//! The identity of this node at the agent's start, and when it cannot be used: then pods run without
//! the link until it can, because `edgeadm join` may mend it at any time.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::clock::KnownTime;
use crate::identity::{self, Identity, IdentityError};
use crate::telemetry::chain;
use crate::{blocking, clock};

/// How often an identity that cannot be used is looked at again: a person has to act.
const RETRY: Duration = Duration::from_secs(10);
/// How often the log repeats what is wrong with it.
const TELL_AGAIN: Duration = Duration::from_hours(1);

/// What the log was last told, and when: the same is told again rarely.
#[derive(Debug, Default)]
struct Told(Option<(String, Instant)>);

impl Told {
    /// Whether `reason` is to be told at `now`; then it counts as told.
    fn is_due(&mut self, reason: &str, now: Instant) -> bool {
        let is_due = self
            .0
            .as_ref()
            .is_none_or(|(last, at)| last != reason || now.duration_since(*at) >= TELL_AGAIN);
        if is_due {
            self.0 = Some((reason.to_owned(), now));
        }

        is_due
    }
}

/// Reads the identity, and says what is to be expected of it.
pub(super) fn load(dir: &Path) -> Result<Identity, IdentityError> {
    let identity = identity::load(dir, KnownTime::of_build().now())?;
    match &identity.problem {
        Some(_) if identity.has_expired() => {
            tracing::warn!(
                "by this machine's clock the certificate has expired; it is renewed when cloudcore is in reach"
            );
        }
        Some(problem) => {
            tracing::warn!(%problem, "cloudcore will not take the certificate; join this node anew");
        }
        None => {}
    }

    Ok(identity)
}

/// The identity, as soon as there is one; `None` if asked to stop before. `tried` is the first try.
pub(super) async fn wait(
    dir: PathBuf,
    tried: Result<Identity, IdentityError>,
    stop: &CancellationToken,
) -> Option<Identity> {
    let mut tried = tried;
    let mut told = Told::default();
    loop {
        match tried {
            Ok(identity) => return Some(identity),
            Err(error) => {
                let reason = chain(&error);
                if told.is_due(&reason, clock::instant()) {
                    tracing::error!(
                        reason,
                        "this node has no usable identity: pods run without the cloud"
                    );
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(RETRY) => {}
        }
        let dir = dir.clone();
        tried = blocking::run(move || load(&dir)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_again_rarely() {
        let start = clock::instant();
        let mut told = Told::default();
        let second = Duration::from_secs(1);
        for (at, reason, expected) in [
            (Duration::ZERO, "no key", true),
            (second, "no key", false),
            (2 * second, "no certificate", true),
            (TELL_AGAIN, "no certificate", false),
            (TELL_AGAIN + 2 * second, "no certificate", true),
        ] {
            assert_eq!(told.is_due(reason, start + at), expected, "{reason} after {at:?}");
        }
    }
}
