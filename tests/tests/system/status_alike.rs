//! The status of the same pod is what a stock kubelet says of it, field by field.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::stock::StockNode;
use system_tests::{api, pods};

/// Until a pod is where its case wants it: some crash, and wait for their next start.
const LIMIT: Duration = Duration::from_secs(100);

/// What differs and why; a case, `*` for all, and a JSON pointer into the status.
const ALLOWED: [(&str, &str, &str); 2] = [
    (
        "bad-image",
        "/containerStatuses/0/state/waiting/message",
        "the runtime's words, not the kubelet's",
    ),
    (
        "init-rule",
        "/initContainerStatuses/0/lastState/terminated",
        "the end before is not forgotten",
    ),
];

/// Pods compared at the same time: all together would only wait for each other.
const AT_ONCE: usize = 12;

/// Where a pod is compared: `ready`; `starting` with an init container that runs; `unready`, with all
/// that run and one that is not ready; otherwise a phase, or the reason why a container waits.
fn has_come(when: &str, pod: &Value) -> bool {
    let status = &pod["status"];
    let all = |list: &str| status[list].as_array().cloned().unwrap_or_default();
    let (init, main) = (all("initContainerStatuses"), all("containerStatuses"));
    let runs = |status: &Value| !status["state"]["running"].is_null();
    match when {
        "ready" => pods::is_ready(pod),
        "starting" => init.iter().any(runs),
        "unready" => {
            let is_up = |status| runs(status) || !status["state"]["terminated"].is_null();
            !main.is_empty() && main.iter().all(is_up) && !pods::is_ready(pod)
        }
        word => {
            let waits = |status: &Value| status["state"]["waiting"]["reason"] == word;
            let has_network = pods::condition(pod, "PodReadyToStartContainers") == Some("True");
            let begins = |status: &Value| {
                word != "ContainerCreating"
                    && status["state"]["waiting"]["reason"] == "ContainerCreating"
            };
            let mut all = init.iter().chain(&main);
            status["phase"] == word && !has_network
                || all.clone().any(waits)
                    && !all.any(begins)
                    && (has_network || word == "ContainerCreating")
        }
    }
}

/// The cases, whose containers sleep unless they have a `script`; those that `HOLDFAST_CASES` names, if
/// it does.
fn cases() -> Result<Vec<Value>> {
    let mut cases: Vec<Value> = serde_json::from_str(include_str!("status_alike/cases.json"))?;
    for list in ["initContainers", "containers"] {
        for container in cases.iter_mut().filter_map(|case| case[list].as_array_mut()).flatten() {
            let sleeps = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";
            let script = container["script"].as_str().unwrap_or(sleeps).to_owned();
            let usual = json!({
                "image": pods::BUSYBOX, "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-c", script],
            });
            if let (Value::Object(container), Value::Object(usual)) = (container, usual) {
                container.remove("script");
                for (field, value) in usual {
                    container.entry(field).or_insert(value);
                }
            }
        }
    }

    let chosen = std::env::var("HOLDFAST_CASES").unwrap_or_default();
    cases.retain(|case| chosen.is_empty() || chosen.split(' ').any(|name| case["name"] == name));

    Ok(cases)
}

fn word<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap_or_default()
}

fn pod(case: &Value, name: &str, node: &str) -> Value {
    let mut spec = case.clone();
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("name");
        spec.remove("when");
    }
    spec["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
    spec["terminationGracePeriodSeconds"] = json!(2);

    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default" }, "spec": spec,
    })
}

/// The status without what differs from pod to pod and from moment to moment.
fn status(pod: &Value) -> Value {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut words = BTreeMap::from([
        (text(&pod["metadata"]["uid"]), "UID"),
        (text(&pod["metadata"]["name"]), "POD"),
        (text(&pod["spec"]["nodeName"]), "NODE"),
    ]);
    for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
        if word(volume, "name").starts_with("kube-api-access-") {
            words.insert(text(&volume["name"]), "TOKEN");
        }
    }
    for field in ["podIP", "hostIP"] {
        words.insert(text(&pod["status"][field]), "IP");
    }
    words.remove("");
    let mut status = pod["status"].clone();
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions.sort_by_key(|condition| text(&condition["type"]));
    }
    plain(&mut status, &words);
    // The protection from eviction is a change of the pod on an edge node.
    current(&mut status, &pod["metadata"]["generation"]);

    status
}

fn plain(value: &mut Value, words: &BTreeMap<String, &str>) {
    match value {
        Value::String(text) => {
            for (word, general) in words {
                *text = text.replace(word, general);
            }
            if text.starts_with("20") && text.ends_with('Z') && text.contains('T') {
                "TIME".clone_into(text);
            }
            if text.starts_with("containerd://") {
                "ID".clone_into(text);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| plain(item, words)),
        Value::Object(fields) => fields.values_mut().for_each(|field| plain(field, words)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Leaves of an `observedGeneration` whether it is the pod's.
fn current(value: &mut Value, generation: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if name == "observedGeneration" {
                    *field = json!(*field == *generation);
                } else {
                    current(field, generation);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| current(item, generation)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Each pointer at which the two differ.
fn differences(at: &str, ours: &Value, stock: &Value, found: &mut Vec<(String, String)>) {
    match (ours, stock) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                differences(
                    &format!("{at}/{key}"),
                    &ours[key.as_str()],
                    &stock[key.as_str()],
                    found,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{at}/{index}"), a, b, found);
            }
        }
        _ if ours == stock => {}
        _ => found.push((at.to_owned(), format!("{ours} but a kubelet says {stock}"))),
    }
}

fn unlisted(case: &str, found: Vec<(String, String)>) -> Vec<String> {
    let is_allowed = |at: &str| {
        ALLOWED.iter().any(|(name, pointer, _)| (*name == case || *name == "*") && *pointer == at)
    };

    found
        .into_iter()
        .filter(|(at, _)| !is_allowed(at))
        .map(|(at, what)| format!("{case}: {at}: {what}"))
        .collect()
}

async fn told(cluster: &Cluster, client: &Client, case: &Value, name: &str) -> Result<Value> {
    let (path, when) = (pods::path(name), word(case, "when"));
    let pod = cluster.until(client, &path, when, LIMIT, |pod| has_come(when, pod)).await?;

    Ok(status(&pod))
}

#[tokio::test]
async fn a_status_is_as_a_stock_kubelet_tells_it() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let (ours, stock) =
        tokio::try_join!(EdgeNode::join(&cluster, &client), StockNode::up(&cluster))?;
    let run = unique();
    let pair = |case: &Value| {
        [("here", ours.name()), ("else", stock.name())]
            .map(|(side, node)| (format!("{side}-{}-{run}", word(case, "name")), node))
    };
    let mut unlike = Vec::new();
    for group in cases()?.chunks(AT_ONCE) {
        for case in group {
            for (name, node) in pair(case) {
                let pod = pod(case, &name, node);
                api::create(&client, "/api/v1/namespaces/default/pods", &pod).await?;
            }
        }
        let both = group.iter().map(|case| {
            let [(here, _), (there, _)] = pair(case);
            let (cluster, client) = (&cluster, &client);
            async move {
                tokio::try_join!(
                    told(cluster, client, case, &here),
                    told(cluster, client, case, &there)
                )
            }
        });
        for (case, both) in group.iter().zip(join_all(both).await) {
            let name = word(case, "name");
            match both {
                Ok((here, there)) => {
                    let mut found = Vec::new();
                    differences("", &here, &there, &mut found);
                    unlike.extend(unlisted(name, found));
                }
                Err(error) => unlike.push(format!("{name}: {error}")),
            }
        }
        for (name, _) in group.iter().flat_map(pair) {
            api::delete(&client, &pods::path(&name), Some(0)).await?;
        }
    }
    ensure!(unlike.is_empty(), "{}", unlike.join("\n"));

    Ok(())
}
