//! Which session of a node is the current one: the newest with the right key and a valid ticket.
//!
//! Every admitted session gets a fresh ticket for the next one. Valid are the ticket last shown,
//! and those given out in reply to it: the edge may lose the answer, or power before it has stored
//! the new ticket, and a replica may answer after the edge has gone to another. Showing one of
//! those ends all others. So a stolen key without a ticket is refused, and of two holders of one
//! ticket the second to move on is refused, and both are seen. A node is admitted without a ticket
//! from joining until it first shows one or says that it holds one ([`Record::confirm`]), which an
//! edge does as soon as its ticket is durable.
//!
//! The hub keeps the [`Record`] in the node's Lease and replaces it only if nobody else did. That
//! Lease goes back in time when the API server is restored from a backup, so tickets prove by
//! themselves which session they were issued by: one that is newer than the record is valid.

use std::fmt;

use bytes::Bytes;
use ring::hmac;

use crate::ids::NodeName;
use crate::wire::{Refusal, RefuseCode};

/// Longest ticket taken from the wire. Ours have 56 bytes.
pub const TICKET_BYTES_MAX: usize = 64;

/// A secret of one node and the cloud. Never in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket(Bytes);

impl Ticket {
    /// Takes 1 to [`TICKET_BYTES_MAX`] bytes, as stored or received.
    pub fn new(bytes: impl Into<Bytes>) -> Option<Self> {
        let bytes = bytes.into();

        (!bytes.is_empty() && bytes.len() <= TICKET_BYTES_MAX).then_some(Self(bytes))
    }

    /// To be stored or sent.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(..)")
    }
}

/// What tickets are signed with. The same at every replica, for as long as the CA lives.
#[derive(Debug)]
pub struct TicketKey(hmac::Key);

/// Bytes of a ticket before its tag: generation and nonce.
const SIGNED_LEN: usize = 8 + NONCE_LEN;

/// Random bytes of a ticket.
pub const NONCE_LEN: usize = 16;

impl TicketKey {
    /// The key made of a secret of at least 32 bytes that only the cloud has.
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The ticket given out by the session with this generation.
    pub fn issue(&self, node: &NodeName, generation: u64, nonce: [u8; NONCE_LEN]) -> Ticket {
        let mut ticket = generation.to_be_bytes().to_vec();
        ticket.extend(nonce);
        let tag = self.tag(node, &ticket);
        ticket.extend(tag.as_ref());

        Ticket(ticket.into())
    }

    /// Which session of `node` gave it out; `None` if none did.
    pub fn verify(&self, node: &NodeName, ticket: &Ticket) -> Option<u64> {
        let (signed, tag) = ticket.0.split_at_checked(SIGNED_LEN)?;
        let generation = u64::from_be_bytes(*signed.first_chunk()?);
        let message = message(node, signed);

        hmac::verify(&self.0, &message, tag).is_ok().then_some(generation)
    }

    fn tag(&self, node: &NodeName, signed: &[u8]) -> hmac::Tag {
        hmac::sign(&self.0, &message(node, signed))
    }
}

/// The signed part has a fixed length, so the name needs no border.
fn message(node: &NodeName, signed: &[u8]) -> Vec<u8> {
    [b"holdfast ticket 1", signed, node.as_str().as_bytes()].concat()
}

/// What the cloud keeps about the sessions of one node. Generations start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Sessions admitted so far; the current session has this number.
    pub generation: u64,
    /// Generation of the ticket last shown; zero as long as none was.
    pub shown: u64,
    /// Generation before that ticket was first shown: all later ones were given out in reply.
    pub since: u64,
    /// Set by hand or by revocation; only joining anew clears it.
    pub revoked: bool,
}

impl Record {
    /// The record after the node joined by token. `before` is there if it had joined earlier:
    /// generations never go back, or a fenced writer would be current again.
    pub fn joined(before: Option<&Self>) -> Self {
        let generation = before.map_or(0, |record| record.generation.saturating_add(1));

        Self { generation, shown: 0, since: generation, revoked: false }
    }

    /// The record after the node said that it holds the ticket of session `generation`; `None` if it stays
    /// as it is. Only the first ticket after joining needs that: every later one is proven by being shown.
    pub fn confirm(&self, generation: u64) -> Option<Self> {
        let is_first = self.generation == generation && self.shown == 0;

        is_first.then_some(Self { shown: generation, since: generation, ..*self })
    }

    /// Whether a node that shows this (zero: no ticket) is the one that was admitted last.
    fn accepts(&self, shown: u64) -> bool {
        shown == self.shown || shown > self.since
    }

    fn admit(&self, shown: u64) -> Self {
        let since = if shown == self.shown { self.since } else { self.generation.max(shown) };
        let generation = self.generation.max(shown).saturating_add(1);

        Self { generation, shown, since, revoked: false }
    }
}

/// What to do about a Hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write the record, if it is still the one decided on, then welcome the session.
    Admit {
        /// Its `generation` is that of the new session.
        record: Record,
        /// For the Welcome.
        ticket: Ticket,
    },
    /// Refuse; every code but `NotReady` deserves an alarm.
    Refuse(Refusal),
}

/// Decides about a session of `node` whose certificate is good.
///
/// `record` is what is kept about the node, `shown` what its Hello shows; `nonce` is fresh and
/// random.
pub fn decide(
    record: Option<&Record>,
    node: &NodeName,
    shown: Option<&Ticket>,
    key: &TicketKey,
    nonce: [u8; NONCE_LEN],
) -> Decision {
    let proven = shown.and_then(|ticket| key.verify(node, ticket));
    // A restore can take the record away from a node that has joined since.
    let before = match (record, proven) {
        (Some(record), _) => *record,
        (None, Some(_)) => Record::joined(None),
        (None, None) => {
            return refuse(RefuseCode::UnknownNode, "the node has not joined; join it by token");
        }
    };
    if before.revoked {
        return refuse(RefuseCode::Revoked, "the node's identity was revoked; join it by token");
    }
    let forged = shown.is_some() && proven.is_none();
    let shown = proven.unwrap_or_default();
    if forged || !before.accepts(shown) {
        return refuse(
            RefuseCode::StaleTicket,
            "the resume ticket is not the one last issued: the key is in use elsewhere or the \
             store was set back; join it by token",
        );
    }
    let record = before.admit(shown);
    let ticket = key.issue(node, record.generation, nonce);

    Decision::Admit { record, ticket }
}

/// Asking again soon would change nothing, and a person has to act.
const REFUSED_RETRY_AFTER: std::time::Duration = std::time::Duration::from_mins(1);

fn refuse(code: RefuseCode, reason: &str) -> Decision {
    let reason = reason.to_owned();

    Decision::Refuse(Refusal { code, reason, retry_after: REFUSED_RETRY_AFTER })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeName {
        NodeName::new("edge-1").unwrap()
    }

    fn key() -> TicketKey {
        TicketKey::new(&[7; 32])
    }

    #[derive(Clone, Copy)]
    enum Step {
        /// Shows the ticket of the n-th admission; 0 is none.
        Show(usize),
        /// Shows a ticket signed by somebody else.
        Forge,
        /// Keeps the record of now.
        Backup,
        /// Brings it back.
        Restore,
        /// Takes the record away.
        Wipe,
        /// The session of the n-th admission says that it holds its ticket.
        Hold(usize),
    }
    use Step::{Backup, Forge, Hold, Restore, Show, Wipe};

    fn check(steps: &[Step], expected: &[Result<u64, RefuseCode>]) {
        let mut record = Some(Record::joined(None));
        let (mut backup, mut given, mut found) = (record, vec![None], Vec::new());
        for (step, nonce) in steps.iter().zip(0..) {
            let shown = match step {
                Show(n) => given[*n].clone(),
                Forge => Some(TicketKey::new(&[8; 32]).issue(&node(), 99, [0; NONCE_LEN])),
                Backup => {
                    backup = record;
                    continue;
                }
                Restore => {
                    record = backup;
                    continue;
                }
                Wipe => {
                    record = None;
                    continue;
                }
                Hold(n) => {
                    let generation = key().verify(&node(), given[*n].as_ref().unwrap()).unwrap();
                    record = record.map(|kept| kept.confirm(generation).unwrap_or(kept));
                    continue;
                }
            };
            let nonce = [nonce; NONCE_LEN];
            found.push(match decide(record.as_ref(), &node(), shown.as_ref(), &key(), nonce) {
                Decision::Admit { record: next, ticket } => {
                    given.push(Some(ticket));
                    record = Some(next);
                    Ok(next.generation)
                }
                Decision::Refuse(refusal) => Err(refusal.code),
            });
        }
        assert_eq!(found, expected);
    }

    const STALE: Result<u64, RefuseCode> = Err(RefuseCode::StaleTicket);

    #[test]
    fn the_newest_ticket_and_the_one_last_shown_are_valid() {
        check(&[Show(0), Show(1), Show(2), Show(3)], &[Ok(1), Ok(2), Ok(3), Ok(4)]);
        // A replica answers after the edge has gone to another, which answered before: ticket 2 is
        // stored, 3 never arrives.
        check(&[Show(0), Show(1), Show(1), Show(2), Show(3)], &[Ok(1), Ok(2), Ok(3), Ok(4), STALE]);
        // Answers lost: the same ticket is shown again.
        check(&[Show(0), Show(0), Show(0), Show(3), Show(3)], &[Ok(1), Ok(2), Ok(3), Ok(4), Ok(5)]);
        // Once a ticket was shown, having none is not enough.
        check(&[Show(0), Show(1), Show(0)], &[Ok(1), Ok(2), STALE]);
        // Old and made-up tickets.
        check(
            &[Show(0), Show(1), Show(2), Show(1), Forge, Show(3)],
            &[Ok(1), Ok(2), Ok(3), STALE, STALE, Ok(4)],
        );
        // Two holders of ticket 1: when one moves on, the other is refused.
        check(
            &[Show(0), Show(1), Show(1), Show(3), Show(1), Show(2)],
            &[Ok(1), Ok(2), Ok(3), Ok(4), STALE, STALE],
        );
    }

    #[test]
    fn having_no_ticket_is_not_enough_once_the_node_holds_one() {
        // The node's first session is up, and its key is used elsewhere.
        check(&[Show(0), Hold(1), Show(0), Show(1)], &[Ok(1), STALE, Ok(2)]);
        // The answer to the second Hello is lost, or comes late.
        check(&[Show(0), Hold(1), Show(1), Show(1), Show(2)], &[Ok(1), Ok(2), Ok(3), Ok(4)]);
        // Somebody was faster than the node's disk: the node comes back with its ticket, and wins.
        check(
            &[Show(0), Show(0), Hold(1), Show(1), Show(2), Show(0)],
            &[Ok(1), Ok(2), Ok(3), STALE, STALE],
        );
        // Said late, or again, it changes nothing.
        check(
            &[Show(0), Hold(1), Show(1), Show(2), Hold(1), Show(3)],
            &[Ok(1), Ok(2), Ok(3), Ok(4)],
        );
        check(&[Show(0), Show(1), Hold(1), Hold(2), Show(1)], &[Ok(1), Ok(2), Ok(3)]);
    }

    #[test]
    fn a_restored_record_locks_nobody_out() {
        check(
            &[Show(0), Show(1), Backup, Show(2), Show(3), Restore, Show(4), Show(5), Show(3)],
            &[Ok(1), Ok(2), Ok(3), Ok(4), Ok(5), Ok(6), STALE],
        );
        // From before the node joined.
        check(&[Show(0), Show(1), Wipe, Show(2)], &[Ok(1), Ok(2), Ok(3)]);
        check(&[Show(0), Show(1), Wipe, Show(0)], &[Ok(1), Ok(2), Err(RefuseCode::UnknownNode)]);
        check(&[Wipe, Forge], &[Err(RefuseCode::UnknownNode)]);
        // Of two holders of one disk one is refused in the end, which raises the alarm.
        check(
            &[
                Show(0),
                Backup,
                Show(1),
                Show(2),
                Restore,
                Show(2),
                Show(3),
                Show(4),
                Show(5),
                Show(6),
            ],
            &[Ok(1), Ok(2), Ok(3), Ok(3), Ok(4), Ok(5), Ok(6), STALE],
        );
    }

    #[test]
    fn a_ticket_is_good_for_one_node() {
        let ticket = key().issue(&node(), 5, [1; NONCE_LEN]);
        assert_eq!(key().verify(&node(), &ticket), Some(5));
        assert_eq!(key().verify(&NodeName::new("edge-2").unwrap(), &ticket), None);
        let mut bytes = ticket.as_bytes().to_vec();
        bytes[7] ^= 1;
        assert_eq!(key().verify(&node(), &Ticket::new(bytes).unwrap()), None);
        assert_eq!(key().verify(&node(), &Ticket::new(vec![1; 3]).unwrap()), None);
    }

    #[test]
    fn revoked_nodes_are_refused() {
        let record = Record { revoked: true, ..Record::joined(None) };
        let decision = decide(Some(&record), &node(), None, &key(), [0; NONCE_LEN]);
        assert!(matches!(decision, Decision::Refuse(r) if r.code == RefuseCode::Revoked));
    }

    #[test]
    fn joining_again_never_sets_the_generation_back() {
        let before = Record { generation: 41, revoked: true, ..Record::joined(None) };
        let after = Record::joined(Some(&before));
        assert_eq!((after.generation, after.revoked), (42, false));
    }
}
