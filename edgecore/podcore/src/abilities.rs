//! What the machine and its runtime can do, of what not all of them can.

/// Told by the runtime (CRI `Status`) and the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// The kernel has AppArmor.
    pub app_armor: bool,
    /// The runtime can leave out the groups of the image (`supplementalGroupsPolicy: Strict`).
    pub supplemental_groups_policy: bool,
    /// How pods can be run, in the runtime's order; old runtimes list nothing.
    pub handlers: Vec<Handler>,
}

/// A way to run a pod, which a RuntimeClass names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handler {
    /// Its name in the runtime; empty for the default.
    pub name: String,
    /// Mounts can be read-only with all that is mounted below them.
    pub recursive_read_only_mounts: bool,
    /// Pods can have a user namespace of their own.
    pub user_namespaces: bool,
}

impl Abilities {
    /// The handler of that name, if the runtime lists it.
    pub fn handler(&self, name: &str) -> Option<&Handler> {
        self.handlers.iter().find(|handler| handler.name == name)
    }
}
