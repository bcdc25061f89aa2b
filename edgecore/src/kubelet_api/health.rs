//! `/healthz` and `/metrics/slis`: whether the agent works, to people and probes and to Prometheus
//! (`k8s.io/apiserver/pkg/server/healthz`, `k8s.io/component-base/metrics/prometheus/slis`).

use http::StatusCode;
use podcore::usage::text::{Kind, Text};
use proto::wire::Health;

use super::answer::{self, Answer, Refusal};
use super::query::Query;

/// The pod loop turns every few seconds; a node whose loop does not is not healthy.
const LOOP_AGE_MAX_MS: u32 = 30_000;

/// What a kubelet checks. The first two only ask whether there is an answer at all.
const CHECKS: [&str; 3] = ["ping", "log", "syncloop"];

fn failure(check: &str, health: Health) -> Option<String> {
    let age_ms = Some(health.pod_loop_age_ms).filter(|age_ms| *age_ms > LOOP_AGE_MAX_MS)?;

    (check == "syncloop").then(|| format!("the loop has not turned for {} s", age_ms / 1000))
}

/// All checks together.
pub(super) fn all(health: Health, query: &Query) -> Answer {
    let lines = CHECKS.map(|check| match failure(check, health) {
        None => format!("[+]{check} ok\n"),
        Some(reason) => format!("[-]{check} failed: {reason}\n"),
    });
    let lines = lines.concat();
    if CHECKS.iter().any(|check| failure(check, health).is_some()) {
        let text = format!("{lines}healthz check failed\n");
        return answer::text(StatusCode::INTERNAL_SERVER_ERROR, text);
    }
    if query.first("verbose").is_some() {
        return answer::text(StatusCode::OK, format!("{lines}healthz check passed\n"));
    }

    answer::text(StatusCode::OK, "ok")
}

/// The check of that name.
pub(super) fn one(check: &str, health: Health) -> Result<Answer, Refusal> {
    if !CHECKS.contains(&check) {
        return Err(Refusal::not_found());
    }

    Ok(match failure(check, health) {
        None => answer::text(StatusCode::OK, "ok"),
        Some(reason) => {
            let text = format!("internal server error: {reason}\n");
            answer::text(StatusCode::INTERNAL_SERVER_ERROR, text)
        }
    })
}

/// What the checks say now.
pub(super) fn slis(health: Health) -> String {
    let mut text = Text::default();
    let help = "[STABLE] This metric records the result of a single healthcheck.";
    text.family("kubernetes_healthcheck", Kind::Gauge, help);
    for check in CHECKS {
        let is_well = failure(check, health).is_none();
        text.sample(&[("name", check), ("type", "healthz")], is_well.into(), None);
    }

    text.finish()
}
