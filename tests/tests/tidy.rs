//! Holds the tree to what docs/architecture.md says of it: the crate graph, file sizes and headers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use system_tests::process::checkout;

/// Crates that decide and never do: no runtime, no sockets, no database.
const PURE: [&str; 4] = ["proto", "podcore", "index", "cri-api"];

/// What a pure crate must not reach, however indirectly.
const IMPURE: [&str; 6] = ["tokio", "mio", "hyper", "tonic", "rusqlite", "rustls"];

/// A dependency that exactly one crate may name.
const OWNED: [(&str, &str); 3] =
    [("rusqlite", "store"), ("tonic", "cri"), ("tracing-subscriber", "daemon")];

/// `main.rs` is read on one screen.
const MAIN_LINES_MAX: usize = 60;

/// A longer file is two things.
const FILE_LINES_MAX: usize = 800;

struct Graph {
    members: BTreeSet<String>,
    names: BTreeMap<String, String>,
    edges: BTreeMap<String, Vec<String>>,
}

/// The resolved graph of normal dependencies (neither build nor test ones). Of this platform: crates for
/// others were never downloaded on a machine that has only built this.
fn graph() -> Graph {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", &platform])
        .current_dir(checkout())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();

    let names: BTreeMap<_, _> =
        list(&metadata["packages"]).iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let mut edges = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let normal = list(&node["deps"])
            .iter()
            .filter(|dep| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()))
            .map(|dep| text(&dep["pkg"]))
            .collect();
        edges.insert(text(&node["id"]), normal);
    }
    let members = list(&metadata["workspace_members"]).iter().map(text).collect();

    Graph { members, names, edges }
}

impl Graph {
    fn member(&self, name: &str) -> &str {
        let found = self.members.iter().find(|id| self.names[*id] == name);
        found.unwrap_or_else(|| panic!("no crate {name} in the workspace"))
    }

    fn reach(&self, from: &str) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let mut open = vec![from];
        while let Some(id) = open.pop() {
            for next in &self.edges[id] {
                if seen.insert(self.names[next].as_str()) {
                    open.push(next);
                }
            }
        }

        seen
    }
}

#[test]
fn pure_crates_reach_no_runtime_socket_or_database() {
    let graph = graph();
    for pure in PURE {
        let reached = graph.reach(graph.member(pure));
        for impure in IMPURE {
            assert!(!reached.contains(impure), "{pure} depends on {impure}");
        }
    }
}

#[test]
fn a_dependency_with_an_owner_is_named_by_it_alone() {
    let graph = graph();
    for (dependency, owner) in OWNED {
        for id in &graph.members {
            let named = graph.edges[id].iter().any(|dep| graph.names[dep] == dependency);
            let name = graph.names[id].as_str();
            assert!(!named || name == owner, "{name} names {dependency}: that is {owner}'s");
        }
    }
}

#[test]
fn nothing_of_the_product_depends_on_the_tests() {
    let graph = graph();
    for id in &graph.members {
        let reached = graph.reach(id);
        for tests in ["system-tests", "parsers"] {
            assert!(!reached.contains(tests), "{}", graph.names[id]);
        }
    }
}

fn rust_files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(checkout())
        .output()
        .expect("git runs");
    let listed = String::from_utf8_lossy(&output.stdout);
    let files: Vec<_> =
        listed.lines().map(|line| checkout().join(line)).filter(|path| path.exists()).collect();
    assert!(files.len() > 20, "only {} files found; did the folders move?", files.len());

    files
}

fn is_test(path: &Path) -> bool {
    let in_checkout = path.strip_prefix(checkout()).expect("files are of the checkout");
    in_checkout.components().any(|part| part.as_os_str() == "tests")
        || path.file_name().is_some_and(|name| name == "tests.rs")
}

#[test]
fn every_file_says_what_it_is_for_and_is_one_thing() {
    for path in rust_files() {
        let text = std::fs::read_to_string(&path).expect("a listed file can be read");
        let shown = path.display();
        assert!(text.starts_with("//!"), "{shown} does not open with a //! line");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let lines = code.lines().count();
        let is_main = path.file_name().is_some_and(|name| name == "main.rs") && !is_test(&path);
        let limit = if is_main { MAIN_LINES_MAX } else { FILE_LINES_MAX };
        assert!(lines <= limit, "{shown} has {lines} lines, at most {limit} are allowed");
    }
}

/// Where code may open a network socket: the link on both sides, the servers beside it, the clients
/// of the runtime, questions to containers, the node's facts, which ask the kernel for a route and send
/// nothing, and NFS volumes, whose server is called before the kernel waits for it.
const SOCKET_OWNERS: [&str; 10] = [
    "cloudcore/src/hub",
    "cloudcore/src/kubelet_api",
    "cloudcore/src/status.rs",
    "edgecore/src/link",
    "edgecore/src/kubelet_api",
    "edgecore/src/handlers",
    "edgecore/src/node/facts.rs",
    "edgecore/src/volumes/nfs.rs",
    "edgecore/cri/",
    "edgeadm/",
];

/// The code of the product, without tests: the path shown and the text.
fn product_code() -> impl Iterator<Item = (String, String)> {
    rust_files().into_iter().filter(|path| !is_test(path)).map(|path| {
        let text = std::fs::read_to_string(&path).expect("a listed file can be read");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();

        (path.display().to_string(), code.to_owned())
    })
}

#[test]
fn sockets_are_opened_only_where_they_belong() {
    for (shown, code) in product_code() {
        if SOCKET_OWNERS.iter().any(|owner| shown.contains(owner)) {
            continue;
        }
        for socket in ["TcpStream::connect", "TcpListener::bind", "UdpSocket::bind"] {
            assert!(!code.contains(socket), "{shown} opens a socket by {socket}");
        }
    }
}

#[test]
fn every_queue_has_a_named_bound() {
    let mut queues = 0;
    for (shown, code) in product_code() {
        for opener in ["mpsc::channel(", "sync_channel("] {
            for (_, rest) in code.match_indices(opener).map(|(at, _)| code.split_at(at)) {
                let bound = &rest[opener.len()..rest.find(')').expect("a call ends")];
                let name = bound.rsplit("::").next().unwrap_or_default();
                let is_constant = name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
                assert!(!name.is_empty() && is_constant, "{shown}: a queue of {bound:?}");
                queues += 1;
            }
        }
    }
    assert!(queues > 5, "only {queues} queues found; are they opened in another way?");
}

/// Verifiers of certificates of our own: of a cloudcore by the authority in its token, and of a
/// container that is asked how it is, which may have any certificate.
const VERIFIERS: [&str; 3] =
    ["edgeadm/src/pin.rs", "edgecore/src/handlers/tls.rs", "edgecore/src/identity/verifier.rs"];

/// The only code that starts a program, and that program. No shell is between them.
const STARTER: (&str, &str) = ("edgeadm/src/host.rs", "const HELM: &str = \"helm\";");

/// How a program may be named in code that starts one.
const STARTS: [&str; 3] = ["process::Command", "Command::new(", "CommandExt"];

#[test]
fn only_helm_is_started_by_name_and_with_arguments_alone() {
    let mut starters = 0;
    for (shown, code) in product_code() {
        if shown.ends_with(STARTER.0) {
            starters += 1;
            assert!(code.contains(STARTER.1), "{shown} starts another program");
            assert_eq!(code.matches("Command::new(").count(), 1, "{shown}");
            assert!(code.contains("Command::new(HELM)"), "{shown} starts what is not a constant");
            continue;
        }
        for start in STARTS {
            assert!(!code.contains(start), "{shown} starts a process by {start}");
        }
    }
    assert_eq!(starters, 1, "{} is not there", STARTER.0);
    let tree = graph();
    for crate_name in ["edgecore", "cloudcore"] {
        let reached = tree.reach(tree.member(crate_name));
        assert!(!reached.contains("edgeadm"), "{crate_name} could start a program");
    }
}

#[test]
fn every_peer_is_verified() {
    for (shown, code) in product_code() {
        let has_own = code.contains(".dangerous()") || code.contains("ServerCertVerifier");
        let may = VERIFIERS.iter().any(|verifier| shown.ends_with(verifier));
        assert_eq!(has_own, may, "{shown}: a verifier of its own");
    }
}
