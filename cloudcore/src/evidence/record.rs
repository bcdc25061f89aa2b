//! The record of epochs that replicas share: a Lease, replaced only if nobody else did meanwhile.

use std::time::{Duration, Instant};

use index::epoch::{Record, Step, decide};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::PostParams;

use super::{Doubt, Evidence};
use crate::clock;

/// In cloudcore's namespace.
const LEASE: &str = "holdfast-epoch";
const EPOCH: &str = "holdfast.dev/epoch";
const BEAT: &str = "holdfast.dev/beat";

/// The replica that finds the record unchanged for so long raises the beat. A restore of a backup that
/// is older than this is noticed by the record alone; of a younger one, by revisions.
const BEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Each retry sees another's write.
const CONFLICTS_MAX: u32 = 5;

/// What this replica knows of the record.
#[derive(Debug, Default)]
pub(super) struct Kept {
    seen: Option<Record>,
    changed_at: Option<Instant>,
}

impl Evidence {
    /// Reads the record and does what [`decide`] says; `wanted` is the least epoch to be in.
    pub(super) async fn agree(&self, wanted: u64) -> Result<(), Doubt> {
        let mut kept = self.0.kept.lock().await;
        let client = super::gate::gated(self.0.client.clone(), self.clone());
        let leases: Api<Lease> = Api::namespaced(client, &self.0.namespace);
        for _ in 0..CONFLICTS_MAX {
            let lease = leases.get_opt(LEASE).await.map_err(self.failed("get"))?;
            let found = lease.as_ref().and_then(read);
            let now = clock::now();
            let is_due = kept.changed_at.is_some_and(|at| now - at >= BEAT_INTERVAL);
            let record = match decide(kept.seen, found, wanted, is_due) {
                Step::Take(record) => record,
                Step::Write(record) => match self.write(&leases, lease, record).await {
                    Ok(()) => record,
                    Err(Doubt::Record { source: kube::Error::Api(status), .. })
                        if status.code == 409 =>
                    {
                        continue;
                    }
                    Err(doubt) => return Err(doubt),
                },
            };
            if kept.seen != Some(record) {
                kept.changed_at = Some(now);
            }
            kept.seen = Some(record);
            self.enter(record.epoch);
            return Ok(());
        }

        Err(Doubt::Contended(LEASE))
    }

    fn enter(&self, epoch: u64) {
        self.0.orders.send_if_modified(|orders| {
            let is_new = epoch > orders.epoch;
            if is_new && orders.epoch > 0 {
                tracing::warn!(
                    epoch,
                    before = orders.epoch,
                    "a new epoch begins: everything is listed again"
                );
            }
            orders.epoch = epoch.max(orders.epoch);
            is_new
        });
    }

    async fn write(
        &self,
        leases: &Api<Lease>,
        found: Option<Lease>,
        record: Record,
    ) -> Result<(), Doubt> {
        let exists = found.is_some();
        let mut lease = found.unwrap_or_default();
        lease.metadata.name = Some(LEASE.to_owned());
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(EPOCH.to_owned(), record.epoch.to_string());
        annotations.insert(BEAT.to_owned(), record.beat.to_string());
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.0.replica.clone()),
            renew_time: Some(MicroTime(clock::timestamp())),
            ..LeaseSpec::default()
        });
        let params = PostParams::default();
        if exists {
            leases.replace(LEASE, &params, &lease).await.map(drop).map_err(self.failed("update"))
        } else {
            leases.create(&params, &lease).await.map(drop).map_err(self.failed("create"))
        }
    }

    fn failed(&self, verb: &'static str) -> impl FnOnce(kube::Error) -> Doubt + use<> {
        let namespace = self.0.namespace.clone();

        move |source| Doubt::Record { verb, lease: LEASE, namespace, source }
    }
}

fn read(lease: &Lease) -> Option<Record> {
    let annotations = lease.metadata.annotations.as_ref()?;
    let number = |name: &str| annotations.get(name)?.parse().ok();

    Some(Record { epoch: number(EPOCH)?, beat: number(BEAT)? })
}
