//! Nodes whose certificate is not by the authority that signs now, or that believe one which is gone, are told to
//! renew: a few at a time, so that all together ask the API server no more than it bears.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::wire::{Fingerprint, IdentityHeld};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::Expiry;
use super::renewal::Given;
use crate::clock;
use crate::pki::{self, Authority, Holder};

/// Nodes of a replica that renew at once because they were told to: each reads and writes its record twice.
const TURNS: usize = 16;

/// How long a node has its turn, if it does not say that it is done. Longer than two requests of a session are
/// apart.
const TURN: Duration = Duration::from_secs(20);

/// After a turn that changed nothing: doubles from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(10));

/// How many nodes of this replica may be told at once.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TURNS)))
    }
}

/// What is known of a node's identity.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// By the certificate of its connection.
    pub(super) holder: Holder,
    /// Of its newest certificate.
    expiry: Expiry,
    /// The certificate that it will connect with next.
    certificate: Fingerprint,
    /// By whom that is.
    issuer: Option<Fingerprint>,
    /// Whom it has said that it believes.
    believes: Vec<Fingerprint>,
    /// What it was given last, and by whom that is.
    given: Option<(Fingerprint, Fingerprint)>,
}

impl Known {
    /// Of a connection with this certificate; none if that is of no node.
    pub(super) fn new(shown: &CertificateDer<'_>, authority: &Authority) -> Option<Self> {
        let (holder, expiry) = (pki::holder_of(shown)?, Expiry::default());
        expiry.note(shown);

        Some(Self::by(holder, expiry, authority.issuer_of(shown)))
    }

    fn by(holder: Holder, expiry: Expiry, issuer: Option<Fingerprint>) -> Self {
        let certificate = holder.certificate;

        Self { holder, expiry, certificate, issuer, believes: Vec::new(), given: None }
    }

    /// The node says what it has stored; by whom that is, if that is another certificate than before.
    fn held(&mut self, held: &IdentityHeld) -> Option<Fingerprint> {
        self.believes.clone_from(&held.authorities);
        if held.certificate == self.certificate {
            return None;
        }
        let (_, issuer) = self.given.take_if(|(given, _)| *given == held.certificate)?;
        self.certificate = held.certificate;
        self.issuer = Some(issuer);

        Some(issuer)
    }

    /// Whether its certificate is to be by another authority, or it believes one that is gone. That it does not
    /// believe one yet is no matter: it is given all that there are with its next certificate.
    fn is_outdated(&self, signer: Fingerprint, trusted: &[Fingerprint]) -> bool {
        self.issuer != Some(signer) || self.believes.iter().any(|print| !trusted.contains(print))
    }
}

/// Whether the node of a session is to be told to renew, and when.
#[derive(Debug)]
pub(super) struct Outdated {
    known: Known,
    authority: watch::Receiver<Arc<Authority>>,
    turns: Turns,
    turn: Turn,
    /// Its agent knows what it means. Set once it has said so.
    pub(super) can_be_told: bool,
    /// Turns that changed nothing.
    in_vain: u32,
}

#[derive(Debug)]
enum Turn {
    None,
    Awaited(JoinSet<Option<OwnedSemaphorePermit>>),
    Has { _permit: Option<OwnedSemaphorePermit>, until: Instant },
    Pauses { until: Instant },
}

impl Outdated {
    pub(super) fn new(
        known: Known,
        authority: watch::Receiver<Arc<Authority>>,
        turns: Turns,
    ) -> Self {
        Self { known, authority, turns, turn: Turn::None, can_be_told: false, in_vain: 0 }
    }

    /// By whom its certificate is.
    pub(super) fn issuer(&self) -> Option<Fingerprint> {
        self.known.issuer
    }

    /// When the certificate that it was given last ends.
    pub(super) fn expiry(&self) -> &Expiry {
        &self.known.expiry
    }

    /// It was given a certificate.
    pub(super) fn given(&mut self, given: &Given) {
        self.known.expiry.note(&given.issued.certificate);
        self.known.given = Some((Fingerprint::of(&given.issued.certificate), given.issuer));
    }

    /// It says what it has stored; by whom that is, if that is to be recorded.
    pub(super) fn held(&mut self, held: &IdentityHeld) -> Option<Fingerprint> {
        self.known.held(held)
    }

    /// Returns when the node is to be told. May be dropped and called again.
    pub(super) async fn due(&mut self) {
        loop {
            let now = Arc::clone(&self.authority.borrow_and_update());
            if !self.known.is_outdated(now.signer(), now.fingerprints()) {
                (self.turn, self.in_vain) = (Turn::None, 0);
                if self.authority.changed().await.is_err() {
                    return std::future::pending().await;
                }
                continue;
            }
            match &mut self.turn {
                Turn::None => {
                    let Turns(turns) = self.turns.clone();
                    let mut awaited = JoinSet::new();
                    awaited.spawn(async move { turns.acquire_owned().await.ok() });
                    self.turn = Turn::Awaited(awaited);
                }
                Turn::Awaited(awaited) => {
                    let permit = awaited.join_next().await.and_then(Result::ok).flatten();
                    self.turn = Turn::Has { _permit: permit, until: clock::now() + TURN };
                    return;
                }
                Turn::Has { until, .. } => {
                    sleep_until((*until).into()).await;
                    let pause = PAUSES.0 * 2_u32.saturating_pow(self.in_vain);
                    self.turn = Turn::Pauses { until: clock::now() + pause.min(PAUSES.1) };
                    self.in_vain = (self.in_vain + 1).min(IN_VAIN_MAX);
                }
                Turn::Pauses { until } => {
                    sleep_until((*until).into()).await;
                    self.turn = Turn::None;
                }
            }
        }
    }
}

/// The longest pause is reached before.
const IN_VAIN_MAX: u32 = 8;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::pki::{Current, holder, made};

    #[test]
    fn a_node_is_outdated_by_its_issuer_and_by_whom_it_believes() {
        let [old, new, first, second] = [1, 2, 3, 4].map(|byte| Fingerprint([byte; 32]));
        let held = |certificate, authorities: &[Fingerprint]| IdentityHeld {
            certificate,
            authorities: authorities.to_vec(),
        };
        let mut known = Known::by(holder("edge-1", first), Expiry::default(), Some(old));
        assert!(!known.is_outdated(old, &[old]));
        assert_eq!(known.held(&held(first, &[old])), None, "it is recorded");
        assert!(
            !known.is_outdated(old, &[old, new]),
            "the new one is trusted, and signs nothing yet"
        );
        assert!(known.is_outdated(new, &[old, new]));

        // What it was not given says nothing.
        assert_eq!(known.held(&held(second, &[old])), None);
        known.given = Some((second, new));
        assert!(known.is_outdated(new, &[old, new]), "it has not stored it");
        assert_eq!(known.held(&held(second, &[old, new])), Some(new));
        assert_eq!(known.held(&held(second, &[old, new])), None, "it is recorded");
        assert!(!known.is_outdated(new, &[old, new]));
        assert!(known.is_outdated(new, &[new]), "it believes one that is gone");
        assert!(known.is_outdated(old, &[old, new]), "the way back");
    }

    #[tokio::test]
    async fn a_node_has_its_turn_once_another_has_renewed() {
        let (old, new) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
        let authority = Current::new(Arc::new(made()));
        let signer = authority.now().signer();
        let turns = Turns(Arc::new(Semaphore::new(1)));
        let outdated = |node| {
            let known = Known::by(holder(node, old), Expiry::default(), Some(old));
            Outdated::new(known, authority.changes(), turns.clone())
        };
        let (mut first, mut second) = (outdated("edge-1"), outdated("edge-2"));
        first.due().await;
        let mut waiting = JoinSet::new();
        waiting.spawn(async move { second.due().await });
        for _ in 0..YIELDS {
            tokio::task::yield_now().await;
        }
        assert!(waiting.try_join_next().is_none(), "both were told");

        first.known.given = Some((new, signer));
        let held = IdentityHeld { certificate: new, authorities: vec![signer] };
        assert_eq!(first.held(&held), Some(signer));
        assert!(first.due().now_or_never().is_none(), "it is told again");
        assert!(waiting.join_next().await.is_some_and(|told| told.is_ok()));
    }

    /// More than a task needs that nothing keeps waiting.
    const YIELDS: usize = 20;
}
