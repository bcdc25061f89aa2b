//! What is collected. What cannot be had is told in its place.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use edgecore::Config;
use serde_json::Value;

use super::redact;
use crate::agent::{Agent, AgentError};
use crate::{certificate, check, output, ui};

/// Of the log.
const LOG_BYTES_MAX: u64 = 1024 * 1024;
/// Lines of a listing of files.
const FILES_MAX: usize = 5000;
/// Folders below folders: pods, their volumes, and what is in these is nobody's business.
const DEPTH_MAX: usize = 4;

/// What the machine says of itself.
const MACHINE: [(&str, &str); 8] = [
    ("os-release", "/etc/os-release"),
    ("meminfo", "/proc/meminfo"),
    ("loadavg", "/proc/loadavg"),
    ("mounts", "/proc/self/mountinfo"),
    ("cgroups", "/proc/cgroups"),
    ("routes", "/proc/net/route"),
    ("routes6", "/proc/net/ipv6_route"),
    ("resolv.conf", "/etc/resolv.conf"),
];

/// Names and texts of all files of the archive.
pub(super) async fn all(
    config: &Config,
    config_path: &Path,
    log: Option<&Path>,
) -> Vec<(String, String)> {
    let agent = Agent::at(&config.control_socket);
    let mut files = Vec::new();
    let mut add = |name: &str, text: String| files.push((name.to_owned(), text));
    add("version.txt", format!("edgeadm {}\n", env!("CARGO_PKG_VERSION")));
    add("edgecore.yaml", fs::read_to_string(config_path).unwrap_or_default());
    add("status.yaml", told(agent.get("/holdfast/v1/status").await));
    add("objects.yaml", told(agent.get("/holdfast/v1/objects").await));
    add("events.yaml", told(agent.get("/holdfast/v1/events").await));
    add("pods.yaml", told(agent.get("/pods").await.map(without_values)));
    add("metrics.txt", agent.text("/metrics").await.unwrap_or_else(|error| ui::chain(&error)));
    add("check.yaml", output::yaml(&check::findings(config, None).await));
    add(
        "certificate.yaml",
        match certificate::read(&config.identity_dir) {
            Ok(certificate) => output::yaml(&certificate),
            Err(error) => ui::chain(&error),
        },
    );
    for (name, dir) in [
        ("files-of-state.txt", &config.state_dir),
        ("files-of-identity.txt", &config.identity_dir),
        ("files-of-pods.txt", &config.root_dir),
        ("files-of-logs.txt", &config.pod_logs_dir),
    ] {
        add(name, listing(dir));
    }
    add("uname.txt", format!("{:?}\n", rustix::system::uname()));
    for (name, path) in MACHINE {
        add(&format!("machine/{name}"), fs::read_to_string(path).unwrap_or_default());
    }
    add(
        "edgecore.log",
        match log {
            Some(path) => {
                end_of(path).unwrap_or_else(|error| format!("{}: {error}", path.display()))
            }
            None => "not given; see --log-path\n".to_owned(),
        },
    );

    files
}

fn told(answer: Result<Value, AgentError>) -> String {
    match answer {
        Ok(value) => output::yaml(&value),
        Err(error) => ui::chain(&error),
    }
}

fn without_values(mut list: Value) -> Value {
    list["items"].as_array_mut().into_iter().flatten().for_each(redact::pod);

    list
}

/// Names, sizes and owners, never what is in them.
fn listing(root: &Path) -> String {
    let mut text = String::new();
    let mut open = vec![(root.to_owned(), 0)];
    let mut lines = 0;
    while let Some((dir, depth)) = open.pop() {
        let mut entries: Vec<_> = fs::read_dir(&dir).into_iter().flatten().flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            lines += 1;
            if lines > FILES_MAX {
                text.push_str("and more\n");
                return text;
            }
            let Ok(found) = entry.metadata() else { continue };
            let path = entry.path();
            let (mode, user, group, size) = (found.mode(), found.uid(), found.gid(), found.len());
            let _infallible =
                writeln!(text, "{mode:06o} {user}:{group} {size:>12} {}", path.display());
            if found.is_dir() && depth < DEPTH_MAX {
                open.push((path, depth + 1));
            }
        }
    }

    text
}

fn end_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;

    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_and_not_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b/c/d/e/f")).unwrap();
        fs::write(dir.path().join("a/key"), "precious").unwrap();
        let text = listing(dir.path());
        assert!(text.contains("/a/key\n") && text.contains("/a/b/c/d/e\n"), "{text}");
        assert!(!text.contains("/e/f") && !text.contains("precious"), "{text}");
    }

    #[test]
    fn the_end_of_a_log_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let length = usize::try_from(LOG_BYTES_MAX).unwrap();
        fs::write(&path, format!("first{}last", "x".repeat(length))).unwrap();
        let text = end_of(&path).unwrap();
        assert_eq!(text.len(), length);
        assert!(text.ends_with("last") && !text.contains("first"));
    }
}
