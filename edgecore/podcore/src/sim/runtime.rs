//! The runtime: does what an action says, or fails as told.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::World;
use crate::observed::{ContainerState, ContainerView, SandboxView, VolumesState};
use crate::plan::{Action, Outcome};
use crate::pod::PodView;
use crate::resize::{Resources, granted};
use crate::resources::pod_limits;
use crate::translate::container_hash;

/// What a fault of this action is called.
fn kind(action: &Action) -> String {
    match action {
        Action::SetUpVolumes => "volumes".to_owned(),
        Action::EnsureImage { container, .. } => format!("image {container}"),
        Action::CreateSandbox { .. } => "sandbox".to_owned(),
        Action::StartContainer { container, .. } => format!("start {container}"),
        Action::PreStop { container, .. } => format!("pre-stop {container}"),
        Action::StopContainer { container, .. } => format!("stop {container}"),
        Action::PostStart { container, .. } => format!("hook:{container}"),
        Action::Resize { .. } => "resize".to_owned(),
        Action::Probe { container, kind, .. } => {
            format!("{}:{container}", kind.name().to_ascii_lowercase())
        }
        Action::StopSandbox { .. } => "stop-sandbox".to_owned(),
        Action::RemoveContainer { .. }
        | Action::RemoveSandbox { .. }
        | Action::TearDownVolumes
        | Action::Event { .. } => String::new(),
    }
}

impl World {
    pub(super) fn is_slow(&self, action: &Action) -> bool {
        self.slow.contains(&kind(action))
    }

    /// Ends the wait of every slow action.
    pub(crate) fn release(&mut self) {
        self.slow.clear();
        for action in std::mem::take(&mut self.under_way) {
            self.carry_out(&action);
        }
    }

    pub(super) fn carry_out(&mut self, action: &Action) {
        let fault = self.faults.get(&kind(action)).cloned();
        match action {
            Action::SetUpVolumes => {
                if let Some((_, message)) = fault {
                    return self.note(Outcome::VolumesFailed { message });
                }
                self.observed.volumes = VolumesState::Ready;
                self.note(Outcome::VolumesReady { claimed: BTreeMap::new() });
            }
            Action::EnsureImage { container, attempt, image } => {
                let of_volume = self.faults.get(&format!("mounted {container}")).cloned();
                let mounted = of_volume.as_ref().map(|_| "v".to_owned());
                let (container, image) = (container.clone(), image.clone());
                let outcome = if let Some((reason, message)) = of_volume.or(fault) {
                    Outcome::ImageFailed { container, image, mounted, reason, message }
                } else {
                    let image_ref = format!("sha256:{image}");
                    Outcome::ImageReady { container, image, attempt: *attempt, image_ref }
                };
                self.note(outcome);
            }
            Action::CreateSandbox { attempt } => self.create_sandbox(*attempt, fault),
            Action::StartContainer { container, attempt, sandbox, image_ref } => {
                self.start(container, *attempt, sandbox, image_ref, fault);
            }
            Action::PreStop { id, grace_s, .. } => self.pre_stop(id, *grace_s),
            Action::StopContainer { id, container, .. } => {
                let code = self.on_stop.get(container).copied().unwrap_or(143);
                self.end(id, code);
            }
            Action::PostStart { container, attempt, .. } => {
                let (container, attempt) = (container.clone(), *attempt);
                let failure = fault.map(|(_, message)| message);
                self.note(Outcome::Hooked { container, attempt, failure });
            }
            Action::Probe { container, id, kind, number } => {
                let (container, id) = (container.clone(), id.clone());
                let passed = match fault {
                    Some((reason, _)) if reason == "Unasked" => None,
                    fault => Some(fault.is_none()),
                };
                self.note(Outcome::Probed { container, id, kind: *kind, number: *number, passed });
            }
            Action::Resize { containers } => {
                if let Some((_, message)) = fault {
                    return self.note(Outcome::ResizeFailed { message });
                }
                let containers = containers
                    .iter()
                    .map(|one| (one.name.clone(), one.attempt, self.resources(&one.name)));
                let containers = containers.collect();
                let limits = pod_limits(&self.granted());
                self.cgroup = Some(limits.clone());
                self.note(Outcome::Resized { containers, limits });
            }
            Action::RemoveContainer { id } => self.observed.containers.retain(|c| c.id != *id),
            Action::StopSandbox { id } => {
                for sandbox in self.observed.sandboxes.iter_mut().filter(|s| s.id == *id) {
                    sandbox.ready = false;
                }
                self.note(Outcome::SandboxStopped { id: id.clone() });
            }
            Action::RemoveSandbox { id } => {
                self.observed.sandboxes.retain(|sandbox| sandbox.id != *id);
                self.observed.containers.retain(|c| c.sandbox_id != *id);
            }
            Action::TearDownVolumes => self.observed.volumes = VolumesState::Gone,
            Action::Event { .. } => {}
        }
    }

    fn pre_stop(&mut self, id: &str, grace_s: i64) {
        let took_s = self.hook_takes_s.min(grace_s);
        self.note(Outcome::PreStopped { id: id.to_owned(), took_s });
    }

    fn create_sandbox(&mut self, attempt: u32, fault: Option<(String, String)>) {
        if let Some((_, message)) = fault {
            return self.note(Outcome::SandboxFailed { attempt, message });
        }
        let id = self.id("s");
        let ips = vec![format!("10.1.0.{}", attempt + 5)];
        self.observed.sandboxes.push(SandboxView { id, attempt, ready: true, ips });
        self.cgroup = Some(pod_limits(&self.granted()));
        self.note(Outcome::SandboxCreated { attempt });
    }

    fn start(
        &mut self,
        name: &str,
        attempt: u32,
        sandbox: &str,
        image_ref: &str,
        fault: Option<(String, String)>,
    ) {
        let is_config = fault.as_ref().is_some_and(|f| f.0 == "CreateContainerConfigError");
        let has_sandbox = self.observed.sandboxes.iter().any(|s| s.id == sandbox && s.ready);
        let container = name.to_owned();
        if is_config || !has_sandbox {
            let (reason, message) = fault
                .unwrap_or_else(|| ("CreateContainerError".to_owned(), "no sandbox".to_owned()));
            return self.note(Outcome::StartFailed { container, attempt, reason, message });
        }
        let resources = self.resources(name);
        let spec = self.pod.all_containers().find(|c| c.name == name).unwrap();
        let image = spec.image.clone().unwrap();
        let spec_hash = Some(container_hash(spec));
        let state = match fault {
            Some(_) => ContainerState::Created,
            None => ContainerState::Running { started_at: self.now },
        };
        let view = ContainerView {
            id: self.id("c"),
            name: container.clone(),
            attempt,
            sandbox_id: sandbox.to_owned(),
            state,
            image: image.clone(),
            image_ref: image_ref.to_owned(),
            spec_hash,
            user: None,
        };
        self.observed.containers.push(view);
        self.note(match fault {
            Some((reason, message)) => Outcome::StartFailed { container, attempt, reason, message },
            None => Outcome::ContainerStarted { container, attempt, image, resources },
        });
    }

    /// The pod with what it is granted.
    pub(crate) fn granted(&self) -> PodView {
        granted(&self.pod, &self.memory).unwrap_or_else(|| self.pod.clone())
    }

    /// What the container is granted.
    fn resources(&self, name: &str) -> Resources {
        Resources::of(self.granted().all_containers().find(|c| c.name == name).unwrap())
    }

    fn id(&mut self, prefix: &str) -> String {
        self.next_id += 1;

        format!("{prefix}{}", self.next_id)
    }

    /// A container ends.
    pub(crate) fn end(&mut self, id: &str, exit_code: i32) {
        let now = self.now;
        for container in self.observed.containers.iter_mut().filter(|c| c.id == id) {
            let started_at = match container.state {
                ContainerState::Running { started_at } => Some(started_at),
                ContainerState::Created
                | ContainerState::Exited { .. }
                | ContainerState::Unknown => None,
            };
            container.state = ContainerState::Exited {
                started_at,
                finished_at: Some(now),
                exit_code,
                reason: if exit_code == 0 { "Completed" } else { "Error" }.to_owned(),
                message: String::new(),
            };
        }
    }

    /// The one instance of a container that lives.
    pub(crate) fn live(&self, name: &str) -> Option<String> {
        let mut live = self.observed.containers.iter().filter(|c| c.name == name);

        live.find(|c| c.is_running()).map(|c| c.id.clone())
    }

    /// Every process ends; what the runtime wrote down stays, also of starts in their middle.
    pub(crate) fn power_loss(&mut self) {
        for mut view in self.cut_starts() {
            view.state = ContainerState::Created;
            self.observed.containers.push(view);
        }
        let live: Vec<_> = self.observed.containers.iter().filter(|c| c.is_running()).collect();
        let ids: Vec<_> = live.iter().map(|c| c.id.clone()).collect();
        for id in ids {
            self.end(&id, 255);
        }
        for sandbox in &mut self.observed.sandboxes {
            sandbox.ready = false;
        }
        self.agent_restart();
    }

    /// The agent goes between doing something and noting it.
    pub(crate) fn agent_crash(&mut self) {
        for action in std::mem::take(&mut self.under_way) {
            self.carry_out(&action);
        }
        self.agent_restart();
    }

    /// The agent goes, and with it the starts that it waits for.
    pub(crate) fn agent_cut(&mut self) {
        let cut = self.cut_starts();
        self.agent_restart();
        for mut view in cut {
            view.state = failed_start(self.now);
            self.observed.put_container(view, &self.memory);
        }
    }

    /// What the starts under way made; nothing of it is noted.
    fn cut_starts(&mut self) -> Vec<ContainerView> {
        let under_way = std::mem::take(&mut self.under_way);
        let before = self.observed.containers.len();
        for action in under_way.iter().filter(|a| matches!(a, Action::StartContainer { .. })) {
            self.carry_out(action);
        }

        self.observed.containers.split_off(before)
    }

    /// The agent forgets what it did not store.
    pub(crate) fn agent_restart(&mut self) {
        self.memory = self.stored.clone();
        self.under_way.clear();
        self.observed.clock_set_s = 0;
        self.observed.volumes = VolumesState::Unknown;
    }
}

/// What the runtime says of a container that it could not start.
fn failed_start(now: Timestamp) -> ContainerState {
    ContainerState::Exited {
        started_at: None,
        finished_at: Some(now),
        exit_code: 128,
        reason: "StartError".to_owned(),
        message: "runc did not terminate successfully: signal: killed".to_owned(),
    }
}
