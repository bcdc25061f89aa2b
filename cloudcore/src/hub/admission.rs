//! The record of a node's sessions: one Lease of cloudcore's namespace a node, replaced only if
//! nobody else did meanwhile. It holds the generation of the session, those of the resume tickets that are
//! valid, and which keys are the node's ([`keys`]).

mod keys;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::PostParams;
use proto::admission::{Decision, NONCE_LEN, Record, Ticket, decide};
use proto::ids::NodeName;
use proto::session::Admission;
use proto::wire::{Fingerprint, Hello, Refusal, RefuseCode};
use ring::rand::{SecureRandom as _, SystemRandom};

use self::keys::Keys;
use super::Shared;
use crate::clock;
use crate::pki::{Holder, KeyHash};

const SHOWN: &str = "holdfast.dev/ticket-shown";
const SINCE: &str = "holdfast.dev/ticket-since";
const REVOKED: &str = "holdfast.dev/revoked";
/// SHA-256 of the authority by which the certificate is that the node has; `edgeadm ca` reads it.
const AUTHORITY: &str = "holdfast.dev/authority";
/// Where the replica with the session takes what others pass on to it.
const PEER: &str = "holdfast.dev/peer";
/// Label of every session record.
pub(crate) const LABEL: &str = "holdfast.dev/session";

/// Two replicas that admit the same node at once: each retry sees the other's record.
const CONFLICTS_MAX: u32 = 5;

/// When the record cannot be read or written, the edge asks again.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(2);

/// A node with another key than the one that has joined is not helped by asking again.
const OTHER_KEY_RETRY_AFTER: std::time::Duration = std::time::Duration::from_mins(1);

/// Decides about a Hello, said over a connection with the certificate of `holder`, by this authority, and
/// records the decision.
pub(super) async fn admit(
    shared: &Shared,
    hello: &Hello,
    holder: &Holder,
    issuer: Option<Fingerprint>,
) -> Result<Admission, Refusal> {
    let (leases, key) = (leases(shared), &holder.key);
    for _ in 0..CONFLICTS_MAX {
        let kept = leases.get_opt(hello.node.as_str()).await.map_err(not_ready)?;
        let record = kept.as_ref().and_then(read);
        let mut keys = kept.as_ref().map(Keys::of).unwrap_or_default();
        let authority = shared.authority.now();
        let tickets = authority.tickets();
        let ticket = hello.ticket.as_ref();
        let (record, ticket) = match decide(record.as_ref(), &hello.node, ticket, tickets, nonce()?)
        {
            Decision::Admit { record, ticket } => (record, ticket),
            Decision::Refuse(refusal) => return Err(refusal),
        };
        // Without a ticket the key alone says which machine it is.
        if hello.ticket.is_none() && keys.are_of_another(key) {
            return Err(other_key());
        }
        keys.connected(key);
        match write(shared, &leases, &hello.node, kept, &record, (&keys, issuer)).await {
            Ok(()) => {
                return Ok(Admission {
                    generation: record.generation,
                    ticket,
                    epoch: shared.evidence.epoch(),
                    server_time_ms: clock::timestamp().as_millisecond(),
                });
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(not_ready(error)),
        }
    }

    Err(too_often(&hello.node))
}

/// Records that the machine with this key has joined as `node` by token, and gets a certificate by this authority.
/// Sessions of another machine of that name end: their generation is over.
pub(super) async fn joined(
    shared: &Shared,
    node: &NodeName,
    key: &KeyHash,
    issuer: Fingerprint,
) -> Result<(), kube::Error> {
    let leases = leases(shared);
    let kept = leases.get_opt(node.as_str()).await?;
    let record = Record::joined(kept.as_ref().and_then(read).as_ref());

    write(shared, &leases, node, kept, &record, (&Keys::joined(key), Some(issuer))).await
}

/// Records that the node of session `generation` has stored a certificate by this authority.
pub(super) async fn keep_issuer(
    shared: &Shared,
    node: &NodeName,
    generation: u64,
    issuer: Fingerprint,
) -> Result<(), kube::Error> {
    let keep = |lease: &mut Lease| {
        let is_theirs = read(lease).is_some_and(|record| record.generation == generation);
        if is_theirs {
            annotate_issuer(lease, issuer);
        }
        is_theirs
    };

    amend(shared, node, keep).await.map(drop)
}

/// Whether another machine than that with this key has joined as `node`.
pub(super) async fn is_of_another(
    shared: &Shared,
    node: &NodeName,
    key: &KeyHash,
) -> Result<bool, kube::Error> {
    let Some(kept) = leases(shared).get_opt(node.as_str()).await? else { return Ok(false) };
    let keys = Keys::of(&kept);

    // A record without keys is of a time when nobody wrote them.
    Ok(keys.is_empty() || keys.are_of_another(key))
}

/// Records that the node of session `generation` holds the ticket of that session. A record that names
/// another session stays as it is.
pub(super) async fn confirm(
    shared: &Shared,
    node: &NodeName,
    generation: u64,
) -> Result<(), kube::Error> {
    let confirm = |lease: &mut Lease| {
        let confirmed = read(lease).and_then(|record| record.confirm(generation));
        confirmed.is_some_and(|record| {
            annotate(lease, &record);
            true
        })
    };

    amend(shared, node, confirm).await.map(drop)
}

/// Records that the node of session `generation`, which connected with `current`, may connect with `next`
/// from now on. False if that is not the node's session any more.
pub(super) async fn give_key(
    shared: &Shared,
    node: &NodeName,
    generation: u64,
    current: &KeyHash,
    next: &KeyHash,
) -> Result<bool, kube::Error> {
    let give = |lease: &mut Lease| {
        let record = read(lease);
        let is_theirs = record.is_some_and(|r| !r.revoked && r.generation == generation);
        if is_theirs {
            Keys::given(current, next).write(lease);
        }
        is_theirs
    };

    amend(shared, node, give).await
}

/// As [`give_key`], for a node that has no session and shows its ticket, which stays good: as in a session, who
/// has that is the node, whichever of its keys it has last stored.
pub(super) async fn give_key_by_ticket(
    shared: &Shared,
    node: &NodeName,
    ticket: &Ticket,
    current: &KeyHash,
    next: &KeyHash,
) -> Result<(), Refusal> {
    let leases = leases(shared);
    for _ in 0..CONFLICTS_MAX {
        let kept = leases.get_opt(node.as_str()).await.map_err(not_ready)?;
        let record = kept.as_ref().and_then(read);
        let authority = shared.authority.now();
        let tickets = authority.tickets();
        match decide(record.as_ref(), node, Some(ticket), tickets, nonce()?) {
            Decision::Admit { .. } => {}
            Decision::Refuse(refusal) => return Err(refusal),
        }
        // A restored API server may not know the node: its first session makes the record.
        let Some(mut lease) = kept else { return Ok(()) };
        Keys::given(current, next).write(&mut lease);
        match leases.replace(node.as_str(), &PostParams::default(), &lease).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(not_ready(error)),
        }
    }

    Err(too_often(node))
}

/// Changes the record of a node; whether `change` did.
async fn amend(
    shared: &Shared,
    node: &NodeName,
    change: impl Fn(&mut Lease) -> bool,
) -> Result<bool, kube::Error> {
    let leases = leases(shared);
    let mut conflicts = 0;
    loop {
        let Some(mut lease) = leases.get_opt(node.as_str()).await? else { return Ok(false) };
        if !change(&mut lease) {
            return Ok(false);
        }
        match leases.replace(node.as_str(), &PostParams::default(), &lease).await {
            Err(kube::Error::Api(status)) if status.code == 409 && conflicts < CONFLICTS_MAX => {
                conflicts += 1;
            }
            done => return done.map(|_| true),
        }
    }
}

fn leases(shared: &Shared) -> Api<Lease> {
    Api::namespaced(shared.client.clone(), &shared.namespace)
}

async fn write(
    shared: &Shared,
    leases: &Api<Lease>,
    node: &NodeName,
    kept: Option<Lease>,
    record: &Record,
    (keys, issuer): (&Keys, Option<Fingerprint>),
) -> Result<(), kube::Error> {
    let exists = kept.is_some();
    let mut lease = kept.unwrap_or_default();
    lease.metadata.name = Some(node.to_string());
    lease.metadata.labels.get_or_insert_default().insert(LABEL.to_owned(), "true".to_owned());
    annotate(&mut lease, record);
    keys.write(&mut lease);
    if let Some(issuer) = issuer {
        annotate_issuer(&mut lease, issuer);
    }
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.insert(PEER.to_owned(), shared.peer.to_string());
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(shared.replica.clone()),
        lease_transitions: Some(i32::try_from(record.generation).unwrap_or(i32::MAX)),
        acquire_time: Some(MicroTime(clock::timestamp())),
        ..LeaseSpec::default()
    });
    let params = PostParams::default();
    if exists {
        leases.replace(node.as_str(), &params, &lease).await.map(drop)
    } else {
        leases.create(&params, &lease).await.map(drop)
    }
}

fn annotate_issuer(lease: &mut Lease, issuer: Fingerprint) {
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.insert(AUTHORITY.to_owned(), issuer.to_string());
}

fn annotate(lease: &mut Lease, record: &Record) {
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.insert(SHOWN.to_owned(), record.shown.to_string());
    annotations.insert(SINCE.to_owned(), record.since.to_string());
    if record.revoked {
        annotations.insert(REVOKED.to_owned(), "true".to_owned());
    } else {
        annotations.remove(REVOKED);
    }
}

/// Whether the annotations of a session record say that the node's identity counts no more.
pub(crate) fn is_revoked(annotations: &serde_json::Value) -> bool {
    annotations[REVOKED] == "true"
}

/// Where the replica that a record names takes what others pass on to it; `None` if it is too old to say.
pub(super) fn peer_of(lease: &Lease) -> Option<SocketAddr> {
    lease.metadata.annotations.as_ref()?.get(PEER)?.parse().ok()
}

/// The record that a Lease holds.
pub(super) fn read(lease: &Lease) -> Option<Record> {
    let empty = BTreeMap::new();
    let annotations = lease.metadata.annotations.as_ref().unwrap_or(&empty);
    let number = |name: &str| annotations.get(name).and_then(|text| text.parse().ok());
    let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0);

    Some(Record {
        generation: u64::try_from(transitions).unwrap_or_default(),
        shown: number(SHOWN)?,
        since: number(SINCE)?,
        revoked: annotations.get(REVOKED).is_some_and(|value| value == "true"),
    })
}

fn nonce() -> Result<[u8; NONCE_LEN], Refusal> {
    let mut nonce = [0; NONCE_LEN];
    SystemRandom::new()
        .fill(&mut nonce)
        .map_err(|_| refusal("the operating system gives no random bytes".to_owned()))?;

    Ok(nonce)
}

fn too_often(node: &NodeName) -> Refusal {
    refusal(format!("the session record of {node} is changed too often"))
}

fn other_key() -> Refusal {
    Refusal {
        code: RefuseCode::StaleTicket,
        reason: "another machine has joined as this node since; join it by token".to_owned(),
        retry_after: OTHER_KEY_RETRY_AFTER,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as an error mapper")]
fn not_ready(error: kube::Error) -> Refusal {
    refusal(format!("the session record cannot be kept: {}", crate::telemetry::chain(&error)))
}

fn refusal(reason: String) -> Refusal {
    Refusal { code: RefuseCode::NotReady, reason, retry_after: RETRY_AFTER }
}
