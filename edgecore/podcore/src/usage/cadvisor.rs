//! `/metrics/cadvisor`: the series of containers, pods, all pods and the machine that dashboards use,
//! with cadvisor's names and labels (`github.com/google/cadvisor/metrics`).

use super::text::{Kind, Text, Value, since_1970};
use super::{ContainerUsage, Cpu, Disk, Interface, Io, Look, Machine, Memory, PodUsage, Usage};

/// Whatever has a cgroup, with its labels.
struct Group<'a> {
    labels: [(&'static str, &'a str); 6],
    usage: &'a Usage,
    started_at: Option<jiff::Timestamp>,
    network: &'a [Interface],
    disk: Option<(Disk, u64)>,
}

/// A family, and what one thing gives to it.
struct Family<T: 'static> {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&T) -> Option<Value>,
}

const fn counter<T>(
    name: &'static str,
    help: &'static str,
    value: fn(&T) -> Option<Value>,
) -> Family<T> {
    Family { name, kind: Kind::Counter, help, value }
}

const fn gauge<T>(
    name: &'static str,
    help: &'static str,
    value: fn(&T) -> Option<Value>,
) -> Family<T> {
    Family { name, kind: Kind::Gauge, help, value }
}

#[expect(clippy::unnecessary_wraps, reason = "what a family gives may be nothing")]
fn nanos(ns: u64) -> Option<Value> {
    Some(Value::Nanos(ns))
}

#[expect(clippy::unnecessary_wraps, reason = "what a family gives may be nothing")]
fn count(number: u64) -> Option<Value> {
    Some(Value::Count(number))
}

/// What only a cgroup with a quota tells.
fn limited(cpu: &Cpu, value: Value) -> Option<Value> {
    cpu.quota_us.map(|_| value)
}

const CPU: [Family<Cpu>; 8] = [
    counter("container_cpu_user_seconds_total", "User CPU time in seconds.", |c| nanos(c.user_ns)),
    counter("container_cpu_system_seconds_total", "System CPU time in seconds.", |c| {
        nanos(c.system_ns)
    }),
    counter("container_cpu_cfs_periods_total", "Periods of the CPU quota.", |c| {
        limited(c, Value::Count(c.periods))
    }),
    counter("container_cpu_cfs_throttled_periods_total", "Periods with throttling.", |c| {
        limited(c, Value::Count(c.throttled_periods))
    }),
    counter("container_cpu_cfs_throttled_seconds_total", "Time throttled, in seconds.", |c| {
        limited(c, Value::Nanos(c.throttled_ns))
    }),
    gauge("container_spec_cpu_period", "CPU period of the container.", |c| count(c.period_us)),
    gauge("container_spec_cpu_quota", "CPU quota of the container.", |c| {
        c.quota_us.and_then(count)
    }),
    gauge("container_spec_cpu_shares", "CPU share of the container.", |c| count(c.shares)),
];

const MEMORY: [Family<Memory>; 12] = [
    gauge("container_memory_cache", "Bytes of page cache.", |m| count(m.cache)),
    gauge("container_memory_rss", "Bytes of anonymous memory.", |m| count(m.rss)),
    gauge("container_memory_mapped_file", "Bytes of mapped files.", |m| count(m.mapped_file)),
    gauge("container_memory_swap", "Bytes in swap.", |m| count(m.swap)),
    counter("container_memory_failcnt", "Hits of the memory limit.", |m| count(m.fail_count)),
    gauge("container_memory_usage_bytes", "Bytes of memory, of whatever kind.", |m| count(m.usage)),
    gauge("container_memory_max_usage_bytes", "Most bytes of memory so far.", |m| {
        m.max_usage.and_then(count)
    }),
    gauge("container_memory_working_set_bytes", "Bytes of the working set.", |m| {
        count(m.working_set)
    }),
    counter("container_oom_events_total", "Kills for want of memory.", |m| count(m.oom_kills)),
    // cadvisor writes no limit as 0.
    gauge("container_spec_memory_limit_bytes", "Memory limit, 0 for none.", |m| {
        count(m.limit.unwrap_or(0))
    }),
    gauge("container_spec_memory_swap_limit_bytes", "Swap limit, 0 for none.", |m| {
        count(m.swap_limit.unwrap_or(0))
    }),
    gauge("container_spec_memory_reservation_limit_bytes", "Reserved memory: none.", |_| count(0)),
];

const IO: [Family<Io>; 4] = [
    counter("container_fs_reads_bytes_total", "Bytes read.", |io| count(io.read_bytes)),
    counter("container_fs_reads_total", "Reads completed.", |io| count(io.reads)),
    counter("container_fs_writes_bytes_total", "Bytes written.", |io| count(io.written_bytes)),
    counter("container_fs_writes_total", "Writes completed.", |io| count(io.writes)),
];

/// A file system and the bytes taken of it.
const DISK: [Family<(Disk, u64)>; 4] = [
    gauge("container_fs_inodes_free", "Free inodes.", |(disk, _)| count(disk.inodes_free)),
    gauge("container_fs_inodes_total", "Inodes.", |(disk, _)| count(disk.inodes)),
    gauge("container_fs_limit_bytes", "Bytes that can be taken.", |(disk, _)| {
        count(disk.capacity_bytes)
    }),
    gauge("container_fs_usage_bytes", "Bytes that are taken.", |(_, taken)| count(*taken)),
];

const NETWORK: [Family<Interface>; 8] = [
    counter("container_network_receive_bytes_total", "Bytes received.", |i| {
        count(i.received.bytes)
    }),
    counter("container_network_receive_packets_total", "Packets received.", |i| {
        count(i.received.packets)
    }),
    counter("container_network_receive_packets_dropped_total", "Packets dropped.", |i| {
        count(i.received.dropped)
    }),
    counter("container_network_receive_errors_total", "Errors while receiving.", |i| {
        count(i.received.errors)
    }),
    counter("container_network_transmit_bytes_total", "Bytes sent.", |i| count(i.sent.bytes)),
    counter("container_network_transmit_packets_total", "Packets sent.", |i| count(i.sent.packets)),
    counter("container_network_transmit_packets_dropped_total", "Packets dropped.", |i| {
        count(i.sent.dropped)
    }),
    counter("container_network_transmit_errors_total", "Errors while sending.", |i| {
        count(i.sent.errors)
    }),
];

const MACHINE: [Family<Machine>; 3] = [
    gauge("machine_cpu_cores", "Number of logical CPU cores.", |m| count(m.cpus)),
    gauge("machine_memory_bytes", "Amount of memory installed on the machine.", |m| {
        count(m.memory_bytes)
    }),
    gauge("machine_swap_bytes", "Amount of swap memory available on the machine.", |m| {
        count(m.swap_bytes)
    }),
];

/// The text.
pub fn text(look: &Look) -> String {
    let mut text = Text::default();
    let groups = groups(look);
    version(&mut text, &look.node.machine);
    cpu_total(&mut text, &groups);
    each(&mut text, &groups, &CPU, |group| group.usage.cpu.as_slice(), |_| None);
    each(&mut text, &groups, &MEMORY, |group| group.usage.memory.as_slice(), |_| None);
    each(&mut text, &groups, &IO, |group| &group.usage.io, |io| Some(("device", &io.device)));
    each(&mut text, &groups, &DISK, |group| group.disk.as_slice(), |_| Some(("device", "")));
    each(
        &mut text,
        &groups,
        &NETWORK,
        |group| group.network,
        |interface| Some(("interface", &interface.name)),
    );
    tasks(&mut text, &groups);
    times(&mut text, look, &groups);
    machine(&mut text, &look.node.machine);
    let failed = Value::from(look.node.usage.cpu.is_none() || look.node.usage.memory.is_none());
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    text.single("container_scrape_error", Kind::Gauge, help, failed);
    let help = "1 if there was an error while getting machine metrics, 0 otherwise.";
    text.single("machine_scrape_error", Kind::Gauge, help, Value::Count(0));

    text.finish()
}

fn groups(look: &Look) -> Vec<Group<'_>> {
    let node = &look.node;
    let taken = |disk: Disk| (disk, disk.capacity_bytes.saturating_sub(disk.available_bytes));
    let mut groups = vec![
        Group {
            labels: labels("/", None, None),
            usage: &node.usage,
            started_at: node.started_at,
            network: &node.network,
            disk: node.disk.map(taken),
        },
        Group {
            labels: labels(&node.pods_cgroup, None, None),
            usage: &node.pods,
            started_at: None,
            network: &[],
            disk: None,
        },
    ];
    for pod in &look.pods {
        let network = pod.network.as_deref().unwrap_or_default();
        // Traffic is the sandbox's; where that has no process, it is told of the pod.
        let (of_pod, of_sandbox) =
            if pod.sandbox.is_some() { (&[][..], network) } else { (network, &[][..]) };
        groups.push(Group {
            labels: labels(&pod.cgroup, Some(pod), None),
            usage: &pod.usage,
            started_at: pod.started_at,
            network: of_pod,
            disk: None,
        });
        groups.extend(pod.sandbox.iter().map(|own| container(look, pod, own, of_sandbox)));
        groups.extend(pod.containers.iter().map(|own| container(look, pod, own, &[])));
    }

    groups
}

fn container<'a>(
    look: &Look,
    pod: &'a PodUsage,
    container: &'a ContainerUsage,
    network: &'a [Interface],
) -> Group<'a> {
    let disk = look.node.image_disk.map(|(disk, _)| disk);

    Group {
        labels: labels(&container.cgroup, Some(pod), Some(container)),
        usage: &container.usage,
        started_at: container.started_at,
        network,
        disk: disk.zip(container.layer.map(|taken| taken.bytes)),
    }
}

fn labels<'a>(
    id: &'a str,
    pod: Option<&'a PodUsage>,
    container: Option<&'a ContainerUsage>,
) -> [(&'static str, &'a str); 6] {
    [
        ("container", container.map_or("", |container| &container.name)),
        ("id", id),
        ("image", container.map_or("", |container| &container.image)),
        ("name", container.map_or("", |container| &container.id)),
        ("namespace", pod.map_or("", |pod| &pod.namespace)),
        ("pod", pod.map_or("", |pod| &pod.name)),
    ]
}

/// Writes families: of every group what `things` it has, each with a label of its own if there may be
/// several.
fn each<'a, T>(
    text: &mut Text,
    groups: &'a [Group<'a>],
    families: &[Family<T>],
    things: fn(&'a Group<'a>) -> &'a [T],
    own: fn(&'a T) -> Option<(&'static str, &'a str)>,
) {
    for Family { name, kind, help, value } in families {
        text.family(name, *kind, help);
        for group in groups {
            for thing in things(group) {
                let Some(value) = value(thing) else { continue };
                let labels: Vec<_> = group.labels.into_iter().chain(own(thing)).collect();
                text.sample(&labels, value, None);
            }
        }
    }
}

fn cpu_total(text: &mut Text, groups: &[Group<'_>]) {
    let help = "Cumulative cpu time consumed in seconds.";
    text.family("container_cpu_usage_seconds_total", Kind::Counter, help);
    for group in groups {
        if let Some(cpu) = group.usage.cpu {
            let labels: Vec<_> = group.labels.into_iter().chain([("cpu", "total")]).collect();
            text.sample(&labels, Value::Nanos(cpu.total_ns), None);
        }
    }
}

fn tasks(text: &mut Text, groups: &[Group<'_>]) {
    text.family("container_threads", Kind::Gauge, "Number of threads.");
    for group in groups {
        if let Some(tasks) = group.usage.tasks {
            text.sample(&group.labels, Value::Count(tasks), None);
        }
    }
}

fn times(text: &mut Text, look: &Look, groups: &[Group<'_>]) {
    let help = "Start time of the container since unix epoch in seconds.";
    text.family("container_start_time_seconds", Kind::Gauge, help);
    for group in groups {
        if let Some(started_at) = group.started_at {
            text.sample(&group.labels, whole(started_at), None);
        }
    }
    text.family("container_last_seen", Kind::Gauge, "When it was seen last.");
    for group in groups {
        text.sample(&group.labels, whole(look.at), None);
    }
}

/// cadvisor tells whole seconds.
fn whole(at: jiff::Timestamp) -> Value {
    match since_1970(at) {
        Value::Nanos(ns) => Value::Count(ns / 1_000_000_000),
        count @ Value::Count(_) => count,
    }
}

fn version(text: &mut Text, machine: &Machine) {
    let help = "A metric with a constant '1' value labeled by versions.";
    text.family("cadvisor_version_info", Kind::Gauge, help);
    let labels = [
        ("cadvisorRevision", ""),
        ("cadvisorVersion", ""),
        ("dockerVersion", ""),
        ("kernelVersion", machine.kernel.as_str()),
        ("osVersion", &machine.os_image),
    ];
    text.sample(&labels, Value::Count(1), None);
}

fn machine(text: &mut Text, machine: &Machine) {
    let labels = [
        ("boot_id", machine.boot_id.as_str()),
        ("machine_id", &machine.machine_id),
        ("system_uuid", &machine.system_uuid),
    ];
    for Family { name, kind, help, value } in &MACHINE {
        text.family(name, *kind, help);
        if let Some(value) = value(machine) {
            text.sample(&labels, value, None);
        }
    }
}
