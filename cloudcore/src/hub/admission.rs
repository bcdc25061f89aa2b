//! The record of a node's sessions: one Lease of cloudcore's namespace a node, replaced only if
//! nobody else did meanwhile. It holds the generation of the session and those of the resume tickets that are valid.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::PostParams;
use proto::admission::{Decision, NONCE_LEN, Record, decide};
use proto::ids::NodeName;
use proto::session::Admission;
use proto::wire::{Hello, Refusal, RefuseCode};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::Shared;
use crate::clock;
use crate::pki::KeyHash;

const SHOWN: &str = "holdfast.dev/ticket-shown";
const SINCE: &str = "holdfast.dev/ticket-since";
const REVOKED: &str = "holdfast.dev/revoked";
/// The hash of the key that the node last joined with.
const KEY: &str = "holdfast.dev/joined-key";
/// Where the replica with the session takes what others pass on to it.
const PEER: &str = "holdfast.dev/peer";
/// Label of every session record.
pub(crate) const LABEL: &str = "holdfast.dev/session";

/// Two replicas that admit the same node at once: each retry sees the other's record.
const CONFLICTS_MAX: u32 = 5;

/// When the record cannot be read or written, the edge asks again.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(2);

/// Decides about a Hello and records the decision.
pub(super) async fn admit(shared: &Shared, hello: &Hello) -> Result<Admission, Refusal> {
    let leases: Api<Lease> = Api::namespaced(shared.client.clone(), &shared.namespace);
    for _ in 0..CONFLICTS_MAX {
        let kept = leases.get_opt(hello.node.as_str()).await.map_err(not_ready)?;
        let record = kept.as_ref().and_then(read);
        let key = shared.authority.tickets();
        let ticket = hello.ticket.as_ref();
        let (record, ticket) = match decide(record.as_ref(), &hello.node, ticket, key, nonce()?) {
            Decision::Admit { record, ticket } => (record, ticket),
            Decision::Refuse(refusal) => return Err(refusal),
        };
        match write(shared, &leases, &hello.node, kept, &record, None).await {
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

    Err(refusal(format!("the session record of {} is changed too often", hello.node)))
}

/// Records that the machine with this key has joined as `node` by token. Sessions of another
/// machine of that name end: their generation is over.
pub(super) async fn joined(
    shared: &Shared,
    node: &NodeName,
    key: &KeyHash,
) -> Result<(), kube::Error> {
    let leases: Api<Lease> = Api::namespaced(shared.client.clone(), &shared.namespace);
    let kept = leases.get_opt(node.as_str()).await?;
    let record = Record::joined(kept.as_ref().and_then(read).as_ref());

    write(shared, &leases, node, kept, &record, Some(key)).await
}

/// Whether another machine than that with this key has joined as `node`.
pub(super) async fn is_of_another(
    shared: &Shared,
    node: &NodeName,
    key: &KeyHash,
) -> Result<bool, kube::Error> {
    let leases: Api<Lease> = Api::namespaced(shared.client.clone(), &shared.namespace);
    let Some(kept) = leases.get_opt(node.as_str()).await? else { return Ok(false) };
    let known = kept.metadata.annotations.as_ref().and_then(|all| all.get(KEY));

    Ok(known.is_none_or(|known| known != key.as_str()))
}

/// Whether a node with a good certificate may have another.
pub(super) async fn may_renew(shared: &Shared, node: &NodeName) -> Result<bool, kube::Error> {
    let leases: Api<Lease> = Api::namespaced(shared.client.clone(), &shared.namespace);
    let kept = leases.get_opt(node.as_str()).await?;

    Ok(kept.as_ref().and_then(read).is_some_and(|record| !record.revoked))
}

async fn write(
    shared: &Shared,
    leases: &Api<Lease>,
    node: &NodeName,
    kept: Option<Lease>,
    record: &Record,
    key: Option<&KeyHash>,
) -> Result<(), kube::Error> {
    let exists = kept.is_some();
    let mut lease = kept.unwrap_or_default();
    lease.metadata.name = Some(node.to_string());
    lease.metadata.labels.get_or_insert_default().insert(LABEL.to_owned(), "true".to_owned());
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.insert(SHOWN.to_owned(), record.shown.to_string());
    annotations.insert(SINCE.to_owned(), record.since.to_string());
    annotations.insert(PEER.to_owned(), shared.peer.to_string());
    if let Some(key) = key {
        annotations.insert(KEY.to_owned(), key.as_str().to_owned());
    }
    if record.revoked {
        annotations.insert(REVOKED.to_owned(), "true".to_owned());
    } else {
        annotations.remove(REVOKED);
    }
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

#[expect(clippy::needless_pass_by_value, reason = "used as an error mapper")]
fn not_ready(error: kube::Error) -> Refusal {
    refusal(format!("the session record cannot be kept: {}", crate::telemetry::chain(&error)))
}

fn refusal(reason: String) -> Refusal {
    Refusal { code: RefuseCode::NotReady, reason, retry_after: RETRY_AFTER }
}
