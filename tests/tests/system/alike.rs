//! The same pod on an edge node and on a stock kubelet finds the same inside.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri::Runtime;
use serde_json::{Value, json};
use system_tests::api;
use system_tests::cluster::{Cluster, unique};
use system_tests::held::Held;
use system_tests::node::EdgeNode;
use system_tests::pods;
use system_tests::site::Site;
use system_tests::stock::StockNode;

const LIMIT: Duration = Duration::from_mins(2);

/// Each is run in both containers.
const LOOKS: [&str; 12] = [
    "id; umask; pwd; hostname",
    "cat /etc/resolv.conf",
    "cat /etc/hosts; stat -c '%a %U %G' /etc/hosts",
    "tr '\\0' '\\n' </proc/1/environ | sort",
    "cat /proc/1/oom_score_adj",
    "grep -E '^(Cap|NoNew|Seccomp:|Groups)' /proc/1/status",
    "awk '{ print $5, $6 }' /proc/self/mountinfo | sort",
    // A token's length varies with what it says.
    "find -L /all -type f | grep -v '/\\.\\.' | sort | xargs stat -L -c '%n %a %u %g %s' | \
     sed '/token /s/ [0-9]*$//'",
    // A kubelet has the downward API on a tmpfs, which has the sticky bit.
    "find -L /all -type d | grep -v '/\\.\\.' | sort | xargs stat -L -c '%n %a %u %g' | \
     sed 's/ 3777 / 2777 /'",
    "find /all -type l | grep -v '/\\.\\.[0-9]' | sort",
    "cat /all/map/key /all/info/labels /all/info/cpu; stat -c %a /dev/termination-log",
    "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; df /dev/shm | tail -1 | awk '{ print $2 }'",
];

fn curious(name: &str, node: &str) -> Value {
    let mut pod = pods::sleeper(name, node);
    let spec = &mut pod["spec"];
    spec["hostAliases"] = json!([{ "ip": "192.0.2.7", "hostnames": ["camera"] }]);
    spec["securityContext"] = json!({
        "runAsUser": 1000, "runAsGroup": 1001, "fsGroup": 2000, "supplementalGroups": [3000],
        "sysctls": [{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "1000" }],
    });
    let labels = json!({ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } });
    let cpu = json!({
        "path": "cpu", "resourceFieldRef": { "containerName": "main", "resource": "limits.cpu" },
    });
    let key = json!([{ "key": "key", "path": "deep/key", "mode": 0o400 }]);
    spec["volumes"] = json!([
        { "name": "map", "configMap": { "name": "curious" } },
        { "name": "picked", "configMap": { "name": "curious", "items": key } },
        { "name": "secret", "secret": { "secretName": "curious", "defaultMode": 0o440 } },
        { "name": "info", "downwardAPI": { "items": [labels, cpu] } },
        { "name": "projected", "projected": { "sources": [
            { "configMap": { "name": "curious" } },
            { "serviceAccountToken": { "path": "token", "expirationSeconds": 3600 } },
            { "downwardAPI": { "items": [labels] } },
        ] } },
        { "name": "disk", "emptyDir": {} },
        { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
    ]);
    let mounts = ["map", "picked", "secret", "info", "projected", "disk", "memory"].map(|name| {
        json!({ "name": name, "mountPath": format!("/all/{name}"), "readOnly": name == "secret" })
    });
    let container = &mut spec["containers"][0];
    container["volumeMounts"] = json!(mounts);
    container["resources"] = json!({ "limits": { "cpu": "1", "memory": "64Mi" } });
    container["env"] = json!([{ "name": "EXPANDED", "value": "$(HOSTNAME) $(NOTHING)" }]);

    pod
}

/// What each look shows, without what differs from pod to pod.
async fn looks(site: &Site, pod: &Value) -> Result<Vec<String>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let runtime = Runtime::new(site.fact("RUNTIME")?)?;
    let running = Held::by(site).await?.running(&text(&pod["metadata"]["uid"]));
    let id = running.get("main").context("the container runs")?;
    let token = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let token = token.map(|volume| text(&volume["name"])).find(|name| name.contains("api-access"));
    let (name, ip) = (text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"]));
    let mut seen = Vec::new();
    for look in LOOKS {
        let command = ["/bin/sh", "-c", look].map(str::to_owned).to_vec();
        let said = runtime.exec_sync(id, command, LIMIT).await?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let said = said.replace(&name, "POD").replace(&ip, "IP");
        seen.push(said.replace(token.as_deref().unwrap_or("no token"), "TOKEN"));
    }

    Ok(seen)
}

#[tokio::test]
async fn a_container_is_as_a_stock_kubelet_makes_it() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let (ours, stock) =
        tokio::try_join!(EdgeNode::join(&cluster, &client), StockNode::up(&cluster))?;
    // Of one length, for files tell theirs.
    let name = unique();
    let pairs = [
        (format!("here-{name}"), ours.name(), ours.site()),
        (format!("else-{name}"), stock.name(), stock.site()),
    ];
    let metadata = json!({ "name": "curious", "namespace": "default" });
    cluster
        .apply(&[
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": { "key": "value" } }),
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": { "a": "b" } }),
            curious(&pairs[0].0, pairs[0].1),
            curious(&pairs[1].0, pairs[1].1),
        ])
        .await?;
    let mut seen = Vec::new();
    for (name, _, site) in &pairs {
        let path = pods::path(name);
        let pod = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
        seen.push(looks(site, &pod).await?);
        api::delete(&client, &path, Some(0)).await?;
    }
    cluster.kubectl(&["delete", "configmap,secret", "curious"]).await?;
    let differ: Vec<_> = LOOKS
        .iter()
        .zip(seen[0].iter().zip(&seen[1]))
        .filter(|(_, (ours, stock))| ours != stock)
        .map(|(look, (ours, stock))| format!("{look}\n{ours}but a kubelet:\n{stock}"))
        .collect();
    ensure!(differ.is_empty(), "{}", differ.join("\n"));

    Ok(())
}
