//! What this process counts, as Prometheus reads it. Every label has the values named here and no other:
//! neither nodes nor peers can make more of them.

pub mod requests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use proto::ids::Kind;
use proto::wire::RefuseCode;

/// What a value is counted as that its label does not have.
const OTHER: &str = "Other";

/// Counters of one name: one for each value of the label.
#[derive(Debug)]
struct Family<const N: usize> {
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: [&'static str; N],
    counts: [AtomicU64; N],
}

impl<const N: usize> Family<N> {
    const fn new(
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: [&'static str; N],
    ) -> Self {
        Self { name, help, label, values, counts: [const { AtomicU64::new(0) }; N] }
    }

    fn add(&self, value: &str, count: u64) {
        let place = |wanted: &str| self.values.iter().position(|known| *known == wanted);
        let counter = place(value).or_else(|| place(OTHER)).and_then(|at| self.counts.get(at));
        if let Some(counter) = counter {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn write(&self, out: &mut String) {
        head(out, self.name, "counter", self.help);
        for (value, count) in self.values.iter().zip(&self.counts) {
            let count = count.load(Ordering::Relaxed);
            line(out, self.name, &format!("{{{}=\"{value}\"}}", self.label), count);
        }
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _infallible = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _infallible = writeln!(out, "{name}{labels} {value}");
}

/// What happened since the start; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    admissions: Family<8>,
    joins: Family<10>,
    frames: Family<2>,
    frame_bytes: Family<2>,
    handshakes: Family<3>,
    kubelet_requests: Family<6>,
    forwarded_requests: Family<5>,
    api_requests: Family<6>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            admissions: Family::new(
                "holdfast_cloudcore_admissions_total",
                "Sessions that nodes asked for, by what came of it.",
                "result",
                [
                    "Admitted",
                    "BadProtocol",
                    "UnknownNode",
                    "StaleTicket",
                    "Revoked",
                    "Superseded",
                    "NotReady",
                    OTHER,
                ],
            ),
            joins: Family::new(
                "holdfast_cloudcore_joins_total",
                "Machines that asked to join, by what came of it.",
                "result",
                [
                    "Joined",
                    "BadRequest",
                    "TokenMalformed",
                    "TokenUnknown",
                    "TokenExpired",
                    "TokenForOtherNode",
                    "TokenUsed",
                    "NameTaken",
                    "NotReady",
                    OTHER,
                ],
            ),
            frames: Family::new(
                "holdfast_cloudcore_frames_total",
                "Frames of all links, by direction.",
                "direction",
                ["up", "down"],
            ),
            frame_bytes: Family::new(
                "holdfast_cloudcore_frame_bytes_total",
                "Bytes of the frames of all links, by direction.",
                "direction",
                ["up", "down"],
            ),
            handshakes: Family::new(
                "holdfast_cloudcore_handshakes_total",
                "TLS handshakes at the port for edges, by what came of them.",
                "result",
                ["Done", "Failed", "TooSlow"],
            ),
            kubelet_requests: Family::new(
                "holdfast_cloudcore_kubelet_requests_total",
                "Requests at the kubelet ports of nodes, by the class of the answer's status.",
                "code",
                ["1xx", "2xx", "3xx", "4xx", "5xx", OTHER],
            ),
            forwarded_requests: Family::new(
                "holdfast_cloudcore_forwarded_requests_total",
                "Requests at the kubelet ports passed on to the replica with the node's link, by what came of it.",
                "result",
                ["Answered", "Unreachable", "Silent", "Broken", OTHER],
            ),
            api_requests: Family::new(
                "holdfast_cloudcore_api_requests_total",
                "Requests to the API server, by the answer: 429 is throttling, None no answer at all.",
                "code",
                ["2xx", "4xx", "429", "5xx", "None", OTHER],
            ),
        }
    }
}

/// What is so at the moment of asking.
#[derive(Debug)]
pub(crate) struct Now {
    pub(crate) at: Instant,
    pub(crate) is_ready: bool,
    /// Whether this replica does what is done once for all.
    pub(crate) is_leader: bool,
    pub(crate) sessions: usize,
    /// When the first certificate of a node with a session here ends, in seconds since 1970.
    pub(crate) expiry_s: Option<u64>,
    /// When the watch of each kind last said something.
    pub(crate) heard: BTreeMap<Kind, Instant>,
    pub(crate) process: Process,
}

/// What the process takes.
#[derive(Debug, Default)]
pub(crate) struct Process {
    pub(crate) resident_bytes: u64,
    pub(crate) open_files: u64,
    pub(crate) open_files_max: u64,
}

impl Metrics {
    /// A node was admitted, or refused by `code`.
    pub(crate) fn admission(&self, refused: Option<RefuseCode>) {
        self.0.admissions.add(refused.map_or("Admitted", word_of), 1);
    }

    /// A machine joined, or was refused for `reason`.
    pub(crate) fn join(&self, refused: Option<&str>) {
        self.0.joins.add(refused.unwrap_or("Joined"), 1);
    }

    /// A frame came from an edge.
    pub(crate) fn frame_up(&self, bytes: usize) {
        self.frame("up", bytes);
    }

    /// A frame goes to an edge.
    pub(crate) fn frame_down(&self, bytes: usize) {
        self.frame("down", bytes);
    }

    fn frame(&self, direction: &str, bytes: usize) {
        self.0.frames.add(direction, 1);
        self.0.frame_bytes.add(direction, u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// A handshake at the port for edges ended: `Done`, `Failed` or `TooSlow`.
    pub(crate) fn handshake(&self, result: &'static str) {
        self.0.handshakes.add(result, 1);
    }

    /// A request at a node's kubelet port was answered.
    pub(crate) fn kubelet_request(&self, status: http::StatusCode) {
        self.0.kubelet_requests.add(class_of(status), 1);
    }

    /// A request was passed on to another replica: `Answered`, `Unreachable`, `Silent` or `Broken`.
    pub(crate) fn forwarded_request(&self, result: &'static str) {
        self.0.forwarded_requests.add(result, 1);
    }

    /// The API server answered, or did not.
    fn api_request(&self, status: Option<http::StatusCode>) {
        let code = match status {
            None => "None",
            Some(http::StatusCode::TOO_MANY_REQUESTS) => "429",
            Some(status) => class_of(status),
        };
        self.0.api_requests.add(code, 1);
    }

    /// Everything, in the text format of Prometheus.
    pub(crate) fn text(&self, now: &Now) -> String {
        let mut out = String::new();
        let mut gauge = |name: &str, help: &str, labels: &str, value: u64| {
            head(&mut out, name, "gauge", help);
            line(&mut out, name, labels, value);
        };
        let version = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
        gauge("holdfast_cloudcore_build_info", "The version that runs.", &version, 1);
        let ready = "Whether this replica serves edges.";
        gauge("holdfast_cloudcore_ready", ready, "", u64::from(now.is_ready));
        let leader = "Whether this replica does what is done once for the cluster.";
        gauge("holdfast_cloudcore_leader", leader, "", u64::from(now.is_leader));
        let sessions = u64::try_from(now.sessions).unwrap_or(u64::MAX);
        gauge("holdfast_cloudcore_sessions", "Nodes connected to this replica.", "", sessions);
        let Process { resident_bytes, open_files, open_files_max } = now.process;
        gauge("process_resident_memory_bytes", "Resident memory.", "", resident_bytes);
        gauge("process_open_fds", "Open file descriptors.", "", open_files);
        gauge("process_max_fds", "File descriptors that may be open.", "", open_files_max);
        write_expiry(&mut out, now);
        write_silence(&mut out, now);
        self.0.admissions.write(&mut out);
        self.0.joins.write(&mut out);
        self.0.handshakes.write(&mut out);
        self.0.frames.write(&mut out);
        self.0.frame_bytes.write(&mut out);
        self.0.kubelet_requests.write(&mut out);
        self.0.forwarded_requests.write(&mut out);
        self.0.api_requests.write(&mut out);

        out
    }
}

/// Nothing while no node is connected: there is no certificate then that could end.
fn write_expiry(out: &mut String, now: &Now) {
    let name = "holdfast_cloudcore_node_certificates_earliest_expiry_timestamp_seconds";
    let help = "When the first of the certificates of the nodes connected to this replica ends.";
    head(out, name, "gauge", help);
    if let Some(expiry_s) = now.expiry_s {
        line(out, name, "", expiry_s);
    }
}

fn write_silence(out: &mut String, now: &Now) {
    let name = "holdfast_cloudcore_watch_silence_seconds";
    let help = "Since the watch of a kind said something, if only that nothing happened.";
    head(out, name, "gauge", help);
    for (kind, heard) in &now.heard {
        let silence = now.at.saturating_duration_since(*heard).as_secs();
        line(out, name, &format!("{{kind=\"{kind:?}\"}}"), silence);
    }
}

fn word_of(code: RefuseCode) -> &'static str {
    match code {
        RefuseCode::BadProtocol => "BadProtocol",
        RefuseCode::UnknownNode => "UnknownNode",
        RefuseCode::StaleTicket => "StaleTicket",
        RefuseCode::Revoked => "Revoked",
        RefuseCode::Superseded => "Superseded",
        RefuseCode::NotReady => "NotReady",
    }
}

fn class_of(status: http::StatusCode) -> &'static str {
    match status.as_u16() {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        500..=599 => "5xx",
        _ => OTHER,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use super::*;

    pub(crate) fn now() -> Now {
        let process = Process { resident_bytes: 4096, open_files: 7, open_files_max: 1024 };

        let at = crate::clock::now();
        let heard = [(Kind::Secret, at.checked_sub(Duration::from_secs(9)).unwrap())].into();

        let (is_ready, is_leader, sessions, expiry_s) = (true, true, 3, Some(1_800_000_000));

        Now { at, is_ready, is_leader, sessions, expiry_s, heard, process }
    }

    #[test]
    fn everything_is_told_as_prometheus_reads_it() {
        let (metrics, now) = (Metrics::default(), now());
        metrics.admission(None);
        metrics.admission(Some(RefuseCode::StaleTicket));
        metrics.join(Some("TokenUsed"));
        metrics.frame_up(10);
        metrics.frame_up(20);
        metrics.frame_down(5);
        metrics.handshake("TooSlow");
        metrics.kubelet_request(StatusCode::NOT_FOUND);
        metrics.forwarded_request("Answered");
        metrics.api_request(Some(StatusCode::CREATED));
        metrics.api_request(Some(StatusCode::TOO_MANY_REQUESTS));
        metrics.api_request(None);

        assert_eq!(metrics.text(&now), include_str!("metrics/golden.txt"));
        let nobody = Now { sessions: 0, expiry_s: None, ..now };
        assert!(!metrics.text(&nobody).contains("\nholdfast_cloudcore_node_certificates"));
    }

    #[test]
    fn nothing_that_is_said_makes_another_label() {
        let (metrics, now) = (Metrics::default(), now());
        let lines = |metrics: &Metrics| metrics.text(&now).lines().count();
        let before = lines(&metrics);
        for node in 0..100 {
            metrics.join(Some(&format!("because of node {node}")));
        }
        for code in RefuseCode::ALL {
            metrics.admission(Some(code));
        }
        let text = metrics.text(&now);
        assert_eq!(text.lines().count(), before, "{text}");
        assert!(text.contains("holdfast_cloudcore_joins_total{result=\"Other\"} 100\n"), "{text}");
        assert!(text.contains("admissions_total{result=\"Other\"} 0\n"), "{text}");
    }
}
