//! How long it takes until volumes of a running pod show what was changed at the API server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::Client;
use serde_json::{Map, Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::{api, pods};
use tokio::time::{Instant, sleep, timeout};

use crate::figures::Samples;

/// A change must show within this, seconds.
const SECONDS_MAX: f64 = 10.0;
const LIMIT: Duration = Duration::from_mins(2);

/// What was measured, by the kind of volume.
#[derive(Debug, Default)]
pub(crate) struct Updates {
    config_map: Samples,
    secret: Samples,
    downward_api: Samples,
    /// Of one of each.
    projected: Samples,
}

/// A thing that volumes show.
struct Source {
    /// At the API server.
    path: String,
    /// What is changed of it.
    change: fn(&str) -> Value,
    /// The file of the volume that shows only this.
    own: &'static str,
    /// The file of the projected volume.
    projected: &'static str,
}

impl Updates {
    /// Changes each thing `count` times, one after the other.
    pub(crate) async fn measure(
        cluster: &Cluster,
        client: &Client,
        node: &EdgeNode,
        count: usize,
    ) -> Result<Self> {
        let name = format!("updated-{}", unique());
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": name, "namespace": "default" }, "stringData": { "key": "first" },
        });
        let map = pods::config_map(&name, "first");
        cluster.apply(&[map, secret, pod(&name, node.name())]).await?;
        let path = pods::path(&name);
        let ready = cluster.until(client, &path, "Ready", LIMIT, pods::is_ready).await?;
        let uid = ready["metadata"]["uid"].as_str().context("no uid")?;
        let volumes = node.site().path("KUBELET_ROOT")?.join("pods").join(uid).join("volumes");
        let mut updates = Self::default();
        for _ in 0..count {
            for source in sources(&name) {
                updates.change(client, &source, &volumes).await?;
            }
        }
        api::delete(client, &path, None).await?;

        Ok(updates)
    }

    async fn change(&mut self, client: &Client, source: &Source, volumes: &Path) -> Result<()> {
        let said = unique();
        api::merge(client, &source.path, &(source.change)(&said)).await?;
        let began = Instant::now();
        let own = shown(volumes.join(source.own), &said, began);
        let projected =
            shown(volumes.join("kubernetes.io~projected/all").join(source.projected), &said, began);
        let (own, projected) = tokio::try_join!(own, projected)?;
        self.projected.push(projected);
        match source.projected {
            "map" => self.config_map.push(own),
            "secret" => self.secret.push(own),
            _said => self.downward_api.push(own),
        }
        sleep(Duration::from_millis(50)).await;

        Ok(())
    }

    fn by_kind(&self) -> [(&'static str, &Samples); 4] {
        [
            ("configMap", &self.config_map),
            ("secret", &self.secret),
            ("downwardAPI", &self.downward_api),
            ("projected", &self.projected),
        ]
    }

    /// For a line of JSON.
    pub(crate) fn json(&self) -> Map<String, Value> {
        let kind = |(kind, samples): (&str, &Samples)| {
            let told = json!({ "median_s": samples.median(), "p95_s": samples.p95() });
            (kind.to_owned(), told)
        };

        self.by_kind().into_iter().map(kind).collect()
    }

    /// A row for each kind.
    pub(crate) fn rows(&self) -> String {
        let row = |(kind, samples): (&str, &Samples)| {
            let verdict = if samples.p95() <= SECONDS_MAX { "reached" } else { "MISSED" };
            format!(
                "update, {kind:<24} median {:>7.1} ms, p95 {:>7.1} ms, {} times  <= {SECONDS_MAX} s, {verdict}\n",
                samples.median() * 1e3,
                samples.p95() * 1e3,
                samples.count(),
            )
        };

        self.by_kind().map(row).concat()
    }
}

fn sources(name: &str) -> [Source; 3] {
    let named = |kind: &str| format!("/api/v1/namespaces/default/{kind}/{name}");

    [
        Source {
            path: named("configmaps"),
            change: |said| json!({ "data": { "key": said } }),
            own: "kubernetes.io~configmap/map/key",
            projected: "map",
        },
        Source {
            path: named("secrets"),
            change: |said| json!({ "stringData": { "key": said } }),
            own: "kubernetes.io~secret/secret/key",
            projected: "secret",
        },
        Source {
            path: named("pods"),
            change: |said| json!({ "metadata": { "annotations": { "said": said } } }),
            own: "kubernetes.io~downward-api/pod/said",
            projected: "said",
        },
    ]
}

/// How long after `began` the file says so.
async fn shown(file: PathBuf, said: &str, began: Instant) -> Result<Duration> {
    let says = async {
        while tokio::fs::read_to_string(&file).await.unwrap_or_default() != said {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LIMIT, says).await.with_context(|| format!("{} is not updated", file.display()))?;

    Ok(began.elapsed())
}

/// A pod with a volume of each kind.
fn pod(name: &str, node: &str) -> Value {
    let field = json!({ "fieldPath": "metadata.annotations['said']" });
    let said = json!([{ "path": "said", "fieldRef": field }]);
    let mut pod = pods::sleeper(name, node);
    pod["metadata"]["annotations"] = json!({ "said": "first" });
    pod["spec"]["volumes"] = json!([
        { "name": "map", "configMap": { "name": name } },
        { "name": "secret", "secret": { "secretName": name } },
        { "name": "pod", "downwardAPI": { "items": said } },
        { "name": "all", "projected": { "sources": [
            { "configMap": { "name": name, "items": [{ "key": "key", "path": "map" }] } },
            { "secret": { "name": name, "items": [{ "key": "key", "path": "secret" }] } },
            { "downwardAPI": { "items": said } },
        ] } },
    ]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!(
        ["map", "secret", "pod", "all"]
            .map(|volume| json!({ "name": volume, "mountPath": format!("/{volume}") }))
    );

    pod
}
