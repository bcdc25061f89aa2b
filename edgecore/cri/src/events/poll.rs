//! Events made from the lists of containers and sandboxes, for runtimes that have none.

use std::collections::BTreeMap;
use std::time::Duration;

use cri_api::v1::{ContainerState, PodSandboxState};
use tokio::sync::mpsc;

use super::{Ended, RuntimeEvent, send};
use crate::error::CriError;
use crate::runtime::Runtime;

/// As often as the kubelet lists.
const PERIOD: Duration = Duration::from_secs(1);

/// What runs, by id of container or sandbox.
type Running = BTreeMap<String, bool>;

/// Lists every second until the reader or the runtime is gone.
pub(super) async fn run(runtime: &Runtime, events: &mpsc::Sender<RuntimeEvent>) -> Ended {
    match follow(runtime, events).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

async fn follow(
    runtime: &Runtime,
    events: &mpsc::Sender<RuntimeEvent>,
) -> Result<std::convert::Infallible, Ended> {
    let lost = |error: CriError| Ended::Lost(Box::new(error));
    let mut before = list(runtime).await.map_err(lost)?;
    send(events, RuntimeEvent::Resync).await?;
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = events.closed() => return Err(Ended::Unwanted),
        }
        let after = list(runtime).await.map_err(lost)?;
        for event in changes(&before, &after) {
            send(events, event).await?;
        }
        before = after;
    }
}

async fn list(runtime: &Runtime) -> Result<Running, CriError> {
    let containers = runtime.list_containers(None).await?;
    let sandboxes = runtime.list_pod_sandboxes(None).await?;
    let containers = containers.into_iter().map(|container| {
        let running = container.state() == ContainerState::ContainerRunning;
        (container.id, running)
    });
    let sandboxes = sandboxes.into_iter().map(|sandbox| {
        let running = sandbox.state() == PodSandboxState::SandboxReady;
        (sandbox.id, running)
    });

    Ok(containers.chain(sandboxes).collect())
}

fn changes(before: &Running, after: &Running) -> Vec<RuntimeEvent> {
    let was = |id: &String| before.get(id).copied().unwrap_or(false);
    let mut events = Vec::new();
    for (id, running) in after {
        match (was(id), *running) {
            (false, true) => events.push(RuntimeEvent::Started { id: id.clone() }),
            (true, false) => events.push(RuntimeEvent::Exited { id: id.clone() }),
            // Ended between two lists.
            (false, false) if !before.contains_key(id) => {
                events.push(RuntimeEvent::Exited { id: id.clone() });
            }
            (true, true) | (false, false) => {}
        }
    }
    let vanished = before.iter().filter(|(id, running)| **running && !after.contains_key(*id));
    events.extend(vanished.map(|(id, _)| RuntimeEvent::Exited { id: id.clone() }));

    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(given: &[(&str, bool)]) -> Running {
        given.iter().map(|(id, running)| ((*id).to_owned(), *running)).collect()
    }

    fn check(before: &[(&str, bool)], after: &[(&str, bool)], expected: &[RuntimeEvent]) {
        assert_eq!(changes(&running(before), &running(after)), expected);
    }

    #[test]
    fn a_change_between_two_lists_is_an_event() {
        let started = |id: &str| RuntimeEvent::Started { id: id.into() };
        let exited = |id: &str| RuntimeEvent::Exited { id: id.into() };
        check(&[], &[("a", true)], &[started("a")]);
        check(&[("a", true)], &[("a", true)], &[]);
        check(&[("a", true)], &[("a", false)], &[exited("a")]);
        check(&[("a", true)], &[], &[exited("a")]);
        check(&[("a", false)], &[], &[]);
        check(&[("a", false)], &[("a", false)], &[]);
        check(&[], &[("a", false)], &[exited("a")]);
    }
}
