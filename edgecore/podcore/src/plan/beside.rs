//! Which actions wait for one that is under way, and which of those that are need not be waited for.

use super::Action;

impl Action {
    /// Whether it starts only when the other one, which is under way, is over: its answer is the wake-up.
    pub fn waits_for(&self, other: &Self) -> bool {
        // What is being made is finished before it is taken away.
        self == other || self.takes_away() && other.changes_holding() || self.is_kin(other)
    }

    /// Whether both do the same to the same, only by another measure.
    fn is_kin(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Resize { .. }, Self::Resize { .. }) => true,
            (Self::PreStop { id, .. }, Self::PreStop { id: of, .. }) => id == of,
            _others => false,
        }
    }

    /// Whether it need not be waited for once a plan no longer has it; `is_over` says that the pod was deleted
    /// or has ended. A hook that is wanted with another grace begins anew with that.
    pub fn is_vain(&self, is_over: bool) -> bool {
        match self {
            Self::PreStop { .. } => true,
            Self::EnsureImage { .. }
            | Self::StopContainer { .. }
            | Self::PostStart { .. }
            | Self::Probe { .. } => is_over,
            Self::CreateSandbox { .. }
            | Self::StartContainer { .. }
            | Self::SetUpVolumes
            | Self::Resize { .. }
            | Self::RemoveContainer { .. }
            | Self::StopSandbox { .. }
            | Self::RemoveSandbox { .. }
            | Self::TearDownVolumes
            | Self::Event { .. } => false,
        }
    }

    /// Whether the runtime holds more or less after it than before.
    pub fn changes_holding(&self) -> bool {
        matches!(
            self,
            Self::CreateSandbox { .. } | Self::StartContainer { .. } | Self::SetUpVolumes
        )
    }

    /// Whether it must not overtake one that makes something.
    fn takes_away(&self) -> bool {
        matches!(
            self,
            Self::StopSandbox { .. } | Self::RemoveSandbox { .. } | Self::TearDownVolumes
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resize::Outdated;

    fn resize(lowers_memory: bool) -> Action {
        let (name, id) = ("a".to_owned(), "c1".to_owned());

        Action::Resize { containers: vec![Outdated { name, id, attempt: 0, lowers_memory }] }
    }

    fn pre_stop(id: &str, grace_s: i64) -> Action {
        Action::PreStop { container: "a".to_owned(), id: id.to_owned(), grace_s }
    }

    #[test]
    fn what_does_the_same_in_another_measure_waits() {
        let stop = Action::StopSandbox { id: "s1".to_owned() };
        for (one, other, waits) in [
            (resize(true), resize(false), true),
            (pre_stop("c1", 20), pre_stop("c1", 10), true),
            (pre_stop("c1", 20), pre_stop("c2", 20), false),
            (pre_stop("c1", 20), resize(true), false),
            (stop.clone(), Action::SetUpVolumes, true),
            (Action::SetUpVolumes, stop, false),
            (Action::SetUpVolumes, Action::SetUpVolumes, true),
        ] {
            assert_eq!(one.waits_for(&other), waits, "{one:?} {other:?}");
        }
    }
}
