//! Carries out one action of a plan. Every answer of the runtime is used at once, so that the next
//! plan needs no look of its own.

use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cri::CriError;
use cri_api::v1;
use k8s_openapi::api::core::v1::Container;
use podcore::hosts;
use podcore::materials::Materials;
use podcore::memory::Memory;
use podcore::observed::{ContainerState, ContainerView, Observed, SandboxView};
use podcore::plan::{Action, Outcome};
use podcore::pod::PodView;
use podcore::resources::{cgroup_parent, pod_limits};
use podcore::translate::{
    ContainerContext, ContainerPaths, ImageUser, asks_for_image_user, check_user, container_config,
    container_hash, sandbox_config,
};
use podcore::volumes::{plugin, setup};

use super::context::{Context, Teller};
use super::credentials::Keyring;
use super::images::{How, Missing, PullPolicy, Ready, Wanted};
use super::logs::Forgotten;
use super::observe::{self, SeenContainer};
use crate::blocking;
use crate::clock;
use crate::events::EventType::{self, Normal, Warning};
use crate::layout::is_file_name;
use crate::node::cgroups::Limits;
use crate::telemetry::chain;
use crate::volumes::remove::gone_is_done;
use crate::volumes::setup::{PodVolume, PodVolumes, tear_down};

/// How often a cgroup is tried to be removed: its last process may need a moment to leave.
const CGROUP_REMOVALS_MAX: usize = 20;
const CGROUP_REMOVAL_WAIT: Duration = Duration::from_millis(10);

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
    /// Containers that ran before.
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
        let ran = memory.containers.iter().filter(|(_, kept)| kept.attempt.is_some());

        Self {
            context: Arc::clone(context),
            pod: Arc::clone(pod),
            materials: Arc::clone(materials),
            sandboxes: observed.sandboxes.clone(),
            ran_before: ran.map(|(name, _)| name.clone()).collect(),
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
            Action::StopContainer { id, container, grace_s, why } => {
                self.tell(Normal, "Killing", &why, Some(&container));
                self.stop(&id, grace_s).await
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

    /// Removes the links and old logs of what is gone. All logs of a deleted pod go in the end.
    async fn forget(mut self, done: Done) -> Done {
        let Done::Gone(gone) = &done else { return done };
        if self.pod.is_deleted() {
            return done;
        }
        self.forgettable.retain(|(id, sandbox, _)| id == gone || sandbox == gone);
        for (id, _, forgotten) in self.forgettable {
            if let Err(error) = blocking::run(move || forgotten.remove()).await {
                tracing::warn!(container = id, %error, "old logs of a container are still there");
            }
        }

        done
    }

    async fn set_up_volumes(self) -> Done {
        let volumes = self.volumes();
        let made = match volumes {
            Ok(volumes) => {
                let set_up = move || volumes.set_up(clock::now());
                blocking::run(set_up).await.map_err(|error| chain(&error))
            }
            Err(message) => Err(message),
        };
        match made {
            Ok(()) => Done::noted(Outcome::VolumesReady),
            Err(message) => {
                self.tell(Warning, "FailedMount", &message, None);
                Done::noted(Outcome::VolumesFailed { message })
            }
        }
    }

    /// What is to be made in the file system, as podcore decides.
    fn volumes(&self) -> Result<PodVolumes, String> {
        let Self { context, pod, .. } = self;
        let fields = context.node_fields(self.pod_ips());
        let mut volumes = Vec::new();
        for volume in pod.spec().volumes.iter().flatten() {
            if !is_file_name(&volume.name) {
                return Err(format!("volume {:?} has a name that is not one", volume.name));
            }
            volumes.push(PodVolume {
                name: volume.name.clone(),
                dir: context.layout.volume(&pod.uid, plugin(volume), &volume.name),
                setup: setup(pod, volume, &self.materials, &fields).map_err(|e| chain(&e))?,
            });
        }
        let security = pod.spec().security_context.as_ref();
        let policy = security.and_then(|security| security.fs_group_change_policy.as_deref());

        Ok(PodVolumes {
            pod_dir: context.layout.pod(&pod.uid),
            logs_dir: context.layout.logs(&pod.namespace, &pod.name, &pod.uid),
            volumes,
            fs_group: security
                .and_then(|security| security.fs_group)
                .and_then(|gid| u32::try_from(gid).ok()),
            root_only: policy == Some("OnRootMismatch"),
        })
    }

    fn pod_ips(&self) -> Vec<String> {
        let newest = self.sandboxes.iter().filter(|s| s.ready).max_by_key(|s| s.attempt);

        newest.map(|sandbox| sandbox.ips.clone()).unwrap_or_default()
    }

    fn container(&self, name: &str) -> Option<&Container> {
        self.pod.all_containers().find(|container| container.name == name)
    }

    async fn ensure_image(self, name: String, attempt: u32, image: String) -> Done {
        let container = self.container(&name);
        let policy = container.and_then(|c| c.image_pull_policy.clone());
        let wanted = Wanted {
            policy: PullPolicy::of(policy.as_deref(), &image),
            keyring: self.keyring(),
            sandbox: None,
            ran_before: self.ran_before.contains(&name),
            offline: self.context.is_offline(),
            image: image.clone(),
        };
        let tell = |kind, reason: &str, message: &str| {
            self.tell(kind, reason, message, Some(&name));
        };
        let pulling = || tell(Normal, "Pulling", &format!("Pulling image \"{image}\""));
        match self.context.images.ensure(wanted, pulling).await {
            Ok(ready) => {
                let (kind, message) = told(&image, &ready);
                tell(kind, "Pulled", &message);
                let image_ref = ready.image_ref;
                Done::noted(Outcome::ImageReady { container: name, image, attempt, image_ref })
            }
            Err(Missing { reason, message }) => {
                let verb = if reason == "ErrImagePull" { "Failed to pull" } else { "Failed for" };
                tell(Warning, "Failed", &format!("{verb} image \"{image}\": {message}"));
                tell(Warning, "Failed", &format!("Error: {reason}"));
                let reason = reason.to_owned();
                Done::noted(Outcome::ImageFailed { container: name, image, reason, message })
            }
        }
    }

    /// The pull secrets that are here; a missing one may not be needed.
    fn keyring(&self) -> Keyring {
        let mut keyring = Keyring::default();
        for reference in self.pod.spec().image_pull_secrets.iter().flatten() {
            let Some(secret) = self.materials.secrets.get(&reference.name) else {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image \
                     may not succeed.",
                    reference.name
                );
                self.tell(Warning, "FailedToRetrieveImagePullSecret", &message, None);
                continue;
            };
            let data = secret.data.iter().flatten();
            let data = data.map(|(key, value)| (key.clone(), value.0.clone())).collect();
            if !keyring.add(&data) {
                tracing::warn!(secret = %reference.name, "a pull secret holds no credentials");
            }
        }

        keyring
    }

    async fn create_sandbox(self, attempt: u32) -> Done {
        let made = self.try_sandbox(attempt).await;
        match made {
            Ok(sandbox) => Done::Noted {
                outcome: Outcome::SandboxCreated { attempt },
                sandbox: Some(sandbox),
                container: None,
                look: false,
            },
            Err(message) => {
                let told = format!("Failed to create pod sandbox: {message}");
                self.tell(Warning, "FailedCreatePodSandBox", &told, None);
                Done::Noted {
                    outcome: Outcome::SandboxFailed { attempt, message },
                    sandbox: None,
                    container: None,
                    look: true,
                }
            }
        }
    }

    async fn try_sandbox(&self, attempt: u32) -> Result<SandboxView, String> {
        let Self { context, pod, .. } = self;
        // The semaphore is never closed; without a place the start would still be right.
        let _place = context.starts.acquire().await;
        let config = sandbox_config(pod, attempt, &context.sandbox_context(pod));
        self.make_cgroup().await?;
        let text = |error: CriError| error.message();
        let id = context.runtime.run_pod_sandbox(config, "").await.map_err(text)?;
        context.registry.own(&pod.uid, &id);
        let status = context.runtime.pod_sandbox_status(&id).await.map_err(text)?;

        Ok(observe::sandbox_view(&status))
    }

    /// The pod's cgroup with the limits of the pod as a whole, before anything runs in it.
    async fn make_cgroup(&self) -> Result<(), String> {
        let Self { context, pod, .. } = self;
        let limits = pod_limits(pod);
        let limits = Limits {
            cpu_shares: u64::try_from(limits.cpu_shares).ok(),
            cpu_quota_us: limits.cpu_quota,
            memory_bytes: limits.memory,
            pids: None,
        };
        let parent = cgroup_parent(pod, &context.cgroup_root, context.cgroup_driver);
        let cgroups = context.cgroups.clone();
        let made = blocking::run(move || cgroups.ensure(&parent, &limits)).await;

        made.map_err(|error| format!("unable to ensure pod container exists: {}", chain(&error)))
    }

    async fn start(self, name: String, attempt: u32, sandbox: &str, image_ref: &str) -> Done {
        let failed = |reason: &str, message: String, container: Option<SeenContainer>| {
            let kind = format!("Error: {message}");
            self.tell(Warning, "Failed", &kind, Some(&name));
            let look = container.is_none() && reason != "CreateContainerConfigError";
            let (container_name, reason) = (name.clone(), reason.to_owned());
            let outcome =
                Outcome::StartFailed { container: container_name, attempt, reason, message };
            Done::Noted { outcome, sandbox: None, container, look }
        };
        let _place = self.context.starts.acquire().await;
        let (config, sandbox_config) = match self.configs(&name, attempt, sandbox, image_ref).await
        {
            Ok(configs) => configs,
            Err(message) => return failed("CreateContainerConfigError", message, None),
        };
        let runtime = &self.context.runtime;
        let id = match runtime.create_container(sandbox, config, sandbox_config).await {
            Ok(id) => id,
            Err(error) => return failed("CreateContainerError", error.message(), None),
        };
        self.context.registry.own(&self.pod.uid, &id);
        self.tell(Normal, "Created", "Container created", Some(&name));
        let started = runtime.start_container(&id).await;
        let seen = match runtime.container_status(&id).await {
            Ok(status) => Some(observe::container(status, sandbox).await),
            Err(_unseen) => None,
        };
        match (started, seen) {
            (Err(error), seen) => failed("RunContainerError", error.message(), seen),
            (Ok(()), seen) => {
                self.tell(Normal, "Started", "Container started", Some(&name));
                self.link_log(&name, &id, seen.as_ref()).await;
                let look = seen.is_none();
                let assumed = || self.assumed(&name, attempt, id.clone(), sandbox, image_ref);
                let seen = seen.unwrap_or_else(assumed);
                let outcome = Outcome::ContainerStarted { container: name.clone(), attempt };
                Done::Noted { outcome, sandbox: None, container: Some(seen), look }
            }
        }
    }

    /// A container that started and of which the runtime told nothing more: taken to run until the
    /// next look. Without it the plan would believe it lost, and start another.
    fn assumed(
        &self,
        name: &str,
        attempt: u32,
        id: String,
        sandbox: &str,
        image_ref: &str,
    ) -> SeenContainer {
        let container = self.container(name);
        let view = ContainerView {
            id,
            name: name.to_owned(),
            attempt,
            sandbox_id: sandbox.to_owned(),
            state: ContainerState::Running { started_at: clock::now() },
            image: container.and_then(|c| c.image.clone()).unwrap_or_default(),
            image_ref: image_ref.to_owned(),
            spec_hash: container.map(container_hash),
        };

        SeenContainer { view, log_path: String::new() }
    }

    /// The container's own files, then the two messages that make it.
    async fn configs(
        &self,
        name: &str,
        attempt: u32,
        sandbox: &str,
        image_ref: &str,
    ) -> Result<(v1::ContainerConfig, v1::PodSandboxConfig), String> {
        let Self { context, pod, .. } = self;
        let container = self.container(name).ok_or("the pod has no such container")?;
        if !is_file_name(name) {
            return Err(format!("container name {name:?} is not one"));
        }
        let paths = self.paths(name, attempt).await?;
        let fields = context.node_fields(self.pod_ips());
        let container_context =
            ContainerContext { materials: &self.materials, node: &fields, paths: &paths };
        let config = container_config(pod, container, attempt, image_ref, &container_context)
            .map_err(|error| chain(&error))?;
        let user = self.image_user(container, image_ref).await?;
        check_user(pod, container, &user).map_err(|error| error.to_string())?;
        let view = self.sandboxes.iter().find(|view| view.id == sandbox);
        let sandbox_attempt = view.map_or(0, |view| view.attempt);

        Ok((config, sandbox_config(pod, sandbox_attempt, &context.sandbox_context(pod))))
    }

    /// The user of the image, looked up only if something depends on it; root if it names none.
    async fn image_user(
        &self,
        container: &Container,
        image_ref: &str,
    ) -> Result<ImageUser, String> {
        let root = ImageUser::Id(0);
        if !asks_for_image_user(&self.pod, container) {
            return Ok(root);
        }
        let spec = v1::ImageSpec { image: image_ref.to_owned(), ..v1::ImageSpec::default() };
        let image = self.context.runtime.image_status(spec).await.map_err(|e| e.message())?;
        let image = image.ok_or_else(|| format!("image {image_ref} is gone"))?;

        Ok(match image.uid {
            Some(uid) => ImageUser::Id(uid.value),
            None if image.username.is_empty() => root,
            None => ImageUser::Name(image.username),
        })
    }

    async fn paths(&self, name: &str, attempt: u32) -> Result<ContainerPaths, String> {
        let Self { context, pod, .. } = self;
        let layout = &context.layout;
        let mut volumes = std::collections::BTreeMap::new();
        for volume in pod.spec().volumes.iter().flatten() {
            let own = || layout.volume(&pod.uid, plugin(volume), &volume.name);
            let path = volume
                .host_path
                .as_ref()
                .map_or_else(|| own().to_string_lossy().into_owned(), |host| host.path.clone());
            volumes.insert(volume.name.clone(), path);
        }
        let termination_log = layout.container(&pod.uid, name).join(format!("{attempt:08x}"));
        let etc_hosts = layout.etc_hosts(&pod.uid);
        let text = if pod.host_network() {
            hosts::of_host(pod, &blocking::read_trimmed("/etc/hosts").unwrap_or_default())
        } else {
            hosts::own(pod, &self.pod_ips(), &context.cluster_domain)
        };
        let files = (etc_hosts.clone(), termination_log.clone());
        let logs = layout.logs(&pod.namespace, &pod.name, &pod.uid).join(name);
        blocking::run(move || write_files(&files.0, &text, &files.1, &logs))
            .await
            .map_err(|error| format!("cannot write the files of container {name}: {error}"))?;

        Ok(ContainerPaths {
            volumes,
            etc_hosts: Some(etc_hosts.to_string_lossy().into_owned()),
            termination_log: termination_log.to_string_lossy().into_owned(),
        })
    }

    /// The link that log collectors follow; without it the container runs as well.
    async fn link_log(&self, name: &str, id: &str, seen: Option<&SeenContainer>) {
        let Some(seen) = seen else { return };
        let target = seen.log_path.clone();
        let link = self.context.layout.log_link(&self.pod.namespace, &self.pod.name, name, id);
        let linked = blocking::run(move || {
            gone_is_done(std::fs::remove_file(&link))?;
            symlink(target, link)
        });
        if let Err(error) = linked.await {
            tracing::warn!(container = name, %error, "no link to the container's log was made");
        }
    }

    async fn stop(self, id: &str, grace_s: i64) -> Done {
        let runtime = &self.context.runtime;
        let grace = Duration::from_secs(u64::try_from(grace_s).unwrap_or_default());
        let stopped = runtime.stop_container(id, grace).await;
        let sandbox = |id: &str| id.to_owned();
        match stopped {
            Err(error) if error.is_not_found() => return Done::Gone(id.to_owned()),
            Err(error) => {
                let message = format!("error killing pod: {}", error.message());
                self.tell(Warning, "FailedKillPod", &message, None);
                return Done::Failed { message };
            }
            Ok(()) => {}
        }
        match cri::settled_container(runtime, id).await {
            // The sandbox is known from before; the worker keeps it.
            Ok(status) => Done::Container(observe::container(status, &sandbox("")).await),
            Err(error) if error.is_not_found() => Done::Gone(id.to_owned()),
            Err(error) => Done::Failed { message: error.to_string() },
        }
    }

    async fn stop_sandbox(self, id: &str) -> Done {
        let runtime = &self.context.runtime;
        let stopped = runtime.stop_pod_sandbox(id).await;
        match stopped {
            Ok(()) => match runtime.pod_sandbox_status(id).await {
                Ok(status) => Done::Sandbox(observe::sandbox_view(&status)),
                Err(error) => gone(id.to_owned(), Err(error)),
            },
            Err(error) => gone(id.to_owned(), Err(error)),
        }
    }

    async fn tear_down(self) -> Done {
        let dir = self.context.layout.pod(&self.pod.uid);
        let removed = blocking::run(move || tear_down(&dir)).await;
        if let Err(error) = removed {
            let message = format!("cannot remove the volumes of the pod: {error}");
            self.tell(Warning, "FailedKillPod", &message, None);
            return Done::Failed { message };
        }
        let context = &self.context;
        let parent = cgroup_parent(&self.pod, &context.cgroup_root, context.cgroup_driver);

        match remove_cgroup(context, &parent).await {
            Ok(()) => Done::TornDown,
            Err(message) => Done::Failed { message },
        }
    }
}

fn forgettable(
    context: &Context,
    pod: &PodView,
    observed: &Observed,
    memory: &Memory,
) -> Vec<(String, String, Forgotten)> {
    let layout = &context.layout;
    let logs = layout.logs(&pod.namespace, &pod.name, &pod.uid);
    let of_container = |seen: &ContainerView| {
        let kept = memory.containers.get(&seen.name).and_then(|kept| kept.attempt);
        let forgotten = Forgotten {
            link: layout.log_link(&pod.namespace, &pod.name, &seen.name, &seen.id),
            dir: logs.join(&seen.name),
            newest: kept.unwrap_or(seen.attempt),
        };
        (seen.id.clone(), seen.sandbox_id.clone(), forgotten)
    };

    observed.containers.iter().map(of_container).collect()
}

/// Removes a pod's cgroup, giving its last processes a moment to leave.
pub async fn remove_cgroup(context: &Context, parent: &str) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..CGROUP_REMOVALS_MAX {
        let (cgroups, parent) = (context.cgroups.clone(), parent.to_owned());
        match blocking::run(move || cgroups.remove(&parent)).await {
            Ok(()) => return Ok(()),
            Err(error) => last = chain(&error),
        }
        tokio::time::sleep(CGROUP_REMOVAL_WAIT).await;
    }

    Err(last)
}

fn gone(id: String, removed: Result<(), CriError>) -> Done {
    match removed {
        Ok(()) => Done::Gone(id),
        Err(error) if error.is_not_found() => Done::Gone(id),
        Err(error) => Done::Failed { message: error.to_string() },
    }
}

/// How an image came, in the kubelet's words.
fn told(image: &str, ready: &Ready) -> (EventType, String) {
    match &ready.how {
        How::Present => (Normal, format!("Container image \"{image}\" already present on machine")),
        How::Pulled { took, waited, size_bytes } => (
            Normal,
            format!(
                "Successfully pulled image \"{image}\" in {took:.3?} ({waited:.3?} including \
                 waiting). Image size: {size_bytes} bytes."
            ),
        ),
        How::FellBack { why } => (
            Warning,
            format!(
                "Using image \"{image}\" as it was pulled before, because the registry cannot be \
                 reached: {why}"
            ),
        ),
    }
}

/// /etc/hosts, the termination log and the log directory of one container.
fn write_files(hosts: &Path, text: &str, termination_log: &Path, logs: &Path) -> io::Result<()> {
    std::fs::create_dir_all(logs)?;
    // The file is mounted into containers: it is written in place, never replaced.
    if !std::fs::read(hosts).is_ok_and(|held| held == text.as_bytes()) {
        std::fs::write(hosts, text)?;
    }
    if let Some(dir) = termination_log.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(termination_log, "")?;

    // Containers write it as whichever user they are.
    std::fs::set_permissions(termination_log, std::fs::Permissions::from_mode(0o666))
}
