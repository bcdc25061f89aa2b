//! What an edge node holds of pods, told by the runtime and the kernel, never by the agent; and
//! whether it is exactly what the API server says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};
use cri::Runtime;
use cri_api::v1;
use serde_json::Value;
use tokio::process::Command;

use crate::process::output;
use crate::site::Site;

const UID_LABEL: &str = "io.kubernetes.pod.uid";
const NAME_LABEL: &str = "io.kubernetes.container.name";

/// A container that the runtime lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldContainer {
    /// The pod's UID.
    pub pod: String,
    /// The container's name in the pod.
    pub name: String,
    /// Whether it runs.
    pub running: bool,
}

/// A sandbox that the runtime lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldSandbox {
    /// The pod's UID.
    pub pod: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Its address; empty without a network of its own.
    pub ip: String,
}

/// Everything on the node that exists because of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Sandboxes by id.
    pub sandboxes: BTreeMap<String, HeldSandbox>,
    /// Containers by id.
    pub containers: BTreeMap<String, HeldContainer>,
    /// Pods with a directory below the kubelet's root.
    pub directories: BTreeSet<String>,
    /// Pods with something mounted below their directory.
    pub mounted: BTreeSet<String>,
    /// Pods with a directory for logs.
    pub logs: BTreeSet<String>,
    /// Containers that a link in the containers' log directory names.
    pub log_links: BTreeSet<String>,
    /// Pods with a control group in any hierarchy.
    pub pod_cgroups: BTreeSet<String>,
    /// Containers and sandboxes with a control group in any hierarchy.
    pub cgroups: BTreeSet<String>,
    /// Root file systems that are mounted, by container or sandbox.
    pub root_mounts: BTreeSet<String>,
    /// Addresses that the IPAM plugin has given away.
    pub leases: BTreeSet<String>,
    /// Network namespaces that the runtime made.
    pub namespaces: usize,
    /// Interfaces of pods in the site.
    pub interfaces: usize,
    /// Pods whose ports are the node's: chains of the portmap plugin.
    pub forwards: usize,
}

impl Held {
    /// Asks the runtime and the kernel.
    pub async fn by(site: &Site) -> Result<Self> {
        let runtime = Runtime::new(site.fact("RUNTIME")?)?;
        let root = site.path("KUBELET_ROOT")?.join("pods");
        let state = site.path("STATE")?;
        let run = site.path("RUNTIME")?.display().to_string();
        let run = run.trim_start_matches("unix://").trim_end_matches("/containerd.sock");
        let (mounts, root_mounts) = mounts(&root, run)?;
        let mut held = Self {
            directories: names(&root)?,
            mounted: mounts,
            root_mounts,
            logs: names(&site.path("POD_LOGS")?)?.iter().map(|name| after(name, '_')).collect(),
            log_links: names(&site.path("CONTAINER_LOGS")?)?
                .iter()
                .map(|name| after(name.trim_end_matches(".log"), '-'))
                .collect(),
            leases: names(&state.join("ipam").join(site.fact("NETNS")?))?
                .into_iter()
                .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
                .collect(),
            namespaces: names(Path::new(&format!(
                "{run}/containerd/io.containerd.grpc.v1.cri/netns"
            )))?
            .len(),
            interfaces: interfaces(site.fact("NETNS")?).await?,
            forwards: forwards(site).await?,
            ..Self::default()
        };
        cgroups(site.fact("CGROUP_ROOT")?, &mut held)?;
        held.ask(&runtime).await?;

        Ok(held)
    }

    async fn ask(&mut self, runtime: &Runtime) -> Result<()> {
        for sandbox in runtime.list_pod_sandboxes(None).await? {
            let status = runtime.pod_sandbox_status(&sandbox.id).await?;
            let seen = HeldSandbox {
                pod: sandbox.labels.get(UID_LABEL).cloned().unwrap_or_default(),
                ready: status.state() == v1::PodSandboxState::SandboxReady,
                ip: status.network.map(|network| network.ip).unwrap_or_default(),
            };
            self.sandboxes.insert(sandbox.id, seen);
        }
        for container in runtime.list_containers(None).await? {
            let seen = HeldContainer {
                pod: container.labels.get(UID_LABEL).cloned().unwrap_or_default(),
                name: container.labels.get(NAME_LABEL).cloned().unwrap_or_default(),
                running: container.state() == v1::ContainerState::ContainerRunning,
            };
            self.containers.insert(container.id, seen);
        }

        Ok(())
    }

    /// Running containers of a pod: id by name.
    pub fn running(&self, uid: &str) -> BTreeMap<String, String> {
        let of_pod = self.containers.iter().filter(|(_, c)| c.pod == uid && c.running);

        of_pod.map(|(id, c)| (c.name.clone(), id.clone())).collect()
    }

    /// What differs from the pods that the API server binds to the node: nothing if the node holds
    /// exactly those and no trace of others.
    pub fn differences(&self, pods: &[Value]) -> Vec<String> {
        let mut found = Vec::new();
        let mut live = BTreeSet::new();
        let mut known = BTreeSet::new();
        for pod in pods {
            let uid = text(&pod["metadata"]["uid"]);
            if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
                self.ended(pod, &uid, &mut found);
            } else {
                self.live(pod, &uid, &mut found);
                live.insert(uid.clone());
            }
            known.insert(uid);
        }
        let sandboxes = self.sandboxes.values().map(|sandbox| sandbox.pod.clone()).collect();
        let containers = self.containers.values().map(|container| container.pod.clone()).collect();
        let ids = self.sandboxes.keys().chain(self.containers.keys()).cloned().collect();
        let runs: BTreeSet<String> = self.runs().collect();
        let ips = self.ready().map(|sandbox| sandbox.ip.clone()).filter(|ip| !ip.is_empty());
        within("sandboxes", &sandboxes, &known, &mut found);
        within("containers", &containers, &known, &mut found);
        within("directories", &self.directories, &known, &mut found);
        within("log directories", &self.logs, &known, &mut found);
        within("log links", &self.log_links, &ids, &mut found);
        within("mounts of pods", &self.mounted, &live, &mut found);
        same("control groups of pods", &self.pod_cgroups, &live, &mut found);
        same("control groups", &self.cgroups, &runs, &mut found);
        same("root file systems", &self.root_mounts, &runs, &mut found);
        same("addresses", &self.leases, &ips.collect(), &mut found);
        let ready = self.ready().count();
        let forwarded = pods.iter().filter(|pod| live.contains(&text(&pod["metadata"]["uid"])));
        let forwarded = forwarded.filter(|pod| has_host_port(pod)).count();
        if self.forwards != forwarded {
            found.push(format!("ports of {} pods for {forwarded}", self.forwards));
        }
        for (what, count) in
            [("network namespaces", self.namespaces), ("interfaces", self.interfaces)]
        {
            if count != ready {
                found.push(format!("{count} {what} for {ready} sandboxes"));
            }
        }

        found
    }

    fn ready(&self) -> impl Iterator<Item = &HeldSandbox> {
        self.sandboxes.values().filter(|sandbox| sandbox.ready)
    }

    /// Ids of what has processes.
    fn runs(&self) -> impl Iterator<Item = String> {
        let sandboxes = self.sandboxes.iter().filter(|(_, s)| s.ready).map(|(id, _)| id.clone());
        let containers = self.containers.iter().filter(|(_, c)| c.running);

        sandboxes.chain(containers.map(|(id, _)| id.clone()))
    }

    fn ended(&self, pod: &Value, uid: &str, found: &mut Vec<String>) {
        let running = self.running(uid);
        let ready = self.ready().any(|sandbox| sandbox.pod == uid);
        if ready || !running.is_empty() {
            found.push(format!("{} has ended, but {running:?} runs, {ready}", name(pod)));
        }
    }

    fn live(&self, pod: &Value, uid: &str, found: &mut Vec<String>) {
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            found.push(format!("{} is being deleted", name(pod)));
            return;
        }
        if !crate::pods::is_ready(pod) {
            found.push(format!("{} is not Ready: {}", name(pod), waits(pod)));
        }
        let sidecars = pod["status"]["initContainerStatuses"].as_array().into_iter().flatten();
        let sidecars = sidecars.filter(|status| status["state"]["running"].is_object());
        let told: BTreeMap<String, String> = pod["status"]["containerStatuses"]
            .as_array()
            .into_iter()
            .flatten()
            .chain(sidecars)
            .map(|status| {
                let id = text(&status["containerID"]);
                (text(&status["name"]), id.trim_start_matches("containerd://").to_owned())
            })
            .collect();
        let running = self.running(uid);
        if told != running {
            found.push(format!("{}: told {told:?}, running {running:?}", name(pod)));
        }
        let ready: Vec<_> = self.ready().filter(|sandbox| sandbox.pod == uid).collect();
        match ready.as_slice() {
            [one] if one.ip.is_empty() || pod["status"]["podIP"] == one.ip.as_str() => {}
            others => found.push(format!(
                "{} at {}: its sandboxes are {others:?}",
                name(pod),
                pod["status"]["podIP"]
            )),
        }
    }
}

fn name(pod: &Value) -> String {
    format!("{} ({})", text(&pod["metadata"]["name"]), text(&pod["metadata"]["uid"]))
}

/// What the pod's containers wait for.
fn waits(pod: &Value) -> String {
    let lists = ["initContainerStatuses", "containerStatuses"].map(|list| &pod["status"][list]);
    let statuses = lists.into_iter().filter_map(|list| list.as_array()).flatten();
    let waits = statuses.filter(|status| status["state"]["waiting"].is_object());
    let waits = waits.map(|status| format!("{} {}", status["name"], status["state"]["waiting"]));

    waits.collect::<Vec<_>>().join(", ")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn within(what: &str, have: &BTreeSet<String>, may: &BTreeSet<String>, found: &mut Vec<String>) {
    let extra: Vec<_> = have.difference(may).collect();
    if !extra.is_empty() {
        found.push(format!("{what} left: {extra:?}"));
    }
}

fn same(what: &str, have: &BTreeSet<String>, want: &BTreeSet<String>, found: &mut Vec<String>) {
    within(what, have, want, found);
    let missing: Vec<_> = want.difference(have).collect();
    if !missing.is_empty() {
        found.push(format!("{what} missing: {missing:?}"));
    }
}

/// What follows the last `mark`.
fn after(name: &str, mark: char) -> String {
    name.rsplit_once(mark).map_or(name, |(_, last)| last).to_owned()
}

/// Names in a folder; none if there is no folder.
fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", folder.display())),
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }

    Ok(names)
}

/// Pods with a mount below `pods`, and ids whose root file system is mounted below `run`.
fn mounts(pods: &Path, run: &str) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = || table.lines().filter_map(|line| line.split(' ').nth(4));
    let below = |root: &str| -> BTreeSet<String> {
        points()
            .filter_map(|point| point.strip_prefix(root)?.strip_prefix('/')?.split('/').next())
            .map(str::to_owned)
            .collect()
    };
    let tasks = format!("{run}/containerd/io.containerd.runtime.v2.task/k8s.io");

    Ok((below(&pods.display().to_string()), below(&tasks)))
}

/// Interfaces of pods: the site's own is eth0.
async fn interfaces(netns: &str) -> Result<usize> {
    let mut command = Command::new("ip");
    command.args(["-n", netns, "-br", "link", "show", "type", "veth"]);
    let listed = output(command).await?;

    Ok(listed.lines().filter(|line| !line.starts_with("eth0@")).count())
}

fn has_host_port(pod: &Value) -> bool {
    let containers = ["initContainers", "containers"].map(|list| &pod["spec"][list]);
    let mut ports = containers
        .into_iter()
        .filter_map(|list| list.as_array())
        .flatten()
        .filter_map(|container| container["ports"].as_array())
        .flatten();

    pod["spec"]["hostNetwork"] != true && ports.any(|port| port["hostPort"].is_u64())
}

async fn forwards(site: &Site) -> Result<usize> {
    let rules = output(site.command(&["iptables-save", "-t", "nat"])).await?;

    Ok(rules.lines().filter(|line| line.starts_with(":CNI-DN-")).count())
}

/// Reads every hierarchy of version 1, and the one of version 2.
fn cgroups(root: &str, held: &mut Held) -> Result<()> {
    let top = Path::new("/sys/fs/cgroup");
    let own = root.trim_start_matches('/');
    let mut folders = vec![top.join(own)];
    folders.extend(names(top)?.iter().map(|hierarchy| top.join(hierarchy).join(own)));
    while let Some(folder) = folders.pop() {
        for name in names(&folder)? {
            let path = folder.join(&name);
            if !path.is_dir() {
                continue;
            }
            if let Some(uid) = name.strip_prefix("pod") {
                held.pod_cgroups.insert(uid.to_owned());
            } else if name.len() == 64 {
                held.cgroups.insert(name);
            }
            folders.push(path);
        }
    }

    Ok(())
}
