//! What is told of one look at a node, compared with the files in `golden`.
//! `UPDATE_GOLDEN=1 cargo test -p podcore usage` writes them anew; the difference is to be looked at.

use std::path::Path;

use super::*;
use crate::probe::{Answers, ProbeKind};

fn second(number: i64) -> Timestamp {
    Timestamp::from_second(number).unwrap()
}

fn interface(name: &str) -> Interface {
    Interface {
        name: name.to_owned(),
        received: Traffic { bytes: 1000, packets: 10, errors: 1, dropped: 2 },
        sent: Traffic { bytes: 2000, packets: 20, errors: 3, dropped: 4 },
    }
}

fn volume(name: &str, claim: Option<&str>) -> VolumeUsage {
    let claim = claim.map(|name| PvcRef { name: name.to_owned(), namespace: "shop".to_owned() });

    VolumeUsage {
        name: name.to_owned(),
        is_ephemeral: claim.is_none(),
        claim,
        disk: Disk { available_bytes: 70_000, capacity_bytes: 90_000, inodes_free: 60, inodes: 80 },
        taken: Taken { bytes: 8192, inodes: Some(5) },
    }
}

/// A pod with a container, and one that uses the node's network and has nothing yet.
fn pods() -> Vec<PodUsage> {
    let container = ContainerUsage {
        name: "main".to_owned(),
        id: "c1".to_owned(),
        cgroup: "/kubepods/besteffort/podu1/c1".to_owned(),
        image: "docker.io/library/web:1".to_owned(),
        started_at: Some(second(1_700_000_100)),
        usage: usage(3, Some(64_000_000)),
        layer: Some(Taken { bytes: 4096, inodes: Some(3) }),
        logs: Taken { bytes: 512, inodes: Some(1) },
    };
    let sandbox = ContainerUsage {
        name: String::new(),
        id: "s1".to_owned(),
        cgroup: "/kubepods/besteffort/podu1/s1".to_owned(),
        image: "pause:3".to_owned(),
        started_at: Some(second(1_700_000_099)),
        usage: usage(1, None),
        ..ContainerUsage::default()
    };
    let pod = PodUsage {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        uid: "u1".to_owned(),
        cgroup: "/kubepods/besteffort/podu1".to_owned(),
        started_at: Some(second(1_700_000_098)),
        usage: usage(4, None),
        network: Some(vec![interface("eth0")]),
        sandbox: Some(sandbox),
        containers: vec![container],
        volumes: vec![volume("scratch", None), volume("data", Some("disk"))],
        hosts: Some(Taken { bytes: 4096, inodes: Some(1) }),
    };
    let on_the_node = PodUsage {
        namespace: "kube-system".to_owned(),
        name: "proxy".to_owned(),
        uid: "u2".to_owned(),
        cgroup: "/kubepods/podu2".to_owned(),
        ..PodUsage::default()
    };

    vec![pod, on_the_node]
}

fn look() -> Look {
    let disk = |inodes| Disk {
        available_bytes: 40_000,
        capacity_bytes: 100_000,
        inodes_free: inodes - 500,
        inodes,
    };
    let node = NodeUsage {
        name: "edge-1".to_owned(),
        started_at: Some(second(1_699_000_000)),
        usage: usage(100, None),
        pods_cgroup: "/kubepods".to_owned(),
        pods: usage(10, Some(900_000_000)),
        agent: Process {
            cpu_ns: 5_000_000_000,
            resident_bytes: 9_000_000,
            virtual_bytes: 90_000_000,
            open_files: 20,
            started_at: Some(second(1_699_000_010)),
            faults: 7,
            major_faults: 1,
        },
        network: vec![interface("wlan0")],
        disk: Some(disk(1000)),
        image_disk: Some((disk(2000), Taken { bytes: 30_000, inodes: None })),
        pids_max: 4_194_304,
        pids: Some(200),
        machine: Machine {
            cpus: 2,
            memory_bytes: 1 << 30,
            swap_bytes: 0,
            boot_id: "b".to_owned(),
            machine_id: "m".to_owned(),
            system_uuid: "s".to_owned(),
            kernel: "6.1.0".to_owned(),
            os_image: "Debian \"12\"".to_owned(),
        },
    };

    Look { at: Timestamp::from_millisecond(1_700_000_200_250).unwrap(), node, pods: pods() }
}

/// Numbers that differ, times `factor`.
fn usage(factor: u64, limit: Option<u64>) -> Usage {
    Usage {
        cpu: Some(Cpu {
            total_ns: factor * 1_250_000_000,
            user_ns: factor * 750_000_000,
            system_ns: factor * 500_000_000,
            periods: 30,
            throttled_periods: 4,
            throttled_ns: 1_000_000,
            shares: 102,
            quota_us: limit.map(|_| 20_000),
            period_us: 100_000,
            nano_cores: Some(factor * 10_000),
        }),
        memory: Some(Memory {
            usage: factor * 2_000_000,
            max_usage: Some(factor * 2_500_000),
            working_set: factor * 1_500_000,
            rss: factor * 1_000_000,
            cache: factor * 900_000,
            mapped_file: factor * 100_000,
            swap: 0,
            fail_count: 1,
            faults: factor * 1000,
            major_faults: 2,
            oom_kills: 0,
            limit,
            swap_limit: None,
        }),
        io: vec![Io {
            device: "/dev/sda".to_owned(),
            read_bytes: factor * 4096,
            written_bytes: factor * 8192,
            reads: factor,
            writes: factor * 2,
        }],
        tasks: Some(factor),
    }
}

fn check(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/usage/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(found, expected, "{name}");
}

fn pretty(json: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(json).unwrap();

    serde_json::to_string_pretty(&value).unwrap() + "\n"
}

#[test]
fn a_summary_is_as_written_down() {
    check("summary.json", &pretty(&summary::json(&look(), false).unwrap()));
    check("summary-cpu-memory.json", &pretty(&summary::json(&look(), true).unwrap()));
}

#[test]
fn metrics_are_as_written_down() {
    check("resource.txt", &resource::text(&look()));
    check("cadvisor.txt", &cadvisor::text(&look()));
}

#[test]
fn answers_of_probes_are_counted_by_result() {
    let probed = probes::Probed {
        namespace: "shop".to_owned(),
        pod: "web".to_owned(),
        uid: "u1".to_owned(),
        container: "main".to_owned(),
        kind: ProbeKind::Readiness,
        answers: Answers { successful: 3, failed: 1, unknown: 0 },
    };
    check("probes.txt", &probes::text(&[probed], Some(Timestamp::from_second(5).unwrap())));
}

#[test]
fn a_claim_is_told_of_once() {
    let mut text = text::Text::default();
    let volumes =
        [volume("scratch", None), volume("data", Some("disk")), volume("again", Some("disk"))];
    volumes::families(&mut text, &volumes);
    check("volumes.txt", &text.finish());
}

#[test]
fn what_is_not_known_is_an_error_and_not_a_zero() {
    let text = resource::text(&Look::default());
    assert!(text.contains("\nresource_scrape_error 1\n"), "{text}");
    assert!(!text.contains("\nnode_cpu_usage_seconds_total "), "{text}");
}
