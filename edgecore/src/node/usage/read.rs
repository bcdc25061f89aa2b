//! The kernel's files of one look.

use std::fs;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use podcore::usage::cgroup::TICKS_PER_SECOND;
use podcore::usage::network::interfaces;
use podcore::usage::{
    ContainerUsage, Disk, Interface, Look, Machine, NodeUsage, PodUsage, Process, Taken, Usage,
};

use super::{Detail, Found, Held, Place, found, time};
use crate::blocking::read_trimmed;
use crate::kubelet_api::PodFacts;
use crate::node::cgroups::{Cgroups, device_name};
use crate::node::facts::bytes_in;
use crate::node::pressure;
use crate::volumes::contents;

/// Reads everything.
pub(super) fn look(
    place: &Place,
    pods: Vec<PodFacts>,
    mut held: Held,
    at: Timestamp,
    detail: Detail,
) -> Look {
    let pods = found(pods, &mut held);
    let pods = pods.into_iter().map(|pod| pod_usage(place, pod, &held, detail)).collect();

    Look { at, node: node_usage(place, &held, detail), pods }
}

fn node_usage(place: &Place, held: &Held, detail: Detail) -> NodeUsage {
    let Place { node, facts, cgroups, cgroup_root, root_dir, .. } = place;
    let all = detail == Detail::All;
    let (pods_cgroup, pods) = kubepods(cgroups, cgroup_root);
    let images = held.images.as_ref().filter(|_| all);
    let loadavg = read_trimmed("/proc/loadavg").unwrap_or_default();
    let meminfo = read_trimmed("/proc/meminfo").unwrap_or_default();

    NodeUsage {
        name: node.clone(),
        started_at: booted_at(),
        usage: usage(cgroups, "/", detail),
        pods_cgroup,
        pods,
        agent: own(),
        network: if all { network("/proc/self") } else { Vec::new() },
        disk: disk(root_dir).filter(|_| all),
        image_disk: images.and_then(|(path, taken)| Some((disk(path)?, *taken))),
        pids_max: facts.pid_max,
        pids: pressure::processes(&loadavg),
        machine: Machine {
            cpus: facts.cpus,
            memory_bytes: facts.memory_bytes,
            swap_bytes: bytes_in(&meminfo, "SwapTotal:"),
            boot_id: facts.boot_id.clone(),
            machine_id: facts.machine_id.clone(),
            system_uuid: facts.system_uuid.clone(),
            kernel: facts.kernel.clone(),
            os_image: facts.os_image.clone(),
        },
    }
}

fn usage(cgroups: &Cgroups, parent: &str, detail: Detail) -> Usage {
    let mut usage = cgroups.usage(parent);
    if detail == Detail::CpuAndMemory {
        usage.io.clear();
    }
    for io in &mut usage.io {
        io.device = device_name(&io.device);
    }

    usage
}

/// The cgroup of all pods, as whichever driver names it.
fn kubepods(cgroups: &Cgroups, root: &str) -> (String, Usage) {
    let found = Cgroups::kubepods(root);
    let [by_path, slice] = found.map(|parent| (Cgroups::shown(&parent), cgroups.usage(&parent)));

    if by_path.1.cpu.is_some() { by_path } else { slice }
}

fn pod_usage(place: &Place, pod: Found, held: &Held, detail: Detail) -> PodUsage {
    let Found { facts, sandbox, containers } = pod;
    let cgroups = &place.cgroups;
    let below = cgroups.below(&facts.cgroup);
    let cgroup_of = |id: &str| below.iter().find(|path| path.contains(id)).cloned();
    let logs = place.layout.logs(&facts.namespace, &facts.name, &facts.uid);
    let sandbox = sandbox.and_then(|sandbox| {
        let cgroup = cgroup_of(&sandbox.id)?;
        let usage = usage(cgroups, &cgroup, detail);
        let started_at = time(sandbox.created_at);
        Some(ContainerUsage { id: sandbox.id, cgroup, started_at, usage, ..Default::default() })
    });
    let containers: Vec<_> = containers
        .into_iter()
        .filter_map(|container| {
            let cgroup = cgroup_of(&container.id)?;
            let name = container.metadata.map(|metadata| metadata.name).unwrap_or_default();
            Some(ContainerUsage {
                usage: usage(cgroups, &cgroup, detail),
                started_at: time(container.created_at),
                layer: held.layers.get(&container.id).copied(),
                logs: if detail == Detail::All {
                    log_size(&logs.join(&name))
                } else {
                    Taken::default()
                },
                image: container.image.map(|image| image.image).unwrap_or_default(),
                id: container.id,
                name,
                cgroup,
            })
        })
        .collect();
    let member = sandbox.as_ref().or_else(|| containers.first()).map(|member| &member.cgroup);
    let network = member
        .filter(|_| detail == Detail::All)
        .and_then(|cgroup| pod_network(cgroups.process(cgroup)?));

    PodUsage {
        cgroup: Cgroups::shown(&facts.cgroup),
        started_at: facts.started_at,
        usage: usage(cgroups, &facts.cgroup, detail),
        network,
        sandbox,
        containers,
        namespace: facts.namespace,
        name: facts.name,
        volumes: Vec::new(),
        hosts: Some(place.layout.etc_hosts(&facts.uid))
            .filter(|file| detail == Detail::All && file.exists())
            .map(|file| counted(&file)),
        uid: facts.uid.to_string(),
    }
}

/// The interfaces a process sees, if they are not the node's.
fn pod_network(process: u32) -> Option<Vec<Interface>> {
    let dir = format!("/proc/{process}");
    let namespace = |dir: &str| fs::read_link(Path::new(dir).join("ns/net")).ok();
    let is_own = namespace(&dir)? != namespace("/proc/self")?;

    is_own.then(|| network(&dir))
}

fn network(process: &str) -> Vec<Interface> {
    interfaces(&read_trimmed(format!("{process}/net/dev")).unwrap_or_default())
}

/// What a file takes, or all that is in a directory.
pub(super) fn counted(path: &Path) -> Taken {
    let taken = contents::taken(path);

    Taken { bytes: taken.bytes, inodes: Some(taken.inodes) }
}

fn log_size(dir: &Path) -> Taken {
    let Ok(entries) = fs::read_dir(dir) else { return Taken::default() };
    let files = entries.flatten().filter_map(|entry| entry.metadata().ok());
    let (bytes, inodes) =
        files.fold((0, 1), |(bytes, inodes), file| (bytes + file.len(), inodes + 1));

    Taken { bytes, inodes: Some(inodes) }
}

fn disk(path: &Path) -> Option<Disk> {
    file_system(path).map(|(disk, _)| disk)
}

/// A file system, and what is taken of it.
pub(super) fn file_system(path: &Path) -> Option<(Disk, Taken)> {
    let disk = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    let taken = Taken {
        bytes: bytes(disk.f_blocks.saturating_sub(disk.f_bfree)),
        inodes: Some(disk.f_files.saturating_sub(disk.f_ffree)),
    };
    let disk = Disk {
        available_bytes: bytes(disk.f_bavail),
        capacity_bytes: bytes(disk.f_blocks),
        inodes_free: disk.f_ffree,
        inodes: disk.f_files,
    };

    Some((disk, taken))
}

fn booted_at() -> Option<Timestamp> {
    let stat = read_trimmed("/proc/stat")?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;

    Timestamp::from_second(line.trim().parse().ok()?).ok()
}

/// This process, by proc(5).
pub(super) fn own() -> Process {
    let stat = read_trimmed("/proc/self/stat").unwrap_or_default();
    let status = read_trimmed("/proc/self/status").unwrap_or_default();
    let open_files = fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64);
    let mut process = process(&stat, &status, booted_at()).unwrap_or_default();
    // The directory itself is open while it is counted.
    process.open_files = open_files.saturating_sub(1);

    process
}

/// Fields are counted after the name, which may have anything in it.
pub(crate) fn process(stat: &str, status: &str, booted_at: Option<Timestamp>) -> Option<Process> {
    let fields = stat.rsplit_once(')')?.1.split_whitespace();
    let fields: Vec<u64> = fields.map(|field| field.parse().unwrap_or(0)).collect();
    // Numbers as in proc(5), which counts from 1 and the name as the second.
    let field = |number: usize| fields.get(number - 3).copied();
    let ns = |ticks: u64| ticks.saturating_mul(1_000_000_000 / TICKS_PER_SECOND);
    let since_boot = i64::try_from(ns(field(22)?)).ok().map(SignedDuration::from_nanos);

    Some(Process {
        faults: field(10)?,
        major_faults: field(12)?,
        cpu_ns: ns(field(14)?.saturating_add(field(15)?)),
        virtual_bytes: bytes_in(status, "VmSize:"),
        resident_bytes: bytes_in(status, "VmRSS:"),
        open_files: 0,
        started_at: booted_at.zip(since_boot).and_then(|(at, after)| at.checked_add(after).ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194304 7 0 2 0 100 50 0 0 20 0 3 0 500 9000 4 1";
        let booted = Timestamp::from_second(1000).unwrap();
        let process = process(stat, "VmSize: 9 kB\nVmRSS:\t 16 kB\n", Some(booted)).unwrap();

        assert_eq!((process.faults, process.major_faults), (7, 2));
        assert_eq!((process.cpu_ns, process.resident_bytes), (1_500_000_000, 16 * 1024));
        assert_eq!(process.started_at, Some(Timestamp::from_second(1005).unwrap()));
    }

    #[test]
    fn this_process_and_machine_are_there() {
        let own = own();
        assert!(own.resident_bytes > 0 && own.open_files > 0 && own.started_at.is_some());
        assert!(disk(Path::new("/")).is_some_and(|disk| disk.capacity_bytes > 0));
    }
}
