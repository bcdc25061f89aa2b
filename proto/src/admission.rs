//! Which session of a node is the current one: the newest with the right key and a valid ticket.
//!
//! Every admitted session gets a fresh ticket for the next one. Of the tickets given out, the
//! newest is valid, and the one last shown: the edge may lose the answer, or power before it has
//! stored the new ticket. Showing the newest ends the older one. So a stolen key without a ticket
//! is refused, and of two holders of one ticket the second to move on is refused, and both are
//! seen. A node is admitted without a ticket from joining until it first shows one.
//!
//! The hub keeps the [`Record`] in the node's Lease and replaces it only if nobody else did.

use std::fmt;

use bytes::Bytes;

use crate::wire::{Refusal, RefuseCode};

/// Longest ticket taken from the wire. Ours have 32 bytes.
pub const TICKET_BYTES_MAX: usize = 64;

/// A secret of one node and the cloud. Never in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket(Bytes);

impl Ticket {
    /// Takes 1 to [`TICKET_BYTES_MAX`] bytes; fresh ones are 32 random bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Option<Self> {
        let bytes = bytes.into();

        (!bytes.is_empty() && bytes.len() <= TICKET_BYTES_MAX).then_some(Self(bytes))
    }

    /// To be stored or sent.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// What the cloud keeps of it.
    pub fn hash(&self) -> TicketHash {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.0);
        let mut hash = [0; 32];
        hash.copy_from_slice(digest.as_ref());

        TicketHash(hash)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(..)")
    }
}

/// SHA-256 of a ticket. Tickets are random, so comparing hashes in variable time tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TicketHash(pub [u8; 32]);

/// What a node shows, or may show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential {
    /// Nothing: it has just joined.
    NoTicket,
    /// A ticket with this hash.
    Ticket(TicketHash),
}

/// Text of [`Credential::NoTicket`] in a record.
const NO_TICKET: &str = "none";

impl Credential {
    /// What a Hello shows.
    pub fn of(ticket: Option<&Ticket>) -> Self {
        ticket.map_or(Self::NoTicket, |ticket| Self::Ticket(ticket.hash()))
    }

    /// Reads what `Display` wrote: `none` or 64 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        if text == NO_TICKET {
            return Some(Self::NoTicket);
        }
        let mut hash = [0; 32];
        if text.len() != 2 * hash.len() || !text.is_ascii() {
            return None;
        }
        for (byte, at) in hash.iter_mut().zip((0..text.len()).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
        }

        Some(Self::Ticket(TicketHash(hash)))
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTicket => f.write_str(NO_TICKET),
            Self::Ticket(TicketHash(hash)) => {
                hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// What the cloud keeps about the sessions of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Sessions admitted so far; the current session has this number.
    pub generation: u64,
    /// Newest given out.
    pub current: Credential,
    /// Last one shown.
    pub previous: Credential,
    /// Set by hand or by revocation; only joining anew clears it.
    pub revoked: bool,
}

impl Record {
    /// The record after the node joined by token. `before` is there if it had joined earlier:
    /// generations never go back, or a fenced writer would be current again.
    pub fn joined(before: Option<&Self>) -> Self {
        let generation = before.map_or(0, |record| record.generation.saturating_add(1));
        let (current, previous) = (Credential::NoTicket, Credential::NoTicket);

        Self { generation, current, previous, revoked: false }
    }
}

/// What to do about a Hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write the record, if it is still the one decided on, then welcome the session.
    Admit {
        /// Its `generation` is that of the new session.
        record: Record,
    },
    /// Refuse; every code but `NotReady` deserves an alarm.
    Refuse(Refusal),
}

/// Decides about a session whose certificate is good.
///
/// `record` is what is kept about the node, `shown` what its Hello shows, `fresh` the ticket that
/// the Welcome will carry.
pub fn decide(record: Option<&Record>, shown: Credential, fresh: &Ticket) -> Decision {
    let Some(record) = record else {
        return refuse(RefuseCode::UnknownNode, "the node has not joined; join it by token");
    };
    if record.revoked {
        return refuse(RefuseCode::Revoked, "the node's identity was revoked; join it by token");
    }
    if shown != record.current && shown != record.previous {
        return refuse(
            RefuseCode::StaleTicket,
            "the resume ticket is not the one last issued: the key is in use elsewhere or the \
             store was set back; join it by token",
        );
    }
    let record = Record {
        generation: record.generation.saturating_add(1),
        current: Credential::Ticket(fresh.hash()),
        previous: shown,
        revoked: false,
    };

    Decision::Admit { record }
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

    fn ticket(n: u8) -> Ticket {
        Ticket::new(vec![n; 32]).unwrap()
    }

    /// Shows tickets (0: none) in turn; the n-th admission gives out ticket n.
    fn check(shown: &[u8], expected: &[Result<u64, RefuseCode>]) {
        let mut record = Record::joined(None);
        let mut given = 0;
        let found: Vec<_> = shown
            .iter()
            .map(|&n| {
                let shown = Credential::of((n > 0).then(|| ticket(n)).as_ref());
                match decide(Some(&record), shown, &ticket(given + 1)) {
                    Decision::Admit { record: next } => {
                        given += 1;
                        record = next;
                        Ok(record.generation)
                    }
                    Decision::Refuse(refusal) => Err(refusal.code),
                }
            })
            .collect();
        assert_eq!(found, expected, "{shown:?}");
    }

    #[test]
    fn the_newest_ticket_and_the_one_last_shown_are_valid() {
        let stale = Err(RefuseCode::StaleTicket);
        check(&[0, 1, 2, 3], &[Ok(1), Ok(2), Ok(3), Ok(4)]);
        // Answers lost: the same ticket is shown again.
        check(&[0, 0, 0, 3, 3, 5], &[Ok(1), Ok(2), Ok(3), Ok(4), Ok(5), Ok(6)]);
        // Once a ticket was shown, having none is not enough.
        check(&[0, 1, 0], &[Ok(1), Ok(2), stale]);
        // Old and made-up tickets.
        check(&[0, 1, 2, 1, 9, 3], &[Ok(1), Ok(2), Ok(3), stale, stale, Ok(4)]);
        // Two holders of ticket 1: when one moves on, the other is refused.
        check(&[0, 1, 1, 3, 1, 2], &[Ok(1), Ok(2), Ok(3), Ok(4), stale, stale]);
    }

    #[test]
    fn unknown_and_revoked_nodes_are_refused() {
        let code = |record: Option<Record>| match decide(
            record.as_ref(),
            Credential::NoTicket,
            &ticket(1),
        ) {
            Decision::Admit { record } => panic!("admitted as {record:?}"),
            Decision::Refuse(refusal) => refusal.code,
        };
        assert_eq!(code(None), RefuseCode::UnknownNode);
        assert_eq!(
            code(Some(Record { revoked: true, ..Record::joined(None) })),
            RefuseCode::Revoked
        );
    }

    #[test]
    fn joining_again_never_sets_the_generation_back() {
        let before = Record { generation: 41, revoked: true, ..Record::joined(None) };
        let after = Record::joined(Some(&before));
        assert_eq!((after.generation, after.revoked), (42, false));
    }

    #[test]
    fn credentials_survive_the_annotation() {
        for credential in [Credential::NoTicket, Credential::of(Some(&ticket(0xa7)))] {
            assert_eq!(Credential::parse(&credential.to_string()), Some(credential));
        }
        let long = "g".repeat(64);
        for bad in ["", "None", "abcd", long.as_str(), "é0000000000000000000000000000000"] {
            assert_eq!(Credential::parse(bad), None, "{bad}");
        }
    }
}
