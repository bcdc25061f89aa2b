//! Thresholds as the kubelet's configuration file writes them (`ParseThresholdConfig`).

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{Amount, Policy, Signal, Threshold, WHOLE};
use crate::quantity;

/// The hard thresholds where none are given (kubelet: `DefaultEvictionHard`).
pub const DEFAULT_HARD: [(&str, &str); 5] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
];

/// By signal.
type Map = BTreeMap<String, String>;

/// What a configuration file says.
#[derive(Clone, Copy, Debug)]
pub struct Texts<'a> {
    /// `evictionHard`.
    pub hard: &'a Map,
    /// `evictionSoft`.
    pub soft: &'a Map,
    /// `evictionSoftGracePeriod`.
    pub soft_grace: &'a Map,
    /// `evictionMinimumReclaim`.
    pub min_reclaim: &'a Map,
    /// `evictionPressureTransitionPeriod`.
    pub transition: &'a str,
    /// `evictionMaxPodGracePeriod`.
    pub pod_grace_max_s: i64,
}

/// What is wrong: the field and why.
pub type Wrong = (String, String);

/// Reads thresholds, telling everything that is wrong.
pub fn parse(texts: &Texts<'_>) -> Result<Policy, Vec<Wrong>> {
    let mut wrong = Vec::new();
    let mut thresholds = read(texts.hard, "evictionHard", &mut wrong);
    let mut soft = read(texts.soft, "evictionSoft", &mut wrong);
    let graces = graces(texts.soft_grace, &mut wrong);
    for threshold in &mut soft {
        let signal = threshold.signal;
        threshold.grace = graces.get(&signal).copied();
        if threshold.grace.is_none() && !texts.soft_grace.contains_key(signal.as_str()) {
            let why = format!("needs a period in evictionSoftGracePeriod.{}", signal.as_str());
            wrong.push((format!("evictionSoft.{}", signal.as_str()), why));
        }
    }
    thresholds.extend(soft);
    for reclaim in read(texts.min_reclaim, "evictionMinimumReclaim", &mut wrong) {
        for threshold in thresholds.iter_mut().filter(|t| t.signal == reclaim.signal) {
            threshold.min_reclaim = Some(reclaim.value);
        }
    }
    thresholds.extend(of_allocatable(&thresholds));
    let transition = duration(texts.transition);
    if transition.is_none() {
        wrong.push(("evictionPressureTransitionPeriod".to_owned(), no_duration(texts.transition)));
    }
    if texts.pod_grace_max_s < 0 {
        let why = format!("{} is less than 0", texts.pod_grace_max_s);
        wrong.push(("evictionMaxPodGracePeriod".to_owned(), why));
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }

    Ok(Policy {
        thresholds,
        transition: transition.unwrap_or_default(),
        pod_grace_max_s: texts.pod_grace_max_s,
    })
}

/// What holds for the memory of the node holds for that of all pods too, so that they are evicted before the
/// kernel kills in their cgroup (`addAllocatableThresholds`).
fn of_allocatable(thresholds: &[Threshold]) -> Vec<Threshold> {
    let memory = thresholds.iter().filter(|t| t.signal == Signal::MemoryAvailable && t.is_hard());
    let signal = Signal::AllocatableMemoryAvailable;

    memory.map(|threshold| Threshold { signal, ..*threshold }).collect()
}

fn signal(name: &str) -> Option<Signal> {
    Signal::ALL.into_iter().find(|signal| signal.as_str() == name)
}

fn no_signal(name: &str) -> String {
    let all = Signal::ALL.map(Signal::as_str).join(", ");

    format!("{name:?} is not one of {all}")
}

/// What is said of each signal. All and nothing mean that nothing is to be done.
fn read(map: &Map, field: &str, wrong: &mut Vec<Wrong>) -> Vec<Threshold> {
    let mut found = Vec::new();
    for (name, text) in map {
        let Some(signal) = signal(name) else {
            wrong.push((field.to_owned(), no_signal(name)));
            continue;
        };
        if matches!(text.as_str(), "0%" | "100%") {
            continue;
        }
        if let Some(value) = amount(text) {
            found.push(Threshold { signal, value, grace: None, min_reclaim: None });
        } else {
            let why =
                format!("{text:?} is neither a quantity such as 100Mi nor a share such as 10%");
            wrong.push((format!("{field}.{name}"), why));
        }
    }

    found
}

fn amount(text: &str) -> Option<Amount> {
    if let Some(percent) = text.strip_suffix('%') {
        let thousandths = quantity::milli(&Quantity(percent.to_owned()))?;
        let share = u32::try_from(thousandths).ok()?;
        return (share <= WHOLE).then_some(Amount::Share(share));
    }
    let amount = quantity::units(&Quantity(text.to_owned()))?;

    u64::try_from(amount).ok().filter(|amount| *amount > 0).map(Amount::Absolute)
}

fn graces(map: &Map, wrong: &mut Vec<Wrong>) -> BTreeMap<Signal, Duration> {
    let mut found = BTreeMap::new();
    for (name, text) in map {
        match (signal(name), duration(text)) {
            (None, _) => wrong.push(("evictionSoftGracePeriod".to_owned(), no_signal(name))),
            (Some(_), None) => {
                wrong.push((format!("evictionSoftGracePeriod.{name}"), no_duration(text)));
            }
            (Some(signal), Some(grace)) => {
                found.insert(signal, grace);
            }
        }
    }

    found
}

fn no_duration(text: &str) -> String {
    format!("{text:?} is not a time such as 30s, 1m30s or 2h")
}

/// A duration as Go writes it, in whole milliseconds.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (count, tail) = rest.split_at(number);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(count.parse::<f64>().ok()? * seconds).ok()?;
        sum = sum.checked_add(part)?;
        rest = tail;
    }

    (!text.is_empty()).then_some(sum)
}
