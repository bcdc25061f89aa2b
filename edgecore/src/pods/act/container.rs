//! One container: its files, its start and its stop.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri_api::v1;
use k8s_openapi::api::core::v1::Container;
use podcore::env::{NodeFields, environment};
use podcore::hosts;
use podcore::materials::Materials;
use podcore::memory::CONFIG_ERROR;
use podcore::observed::{ContainerState, ContainerView};
use podcore::plan::Outcome;
use podcore::resize::Resources;
use podcore::sub_path::{SubPath, sub_paths};
use podcore::support::refuse_container;
use podcore::translate::{
    ContainerContext, ContainerPaths, MountedImage, SandboxContext, can_be_recursive, check_user,
    container_config, container_hash, sandbox_config,
};
use podcore::volumes::{Place, is_relabelled, place};

use super::volumes::SERVER_DEADLINE;
use super::{Done, Job};
use crate::blocking;
use crate::clock;
use crate::events::EventType::{Normal, Warning};
use crate::layout::is_file_name;
use crate::pods::observe::{self, SeenContainer};
use crate::telemetry::chain;
use crate::volumes::mounts;
use crate::volumes::remove::gone_is_done;
use crate::volumes::sub_path::{self, SubPathError};

impl Job {
    pub(super) async fn start(
        self,
        name: String,
        attempt: u32,
        sandbox: &str,
        image_ref: &str,
    ) -> Done {
        let failed = |reason: &str, message: String, container: Option<SeenContainer>| {
            let kind = format!("Error: {message}");
            self.tell(Warning, "Failed", &kind, Some(&name));
            let look = container.is_none() && reason != CONFIG_ERROR;
            let (container_name, reason) = (name.clone(), reason.to_owned());
            let outcome =
                Outcome::StartFailed { container: container_name, attempt, reason, message };
            Done::Noted { outcome, sandbox: None, container, look }
        };
        let images = match self.mounted_images(&name).await {
            Ok(images) => images,
            Err(message) => return failed("CreateContainerError", message, None),
        };
        let _place = self.context.starts.acquire().await;
        let configs = self.configs(&name, attempt, sandbox, image_ref, images).await;
        let (config, sandbox_config) = match configs {
            Ok(configs) => configs,
            Err(message) => return failed(CONFIG_ERROR, message, None),
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
                let spec = self.container(&name);
                let outcome = Outcome::ContainerStarted {
                    container: name.clone(),
                    attempt,
                    image: spec.and_then(|spec| spec.image.clone()).unwrap_or_default(),
                    resources: spec.map(Resources::of).unwrap_or_default(),
                };
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
            user: None,
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
        mut images: BTreeMap<usize, MountedImage>,
    ) -> Result<(v1::ContainerConfig, v1::PodSandboxConfig), String> {
        let Self { context, pod, .. } = self;
        let container = self.container(name).ok_or("the pod has no such container")?;
        if !is_file_name(name) {
            return Err(format!("container name {name:?} is not one"));
        }
        if let Some(reason) = refuse_container(container) {
            return Err(reason);
        }
        let target = self.target(name)?;
        let mut paths = self.paths(name, attempt).await?;
        let fields = context.node_fields(self.pod_ips());
        let materials = self.materials_of(container, &paths.volumes).await;
        let parts = self.sub_paths(container, &materials, &fields)?;
        for (at, image) in &mut images {
            image.sub_path = parts.get(at).map(|part| part.path.clone()).unwrap_or_default();
        }
        paths.images = images;
        paths.sub_paths = self.bind(container, parts, &paths.volumes).await?;
        let user = self.image_user(container, image_ref).await?;
        let users = self.users().await?;
        let abilities = Arc::clone(&context.abilities.borrow());
        let container_context = ContainerContext {
            materials: &materials,
            node: &fields,
            paths: &paths,
            target,
            image_user: Some(&user),
            users,
            recursive_read_only: can_be_recursive(pod, &self.materials, &abilities),
        };
        let config = container_config(pod, container, attempt, image_ref, &container_context)
            .map_err(|error| chain(&error))?;
        check_user(pod, container, &user).map_err(|error| error.to_string())?;
        let view = self.sandboxes.iter().find(|view| view.id == sandbox);
        let sandbox_attempt = view.map_or(0, |view| view.attempt);

        let around = SandboxContext { users, ..context.sandbox_context(pod) };
        let sandbox = sandbox_config(pod, sandbox_attempt, &around);

        Ok((config, sandbox.map_err(|error| error.to_string())?))
    }

    /// Id of the container whose processes an ephemeral container asks to see.
    fn target(&self, name: &str) -> Result<Option<&str>, String> {
        let Some(target) = self.pod.target_of(name) else { return Ok(None) };
        let found = self.instances.iter().find(|(name, _)| name == target);

        found.map(|(_, id)| Some(id.as_str())).ok_or_else(|| {
            // The kubelet's words (`getTargetID`).
            format!("unable to find target container {target}")
        })
    }

    async fn paths(&self, name: &str, attempt: u32) -> Result<ContainerPaths, String> {
        let Self { context, pod, .. } = self;
        let layout = &context.layout;
        let (mut volumes, mut relabelled) = (BTreeMap::new(), BTreeSet::new());
        for volume in pod.spec().volumes.iter().flatten() {
            let place = place(pod, volume, &self.materials).map_err(|error| chain(&error))?;
            if is_relabelled(volume, &place) {
                relabelled.insert(volume.name.clone());
            }
            if volume.image.is_some() {
                continue;
            }
            let path = layout.place(&pod.uid, &place)?;
            volumes.insert(volume.name.clone(), path.to_string_lossy().into_owned());
        }
        let termination_log = layout.container(&pod.uid, name).join(format!("{attempt:08x}"));
        let etc_hosts = layout.etc_hosts(&pod.uid);
        let text = if pod.host_network() {
            hosts::of_host(pod, &std::fs::read_to_string("/etc/hosts").unwrap_or_default())
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
            relabelled,
            sub_paths: BTreeMap::new(),
            images: BTreeMap::new(),
            etc_hosts: Some(etc_hosts.to_string_lossy().into_owned()),
            termination_log: termination_log.to_string_lossy().into_owned(),
        })
    }

    /// The parts of volumes that the container mounts.
    fn sub_paths(
        &self,
        container: &Container,
        materials: &Materials,
        fields: &NodeFields,
    ) -> Result<BTreeMap<usize, SubPath>, String> {
        let mut mounts = container.volume_mounts.iter().flatten();
        if !mounts.any(|mount| mount.sub_path.is_some() || mount.sub_path_expr.is_some()) {
            return Ok(BTreeMap::new());
        }
        let environment = environment(&self.pod, container, materials, fields);
        let environment = environment.map_err(|error| chain(&error))?;

        sub_paths(container, &environment).map_err(|error| error.to_string())
    }

    /// Binds those parts; of images the runtime mounts them.
    async fn bind(
        &self,
        container: &Container,
        parts: BTreeMap<usize, SubPath>,
        volumes: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<usize, String>, String> {
        let mut bound = BTreeMap::new();
        for (at, SubPath { volume, path }) in parts {
            let Some(whole) = volumes.get(&volume).map(PathBuf::from) else { continue };
            let target = self.context.layout.sub_path(&self.pod.uid, &volume, &container.name, at);
            bound.insert(at, target.to_string_lossy().into_owned());
            // The pod is not told why: it could learn of the node's files.
            let failed = |error: SubPathError| {
                let (pod, reason) = (self.pod.described(), chain(&error));
                tracing::warn!(pod, %volume, %path, reason, "part of a volume not mounted");
                let name = &container.name;
                format!("failed to {error} for volumeMount {volume:?} of container {name:?}")
            };
            let part = PathBuf::from(&path);
            let bind = self.bind_one(&volume, whole, part, target);
            match tokio::time::timeout(SERVER_DEADLINE, bind).await {
                Ok(bound) => bound.map_err(failed)?,
                Err(_elapsed) => {
                    return Err(format!(
                        "volume {volume} gives no answer, its part {path:?} waits"
                    ));
                }
            }
        }

        Ok(bound)
    }

    /// In the lane of what it may have to wait for.
    async fn bind_one(
        &self,
        volume: &str,
        whole: PathBuf,
        part: PathBuf,
        target: PathBuf,
    ) -> Result<(), SubPathError> {
        let is_on_host = self.pod.volume(volume).is_some_and(|volume| {
            matches!(place(&self.pod, volume, &self.materials), Ok(Place::Host(_)))
        });
        let server = if is_on_host { None } else { mounts::server_of(&whole)? };
        let bind = move || sub_path::bind(&whole, &part, &target);
        match server {
            Some(server) => blocking::SERVERS.run(&server, bind).await,
            None if is_on_host => blocking::run_in(&blocking::HOST_PATHS, bind).await,
            None => blocking::run(bind).await,
        }
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

    pub(super) async fn stop(self, id: &str, grace_s: i64) -> Done {
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
