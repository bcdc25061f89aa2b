//! T22: the agent's store is cut short, has bits flipped, is gone, cannot be opened by its key or is of a
//! later release. The agent says so by name, no container notices, with and without the cloud, and what
//! the store has lost comes from the cloud again.
//!
//! Where bits are flipped is chosen by the seed that is printed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::dice::Dice;
use system_tests::held::Held;
use system_tests::node::EdgeNode;
use system_tests::pods::{self, Incarnation};
use system_tests::{api, wait};

const LIMIT: Duration = Duration::from_mins(2);
const PODS: usize = 3;
/// Where SQLite keeps the number that the store takes for its schema.
const SCHEMA_AT: u64 = 60;

/// What happens to the files of the store while no agent runs.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// The file ends in its middle.
    CutShort,
    /// The files are there, with nothing in them.
    Emptied,
    /// The files are not there.
    Gone,
    /// Something else is in the file.
    Overwritten,
    /// As many bits are others.
    Flipped(u64),
    /// The key that opens the rows is another store's.
    KeyGone,
}

impl Damage {
    /// What the next agent says of it.
    fn word(self) -> &'static str {
        match self {
            Self::CutShort | Self::Overwritten => "state.db is damaged",
            Self::Emptied | Self::Gone => "opened the store objects=0 intact=false",
            Self::Flipped(_) => "opened the store",
            Self::KeyGone => "does not open the store",
        }
    }

    fn strike(self, folder: &Path, dice: &mut Dice) -> Result<()> {
        let database = folder.join("state.db");
        let logged = folder.join("state.db-wal");
        let open = |path: &Path| File::options().read(true).write(true).open(path);
        match self {
            Self::CutShort => {
                let file = open(&database)?;
                file.set_len(file.metadata()?.len() / 2)?;
            }
            Self::Emptied => open(&database)?.set_len(0)?,
            Self::Gone => fs::remove_file(&database)?,
            Self::Overwritten => {
                let length = fs::metadata(&database)?.len();
                fs::write(&database, vec![0xA5; usize::try_from(length)?])?;
            }
            Self::Flipped(bits) => {
                for _ in 0..bits {
                    let path = dice.pick([&database, &logged]).context("one of two")?;
                    let file = open(path)?;
                    let length = file.metadata()?.len();
                    if length > 0 {
                        let (at, mut byte) = (dice.below(length), [0]);
                        file.read_exact_at(&mut byte, at)?;
                        byte[0] ^= 1 << dice.below(8);
                        file.write_all_at(&byte, at)?;
                    }
                }
            }
            Self::KeyGone => fs::remove_file(folder.join("store.key"))?,
        }

        Ok(())
    }
}

struct World {
    cluster: Cluster,
    client: Client,
    node: EdgeNode,
    folder: PathBuf,
    name: String,
    before: Vec<Value>,
    changes: u32,
}

impl World {
    async fn up() -> Result<Self> {
        let cluster = Cluster::shared().await?;
        let client = cluster.client().await?;
        let node = EdgeNode::join(&cluster, &client).await?;
        let folder = node.site().path("STATE")?.join("holdfast/state");
        let name = format!("damage-{}", unique());
        let mut manifests = vec![pods::config_map(&name, "0")];
        manifests.extend(
            (0..PODS).map(|n| pods::sleeper_with_map(&format!("{name}-{n}"), node.name(), &name)),
        );
        cluster.apply(&manifests).await?;
        let mut world =
            Self { cluster, client, node, folder, name, before: Vec::new(), changes: 0 };
        for n in 0..PODS {
            let path = pods::path(&format!("{}-{n}", world.name));
            let ready = pods::is_ready;
            world
                .before
                .push(world.cluster.until(&world.client, &path, "Ready", LIMIT, ready).await?);
        }

        Ok(world)
    }

    /// Nothing was restarted, by the API server and by the runtime.
    async fn check_untouched(&self) -> Result<()> {
        let held = Held::by(self.node.site()).await?;
        for pod in &self.before {
            let born = Incarnation::of(pod);
            let ids =
                born.containers.values().map(|(id, _)| id.trim_start_matches("containerd://"));
            let running = held.running(&born.uid);
            ensure!(running.values().map(String::as_str).eq(ids), "{born:?}, but runs {running:?}");
        }

        Ok(())
    }

    /// Waits until the agent does what the cloud wants, and holds exactly that.
    async fn until_whole(&mut self) -> Result<()> {
        self.changes += 1;
        let news = self.changes.to_string();
        let map = format!("/api/v1/namespaces/default/configmaps/{}", self.name);
        api::merge(&self.client, &map, &json!({ "data": { "key": news } })).await?;
        for pod in &self.before {
            let uid = pod["metadata"]["uid"].as_str().context("uid")?;
            self.node.until_map_says(uid, &news, LIMIT).await?;
        }
        let differences = async || {
            let mut pods = Vec::new();
            for pod in &self.before {
                let path = pods::path(pod["metadata"]["name"].as_str().unwrap_or_default());
                pods.push(self.cluster.get(&self.client, &path).await?.context("the pod")?);
            }
            for (before, now) in self.before.iter().zip(&pods) {
                let (before, now) = (Incarnation::of(before), Incarnation::of(now));
                ensure!(before == now, "{before:?} became {now:?}");
            }

            Ok(Held::by(self.node.site()).await?.differences(&pods))
        };
        wait::until("the node to hold the pods", LIMIT, differences, Vec::is_empty).await?;

        self.check_untouched().await
    }

    /// Waits until the agent has said `word` since its log was `said` bytes long.
    async fn until_said(&self, said: usize, word: &str) -> Result<()> {
        let log = async || Ok(self.node.agent_log().await?.split_off(said));
        let has_said = |log: &String| log.contains(word);

        wait::until(&format!("the agent to say {word:?}"), LIMIT, log, has_said).await.map(drop)
    }

    /// Asked to stop, the agent leaves all of the store in one file.
    async fn stop_agent(&self) -> Result<()> {
        let agent = i32::try_from(self.node.agent_pid().await?)?;
        kill_process(Pid::from_raw(agent).context("pid")?, Signal::TERM)?;
        let logged = self.folder.join("state.db-wal");
        let is_closed = async || Ok(self.node.agent_pid().await.is_err() && !logged.exists());

        wait::until("the store to be closed", LIMIT, is_closed, |is| *is).await.map(drop)
    }

    /// The next agent finds the damage.
    async fn strike(&self, damage: Damage, dice: &mut Dice) -> Result<()> {
        match damage {
            // Some are in the log of what was written last.
            Damage::Flipped(_) => self.node.kill_agent().await?,
            Damage::CutShort
            | Damage::Emptied
            | Damage::Gone
            | Damage::Overwritten
            | Damage::KeyGone => self.stop_agent().await?,
        }
        let said = self.node.agent_log().await?.len();
        damage.strike(&self.folder, dice)?;
        self.node.start_agent().await?;
        self.until_said(said, damage.word()).await
    }

    /// A store of a later release is left as it is, and so is all that runs.
    async fn check_newer_schema(&mut self) -> Result<()> {
        self.stop_agent().await?;
        let database = self.folder.join("state.db");
        let original = fs::read(&database)?;
        let later = 99_u32.to_be_bytes();
        File::options().write(true).open(&database)?.write_all_at(&later, SCHEMA_AT)?;
        let struck = fs::read(&database)?;

        let said = self.node.agent_log().await?.len();
        self.node.start_agent().await?;
        self.until_said(said, "has schema 99 and this release knows").await?;
        let is_over = async || Ok(self.node.agent_pid().await.is_err());
        wait::until("the agent to refuse", LIMIT, is_over, |is| *is).await?;
        ensure!(fs::read(&database)? == struck, "the store of a later release was changed");
        self.check_untouched().await?;

        fs::write(&database, original)?;
        self.node.start_agent().await?;
        self.until_whole().await
    }
}

#[tokio::test]
async fn a_damaged_store_is_named_and_repaired_and_no_container_notices() -> Result<()> {
    let seed = Dice::seed();
    eprintln!("damage: HOLDFAST_SEED={seed}");
    let mut dice = Dice::new(seed);
    let mut world = World::up().await?;
    let damages = [
        Damage::CutShort,
        Damage::Emptied,
        Damage::Gone,
        Damage::Overwritten,
        Damage::KeyGone,
        Damage::Flipped(1),
        Damage::Flipped(8),
        Damage::Flipped(100),
    ];
    for damage in damages {
        world.strike(damage, &mut dice).await?;
        world.until_whole().await.with_context(|| format!("after {damage:?}"))?;
    }
    world.check_newer_schema().await?;

    // Without the cloud there is nothing to repair it with, and still nothing is touched.
    for damage in [Damage::Gone, Damage::CutShort] {
        world.node.site().cut().await?;
        world.strike(damage, &mut dice).await?;
        world.check_untouched().await?;
        world.node.site().restore().await?;
        world.until_whole().await.with_context(|| format!("after {damage:?} without the cloud"))?;
    }

    // What the cloud has deleted meanwhile goes, once that is certain.
    world.stop_agent().await?;
    Damage::Gone.strike(&world.folder, &mut dice)?;
    let deleted = world.before.pop().context("a pod")?;
    let path = pods::path(deleted["metadata"]["name"].as_str().unwrap_or_default());
    api::delete(&world.client, &path, Some(0)).await?;
    world.node.start_agent().await?;
    world.until_whole().await?;

    for pod in &world.before {
        let path = pods::path(pod["metadata"]["name"].as_str().unwrap_or_default());
        api::delete(&world.client, &path, Some(0)).await?;
    }

    world.cluster.kubectl(&["delete", "configmap", &world.name]).await.map(drop)
}
