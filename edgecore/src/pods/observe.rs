//! What the runtime says about one pod, as podcore wants to see it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use cri::{CriError, Runtime};
use cri_api::v1;
use jiff::Timestamp;
use podcore::observed::{ContainerState, ContainerView, SandboxView, UserView};
use podcore::translate::{
    HASH_ANNOTATION, MESSAGE_PATH_ANNOTATION, MESSAGE_POLICY_ANNOTATION, NODE_LABEL, POD_UID_LABEL,
};
use proto::ids::Uid;

/// Longest termination message taken, as the kubelet's.
const MESSAGE_BYTES_MAX: u64 = 4096;
/// Most of a log taken in place of a message, as the kubelet's.
const LOG_BYTES_MAX: usize = 2048;
const LOG_LINES_MAX: usize = 80;
/// How much of a log is read for that: runtimes write a line in parts of 16 KiB at most.
const LOG_READ_BYTES: u64 = 36 * 1024;

/// Everything the runtime holds of one pod.
#[derive(Clone, Debug, Default)]
pub struct Holding {
    /// Its sandboxes.
    pub sandboxes: Vec<SandboxView>,
    /// Its containers.
    pub containers: Vec<SeenContainer>,
}

/// A container and where its log is.
#[derive(Clone, Debug)]
pub struct SeenContainer {
    /// What podcore sees.
    pub view: ContainerView,
    /// Its log file.
    pub log_path: String,
}

/// Ids that a list showed for one pod, with their CRI state; containers also with their sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// State by sandbox id.
    pub sandboxes: BTreeMap<String, i32>,
    /// State and sandbox by container id.
    pub containers: BTreeMap<String, (i32, String)>,
    /// Whether a sandbox carries the label of this node.
    pub is_ours: bool,
}

impl Listed {
    /// All ids with their states.
    pub fn states(&self) -> BTreeMap<String, i32> {
        let containers = self.containers.iter().map(|(id, (state, _))| (id.clone(), *state));

        self.sandboxes.clone().into_iter().chain(containers).collect()
    }
}

/// Lists what the runtime holds, by pod; with `pod` only of that one. Sandboxes and containers
/// without a pod's label are somebody else's.
pub async fn list(
    runtime: &Runtime,
    node: &str,
    pod: Option<&Uid>,
) -> Result<BTreeMap<Uid, Listed>, CriError> {
    let selector = |pod: &Uid| BTreeMap::from([(POD_UID_LABEL.to_owned(), pod.to_string())]);
    let sandboxes = pod.map(|pod| v1::PodSandboxFilter {
        label_selector: selector(pod),
        ..v1::PodSandboxFilter::default()
    });
    let containers = pod.map(|pod| v1::ContainerFilter {
        label_selector: selector(pod),
        ..v1::ContainerFilter::default()
    });
    let (sandboxes, containers) = tokio::try_join!(
        runtime.list_pod_sandboxes(sandboxes),
        runtime.list_containers(containers)
    )?;

    let mut pods: BTreeMap<Uid, Listed> = BTreeMap::new();
    for sandbox in sandboxes {
        if let Some(uid) = uid_of(&sandbox.labels) {
            let listed = pods.entry(uid).or_default();
            listed.is_ours |= sandbox.labels.get(NODE_LABEL).is_some_and(|name| name == node);
            listed.sandboxes.insert(sandbox.id, sandbox.state);
        }
    }
    for container in containers {
        if let Some(uid) = uid_of(&container.labels) {
            let seen = (container.state, container.pod_sandbox_id);
            pods.entry(uid).or_default().containers.insert(container.id, seen);
        }
    }

    Ok(pods)
}

fn uid_of(labels: &BTreeMap<String, String>) -> Option<Uid> {
    Uid::new(labels.get(POD_UID_LABEL)?.as_str()).ok()
}

/// Reads what was listed of one pod in full. What vanished meanwhile is left out.
pub async fn read(runtime: &Runtime, listed: &Listed) -> Result<Holding, CriError> {
    let mut holding = Holding::default();
    for id in listed.sandboxes.keys() {
        match runtime.pod_sandbox_status(id).await {
            Ok(status) => holding.sandboxes.push(sandbox_view(&status)),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    for (id, (_, sandbox)) in &listed.containers {
        match runtime.container_status(id).await {
            Ok(status) => holding.containers.push(container(status, sandbox).await),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }

    Ok(holding)
}

/// A sandbox as podcore wants it.
pub fn sandbox_view(status: &v1::PodSandboxStatus) -> SandboxView {
    let network = status.network.as_ref();
    let first = network.map(|network| network.ip.clone());
    let others = network.into_iter().flat_map(|network| &network.additional_ips);
    let ips = first.into_iter().chain(others.map(|other| other.ip.clone()));

    SandboxView {
        id: status.id.clone(),
        attempt: status.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
        ready: status.state() == v1::PodSandboxState::SandboxReady,
        ips: ips.filter(|ip| !ip.is_empty()).collect(),
    }
}

/// A container as podcore wants it, with its termination message if it ended.
pub async fn container(status: v1::ContainerStatus, sandbox: &str) -> SeenContainer {
    let log_path = status.log_path.clone();
    let metadata = status.metadata.clone().unwrap_or_default();
    let image = status.image.clone().unwrap_or_default();
    let named = if image.user_specified_image.is_empty() {
        image.image
    } else {
        image.user_specified_image
    };

    SeenContainer {
        log_path,
        view: ContainerView {
            id: status.id.clone(),
            name: metadata.name,
            attempt: metadata.attempt,
            sandbox_id: sandbox.to_owned(),
            image: named,
            image_ref: status.image_ref.clone(),
            spec_hash: status.annotations.get(HASH_ANNOTATION).cloned(),
            user: user(&status),
            state: state(status).await,
        },
    }
}

fn user(status: &v1::ContainerStatus) -> Option<UserView> {
    let user = status.user.as_ref()?.linux.as_ref()?;
    let groups = user.supplemental_groups.clone();

    Some(UserView { uid: user.uid, gid: user.gid, groups })
}

async fn state(status: v1::ContainerStatus) -> ContainerState {
    match status.state() {
        v1::ContainerState::ContainerCreated => ContainerState::Created,
        v1::ContainerState::ContainerUnknown => ContainerState::Unknown,
        v1::ContainerState::ContainerRunning => ContainerState::Running {
            started_at: time(status.started_at).unwrap_or(Timestamp::UNIX_EPOCH),
        },
        v1::ContainerState::ContainerExited => ContainerState::Exited {
            started_at: time(status.started_at),
            finished_at: time(status.finished_at),
            exit_code: status.exit_code,
            reason: status.reason.clone(),
            message: crate::blocking::run(move || termination_message(&status)).await,
        },
    }
}

/// The CRI state of a sandbox as [`list`] shows it.
pub fn sandbox_code(sandbox: &SandboxView) -> i32 {
    let state = if sandbox.ready {
        v1::PodSandboxState::SandboxReady
    } else {
        v1::PodSandboxState::SandboxNotready
    };

    state.into()
}

/// The CRI state of a container as [`list`] shows it.
pub fn container_code(state: &ContainerState) -> i32 {
    let state = match state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => v1::ContainerState::ContainerRunning,
        ContainerState::Exited { .. } => v1::ContainerState::ContainerExited,
        ContainerState::Unknown => v1::ContainerState::ContainerUnknown,
    };

    state.into()
}

/// CRI times are nanoseconds, 0 meaning not yet.
fn time(nanos: i64) -> Option<Timestamp> {
    (nanos > 0).then(|| Timestamp::from_nanosecond(nanos.into()).ok()).flatten()
}

/// What the runtime says of the end, then what the container left to say: its termination file, or its
/// log if the policy wants that (kubelet: `getTerminationMessage`).
fn termination_message(status: &v1::ContainerStatus) -> String {
    let note = |name: &str| status.annotations.get(name).map(String::as_str);
    let host_path = note(MESSAGE_PATH_ANNOTATION).and_then(|path| {
        let mount = status.mounts.iter().find(|mount| mount.container_path == path);
        mount.map(|mount| PathBuf::from(&mount.host_path))
    });
    let mut left = host_path.and_then(|path| end_of(&path).ok()).unwrap_or_default();
    // One that could not even start has no log.
    let falls_back = note(MESSAGE_POLICY_ANNOTATION) == Some("FallbackToLogsOnError")
        && status.exit_code != 0
        && status.reason != "ContainerCannotRun";
    if left.is_empty() && falls_back {
        left = log_tail(Path::new(&status.log_path)).unwrap_or_default();
    }
    match (status.message.as_str(), left.as_str()) {
        ("", left) => left.to_owned(),
        (told, "") => told.to_owned(),
        (told, left) => format!("{told}: {left}"),
    }
}

/// The end of a file that a container could write: only if it is a plain file.
fn end_of(path: &Path) -> io::Result<String> {
    if !std::fs::symlink_metadata(path)?.is_file() {
        return Ok(String::new());
    }

    Ok(String::from_utf8_lossy(&last_bytes(path, MESSAGE_BYTES_MAX)?.0).into_owned())
}

/// The last bytes of a file, and whether there are others before them.
fn last_bytes(path: &Path, most: u64) -> io::Result<(Vec<u8>, bool)> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;

    Ok((bytes, start > 0))
}

/// The end of what the container wrote, without the runtime's time and stream columns.
fn log_tail(path: &Path) -> io::Result<String> {
    let (bytes, cut) = last_bytes(path, LOG_READ_BYTES)?;

    Ok(last_lines(&String::from_utf8_lossy(&bytes), cut))
}

fn last_lines(text: &str, cut: bool) -> String {
    let lines: Vec<_> = text.lines().skip(usize::from(cut)).filter_map(written).collect();
    let kept = lines[lines.len().saturating_sub(LOG_LINES_MAX)..].concat();
    let start = kept.ceil_char_boundary(kept.len().saturating_sub(LOG_BYTES_MAX));

    kept[start..].to_owned()
}

/// What the container wrote, of a line `TIME STREAM TAG TEXT` (CRI's log format): tag P is of a part of
/// a line, which has no end of its own.
fn written(line: &str) -> Option<String> {
    let mut columns = line.splitn(4, ' ').skip(2);
    let (tag, text) = (columns.next()?, columns.next()?);
    let end = if tag == "P" { "" } else { "\n" };

    Some(format!("{text}{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_ends_with_whole_lines_without_columns() {
        let log = "t1 stdout F first\nt2 stderr P second line\nt3 stdout F \n";
        assert_eq!(last_lines(log, false), "first\nsecond line\n");
        assert_eq!(last_lines(log, true), "second line\n");
        let many: String = "t stdout F line\n".repeat(300);
        assert_eq!(last_lines(&many, false), "line\n".repeat(LOG_LINES_MAX));
        let long = format!("t stdout F {}ß\n", "x".repeat(3000));
        let tail = last_lines(&long, false);
        assert!(tail.len() == LOG_BYTES_MAX && tail.ends_with("xß\n"), "{tail}");
    }

    #[test]
    fn a_message_is_read_from_where_it_was_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("message");
        std::fs::write(&file, "why").unwrap();
        let mount = |host_path: &Path| v1::Mount {
            container_path: "/dev/termination-log".into(),
            host_path: host_path.to_string_lossy().into_owned(),
            ..v1::Mount::default()
        };
        let status = |host_path| v1::ContainerStatus {
            annotations: [(MESSAGE_PATH_ANNOTATION.into(), "/dev/termination-log".into())].into(),
            mounts: vec![mount(host_path)],
            message: "oops".into(),
            ..v1::ContainerStatus::default()
        };
        assert_eq!(termination_message(&status(&file)), "oops: why");
        std::fs::write(&file, format!("{}end", "x".repeat(5000))).unwrap();
        let plain = v1::ContainerStatus { message: String::new(), ..status(&file) };
        let told = termination_message(&plain);
        assert!(told.len() == 4096 && told.ends_with("xend"), "{}", told.len());
        assert_eq!(termination_message(&status(dir.path())), "oops");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
        assert_eq!(termination_message(&status(&link)), "oops");
    }
}
