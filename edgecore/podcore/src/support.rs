//! What a pod may ask for that this build does not do. Such a pod is refused with the reason: it is
//! never started without what it asked for.

mod volumes;

use k8s_openapi::api::core::v1::{Container, PodSecurityContext, PodSpec, SecurityContext};

use crate::admission::Refusal;
use crate::memory::UNSUPPORTED;
use crate::pod::PodView;

/// Why the pod cannot run here; `None` if it can.
pub fn refuse(pod: &PodView) -> Option<Refusal> {
    let spec = pod.spec();
    let mut refused = Vec::new();
    of_spec(spec, &mut refused);
    for volume in spec.volumes.as_deref().unwrap_or_default() {
        volumes::of_volume(volume, &mut refused);
    }
    for container in pod.admitted_containers() {
        of_container(container, &mut refused);
    }

    said(&refused).map(|message| Refusal { reason: UNSUPPORTED.to_owned(), message })
}

/// Why one container cannot run here: an ephemeral one comes to a pod that was taken in.
pub fn refuse_container(container: &Container) -> Option<String> {
    let mut refused = Vec::new();
    of_container(container, &mut refused);

    said(&refused)
}

fn said(refused: &[String]) -> Option<String> {
    if refused.is_empty() {
        return None;
    }

    Some(format!("this node does not support {}", refused.join(", ")))
}

fn of_spec(spec: &PodSpec, refused: &mut Vec<String>) {
    let asked = [("resourceClaims", spec.resource_claims.as_ref().is_some_and(|v| !v.is_empty()))];
    push_asked("", &asked, refused);
    if let Some(context) = &spec.security_context {
        of_pod_security(context, refused);
    }
}

fn push_asked(prefix: &str, asked: &[(&str, bool)], refused: &mut Vec<String>) {
    let names = asked.iter().filter(|(_, asked)| *asked).map(|(name, _)| format!("{prefix}{name}"));
    refused.extend(names);
}

fn of_pod_security(context: &PodSecurityContext, refused: &mut Vec<String>) {
    let asked = [("windowsOptions", context.windows_options.is_some())];
    push_asked("securityContext.", &asked, refused);
}

fn of_container(container: &Container, refused: &mut Vec<String>) {
    let prefix = format!("{}: ", container.name);
    let asked = [
        ("volumeDevices", container.volume_devices.as_ref().is_some_and(|v| !v.is_empty())),
        (
            "restartPolicyRules of another action than Restart",
            container.restart_policy_rules.iter().flatten().any(|rule| rule.action != "Restart"),
        ),
    ];
    push_asked(&prefix, &asked, refused);
    if let Some(lifecycle) = &container.lifecycle {
        let hooks = [&lifecycle.post_start, &lifecycle.pre_stop];
        let tcp = hooks.into_iter().flatten().any(|hook| hook.tcp_socket.is_some());
        let asked = [("stopSignal", lifecycle.stop_signal.is_some()), ("tcpSocket", tcp)];
        push_asked(&format!("{prefix}lifecycle."), &asked, refused);
    }
    let claims = container.resources.as_ref().and_then(|resources| resources.claims.as_ref());
    push_asked(&prefix, &[("resources.claims", claims.is_some_and(|v| !v.is_empty()))], refused);
    for mount in container.volume_mounts.as_deref().unwrap_or_default() {
        let options = mount.bind_mount_options.as_ref().is_some_and(|options| !options.is_empty());
        push_asked(&prefix, &[("bindMountOptions", options)], refused);
    }
    if let Some(context) = &container.security_context {
        of_security(&prefix, context, refused);
    }
}

fn of_security(prefix: &str, context: &SecurityContext, refused: &mut Vec<String>) {
    let asked = [("windowsOptions", context.windows_options.is_some())];
    push_asked(&format!("{prefix}securityContext."), &asked, refused);
}

#[cfg(test)]
mod tests;
