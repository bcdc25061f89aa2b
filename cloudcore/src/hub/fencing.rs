//! Ends sessions that the record of a node no longer names: the node has a newer one at another
//! replica, or was revoked (invariant 12). What a replica believes of its own sessions counts only as
//! long as the record says so, too.

use std::time::Duration;

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use proto::ids::NodeName;
use proto::session::CloudInput;
use proto::wire::{Refusal, RefuseCode};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::admission::{LABEL, peer_of, read};
use super::{Command, Holder, SessionHandle, Shared};
use crate::telemetry;

/// Records of one page: some hundred KiB.
const PAGE_LIMIT: u32 = 500;

/// A watch ends by itself after this; then everything is looked at again.
const WATCH_SECONDS: u32 = 290;

/// After a list or watch that failed. With the watch's own delay well within the 5 s in which a
/// revocation takes effect.
const RETRY: Duration = Duration::from_secs(1);

/// A session's loop takes what it is told within milliseconds, also when its link is stuck.
const TELL_MAX: Duration = Duration::from_secs(1);

/// A revoked node may not come back soon: it would be refused again.
const REVOKED_RETRY: Duration = Duration::from_mins(1);

/// What a record says of the current session.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    generation: u64,
    replica: String,
    is_revoked: bool,
}

/// Why a session with this generation of this replica is over, if it is.
///
/// A record of a lower generation is older than the session, or was restored from a backup: a node
/// that moves on from there gets a higher one (see `proto::admission`).
fn verdict(generation: u64, replica: &str, record: &Named) -> Option<Refusal> {
    let refusal = |code, reason: String, retry_after| Some(Refusal { code, reason, retry_after });
    if record.generation < generation {
        return None;
    }
    if record.is_revoked {
        let reason = "the node's identity was revoked; join it by token".to_owned();
        return refusal(RefuseCode::Revoked, reason, REVOKED_RETRY);
    }
    if record.generation > generation || record.replica != replica {
        let reason = format!("a newer session of the node was admitted by {}", record.replica);
        return refusal(RefuseCode::Superseded, reason, Duration::ZERO);
    }

    None
}

fn named(lease: &Lease) -> Option<Named> {
    let record = read(lease)?;
    let replica = lease.spec.as_ref()?.holder_identity.clone()?;

    Some(Named { generation: record.generation, replica, is_revoked: record.revoked })
}

/// Watches the records until asked to stop.
pub async fn run(shared: &Shared, client: &Client, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            ended = follow(shared, client) => {
                if let Err(error) = ended {
                    let error = telemetry::chain(&error);
                    tracing::warn!(error, "cannot watch the records of sessions");
                }
            }
        }
        sleep(RETRY).await;
    }
}

/// Lists, then watches until the watch ends.
async fn follow(shared: &Shared, client: &Client) -> Result<(), kube::Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), &shared.namespace);
    let mut params = ListParams::default().labels(LABEL).limit(PAGE_LIMIT);
    let revision = loop {
        let page = leases.list(&params).await?;
        for lease in &page.items {
            // One that is not listed ends no session: absence is not evidence (invariant 8).
            take(shared, lease).await;
        }
        let revision = page.metadata.resource_version.unwrap_or_default();
        match page.metadata.continue_.filter(|next| !next.is_empty()) {
            Some(next) => params = params.continue_token(&next),
            None => break revision,
        }
    };
    let params = WatchParams::default().labels(LABEL).timeout(WATCH_SECONDS);
    let events = leases.watch(&params, &revision).await?;
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event? {
            WatchEvent::Added(lease) | WatchEvent::Modified(lease) => take(shared, &lease).await,
            WatchEvent::Deleted(lease) => forget(shared, &lease).await,
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
        }
    }

    Ok(())
}

/// Takes what a record says.
pub(super) async fn take(shared: &Shared, lease: &Lease) {
    let (Some(node), Some(record)) = (node_of(lease), named(lease)) else { return };
    let elsewhere = (record.replica != shared.replica).then(|| Holder {
        replica: record.replica.clone(),
        generation: record.generation,
        peer: peer_of(lease),
        over: CancellationToken::new(),
    });
    shared.sessions.note(&node, elsewhere);
    let Some(session) = shared.sessions.get(&node) else { return };
    if let Some(refusal) = verdict(session.generation(), &shared.replica, &record) {
        cut(&session, refusal).await;
    }
}

/// A record was deleted: the node is to join again.
async fn forget(shared: &Shared, lease: &Lease) {
    let (Some(node), Some(record)) = (node_of(lease), named(lease)) else { return };
    shared.sessions.note(&node, None);
    let Some(session) = shared.sessions.get(&node) else { return };
    if record.generation >= session.generation() {
        let reason = "the record of the node's sessions was deleted; join it by token".to_owned();
        let retry_after = REVOKED_RETRY;
        cut(&session, Refusal { code: RefuseCode::UnknownNode, reason, retry_after }).await;
    }
}

fn node_of(lease: &Lease) -> Option<NodeName> {
    NodeName::new(lease.metadata.name.clone()?).ok()
}

/// Fences the session at once, then ends it.
async fn cut(session: &SessionHandle, refusal: Refusal) {
    let (node, code, reason) = (session.node(), refusal.code.as_str(), refusal.reason.clone());
    tracing::warn!(%node, generation = session.generation(), code, reason, "ending a session");
    session.fence();
    let told = session.inputs.send(Command::Input(CloudInput::Refused(refusal)));
    // A loop that has ended needs no telling.
    drop(timeout(TELL_MAX, told).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_lives_as_long_as_the_record_names_it() {
        let check = |generation, replica: &str, is_revoked, expected: Option<RefuseCode>| {
            let record = Named { generation, replica: replica.to_owned(), is_revoked };
            let verdict = verdict(5, "a", &record).map(|refusal| refusal.code);
            assert_eq!(verdict, expected, "{record:?}");
        };
        check(5, "a", false, None);
        // The node has moved on, to this replica or another.
        check(6, "a", false, Some(RefuseCode::Superseded));
        check(6, "b", false, Some(RefuseCode::Superseded));
        // Two sessions of one number: only a restored API server makes them, and one has lost.
        check(5, "b", false, Some(RefuseCode::Superseded));
        // What the watch shows is older than the session.
        check(4, "b", false, None);
        check(4, "a", true, None);
        // Revoked, whoever has the session.
        check(5, "a", true, Some(RefuseCode::Revoked));
        check(6, "b", true, Some(RefuseCode::Revoked));
    }
}
