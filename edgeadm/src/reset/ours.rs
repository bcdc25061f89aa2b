//! Which pods are this node's: found before anything is removed.

use std::collections::BTreeSet;
use std::fs;

use edgecore::Config;
use proto::ids::Uid;

/// UIDs of this node's pods. Of no other node's: a stock kubelet or a second agent on this machine has
/// folders of its own.
#[derive(Debug, Default)]
pub(super) struct Ours {
    pub(super) uids: BTreeSet<String>,
}

impl Ours {
    /// Those with a folder below the root directory.
    pub(super) fn in_files(config: &Config) -> Self {
        let entries = fs::read_dir(config.root_dir.join("pods")).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());

        Self { uids: names.filter(|name| Uid::new(name.as_str()).is_ok()).collect() }
    }
}
