//! Everything that reads what others wrote, each as a [`Target`] that can be fed any bytes: the peer of a
//! link, strangers at a port, users of the API, containers, files that people edit.
//!
//! A target panics if the program would, or if a promise of its parser does not hold. `tests/replay.rs` feeds
//! them `corpus/NAME` and seeded mutations of it in every test run; `scripts/fuzz` looks for more.

mod cloud;
mod command;
mod link;
mod node;

pub use self::link::{mend, most_entries};

/// What reading may cost beside a small multiple of the input: a parser's tables.
const BASE_BYTES_MAX: usize = 1024 * 1024;

/// Bytes in use, at most, for each byte of a text: a tree of one byte's nodes and their spare room, a few
/// times over.
const TREE_FACTOR: usize = 1024;

/// What came of an input.
pub struct Fed {
    /// What reading it may have cost at most, in bytes of memory at once.
    pub allowed: usize,
    /// What else must hold of it.
    pub check: Option<Box<dyn FnOnce()>>,
}

impl Fed {
    /// Nothing else must hold.
    fn within(allowed: usize) -> Self {
        Self { allowed, check: None }
    }

    /// Of a text or an object, whose cost is in proportion to its length.
    fn tree(bytes: &[u8]) -> Self {
        Self::within(BASE_BYTES_MAX + bytes.len().saturating_mul(TREE_FACTOR))
    }

    fn and(self, check: impl FnOnce() + 'static) -> Self {
        Self { check: Some(Box::new(check)), ..self }
    }
}

/// A parser.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its folder in `corpus`.
    pub name: &'static str,
    /// Reads.
    pub feed: fn(&[u8]) -> Fed,
    /// Mutations tried of each input of the corpus, by ordinary tests: fewer of what takes longer.
    pub rounds: u64,
}

const fn target(name: &'static str, feed: fn(&[u8]) -> Fed, rounds: u64) -> Target {
    Target { name, feed, rounds }
}

/// All of them.
pub static TARGETS: [Target; 25] = [
    // From the peer of a link.
    target("frame", link::frame, 1500),
    target("renewal", link::renewal, 300),
    target("node_status", cloud::node_status, 200),
    target("pod_status", cloud::pod_status, 200),
    target("static_pods", cloud::static_pods, 200),
    target("event", cloud::event, 200),
    // From strangers.
    target("join", cloud::join, 200),
    target("request", cloud::request, 200),
    target("certificate", cloud::certificate, 200),
    target("join_answer", command::join_answer, 200),
    target("proxy", node::proxy, 300),
    // From users of the API, by way of the API server.
    target("object", cloud::object, 200),
    target("pod", node::pod, 30),
    target("materials", node::materials, 100),
    target("pull_secret", node::pull_secret, 200),
    target("query", node::query, 200),
    target("url", node::url, 200),
    // From containers, and from others on the machine.
    target("log", node::log, 200),
    target("variables", node::variables, 200),
    target("bus", node::bus, 300),
    target("kernel", node::kernel, 200),
    // From people.
    target("manifest", node::manifest, 100),
    target("config", node::config, 100),
    target("text", command::text, 200),
    target("token", command::token, 200),
];

/// The target of that name.
pub fn named(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// The text that these bytes are, as far as they are one.
fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The two halves of an input that is fed to two parsers: around the first empty line.
fn halves(text: &str) -> (&str, &str) {
    text.split_once("\n\n").unwrap_or((text, ""))
}
