//! What was measured, beside what must be reached: a table, or one line of JSON.

use serde_json::json;

use crate::Turns;
use crate::power::Recovery;
use crate::quiet::Link;

/// Everything that was measured. Seconds and 10^6 bytes.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// One pod at a time.
    pub(crate) one: Turns,
    /// Twenty at once.
    pub(crate) twenty: Turns,
    /// One pod at a time while each fsync takes 30 ms longer.
    pub(crate) slow_disk: Option<Turns>,
    /// The agent without pods, after churn.
    pub(crate) idle_mb: f64,
    /// The agent with twenty pods.
    pub(crate) twenty_pods_mb: f64,
    /// The agent with twenty pods of which each has two probes.
    pub(crate) twenty_probed_mb: f64,
    /// Cloudcore.
    pub(crate) cloud_mb: f64,
    /// The agent's file.
    pub(crate) binary_mb: f64,
    /// After the power cut.
    pub(crate) power: Recovery,
    /// The idle link.
    pub(crate) link: Link,
}

/// Tells what is going on.
#[expect(clippy::print_stderr, reason = "the progress of a program that is run by hand")]
pub(crate) fn say(what: &str) {
    eprintln!("bench: {what}");
}

/// Prints the results.
#[expect(clippy::print_stdout, reason = "the result of a program")]
pub(crate) fn print(results: &Results, as_json: bool) {
    if as_json {
        println!("{}", json_of(results));
    } else {
        println!("{}", table(results));
    }
}

fn json_of(results: &Results) -> serde_json::Value {
    let turns = |turns: &Turns| {
        json!({
            "floor_s": round(turns.floor_ready.median()),
            "ready_s": round(turns.ready.median()),
            "gone_s": round(turns.gone.median()),
        })
    };

    json!({
        "one_pod": turns(&results.one),
        "twenty_pods": turns(&results.twenty),
        "agent_rss_mb": {
            "idle": round(results.idle_mb),
            "twenty_pods": round(results.twenty_pods_mb),
            "twenty_probed_pods": round(results.twenty_probed_mb),
        },
        "cloud_rss_mb": { "one_node": round(results.cloud_mb) },
        "agent_binary_mb": round(results.binary_mb),
        "power_cut_offline": {
            "pods": results.power.pods,
            "running": results.power.running,
            "seconds": round(results.power.seconds),
            "floor_s": round(results.power.floor_s),
        },
        "idle_link_bytes_per_day": results.link.bytes_per_day().round(),
    })
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// A row: what, ours, how it is distributed or what the runtime needs, the limit.
struct Row {
    what: String,
    ours: f64,
    unit: &'static str,
    beside: String,
    limit: Option<f64>,
}

fn table(results: &Results) -> String {
    let mut rows = Vec::new();
    rows.extend(of_turns("one pod", &results.one, Some((0.25, 0.4))));
    rows.extend(of_turns("20 pods", &results.twenty, Some((2.0, f64::INFINITY))));
    if let Some(slow) = &results.slow_disk {
        rows.extend(of_turns("one pod, fsync + 30 ms", slow, None));
    }
    let megabytes = |what: &str, ours, limit, beside: &str| Row {
        what: what.to_owned(),
        ours,
        unit: "MB",
        beside: beside.to_owned(),
        limit: Some(limit),
    };
    rows.push(megabytes("agent, resident, idle", results.idle_mb, 10.0, "after churn"));
    rows.push(megabytes("agent, resident, 20 pods", results.twenty_pods_mb, 13.0, ""));
    let probed = "two probes each, by exec";
    rows.push(megabytes("agent, resident, 20 probed pods", results.twenty_probed_mb, 14.0, probed));
    rows.push(megabytes("agent, file", results.binary_mb, 10.0, ""));
    rows.push(megabytes("cloudcore, resident", results.cloud_mb, 20.0, "two nodes connected"));
    let power = &results.power;
    rows.push(Row {
        what: format!("power cut offline: {} of {} run", power.running, power.pods),
        ours: power.seconds,
        unit: "s",
        beside: format!("floor {:.2}", power.floor_s),
        limit: Some(if power.running == power.pods { 2.5 } else { f64::NEG_INFINITY }),
    });
    let link = &results.link;
    let renewal = link.renewal_bytes.map_or_else(
        || "no renewal of a token seen".to_owned(),
        |bytes| format!("renewal of a token {bytes:.0} B"),
    );
    rows.push(Row {
        what: "idle link, 5 pods, a day".to_owned(),
        ours: link.bytes_per_day() / 1e6,
        unit: "MB",
        beside: renewal,
        limit: Some(2.0),
    });

    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn of_turns(what: &str, turns: &Turns, limits: Option<(f64, f64)>) -> [Row; 2] {
    let count = turns.ready.count();
    let row = |part: &str, ours: &crate::Samples, floor: &crate::Samples, limit: Option<f64>| Row {
        what: format!("{what}: {part}"),
        ours: ours.median(),
        unit: "s",
        beside: format!(
            "p95 {:.2}, floor {:.2} p95 {:.2}, ratio {:.1}, {count} times",
            ours.p95(),
            floor.median(),
            floor.p95(),
            ours.median() / floor.median(),
        ),
        limit: limit.filter(|limit| limit.is_finite()),
    };

    [
        row("create to Ready", &turns.ready, &turns.floor_ready, limits.map(|limits| limits.0)),
        row("delete to gone", &turns.gone, &turns.floor_gone, limits.map(|limits| limits.1)),
    ]
}

fn line(row: &Row) -> String {
    let verdict = match row.limit {
        None => String::new(),
        Some(limit) if row.ours <= limit => format!("<= {limit}, reached"),
        Some(limit) if limit.is_finite() => format!("<= {limit}, MISSED"),
        Some(_) => "MISSED".to_owned(),
    };

    format!("{:<40} {:>8.2} {:<3} {:<20} {}", row.what, row.ours, row.unit, verdict, row.beside)
}
