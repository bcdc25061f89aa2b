//! The sysctls that a pod may set: those that are namespaced and cannot hurt other pods
//! (`pkg/kubelet/sysctl`).

use super::Refusal;
use crate::pod::PodView;

/// kubelet: `safeSysctls`.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

pub(super) fn check(pod: &PodView) -> Result<(), Refusal> {
    let context = pod.spec().security_context.as_ref();
    for sysctl in context.and_then(|context| context.sysctls.as_deref()).unwrap_or_default() {
        let name = normal(&sysctl.name);
        let shared = match name.split_once('.').map(|(first, _)| first) {
            Some("net") if pod.host_network() => Some("Net"),
            Some("kernel") if pod.spec().host_ipc == Some(true) => Some("IPC"),
            _ => None,
        };
        let why = match shared {
            _ if !SAFE.contains(&name.as_str()) => format!("{name:?} not allowlisted"),
            Some(namespace) => format!("{name:?} not allowed with host {namespace} enabled"),
            None => continue,
        };
        return Err(Refusal::new("SysctlForbidden", format!("forbidden sysctl: {why}")));
    }

    Ok(())
}

/// With dots between its parts, however it was written (`sysctl.NormalizeName`).
fn normal(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => {
            let swapped = name.chars().map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            });
            swapped.collect()
        }
        Some(_) | None => name.to_owned(),
    }
}
