//! When the API server is taken for one that was restored, and what replicas agree on then.
//!
//! Replicas share one record in the cluster, an epoch and a beat that one of them raises every few
//! seconds. The record goes back in time with everything else: a replica that finds it older than it
//! has seen it knows of the restore, however far the new history has come since. A replica that was
//! not there to see learns it from an edge or from a list that is older than what was told before.

/// What replicas share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Counts restores; the first is 1.
    pub epoch: u64,
    /// Counts writes of the record in this epoch.
    pub beat: u64,
}

/// What a replica does about the record that it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is to be written; it is in the epoch of what it found.
    Take(Record),
    /// Replace what it found, if it is still there, by this; then it is in the epoch of this.
    Write(Record),
}

/// Decides about `found`, the record in the cluster.
///
/// `seen` is the highest record that this replica knows to have been there. `wanted` is the least
/// epoch that evidence asks for, zero if there is none. `is_due`: nobody has raised the beat for long.
pub fn decide(seen: Option<Record>, found: Option<Record>, wanted: u64, is_due: bool) -> Step {
    let seen = seen.unwrap_or_default();
    let now = found.unwrap_or_default();
    if now < seen || now.epoch < wanted {
        let after = if now < seen { seen.epoch.saturating_add(1) } else { 1 };

        return Step::Write(Record { epoch: after.max(wanted), beat: 0 });
    }
    if found.is_none() {
        return Step::Write(Record { epoch: 1, beat: 0 });
    }
    if is_due {
        return Step::Write(Record { beat: now.beat.saturating_add(1), ..now });
    }

    Step::Take(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pair = (u64, u64);

    fn record((epoch, beat): Pair) -> Record {
        Record { epoch, beat }
    }

    fn check(seen: Option<Pair>, found: Option<Pair>, wanted: u64, is_due: bool, expected: Step) {
        let decided = decide(seen.map(record), found.map(record), wanted, is_due);

        assert_eq!(decided, expected, "seen {seen:?}, found {found:?}, wanted {wanted}");
    }

    #[test]
    fn what_a_replica_does_about_the_record() {
        let (take, write) = (|pair| Step::Take(record(pair)), |pair| Step::Write(record(pair)));
        // The first start of all, another replica's start, and the beat.
        check(None, None, 0, false, write((1, 0)));
        check(None, Some((2, 7)), 0, false, take((2, 7)));
        check(Some((2, 7)), Some((2, 9)), 0, false, take((2, 9)));
        check(Some((2, 7)), Some((2, 7)), 0, true, write((2, 8)));
        // It went back, or is gone: a restore, also of a backup from before an earlier one.
        check(Some((2, 7)), Some((2, 6)), 0, false, write((3, 0)));
        check(Some((3, 0)), Some((1, 9)), 0, true, write((4, 0)));
        check(Some((2, 7)), None, 0, false, write((3, 0)));
        // Another replica was faster.
        check(Some((2, 7)), Some((3, 0)), 3, false, take((3, 0)));
        // An edge has seen more, and nobody else is left who has.
        check(None, Some((1, 9)), 5, false, write((5, 0)));
        check(None, None, 5, false, write((5, 0)));
        check(Some((2, 7)), Some((2, 6)), 9, false, write((9, 0)));
    }
}
