//! What others make the agent read, without sockets and files: for the tests that feed it anything. Nothing
//! of the agent uses this.

use std::path::Path;

use serde_json::Value;

use crate::kubelet_api::query::{Query, unescape_path};
use crate::kubelet_api::{logs, node_logs, upgrade};
use crate::node::cgroups::hierarchy::hierarchies;
use crate::node::facts;
use crate::node::usage::read::process;
use crate::static_pods::files;
use crate::volumes::mounts;

/// Whether a query of the kubelet API is taken by those that read more of it than a flag.
pub fn is_query(query: &str) -> bool {
    drop(unescape_path(query));
    let query = Query::parse(query);

    upgrade::has_streams(&query) || node_logs::is_taken(&query)
}

/// The file of a static pod, unless it is none.
pub fn manifest(text: &str) -> Option<Value> {
    files::manifest_of(text).ok()
}

/// What of the lines of a log file a query wants; `None` if it is refused.
pub fn printed(query: &str, file: &[u8]) -> Option<Vec<u8>> {
    logs::printed(&Query::parse(query), file)
}

/// How many things these tables of the kernel name: lists of CPUs, sizes, mounts, hierarchies of cgroups, times
/// of a process.
pub fn counted(table: &str) -> u64 {
    let mounts = mounts::points_below(table, Path::new("/")).len() as u64;
    let shared = u64::from(mounts::is_shared(table, Path::new("/var/lib/kubelet")));
    let named = facts::os_image(table).len() as u64;
    let cgroups = hierarchies(table).len() as u64;
    let used = process(table, table, None).map_or(0, |process| process.cpu_ns);

    [
        mounts,
        shared,
        named,
        cgroups,
        used,
        facts::bytes_in(table, "MemTotal:"),
        facts::count_list(table),
    ]
    .into_iter()
    .fold(0, u64::saturating_add)
}
