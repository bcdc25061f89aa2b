//! Whether a pod is where its case wants it to be compared.

use serde_json::Value;
use system_tests::pods;

fn all(pod: &Value, list: &str) -> Vec<Value> {
    pod["status"][list].as_array().cloned().unwrap_or_default()
}

fn runs(status: &Value) -> bool {
    !status["state"]["running"].is_null()
}

fn has_ended(status: &Value) -> bool {
    !status["state"]["terminated"].is_null()
}

/// Where a pod is compared: `ready`; `starting` with an init container that runs; `unready`, with all
/// that run and one that is not ready; `ephemeral`, with an ephemeral container that runs; `stopped`, with
/// nothing that runs of a pod that is deleted; otherwise a phase, or the reason why a container waits.
/// Where runtimes differ, one `or` the other.
pub(super) fn has_come(when: &str, pod: &Value) -> bool {
    when.split(" or ").any(|when| match when {
        "ready" => pods::is_ready(pod),
        "starting" => all(pod, "initContainerStatuses").iter().any(runs),
        "unready" => {
            let main = all(pod, "containerStatuses");
            let is_up = |status| runs(status) || has_ended(status);
            !main.is_empty() && main.iter().all(is_up) && !pods::is_ready(pod)
        }
        "ephemeral" => all(pod, "ephemeralContainerStatuses").iter().any(runs),
        "stopped" => has_stopped(pod),
        word => ended_or_waits(word, pod),
    })
}

fn has_stopped(pod: &Value) -> bool {
    let (init, main) = (all(pod, "initContainerStatuses"), all(pod, "containerStatuses"));
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();

    !main.is_empty()
        && pods::condition(pod, "PodReadyToStartContainers") == Some("False")
        && init.iter().chain(&main).all(has_ended)
        && matches!(phase, "Succeeded" | "Failed")
}

fn ended_or_waits(word: &str, pod: &Value) -> bool {
    let (init, main) = (all(pod, "initContainerStatuses"), all(pod, "containerStatuses"));
    let waits = |status: &Value| status["state"]["waiting"]["reason"] == word;
    let has_network = pods::condition(pod, "PodReadyToStartContainers") == Some("True");
    let begins = |status: &Value| {
        word != "ContainerCreating" && status["state"]["waiting"]["reason"] == "ContainerCreating"
    };
    let mut all = init.iter().chain(&main);

    pod["status"]["phase"] == word && !has_network
        || all.clone().any(waits)
            && !all.any(begins)
            && (has_network || word == "ContainerCreating")
}
