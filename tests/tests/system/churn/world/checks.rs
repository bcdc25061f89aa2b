//! What is waited for and checked between the operations.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use cri::Runtime;
use serde_json::Value;
use system_tests::held::Held;
use system_tests::{pods, wait};

use super::{DATA, LIMIT, UNSETTLED_MAX, World};

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn has_ended(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

impl World<'_> {
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
}
