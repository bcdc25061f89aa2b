//! What a container finds inside: names, environment, files, limits; and what it leaves behind.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use system_tests::api;
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods;

const LIMIT: Duration = Duration::from_mins(2);

async fn inside(cluster: &Cluster, pod: &str, script: &str) -> Result<String> {
    cluster.kubectl(&["exec", pod, "--", "sh", "-c", script]).await
}

/// Every line of `wanted` must be among those that are said.
fn says(said: &str, wanted: &[String]) -> Result<()> {
    let missing: Vec<_> =
        wanted.iter().filter(|line| !said.lines().any(|other| other == *line)).collect();
    ensure!(missing.is_empty(), "{missing:?} is not said in:\n{said}");

    Ok(())
}

fn lines<const N: usize>(lines: [&str; N]) -> Vec<String> {
    lines.map(str::to_owned).to_vec()
}

/// Name servers, hosts and host name as the pod's fields say; on the host's network, those of the node.
#[tokio::test]
async fn names_are_those_that_the_pod_asks_for() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let (own, host) = (format!("own-{}", unique()), format!("host-{}", unique()));
    let mut pod = pods::sleeper(&own, node.name());
    pod["spec"]["dnsPolicy"] = json!("None");
    pod["spec"]["dnsConfig"] = json!({
        "nameservers": ["192.0.2.1"], "searches": ["a.test", "b.test"],
        "options": [{ "name": "ndots", "value": "2" }, { "name": "edns0" }],
    });
    pod["spec"]["hostAliases"] = json!([
        { "ip": "192.0.2.7", "hostnames": ["camera", "camera.test"] },
    ]);
    pod["spec"]["hostname"] = json!("analyzer");
    pod["spec"]["subdomain"] = json!("edge");
    let mut on_host = pods::sleeper(&host, node.name());
    on_host["spec"]["hostNetwork"] = json!(true);
    on_host["spec"]["dnsPolicy"] = json!("Default");
    on_host["spec"]["hostAliases"] = pod["spec"]["hostAliases"].clone();
    cluster.apply(&[pod, on_host]).await?;
    let ready = cluster.until(&client, &pods::path(&own), "Ready", LIMIT, pods::is_ready).await?;
    let ip = ready["status"]["podIP"].as_str().context("podIP")?;

    let resolver = inside(&cluster, &own, "cat /etc/resolv.conf").await?;
    let wanted = ["nameserver 192.0.2.1", "search a.test b.test", "options ndots:2 edns0"];
    says(&resolver, &lines(wanted))?;
    ensure!(resolver.lines().count() == 3, "{resolver:?}");
    let hosts = inside(&cluster, &own, "cat /etc/hosts; hostname").await?;
    let itself = format!("{ip}\tanalyzer.edge.default.svc.cluster.local\tanalyzer");
    let alias = "192.0.2.7\tcamera\tcamera.test";
    says(&hosts, &[itself, alias.to_owned(), "analyzer".to_owned()])?;
    ensure!(hosts.starts_with("# Kubernetes-managed hosts file.\n"), "{hosts:?}");

    let path = pods::path(&host);
    let ready = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let status = &ready["status"];
    ensure!(status["podIP"] == status["hostIP"], "{status}");
    ensure!(status["podIP"] == node.site().fact("ADDRESS")?, "{status}");
    let told = inside(&cluster, &host, "cat /etc/hosts; hostname; ls /sys/class/net").await?;
    let machine = tokio::fs::read_to_string("/proc/sys/kernel/hostname").await?;
    says(&told, &[alias.to_owned(), machine.trim().to_owned(), "cni0".to_owned()])?;
    let managed = "# Kubernetes-managed hosts file (host network).\n";
    ensure!(told.starts_with(managed), "{told:?}");
    for name in [&own, &host] {
        api::delete(&client, &pods::path(name), Some(0)).await?;
    }

    Ok(())
}

/// A pod whose variables come from everywhere.
fn told_by_everything(name: &str, node: &str) -> Value {
    let mut pod =
        pods::script_pod(name, node, "env; trap 'exit 0' TERM; while :; do sleep 1; done");
    pod["metadata"]["annotations"] = json!({ "note": "a note" });
    let field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    let resource = |name: &str, divisor: &str| json!({ "resourceFieldRef": { "resource": name, "divisor": divisor } });
    let container = &mut pod["spec"]["containers"][0];
    container["resources"] = json!({
        "requests": { "cpu": "250m", "memory": "32Mi" }, "limits": { "cpu": "1500m", "memory": "64Mi" },
    });
    container["envFrom"] = json!([
        { "prefix": "MAP_", "configMapRef": { "name": name } },
        { "secretRef": { "name": name } },
        { "configMapRef": { "name": "not-there", "optional": true } },
    ]);
    container["env"] = json!([
        { "name": "NAME", "valueFrom": field("metadata.name") },
        { "name": "LABEL", "valueFrom": field("metadata.labels['app']") },
        { "name": "NOTE", "valueFrom": field("metadata.annotations['note']") },
        { "name": "UID", "valueFrom": field("metadata.uid") },
        { "name": "NODE_NAME", "valueFrom": field("spec.nodeName") },
        { "name": "ACCOUNT", "valueFrom": field("spec.serviceAccountName") },
        { "name": "HOST_IP", "valueFrom": field("status.hostIP") },
        { "name": "POD_IP", "valueFrom": field("status.podIP") },
        { "name": "CPU", "valueFrom": resource("limits.cpu", "1m") },
        { "name": "CPUS", "valueFrom": resource("limits.cpu", "1") },
        { "name": "MEMORY", "valueFrom": resource("requests.memory", "1Mi") },
        { "name": "EXPANDED", "value": "$(NAME)/$(MAP_color)/$$(NAME)/$(NOTHING)" },
        { "name": "token", "value": "overridden" },
    ]);

    pod
}

#[tokio::test]
async fn variables_come_from_everywhere() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("vars-{}", unique());
    let metadata = json!({ "name": name, "namespace": "default" });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": { "ports": [{ "name": "http", "port": 8080 }] },
    });
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": { "color": "red" },
    });
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": metadata,
        "stringData": { "token": "t0ken", "password": "s3cret" },
    });
    cluster.apply(&[service, map, secret]).await?;
    let path = format!("/api/v1/namespaces/default/services/{name}");
    let service = cluster.get(&client, &path).await?.context("the Service")?;
    let address = service["spec"]["clusterIP"].as_str().context("clusterIP")?.to_owned();
    cluster.apply(&[told_by_everything(&name, node.name())]).await?;
    let pod = cluster.until(&client, &pods::path(&name), "Ready", LIMIT, pods::is_ready).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();

    let said = inside(&cluster, &name, "tr '\\0' '\\n' </proc/1/environ").await?;
    let upper = name.to_uppercase().replace('-', "_");
    let mut wanted = lines([
        "MAP_color=red",
        "password=s3cret",
        "token=overridden",
        "NOTE=a note",
        "ACCOUNT=default",
        "CPU=1500",
        "CPUS=2",
        "MEMORY=32",
        "KUBERNETES_SERVICE_PORT=443",
    ]);
    wanted.extend([
        format!("NAME={name}"),
        format!("LABEL={name}"),
        format!("UID={}", text(&pod["metadata"]["uid"])),
        format!("NODE_NAME={}", node.name()),
        format!("HOST_IP={}", text(&pod["status"]["hostIP"])),
        format!("POD_IP={}", text(&pod["status"]["podIP"])),
        format!("EXPANDED={name}/red/$(NAME)/$(NOTHING)"),
        format!("HOSTNAME={name}"),
        format!("{upper}_SERVICE_HOST={address}"),
        format!("{upper}_SERVICE_PORT_HTTP=8080"),
        format!("{upper}_PORT_8080_TCP=tcp://{address}:8080"),
    ]);
    says(&said, &wanted)?;
    api::delete(&client, &pods::path(&name), Some(0)).await?;

    cluster.kubectl(&["delete", "service,configmap,secret", &name]).await.map(drop)
}

/// The pod's last words: a file of its own, or the end of its log if it failed without.
#[tokio::test]
async fn the_last_words_of_a_container_are_told() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let base = format!("words-{}", unique());
    let fallback = "FallbackToLogsOnError";
    let cases = [
        ("file", "echo log; printf %s said >/dev/termination-log", "File", "said"),
        ("own", "printf %s elsewhere >/tmp/words", "File", "elsewhere"),
        ("none", "echo log; exit 3", "File", ""),
        ("log", "echo one; echo two; exit 3", fallback, "one\ntwo\n"),
        ("both", "echo log; printf %s file >/dev/termination-log; exit 3", fallback, "file"),
        ("well", "echo log", fallback, ""),
    ];
    for (kind, script, policy, _) in cases {
        let mut pod = pods::script_pod(&format!("{base}-{kind}"), node.name(), script);
        pod["spec"]["restartPolicy"] = json!("Never");
        pod["spec"]["containers"][0]["terminationMessagePolicy"] = json!(policy);
        if kind == "own" {
            pod["spec"]["containers"][0]["terminationMessagePath"] = json!("/tmp/words");
        }
        cluster.apply(&[pod]).await?;
    }
    for (kind, _, _, words) in cases {
        let path = pods::path(&format!("{base}-{kind}"));
        let ended =
            |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["terminated"].is_object();
        let pod = cluster.until(&client, &path, "ended", LIMIT, ended).await?;
        let end = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        let told = end["message"].as_str().unwrap_or_default();
        ensure!(told == words, "{kind}: {told:?} instead of {words:?}");
        api::delete(&client, &path, Some(0)).await?;
    }

    Ok(())
}

/// Every type of hostPath takes what it is for and refuses, with an Event, what is not there.
#[tokio::test]
async fn host_paths_are_what_their_type_says() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("paths-{}", unique());
    let folder = node.site().path("KUBELET_ROOT")?.with_file_name("paths");
    tokio::fs::create_dir_all(folder.join("folder")).await?;
    tokio::fs::write(folder.join("file"), "content").await?;
    let _socket = tokio::net::UnixListener::bind(folder.join("socket"))?;
    let at = |name: &str| folder.join(name).display().to_string();
    let types = [
        ("any", at("file"), ""),
        ("folder", at("folder"), "Directory"),
        ("new-folder", at("deep/new"), "DirectoryOrCreate"),
        ("file", at("file"), "File"),
        ("new-file", at("new"), "FileOrCreate"),
        ("socket", at("socket"), "Socket"),
        ("device", "/dev/zero".to_owned(), "CharDevice"),
    ];
    let mounting = |name: &str, types: &[(&str, String, &str)]| {
        let mut pod = pods::sleeper(name, node.name());
        pod["spec"]["volumes"] = types
            .iter()
            .map(|(name, path, kind)| json!({ "name": name, "hostPath": { "path": path, "type": kind } }))
            .collect();
        pod["spec"]["containers"][0]["volumeMounts"] = types
            .iter()
            .map(|(name, ..)| json!({ "name": name, "mountPath": format!("/m/{name}") }))
            .collect();
        pod
    };
    cluster.apply(&[mounting(&name, &types)]).await?;
    cluster.until(&client, &pods::path(&name), "Ready", LIMIT, pods::is_ready).await?;
    let script = "cd /m; for name in *; do stat -c '%n %F %a' $name; done; cat file any; \
                  echo; echo x >new-folder/x";
    let said = inside(&cluster, &name, script).await?;
    let wanted = lines([
        "folder directory 755",
        "new-folder directory 755",
        "file regular file 644",
        "new-file regular empty file 644",
        "contentcontent",
    ]);
    says(&said, &wanted)?;
    ensure!(said.contains("socket socket ") && said.contains("device character special file "));
    ensure!(tokio::fs::read_to_string(folder.join("deep/new/x")).await? == "x\n");

    let wrong = [
        ("folder", at("none"), "Directory"),
        ("file", at("folder"), "File"),
        ("socket", at("file"), "Socket"),
        ("block", "/dev/zero".to_owned(), "BlockDevice"),
    ];
    for (index, wrong) in wrong.iter().enumerate() {
        let name = format!("{name}-{index}");
        cluster.apply(&[mounting(&name, std::slice::from_ref(wrong))]).await?;
        let events = format!(
            "/api/v1/namespaces/default/events?fieldSelector=reason%3DFailedMount,\
             involvedObject.name%3D{name}"
        );
        let told = |list: &Value| {
            let message = list["items"][0]["message"].as_str().unwrap_or_default();
            message.contains("hostPath type check failed") && message.contains(&wrong.1)
        };
        cluster.until(&client, &events, "FailedMount", LIMIT, told).await?;
        api::delete(&client, &pods::path(&name), Some(0)).await?;
    }
    ensure!(!folder.join("none").exists(), "a Directory was made");

    api::delete(&client, &pods::path(&name), Some(0)).await
}

/// Requests and limits are in the control groups, below the group of the pod's class.
#[tokio::test]
async fn resources_are_in_the_control_groups_of_the_class() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let base = format!("class-{}", unique());
    let small = json!({ "cpu": "300m", "memory": "64Mi" });
    // Version 1: kibibyte-exact limit, quota of 100 ms, shares, oom_score_adj of the container.
    let cases = [
        ("Guaranteed", "", json!({ "limits": small, "requests": small }), "67108864 30000 307"),
        ("Burstable", "burstable/", json!({ "requests": small }), "max -1 307"),
        ("BestEffort", "besteffort/", json!({}), "max -1 2"),
    ];
    let name_of = |class: &str| format!("{base}-{}", class.to_lowercase());
    for (class, _, resources, _) in &cases {
        let mut pod = pods::sleeper(&name_of(class), node.name());
        pod["spec"]["containers"][0]["resources"] = resources.clone();
        cluster.apply(&[pod]).await?;
    }
    for (class, parent, _, wanted) in &cases {
        let path = pods::path(&name_of(class));
        let pod = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
        ensure!(pod["status"]["qosClass"] == *class, "{pod}");
        let uid = pod["metadata"]["uid"].as_str().context("uid")?;
        let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().context("id")?;
        let id = id.trim_start_matches("containerd://");
        let group = format!("{}/kubepods/{parent}pod{uid}", node.site().fact("CGROUP_ROOT")?);
        for of in [group.clone(), format!("{group}/{id}")] {
            let told = limits(&of)?;
            ensure!(told == *wanted, "{class}: {of} says {told}, not {wanted}");
        }
        let score = inside(&cluster, &name_of(class), "cat /proc/1/oom_score_adj").await?;
        let score: i64 = score.trim().parse()?;
        let fits = match *class {
            // The runtime of the test bed cannot lower it below its own.
            "Guaranteed" => score <= 0,
            "Burstable" => (3..1000).contains(&score),
            _ => score == 1000,
        };
        ensure!(fits, "{class}: oom_score_adj is {score}");
        api::delete(&client, &path, Some(0)).await?;
    }

    Ok(())
}

/// Memory limit in bytes or `max`, quota of 100 ms in microseconds or -1, and shares of a control group
/// of version 1.
fn limits(group: &str) -> Result<String> {
    let read = |hierarchy: &str, file: &str| {
        let path = Path::new("/sys/fs/cgroup").join(hierarchy);
        let path = path.join(group.trim_start_matches('/')).join(file);
        let text = std::fs::read_to_string(&path);
        text.map(|text| text.trim().to_owned()).with_context(|| format!("read {}", path.display()))
    };
    let memory = read("memory", "memory.limit_in_bytes")?;
    // What no limit is written as: the most that fits, in whole pages.
    let memory = if memory.len() >= 19 { "max".to_owned() } else { memory };
    let quota = read("cpu", "cpu.cfs_quota_us")?;

    Ok(format!("{memory} {quota} {}", read("cpu", "cpu.shares")?))
}

/// Parts of volumes, among them one that leads out of its volume by a link that the container made.
#[tokio::test]
async fn parts_of_volumes_are_mounted_and_lead_nowhere_else() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("parts-{}", unique());
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name },
        "data": { "one": "first", "two": "second" },
    });
    let mut pod = pods::sleeper(&name, node.name());
    let spec = &mut pod["spec"];
    spec["volumes"] = json!([
        { "name": "map", "configMap": { "name": name } }, { "name": "scratch", "emptyDir": {} },
    ]);
    spec["containers"][0]["env"] = json!([
        { "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
    ]);
    spec["containers"][0]["volumeMounts"] = json!([
        { "name": "map", "mountPath": "/etc/one.conf", "subPath": "one" },
        { "name": "scratch", "mountPath": "/part", "subPath": "a/b" },
        { "name": "scratch", "mountPath": "/own", "subPathExpr": "of/$(NAME)" },
        { "name": "scratch", "mountPath": "/whole" },
    ]);
    // The second one mounts what the first has made into a link out.
    let mut second = spec["containers"][0].clone();
    second["name"] = json!("second");
    second["command"] = json!(["true"]);
    second["volumeMounts"] =
        json!([{ "name": "scratch", "mountPath": "/part", "subPath": "a/link" }]);
    if let Some(containers) = spec["containers"].as_array_mut() {
        containers.push(second);
    }
    cluster.apply(&[map, pod]).await?;
    let first_runs =
        |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["running"].is_object();
    cluster.until(&client, &pods::path(&name), "running", LIMIT, first_runs).await?;
    let script = "cat /etc/one.conf; echo; ls /etc/two.conf 2>&1; echo x >/part/x; echo y >/own/y; \
                  find /whole -type f; rm -rf /whole/a/link; ln -s /etc /whole/a/link";
    let said = cluster.kubectl(&["exec", &name, "-c", "main", "--", "sh", "-c", script]).await?;
    let own = format!("/whole/of/{name}/y");
    says(&said, &["first".to_owned(), "/whole/a/b/x".to_owned(), own])?;

    let refused = |pod: &Value| {
        let waiting = &pod["status"]["containerStatuses"][1]["state"]["waiting"];
        let message = waiting["message"].as_str().unwrap_or_default();
        waiting["reason"] == "CreateContainerConfigError"
            && message
                .contains("failed to prepare subPath for volumeMount \"scratch\" of container")
    };
    cluster.until(&client, &pods::path(&name), "refused", LIMIT, refused).await?;
    api::delete(&client, &pods::path(&name), Some(0)).await?;
    cluster.until_gone(&client, &pods::path(&name), LIMIT).await
}
