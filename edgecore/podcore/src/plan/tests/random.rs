//! Random lives of pods. What every plan must keep is checked by the small node at each step; here
//! it is checked that a pod gets where it should when all is well again.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::pod::is_sidecar;
use crate::sim::World;

/// Lives tried in one run; each has up to [`STEPS_MAX`] steps.
const LIVES: u32 = 400;
const STEPS_MAX: usize = 40;

/// `PROPTEST_CASES` asks for more.
pub(super) fn config(cases: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").map_or(cases, |asked| asked.parse().unwrap());

    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn name() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("b"), Just("i"), Just("j"), Just("e")]
}

pub(super) fn spec() -> impl Strategy<Value = Value> {
    let policy = prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")];
    let deadline = proptest::option::weighted(0.2, 1..2000_i64);
    let probes = proptest::option::weighted(0.3, any::<[bool; 3]>());
    let hooks = any::<[bool; 2]>();
    let restarts = any::<bool>();
    (policy, 0..3_usize, any::<bool>(), 1..3_usize, deadline, probes, hooks, restarts).prop_map(
        |(policy, inits, sidecar, main, deadline, probes, hooks, restarts)| {
            let mut init: Vec<Value> = Vec::from([
                json!({ "name": "i" }),
                json!({ "name": "j", "restartPolicy": sidecar.then_some("Always") }),
            ]);
            init.truncate(inits);
            let named = |names: &[&str]| -> Vec<Value> {
                names.iter().map(|name| json!({ "name": name })).collect()
            };
            let mut spec = json!({
                "restartPolicy": policy,
                "initContainers": init,
                "containers": named(&["a", "b"][..main]),
                "activeDeadlineSeconds": deadline,
            });
            if restarts && let Some(last) = spec["containers"].as_array_mut().unwrap().last_mut() {
                // With the hook, if there is one.
                last["resources"] = json!({ "requests": { "cpu": "200m" } });
                last["resizePolicy"] =
                    json!([{ "resourceName": "cpu", "restartPolicy": "RestartContainer" }]);
            }
            let kinds = ["startupProbe", "livenessProbe", "readinessProbe"];
            for (kind, _) in kinds.into_iter().zip(probes.unwrap_or_default()).filter(|(_, is)| *is)
            {
                spec["containers"][0][kind] = json!({ "tcpSocket": { "port": 80 } });
            }
            for (list, _) in
                ["containers", "initContainers"].into_iter().zip(hooks).filter(|(_, has)| *has)
            {
                if let Some(last) = spec[list].as_array_mut().and_then(|all| all.last_mut()) {
                    last["lifecycle"] = json!({ "preStop": { "exec": { "command": ["x"] } } });
                }
            }

            spec
        },
    )
}

fn step() -> impl Strategy<Value = String> {
    let fault = prop_oneof![
        Just("volumes FailedMount m".to_owned()),
        Just("sandbox FailedCreatePodSandBox m".to_owned()),
        name().prop_map(|name| format!("image {name} ErrImagePull m")),
        name().prop_map(|name| format!("mounted {name} ErrImagePull m")),
        name().prop_map(|name| format!("start {name} CreateContainerConfigError m")),
        name().prop_map(|name| format!("start {name} RunContainerError m")),
        prop_oneof![Just("startup"), Just("liveness"), Just("readiness")]
            .prop_map(|kind| format!("{kind}:a Failure m")),
    ];
    let slow = prop_oneof![
        Just("volumes".to_owned()),
        Just("sandbox".to_owned()),
        name().prop_map(|name| format!("image {name}")),
        name().prop_map(|name| format!("start {name}")),
        name().prop_map(|name| format!("stop {name}")),
        prop_oneof![Just("i"), Just("j")].prop_map(|name| format!("pre-stop {name}")),
        Just("resize".to_owned()),
    ];
    prop_oneof![
        6 => (name(), prop_oneof![Just(0), Just(1), Just(137)])
            .prop_map(|(name, code)| format!("exit {name} {code}")),
        4 => (0..400_i64).prop_map(|seconds| format!("wait {seconds}")),
        1 => (-100_000_000..100_000_000_i64).prop_map(|seconds| format!("clock {seconds}")),
        1 => (-20..20_i64).prop_map(|seconds| format!("clock {seconds}")),
        1 => name().prop_map(|name| format!("unknown {name}")),
        1 => name().prop_map(|name| format!("vanish {name}")),
        2 => fault.prop_map(|fault| format!("break {fault}")),
        2 => Just("mend".to_owned()),
        2 => slow.prop_map(|slow| format!("slow {slow}")),
        2 => prop_oneof![Just("slow pre-stop a"), Just("slow pre-stop b")].prop_map(str::to_owned),
        2 => Just("release".to_owned()),
        1 => Just("sandbox lost".to_owned()),
        1 => Just("sandbox gone".to_owned()),
        1 => Just("power loss".to_owned()),
        2 => Just("agent restart".to_owned()),
        2 => Just("agent crash".to_owned()),
        1 => Just("agent cut".to_owned()),
        1 => (name(), prop_oneof![Just("x"), Just("y"), Just("z")])
            .prop_map(|(name, image)| format!("image {name} {image}")),
        2 => prop_oneof![Just("shutdown 5"), Just("shutdown over")].prop_map(str::to_owned),
        1 => (0..40_i64).prop_map(|seconds| format!("hooks {seconds}")),
        1 => Just("missing secret".to_owned()),
        1 => Just("found".to_owned()),
        1 => Just("debug e".to_owned()),
        2 => (prop_oneof![Just("a"), Just("b")], prop_oneof![Just("200m"), Just("2")])
            .prop_map(|(name, cpu)| format!("resize {name} {cpu}")),
        1 => prop_oneof![Just("room 1000 0"), Just("room 4000 0")].prop_map(str::to_owned),
        1 => prop_oneof![Just("delete 30"), Just("delete 0")].prop_map(str::to_owned),
    ]
}

/// Whether the step can happen now.
fn is_possible(world: &World, step: &str) -> bool {
    match step.split(' ').collect::<Vec<_>>().as_slice() {
        ["exit", name, _] => world.live(name).is_some(),
        _ => true,
    }
}

/// All is well from now on; whoever should end does.
fn recover(world: &mut World) {
    // What is slow still is when the shutdown is called off.
    for step in ["mend", "found", "shutdown over", "release"] {
        world.step(step);
    }
    for _ in 0..8 {
        world.wait(700);
        let init = world.pod.init_containers().iter().filter(|init| !is_sidecar(init));
        let names: Vec<_> = init.map(|init| init.name.clone()).collect();
        for id in names.iter().filter_map(|name| world.live(name)).collect::<Vec<_>>() {
            world.end(&id, 0);
        }
    }
    world.settle();
}

/// No stop was begun and left off, and no resize.
fn nothing_is_left_half_done(world: &World) {
    let memory = &world.memory;
    for view in world.observed.containers.iter().filter(|view| view.is_running()) {
        let is_marked =
            memory.is_interrupted(&view.name, view.attempt) || memory.is_being_stopped(view);
        assert!(!is_marked, "{} goes on though its stop has begun", view.name);
    }
    assert_eq!(memory.resize.in_progress, None);
}

/// What must have become of the pod.
fn must_have_converged(world: &World) {
    let running =
        |name: &str| world.observed.containers.iter().any(|c| c.name == name && c.is_running());
    if world.pod.is_deleted() {
        assert!(world.finished, "not gone: {:?}", world.observed);
        assert!(world.observed.containers.is_empty() && world.observed.sandboxes.is_empty());
        return;
    }
    if world.memory.ended.is_some() {
        let live = world.observed.containers.iter().find(|c| c.may_run());
        assert!(live.is_none() && world.observed.sandbox().is_none(), "{:?}", world.observed);
        assert_eq!(world.observed.volumes, crate::observed::VolumesState::Gone);
        return;
    }
    nothing_is_left_half_done(world);
    assert_eq!(world.observed.sandboxes.len(), 1, "{:?}", world.observed.sandboxes);
    for container in world.pod.containers() {
        let last = world.memory.containers.get(&container.name).and_then(|kept| kept.last.as_ref());
        let may_rest = last.is_some_and(|last| !world.pod.restarts(container, last.exit_code));
        assert!(running(&container.name) || may_rest, "{} rests: {last:?}", container.name);
        let image = container.image.as_ref();
        let stale = world
            .observed
            .containers
            .iter()
            .find(|c| c.name == container.name && c.is_running() && Some(&c.image) != image);
        assert!(stale.is_none(), "{stale:?}");
    }
    let sidecars = world.pod.init_containers().iter().filter(|init| is_sidecar(init));
    for beside in sidecars {
        assert!(running(&beside.name), "{} rests", beside.name);
    }
    for once in world.pod.ephemeral_containers() {
        let kept = world.memory.containers.get(&once.name);
        assert_eq!(kept.and_then(|kept| kept.attempt), Some(0), "{} never ran", once.name);
    }
}

proptest! {
    #![proptest_config(config(LIVES))]

    #[test]
    fn every_life_gets_where_it_should(spec in spec(), steps in vec(step(), 0..STEPS_MAX)) {
        let mut world = World::new(&spec);
        world.settle();
        for step in steps.iter().filter(|step| !step.is_empty()) {
            if is_possible(&world, step) {
                world.step(step);
            }
        }
        recover(&mut world);
        must_have_converged(&world);
    }
}
