//! What the API server's admission makes of pods holds on an edge node as on any node: Pod Security,
//! quota, limit ranges, priority; and a DaemonSet runs there.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods::{self, BUSYBOX};
use system_tests::{api, wait};

const LIMIT: Duration = Duration::from_mins(2);

const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";

/// A namespace of the test's own. Answers its API path.
async fn namespace(
    cluster: &Cluster,
    client: &Client,
    name: &str,
    labels: Value,
) -> Result<String> {
    let object = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels },
    });
    api::create(client, "/api/v1/namespaces", &object).await?;
    let path = format!("/api/v1/namespaces/{name}");
    let account = format!("{path}/serviceaccounts/default");
    cluster.until(client, &account, "there", LIMIT, |_| true).await?;

    Ok(path)
}

/// POST of a pod that must be refused. Answers the reason.
async fn refused(client: &Client, space: &str, pod: &Value) -> Result<String> {
    let answer = api::create(client, &format!("{space}/pods"), pod).await;
    let error = answer.err().context("the API server took what it should refuse")?;

    Ok(format!("{error:#}"))
}

fn pod_in(space: &str, name: &str, node: &str) -> Value {
    let mut pod = pods::script_pod(name, node, SLEEP);
    pod["metadata"]["namespace"] = json!(space.rsplit('/').next());

    pod
}

async fn inside(cluster: &Cluster, space: &str, pod: &str, script: &str) -> Result<String> {
    let space = space.rsplit('/').next().unwrap_or_default();

    cluster.kubectl(&["exec", "-n", space, pod, "--", "sh", "-c", script]).await
}

/// Pod Security, restricted: what violates it is refused, what conforms runs with what it asked for,
/// and an image of root is not run as root.
#[tokio::test]
async fn a_restricted_namespace_runs_restricted_pods() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let labels = json!({ "pod-security.kubernetes.io/enforce": "restricted" });
    let name = format!("restricted-{}", unique());
    let space = namespace(&cluster, &client, &name, labels).await?;
    let reason = refused(&client, &space, &pod_in(&space, "violating", node.name())).await?;
    ensure!(reason.contains("violates PodSecurity \"restricted"), "{reason}");

    let conform = |name: &str, user: Option<u32>| {
        let mut pod = pod_in(&space, name, node.name());
        pod["spec"]["securityContext"] = json!({
            "runAsNonRoot": true, "runAsUser": user, "seccompProfile": { "type": "RuntimeDefault" },
        });
        pod["spec"]["containers"][0]["securityContext"] = json!({
            "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
        });
        pod
    };
    cluster.apply(&[conform("conforming", Some(1234)), conform("rooted", None)]).await?;
    let path = format!("{space}/pods/conforming");
    cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let script = "id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/1/status";
    let told = inside(&cluster, &space, "conforming", script).await?;
    let told: Vec<_> = told.split_whitespace().collect();
    let none = "0000000000000000";
    let expected = ["1234", "CapEff:", none, "CapBnd:", none, "NoNewPrivs:", "1", "Seccomp:", "2"];
    let sorted = |mut words: Vec<String>| {
        words.sort();
        words
    };
    let (told, expected) = (
        sorted(told.iter().map(ToString::to_string).collect()),
        sorted(expected.iter().map(ToString::to_string).collect()),
    );
    ensure!(told == expected, "the container is {told:?}");

    let waits = |pod: &Value| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        let message = waiting["message"].as_str().unwrap_or_default();
        waiting["reason"] == "CreateContainerConfigError" && message.contains("runAsNonRoot")
    };
    let path = format!("{space}/pods/rooted");
    cluster.until(&client, &path, "not run as root", LIMIT, waits).await?;
    api::delete(&client, &space, None).await?;

    cluster.until_gone(&client, &space, LIMIT).await
}

/// A priority class, and quota and limits of the namespace of the same name.
fn bounds(name: &str) -> [Value; 3] {
    [
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": { "name": name }, "value": 4711,
        }),
        json!({
            "apiVersion": "v1", "kind": "ResourceQuota",
            "metadata": { "name": "quota", "namespace": name },
            "spec": { "hard": { "pods": "2", "limits.memory": "1Gi" } },
        }),
        json!({
            "apiVersion": "v1", "kind": "LimitRange",
            "metadata": { "name": "limits", "namespace": name },
            "spec": { "limits": [{
                "type": "Container",
                "default": { "cpu": "200m", "memory": "64Mi" },
                "defaultRequest": { "cpu": "100m", "memory": "32Mi" },
            }] },
        }),
    ]
}

/// Quota is counted up and down; a limit range's defaults reach the control groups; a priority class
/// gives the pod its priority.
#[tokio::test]
async fn quota_limits_and_priority_hold_on_the_edge() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("bounded-{}", unique());
    let space = namespace(&cluster, &client, &name, json!({})).await?;
    cluster.apply(&bounds(&name)).await?;
    let quota = format!("{space}/resourcequotas/quota");
    let used = async |pods: &str, memory: &str| {
        let what = format!("{pods} pods with {memory}");
        let enough = |quota: &Value| {
            let used = &quota["status"]["used"];
            used["pods"] == pods && used["limits.memory"] == memory
        };
        cluster.until(&client, &quota, &what, LIMIT, enough).await
    };
    used("0", "0").await?;
    let range = format!("{space}/limitranges/limits");
    cluster.until(&client, &range, "there", LIMIT, |_| true).await?;

    let mut first = pod_in(&space, "first", node.name());
    first["spec"]["priorityClassName"] = json!(name);
    let mut second = pod_in(&space, "second", node.name());
    second["spec"]["restartPolicy"] = json!("Never");
    second["spec"]["containers"][0]["command"] =
        json!(["/bin/sh", "-c", "while [ ! -e /tmp/end ]; do sleep 0.1; done"]);
    let collection = format!("{space}/pods");
    let made = api::create(&client, &collection, &first).await?;
    ensure!(made["spec"]["priority"] == 4711, "{made}");
    api::create(&client, &collection, &second).await?;
    used("2", "128Mi").await?;
    let reason = refused(&client, &space, &pod_in(&space, "third", node.name())).await?;
    ensure!(reason.contains("exceeded quota: quota"), "{reason}");
    for name in ["first", "second"] {
        let path = format!("{collection}/{name}");
        cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    }
    let script = "cd /sys/fs/cgroup; if [ -e memory.max ]; then cat memory.max cpu.max; else \
                  cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares; fi";
    let limits = inside(&cluster, &space, "first", script).await?;
    ensure!(
        ["67108864\n20000\n102\n", "67108864\n20000 100000\n"].contains(&limits.as_str()),
        "the control group says {limits:?}"
    );

    // A pod that has ended counts no more, nor does one that is gone.
    inside(&cluster, &space, "second", "touch /tmp/end").await?;
    used("1", "64Mi").await?;
    api::delete(&client, &format!("{collection}/first"), None).await?;
    used("0", "0").await?;
    api::create(&client, &collection, &pod_in(&space, "third", node.name())).await?;
    let path = format!("{collection}/third");
    cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    api::delete(&client, &space, None).await?;
    api::delete(&client, &format!("/apis/scheduling.k8s.io/v1/priorityclasses/{name}"), None)
        .await?;

    cluster.until_gone(&client, &space, LIMIT).await
}

/// A DaemonSet has its pod on the edge node, with the tolerations that keep it there, and makes it anew.
#[tokio::test]
async fn a_daemon_set_runs_on_the_edge() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("daemon-{}", unique());
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": {
                "nodeSelector": { "kubernetes.io/hostname": node.name() },
                "terminationGracePeriodSeconds": 5,
                "containers": [{
                    "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent",
                    "command": ["/bin/sh", "-c", SLEEP],
                }],
            } },
        },
    });
    cluster.apply(&[set]).await?;
    let path = format!("/apis/apps/v1/namespaces/default/daemonsets/{name}");
    let ready = |set: &Value| {
        set["status"]["numberReady"] == 1 && set["status"]["desiredNumberScheduled"] == 1
    };
    cluster.until(&client, &path, "one ready", LIMIT, ready).await?;
    let selected = format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{name}");
    let list = cluster.get(&client, &selected).await?.context("pods")?;
    let first = &list["items"][0];
    let tolerates = |key: &str, effect: &str| {
        first["spec"]["tolerations"].as_array().into_iter().flatten().any(|toleration| {
            toleration["key"] == key
                && toleration["effect"] == effect
                && toleration["tolerationSeconds"].is_null()
        })
    };
    for (key, effect) in [
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ] {
        ensure!(tolerates(key, effect), "no toleration of {key} {effect}: {first}");
    }

    let uid = &first["metadata"]["uid"];
    let pod = first["metadata"]["name"].as_str().unwrap_or_default();
    api::delete(&client, &pods::path(pod), None).await?;
    let another = async || cluster.get(&client, &selected).await;
    let is_new = |list: &Option<Value>| {
        list.as_ref().is_some_and(|list| {
            let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            matches!(items, [one] if one["metadata"]["uid"] != *uid && pods::is_ready(one))
        })
    };
    wait::until("another pod of the set", LIMIT, another, is_new).await?;

    cluster.kubectl(&["delete", "daemonset", &name]).await.map(drop)
}
