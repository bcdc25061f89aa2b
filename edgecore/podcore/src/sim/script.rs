//! Scripts: what happens to a pod, step by step, and what the agent does about it.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use super::{World, show_status};
use crate::observed::{ContainerState, Missing};
use crate::resize::{Amount, Room};
use crate::status::{StatusContext, status};

/// Plays steps on a new pod and compares what was done after each. Steps:
///
/// - `look`; `wait S`: time passes; `clock S`: the clock is set by so many seconds;
/// - `exit NAME CODE`, `oom NAME`, `oom NAME told` (after its end), `unknown NAME`, `vanish NAME` (the runtime forgets it);
/// - `sandbox lost`, `sandbox gone` (with all in it), `wiped` (the runtime knows nothing),
///   `power loss`, `agent restart`, `agent crash` (what was under way is done, but not noted), `agent cut`
///   (starts that were under way are given up);
/// - `break WHAT REASON MESSAGE` (`mounted NAME` is the image `v` of a volume), `mend WHAT`, `slow WHAT`, `release`;
/// - `hooks S` (those before a stop take so long);
/// - `shutdown S` (it is the pod's turn, with so much grace), `shutdown over`;
/// - `resize NAME CPU` (asks for that much), `room CPU USED` (of the node, in thousandths);
/// - `image NAME IMAGE`, `debug NAME` (adds an ephemeral container), `delete S`, `missing WHAT`, `found`;
/// - `status` (does nothing, shows the PodStatus), `sizes` (CPU granted and had, and what is to come), `ready` (which containers are ready, or only started), `events` (shows and forgets them).
pub(crate) fn check(spec: &Value, steps: &[(&str, &str)]) -> World {
    let mut world = World::new(spec);
    play(&mut world, steps);

    world
}

/// Plays steps on.
pub(crate) fn play(world: &mut World, steps: &[(&str, &str)]) {
    for (at, (step, expected)) in steps.iter().enumerate() {
        let done = world.step(step);
        assert_eq!(done, *expected, "step {at}: {step}");
    }
}

/// A token, an object that is not found, or a claim that cannot be used.
fn missing(what: &str) -> Missing {
    match what {
        "token" => Missing::Token { of: "default".to_owned() },
        "claim" => {
            let why = "error processing PVC default/data: PVC is not bound".to_owned();
            Missing::Claim { volume: "data".to_owned(), why }
        }
        object => Missing::Object(format!("{object} \"x\" not found")),
    }
}

impl World {
    pub(crate) fn step(&mut self, step: &str) -> String {
        let words: Vec<_> = step.split(' ').collect();
        match words.as_slice() {
            ["status"] => return self.shown_status(),
            ["events"] => return std::mem::take(&mut self.events).join("; "),
            ["sizes"] => return self.shown_sizes(),
            ["ready"] => return self.shown_ready(),
            ["finished"] => return self.finished.to_string(),
            ["wait", seconds] => self.wait(seconds.parse().unwrap()),
            _ => {
                self.happen(&words);
                self.settle();
            }
        }

        std::mem::take(&mut self.trace).join(" ")
    }

    fn shown_status(&self) -> String {
        let context = StatusContext::default();

        show_status(&status(&self.pod, &self.memory, &self.observed, &context, self.now))
    }

    /// The containers that are ready, and in brackets those that have only started.
    fn shown_ready(&self) -> String {
        let context = StatusContext::default();
        let status = status(&self.pod, &self.memory, &self.observed, &context, self.now);
        let shown = status.container_statuses.into_iter().flatten().filter_map(|c| {
            let is_started = c.started == Some(true);
            if c.ready { Some(c.name) } else { is_started.then(|| format!("({})", c.name)) }
        });

        shown.collect::<Vec<_>>().join(" ")
    }

    fn happen(&mut self, words: &[&str]) {
        match words {
            ["look"] => {}
            ["clock", seconds] => {
                let seconds = seconds.parse().unwrap();
                self.now += SignedDuration::from_secs(seconds);
                self.observed.clock_set_s += seconds;
            }
            ["exit", name, code] => {
                let id = self.live(name).expect("it runs");
                self.end(&id, code.parse().unwrap());
            }
            ["oom", name] => self.kill(name),
            ["oom", name, "told"] => {
                let id = self.observed.newest(name).expect("it ended").id.clone();
                self.observed.ran_out_of_memory(&id, &mut self.memory);
            }
            ["unknown", name] => self.each(name, |state| {
                if matches!(state, ContainerState::Running { .. }) {
                    *state = ContainerState::Unknown;
                }
            }),
            ["vanish", name] => {
                self.store();
                self.observed.containers.retain(|c| c.name != *name);
            }
            ["sandbox", "lost"] => self.observed.sandboxes.iter_mut().for_each(|s| s.ready = false),
            ["sandbox", "gone"] | ["wiped"] => {
                self.store();
                self.observed.sandboxes.clear();
                self.observed.containers.clear();
            }
            ["power", "loss"] => self.power_loss(),
            ["agent", "restart"] => self.agent_restart(),
            ["agent", "crash"] => self.agent_crash(),
            ["agent", "cut"] => self.agent_cut(),
            ["break", "image", name, reason, message] => {
                self.fault(&format!("image {name}"), reason, message);
            }
            ["break", "mounted", name, reason, message] => {
                self.fault(&format!("mounted {name}"), reason, message);
            }
            ["break", "start", name, reason, message] => {
                self.fault(&format!("start {name}"), reason, message);
            }
            ["break", what, reason, message] => self.fault(what, reason, message),
            ["mend"] => self.faults.clear(),
            ["slow", what @ ..] => {
                self.slow.insert(what.join(" "));
            }
            ["release"] => self.release(),
            ["image", name, image] => self.set_image(name, image),
            ["debug", name] => self.debug(name),
            ["resize", name, cpu] => self.resize(name, cpu),
            ["room", capacity, used] => self.room(capacity, used),
            ["delete", grace] => {
                let grace: i64 = grace.parse().unwrap();
                self.object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:05Z");
                self.object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
                self.apply();
            }
            ["stops", name, code] => {
                self.on_stop.insert((*name).to_owned(), code.parse().unwrap());
            }
            ["hooks", seconds] => self.hook_takes_s = seconds.parse().unwrap(),
            ["shutdown", when] => self.observed.shutdown_s = when.parse().ok(),
            ["restart", name] => self.restart(name),
            ["missing", what] => self.observed.missing = vec![missing(what)],
            ["found"] => self.observed.missing.clear(),
            other => panic!("no such step: {other:?}"),
        }
    }

    /// The kernel kills the container for want of memory, and the runtime says so.
    fn kill(&mut self, name: &str) {
        let id = self.live(name).expect("it runs");
        self.end(&id, 137);
        self.each(name, |state| {
            if let ContainerState::Exited { reason, .. } = state {
                "OOMKilled".clone_into(reason);
            }
        });
    }

    /// Of each container the CPU that it is granted, and that it has; then the conditions of a resize.
    fn shown_sizes(&self) -> String {
        let context = StatusContext::default();
        let status = status(&self.pod, &self.memory, &self.observed, &context, self.now);
        let cpu = |all: Option<&BTreeMap<String, Quantity>>| {
            all.and_then(|all| all.get("cpu")).map_or_else(|| "-".to_owned(), |cpu| cpu.0.clone())
        };
        let containers = status.container_statuses.iter().flatten().map(|c| {
            let has = c.resources.as_ref().and_then(|resources| resources.requests.as_ref());
            format!("{}={}/{}", c.name, cpu(c.allocated_resources.as_ref()), cpu(has))
        });
        let conditions = status.conditions.iter().flatten().filter_map(|condition| {
            let name = condition.type_.strip_prefix("PodResize")?;
            Some(format!("{name}:{}", condition.reason.clone().unwrap_or_default()))
        });

        containers.chain(conditions).collect::<Vec<_>>().join(" ")
    }

    fn restart(&mut self, name: &str) {
        let newest = self.observed.newest(name).map(|view| view.id.clone());
        self.observed.restarts = newest.into_iter().collect();
    }

    fn room(&mut self, capacity: &str, used: &str) {
        let (capacity, used) = (capacity.parse().unwrap(), used.parse().unwrap());
        let memory = Amount { capacity: 1 << 30, used: 0 };
        self.observed.room = Some(Room { cpu: Amount { capacity, used }, memory });
    }

    fn resize(&mut self, name: &str, cpu: &str) {
        let containers = self.object["spec"]["containers"].as_array_mut().into_iter().flatten();
        for container in containers.filter(|c| c["name"] == name) {
            container["resources"]["requests"]["cpu"] = json!(cpu);
        }
        let generation = self.object["metadata"]["generation"].as_i64().unwrap();
        self.object["metadata"]["generation"] = json!(generation + 1);
        self.apply();
    }

    fn debug(&mut self, name: &str) {
        let container = json!({ "name": name, "image": "x" });
        match self.object["spec"]["ephemeralContainers"].as_array_mut() {
            Some(all) if all.iter().any(|other| other["name"] == *name) => {}
            Some(all) => all.push(container),
            None => self.object["spec"]["ephemeralContainers"] = json!([container]),
        }
        self.apply();
    }

    fn fault(&mut self, what: &str, reason: &str, message: &str) {
        self.faults.insert(what.to_owned(), (reason.to_owned(), message.to_owned()));
    }

    fn each(&mut self, name: &str, change: impl Fn(&mut ContainerState)) {
        for container in self.observed.containers.iter_mut().filter(|c| c.name == name) {
            change(&mut container.state);
        }
    }

    fn set_image(&mut self, name: &str, image: &str) {
        for list in ["containers", "initContainers"] {
            let containers = self.object["spec"][list].as_array_mut().into_iter().flatten();
            for container in containers.filter(|c| c["name"] == name) {
                container["image"] = json!(image);
            }
        }
        self.apply();
    }
}
