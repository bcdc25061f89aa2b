//! Going down in order: when logind announces a shutdown, pods are stopped by their priority within
//! the configured periods, while logind waits (kubelet: `pkg/kubelet/nodeshutdown`).

mod logind;

use std::path::PathBuf;
use std::time::Duration;

use podcore::shutdown::{Periods, Turn, turns};
use proto::ids::NodeName;
use tokio_util::sync::CancellationToken;

use self::logind::Logind;
use super::gate::Gate;
use crate::config::Config;
use crate::dbus::BusError;
use crate::events::{self, EventType};
use crate::link::Upstream;
use crate::pods::registry::Registry;
use crate::retry::Retry;
use crate::telemetry::chain;

/// Between tries to reach logind: doubled each time.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(10);
/// How often it is looked whether the pods whose turn it is have stopped.
const LOOK: Duration = Duration::from_millis(100);

/// The task and what it works with.
#[derive(Debug)]
pub struct Shutdowns {
    node: NodeName,
    /// Socket of the system's message bus.
    bus: PathBuf,
    periods: Periods,
    /// Closed while the machine is about to go off.
    gate: Gate,
    registry: Registry,
    upstream: Upstream,
}

impl Shutdowns {
    /// Closes `gate` and stops the pods of `registry` when the machine goes down.
    pub fn new(config: &Config, gate: &Gate, registry: &Registry, upstream: &Upstream) -> Self {
        Self {
            node: config.node.clone(),
            bus: config.system_bus.clone(),
            periods: config.shutdown_periods.clone(),
            gate: gate.clone(),
            registry: registry.clone(),
            upstream: upstream.clone(),
        }
    }

    /// Watches until asked to stop.
    pub async fn run(self, stop: CancellationToken) {
        if self.periods.is_empty() {
            return stop.cancelled().await;
        }
        let (mut told, mut retry) = (String::new(), Retry::new(RETRY, RETRY_MAX));
        loop {
            let mut connected = false;
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.watch(&mut connected) => chain(&ended),
            };
            if connected {
                retry.reset();
            }
            if connected || told != ended {
                tracing::warn!(error = %ended, "pods are not stopped in order when this node goes down");
                told = ended;
            }
            if !retry.wait(&stop).await {
                return;
            }
        }
    }

    /// Works with one connection until it breaks.
    async fn watch(&self, connected: &mut bool) -> BusError {
        let worked: Result<std::convert::Infallible, BusError> = async {
            let mut logind = Logind::connect(&self.bus).await?;
            self.compare(logind.delay_max().await?);
            let mut delay = None;
            loop {
                if logind.goes_down().await? {
                    self.close().await;
                    // From here on logind goes on.
                    drop(delay.take());
                } else {
                    self.open();
                    if delay.is_none() {
                        delay = Some(logind.delay().await?);
                    }
                    if !std::mem::replace(connected, true) {
                        tracing::info!("pods are stopped in order when this node goes down");
                    }
                }
                logind.news().await?;
            }
        }
        .await;

        match worked {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    /// Says so if logind does not wait for long enough.
    fn compare(&self, most: Duration) {
        let wanted = Duration::from_secs(self.periods.all_s());
        if most < wanted {
            tracing::warn!(
                ?most,
                ?wanted,
                "logind does not wait as long as the periods of the shutdown take together; set \
                 InhibitDelayMaxSec in /etc/systemd/logind.conf.d"
            );
        }
    }

    /// Stops all pods, one priority after the other.
    async fn close(&self) {
        if self.gate.shuts_down() {
            return;
        }
        self.say("Shutdown manager detected shutdown event");
        self.gate.shut_down(true);
        for Turn { pods, grace_s } in turns(&self.periods, self.registry.claims()) {
            for pod in &pods {
                self.registry.shut_down(pod, Some(grace_s));
            }
            let stopped = async {
                while pods.iter().any(|pod| self.registry.runs(pod)) {
                    tokio::time::sleep(LOOK).await;
                }
            };
            let period = Duration::from_secs(grace_s.unsigned_abs());
            match tokio::time::timeout(period, stopped).await {
                Ok(()) => tracing::info!(pods = pods.len(), "stopped pods for the shutdown"),
                Err(_elapsed) => tracing::warn!(grace_s, "pods are still running at the shutdown"),
            }
        }
    }

    /// If the shutdown was cancelled everything runs again.
    fn open(&self) {
        if !self.gate.shuts_down() {
            return;
        }
        self.say("Shutdown manager detected shutdown cancellation");
        self.gate.shut_down(false);
        for pod in self.registry.pods() {
            self.registry.shut_down(&pod, None);
        }
    }

    fn say(&self, message: &str) {
        tracing::info!("{message}");
        let told = ("NodeShutdown", message);
        self.upstream.event(events::about_node(self.node.as_str(), EventType::Normal, told));
    }
}
