//! Watches the runtime and the machine, tells the link how healthy this node is, and reports the
//! Node object when something about it changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cri::{Runtime, RuntimeVersion};
use podcore::abilities::Abilities;
use podcore::pressure::{Observations, Verdict, Watch};
use proto::wire::{Health, Report, ReportKey};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::abilities::abilities;
use super::facts::Facts;
use super::pressure::Watched;
use super::status::{Condition, Image, Live, NodeReport, RuntimeAbilities, Wanted, report};
use crate::clock;
use crate::events;
use crate::link::Upstream;

/// How often the runtime is asked. The cloud calls a node unhealthy after 30 s without an answer.
const PERIOD: Duration = Duration::from_secs(10);
/// How often images are listed, if none was pulled (as often as the kubelet reports an unchanged
/// node).
const IMAGES_PERIOD: Duration = Duration::from_mins(5);
/// How long the runtime gets to answer before that counts as being down.
const STATUS_DEADLINE: Duration = Duration::from_secs(10);

/// When a loop last turned; written by the loop, read by the monitor.
#[derive(Clone, Debug)]
pub struct Beat {
    start: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Beat {
    /// A beat that just was.
    pub fn new() -> Self {
        Self { start: clock::instant(), last_ms: Arc::default() }
    }

    /// The loop turned.
    pub fn beat(&self) {
        self.last_ms.store(self.since_start(), Ordering::Relaxed);
    }

    /// Milliseconds since the loop last turned.
    pub fn age_ms(&self) -> u32 {
        let age = self.since_start().saturating_sub(self.last_ms.load(Ordering::Relaxed));

        u32::try_from(age).unwrap_or(u32::MAX)
    }

    fn since_start(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Default for Beat {
    fn default() -> Self {
        Self::new()
    }
}

/// What the monitor works with.
#[derive(Debug)]
pub struct Monitor {
    /// What is configured.
    pub wanted: Wanted,
    /// Where to see what there is of memory and disks, and who is to know.
    pub pressure: Watched,
    /// What the machine is.
    pub facts: Facts,
    /// Which runtime it is, once that is known.
    pub runtime_version: watch::Receiver<Option<RuntimeVersion>>,
    /// The container runtime.
    pub runtime: Runtime,
    /// What it and the machine can do.
    pub abilities: watch::Sender<Arc<Abilities>>,
    /// Of the pod loop.
    pub pod_loop: Beat,
    /// Told after an image was pulled.
    pub pulled: Arc<Notify>,
    /// For the link's pings.
    pub health: watch::Sender<Health>,
    /// To the cloud.
    pub upstream: Upstream,
}

/// Runs until asked to stop.
pub async fn run(mut monitor: Monitor, stop: CancellationToken) {
    let runtime_beat = Beat::new();
    let mut images = Vec::new();
    let mut images_at: Option<Instant> = None;
    let mut conditions: Vec<Condition> = Vec::new();
    let mut reported: Option<NodeReport> = None;
    let (mut watch, began) = (Watch::default(), clock::instant());
    let mut shutdown = monitor.pressure.gate.shutdown();
    loop {
        let mut not_ready = monitor.ask_runtime(&runtime_beat).await;
        let due = images_at.is_none_or(|at| at.elapsed() >= IMAGES_PERIOD);
        if due
            && not_ready.is_empty()
            && let Some(listed) = monitor.images().await
        {
            images = listed;
            images_at = Some(clock::instant());
        }
        monitor.tell_health(&runtime_beat, not_ready.is_empty());

        monitor.find_images().await;
        let seen = monitor.look(&mut not_ready).await;
        if monitor.pressure.gate.shuts_down() {
            not_ready.push("node is shutting down".to_owned());
        }
        let verdict = watch.observe(&monitor.pressure.policy, &seen, began.elapsed());
        let next = monitor.report(&images, not_ready, &verdict, &conditions);
        monitor.pressure.tell(verdict, seen);
        if reported.as_ref() != Some(&next) {
            monitor.send(&next);
            monitor.say_changes(&next, &conditions);
            conditions = next.conditions().to_vec();
            reported = Some(next);
        }

        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
            () = monitor.pulled.notified() => images_at = None,
            Ok(()) = monitor.runtime_version.changed() => {}
            Ok(()) = shutdown.changed() => {}
        }
    }
}

impl Monitor {
    /// Why the node is not ready; empty if it is.
    async fn ask_runtime(&self, beat: &Beat) -> Vec<String> {
        match tokio::time::timeout(STATUS_DEADLINE, self.runtime.status()).await {
            Ok(Ok(answer)) => {
                beat.beat();
                tell_abilities(&self.abilities, &answer);
                let conditions = answer.status.map(|status| status.conditions);
                not_ready(&conditions.unwrap_or_default())
            }
            Ok(Err(error)) => vec![format!("container runtime is down: {error}")],
            Err(_elapsed) => vec!["container runtime is down: it does not answer".to_owned()],
        }
    }

    fn tell_health(&self, runtime: &Beat, runtime_ok: bool) {
        // Without a receiver the link has ended, and the process is about to.
        let _link_ended = self.health.send(Health {
            pod_loop_age_ms: self.pod_loop.age_ms(),
            runtime_age_ms: runtime.age_ms(),
            runtime_ok,
        });
    }

    /// For example `containerd://1.6.20`.
    fn runtime_version(&self) -> String {
        let version = self.runtime_version.borrow();
        let said = |v: &RuntimeVersion| format!("{}://{}", v.name, plain_version(&v.version));

        version.as_ref().map_or_else(String::new, said)
    }

    async fn images(&self) -> Option<Vec<Image>> {
        let images = self.runtime.list_images().await.ok()?;
        let image = |image: cri_api::v1::Image| Image {
            names: image.repo_digests.into_iter().chain(image.repo_tags).collect(),
            size_bytes: image.size,
        };

        Some(images.into_iter().map(image).collect())
    }

    /// Asks the runtime where images are, until it says so.
    async fn find_images(&self) {
        let places = &self.pressure.places;
        if places.borrow().images.is_some() {
            return;
        }
        let told = self.runtime.image_fs_info().await.ok();
        let mut disks = told.into_iter().flat_map(|told| told.image_filesystems);
        let found = disks.find_map(|disk| Some(disk.fs_id?.mountpoint));
        if let Some(path) = found.filter(|path| !path.is_empty()) {
            places.send_modify(|places| places.images = Some(path.into()));
        }
    }

    /// What there is of memory and disks.
    async fn look(&self, not_ready: &mut Vec<String>) -> Observations {
        let places = self.pressure.places.borrow().clone();
        let root = places.root.clone();
        let look = crate::blocking::run(move || places.look());
        tokio::time::timeout(STATUS_DEADLINE, look).await.unwrap_or_else(|_elapsed| {
            not_ready.push(format!("the disk of {} does not answer", root.display()));
            Observations::new()
        })
    }

    fn report(
        &self,
        images: &[Image],
        not_ready: Vec<String>,
        verdict: &Verdict,
        before: &[Condition],
    ) -> NodeReport {
        let has = |condition: &str| verdict.conditions.contains(&condition);
        let live = Live {
            runtime_version: self.runtime_version(),
            not_ready,
            memory_pressure: has("MemoryPressure"),
            disk_pressure: has("DiskPressure"),
            pid_pressure: has("PIDPressure"),
            images: images.to_vec(),
            runtime: RuntimeAbilities::of(&self.abilities.borrow()),
        };

        report(&self.wanted, &self.facts, &live, before, clock::now())
    }

    fn say_changes(&self, report: &NodeReport, before: &[Condition]) {
        let node = &self.wanted.name;
        for reason in report.changes(before) {
            self.upstream.event(events::node_status(node, reason));
        }
    }

    fn send(&self, report: &NodeReport) {
        match serde_json::to_vec(report) {
            Ok(json) => self.upstream.report(Report {
                key: ReportKey::NodeStatus,
                bytes: json.into(),
                done: false,
            }),
            Err(error) => tracing::error!(%error, "the node's status cannot be written as JSON"),
        }
    }
}

/// Tells what the runtime can do, if that is news: another may have been started.
pub fn tell_abilities(told: &watch::Sender<Arc<Abilities>>, status: &cri_api::v1::StatusResponse) {
    told.send_if_modified(|before| {
        let now = abilities(status, before.app_armor);
        let is_news = **before != now;
        if is_news {
            *before = Arc::new(now);
        }
        is_news
    });
}

/// A version as the kubelet writes it: of one that is not semantic only the numbers.
fn plain_version(version: &str) -> &str {
    let version = version.trim_start_matches('v');
    let numbers = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
    let is_semantic = matches!(version[numbers..].chars().next(), None | Some('-' | '+'));

    if is_semantic { version } else { &version[..numbers] }
}

/// The runtime's own conditions, in the kubelet's words.
fn not_ready(conditions: &[cri_api::v1::RuntimeCondition]) -> Vec<String> {
    let mut reasons = Vec::new();
    for (r#type, subject) in [
        ("RuntimeReady", "container runtime not ready"),
        ("NetworkReady", "container runtime network not ready"),
    ] {
        match conditions.iter().find(|condition| condition.r#type == r#type) {
            Some(condition) if condition.status => {}
            Some(condition) => reasons.push(format!(
                "{subject}: {}=false reason:{} message:{}",
                r#type, condition.reason, condition.message
            )),
            None => reasons.push(format!("{subject}: {type} is not reported")),
        }
    }

    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_plain_or_semantic() {
        for (version, plain) in [
            ("1.6.20~ds1", "1.6.20"),
            ("v2.1.0", "2.1.0"),
            ("1.7.0-rc.1+abc", "1.7.0-rc.1+abc"),
            ("1.30", "1.30"),
            ("", ""),
        ] {
            assert_eq!(plain_version(version), plain, "{version}");
        }
    }

    #[test]
    fn the_runtimes_conditions_are_quoted_as_the_kubelet_does() {
        let condition = |r#type: &str, status| cri_api::v1::RuntimeCondition {
            r#type: r#type.into(),
            status,
            reason: "Why".into(),
            message: "how".into(),
        };
        let good = [condition("RuntimeReady", true), condition("NetworkReady", true)];
        let bad = [condition("RuntimeReady", true), condition("NetworkReady", false)];

        assert!(not_ready(&good).is_empty());
        assert_eq!(
            not_ready(&bad),
            ["container runtime network not ready: NetworkReady=false reason:Why message:how"]
        );
        assert_eq!(not_ready(&[]).len(), 2);
    }
}
