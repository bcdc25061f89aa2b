//! What is told of the node as a whole: its health, its pods, its configuration, what everything uses,
//! and its logs.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use podcore::usage::text::{CONTENT_TYPE as METRICS, Kind, Text, Value, since_1970};
use podcore::usage::{Process, cadvisor, probes, resource, summary, volumes};
use proto::ids::ObjectKey;
use proto::wire::Health;
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::answer::{self, Answer, Refusal, refuse};
use super::query::Query;
use super::{Context, PodFacts, configz, health, node_logs};
use crate::config::Config;
use crate::desired::Desired;
use crate::link::{LinkState, Upstream};
use crate::node::facts::KUBELET_VERSION;
use crate::node::usage::{Detail, Usages};

/// First parts of paths that there are.
const KNOWN: [&str; 10] = [
    "healthz",
    "pods",
    "configz",
    "metrics",
    "stats",
    "logs",
    "containerLogs",
    "exec",
    "attach",
    "portForward",
];

const JSON: &str = "application/json";

/// What these answers are made of.
#[derive(Debug)]
pub struct NodeApi {
    /// How the agent is configured.
    pub config: Config,
    /// The pods as the API server has them.
    pub desired: Desired,
    /// What everything uses.
    pub usages: Usages,
    /// Whether the cloud is in reach.
    pub link: watch::Receiver<LinkState>,
    /// Whether the agent's loops turn.
    pub health: watch::Receiver<Health>,
    /// To the cloud.
    pub upstream: Upstream,
}

/// Answers what is not about one pod.
pub(super) async fn answer(
    context: &Context,
    path: &[&str],
    method: &Method,
    query: &Query,
) -> Answer {
    let is_known = path.first().is_some_and(|first| KNOWN.contains(first));
    let is_summary = matches!(path, ["stats", "summary"]) && *method == Method::POST;
    if is_known && *method != Method::GET && !is_summary {
        return answer::text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
    }
    let node = &context.node;
    let told = match path {
        ["healthz"] => Ok(health::all(*node.health.borrow(), query)),
        ["healthz", check] => health::one(check, *node.health.borrow()),
        ["pods"] => pods(context),
        ["configz"] => Ok(with_type(configz::json(&node.config), JSON)),
        ["metrics"] => Ok(with_type(own_metrics(context).await, METRICS)),
        ["metrics", "slis"] => Ok(with_type(health::slis(*node.health.borrow()), METRICS)),
        ["metrics", "probes"] => Ok(with_type(probe_metrics(context).await, METRICS)),
        ["metrics", "resource"] => {
            let look = node.usages.look(Detail::CpuAndMemory).await;
            look.map(|look| with_type(resource::text(&look), METRICS)).map_err(failed)
        }
        ["metrics", "cadvisor"] => {
            let look = node.usages.look(Detail::All).await;
            look.map(|look| with_type(cadvisor::text(&look), METRICS)).map_err(failed)
        }
        ["stats", "summary"] => stats(node, query).await,
        ["logs", rest @ ..] => node_logs::answer(rest, query).await,
        _ => Err(Refusal::not_found()),
    };

    told.unwrap_or_else(refuse)
}

fn with_type(body: impl Into<Bytes>, content_type: &'static str) -> Answer {
    let mut answer = answer::bytes(StatusCode::OK, body.into());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));

    answer
}

fn failed(error: impl std::error::Error) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

async fn stats(node: &NodeApi, query: &Query) -> Result<Answer, Refusal> {
    let only = query.first("only_cpu_and_memory") == Some("true");
    let detail = if only { Detail::CpuAndMemory } else { Detail::All };
    let mut look = node.usages.look_with_rates(detail).await.map_err(failed)?;
    if !only {
        node.usages.add_volumes(&node.desired, &mut look).await;
    }

    Ok(with_type(summary::json(&look, only).map_err(failed)?, JSON))
}

/// The pods as the API server has them, with the status that this node tells.
fn pods(context: &Context) -> Result<Answer, Refusal> {
    let mut list = br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":["#.to_vec();
    let mut is_first = true;
    for pod in context.pods.all() {
        let Some(object) = context.node.desired.get(&ObjectKey::pod(&pod.uid)) else { continue };
        if !std::mem::take(&mut is_first) {
            list.push(b',');
        }
        let object = with_status(&object.bytes, &pod).map_err(failed)?;
        serde_json::to_writer(&mut list, &object).map_err(failed)?;
    }
    list.extend_from_slice(b"]}");

    Ok(with_type(list, JSON))
}

fn with_status(
    object: &[u8],
    pod: &PodFacts,
) -> serde_json::Result<BTreeMap<String, Box<RawValue>>> {
    let mut object: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(object)?;
    if !pod.status.is_empty() {
        object.insert("status".to_owned(), serde_json::from_slice(&pod.status)?);
    }

    Ok(object)
}

async fn probe_metrics(context: &Context) -> String {
    let own = context.node.usages.own().await;
    let mut probed = Vec::new();
    for pod in context.pods.all() {
        for (container, kind, answers) in pod.answers {
            probed.push(probes::Probed {
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                uid: pod.uid.to_string(),
                container,
                kind,
                answers,
            });
        }
    }

    probes::text(&probed, own.started_at)
}

/// The agent's own, under the kubelet's names where it has them.
async fn own_metrics(context: &Context) -> String {
    let node = &context.node;
    let mut text = Text::default();
    process(&mut text, &node.usages.own().await);
    text.family("kubernetes_build_info", Kind::Gauge, "Constant 1, labeled by version.");
    text.sample(&[("git_version", KUBELET_VERSION)], Value::Count(1), None);
    text.family("kubelet_node_name", Kind::Gauge, "The node's name. The count is always 1.");
    text.sample(&[("node", node.config.node.as_str())], Value::Count(1), None);
    let pods = context.pods.all();
    let (running, containers) = (pods.iter().filter(|pod| pod.running > 0), &pods);
    let count = |number: usize| Value::Count(number as u64);
    let help = "Number of pods that have a running container.";
    text.single("kubelet_running_pods", Kind::Gauge, help, count(running.count()));
    text.family("kubelet_running_containers", Kind::Gauge, "Number of containers.");
    let containers = containers.iter().map(|pod| pod.running).sum();
    text.sample(&[("container_state", "running")], count(containers), None);
    volumes::families(&mut text, &node.usages.claimed_volumes(&node.desired).await);
    let is_up = matches!(*node.link.borrow(), LinkState::Up { .. });
    let help = "1 while the cloud is in reach, 0 otherwise.";
    text.single("holdfast_link_up", Kind::Gauge, help, is_up.into());
    let help = "Events that were dropped because too many waited for the cloud.";
    let dropped = Value::Count(node.upstream.dropped());
    text.single("holdfast_events_dropped_total", Kind::Counter, help, dropped);
    let Health { pod_loop_age_ms, runtime_age_ms, .. } = *node.health.borrow();
    let nanos = |ms: u32| Value::Nanos(u64::from(ms) * 1_000_000);
    let help = "How long ago the pod loop turned, at the last check.";
    text.single("holdfast_pod_loop_age_seconds", Kind::Gauge, help, nanos(pod_loop_age_ms));
    let help = "How long ago the runtime answered, at the last check.";
    text.single("holdfast_runtime_age_seconds", Kind::Gauge, help, nanos(runtime_age_ms));

    text.finish()
}

fn process(text: &mut Text, own: &Process) {
    for (name, kind, help, value) in [
        (
            "process_cpu_seconds_total",
            Kind::Counter,
            "Total user and system CPU time spent in seconds.",
            Value::Nanos(own.cpu_ns),
        ),
        (
            "process_resident_memory_bytes",
            Kind::Gauge,
            "Resident memory size in bytes.",
            Value::Count(own.resident_bytes),
        ),
        (
            "process_virtual_memory_bytes",
            Kind::Gauge,
            "Virtual memory size in bytes.",
            Value::Count(own.virtual_bytes),
        ),
        (
            "process_open_fds",
            Kind::Gauge,
            "Number of open file descriptors.",
            Value::Count(own.open_files),
        ),
        (
            "process_start_time_seconds",
            Kind::Gauge,
            "Start time of the process since unix epoch in seconds.",
            own.started_at.map_or(Value::Count(0), since_1970),
        ),
    ] {
        text.single(name, kind, help, value);
    }
}
