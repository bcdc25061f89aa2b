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

/// How many seconds pods get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Periods {
    /// Those that are not critical.
    pub normal_s: u64,
    /// Those that are, after the others.
    pub critical_s: u64,
}

impl Periods {
    /// Both.
    pub fn all_s(&self) -> u64 {
        self.normal_s + self.critical_s
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

/// Which of the pods that have something of the node are stopped when. A turn without pods is none.
pub fn turns(periods: Periods, claims: BTreeMap<Uid, Claim>) -> Vec<Turn> {
    let (critical, normal): (Vec<_>, Vec<_>) = claims
        .into_iter()
        .map(|(uid, claim)| (uid, claim.priority))
        .partition(|(_, priority)| *priority >= Some(CRITICAL_PRIORITY));
    let turn = |pods: Vec<(Uid, Option<i32>)>, seconds: u64| Turn {
        pods: pods.into_iter().map(|(uid, _)| uid).collect(),
        grace_s: i64::try_from(seconds).unwrap_or(i64::MAX),
    };
    let turns = [turn(normal, periods.normal_s), turn(critical, periods.critical_s)];

    turns.into_iter().filter(|turn| !turn.pods.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::PodView;

    #[test]
    fn critical_pods_are_stopped_after_the_others() {
        let uid = |name: &str| Uid::new(name).unwrap();
        let claim = |name: &str, priority: Option<i32>| {
            let pod = json!({
                "metadata": { "uid": name, "name": name, "namespace": "ns" },
                "spec": { "priority": priority, "containers": [] },
            });
            (uid(name), Claim::of(&PodView::parse(pod.to_string().as_bytes()).unwrap()))
        };
        let periods = Periods { normal_s: 20, critical_s: 10 };
        let critical = CRITICAL_PRIORITY;
        let pods = [("a", None), ("b", Some(critical)), ("c", Some(-5)), ("d", Some(critical + 1))];
        let claims = pods.map(|(name, priority)| claim(name, priority)).into();
        assert_eq!(
            turns(periods, claims),
            [
                Turn { pods: vec![uid("a"), uid("c")], grace_s: 20 },
                Turn { pods: vec![uid("b"), uid("d")], grace_s: 10 },
            ]
        );
        assert!(turns(periods, BTreeMap::new()).is_empty());
    }
}
