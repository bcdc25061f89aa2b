//! A node that goes down: in which order its pods are stopped, and what becomes of them.
//!
//! A pod whose restart policy has its containers follow each other is not over: it runs again when the
//! node does, with or without the cloud. Only one that never restarts has failed, as when its node's
//! power fails. See docs/decisions/0002-shutdown.md.

use std::collections::BTreeMap;

use proto::ids::Uid;

use crate::admission::Claim;
use crate::resources::CRITICAL_PRIORITY;

/// `status.reason` of a pod that was stopped because the node went down (kubelet: `nodeShutdownReason`).
pub const REASON: &str = "Terminated";
/// Its `status.message`.
pub const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// How many seconds pods get, by their priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Periods {
    /// Those that are critical, after the others.
    Critical {
        /// What the others get.
        normal_s: u64,
        /// What they get.
        critical_s: u64,
    },
    /// One group after the other.
    ByPriority(Vec<Period>),
}

/// What pods of a priority get, and of those above it up to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period {
    /// The lowest priority of the group, whose first takes what is lower still.
    pub priority: i32,
    /// Seconds.
    pub grace_s: u64,
}

impl Default for Periods {
    /// Nobody is stopped.
    fn default() -> Self {
        Self::ByPriority(Vec::new())
    }
}

impl Periods {
    /// Whether pods are stopped at all.
    pub fn is_empty(&self) -> bool {
        self.groups().is_empty()
    }

    /// All together.
    pub fn all_s(&self) -> u64 {
        self.groups().iter().map(|group| group.grace_s).sum()
    }

    /// The groups, the lowest priority first (kubelet: `newPodManager`, `migrateConfig`).
    fn groups(&self) -> Vec<Period> {
        match self {
            Self::Critical { normal_s: 0, critical_s: 0 } => Vec::new(),
            Self::Critical { normal_s, critical_s } => vec![
                Period { priority: 0, grace_s: *normal_s },
                Period { priority: CRITICAL_PRIORITY, grace_s: *critical_s },
            ],
            Self::ByPriority(periods) => {
                let mut periods = periods.clone();
                periods.sort();
                periods
            }
        }
    }
}

/// Pods that are stopped at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Which.
    pub pods: Vec<Uid>,
    /// The grace that none may exceed.
    pub grace_s: i64,
}

/// Which of the pods that have something of the node are stopped when (kubelet: `groupByPriority`). A turn
/// without pods is none.
pub fn turns(periods: &Periods, claims: BTreeMap<Uid, Claim>) -> Vec<Turn> {
    let groups = periods.groups();
    let mut pods = vec![Vec::new(); groups.len()];
    for (uid, claim) in claims {
        let priority = claim.priority.unwrap_or_default();
        let above = groups.partition_point(|group| group.priority <= priority);
        if let Some(pods) = pods.get_mut(above.saturating_sub(1)) {
            pods.push(uid);
        }
    }
    let turns = groups.iter().zip(pods).map(|(group, pods)| Turn {
        pods,
        grace_s: i64::try_from(group.grace_s).unwrap_or(i64::MAX),
    });

    turns.filter(|turn| !turn.pods.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use serde_json::json;

    use super::*;
    use crate::pod::PodView;

    fn claim(name: &str, priority: Option<i32>) -> (Uid, Claim) {
        let pod = json!({
            "metadata": { "uid": name, "name": name, "namespace": "ns" },
            "spec": { "priority": priority, "containers": [] },
        });
        let pod = PodView::parse(pod.to_string().as_bytes()).unwrap();

        (pod.uid.clone(), Claim::of(&pod))
    }

    /// Who is stopped when, of pods with these priorities: `20s: a c, 10s: b`.
    fn check(periods: &Periods, pods: &[(&str, Option<i32>)], expected: &str) {
        let claims = pods.iter().map(|(name, priority)| claim(name, *priority)).collect();
        let mut told = String::new();
        for turn in turns(periods, claims) {
            let pods: Vec<_> = turn.pods.iter().map(Uid::as_str).collect();
            let comma = if told.is_empty() { "" } else { ", " };
            write!(told, "{comma}{}s: {}", turn.grace_s, pods.join(" ")).unwrap();
        }
        assert_eq!(told, expected, "{periods:?}");
    }

    fn by_priority(periods: &[(i32, u64)]) -> Periods {
        let period = |&(priority, grace_s): &(i32, u64)| Period { priority, grace_s };

        Periods::ByPriority(periods.iter().map(period).collect())
    }

    #[test]
    fn critical_pods_are_stopped_after_the_others() {
        let critical = CRITICAL_PRIORITY;
        let pods = [("a", None), ("b", Some(critical)), ("c", Some(-5)), ("d", Some(critical + 1))];
        check(&Periods::Critical { normal_s: 20, critical_s: 10 }, &pods, "20s: a c, 10s: b d");
        check(&Periods::Critical { normal_s: 20, critical_s: 0 }, &pods, "20s: a c, 0s: b d");
        check(&Periods::Critical { normal_s: 0, critical_s: 0 }, &pods, "");
        check(&Periods::Critical { normal_s: 20, critical_s: 10 }, &[], "");
    }

    #[test]
    fn a_pod_is_of_the_highest_group_that_is_not_above_it() {
        let pods = [
            ("none", None),
            ("below", Some(-7)),
            ("low", Some(10)),
            ("between", Some(99)),
            ("mid", Some(100)),
            ("high", Some(1000)),
            ("above", Some(CRITICAL_PRIORITY)),
        ];
        let periods = [(1000, 40), (10, 20), (100, 30)];
        let expected = "20s: below between low none, 30s: mid, 40s: above high";
        check(&by_priority(&periods), &pods, expected);
        // Nobody waits for a group of which there is no pod.
        check(&by_priority(&periods), &pods[5..6], "40s: high");
        check(&by_priority(&[(0, 0), (100, 0)]), &pods[3..5], "0s: between, 0s: mid");
        check(&by_priority(&[]), &pods, "");
    }

    #[test]
    fn the_shutdown_waits_for_all_groups_one_after_the_other() {
        for (periods, all_s, is_empty) in [
            (Periods::default(), 0, true),
            (Periods::Critical { normal_s: 0, critical_s: 0 }, 0, true),
            (Periods::Critical { normal_s: 20, critical_s: 10 }, 30, false),
            (by_priority(&[(0, 5), (10, 7), (100, 9)]), 21, false),
            (by_priority(&[(0, 0)]), 0, false),
        ] {
            assert_eq!((periods.all_s(), periods.is_empty()), (all_s, is_empty), "{periods:?}");
        }
    }
}
