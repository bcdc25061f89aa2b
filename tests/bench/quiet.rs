//! A node where nothing happens: what its link carries, counted at the interface with TCP/IP.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::{api, pods, wait};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Pods of the node, each with the token that every pod has.
const PODS: u32 = 5;
/// Pods are Ready by then.
const READY_LIMIT: Duration = Duration::from_mins(2);
/// What the start of the pods has left to do is done by then: they are protected from eviction when
/// they have been Ready for two minutes, which changes them once.
const SETTLE: Duration = Duration::from_secs(150);
/// Bytes are counted from then until the spell ends.
const SPELL_MINUTES: RangeInclusive<u64> = 4..=1440;
/// The shortest life that an API server gives a token. It is renewed at 80 %, with a jitter: between
/// the two.
const SHORT_TOKEN_S: u32 = 600;
const RENEWAL_BEGINS: Duration = Duration::from_secs(430);
const RENEWAL_ENDS: Duration = Duration::from_secs(530);
/// The life of the token that every pod has (kube-apiserver: the ServiceAccount admission plugin).
const TOKEN_S: f64 = 3607.0;
const DAY_S: f64 = 86400.0;

/// How often the counters are read.
const LOOK: Duration = Duration::from_secs(5);

/// When, since the pods are Ready, and what the counters said.
type Readings = Arc<Mutex<Vec<(Duration, f64)>>>;

/// A spell of minutes, if it is long enough to count.
pub(crate) fn spell(minutes: &str) -> Result<Duration, String> {
    let minutes = minutes.parse().ok().filter(|minutes| SPELL_MINUTES.contains(minutes));
    let (least, most) = (SPELL_MINUTES.start(), SPELL_MINUTES.end());

    minutes
        .map(Duration::from_mins)
        .ok_or_else(|| format!("the pods settle first: write {least} to {most} minutes"))
}

/// A node with idle pods.
#[derive(Debug)]
pub(crate) struct Quiet {
    node: EdgeNode,
    readings: Readings,
    _reader: JoinSet<Result<()>>,
}

/// What the link of an idle node costs.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// Without renewals of tokens.
    pub(crate) base_bytes_per_day: f64,
    /// One renewal; nothing if the spell was too short to see one.
    pub(crate) renewal_bytes: Option<f64>,
}

impl Link {
    /// All of it: every pod renews its token at 80 % of its life.
    pub(crate) fn bytes_per_day(&self) -> f64 {
        let renewals = f64::from(PODS) * DAY_S / (TOKEN_S * 0.8);

        self.base_bytes_per_day + renewals * self.renewal_bytes.unwrap_or_default()
    }
}

impl Quiet {
    /// Joins a node and starts its pods. They have a token of short life besides, to see a renewal.
    pub(crate) async fn start(cluster: &Cluster, client: &Client) -> Result<Self> {
        let node = EdgeNode::join(cluster, client).await?;
        for _ in 0..PODS {
            let name = format!("quiet-{}", unique());
            let pod = with_short_token(pods::sleeper(&name, node.name()));
            api::create(client, "/api/v1/namespaces/default/pods", &pod).await?;
            cluster.until(client, &pods::path(&name), "Ready", READY_LIMIT, pods::is_ready).await?;
        }
        let interface = Path::new("/sys/class/net").join(node.site().fact("VETH")?);
        let readings = Readings::default();
        let mut reader = JoinSet::new();
        reader.spawn(read(interface, Arc::clone(&readings)));

        Ok(Self { node, readings, _reader: reader })
    }

    /// Waits until the spell is over.
    pub(crate) async fn finish(self, spell: Duration) -> Result<Link> {
        let (since, before) = self.reading(SETTLE).await?;
        let (until, after) = self.reading(spell.min(RENEWAL_BEGINS)).await?;
        let per_second = (after - before) / until.saturating_sub(since).as_secs_f64();
        let mut renewal_bytes = None;
        if spell >= RENEWAL_ENDS {
            let (end, last) = self.reading(RENEWAL_ENDS).await?;
            let excess = last - after - per_second * end.saturating_sub(until).as_secs_f64();
            renewal_bytes = Some((excess / f64::from(PODS)).max(0.0));
        }
        drop(self.node);

        Ok(Link { base_bytes_per_day: per_second * DAY_S, renewal_bytes })
    }

    /// The first reading not before a time; waits for it.
    async fn reading(&self, at: Duration) -> Result<(Duration, f64)> {
        let look = || async {
            let readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(readings.iter().copied().find(|(when, _)| *when >= at))
        };
        let seen = wait::until("a reading", at + READY_LIMIT, look, Option::is_some).await?;

        seen.context("no reading")
    }
}

async fn read(interface: PathBuf, readings: Readings) -> Result<()> {
    let began = Instant::now();
    loop {
        let reading = (began.elapsed(), bytes(&interface)?);
        readings.lock().unwrap_or_else(PoisonError::into_inner).push(reading);
        sleep(LOOK).await;
    }
}

fn with_short_token(mut pod: Value) -> Value {
    let token =
        json!({ "serviceAccountToken": { "path": "token", "expirationSeconds": SHORT_TOKEN_S } });
    pod["spec"]["volumes"] = json!([{ "name": "short", "projected": { "sources": [token] } }]);
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "short", "mountPath": "/short" }]);

    pod
}

/// Both directions.
fn bytes(interface: &Path) -> Result<f64> {
    let mut sum = 0.0;
    for file in ["rx_bytes", "tx_bytes"] {
        let path = interface.join("statistics").join(file);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        sum += text.trim().parse::<f64>()?;
    }

    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spell_that_ends_before_anything_is_counted_is_refused() {
        assert!(Duration::from_mins(*SPELL_MINUTES.start()) > SETTLE + 2 * LOOK);
        assert_eq!(spell("4"), Ok(Duration::from_mins(4)));
        for wrong in ["3", "1", "0", "-1", "", "ten", "1441", "18446744073709551615"] {
            let error = spell(wrong).unwrap_err();
            assert!(error.contains("4 to 1440 minutes"), "{wrong}: {error}");
        }
    }
}
