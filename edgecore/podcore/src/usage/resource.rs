//! `/metrics/resource`: what metrics-server asks for (kubelet:
//! `pkg/kubelet/metrics/collectors/resource_metrics.go`).

use super::text::{Kind, Text, Value, since_1970};
use super::{ContainerUsage, Look, PodUsage, Usage};

/// A family, and what a cgroup gives to it.
struct Family {
    suffix: Suffix,
    kind: Kind,
    value: fn(&Usage) -> Option<Value>,
}

/// Names and descriptions of a family by what it is about.
struct Suffix {
    node: (&'static str, &'static str),
    container: (&'static str, &'static str),
    pod: (&'static str, &'static str),
}

const FAMILIES: [Family; 3] = [
    Family {
        suffix: Suffix {
            node: (
                "node_cpu_usage_seconds_total",
                "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
            ),
            container: (
                "container_cpu_usage_seconds_total",
                "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
            ),
            pod: (
                "pod_cpu_usage_seconds_total",
                "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
            ),
        },
        kind: Kind::Counter,
        value: |usage| usage.cpu.map(|cpu| Value::Nanos(cpu.total_ns)),
    },
    Family {
        suffix: Suffix {
            node: (
                "node_memory_working_set_bytes",
                "[STABLE] Current working set of the node in bytes",
            ),
            container: (
                "container_memory_working_set_bytes",
                "[STABLE] Current working set of the container in bytes",
            ),
            pod: (
                "pod_memory_working_set_bytes",
                "[STABLE] Current working set of the pod in bytes",
            ),
        },
        kind: Kind::Gauge,
        value: |usage| usage.memory.map(|memory| Value::Count(memory.working_set)),
    },
    Family {
        suffix: Suffix {
            node: ("node_swap_usage_bytes", "[ALPHA] Current swap usage of the node in bytes"),
            container: (
                "container_swap_usage_bytes",
                "[ALPHA] Current amount of the container swap usage in bytes",
            ),
            pod: ("pod_swap_usage_bytes", "[ALPHA] Current amount of the pod swap usage in bytes"),
        },
        kind: Kind::Gauge,
        value: |usage| usage.memory.map(|memory| Value::Count(memory.swap)),
    },
];

/// The text.
pub fn text(look: &Look) -> String {
    let mut text = Text::default();
    let at = Some(look.at);
    let failed = Value::from(look.node.usage.cpu.is_none() || look.node.usage.memory.is_none());
    for Family { suffix, kind, value } in &FAMILIES {
        text.family(suffix.container.0, *kind, suffix.container.1);
        for (pod, container) in containers(look) {
            if let Some(value) = value(&container.usage) {
                text.sample(&labels(pod, container), value, at);
            }
        }
        text.family(suffix.pod.0, *kind, suffix.pod.1);
        for pod in &look.pods {
            if let Some(value) = value(&pod.usage) {
                text.sample(&labels(pod, &ContainerUsage::default())[1..], value, at);
            }
        }
        text.family(suffix.node.0, *kind, suffix.node.1);
        if let Some(value) = value(&look.node.usage) {
            text.sample(&[], value, at);
        }
    }
    let started = "[STABLE] Start time of the container since unix epoch in seconds";
    text.family("container_start_time_seconds", Kind::Gauge, started);
    for (pod, container) in containers(look) {
        if let Some(started_at) = container.started_at {
            text.sample(&labels(pod, container), since_1970(started_at), None);
        }
    }
    let help = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    text.single("resource_scrape_error", Kind::Gauge, help, failed);
    let help = "[ALPHA] (Deprecated since 1.29.0) 1 if there was an error while getting container \
                metrics, 0 otherwise";
    text.single("scrape_error", Kind::Gauge, help, failed);

    text.finish()
}

fn containers(look: &Look) -> impl Iterator<Item = (&PodUsage, &ContainerUsage)> {
    look.pods.iter().flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
}

fn labels<'a>(pod: &'a PodUsage, container: &'a ContainerUsage) -> [(&'static str, &'a str); 3] {
    [("container", &container.name), ("namespace", &pod.namespace), ("pod", &pod.name)]
}
