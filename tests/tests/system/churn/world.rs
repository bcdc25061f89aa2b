//! The operations of the churn, on a namespace of its own.

mod checks;
mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::dice::Dice;
use system_tests::node::EdgeNode;
use system_tests::{api, pods};

pub(crate) use faults::Fault;

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

    /// Deletes everything.
    pub(crate) async fn clear(&mut self) -> Result<()> {
        api::delete(self.client, &self.core, None).await?;

        self.cluster.until_gone(self.client, &self.core, LIMIT).await
    }
}
