//! Plans for looks and memories that no life leads to: a plan is made, without doing harm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::random::{config, spec};
use super::*;
use crate::admission::Refusal;
use crate::memory::{
    Backoff, ConditionMemory, ContainerMemory, Ended, Failure, ImageFound, ImageNote, Memory,
    Probed, Termination, Transient,
};
use crate::observed::{
    Admission, ContainerState, ContainerView, Eviction, Missing, Observed, SandboxView,
    VolumesState,
};
use crate::plan::{Action, Plan, plan};
use crate::pod::PodView;
use crate::probe::{Asking, ProbeKind, Turn};
use crate::sim::object;
use crate::status::{StatusContext, status};

const LOOKS: u32 = 2000;

fn time() -> impl Strategy<Value = Timestamp> {
    prop_oneof![
        4 => (0..2000_i64).prop_map(|s| Timestamp::from_second(1_767_225_600 + s).unwrap()),
        1 => Just(Timestamp::MIN),
        1 => Just(Timestamp::MAX),
        1 => Just(Timestamp::UNIX_EPOCH),
    ]
}

fn attempt() -> impl Strategy<Value = u32> {
    prop_oneof![6 => 0..4_u32, 1 => Just(u32::MAX)]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just("a"), Just("b"), Just("i"), Just("zzz"), Just("")].prop_map(str::to_owned)
}

fn state() -> impl Strategy<Value = ContainerState> {
    let ended =
        (option::of(time()), option::of(time()), prop_oneof![Just(0), Just(1), any::<i32>()]);
    prop_oneof![
        1 => Just(ContainerState::Created),
        1 => Just(ContainerState::Unknown),
        3 => time().prop_map(|started_at| ContainerState::Running { started_at }),
        3 => ended.prop_map(|(started_at, finished_at, exit_code)| ContainerState::Exited {
            started_at,
            finished_at,
            exit_code,
            reason: String::new(),
            message: String::new(),
        }),
    ]
}

fn any_set() -> impl Strategy<Value = i64> {
    prop_oneof![Just(0), any::<i64>()]
}

fn observed() -> impl Strategy<Value = Observed> {
    let sandboxes = vec((attempt(), any::<bool>(), vec(Just("10.1.0.5".to_owned()), 0..2)), 0..4);
    let containers = vec((name(), attempt(), 0..5_usize, state(), any::<bool>()), 0..6);
    let volumes = prop_oneof![
        Just(VolumesState::Unknown),
        Just(VolumesState::Ready),
        Just(VolumesState::Gone),
    ];
    let missing = vec(Just(Missing::Object("secret \"x\" not found".to_owned())), 0..2);
    let shutdown_s = option::weighted(0.3, 0..100_i64);
    let restarts = vec((0..6_usize).prop_map(|at| format!("c{at}")), 0..2);
    let decided = (admission(), eviction(), shutdown_s, restarts);
    (sandboxes, containers, volumes, missing, any_set(), decided).prop_map(
        |(sandboxes, containers, volumes, missing, clock_set_s, decided)| {
            let (admission, eviction, shutdown_s, restarts) = decided;
            let sandbox = |(at, (attempt, ready, ips)): (usize, (u32, bool, Vec<String>))| {
                SandboxView { id: format!("s{at}"), attempt, ready, ips }
            };
            let container = |(at, (name, attempt, sandbox, state, is_other))| ContainerView {
                id: format!("c{at}"),
                name,
                attempt,
                sandbox_id: format!("s{sandbox}"),
                state,
                image: "x".to_owned(),
                image_ref: "sha256:x".to_owned(),
                spec_hash: bool::then(is_other, || "other".to_owned()),
                user: None,
            };
            Observed {
                sandboxes: sandboxes.into_iter().enumerate().map(sandbox).collect(),
                containers: containers.into_iter().enumerate().map(container).collect(),
                volumes,
                missing,
                room: None,
                abilities: Arc::default(),
                admission,
                eviction,
                clock_set_s,
                shutdown_s,
                restarts: restarts.into_iter().collect(),
            }
        },
    )
}

fn admission() -> impl Strategy<Value = Admission> {
    let refusal = Refusal { reason: "OutOfcpu".to_owned(), message: "m".to_owned() };

    prop_oneof![
        3 => Just(Admission::Granted),
        1 => Just(Admission::Pending),
        1 => Just(Admission::Refused(refusal)),
    ]
}

fn eviction() -> impl Strategy<Value = Option<Eviction>> {
    let eviction =
        (any::<bool>(), option::of(0..90_i64)).prop_map(|(disrupts, grace_s)| Eviction {
            reason: "Evicted".to_owned(),
            message: "m".to_owned(),
            disruption: disrupts.then(|| "m".to_owned()),
            grace_s,
        });

    option::weighted(0.2, eviction)
}

fn failure() -> impl Strategy<Value = Failure> {
    (time(), time(), prop_oneof![1..5_u32, Just(u32::MAX)]).prop_map(|(since, retry_at, count)| {
        Failure { reason: "r".to_owned(), message: "m".to_owned(), since, retry_at, count }
    })
}

fn termination() -> impl Strategy<Value = Termination> {
    (attempt(), attempt(), 0..2_i32, option::of(time()), option::of(time())).prop_map(
        |(attempt, sandbox_attempt, exit_code, started_at, finished_at)| Termination {
            attempt,
            sandbox_attempt,
            id: "c0".to_owned(),
            exit_code,
            reason: String::new(),
            message: String::new(),
            started_at,
            finished_at,
            image: String::new(),
            image_ref: String::new(),
            user: None,
        },
    )
}

fn container_memory() -> impl Strategy<Value = ContainerMemory> {
    let backoff = (prop_oneof![Just(0), Just(10), Just(u32::MAX)], option::of(time()));
    (
        option::of(attempt()),
        option::of(termination()),
        backoff,
        option::of(attempt()),
        option::of(attempt()),
        option::of(probed()),
    )
        .prop_map(|(attempt, last, (delay_s, since), backoff_attempt, replaced, probed)| {
            ContainerMemory {
                attempt,
                last,
                backoff: Backoff { delay_s, since, hash: None },
                backoff_attempt,
                replaced,
                interrupted: replaced,
                allocated: None,
                actual: None,
                probed,
                hooked: None,
            }
        })
}

fn kind() -> impl Strategy<Value = ProbeKind> {
    prop_oneof![Just(ProbeKind::Startup), Just(ProbeKind::Liveness), Just(ProbeKind::Readiness)]
}

fn probed() -> impl Strategy<Value = Probed> {
    (attempt(), any::<bool>(), any::<bool>(), option::of(kind()))
        .prop_map(|(attempt, started, ready, failed)| Probed { attempt, started, ready, failed })
}

fn asking() -> impl Strategy<Value = Asking> {
    let turn = prop_oneof![
        time().prop_map(Turn::Due),
        time().prop_map(Turn::Asked),
        (time(), option::of(any::<bool>())).prop_map(|(at, passed)| Turn::Answered(at, passed)),
    ];
    let in_row = option::of((any::<bool>(), prop_oneof![1..4_i32, Just(i32::MAX)]));
    (turn, in_row, any::<u32>()).prop_map(|(turn, in_row, number)| Asking {
        id: "c0".to_owned(),
        number,
        turn,
        in_row,
    })
}

fn image_note() -> impl Strategy<Value = ImageNote> {
    let found = prop_oneof![
        attempt().prop_map(|attempt| ImageFound::Ready { attempt, image_ref: "r".to_owned() }),
        (failure(), option::of("v"))
            .prop_map(|(failure, mounted)| ImageFound::Failed { failure, mounted }),
    ];
    found.prop_map(|found| ImageNote { image: "x".to_owned(), found })
}

fn memory() -> impl Strategy<Value = Memory> {
    let ended = any::<(bool, bool)>()
        .prop_map(|(succeeded, stopped)| Ended { stopped, ..Ended::by_itself(succeeded) });
    let transient = (
        option::of(failure()),
        option::of(failure()),
        btree_map(name(), image_note(), 0..3),
        btree_map(name(), failure(), 0..3),
        btree_map((name(), kind()), asking(), 0..3),
    );
    (
        option::of(time()),
        option::weighted(0.2, ended),
        btree_map(name(), container_memory(), 0..4),
        option::of(attempt()),
        transient,
        (
            time(),
            any_set(),
            option::of(time()),
            btree_map("c[0-3]", any::<i64>(), 0..2),
            btree_set("s[0-3]", 0..2),
        ),
    )
        .prop_map(|(start_time, ended, containers, sandbox_attempt, transient, others)| {
            let (since, clock_set_s, stored_at, pre_stopped, stopped_sandboxes) = others;
            Memory {
                start_time,
                clock_set_s,
                stored_at,
                ended,
                containers,
                conditions: BTreeMap::from([(
                    "Ready".to_owned(),
                    ConditionMemory { status: true, since },
                )]),
                resize: crate::resize::Resize::default(),
                sandbox_attempt,
                stopped_sandboxes,
                pre_stopped,
                ips: Vec::new(),
                claimed: BTreeMap::new(),
                transient: Transient {
                    sandbox_failure: transient.0,
                    volumes_failure: transient.1,
                    resize_failure: None,
                    limits: None,
                    images: transient.2,
                    start_failures: transient.3,
                    out_of_memory: BTreeSet::new(),
                    told: Vec::new(),
                    killing: BTreeMap::new(),
                    unstored: false,
                    stopping: None,
                    askings: transient.4,
                    answers: BTreeMap::new(),
                    clock_set_s: None,
                },
            }
        })
}

/// Starts nothing beside what may run, and nothing of a pod that is over.
fn does_no_harm(pod: &PodView, observed: &Observed, next: &Plan) {
    let is_over = pod.is_deleted() || next.memory.ended.is_some();
    for action in &next.actions {
        if let Action::StartContainer { container, .. } = action {
            let mut same = observed.containers.iter().filter(|c| c.name == *container);
            assert!(!is_over && !same.any(ContainerView::may_run), "{action:?}");
        }
        if let Action::TearDownVolumes = action {
            assert!(is_over && !observed.containers.iter().any(ContainerView::may_run));
        }
        if let Action::RemoveContainer { id }
        | Action::RemoveSandbox { id }
        | Action::StopSandbox { id } = action
        {
            let mut inside =
                observed.containers.iter().filter(|c| c.id == *id || c.sandbox_id == *id);
            assert!(!inside.any(ContainerView::may_run), "{action:?}");
        }
    }
}

/// What follows the last attempt has the same number: it is told of as if it were new.
fn has_next_attempts(memory: &Memory, observed: &Observed) -> bool {
    let kept = memory.containers.values().filter_map(|kept| kept.attempt);
    let seen = observed.containers.iter().map(|container| container.attempt);

    kept.chain(seen).all(|attempt| attempt < u32::MAX)
}

proptest! {
    #![proptest_config(config(LOOKS))]

    #[test]
    fn every_look_gives_a_harmless_plan(
        spec in spec(),
        is_deleted in any::<bool>(),
        memory in memory(),
        observed in observed(),
        now in time(),
    ) {
        let mut object = object(&spec);
        if is_deleted {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:05Z");
        }
        let pod = PodView::parse(object.to_string().as_bytes()).unwrap();
        let next = plan(&pod, &memory, &observed, now);
        does_no_harm(&pod, &observed, &next);
        if has_next_attempts(&memory, &observed) {
            let again = plan(&pod, &next.memory, &observed, now);
            prop_assert_eq!(&again.memory, &next.memory);
            let is_work = |action: &&Action| !matches!(action, Action::Event { .. });
            let works: [Vec<_>; 2] =
                [&next, &again].map(|plan| plan.actions.iter().filter(is_work).collect());
            prop_assert_eq!(&works[0], &works[1]);
        }
        status(&pod, &next.memory, &observed, &StatusContext::default(), now);
    }
}

/// Whether the cloud is there is no input of a plan or a status: nothing in the types could say it.
/// A field that is added here has to be thought about.
#[test]
fn nothing_of_the_link_enters_a_plan() {
    let Observed {
        sandboxes: _,
        containers: _,
        volumes: _,
        missing: _,
        room: _,
        abilities: _,
        admission: _,
        eviction: _,
        clock_set_s: _,
        shutdown_s: _,
        restarts: _,
    } = Observed::default();
    let StatusContext { host_ips: _, runtime: _, recursive_read_only: _ } =
        StatusContext::default();
    let Memory {
        start_time: _,
        clock_set_s: _,
        stored_at: _,
        ended: _,
        containers: _,
        conditions: _,
        resize: _,
        sandbox_attempt: _,
        stopped_sandboxes: _,
        pre_stopped: _,
        ips: _,
        claimed: _,
        transient:
            Transient {
                sandbox_failure: _,
                volumes_failure: _,
                resize_failure: _,
                limits: _,
                images: _,
                start_failures: _,
                out_of_memory: _,
                told: _,
                killing: _,
                unstored: _,
                stopping: _,
                askings: _,
                answers: _,
                clock_set_s: _,
            },
    } = Memory::default();
    let inputs: fn(&PodView, &Memory, &Observed, Timestamp) -> Plan = plan;
    let pod = PodView::parse(object(&one("Always")).to_string().as_bytes()).unwrap();
    let now = Timestamp::UNIX_EPOCH;
    let first = inputs(&pod, &Memory::default(), &Observed::default(), now);

    assert_eq!(first, plan(&pod, &Memory::default(), &Observed::default(), now));
}
