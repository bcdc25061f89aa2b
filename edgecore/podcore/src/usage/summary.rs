//! `/stats/summary`: the kubelet's JSON (`k8s.io/kubelet/pkg/apis/stats/v1alpha1`).

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::{
    ContainerUsage, Disk, Interface, Look, Memory, NodeUsage, PodUsage, Process, PvcRef, Taken,
    Usage, VolumeUsage,
};

/// As Kubernetes writes times: to the second, and null for none.
#[derive(Clone, Copy)]
struct Time(Option<Timestamp>);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(at) => serializer.collect_str(&at.strftime("%Y-%m-%dT%H:%M:%SZ")),
            None => serializer.serialize_none(),
        }
    }
}

#[derive(Serialize)]
struct Summary<'a> {
    node: Node<'a>,
    pods: Vec<Pod<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Node<'a> {
    #[serde(rename = "nodeName")]
    name: &'a str,
    system_containers: Vec<Container<'a>>,
    start_time: Time,
    #[serde(flatten)]
    resources: Resources,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fs: Option<Fs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<Runtime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rlimit: Option<Rlimit>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Runtime {
    image_fs: Fs,
    container_fs: Fs,
}

#[derive(Serialize)]
struct Rlimit {
    time: Time,
    maxpid: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    curproc: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pod<'a> {
    #[serde(rename = "podRef")]
    named: PodRef<'a>,
    start_time: Time,
    containers: Vec<Container<'a>>,
    #[serde(flatten)]
    resources: Resources,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network<'a>>,
    #[serde(rename = "volume", skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<Volume<'a>>,
    #[serde(rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    ephemeral_storage: Option<Fs>,
    #[serde(rename = "process_stats", skip_serializing_if = "Option::is_none")]
    process_stats: Option<Processes>,
}

#[derive(Serialize)]
struct PodRef<'a> {
    name: &'a str,
    namespace: &'a str,
    uid: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Volume<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pvc_ref: Option<&'a PvcRef>,
    #[serde(flatten)]
    fs: Fs,
}

#[derive(Serialize)]
struct Processes {
    process_count: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Container<'a> {
    name: &'a str,
    start_time: Time,
    #[serde(flatten)]
    resources: Resources,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<Fs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<Fs>,
}

#[derive(Serialize)]
struct Resources {
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<CpuStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<SwapStats>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CpuStats {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_nano_cores: Option<u64>,
    usage_core_nano_seconds: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemoryStats {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    usage_bytes: u64,
    working_set_bytes: u64,
    rss_bytes: u64,
    page_faults: u64,
    major_page_faults: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SwapStats {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_available_bytes: Option<u64>,
    swap_usage_bytes: u64,
}

#[derive(Serialize)]
struct Network<'a> {
    time: Time,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    main: Option<InterfaceStats<'a>>,
    interfaces: Vec<InterfaceStats<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InterfaceStats<'a> {
    name: &'a str,
    rx_bytes: u64,
    rx_errors: u64,
    tx_bytes: u64,
    tx_errors: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Fs {
    time: Time,
    available_bytes: u64,
    capacity_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    used_bytes: Option<u64>,
    inodes_free: u64,
    inodes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes_used: Option<u64>,
}

/// The interface that counts as the pod's or the node's (kubelet: `defaultNetworkInterfaceName`).
const MAIN_INTERFACE: &str = "eth0";

/// The JSON; `only_cpu_and_memory` leaves the rest out.
pub fn json(look: &Look, only_cpu_and_memory: bool) -> serde_json::Result<Vec<u8>> {
    let pods = look.pods.iter().map(|pod| pod_stats(look, pod, only_cpu_and_memory)).collect();

    serde_json::to_vec(&Summary { node: node_stats(look, only_cpu_and_memory), pods })
}

fn node_stats(look: &Look, only_cpu_and_memory: bool) -> Node<'_> {
    let NodeUsage { name, started_at, usage, pods, agent, .. } = &look.node;
    let node = Some(&look.node).filter(|_| !only_cpu_and_memory);
    let memory = look.node.machine.memory_bytes;

    Node {
        name,
        system_containers: vec![system("kubelet", look, process(look.at, agent)), {
            let pods = resources(look.at, pods, None);
            system("pods", look, pods)
        }],
        start_time: Time(*started_at),
        resources: resources(look.at, usage, Some(memory)),
        network: node.map(|node| network(look.at, &node.network)),
        fs: node.and_then(|node| Some(whole_fs(look.at, node.disk?))),
        runtime: node.and_then(|node| {
            let (disk, images) = node.image_disk?;
            let container_fs = Fs { used_bytes: None, ..whole_fs(look.at, disk) };
            Some(Runtime { image_fs: fs(look.at, disk, images), container_fs })
        }),
        rlimit: node.map(|node| Rlimit {
            time: Time(Some(look.at)),
            maxpid: node.pids_max,
            curproc: node.pids,
        }),
    }
}

fn system<'a>(name: &'a str, look: &Look, resources: Resources) -> Container<'a> {
    let started = if name == "kubelet" { look.node.agent.started_at } else { look.node.started_at };

    Container { name, start_time: Time(started), resources, rootfs: None, logs: None }
}

fn pod_stats<'a>(look: &'a Look, pod: &'a PodUsage, only_cpu_and_memory: bool) -> Pod<'a> {
    let at = look.at;
    let containers = pod.containers.iter();
    let disk = look.node.disk.filter(|_| !only_cpu_and_memory);
    let volumes = pod.volumes.iter().filter(|_| !only_cpu_and_memory);

    Pod {
        named: PodRef { name: &pod.name, namespace: &pod.namespace, uid: &pod.uid },
        start_time: Time(pod.started_at),
        containers: containers.map(|own| container(look, own, only_cpu_and_memory)).collect(),
        resources: resources(at, &pod.usage, None),
        network: pod
            .network
            .as_ref()
            .filter(|_| !only_cpu_and_memory)
            .map(|interfaces| network(at, interfaces)),
        volumes: volumes.map(|own| volume(at, own)).collect(),
        ephemeral_storage: disk.map(|disk| fs(at, disk, ephemeral(pod))),
        process_stats: pod
            .usage
            .tasks
            .filter(|_| !only_cpu_and_memory)
            .map(|process_count| Processes { process_count }),
    }
}

/// What the pod takes of the disk space that it may have.
fn ephemeral(pod: &PodUsage) -> Taken {
    let containers = pod.containers.iter();
    let containers = containers.flat_map(|own| [own.layer.unwrap_or_default(), own.logs]);
    let volumes = pod.volumes.iter().filter(|volume| volume.is_ephemeral);
    let all = containers.chain(volumes.map(|volume| volume.taken)).chain(pod.hosts);

    all.fold(Taken::default(), |sum, taken| Taken {
        bytes: sum.bytes + taken.bytes,
        inodes: Some(sum.inodes.unwrap_or(0) + taken.inodes.unwrap_or(0)),
    })
}

fn volume(at: Timestamp, volume: &VolumeUsage) -> Volume<'_> {
    let VolumeUsage { name, claim, disk, taken, .. } = volume;

    Volume { name, pvc_ref: claim.as_ref(), fs: fs(at, *disk, *taken) }
}

fn container<'a>(
    look: &Look,
    container: &'a ContainerUsage,
    only_cpu_and_memory: bool,
) -> Container<'a> {
    let (image_disk, disk) = (look.node.image_disk, look.node.disk);
    let on = |disk: Option<Disk>, taken: Option<Taken>| {
        let both = disk.zip(taken).filter(|_| !only_cpu_and_memory);
        both.map(|(disk, taken)| fs(look.at, disk, taken))
    };

    Container {
        name: &container.name,
        start_time: Time(container.started_at),
        resources: resources(look.at, &container.usage, None),
        rootfs: on(image_disk.map(|(disk, _)| disk), container.layer),
        logs: on(disk, Some(container.logs)),
    }
}

/// `most` is what there is for a cgroup without a limit.
fn resources(at: Timestamp, usage: &Usage, most: Option<u64>) -> Resources {
    let time = Time(Some(at));
    let memory = |memory: Memory| MemoryStats {
        time,
        available_bytes: memory
            .limit
            .or(most)
            .map(|limit| limit.saturating_sub(memory.working_set)),
        usage_bytes: memory.usage,
        working_set_bytes: memory.working_set,
        rss_bytes: memory.rss,
        page_faults: memory.faults,
        major_page_faults: memory.major_faults,
    };

    Resources {
        cpu: usage.cpu.map(|cpu| CpuStats {
            time,
            usage_nano_cores: cpu.nano_cores,
            usage_core_nano_seconds: cpu.total_ns,
        }),
        memory: usage.memory.map(memory),
        swap: usage.memory.map(|memory| SwapStats {
            time,
            swap_available_bytes: memory.swap_limit.map(|most| most.saturating_sub(memory.swap)),
            swap_usage_bytes: memory.swap,
        }),
    }
}

/// The agent, which may share its cgroup with others.
fn process(at: Timestamp, process: &Process) -> Resources {
    let time = Time(Some(at));

    Resources {
        cpu: Some(CpuStats {
            time,
            usage_nano_cores: None,
            usage_core_nano_seconds: process.cpu_ns,
        }),
        memory: Some(MemoryStats {
            time,
            available_bytes: None,
            usage_bytes: process.resident_bytes,
            working_set_bytes: process.resident_bytes,
            rss_bytes: process.resident_bytes,
            page_faults: process.faults,
            major_page_faults: process.major_faults,
        }),
        swap: None,
    }
}

fn network(at: Timestamp, interfaces: &[Interface]) -> Network<'_> {
    let main = interfaces.iter().find(|interface| interface.name == MAIN_INTERFACE);

    Network {
        time: Time(Some(at)),
        main: main.map(interface_stats),
        interfaces: interfaces.iter().map(interface_stats).collect(),
    }
}

fn interface_stats(interface: &Interface) -> InterfaceStats<'_> {
    let Interface { name, received, sent } = interface;

    InterfaceStats {
        name,
        rx_bytes: received.bytes,
        rx_errors: received.errors,
        tx_bytes: sent.bytes,
        tx_errors: sent.errors,
    }
}

fn fs(at: Timestamp, disk: Disk, taken: Taken) -> Fs {
    Fs {
        time: Time(Some(at)),
        available_bytes: disk.available_bytes,
        capacity_bytes: disk.capacity_bytes,
        used_bytes: Some(taken.bytes),
        inodes_free: disk.inodes_free,
        inodes: disk.inodes,
        inodes_used: taken.inodes,
    }
}

/// All that is taken of a file system.
fn whole_fs(at: Timestamp, disk: Disk) -> Fs {
    let taken = Taken {
        bytes: disk.capacity_bytes.saturating_sub(disk.available_bytes),
        inodes: Some(disk.inodes.saturating_sub(disk.inodes_free)),
    };

    fs(at, disk, taken)
}
