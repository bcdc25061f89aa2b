//! The operations of the churn, on a namespace of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri::Runtime;
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::dice::Dice;
use system_tests::held::Held;
use system_tests::node::EdgeNode;
use system_tests::{api, pods, wait};

/// ConfigMaps, and as many Secrets.
const DATA: u64 = 6;
const DEPLOYMENTS: u64 = 4;
const REPLICAS_MAX: u64 = 4;
/// Pods without a controller.
const PODS_MAX: usize = 24;
/// Pods that may be on their way up or down while operations go on.
const UNSETTLED_MAX: usize = 6;
const LIMIT: Duration = Duration::from_mins(2);

const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";
const DEAF: &str = "trap '' TERM; while :; do sleep 1; done";

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A cut that may end before anybody notices.
    Stall,
    /// A cut until the node controller has noticed.
    LongCut,
    /// The agent is killed.
    Kill,
    /// The agent is killed while the link is cut.
    KillInCut,
    /// The power fails.
    PowerCut,
    /// The power fails while the link is cut.
    PowerCutInCut,
}

impl Fault {
    fn cuts(self) -> bool {
        !matches!(self, Self::Kill | Self::PowerCut)
    }

    fn kills(self) -> bool {
        matches!(self, Self::Kill | Self::KillInCut)
    }

    fn powers_off(self) -> bool {
        matches!(self, Self::PowerCut | Self::PowerCutInCut)
    }
}

/// What the test has made so far.
pub(crate) struct World<'a> {
    cluster: &'a Cluster,
    client: &'a Client,
    pub node: &'a EdgeNode,
    pub dice: Dice,
    namespace: String,
    core: String,
    apps: String,
    /// Data objects that exist, by kind (`configmaps`, `secrets`) and number.
    data: BTreeSet<(&'static str, u64)>,
    pods: BTreeSet<String>,
    /// Replicas by name.
    deployments: BTreeMap<String, u64>,
    /// Makes every value and name another one.
    counter: u64,
    broken: Option<Fault>,
    power_cuts: u64,
    /// How often each operation was done.
    done: BTreeMap<&'static str, usize>,
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn has_ended(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

impl<'a> World<'a> {
    pub(crate) async fn new(
        cluster: &'a Cluster,
        client: &'a Client,
        node: &'a EdgeNode,
        dice: Dice,
    ) -> Result<Self> {
        let namespace = format!("churn-{}", unique());
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace },
        });
        api::create(client, "/api/v1/namespaces", &object).await?;
        let core = format!("/api/v1/namespaces/{namespace}");
        let account = format!("{core}/serviceaccounts/default");
        cluster.until(client, &account, "there", LIMIT, |_| true).await?;

        Ok(Self {
            apps: format!("/apis/apps/v1/namespaces/{namespace}/deployments"),
            cluster,
            client,
            node,
            dice,
            namespace,
            core,
            data: BTreeSet::new(),
            pods: BTreeSet::new(),
            deployments: BTreeMap::new(),
            counter: 0,
            broken: None,
            power_cuts: 0,
            done: BTreeMap::new(),
        })
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;

        self.counter
    }

    /// How often each operation was done.
    pub(crate) fn told(&self) -> String {
        format!("{:?}", self.done)
    }

    // --- faults ---

    pub(crate) async fn fail(&mut self, fault: Fault) -> Result<()> {
        let site = self.node.site();
        if fault.cuts() {
            self.count("cut");
            site.cut().await?;
        }
        if fault.kills() {
            self.count("agent kill");
            self.node.kill_agent().await?;
        }
        if fault.powers_off() {
            self.count("power cut");
            self.power_cuts += 1;
            site.power_off().await?;
        }
        self.broken = Some(fault);

        Ok(())
    }

    /// Ends what [`World::fail`] began; a power cut and a kill end while the link is still cut.
    pub(crate) async fn mend(&mut self) -> Result<()> {
        let Some(fault) = self.broken.take() else { return Ok(()) };
        if fault == Fault::LongCut {
            self.node.until_unknown(self.client).await?;
        }
        if fault.powers_off() {
            self.node.site().power_on().await?;
        }
        if fault.powers_off() || fault.kills() {
            self.node.start_agent().await?;
        }
        if fault.cuts() {
            self.node.site().restore().await?;
        }

        Ok(())
    }

    // --- operations ---

    /// One random operation.
    pub(crate) async fn operate(&mut self) -> Result<()> {
        match self.dice.below(100) {
            0..25 => self.create_pod().await,
            25..40 => self.delete_pod().await,
            40..46 => self.replace_pod().await,
            46..54 => self.annotate_pod().await,
            54..72 => self.change_deployment().await,
            _ => self.change_data().await,
        }
    }

    fn pod_spec(&mut self) -> Value {
        let (map, secret) = (self.dice.below(DATA), self.dice.below(DATA));
        let mounts = json!([
            { "name": "map", "mountPath": "/map" },
            { "name": "secret", "mountPath": "/secret" },
            { "name": "info", "mountPath": "/info" },
            { "name": "scratch", "mountPath": "/scratch" },
        ]);
        let container = |name: &str, script: &str| {
            json!({
                "name": name, "image": pods::BUSYBOX, "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-c", script], "volumeMounts": mounts,
            })
        };
        let mut spec = json!({
            "nodeSelector": { "kubernetes.io/hostname": self.node.name() },
            "terminationGracePeriodSeconds": 5,
            "containers": [container("main", SLEEP)],
            "volumes": [
                { "name": "map", "configMap": { "name": format!("data-{map}") } },
                { "name": "secret", "secret": { "secretName": format!("data-{secret}") } },
                { "name": "info", "downwardAPI": { "items": [
                    { "path": "note",
                      "fieldRef": { "fieldPath": "metadata.annotations['note']" } } ] } },
                { "name": "scratch", "emptyDir": { "medium": "Memory" } },
            ],
        });
        match self.dice.below(10) {
            0 => {
                spec["containers"] = json!([container("main", "cat /map/value")]);
                spec["restartPolicy"] = json!("Never");
            }
            1 => {
                spec["containers"] = json!([container("main", DEAF)]);
                spec["terminationGracePeriodSeconds"] = json!(2);
            }
            2 | 3 => {
                spec["initContainers"] = json!([container("first", "cp /map/value /scratch")]);
                spec["containers"] = json!([container("main", SLEEP), container("side", SLEEP)]);
            }
            _ => {}
        }

        spec
    }

    fn metadata(&mut self, name: &str) -> Value {
        let note = self.next().to_string();

        // With the power cuts so far it can be told how often a container may have been restarted.
        json!({
            "name": name, "namespace": self.namespace,
            "labels": { "app": name },
            "annotations": { "note": note, "power-cuts": self.power_cuts.to_string() },
        })
    }

    async fn put_pod(&mut self, name: &str) -> Result<()> {
        let spec = self.pod_spec();
        let metadata = self.metadata(name);
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        api::create(self.client, &format!("{}/pods", self.core), &pod).await?;
        self.pods.insert(name.to_owned());

        Ok(())
    }

    async fn create_pod(&mut self) -> Result<()> {
        if self.pods.len() >= PODS_MAX {
            return self.delete_pod().await;
        }
        self.count("pod created");
        let name = format!("pod-{}", self.next());

        self.put_pod(&name).await
    }

    fn any_pod(&mut self) -> Option<String> {
        let names = self.pods.clone();

        self.dice.pick(names)
    }

    fn pod_path(&self, name: &str) -> String {
        format!("{}/pods/{name}", self.core)
    }

    async fn delete_pod(&mut self) -> Result<()> {
        let Some(name) = self.any_pod() else { return Box::pin(self.create_pod()).await };
        self.count("pod deleted");
        self.pods.remove(&name);
        let grace = self.dice.pick([None, None, Some(1), Some(0)]).flatten();

        api::delete(self.client, &self.pod_path(&name), grace).await
    }

    /// Deletes a pod by force and makes another of the same name: the edge has both for a while.
    async fn replace_pod(&mut self) -> Result<()> {
        let Some(name) = self.any_pod() else { return self.create_pod().await };
        self.count("pod replaced");
        api::delete(self.client, &self.pod_path(&name), Some(0)).await?;

        self.put_pod(&name).await
    }

    async fn annotate_pod(&mut self) -> Result<()> {
        let Some(name) = self.any_pod() else { return self.create_pod().await };
        self.count("pod annotated");
        let patch = json!({ "metadata": { "annotations": { "note": self.next().to_string() } } });

        api::merge(self.client, &self.pod_path(&name), &patch).await.map(drop)
    }

    async fn change_deployment(&mut self) -> Result<()> {
        let name = format!("deployment-{}", self.dice.below(DEPLOYMENTS));
        let replicas = self.dice.below(REPLICAS_MAX + 1);
        let path = format!("{}/{name}", self.apps);
        if !self.deployments.contains_key(&name) {
            return self.create_deployment(&name, replicas).await;
        }
        match self.dice.below(6) {
            0 => {
                self.count("deployment deleted");
                self.deployments.remove(&name);
                api::delete(self.client, &path, None).await
            }
            1 => {
                self.count("deployment updated");
                let spec = self.pod_spec();
                let note = self.next().to_string();
                let patch = json!({ "spec": { "template": {
                    "metadata": { "annotations": { "note": note } },
                    "spec": { "volumes": spec["volumes"] },
                } } });
                api::merge(self.client, &path, &patch).await.map(drop)
            }
            _ => {
                self.count("deployment scaled");
                self.deployments.insert(name.clone(), replicas);
                let patch = json!({ "spec": { "replicas": replicas } });
                api::merge(self.client, &path, &patch).await.map(drop)
            }
        }
    }

    async fn create_deployment(&mut self, name: &str, replicas: u64) -> Result<()> {
        self.count("deployment created");
        let mut spec = self.pod_spec();
        while spec["restartPolicy"] == "Never" {
            spec = self.pod_spec();
        }
        let metadata = self.metadata(name);
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": name, "namespace": self.namespace },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": { "app": name } },
                "template": { "metadata": metadata, "spec": spec },
            },
        });
        api::create(self.client, &self.apps, &deployment).await?;
        self.deployments.insert(name.to_owned(), replicas);

        Ok(())
    }

    async fn put_data(&mut self, kind: &'static str, number: u64) -> Result<()> {
        let value = format!("{kind} {}", self.next());
        let path = format!("{}/{kind}/data-{number}", self.core);
        let field = if kind == "secrets" { "stringData" } else { "data" };
        if self.data.contains(&(kind, number)) {
            self.count("data updated");
            let patch = json!({ field: { "value": value } });
            return api::merge(self.client, &path, &patch).await.map(drop);
        }
        self.count("data created");
        let object = json!({
            "apiVersion": "v1",
            "kind": if kind == "secrets" { "Secret" } else { "ConfigMap" },
            "metadata": { "name": format!("data-{number}") },
            field: { "value": value },
        });
        api::create(self.client, &format!("{}/{kind}", self.core), &object).await?;
        self.data.insert((kind, number));

        Ok(())
    }

    /// Updates half of the times, else deletes, or deletes and makes another of the same name.
    async fn change_data(&mut self) -> Result<()> {
        let number = self.dice.below(DATA);
        let kind = if self.dice.below(2) == 0 { "configmaps" } else { "secrets" };
        let change = self.dice.below(4);
        if !self.data.contains(&(kind, number)) || change < 2 {
            return self.put_data(kind, number).await;
        }
        self.count("data deleted");
        let path = format!("{}/{kind}/data-{number}", self.core);
        api::delete(self.client, &path, None).await?;
        self.data.remove(&(kind, number));
        if change == 2 {
            return Ok(());
        }

        self.put_data(kind, number).await
    }

    // --- waiting and checking ---

    /// The pods that are bound to the node.
    pub(crate) async fn bound(&self) -> Result<Vec<Value>> {
        let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", self.node.name());
        let list = self.cluster.get(self.client, &path).await?.context("pods")?;

        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Whether everything that the pod mounts exists.
    fn can_run(&self, pod: &Value) -> bool {
        let exists = |kind, name: &Value| {
            let number = name.as_str().and_then(|name| name.strip_prefix("data-")?.parse().ok());
            number.is_none_or(|number| self.data.contains(&(kind, number)))
        };
        let volumes = pod["spec"]["volumes"].as_array();

        volumes.into_iter().flatten().all(|volume| {
            exists("configmaps", &volume["configMap"]["name"])
                && exists("secrets", &volume["secret"]["secretName"])
        })
    }

    /// Waits until few pods are on their way.
    pub(crate) async fn pace(&self) -> Result<()> {
        let unsettled = async || {
            let pods = self.bound().await?;
            let unsettled = pods.iter().filter(|pod| {
                let settled = pods::is_ready(pod) || has_ended(pod) || !self.can_run(pod);
                !pod["metadata"]["deletionTimestamp"].is_null() || !settled
            });
            Ok(unsettled.map(name_of).collect())
        };
        let few = |unsettled: &Vec<String>| unsettled.len() <= UNSETTLED_MAX;

        wait::until("pods to settle", LIMIT, unsettled, few).await.map(drop)
    }

    /// Makes what pods wait for, and as many pods as there must be.
    pub(crate) async fn complete(&mut self, live_min: usize) -> Result<()> {
        for number in 0..DATA {
            for kind in ["configmaps", "secrets"] {
                if !self.data.contains(&(kind, number)) {
                    self.put_data(kind, number).await?;
                }
            }
        }
        loop {
            let replicas: u64 = self.deployments.values().sum();
            let pods = self.bound().await?;
            let single = pods.iter().filter(|pod| {
                self.pods.contains(&name_of(pod))
                    && !has_ended(pod)
                    && pod["spec"]["restartPolicy"] != "Never"
            });
            if single.count() + usize::try_from(replicas)? >= live_min {
                return Ok(());
            }
            let name = format!("pod-{}", self.next());
            self.put_pod(&name).await?;
            let path = self.pod_path(&name);
            let bound = |pod: &Value| pod["spec"]["nodeName"].is_string();
            self.cluster.until(self.client, &path, "bound", LIMIT, bound).await?;
        }
    }

    /// Reads the files that the containers see.
    pub(crate) async fn check_content(&self) -> Result<()> {
        let mut values = BTreeMap::new();
        for (kind, number) in &self.data {
            let path = format!("{}/{kind}/data-{number}", self.core);
            let object = self.cluster.get(self.client, &path).await?.context("data")?;
            values.insert((*kind, format!("data-{number}")), object["data"]["value"].clone());
        }
        let runtime = Runtime::new(self.node.site().fact("RUNTIME")?)?;
        let held = Held::by(self.node.site()).await?;
        for pod in self.bound().await?.iter().filter(|pod| !has_ended(pod)) {
            let volumes = &pod["spec"]["volumes"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let map = values.get(&("configmaps", text(&volumes[0]["configMap"]["name"])));
            let secret = values.get(&("secrets", text(&volumes[1]["secret"]["secretName"])));
            let note = text(&pod["metadata"]["annotations"]["note"]);
            let secret = secret.map(text).context("the Secret")?;
            let expected = format!("{} {secret} {note}", map.map(text).context("the ConfigMap")?);
            // The API server tells a Secret's value in base64, as the container does here.
            let script = "echo $(cat /map/value) $(base64 </secret/value) $(cat /info/note)";
            let uid = text(&pod["metadata"]["uid"]);
            for (name, id) in held.running(&uid) {
                let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
                let says = async || {
                    let said = runtime.exec_sync(&id, command.clone(), LIMIT).await?;
                    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
                };
                let what = format!("{} {name} to see {expected:?}", name_of(pod));
                wait::until(&what, LIMIT, says, |said| *said == expected).await?;
            }
        }

        Ok(())
    }

    /// No container was restarted but by the power cuts after its pod was made. Answers how many
    /// pods live.
    pub(crate) async fn check_restarts(&self) -> Result<usize> {
        let mut live = 0;
        for pod in self.bound().await?.iter().filter(|pod| !has_ended(pod)) {
            live += 1;
            let before = pod["metadata"]["annotations"]["power-cuts"].as_str();
            let before: u64 = before.unwrap_or("0").parse()?;
            for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
                let restarts = status["restartCount"].as_u64().unwrap_or_default();
                ensure!(restarts <= self.power_cuts - before, "{restarts} restarts of {pod}");
            }
        }

        Ok(live)
    }

    /// Deletes everything.
    pub(crate) async fn clear(&mut self) -> Result<()> {
        api::delete(self.client, &self.core, None).await?;

        self.cluster.until_gone(self.client, &self.core, LIMIT).await
    }
}
