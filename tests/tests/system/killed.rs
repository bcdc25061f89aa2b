//! T3: the agent is killed at every call it makes of the runtime while a pod starts, while it is adopted
//! and while it stops: before the call, in its midst and after it. The next agent ends with exactly what
//! is wanted, as if nothing had happened.
//!
//! The seed is printed; `HOLDFAST_KILLS` says how many calls are sampled, or `all`, in their midst too.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::dice::Dice;
use system_tests::held::Held;
use system_tests::node::EdgeNode;
use system_tests::pods::{self, Incarnation};
use system_tests::relay::{Moment, Relay};
use system_tests::{api, wait};

/// One start or stop on a busy machine, with what an interrupted call must be waited for.
const LIMIT: Duration = Duration::from_mins(2);

/// Calls sampled unless told otherwise.
const SAMPLE: usize = 12;

/// How far a call may have come when its caller dies. Creating a sandbox takes a few hundred.
const DURING_MS_MAX: u64 = 200;

const PODS: &str = "/api/v1/namespaces/default/pods";
const PORT: u16 = 18_081;

/// What runs of the pod, and what has run.
const CONTAINERS: [(&str, bool); 5] =
    [("first", false), ("second", false), ("side", true), ("main", true), ("other", true)];

struct World {
    cluster: Cluster,
    client: Client,
    node: EdgeNode,
    relay: Relay,
    map: String,
    lives: u32,
}

/// How many calls there were of the runtime.
#[derive(Clone, Copy, Debug)]
struct Calls {
    start: u64,
    adoption: u64,
    stop: u64,
}

/// Counts in `/once` how often each container started.
fn container(name: &str, script: &str) -> Value {
    let script = format!("trap 'exit 0' TERM; echo {name} >> /once/starts; {script}");
    let mount = |name: &str| json!({ "name": name, "mountPath": format!("/{name}") });

    json!({
        "name": name, "image": pods::BUSYBOX, "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", script],
        "volumeMounts": [mount("once"), mount("ram"), mount("map"), mount("all")],
    })
}

const SLEEP: &str = "while :; do sleep 1000 & wait; done";

fn pod(name: &str, node: &str, map: &str) -> Value {
    let mut pod = pods::sleeper(name, node);
    let spec = &mut pod["spec"];
    let mut side = container("side", SLEEP);
    side["restartPolicy"] = json!("Always");
    let mut main = container("main", SLEEP);
    let command = |script: &str| json!({ "exec": { "command": ["/bin/sh", "-c", script] } });
    main["lifecycle"] = json!({ "postStart": command("true"), "preStop": command("true") });
    main["ports"] = json!([{ "containerPort": 8080, "hostPort": PORT }]);
    let first = container("first", "exit 0");
    spec["initContainers"] = json!([first, side, container("second", "exit 0")]);
    spec["containers"] = json!([main, container("other", SLEEP)]);
    spec["volumes"] = json!([
        { "name": "once", "emptyDir": {} },
        { "name": "ram", "emptyDir": { "medium": "Memory" } },
        { "name": "map", "configMap": { "name": map } },
        { "name": "all", "projected": { "sources": [
            { "serviceAccountToken": { "path": "token" } },
            { "configMap": { "name": map } },
        ] } },
    ]);

    pod
}

impl World {
    /// A node whose agent speaks with its runtime through a relay.
    async fn up() -> Result<Self> {
        let cluster = Cluster::shared().await?;
        let client = cluster.client().await?;
        let node = EdgeNode::join(&cluster, &client).await?;
        let runtime = node.site().fact("RUNTIME")?.to_owned();
        let socket = node.site().runtime_folder()?.join("relay.sock");
        let relay = Relay::start(&socket, runtime.trim_start_matches("unix://").as_ref())?;
        let config = node.site().path("STATE")?.join("holdfast/edgecore.yaml");
        let text = std::fs::read_to_string(&config)?;
        ensure!(text.contains(&runtime), "no {runtime} in {text}");
        let through = format!("unix://{}", socket.display());
        std::fs::write(&config, text.replace(&runtime, &through))?;
        node.kill_agent().await?;
        node.start_agent().await?;
        let map = format!("killed-{}", unique());
        cluster.apply(&[pods::config_map(&map, "0")]).await?;

        Ok(Self { cluster, client, node, relay, map, lives: 0 })
    }

    /// Waits until `reached`, with another agent if this one is killed on the way; returns the calls
    /// until then, or until its death.
    async fn through(&self, what: &str, reached: impl AsyncFn() -> Result<bool>) -> Result<u64> {
        let ended = async || Ok(self.relay.has_killed() || reached().await?);
        wait::until(what, LIMIT, ended, |is| *is).await?;
        let (calls, killed) = self.relay.disarm().await;
        if let Some(call) = killed {
            self.node.start_agent().await?;
            let what = format!("{what} after a kill at {call}");
            wait::until(&what, LIMIT, || reached(), |is| *is).await?;
        }

        Ok(calls)
    }

    /// A pod's life, with a kill at the `nth` call of its start, of its adoption and of its stop.
    async fn life(&mut self, nth: u64, moment: Moment) -> Result<Calls> {
        self.lives += 1;
        let name = format!("{}-{}", self.map, self.lives);
        let path = pods::path(&name);
        let get = async || self.cluster.get(&self.client, &path).await;
        let is_ready = async || Ok(get().await?.is_some_and(|pod| pods::is_ready(&pod)));

        self.relay.arm(nth, moment);
        api::create(&self.client, PODS, &pod(&name, self.node.name(), &self.map)).await?;
        let start = self.through("the pod to be Ready", is_ready).await?;
        self.until_exact(&path).await?;
        let born = Incarnation::of(&get().await?.context("the pod")?);

        self.node.kill_agent().await?;
        self.relay.arm(nth, moment);
        self.node.start_agent().await?;
        let news = self.lives.to_string();
        let map = format!("/api/v1/namespaces/default/configmaps/{}", self.map);
        api::merge(&self.client, &map, &json!({ "data": { "key": news } })).await?;
        let file = format!("pods/{}/volumes/kubernetes.io~configmap/map/key", born.uid);
        let file = self.node.site().path("KUBELET_ROOT")?.join(file);
        let is_told = async || Ok(tokio::fs::read_to_string(&file).await? == news);
        let adoption = self.through("the changed ConfigMap", is_told).await?;
        self.until_exact(&path).await?;
        let adopted = Incarnation::of(&get().await?.context("the pod")?);
        ensure!(adopted == born, "{born:?} became {adopted:?}");

        self.relay.arm(nth, moment);
        api::delete(&self.client, &path, None).await?;
        let is_gone = async || Ok(get().await?.is_none());
        let stop = self.through("the pod to be gone", is_gone).await?;
        let differences = async || Ok(Held::by(self.node.site()).await?.differences(&[]));
        wait::until("nothing to be held", LIMIT, differences, Vec::is_empty).await?;

        Ok(Calls { start, adoption, stop })
    }

    /// Waits until the node holds the pod and nothing else.
    async fn until_exact(&self, path: &str) -> Result<()> {
        let differences = async || {
            let pod = self.cluster.get(&self.client, path).await?.context("the pod")?;
            let held = Held::by(self.node.site()).await?;
            let mut found = held.differences(std::slice::from_ref(&pod));
            let have = held.containers.values().map(|c| (c.name.as_str(), c.running));
            let mut have: Vec<_> = have.collect();
            let mut wanted = CONTAINERS.to_vec();
            let statuses = ["initContainerStatuses", "containerStatuses"];
            let statuses = statuses.iter().filter_map(|list| pod["status"][list].as_array());
            for status in statuses.flatten() {
                // And then it says of it that it failed, as it would to a kubelet.
                let end = &status["lastState"]["terminated"];
                let is_taken_back = end["reason"] == "StartError" || end["exitCode"] == 137;
                let name = status["name"].as_str().unwrap_or_default();
                wanted.extend(is_taken_back.then_some((name, false)));
                if status["restartCount"] != u64::from(is_taken_back) {
                    found.push(format!("restarted was {status}"));
                }
            }
            have.sort_unstable();
            wanted.sort_unstable();
            if have != wanted || held.sandboxes.len() != 1 {
                found.push(format!("held are {have:?} in {:?}", held.sandboxes));
            }
            let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
            let starts = format!("pods/{uid}/volumes/kubernetes.io~empty-dir/once/starts");
            let starts = self.node.site().path("KUBELET_ROOT")?.join(starts);
            let starts = tokio::fs::read_to_string(&starts).await?;
            let spare = starts.lines().count().saturating_sub(CONTAINERS.len());
            // A start whose caller goes is taken back by the runtime, at times when it has begun.
            if spare > 1 {
                found.push(format!("started were {:?}", starts.lines().collect::<Vec<_>>()));
            }

            Ok(found)
        };

        wait::until("the node to hold the pod", LIMIT, differences, Vec::is_empty).await.map(drop)
    }
}

#[tokio::test]
async fn an_agent_killed_at_any_call_leaves_what_the_next_one_completes() -> Result<()> {
    let seed = Dice::seed();
    eprintln!("killed: HOLDFAST_SEED={seed}");
    let mut dice = Dice::new(seed);
    let mut world = World::up().await?;
    let calls = world.life(u64::MAX, Moment::Before).await?;
    let most = calls.start.max(calls.adoption).max(calls.stop);
    let mut kills: Vec<(u64, Moment)> = (1..=most)
        .flat_map(|nth| {
            let during = Moment::During(Duration::from_millis(dice.below(DURING_MS_MAX)));
            [Moment::Before, during, Moment::After].map(|moment| (nth, moment))
        })
        .collect();
    let told = std::env::var("HOLDFAST_KILLS").unwrap_or_default();
    if told != "all" {
        // What becomes of calls that are cut off in their midst is up to the runtime, and chance.
        kills.retain(|(_, moment)| !matches!(moment, Moment::During(_)));
        dice.shuffle(&mut kills);
        kills.truncate(told.parse().unwrap_or(SAMPLE));
    }
    eprintln!("killed: {calls:?}, {} lives", kills.len());
    for (nth, moment) in kills {
        let life = world.life(nth, moment).await;
        if life.is_err() {
            let log = world.node.agent_log().await?;
            let end: Vec<_> = log.lines().rev().take(30).collect();
            eprintln!("{:#?}\n{}", Held::by(world.node.site()).await?, end.join("\n"));
        }
        life.with_context(|| format!("a life with kills at calls {nth}, {moment:?}"))?;
    }

    world.cluster.kubectl(&["delete", "configmap", &world.map]).await.map(drop)
}
