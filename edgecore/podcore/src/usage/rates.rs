//! How much CPU is used just now: what was used since an earlier look, by cgroup.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Look, Usage};

/// The kubelet's numbers are over about this long.
const WINDOW: Duration = Duration::from_secs(10);

/// A look older than this says nothing of just now.
const AGE_MAX: Duration = Duration::from_mins(1);

/// CPU time by cgroup, as of an earlier look: as many as that one had.
#[derive(Debug, Default)]
pub struct Rates(Option<(Instant, BTreeMap<String, u64>)>);

impl Rates {
    /// Whether there is nothing to compare a look at `now` with.
    pub fn is_stale(&self, now: Instant) -> bool {
        self.0.as_ref().is_none_or(|(at, _)| now.saturating_duration_since(*at) > AGE_MAX)
    }

    /// Writes into `look`, made at `now`, what is used just now, and remembers it if it is time to.
    pub fn apply(&mut self, look: &mut Look, now: Instant) {
        let mut totals = BTreeMap::new();
        let before = self.0.take().filter(|(at, _)| now.saturating_duration_since(*at) <= AGE_MAX);
        let age = before.as_ref().map(|(at, _)| now.saturating_duration_since(*at));
        for (cgroup, usage) in groups(look) {
            let Some(cpu) = &mut usage.cpu else { continue };
            if let Some((_, before)) = &before {
                let used = before.get(cgroup).and_then(|total| cpu.total_ns.checked_sub(*total));
                cpu.nano_cores = used.zip(age).and_then(|(used, age)| nano_cores(used, age));
            }
            totals.insert(cgroup.to_owned(), cpu.total_ns);
        }
        let is_young = age.is_some_and(|age| age < WINDOW);
        self.0 = before.filter(|_| is_young).or(Some((now, totals)));
    }
}

fn nano_cores(used_ns: u64, over: Duration) -> Option<u64> {
    let cores = u128::from(used_ns).checked_mul(1_000_000_000)?.checked_div(over.as_nanos())?;

    u64::try_from(cores).ok()
}

fn groups(look: &mut Look) -> impl Iterator<Item = (&str, &mut Usage)> {
    let node = &mut look.node;
    let whole = [("/", &mut node.usage), (node.pods_cgroup.as_str(), &mut node.pods)];
    let pods = look.pods.iter_mut().flat_map(|pod| {
        let containers = pod.containers.iter_mut();
        let containers = containers.map(|own| (own.cgroup.as_str(), &mut own.usage));
        containers.chain([(pod.cgroup.as_str(), &mut pod.usage)])
    });

    whole.into_iter().chain(pods)
}

#[cfg(test)]
mod tests {
    use super::super::{Cpu, PodUsage};
    use super::*;

    /// A look at a pod, if there is one, that has used so much.
    fn look(pod_ns: Option<u64>) -> Look {
        let pod = pod_ns.map(|total_ns| PodUsage {
            cgroup: "/kubepods/pod".to_owned(),
            usage: Usage { cpu: Some(Cpu { total_ns, ..Cpu::default() }), ..Usage::default() },
            ..PodUsage::default()
        });

        Look { pods: pod.into_iter().collect(), ..Look::default() }
    }

    #[test]
    fn what_is_used_now_is_what_was_used_since_a_look_not_long_ago() {
        // Any moment will do.
        #[expect(clippy::disallowed_methods, reason = "a test needs a moment to start from")]
        let start = Instant::now();
        let mut rates = Rates::default();
        let mut at = |seconds: u64, pod_ns| {
            let now = start + Duration::from_secs(seconds);
            let stale = rates.is_stale(now);
            let mut look = look(pod_ns);
            rates.apply(&mut look, now);
            let cpu = look.pods.first().and_then(|pod| pod.usage.cpu?.nano_cores);
            (stale, cpu)
        };

        assert_eq!(at(0, Some(1_000)), (true, None));
        assert_eq!(at(2, Some(1_000_001_000)), (false, Some(500_000_000)));
        // Still compared with the first look, which is then old enough to be replaced.
        assert_eq!(at(10, Some(1_000_001_000)), (false, Some(100_000_000)));
        assert_eq!(at(11, Some(2_000_001_000)), (false, Some(1_000_000_000)));
        // Another pod, another count.
        assert_eq!(at(12, Some(0)), (false, None));
        assert_eq!(at(80, Some(2_000_001_000)), (true, None));
        assert_eq!(at(81, None), (false, None));
    }
}
