//! Whose turn it is when there is not room for every resize: they are looked at in the kubelet's order, each
//! beside what those before it get (kubelet: `sortPendingResizes`, `retryPendingResizes`).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;
use proto::ids::Uid;

use super::granted;
use crate::admission::Requests;
use crate::memory::Memory;
use crate::pod::PodView;
use crate::resources::{QosClass, qos_class};

/// What a pod asks for instead of what it is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    requests: Requests,
    increases: bool,
    priority: i32,
    is_guaranteed: bool,
    /// Since when it waits, if it was looked at.
    since: Option<Timestamp>,
}

impl Wish {
    /// What the pod asks for, if that is not what it is granted.
    pub fn of(pod: &PodView, memory: &Memory) -> Option<Self> {
        if pod.is_deleted() || memory.ended.is_some() {
            return None;
        }
        let has = Requests::of(&granted(pod, memory)?);
        let requests = Requests::of(pod);

        Some(Self {
            increases: requests.cpu_milli > has.cpu_milli || requests.memory > has.memory,
            requests,
            priority: pod.spec().priority.unwrap_or(0),
            is_guaranteed: qos_class(pod) == QosClass::Guaranteed,
            since: memory.resize.pending.as_ref().map(|pending| pending.since),
        })
    }

    /// The least comes first: what takes nothing, then what matters most, then what waits longest.
    fn rank(&self) -> impl Ord + use<> {
        let Self { requests: _, increases, priority, is_guaranteed, since } = self;

        (*increases, Reverse(*priority), !is_guaranteed, since.is_none(), *since)
    }
}

/// What a pod has of the node, and asks for.
#[derive(Clone, Debug)]
pub struct Share {
    /// What it was granted.
    pub has: Requests,
    /// What it asks for instead.
    pub wish: Option<Wish>,
}

/// What pods other than `pod` have of the node, or get before it. `pod` has what it asks for from here on if
/// that fits: two that ask at the same time do not get the same.
pub fn take_turn(pod: &Uid, shares: &mut BTreeMap<Uid, Share>, capacity: &Requests) -> Requests {
    let wishes = shares.iter().filter_map(|(uid, share)| Some((uid.clone(), share.wish.clone()?)));
    let mut wishes: Vec<_> = wishes.collect();
    wishes.sort_by_key(|(uid, wish)| (wish.rank(), uid.clone()));
    let last = wishes.iter().position(|(uid, _)| uid == pod).map_or(0, |at| at + 1);
    let mut ahead: BTreeMap<Uid, Requests> =
        shares.iter().map(|(uid, share)| (uid.clone(), share.has.clone())).collect();
    for (uid, wish) in wishes.iter().take(last) {
        if !fits(&wish.requests, all_but(uid, &ahead), capacity) {
            continue;
        }
        // What becomes less is given back by the pod itself.
        if let Some(has) = ahead.get_mut(uid) {
            has.cpu_milli = has.cpu_milli.max(wish.requests.cpu_milli);
            has.memory = has.memory.max(wish.requests.memory);
        }
    }
    if let (Some(share), Some(has)) = (shares.get_mut(pod), ahead.get(pod)) {
        share.has.clone_from(has);
    }

    all_but(pod, &ahead)
}

fn all_but(pod: &Uid, shares: &BTreeMap<Uid, Requests>) -> Requests {
    let others = shares.iter().filter(|(uid, _)| *uid != pod);

    others.fold(Requests::default(), |sum, (_, has)| sum.plus(has))
}

fn fits(asked: &Requests, used: Requests, capacity: &Requests) -> bool {
    let sum = used.plus(asked);

    sum.cpu_milli <= capacity.cpu_milli && sum.memory <= capacity.memory
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn uid(text: &str) -> Uid {
        Uid::new(text).unwrap()
    }

    fn cpu(cpu_milli: i64) -> Requests {
        Requests { cpu_milli, ..Requests::default() }
    }

    const CAPACITY: Requests =
        Requests { cpu_milli: 1000, memory: 1000, storage: 0, scalars: BTreeMap::new() };

    fn wish(cpu_milli: i64) -> Wish {
        let since = Some(Timestamp::UNIX_EPOCH);

        Wish { requests: cpu(cpu_milli), increases: true, priority: 0, is_guaranteed: false, since }
    }

    /// Both of these pods have 100 of 1000, and ask for all but that.
    fn both(first: Wish, second: Wish) -> BTreeMap<Uid, Share> {
        let share = |wish| Share { has: cpu(100), wish: Some(wish) };

        [(uid("a"), share(first)), (uid("b"), share(second))].into()
    }

    #[test]
    fn of_two_that_wait_the_one_that_matters_more_gets_the_room() {
        let later = Some(Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(1));
        let first = || Wish { priority: 7, is_guaranteed: true, ..wish(900) };
        for (name, first, second) in [
            ("what takes nothing", Wish { increases: false, ..wish(900) }, first()),
            (
                "priority",
                Wish { priority: 1, ..wish(900) },
                Wish { is_guaranteed: true, ..wish(900) },
            ),
            ("class", Wish { is_guaranteed: true, since: later, ..wish(900) }, wish(900)),
            ("age", wish(900), Wish { since: later, ..wish(900) }),
            (
                "age, not asked",
                Wish { since: later, ..wish(900) },
                Wish { since: None, ..wish(900) },
            ),
        ] {
            for swapped in [false, true] {
                let (winner, loser) = if swapped { ("b", "a") } else { ("a", "b") };
                let (first, second) = (first.clone(), second.clone());
                let mut shares = if swapped { both(second, first) } else { both(first, second) };
                // Whoever asks first.
                assert_eq!(take_turn(&uid(loser), &mut shares, &CAPACITY), cpu(900), "{name}");
                assert_eq!(shares[&uid(loser)].has, cpu(100), "{name}");
                assert_eq!(take_turn(&uid(winner), &mut shares, &CAPACITY), cpu(100), "{name}");
                assert_eq!(shares[&uid(winner)].has, cpu(900), "{name}");
            }
        }
    }

    #[test]
    fn one_that_does_not_fit_is_in_nobodys_way() {
        let important = Wish { priority: 9, ..wish(950) };
        let mut shares = both(important, wish(900));
        assert_eq!(take_turn(&uid("b"), &mut shares, &CAPACITY), cpu(100));
        assert_eq!(shares[&uid("b")].has, cpu(900));
    }

    #[test]
    fn what_was_taken_is_not_given_twice() {
        let mut shares = both(wish(900), wish(900));
        shares.get_mut(&uid("a")).unwrap().wish = None;
        take_turn(&uid("b"), &mut shares, &CAPACITY);
        // `a` matters more, and comes too late.
        shares.get_mut(&uid("a")).unwrap().wish = Some(Wish { priority: 9, ..wish(900) });
        assert_eq!(take_turn(&uid("a"), &mut shares, &CAPACITY), cpu(900));
        assert_eq!(shares[&uid("a")].has, cpu(100));
    }

    #[test]
    fn a_pod_wishes_for_what_it_is_not_granted() {
        let pod = |requests: &Value| {
            let container =
                json!({ "name": "a", "image": "x", "resources": { "requests": requests } });
            let pod = json!({
                "metadata": { "uid": "u", "namespace": "default", "name": "web" },
                "spec": { "priority": 5, "containers": [container] },
            });
            PodView::parse(pod.to_string().as_bytes()).unwrap()
        };
        let small = pod(&json!({ "cpu": "100m", "memory": "1Mi" }));
        let mut memory = Memory::default();
        assert_eq!(Wish::of(&small, &memory), None);
        let granted = super::super::Resources::of(&small.containers()[0]);
        memory.container("a").allocated = Some(granted);
        assert_eq!(Wish::of(&small, &memory), None);
        for (cpu, size, increases) in
            [("200m", "1Mi", true), ("50m", "2Mi", true), ("50m", "1Mi", false)]
        {
            let asks = pod(&json!({ "cpu": cpu, "memory": size }));
            let wish = Wish::of(&asks, &memory).unwrap();
            assert_eq!((wish.increases, wish.priority), (increases, 5), "{cpu} {size}");
        }
    }
}
