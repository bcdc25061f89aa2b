//! What is left of a container that was removed: its log link and its old logs.

use podcore::memory::Memory;
use podcore::observed::{ContainerView, Observed};
use podcore::pod::PodView;

use super::{Done, Job};
use crate::blocking;
use crate::pods::context::Context;
use crate::pods::logs::Forgotten;

impl Job {
    /// Removes the links and old logs of what is gone. All logs of a deleted pod go in the end.
    pub(super) async fn forget(mut self, done: Done) -> Done {
        let Done::Gone(gone) = &done else { return done };
        if self.pod.is_deleted() {
            return done;
        }
        self.forgettable.retain(|(id, sandbox, _)| id == gone || sandbox == gone);
        for (id, _, forgotten) in self.forgettable {
            if let Err(error) = blocking::run(move || forgotten.remove()).await {
                tracing::warn!(container = id, %error, "old logs of a container are still there");
            }
        }

        done
    }
}

pub(super) fn forgettable(
    context: &Context,
    pod: &PodView,
    observed: &Observed,
    memory: &Memory,
) -> Vec<(String, String, Forgotten)> {
    let layout = &context.layout;
    let logs = layout.logs(&pod.namespace, &pod.name, &pod.uid);
    let of_container = |seen: &ContainerView| {
        let kept = memory.containers.get(&seen.name).and_then(|kept| kept.attempt);
        let forgotten = Forgotten {
            link: layout.log_link(&pod.namespace, &pod.name, &seen.name, &seen.id),
            dir: logs.join(&seen.name),
            newest: kept.unwrap_or(seen.attempt),
        };
        (seen.id.clone(), seen.sandbox_id.clone(), forgotten)
    };

    observed.containers.iter().map(of_container).collect()
}
