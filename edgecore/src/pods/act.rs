//! Carries out one action of a plan. Every answer of the runtime is used at once, so that the next
//! plan needs no look of its own.

mod container;
mod forget;
mod hook;
mod image;
mod probe;
mod resize;
mod sandbox;
mod surroundings;
mod volumes;

use std::sync::Arc;

use cri::CriError;
use k8s_openapi::api::core::v1::Container;
use podcore::materials::Materials;
use podcore::memory::Memory;
use podcore::observed::{Observed, SandboxView};
use podcore::plan::{Action, Outcome};
use podcore::pod::PodView;

use self::forget::forgettable;
pub use self::volumes::{remove_cgroup, tear_down};
use super::context::{Context, Teller};
use super::logs::Forgotten;
use super::observe::SeenContainer;
use crate::events::EventType::{self, Normal, Warning};

/// What became of an action.
#[derive(Debug)]
pub enum Done {
    /// Something for podcore's memory, and what the runtime now holds.
    Noted {
        /// For the memory.
        outcome: Outcome,
        /// A sandbox that was made.
        sandbox: Option<SandboxView>,
        /// A container that was made.
        container: Option<SeenContainer>,
        /// The runtime may hold something that nobody saw.
        look: bool,
    },
    /// The container is now like this.
    Container(SeenContainer),
    /// The sandbox is now like this.
    Sandbox(SandboxView),
    /// The container or sandbox, with what was in it, is gone.
    Gone(String),
    /// Volumes and directories are gone.
    TornDown,
    /// Nothing that shows.
    Nothing,
    /// The action failed and is to be tried again later.
    Failed {
        /// What happened.
        message: String,
    },
}

impl Done {
    fn noted(outcome: Outcome) -> Self {
        Self::Noted { outcome, sandbox: None, container: None, look: false }
    }
}

/// What actions work on: one pod as it was planned for.
#[derive(Clone, Debug)]
pub struct Job {
    /// Shared by all pods.
    pub context: Arc<Context>,
    /// The pod.
    pub pod: Arc<PodView>,
    /// What it references.
    pub materials: Arc<Materials>,
    /// Its sandboxes.
    pub sandboxes: Vec<SandboxView>,
    /// The newest instance of each container: name and id.
    pub instances: Vec<(String, String)>,
    /// Containers that ran from their image before.
    pub ran_before: Vec<String>,
    /// What there is to forget of a container or sandbox that is removed, by both ids.
    forgettable: Vec<(String, String, Forgotten)>,
}

impl Job {
    /// A snapshot for the actions of one plan.
    pub fn new(
        context: &Arc<Context>,
        pod: &Arc<PodView>,
        materials: &Arc<Materials>,
        observed: &Observed,
        memory: &Memory,
    ) -> Self {
        let newest = |name: &String| Some((name.clone(), observed.newest(name)?.id.clone()));
        let instances = pod.all_containers().filter_map(|container| newest(&container.name));
        let ran = pod.all_containers().filter(|container| has_run(container, memory));

        Self {
            context: Arc::clone(context),
            pod: Arc::clone(pod),
            materials: Arc::clone(materials),
            sandboxes: observed.sandboxes.clone(),
            instances: instances.collect(),
            ran_before: ran.map(|container| container.name.clone()).collect(),
            forgettable: forgettable(context, pod, observed, memory),
        }
    }

    fn tell(&self, kind: EventType, reason: &str, message: &str, container: Option<&str>) {
        let teller = Teller::new(Arc::clone(&self.context), Arc::clone(&self.pod));
        teller.tell(kind, reason, message, container);
    }

    /// Tells what the plan wants told.
    pub fn event(&self, warning: bool, reason: &str, message: &str, container: Option<&str>) {
        self.tell(if warning { Warning } else { Normal }, reason, message, container);
    }

    /// Carries out `action`.
    pub async fn run(self, action: Action) -> Done {
        match action {
            Action::SetUpVolumes => self.set_up_volumes().await,
            Action::EnsureImage { container, attempt, image } => {
                self.ensure_image(container, attempt, image).await
            }
            Action::CreateSandbox { attempt } => self.create_sandbox(attempt).await,
            Action::StartContainer { container, attempt, sandbox, image_ref } => {
                self.start(container, attempt, &sandbox, &image_ref).await
            }
            Action::PreStop { container, id, grace_s } => {
                self.pre_stop(&container, id, grace_s).await
            }
            Action::StopContainer { id, grace_s, .. } => self.stop(&id, grace_s).await,
            Action::PostStart { container, id, attempt } => {
                self.post_start(container, id, attempt).await
            }
            Action::Resize { containers } => self.resize(containers).await,
            Action::Probe { container, id, kind, number } => {
                self.probe(container, id, kind, number).await
            }
            Action::RemoveContainer { id } => {
                let removed = self.context.runtime.remove_container(&id).await;
                self.forget(gone(id, removed)).await
            }
            Action::StopSandbox { id } => self.stop_sandbox(&id).await,
            Action::RemoveSandbox { id } => {
                let runtime = &self.context.runtime;
                let removed = match runtime.stop_pod_sandbox(&id).await {
                    Ok(()) => runtime.remove_pod_sandbox(&id).await,
                    Err(error) => Err(error),
                };
                self.forget(gone(id, removed)).await
            }
            Action::TearDownVolumes => self.tear_down().await,
            Action::Event { warning, reason, message, container } => {
                self.event(warning, &reason, &message, container.as_deref());
                Done::Nothing
            }
        }
    }

    fn pod_ips(&self) -> Vec<String> {
        let newest = self.sandboxes.iter().filter(|s| s.ready).max_by_key(|s| s.attempt);

        newest.map(|sandbox| sandbox.ips.clone()).unwrap_or_default()
    }

    fn container(&self, name: &str) -> Option<&Container> {
        self.pod.all_containers().find(|container| container.name == name)
    }
}

/// Whether the container ran from the image that it asks for.
fn has_run(container: &Container, memory: &Memory) -> bool {
    let Some(kept) = memory.containers.get(&container.name) else { return false };
    let last = kept.last.as_ref().map(|last| &last.image);
    let given = kept.actual.as_ref().map(|actual| &actual.image);

    container.image.is_some() && [last, given].contains(&container.image.as_ref())
}

fn gone(id: String, removed: Result<(), CriError>) -> Done {
    match removed {
        Ok(()) => Done::Gone(id),
        Err(error) if error.is_not_found() => Done::Gone(id),
        Err(error) => Done::Failed { message: error.to_string() },
    }
}
