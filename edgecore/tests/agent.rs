//! The agent without a cloud, on a real container runtime: what the link would deliver is delivered
//! by hand, what it would send up is read.
//!
//! `scripts/test` runs it on a site of its own. By hand, on one of `scripts/edge-site`:
//! `HOLDFAST_TEST_SITE=NAME cargo test -p edgecore --test agent -- --ignored --test-threads 1`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use edgecore::agent::Local;
use edgecore::link::{Delivery, LinkState};
use edgecore::tasks::Tasks;
use edgecore::{Config, clock, telemetry};
use jiff::SignedDuration;
use podcore::shutdown::{Period, Periods};
use proto::ids::{Kind, ObjectKey, Uid};
use proto::object::{Change, ContentHash, Object, Version};
use proto::wire::ReportKey;
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// Longest wait for anything: a slow machine needs seconds.
const DEADLINE: Duration = Duration::from_secs(40);

#[path = "agent/eviction.rs"]
mod eviction;
#[path = "agent/logind.rs"]
mod logind;
#[path = "agent/systemd.rs"]
mod systemd;

struct Site {
    facts: BTreeMap<String, String>,
}

impl Site {
    fn find() -> Self {
        let text = Self::script("status");
        let facts = text.lines().filter_map(|line| line.split_once('='));

        Self { facts: facts.map(|(k, v)| (k.to_owned(), v.to_owned())).collect() }
    }

    /// Runs a verb of `scripts/edge-site`.
    fn script(verb: &str) -> String {
        let name = std::env::var("HOLDFAST_TEST_SITE").expect("HOLDFAST_TEST_SITE names a site");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/edge-site");
        let output =
            std::process::Command::new(script).args([verb, "--name", &name]).output().unwrap();
        assert!(output.status.success(), "edge-site {verb}: {output:?}");

        String::from_utf8(output.stdout).unwrap()
    }

    fn config(&self, state: &Path) -> Config {
        let fact = |name: &str| self.facts[name].clone();
        let text = format!(
            "nodeName: agent-test\ncloudcore: 192.0.2.1:1\nruntimeEndpoint: {}\nrootDir: {}\n\
             podLogsDir: {}\ncontainerLogsDir: {}\nstateDir: {}\ncgroupRoot: {}\nbootIdFile: {}\n\
             nodeIP: {}\nevictionHard: {{ memory.available: 100Mi }}\n",
            fact("RUNTIME"),
            fact("KUBELET_ROOT"),
            fact("POD_LOGS"),
            fact("CONTAINER_LOGS"),
            state.display(),
            fact("CGROUP_ROOT"),
            fact("BOOT_ID_FILE"),
            fact("ADDRESS"),
        );

        Config::parse(Path::new("test"), &text).unwrap()
    }
}

/// An agent and what it has reported.
struct Agent {
    local: Local,
    tasks: Tasks,
    statuses: BTreeMap<Uid, (Value, bool)>,
    /// UIDs of the pods of files, by name.
    statics: BTreeMap<String, String>,
    node: Value,
    events: Vec<String>,
    revision: u64,
}

impl Agent {
    fn start(config: &Config) -> Self {
        let mut tasks = Tasks::default();
        let local = Local::start(config, &mut tasks)
            .unwrap_or_else(|error| panic!("{}", telemetry::chain(&error)));

        Self {
            local,
            tasks,
            statuses: BTreeMap::new(),
            statics: BTreeMap::new(),
            node: Value::Null,
            events: Vec::new(),
            revision: 0,
        }
    }

    async fn stop(self) {
        drop(self.local);
        self.tasks.drain(Duration::from_secs(5)).await.unwrap();
    }

    /// What the cloud does once it has said what time it is.
    async fn deliver(&mut self, changes: Vec<Change>) {
        self.local.known.hear(clock::since_1970(), None, clock::instant());
        let (done, answer) = oneshot::channel();
        self.local
            .deliveries
            .send(Delivery { changes, high_water: Vec::new(), done })
            .await
            .unwrap();
        answer.await.unwrap().unwrap();
    }

    fn put(&mut self, key: ObjectKey, uid: &str, object: &Value) -> Change {
        self.revision += 1;
        let bytes = Bytes::from(object.to_string());
        let version = Version {
            uid: Uid::new(uid).unwrap(),
            epoch: 0,
            revision: self.revision,
            hash: ContentHash::of(&[&bytes]),
        };
        Change::Put(Object { key, version, bytes })
    }

    /// Reads reports until this many tokens are wanted.
    async fn next_tokens(&mut self, count: usize) -> BTreeSet<(Uid, String)> {
        let upstream = self.local.upstream.clone();
        let mut wanted = BTreeSet::new();
        while wanted.len() < count {
            let taken = tokio::time::timeout(DEADLINE, upstream.take()).await;
            let (reports, _) = taken.unwrap_or_else(|_| panic!("tokens asked for: {wanted:?}"));
            for report in reports {
                if let ReportKey::TokenWanted { pod, source } = report.key {
                    let ask: Value = serde_json::from_slice(&report.bytes).unwrap();
                    assert_eq!(ask["expirationSeconds"], 3607);
                    wanted.insert((pod, source));
                }
            }
        }

        wanted
    }

    /// Reads reports until `pod` satisfies `wanted`.
    async fn wait(&mut self, pod: &str, wanted: impl Fn(&Value, bool) -> bool) -> Value {
        let uid = Uid::new(pod).unwrap();
        let found = tokio::time::timeout(DEADLINE, async {
            loop {
                if let Some((status, done)) = self.statuses.get(&uid)
                    && wanted(status, *done)
                {
                    return status.clone();
                }
                self.hear().await;
            }
        });
        match found.await {
            Ok(status) => status,
            Err(tokio::time::error::Elapsed { .. }) => panic!(
                "{pod}: not in {DEADLINE:?}\nlast: {:#?}\nevents: {:#?}",
                self.statuses.get(&uid),
                self.events
            ),
        }
    }

    /// Writes a file with a pod and reads reports until it is told of; the pod's UID.
    async fn add_static(&mut self, config: &Config, name: &str) -> String {
        let mut spec = sleeper(SERVE);
        spec["volumes"] = json!([{ "name": "scratch", "emptyDir": {} }]);
        spec["containers"][0]["env"] = json!([]);
        spec["containers"][0]["volumeMounts"] = json!([]);
        let manifest = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": spec });
        let dir = config.static_pod_path.clone().unwrap();
        std::fs::write(dir.join(name), manifest.to_string()).unwrap();
        let name = format!("{name}-agent-test");
        let told = tokio::time::timeout(DEADLINE, async {
            while !self.statics.contains_key(&name) {
                self.hear().await;
            }
        });
        told.await.unwrap_or_else(|_elapsed| panic!("{name} is not told of: {:?}", self.statics));
        let uid = self.statics[&name].clone();
        let known = Uid::new(&uid).unwrap();
        eventually("it has a task", || self.local.registry.contains(&known)).await;

        uid
    }

    /// Reads reports until this condition of the node has this message.
    async fn wait_for_node(&mut self, condition: &str, message: &str) -> Value {
        let found = tokio::time::timeout(DEADLINE, async {
            loop {
                let conditions = self.node["status"]["conditions"].as_array();
                let mut conditions = conditions.into_iter().flatten();
                if let Some(found) = conditions.find(|c| c["type"] == condition)
                    && found["message"] == message
                {
                    return found.clone();
                }
                self.hear().await;
            }
        });
        found.await.unwrap_or_else(|_elapsed| panic!("not {message:?}: {:#}", self.node))
    }

    /// Reads reports until these Events have come.
    async fn wait_for_events(&mut self, wanted: &[&str]) {
        let found = tokio::time::timeout(DEADLINE, async {
            let has = |events: &[String], one: &str| events.iter().any(|event| event.contains(one));
            while !wanted.iter().all(|one| has(&self.events, one)) {
                self.hear().await;
            }
        });
        found.await.unwrap_or_else(|_elapsed| panic!("not {wanted:?}: {:#?}", self.events));
    }

    /// Takes the next reports and Events.
    async fn hear(&mut self) {
        let (reports, events) = self.local.upstream.take().await;
        for event in events {
            let event: Value = serde_json::from_slice(&event).unwrap();
            self.events.push(format!("{} {}", event["reason"], event["message"]));
        }
        for report in reports {
            let told = || serde_json::from_slice(&report.bytes).unwrap();
            if let ReportKey::PodStatus(uid) = &report.key {
                self.statuses.insert(uid.clone(), (told(), report.done));
            } else if report.key == ReportKey::NodeStatus {
                self.node = told();
            } else if report.key == ReportKey::StaticPods {
                let pods: Vec<Value> = serde_json::from_slice(&report.bytes).unwrap();
                let text = |pod: &Value, field: &str| {
                    pod["metadata"][field].as_str().unwrap_or_default().to_owned()
                };
                self.statics =
                    pods.iter().map(|pod| (text(pod, "name"), text(pod, "uid"))).collect();
            }
        }
    }
}

fn ready(status: &Value, _done: bool) -> bool {
    let conditions = status["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

fn done(_status: &Value, done: bool) -> bool {
    done
}

fn pod(uid: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "uid": uid, "namespace": "default", "name": format!("p-{uid}"),
            "labels": { "app": "test" } },
        "spec": spec,
    })
}

fn sleeper(command: &str) -> Value {
    json!({
        "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
        "containers": [{
            "name": "main", "image": "holdfast.dev/test/busybox:1",
            "command": ["sh", "-c", command],
            "env": [{ "name": "GREETING", "valueFrom":
                { "configMapKeyRef": { "name": "words", "key": "greeting" } } }],
            "volumeMounts": [
                { "name": "words", "mountPath": "/words" },
                { "name": "scratch", "mountPath": "/scratch" },
                { "name": "ram", "mountPath": "/ram" } ],
        }],
        "volumes": [
            { "name": "words", "configMap": { "name": "words" } },
            { "name": "scratch", "emptyDir": {} },
            { "name": "ram", "emptyDir": { "medium": "Memory" } } ],
    })
}

const SERVE: &str = "trap 'exit 0' TERM; echo $GREETING from $HOSTNAME; cat /words/greeting; \
    sleep 3600 & wait";

fn words(agent: &mut Agent, greeting: &str) -> Change {
    let key = ObjectKey::named(Kind::ConfigMap, "default", "words");
    let object = json!({ "metadata": { "name": "words" }, "data": { "greeting": greeting } });
    agent.put(key, "words-uid", &object)
}

fn pod_key(uid: &str) -> ObjectKey {
    ObjectKey::pod(&Uid::new(uid).unwrap())
}

fn logs(site: &Site, uid: &str, attempt: u32) -> PathBuf {
    let dir = format!("default_p-{uid}_{uid}/main/{attempt}.log");
    Path::new(&site.facts["POD_LOGS"]).join(dir)
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}: not in {DEADLINE:?}");
}

fn run(test: impl Future<Output = ()>) {
    edgecore::PROGRAM.start_log(tracing::level_filters::LevelFilter::WARN);
    edgecore::runtime().unwrap().block_on(test);
}

#[test]
#[ignore = "needs a site, which scripts/test makes"]
fn a_pod_runs_is_adopted_updated_and_deleted() {
    run(async {
        let site = Site::find();
        let state = tempfile::tempdir().unwrap();
        let config = site.config(state.path());
        let uid = "a1";

        let mut agent = Agent::start(&config);
        let map = words(&mut agent, "hello");
        let put = agent.put(pod_key(uid), uid, &pod(uid, &sleeper(SERVE)));
        let started = clock::instant();
        agent.deliver(vec![map, put]).await;
        let first = agent.wait(uid, ready).await;
        println!("ready after {:?}\n{first:#}", started.elapsed());
        let log = logs(&site, uid, 0);
        eventually("the log", || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains("hello from p-a1"))
        })
        .await;

        // A node that is cordoned says so.
        for (revision, unschedulable) in [("1", true), ("2", false)] {
            let node = json!({ "metadata": { "name": "agent-test", "resourceVersion": revision },
                "spec": { "unschedulable": unschedulable } });
            let put = agent.put(ObjectKey::node(&config.node), "node-uid", &node);
            agent.deliver(vec![put]).await;
            let closed =
                "\"NodeNotSchedulable\" \"Node agent-test status is now: NodeNotSchedulable\"";
            agent
                .wait_for_events(&[if unschedulable { closed } else { "\"NodeSchedulable\"" }])
                .await;
        }

        // A changed ConfigMap reaches the volume.
        let map = words(&mut agent, "changed");
        agent.deliver(vec![map]).await;
        let volumes = config.root_dir.join("pods").join(uid).join("volumes");
        let file = volumes.join("kubernetes.io~configmap/words/greeting");
        eventually("the file", || std::fs::read_to_string(&file).is_ok_and(|t| t == "changed"))
            .await;
        agent.stop().await;

        // Another agent adopts it, without a cloud.
        let mut agent = Agent::start(&config);
        let second = agent.wait(uid, ready).await;
        let id = |status: &Value| status["containerStatuses"][0]["containerID"].clone();
        assert_eq!(id(&first), id(&second));
        assert_eq!(second["containerStatuses"][0]["restartCount"], 0);
        assert_eq!(first["startTime"], second["startTime"]);

        let mut deleted = pod(uid, &sleeper(SERVE));
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        deleted["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        agent.revision = 10;
        let put = agent.put(pod_key(uid), uid, &deleted);
        let started = clock::instant();
        agent.deliver(vec![put]).await;
        let last = agent.wait(uid, done).await;
        println!("gone after {:?}\n{last:#}", started.elapsed());
        assert!(!config.root_dir.join("pods").join(uid).exists());
        let delete = Change::Delete { key: pod_key(uid), uid: Uid::new(uid).unwrap() };
        agent.deliver(vec![delete]).await;
        eventually("the logs are removed", || !log.exists()).await;
        println!("{:#?}", agent.events);
        agent.stop().await;
    });
}

#[test]
#[ignore = "needs a site, which scripts/test makes"]
fn a_job_ends_once_and_a_crash_loop_counts_on() {
    run(async {
        let site = Site::find();
        let state = tempfile::tempdir().unwrap();
        let config = site.config(state.path());
        let mut agent = Agent::start(&config);
        let map = words(&mut agent, "hello");
        let mut job = sleeper("echo done > /dev/termination-log");
        job["restartPolicy"] = json!("Never");
        let job = agent.put(pod_key("job"), "job", &pod("job", &job));
        let crash = agent.put(pod_key("crash"), "crash", &pod("crash", &sleeper("exit 3")));
        let mut hungry = sleeper("tail /dev/zero");
        hungry["restartPolicy"] = json!("Never");
        hungry["containers"][0]["resources"] = json!({ "limits": { "memory": "16Mi" } });
        let hungry = agent.put(pod_key("hungry"), "hungry", &pod("hungry", &hungry));
        agent.deliver(vec![map, job, crash, hungry]).await;

        let job = agent.wait("job", |status, _| status["phase"] == "Succeeded").await;
        let ended = &job["containerStatuses"][0]["state"]["terminated"];
        assert_eq!((&ended["exitCode"], &ended["message"]), (&json!(0), &json!("done\n")));
        let loops = |count: u64| {
            move |status: &Value, _| {
                let container = &status["containerStatuses"][0];
                container["restartCount"] == count
                    && container["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            }
        };
        agent.wait("crash", loops(1)).await;
        // The runtime says first that it ended, and then why.
        let killed = |status: &Value, _| {
            status["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled"
        };
        let hungry = agent.wait("hungry", killed).await;
        assert_eq!(hungry["phase"], "Failed");
        agent.stop().await;

        let mut agent = Agent::start(&config);
        agent.wait("job", |status, _| status["phase"] == "Succeeded").await;
        agent.wait("crash", loops(2)).await;
        for uid in ["job", "crash", "hungry"] {
            // Force-deleted: the object is gone without notice.
            let delete = Change::Delete { key: pod_key(uid), uid: Uid::new(uid).unwrap() };
            agent.deliver(vec![delete]).await;
        }
        for uid in ["job", "crash", "hungry"] {
            agent.wait(uid, done).await;
            let dir = config.root_dir.join("pods").join(uid);
            eventually("the volumes are removed", || !dir.exists()).await;
        }
        agent.stop().await;
    });
}

#[test]
#[ignore = "needs a site, which scripts/test makes"]
fn twenty_pods_at_once_and_an_orphan() {
    run(async {
        let site = Site::find();
        let state = tempfile::tempdir().unwrap();
        let config = site.config(state.path());
        let mut agent = Agent::start(&config);
        let uids: Vec<_> = (0..20).map(|n| format!("t{n}")).collect();
        let map = words(&mut agent, "hello");
        let mut changes = vec![map];
        for uid in &uids {
            changes.push(agent.put(pod_key(uid), uid, &pod(uid, &sleeper(SERVE))));
        }
        let started = clock::instant();
        agent.deliver(changes).await;
        for uid in &uids {
            agent.wait(uid, ready).await;
        }
        println!("twenty ready after {:?}", started.elapsed());
        agent.stop().await;

        // An agent with an empty store touches nothing before a full sync, then removes them all.
        let empty = tempfile::tempdir().unwrap();
        let agent = Agent::start(&site.config(empty.path()));
        let pods = config.root_dir.join("pods");
        let count = || std::fs::read_dir(&pods).map_or(0, Iterator::count);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(count() >= 20, "pods were removed without a sync");
        let since = clock::now();
        agent.local.link.send(LinkState::Up { since, generation: 1, synced: true }).unwrap();
        eventually("the orphans are removed", || count() == 0).await;
        agent.stop().await;
    });
}

/// A pod as the API server's admission makes it, with a projected token and its certificates.
fn with_token(uid: &str) -> Value {
    let mut spec = sleeper(SERVE);
    spec["volumes"].as_array_mut().unwrap().push(json!({
        "name": "access", "projected": { "defaultMode": 0o644, "sources": [
            { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
            { "configMap": { "name": "words", "items": [{ "key": "greeting", "path": "ca" }] } },
            { "downwardAPI": { "items": [
                { "path": "namespace", "fieldRef": { "fieldPath": "metadata.namespace" } }] } }] },
    }));
    let mount = json!({ "name": "access", "mountPath": "/access", "readOnly": true });
    spec["containers"][0]["volumeMounts"].as_array_mut().unwrap().push(mount);
    spec["containers"][0]["imagePullPolicy"] = json!("Always");

    pod(uid, &spec)
}

/// A token of an hour that is due for its renewal in as many seconds.
fn token(text: &str, due_s: i64) -> Value {
    let rest_s = due_s + 3607 / 5 + 1;
    let expires = clock::now() + SignedDuration::from_secs(rest_s);

    json!({
        "spec": { "audiences": [], "expirationSeconds": 3607 },
        "status": { "token": text, "expirationTimestamp": expires.to_string() },
    })
}

#[test]
#[ignore = "needs a site, which scripts/test makes"]
fn a_token_is_renewed_inside_a_running_container() {
    run(async {
        let site = Site::find();
        let state = tempfile::tempdir().unwrap();
        let mut agent = Agent::start(&site.config(state.path()));
        let mut pod = with_token("t");
        pod["spec"]["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
        pod["spec"]["containers"][0]["command"][2] = json!(
            "trap 'exit 0' TERM; while :; do cat /access/token; echo; sleep 0.2 & wait $!; done"
        );
        let changes = vec![words(&mut agent, "hello"), agent.put(pod_key("t"), "t", &pod)];
        agent.deliver(changes).await;
        let asked = agent.next_tokens(1).await;
        let (uid, source) = asked.first().unwrap();
        let key = ObjectKey::token(uid, source);
        let first = agent.put(key.clone(), "t", &token("first", 1));
        agent.deliver(vec![first]).await;
        let started = agent.wait("t", ready).await;

        // Due: the same is asked for again, with the first still in place.
        assert_eq!(agent.next_tokens(1).await, asked);
        let second = agent.put(key, "t", &token("second", 3000));
        agent.deliver(vec![second]).await;
        let log = logs(&site, "t", 0);
        let seen = |text: &str| {
            std::fs::read_to_string(&log).is_ok_and(|all| all.lines().any(|l| l.ends_with(text)))
        };
        eventually("the container sees the first token", || seen(" first")).await;
        eventually("the container sees the second token", || seen(" second")).await;

        let delete = Change::Delete { key: pod_key("t"), uid: Uid::new("t").unwrap() };
        agent.deliver(vec![delete]).await;
        let ended = agent.wait("t", done).await;
        assert_eq!(
            started["containerStatuses"][0]["containerID"],
            ended["containerStatuses"][0]["containerID"],
        );
        agent.stop().await;
    });
}

#[test]
#[ignore = "needs a site, which scripts/test makes"]
fn pods_run_again_after_a_power_cut_without_the_cloud() {
    run(async {
        let site = Site::find();
        let state = tempfile::tempdir().unwrap();
        let config = site.config(state.path());
        let uids: Vec<_> = (0..20).map(|n| format!("c{n}")).collect();
        let mut agent = Agent::start(&config);
        let mut changes = vec![words(&mut agent, "hello")];
        for uid in &uids {
            let mut pod = with_token(uid);
            // No registry has the image: who never had it does not get it by `Always`.
            if uid != "c0" {
                pod["spec"]["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
            }
            changes.push(agent.put(pod_key(uid), uid, &pod));
        }
        agent.deliver(changes).await;
        let wanted = agent.next_tokens(uids.len()).await;
        // The token expired long ago: it stays until there is a newer one.
        let token = json!({
            "spec": { "audiences": [], "expirationSeconds": 3607 },
            "status": { "token": "t0ken", "expirationTimestamp": "2020-01-01T00:00:00Z" },
        });
        let tokens = wanted
            .iter()
            .map(|(pod, source)| agent.put(ObjectKey::token(pod, source), pod.as_str(), &token))
            .collect();
        agent.deliver(tokens).await;
        let refused = |status: &Value, _| {
            let waiting = &status["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == "ErrImagePull" || waiting["reason"] == "ImagePullBackOff"
        };
        agent.wait("c0", refused).await;
        let mut pod = with_token("c0");
        pod["spec"]["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
        let put = agent.put(pod_key("c0"), "c0", &pod);
        agent.deliver(vec![put]).await;
        for uid in &uids {
            agent.wait(uid, ready).await;
        }
        for uid in &uids {
            let put = agent.put(pod_key(uid), uid, &with_token(uid));
            agent.deliver(vec![put]).await;
        }
        agent.stop().await;

        Site::script("powercut");
        Site::script("up");
        let started = clock::instant();
        let mut agent = Agent::start(&config);
        for uid in &uids {
            let again = |status: &Value, done| {
                ready(status, done) && status["containerStatuses"][0]["restartCount"] == 1
            };
            agent.wait(uid, again).await;
        }
        println!("twenty ready again after {:?}", started.elapsed());
        let token = config.root_dir.join("pods/c0/volumes/kubernetes.io~projected/access/token");
        assert_eq!(std::fs::read_to_string(token).unwrap(), "t0ken");
        for uid in &uids {
            let delete = Change::Delete { key: pod_key(uid), uid: Uid::new(uid).unwrap() };
            agent.deliver(vec![delete]).await;
        }
        for uid in &uids {
            agent.wait(uid, done).await;
        }
        let pods = config.root_dir.join("pods");
        eventually("all is removed", || {
            std::fs::read_dir(&pods).is_ok_and(|left| left.count() == 0)
        })
        .await;
        agent.stop().await;
    });
}

#[test]
#[ignore = "needs a site, which scripts/test makes"]
fn pods_are_stopped_in_order_and_run_again_after_the_shutdown() {
    run(async {
        let site = Site::find();
        let state = tempfile::tempdir().unwrap();
        let (mut logind, bus) = logind::FakeLogind::start(state.path());
        let mut config = site.config(state.path());
        config.system_bus = bus;
        let files = tempfile::tempdir().unwrap();
        config.static_pod_path = Some(files.path().to_owned());
        let period = |priority| Period { priority, grace_s: 20 };
        config.shutdown_periods = Periods::ByPriority(vec![period(1_000_000), period(0)]);
        let mut agent = Agent::start(&config);
        // The critical pod would end at once, the other takes its time.
        let slow = "trap 'sleep 2; exit 0' TERM; sleep 3600 & wait";
        let mut changes = vec![words(&mut agent, "hello")];
        for (uid, command, policy, priority) in [
            ("plain", slow, "OnFailure", 0),
            ("critical", SERVE, "Always", 2_000_000_000),
            ("once", SERVE, "Never", 0),
        ] {
            let mut spec = sleeper(command);
            spec["restartPolicy"] = json!(policy);
            spec["priority"] = json!(priority);
            changes.push(agent.put(pod_key(uid), uid, &pod(uid, &spec)));
        }
        agent.deliver(changes).await;
        for uid in ["plain", "critical", "once"] {
            agent.wait(uid, ready).await;
        }
        go_down(&mut agent, &mut logind).await;
        let first = agent.add_static(&config, "first").await;
        agent.stop().await;

        // The machine went down and comes up, without the cloud.
        Site::script("powercut");
        Site::script("up");
        logind.reboot();
        let mut agent = Agent::start(&config);
        for uid in ["plain", "critical"] {
            let status = agent.wait(uid, ready).await;
            assert_eq!(status["containerStatuses"][0]["restartCount"], 1, "{uid}");
            assert!(status["reason"].is_null(), "{uid}");
        }
        failed_for_good(&mut agent, "once").await;
        // Nobody else would start a pod of a file: it was not refused.
        agent.wait(&first, ready).await;

        // A shutdown that is called off.
        logind.next_delay();
        logind.go_down(true);
        agent.wait("plain", stopped).await;
        agent.wait("critical", stopped).await;
        let second = agent.add_static(&config, "second").await;
        logind.go_down(false);
        agent.wait("plain", ready).await;
        agent.wait(&second, ready).await;
        agent.wait_for_node("Ready", "kubelet is posting ready status").await;
        logind.next_delay();
        let all = ["plain", "critical", "once", "late"];
        let gone = all.map(|uid| Change::Delete { key: pod_key(uid), uid: Uid::new(uid).unwrap() });
        agent.deliver(gone.to_vec()).await;
        for name in ["first", "second"] {
            std::fs::remove_file(files.path().join(name)).unwrap();
        }
        for uid in all.into_iter().chain([first.as_str(), second.as_str()]) {
            agent.wait(uid, done).await;
        }
        agent.stop().await;
    });
}

/// The machine goes down.
async fn go_down(agent: &mut Agent, logind: &mut logind::FakeLogind) {
    let delay = logind.next_delay();
    // What somebody else says in logind's words stops nothing.
    logind.lie().await;
    logind.go_down(true);
    let mut ends = Vec::new();
    for (uid, phase) in [("plain", "Running"), ("critical", "Running"), ("once", "Failed")] {
        let status = agent.wait(uid, stopped).await;
        assert_eq!(status["phase"], phase, "{uid}: {status:#}");
        ends.push(ended(&status));
    }
    assert!(ends[0] <= ends[1], "the critical pod ended first: {ends:?}");
    logind::released(delay).await;
    let node = agent.wait_for_node("Ready", "node is shutting down").await;
    assert_eq!((&node["status"], &node["reason"]), (&json!("False"), &json!("KubeletNotReady")));
    agent
        .wait_for_events(&[
            "\"Starting\"",
            "\"NodeHasSufficientMemory\"",
            "\"NodeShutdown\" \"Shutdown manager detected shutdown event\"",
        ])
        .await;
    let detected = agent.events.iter().filter(|event| event.contains("detected shutdown event"));
    assert_eq!(detected.count(), 1, "{:?}", agent.events);
    let late = agent.put(pod_key("late"), "late", &pod("late", &sleeper(SERVE)));
    agent.deliver(vec![late]).await;
    let late = agent.wait("late", |status, _| status["reason"] == "NodeShutdown").await;
    assert_eq!(late["phase"], "Failed");
    let message = "Pod was rejected: Pod was rejected as the node is shutting down.";
    assert_eq!(late["message"], message);
}

async fn failed_for_good(agent: &mut Agent, uid: &str) {
    let status = agent.wait(uid, |status, _| status["phase"] == "Failed").await;
    assert_eq!(status["reason"], "Terminated");
    let message = "Pod was terminated in response to imminent node shutdown.";
    assert_eq!(status["message"], message);
    let mut conditions = status["conditions"].as_array().unwrap().iter();
    let disrupted = conditions.find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!(disrupted["reason"], "TerminationByKubelet");
}

/// Stopped because the node goes down.
fn stopped(status: &Value, _done: bool) -> bool {
    status["reason"] == "Terminated" && !ended(status).is_empty()
}

fn ended(status: &Value) -> String {
    let state = &status["containerStatuses"][0]["state"]["terminated"];

    state["finishedAt"].as_str().unwrap_or_default().to_owned()
}
