//! A pod is on an edge node as it is on one with a stock kubelet: its status, its Events, what its
//! containers find inside, and its control group.
//!
//! The pods are in `alike/cases.json`, what may differ and why in `alike/allowed.json`. A difference that
//! is not listed fails, and so does one that is listed and is none. `HOLDFAST_CASES` names cases to run, or
//! is `all`; otherwise a sample is taken, by the seed that is printed.

pub(crate) mod general;
mod inside;
mod reached;
mod surroundings;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use futures_util::stream::iter;
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::dice::Dice;
use system_tests::node::EdgeNode;
use system_tests::site::Site;
use system_tests::stock::StockNode;
use system_tests::{api, pods, wait};

use general::{Allowed, Words, differences};
use reached::has_come;
use surroundings::{add_profile, surroundings};

/// Until a pod is where its case wants it: some crash, and wait for their next start.
const LIMIT: Duration = Duration::from_secs(100);

/// Until both have the same status: restarts are counted at other moments.
const STATUS_LIMIT: Duration = Duration::from_secs(100);

/// Until both have told the same: a kubelet that starts many pods has many Events to send.
const EVENTS_LIMIT: Duration = Duration::from_secs(100);

/// Cases that are compared at the same time: all together would only wait for each other.
const AT_ONCE: usize = 12;

/// Cases of a run that was not told otherwise.
const SAMPLE: usize = 60;

/// What holds a deleted pod until its last status was read.
const FINALIZER: &str = "holdfast.dev/compared";

const GATE: &str = "holdfast.dev/gate";

/// Stands in cases for the prefix of the side.
const SIDE: &str = "$SIDE";

/// What is not the pod's in a case.
const OWN: [&str; 7] = ["name", "when", "tells", "ephemeral", "bound", "of", "changes"];

/// The cases, whose containers sleep unless they have a `script`.
fn cases() -> Result<Vec<Value>> {
    let mut cases: Vec<Value> = serde_json::from_str(include_str!("alike/cases.json"))?;
    for list in ["initContainers", "containers", "ephemeral"] {
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

    Ok(cases)
}

/// Those to run, and whether these are all.
fn chosen(mut cases: Vec<Value>, seed: u64) -> (Vec<Value>, bool) {
    let told = std::env::var("HOLDFAST_CASES").unwrap_or_default();
    if told == "all" {
        return (cases, true);
    }
    if told.is_empty() {
        Dice::new(seed).shuffle(&mut cases);
        cases.truncate(SAMPLE);
    } else {
        cases.retain(|case| told.split(' ').any(|name| case["name"] == name));
    }

    (cases, false)
}

fn word<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap_or_default()
}

/// A node to compare on.
#[derive(Clone, Copy)]
struct Side<'a> {
    prefix: &'a str,
    node: &'a str,
    site: &'a Site,
}

/// A pod, and what was seen in it when it was where its case wants it.
struct Seen {
    path: String,
    pod: Value,
    inside: Value,
}

struct World {
    cluster: Cluster,
    client: Client,
    namespace: String,
    allowed: Allowed,
}

impl World {
    async fn up(cluster: Cluster, client: Client, sides: [Side<'_>; 2]) -> Result<Self> {
        let namespace = format!("alike-{}", unique());
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace },
        });
        api::create(&client, "/api/v1/namespaces", &object).await?;
        let account = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
        cluster.until(&client, &account, "there", LIMIT, |_| true).await?;
        cluster.apply(&surroundings(&namespace, sides)).await?;
        // Pods are scheduled a moment earlier, and only one of the two nodes may see that.
        let claim = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/some");
        let is_bound = |claim: &Value| claim["status"]["phase"] == "Bound";
        cluster.until(&client, &claim, "Bound", LIMIT, is_bound).await?;
        for side in sides {
            add_profile(side.site).await?;
        }

        let allowed = Allowed::read(include_str!("alike/allowed.json"))?;

        Ok(Self { cluster, client, namespace, allowed })
    }

    fn pods(&self) -> String {
        format!("/api/v1/namespaces/{}/pods", self.namespace)
    }

    /// The pod of a case: for the scheduler, unless it is `bound` already.
    fn pod(&self, case: &Value, side: Side<'_>) -> Result<Value> {
        let name = word(case, "name");
        let mut spec: Value = serde_json::from_str(&case.to_string().replace(SIDE, side.prefix))?;
        let mut metadata = json!({
            "name": format!("{}-{name}", side.prefix), "namespace": self.namespace,
            "labels": { "app": name }, "annotations": { "note": "a note" },
        });
        if let Some(spec) = spec.as_object_mut() {
            for own in OWN {
                spec.remove(own);
            }
            spec.entry("terminationGracePeriodSeconds").or_insert_with(|| json!(2));
        }
        if word(case, "when") == "stopped" {
            metadata["finalizers"] = json!([FINALIZER]);
        }
        if case["bound"] == true {
            spec["nodeName"] = json!(side.node);
        } else {
            spec["nodeSelector"] = json!({ "kubernetes.io/hostname": side.node });
        }

        Ok(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec }))
    }

    /// Makes what a case is about; gives the path of the pod. The pod may be one `of` something else: then
    /// it is the first.
    async fn make(&self, case: &Value, side: Side<'_>) -> Result<String> {
        let pod = self.pod(case, side)?;
        let mut metadata = pod["metadata"].clone();
        let Some(owners) = self.owners(case) else {
            api::create(&self.client, &self.pods(), &pod).await?;
            return Ok(format!("{}/{}", self.pods(), word(&metadata, "name")));
        };
        let owner = json!({ "name": metadata["name"], "namespace": metadata["namespace"] });
        metadata["labels"]["side"] = json!(side.prefix);
        let labels = metadata["labels"].clone();
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.remove("name");
        }
        let (kind, mut spec) = (word(&case["of"], "kind"), case["of"]["spec"].clone());
        spec["template"] = json!({ "metadata": metadata, "spec": pod["spec"] });
        if kind != "Job" {
            spec["selector"] = json!({ "matchLabels": labels });
        }
        let version = owners.trim_start_matches("/apis/").split("/namespaces").next();
        let object =
            json!({ "apiVersion": version, "kind": kind, "metadata": owner, "spec": spec });
        api::create(&self.client, &owners, &object).await?;
        let of = format!(
            "{}?labelSelector=app%3D{},side%3D{}",
            self.pods(),
            word(case, "name"),
            side.prefix
        );
        let first = |list: &Value| list["items"][0].is_object();
        let list = self.cluster.until(&self.client, &of, "a pod", LIMIT, first).await?;

        Ok(format!("{}/{}", self.pods(), word(&list["items"][0]["metadata"], "name")))
    }

    /// Where objects are whose pods a case is about.
    fn owners(&self, case: &Value) -> Option<String> {
        let group = match word(&case["of"], "kind") {
            "" => return None,
            "Job" => "batch",
            _ => "apps",
        };
        let kind = word(&case["of"], "kind").to_lowercase();

        Some(format!("/apis/{group}/v1/namespaces/{}/{kind}s", self.namespace))
    }

    async fn until(&self, path: &str, when: &str) -> Result<Value> {
        self.cluster.until(&self.client, path, when, LIMIT, |pod| has_come(when, pod)).await
    }

    /// Brings the pod of a case where it is compared.
    async fn reach(&self, case: &Value, side: Side<'_>, path: &str) -> Result<Value> {
        let when = word(case, "when");
        match when {
            "stopped" if case["of"].is_null() => {
                self.until(path, "ready").await?;
                api::delete(&self.client, path, None).await?;
            }
            "ephemeral" => {
                self.until(path, "ready").await?;
                let patch = json!({ "spec": { "ephemeralContainers": case["ephemeral"] } });
                let of = format!("{path}/ephemeralcontainers");
                api::strategic_merge(&self.client, &of, &patch).await?;
            }
            "ready" if case["readinessGates"].is_array() => {
                self.until(path, "unready").await?;
                let open = json!([{ "type": GATE, "status": "True" }]);
                let patch = json!({ "status": { "conditions": open } });
                api::strategic_merge(&self.client, &format!("{path}/status"), &patch).await?;
            }
            "ready" if case["changes"] == true => {
                self.until(path, "unready").await?;
                self.change(side, path).await?;
            }
            _ => {}
        }

        self.until(path, when).await
    }

    /// Changes what the pod refers to, and the pod itself: only then a kubelet looks at once.
    async fn change(&self, side: Side<'_>, path: &str) -> Result<()> {
        for (kind, data) in [("configmaps", "data"), ("secrets", "stringData")] {
            let of =
                format!("/api/v1/namespaces/{}/{kind}/changing-{}", self.namespace, side.prefix);
            api::merge(&self.client, &of, &json!({ data: { "key": "new" } })).await?;
        }
        let patch = json!({ "metadata": { "annotations": { "note": "another" } } });

        api::merge(&self.client, path, &patch).await.map(drop)
    }

    /// What there is where the case wants its pod.
    async fn seen(&self, case: &Value, side: Side<'_>) -> Result<Seen> {
        let path = self.make(case, side).await?;
        let pod = self.reach(case, side, &path).await?;
        let mut inside = inside::looks(side.site, &pod).await?;
        Words::of(&pod).apply(&mut inside);

        Ok(Seen { path, pod, inside })
    }

    /// The status as it is now.
    async fn status(&self, seen: &Seen) -> Result<Value> {
        let pod = self.cluster.get(&self.client, &seen.path).await?.context("the pod")?;

        Ok(general::status(&pod))
    }

    async fn events(&self, seen: &Seen) -> Result<Value> {
        let of = format!(
            "/api/v1/namespaces/{}/events?fieldSelector=involvedObject.uid%3D{}",
            self.namespace,
            word(&seen.pod["metadata"], "uid")
        );
        let pod = self.cluster.get(&self.client, &seen.path).await?.context("the pod")?;
        let words = Words::of(&pod);
        let list = self.cluster.get(&self.client, &of).await?.context("Events")?;
        // A kubelet may ask for a claim before the node authorizer knows that it has a pod with it.
        let too_early = "no relationship found between node";
        // And give up waiting for what it watches when the machine is busy, and then try again.
        let too_busy = "cache: timed out waiting for the condition";
        let of_kubelet = |event: &&Value| {
            let message = word(event, "message");
            let is_by_chance = [too_early, too_busy].iter().any(|chance| message.contains(chance));
            event["source"]["component"] == "kubelet" && !is_by_chance
        };
        let events = list["items"].as_array().into_iter().flatten().filter(of_kubelet);
        let events: BTreeSet<_> = events.map(|event| words.event(event)).collect();

        Ok(json!(events))
    }

    /// What differs for a case and is not listed. Restarts are counted at other moments, and Events come
    /// when they come: those must be alike once. `tells` is the reason of the Event that matters.
    async fn unlike(&self, case: &Value, sides: [Side<'_>; 2]) -> Result<Vec<String>> {
        let [here, there] = sides;
        let (ours, stock) = tokio::try_join!(self.seen(case, here), self.seen(case, there))?;
        let name = word(case, "name");
        let unlisted = |at: &str, ours: &Value, stock: &Value| {
            self.allowed.unlisted(name, &differences(at, ours, stock))
        };
        let mut unlike = unlisted("", &ours.inside, &stock.inside);
        let (a, b) = (general::status(&ours.pod), general::status(&stock.pod));
        let at_first = unlisted("/status", &a, &b);
        if !at_first.is_empty() {
            let now = async || {
                let (a, b) = tokio::try_join!(self.status(&ours), self.status(&stock))?;
                Ok(unlisted("/status", &a, &b))
            };
            let agreed = wait::until("the same status", STATUS_LIMIT, now, Vec::is_empty).await;
            unlike.extend(if agreed.is_ok() { Vec::new() } else { at_first });
        }
        let tells = |events: &Value| {
            let reason = word(case, "tells");
            let mut lines = events.as_array().into_iter().flatten().filter_map(Value::as_str);
            lines.any(|line| reason.is_empty() || line.split(' ').nth(1) == Some(reason))
        };
        let now = async || {
            let (a, b) = tokio::try_join!(self.events(&ours), self.events(&stock))?;
            let untold =
                [(&a, "ours"), (&b, "a kubelet")].into_iter().filter(|(told, _)| !tells(told));
            let untold = untold.map(|(_, who)| format!("{name}: {who} does not tell"));

            Ok(untold.chain(unlisted("/events", &a, &b)).collect::<Vec<_>>())
        };
        if wait::until("the same Events", EVENTS_LIMIT, &now, Vec::is_empty).await.is_err() {
            unlike.extend(now().await?);
        }

        Ok(unlike)
    }

    /// As [`Self::unlike`], and the pods are removed.
    async fn compare(&self, case: &Value, sides: [Side<'_>; 2]) -> Result<Vec<String>> {
        let unlike = self.unlike(case, sides).await;
        let name = word(case, "name");
        if let Some(owners) = self.owners(case) {
            for Side { prefix, .. } in sides {
                let path = format!("{owners}/{prefix}-{name}?propagationPolicy=Background");
                api::delete(&self.client, &path, None).await?;
            }
        }
        let pods = format!("{}?labelSelector=app%3D{name}", self.pods());
        if word(case, "when") == "stopped" {
            let list = self.cluster.get(&self.client, &pods).await?.unwrap_or_default();
            for pod in list["items"].as_array().into_iter().flatten() {
                let path = format!("{}/{}", self.pods(), word(&pod["metadata"], "name"));
                let patch = json!({ "metadata": { "finalizers": null } });
                drop(api::merge(&self.client, &path, &patch).await);
            }
        }
        api::delete(&self.client, &format!("{pods}&gracePeriodSeconds=0"), None).await?;

        unlike
    }
}

#[tokio::test]
async fn a_pod_is_as_on_a_stock_kubelet() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let (ours, stock) =
        tokio::try_join!(EdgeNode::join(&cluster, &client), StockNode::up(&cluster))?;
    // Of one length, for files tell theirs.
    let sides = [
        Side { prefix: "here", node: ours.name(), site: ours.site() },
        Side { prefix: "else", node: stock.name(), site: stock.site() },
    ];
    let world = World::up(cluster, client, sides).await?;
    let seed = Dice::seed();
    eprintln!("alike: HOLDFAST_SEED={seed}");
    let (cases, are_all) = chosen(cases()?, seed);
    let of = &world;
    let mut results = iter(&cases)
        .map(|case| async move { (word(case, "name"), of.compare(case, sides).await) })
        .buffer_unordered(AT_ONCE);
    let mut unlike = Vec::new();
    while let Some((name, result)) = results.next().await {
        match result {
            Ok(found) => unlike.extend(found),
            Err(error) => unlike.push(format!("{name}: {error:#}")),
        }
    }
    drop(results);
    if are_all {
        unlike.extend(world.allowed.unused());
    }
    ensure!(unlike.is_empty(), "{}", unlike.join("\n"));

    let namespace = format!("/api/v1/namespaces/{}", world.namespace);
    api::delete(&world.client, &namespace, None).await
}
