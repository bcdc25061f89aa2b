//! Whether a new agent is as good as the one before: decided by what both say at the control socket.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a new agent has to be well: one that ends soon is not good.
pub const STEADY: Duration = Duration::from_secs(10);
/// How long it has to become so. A unit's start is given up after 90 s.
pub const TRIAL_MAX: Duration = Duration::from_mins(1);
/// Older signs of life are none, as in `edgeadm status`.
const SILENT_MS: u32 = 30_000;
/// More pods than a node has.
const PODS_MAX: usize = 1024;

/// How the old agent was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Before {
    /// The link to the cloud was up.
    pub link: bool,
    /// UIDs of its pods.
    pub pods: BTreeSet<String>,
}

/// How an agent is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// The link to the cloud is up.
    pub link: bool,
    /// The node holds what the cloud wants.
    pub synced: bool,
    /// Why the link is down.
    pub link_reason: String,
    /// The runtime has answered, and is known by name.
    pub has_runtime: bool,
    /// How long ago the runtime answered.
    pub runtime_age_ms: u32,
    /// How long ago the loop of the pods turned.
    pub pod_loop_age_ms: u32,
    /// UIDs of its pods.
    pub pods: BTreeSet<String>,
}

impl From<Sight> for Before {
    fn from(sight: Sight) -> Self {
        Self { link: sight.link, pods: sight.pods.into_iter().take(PODS_MAX).collect() }
    }
}

/// What is to be done with a new agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Look again.
    Wait,
    /// It stays.
    Good,
    /// The old one comes back, for this reason.
    Bad(String),
}

/// What `now` lacks of what there was before.
pub fn lacks(before: Option<&Before>, now: &Sight) -> Option<String> {
    if !now.has_runtime || now.runtime_age_ms > SILENT_MS {
        return Some("it does not reach the container runtime".to_owned());
    }
    if now.pod_loop_age_ms > SILENT_MS {
        return Some("its loop of the pods hangs".to_owned());
    }
    let before = before?;
    if before.link && !now.link {
        let reason = &now.link_reason;
        return Some(format!("it has no link to the cloud, which the old one had: {reason}"));
    }
    // A cloud that is in sync says itself which pods are gone.
    let is_told = now.link && now.synced;
    let missing = before.pods.difference(&now.pods).count();
    if missing > 0 && !is_told {
        return Some(format!("{missing} pods of the old one are not known to it"));
    }

    None
}

/// Judges an agent that has run for `elapsed`. `lacks` is what it lacks now, and `steady` how long it has
/// lacked nothing.
pub fn judge(lacks: Option<&str>, steady: Duration, elapsed: Duration) -> Verdict {
    match lacks {
        None if steady >= STEADY => Verdict::Good,
        Some(lacks) if elapsed >= TRIAL_MAX => {
            Verdict::Bad(format!("after {} s {lacks}", TRIAL_MAX.as_secs()))
        }
        // One that comes and goes is not good either.
        None if elapsed >= TRIAL_MAX + STEADY => {
            Verdict::Bad("it is well only now and then".to_owned())
        }
        None | Some(_) => Verdict::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn well() -> Sight {
        Sight { link: true, has_runtime: true, pods: pods(&["a", "b"]), ..Sight::default() }
    }

    #[test]
    fn a_new_agent_has_to_have_what_the_old_one_had() {
        let before = Before::from(well());
        let said = |now: &Sight| lacks(Some(&before), now).unwrap_or_default();
        assert_eq!(said(&well()), "");
        assert!(said(&Sight { has_runtime: false, ..well() }).contains("runtime"));
        assert!(said(&Sight { runtime_age_ms: 40_000, ..well() }).contains("runtime"));
        assert!(said(&Sight { pod_loop_age_ms: 40_000, ..well() }).contains("hangs"));
        let down = Sight { link: false, link_reason: "refused".to_owned(), ..well() };
        assert!(said(&down).ends_with("had: refused"));
        let fewer = Sight { pods: pods(&["b", "c"]), ..well() };
        assert_eq!(said(&fewer), "1 pods of the old one are not known to it");
        assert_eq!(said(&Sight { synced: true, ..fewer }), "", "the cloud has deleted it");

        // What the old one did not have is not asked of the new one.
        let alone = Before { link: false, ..before.clone() };
        assert_eq!(lacks(Some(&alone), &down), None);
        assert_eq!(lacks(None, &Sight { pods: pods(&[]), ..down }), None);
        assert!(lacks(None, &Sight::default()).is_some());
    }

    #[test]
    fn it_is_judged_when_it_was_well_for_a_while_or_was_not_in_time() {
        let second = Duration::from_secs;
        assert_eq!(judge(None, second(3), second(20)), Verdict::Wait);
        assert_eq!(judge(None, STEADY, second(20)), Verdict::Good);
        assert_eq!(judge(Some("it is ill"), second(0), second(59)), Verdict::Wait);
        let late = Verdict::Bad("after 60 s it is ill".to_owned());
        assert_eq!(judge(Some("it is ill"), second(0), TRIAL_MAX), late);
        assert_eq!(judge(None, second(9), second(69)), Verdict::Wait);
        assert!(matches!(judge(None, second(9), TRIAL_MAX + STEADY), Verdict::Bad(_)));
    }
}
