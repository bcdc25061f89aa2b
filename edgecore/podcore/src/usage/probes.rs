//! `/metrics/probes`: how often probes asked and what the answers were (kubelet:
//! `pkg/kubelet/prober/prober_manager.go`).

use jiff::Timestamp;

use super::text::{Kind, Text, Value, since_1970};
use crate::probe::{Answers, ProbeKind};

/// The answers to one probe of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub uid: String,
    /// Name of the container.
    pub container: String,
    /// Which of its probes.
    pub kind: ProbeKind,
    /// How often it gave which answer.
    pub answers: Answers,
}

/// The text; `started_at` is when the agent started, from when it counts.
pub fn text(probed: &[Probed], started_at: Option<Timestamp>) -> String {
    let mut text = Text::default();
    if let Some(started_at) = started_at {
        let help = "Start time of the process since unix epoch in seconds.";
        text.single("process_start_time_seconds", Kind::Gauge, help, since_1970(started_at));
    }
    let help = "[BETA] Cumulative number of a liveness, readiness or startup probe for a container \
                by result.";
    text.family("prober_probe_total", Kind::Counter, help);
    for probe in probed {
        let Answers { successful, failed, unknown } = probe.answers;
        for (result, count) in
            [("successful", successful), ("failed", failed), ("unknown", unknown)]
        {
            let labels = [
                ("container", probe.container.as_str()),
                ("namespace", &probe.namespace),
                ("pod", &probe.pod),
                ("pod_uid", &probe.uid),
                ("probe_type", probe.kind.name()),
                ("result", result),
            ];
            if count > 0 {
                text.sample(&labels, Value::Count(count), None);
            }
        }
    }

    text.finish()
}
