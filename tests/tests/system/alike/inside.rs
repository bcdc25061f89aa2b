//! What containers find inside, and what is around them on the node.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use cri::Runtime;
use cri_api::v1;
use serde_json::{Map, Value, json};
use system_tests::site::Site;

use super::general::Order;

const LIMIT: Duration = Duration::from_secs(30);

/// Run in every container that runs, by its own shell; `$@` are the paths of its mounts.
const LOOKS: [(&str, &str); 14] = [
    ("identity", "id; umask; pwd; hostname; hostname -f; tty"),
    ("resolver", "cat /etc/resolv.conf; stat -c '%a %u %g' /etc/resolv.conf"),
    ("hosts", "cat /etc/hosts; stat -c '%a %u %g' /etc/hosts"),
    ("environment", "tr '\\0' '\\n' </proc/$$/environ | sort"),
    ("first", "tr '\\0' ' ' </proc/1/cmdline; echo; tr '\\0' '\\n' </proc/1/environ | sort"),
    ("limits", "cat /proc/self/limits | tr -s ' '"),
    ("score", "cat /proc/self/oom_score_adj"),
    (
        "process",
        "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr '\\t' ' '; \
         cat /proc/self/attr/current 2>/dev/null",
    ),
    ("namespaces", "cd /proc/$$/ns; for ns in ipc net pid uts user; do readlink $ns; done"),
    ("mounts", "cat /proc/self/mountinfo"),
    (
        "groups",
        "cd /sys/fs/cgroup; for f in memory/memory.limit_in_bytes memory/memory.swappiness \
         cpu/cpu.shares cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us pids/pids.max \
         cpuset/cpuset.cpus devices/devices.list; do echo $f $(cat $f 2>&1); done",
    ),
    (
        "devices",
        "ls -1 /dev; stat -c '%a %u %g' /dev/termination-log; df -k /dev/shm | awk 'NR == 2 { print $2 }'; \
         cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range \
         /proc/sys/kernel/shm_rmid_forced",
    ),
    // A token's length varies with what it says, and a kubelet has more of its tmpfs writable by all.
    (
        "files",
        "[ $# = 0 ] || find -L \"$@\" | grep -v '/\\.\\.' | sort | while read -r f; do \
         s=%s; [ -d \"$f\" ] && s=; case $f in */token) s=;; esac; \
         stat -L -c \"%n %F %a %u %g $s\" \"$f\"; done; \
         [ $# = 0 ] || find \"$@\" -type l | grep -v '/\\.\\.[0-9]' | sort",
    ),
    (
        "content",
        "[ $# = 0 ] || find -L \"$@\" -type f -size -8k | grep -v '/\\.\\.' | sort | while read -r f; do \
         case $f in */token|*/ca.crt) ;; *) echo \"== $f\"; sed 's/config.seen=.*/config.seen=/' \"$f\"; echo;; esac; done",
    ),
];

/// The mount points of a container's volumes that may be walked: those of the host are large.
fn points(pod: &Value, name: &str) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let of_host: Vec<_> = volumes
        .filter(|volume| volume["hostPath"].is_object())
        .map(|volume| text(&volume["name"]))
        .collect();
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let containers = lists.iter().filter_map(|list| pod["spec"][list].as_array()).flatten();
    let mounts = containers
        .filter(|container| container["name"] == name)
        .filter_map(|container| container["volumeMounts"].as_array())
        .flatten();

    mounts
        .filter(|mount| !of_host.contains(&text(&mount["name"])))
        .map(|mount| text(&mount["mountPath"]))
        .collect()
}

/// What each running container of the pod sees, its log, and the pod's control group.
pub(crate) async fn looks(site: &Site, pod: &Value) -> Result<Value> {
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
    let runtime = Runtime::new(site.fact("RUNTIME")?)?;
    let mut seen = Map::new();
    let mut namespaces = Order::default();
    for kind in ["ipc", "net", "pid", "uts", "user"] {
        let own = fs::read_link(format!("/proc/self/ns/{kind}"))?;
        namespaces.of(&own.to_string_lossy());
    }
    for (name, id) in running(&runtime, uid).await? {
        if !is_told_to_run(pod, &name) {
            continue;
        }
        let looks = LOOKS.map(|(look, words)| format!("echo '@@ {look}'; ({words}) 2>&1;\n"));
        let script = looks.concat();
        let mut command = ["/bin/sh", "-c", &script, "sh"].map(str::to_owned).to_vec();
        command.extend(points(pod, &name));
        let said = runtime.exec_sync(&id, command, LIMIT).await;
        let said = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned());
        let said = said.unwrap_or_else(|error| format!("@@ error\n{error}"));
        seen.insert(name, sections(&said, &mut namespaces, site)?);
    }

    // A kubelet makes the group before it is needed, and removes it some time after.
    let group = if seen.is_empty() { json!([]) } else { group(site, uid)? };

    Ok(json!({ "inside": seen, "group": group }))
}

/// Whether the status said so: by now it may run again.
fn is_told_to_run(pod: &Value, name: &str) -> bool {
    let lists = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];
    let mut statuses = lists.iter().filter_map(|list| pod["status"][list].as_array()).flatten();

    statuses.any(|status| status["name"] == name && status["state"]["running"].is_object())
}

/// Ids of the pod's running containers by name.
async fn running(runtime: &Runtime, uid: &str) -> Result<BTreeMap<String, String>> {
    let listed = runtime.list_containers(None).await?;
    let label = |container: &v1::Container, name: &str| {
        container.labels.get(&format!("io.kubernetes.{name}")).cloned().unwrap_or_default()
    };
    let runs = |container: &v1::Container| {
        container.state() == v1::ContainerState::ContainerRunning
            && label(container, "pod.uid") == uid
    };

    Ok(listed.into_iter().filter(runs).map(|c| (label(&c, "container.name"), c.id)).collect())
}

/// The lines of each look.
fn sections(said: &str, namespaces: &mut Order, site: &Site) -> Result<Value> {
    let mut sections = Map::new();
    for section in said.split("@@ ").skip(1) {
        let (name, text) = section.split_once('\n').unwrap_or((section, ""));
        let lines = text.lines().map(str::trim_end);
        let lines: Vec<String> = match name {
            "mounts" => {
                let mut mounts: Vec<_> =
                    lines.map(|line| mount(line, site)).collect::<Result<_>>()?;
                mounts.sort();
                mounts
            }
            "namespaces" => lines.map(|ns| namespaces.of(ns).to_string()).collect(),
            "resolver" => lines.map(unordered).collect(),
            _ => lines.map(str::to_owned).collect(),
        };
        sections.insert(name.to_owned(), json!(lines));
    }

    Ok(Value::Object(sections))
}

/// A line of resolv.conf with its options in order: a kubelet has them as its map gives them
/// (`mergeDNSOptions`).
fn unordered(line: &str) -> String {
    let mut words: Vec<_> = line.split(' ').collect();
    if let ["options", options @ ..] = words.as_mut_slice() {
        options.sort_unstable();
    }

    words.join(" ")
}

/// A line of mountinfo without numbers, and without where the runtime keeps its own.
fn mount(line: &str, site: &Site) -> Result<String> {
    let (left, right) = line.split_once(" - ").unwrap_or((line, ""));
    let fields: Vec<_> = left.split(' ').collect();
    let field = |at: usize| fields.get(at).copied().unwrap_or_default();
    let shared = fields.iter().skip(6).filter_map(|tag| tag.split(':').next());
    let shared: Vec<_> = shared.collect();
    let kind = right.split(' ').next().unwrap_or_default();
    let root = field(3)
        .replace(site.fact("STATE")?, "STATE")
        .replace(&site.runtime_folder()?.display().to_string(), "RUN");
    let mut options = right.split(' ').nth(2).unwrap_or_default();
    if kind == "overlay" || kind == "ext4" || kind == "cgroup" {
        options = "";
    }
    let root = if kind == "cgroup" { "" } else { &root };
    let root: Vec<_> = root.split('/').map(without_chance).collect();
    let root = root.join("/");

    Ok(format!("{} {kind} {} {root} {} {options}", field(4), field(5), shared.join(",")))
}

/// A part of a path, unless it is one that is made up: of a file for last words, of a volume's content.
fn without_chance(part: &str) -> &str {
    let is_hex = part.len() == 8 && part.chars().all(|c| c.is_ascii_hexdigit());
    if is_hex {
        "HEX"
    } else if part.starts_with("..") && part.len() > 2 {
        "..TIME"
    } else {
        part
    }
}

/// What the pod as a whole is limited to.
fn group(site: &Site, uid: &str) -> Result<Value> {
    let top = Path::new("/sys/fs/cgroup");
    let files = [
        "memory/memory.limit_in_bytes",
        "cpu/cpu.shares",
        "cpu/cpu.cfs_quota_us",
        "cpu/cpu.cfs_period_us",
        "pids/pids.max",
        "hugetlb/hugetlb.2MB.limit_in_bytes",
    ];
    let mut found = Vec::new();
    for file in files {
        let (hierarchy, file) = file.split_once('/').unwrap_or_default();
        let own = site.fact("CGROUP_ROOT")?.trim_start_matches('/').to_owned();
        for class in ["", "burstable/", "besteffort/"] {
            let place = format!("kubepods/{class}pod{uid}/{file}");
            let path = top.join(hierarchy).join(&own).join(place);
            if let Ok(text) = fs::read_to_string(path) {
                found.push(format!("{class}{file} {}", text.trim()));
            }
        }
    }

    Ok(json!(found))
}
