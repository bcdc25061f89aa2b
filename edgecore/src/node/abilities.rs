//! What this machine and its runtime can do.

use std::path::Path;

use cri_api::v1::StatusResponse;
use podcore::abilities::{Abilities, Handler};

use crate::blocking::read_trimmed;

/// What the runtime says of itself, with what the kernel has.
pub fn abilities(status: &StatusResponse, app_armor: bool) -> Abilities {
    let handlers = status.runtime_handlers.iter().map(|handler| {
        let features = handler.features.unwrap_or_default();
        Handler {
            name: handler.name.clone(),
            recursive_read_only_mounts: features.recursive_read_only_mounts,
            user_namespaces: features.user_namespaces,
        }
    });

    Abilities {
        app_armor,
        supplemental_groups_policy: status
            .features
            .is_some_and(|features| features.supplemental_groups_policy),
        handlers: handlers.collect(),
    }
}

/// What is known before a runtime answers.
pub fn of_machine() -> Abilities {
    Abilities { app_armor: has_app_armor(), ..Abilities::default() }
}

/// Whether the kernel has AppArmor and it is on (kubelet: `apparmor.IsEnabled`).
fn has_app_armor() -> bool {
    let is_on = read_trimmed("/sys/module/apparmor/parameters/enabled").as_deref() == Some("Y");

    is_on && Path::new("/sys/kernel/security/apparmor").exists()
}
