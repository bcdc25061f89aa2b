//! Which pods end so that a critical one fits: as few and as little needed as will do
//! (`pkg/kubelet/preemption`).

use std::collections::{BTreeMap, BTreeSet};

use proto::ids::Uid;

use super::requests::Shortage;
use super::{Claim, Refusal, is_critical};
use crate::pod::PodView;
use crate::resources::QosClass;

/// How much of a resource is still to be freed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Need<'a> {
    resource: &'a str,
    quantity: i64,
}

type Victim<'a> = (&'a Uid, &'a Claim);

pub(super) fn choose(
    pod: &PodView,
    others: &BTreeMap<Uid, Claim>,
    short: &[Shortage],
) -> Result<BTreeSet<Uid>, Refusal> {
    let needs = short.iter().map(|one| Need { resource: &one.resource, quantity: one.lacks() });
    let needs: Vec<_> = needs.collect();
    let of_class = |class| {
        let all = others.iter().filter(move |(_, claim)| claim.qos == class);
        all.filter(|(_, claim)| may_preempt(pod, claim)).collect::<Vec<Victim<'_>>>()
    };
    let best_effort = of_class(QosClass::BestEffort);
    let burstable = of_class(QosClass::Burstable);
    let guaranteed = of_class(QosClass::Guaranteed);

    // Whatever the lower classes free is not taken from the higher ones.
    let all = subtract(subtract(needs.clone(), &best_effort), &burstable);
    check(&subtract(all.clone(), &guaranteed))?;
    let from_guaranteed = nearest(guaranteed, all)?;
    let left = subtract(subtract(needs.clone(), &best_effort), &from_guaranteed);
    let from_burstable = nearest(burstable, left)?;
    let left = subtract(subtract(needs, &from_burstable), &from_guaranteed);
    let from_best_effort = nearest(best_effort, left)?;
    let chosen = from_best_effort.into_iter().chain(from_burstable).chain(from_guaranteed);

    Ok(chosen.map(|(uid, _)| uid.clone()).collect())
}

/// kubetypes: `Preemptable`.
fn may_preempt(pod: &PodView, claim: &Claim) -> bool {
    let outranks = pod.spec().priority.zip(claim.priority).is_some_and(|(own, other)| own > other);

    is_critical(pod) && !claim.is_critical || outranks
}

fn check(needs: &[Need<'_>]) -> Result<(), Refusal> {
    if needs.is_empty() {
        return Ok(());
    }
    let list = needs.iter().fold(String::new(), |list, Need { resource, quantity }| {
        format!("{list}(res: {resource}, q: {quantity}), ")
    });
    let message = format!(
        "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: [{list}]"
    );

    Err(Refusal::new("UnexpectedAdmissionError", message))
}

fn request(claim: &Claim, resource: &str) -> i64 {
    match resource {
        "pods" => 1,
        other => claim.requests.get(other),
    }
}

fn subtract<'a>(mut needs: Vec<Need<'a>>, victims: &[Victim<'_>]) -> Vec<Need<'a>> {
    for need in &mut needs {
        for (_, claim) in victims {
            need.quantity = need.quantity.saturating_sub(request(claim, need.resource));
        }
    }
    needs.retain(|need| need.quantity > 0);

    needs
}

/// Again and again the pod that leaves the least to be freed, of equal ones the smaller.
fn nearest<'a>(
    mut victims: Vec<Victim<'a>>,
    mut needs: Vec<Need<'_>>,
) -> Result<Vec<Victim<'a>>, Refusal> {
    let mut chosen = Vec::new();
    while !needs.is_empty() {
        let by_distance = |a: &Victim<'_>, b: &Victim<'_>| {
            let size = |claim: &Claim| (claim.requests.memory, claim.requests.cpu_milli);
            let distance = distance(&needs, a.1).total_cmp(&distance(&needs, b.1));
            distance.then_with(|| size(a.1).cmp(&size(b.1)))
        };
        let best = victims.iter().copied().min_by(|a, b| by_distance(a, b));
        let Some(best) = best else {
            check(&needs)?;
            break;
        };
        needs = subtract(needs, &[best]);
        victims.retain(|victim| victim.0 != best.0);
        chosen.push(best);
    }

    Ok(chosen)
}

/// By which share of each need the pod falls short of it.
#[expect(clippy::cast_precision_loss, reason = "only the order of shares counts")]
fn distance(needs: &[Need<'_>], claim: &Claim) -> f64 {
    let shares = needs.iter().map(|need| {
        let left = need.quantity.saturating_sub(request(claim, need.resource)).max(0);
        (left as f64 / need.quantity as f64).powi(2)
    });

    shares.sum()
}
