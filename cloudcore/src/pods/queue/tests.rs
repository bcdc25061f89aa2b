//! The queue as tables of what happens and what it does about it.

use super::*;

/// What happens to the queue, of pod `a` unless named.
#[derive(Clone, Debug)]
enum Happens {
    /// A report with this text and number.
    Report(&'static str, Seq),
    /// A report with nothing left.
    Done(&'static str, Seq),
    /// The watch shows this status at this revision.
    Shows(&'static str, u64),
    /// The same of a pod with a deletion timestamp.
    ShowsTerminating(&'static str, u64),
    /// The write under way ended.
    Ends(Written),
    /// Milliseconds go by.
    Passes(u64),
}

use Happens::*;

const fn done(revision: u64) -> Happens {
    Ends(Written::Done { revision })
}

fn failed(retry_after: Option<Duration>) -> Happens {
    Ends(Written::Failed { reason: "x".to_owned(), retry_after })
}

fn refused() -> Happens {
    Ends(Written::Refused { reason: "x".to_owned() })
}

/// A queue with its API server, as text of what was written and answered.
struct Bench {
    queue: Queue,
    now: Instant,
    shows: Option<(String, u64, bool)>,
    under_way: Option<Write>,
    log: Vec<String>,
}

impl Bench {
    fn new() -> Self {
        Self {
            queue: Queue::new(1),
            now: crate::clock::now(),
            shows: None,
            under_way: None,
            log: Vec::new(),
        }
    }

    fn compare(&mut self) {
        let uid = Uid::new("a").unwrap();
        let Some((status, revision, is_terminating)) = self.shows.clone() else { return };
        let point = Point { epoch: 1, revision };
        let Some(report) = self.queue.to_compare(&uid, point) else { return };
        let says_report = report.as_ref() == status.as_bytes();
        let shown = Shown { point, says_report, is_terminating };
        let answers = self.queue.shown(&uid, shown, self.now);
        self.answers(answers);
    }

    fn answers(&mut self, answers: Vec<Answer>) {
        for (seq, outcome) in answers {
            let word = match outcome {
                Outcome::Done => "ok",
                Outcome::Retry { .. } => "retry",
                Outcome::Refused { .. } => "refused",
            };
            self.log.push(format!("{seq} {word}"));
        }
    }

    fn take(&mut self, happens: Happens) {
        let uid = Uid::new("a").unwrap();
        match happens {
            Report(text, seq) | Done(text, seq) => {
                let is_done = matches!(happens, Done(..));
                let refused =
                    self.queue.report(&uid, Bytes::from_static(text.as_bytes()), is_done, seq);
                self.answers(refused.into_iter().collect());
            }
            Shows(status, revision) => self.shows = Some((status.to_owned(), revision, false)),
            ShowsTerminating(status, revision) => {
                self.shows = Some((status.to_owned(), revision, true));
            }
            Ends(written) => {
                let write = self.under_way.take().expect("a write is under way");
                let answers = self.queue.written(&uid, &write, written, 1, self.now);
                self.answers(answers);
            }
            Passes(millis) => self.now += Duration::from_millis(millis),
        }
        self.compare();
        if let Some((_, write)) = self.queue.next(self.now) {
            let shown = match &write {
                Write::Status(bytes) => format!("write {}", String::from_utf8_lossy(bytes)),
                Write::Removal => "remove".to_owned(),
            };
            self.log.push(shown);
            assert_eq!(self.under_way, None, "two writes for one pod at once");
            self.under_way = Some(write);
        }
    }
}

#[test]
fn writes_of_one_pod_come_in_order_and_the_latest_wins() {
    let check = |given: &[Happens], expected: &[&str]| {
        let mut bench = Bench::new();
        for happens in given {
            bench.take(happens.clone());
        }
        assert_eq!(bench.log, expected, "{given:?}");
    };
    // A report waits until the pod is seen, then is written, then answered.
    check(&[Report("r1", 1)], &[]);
    check(&[Report("r1", 1), Shows("", 5), done(6)], &["write r1", "1 ok"]);
    // Two reports during a write are one later write; all are answered by it.
    check(
        &[Shows("", 5), Report("r1", 1), Report("r2", 2), Report("r3", 3), done(6), done(7)],
        &["write r1", "write r3", "1 ok", "2 ok", "3 ok"],
    );
    // What is there already costs no write.
    check(&[Shows("r1", 5), Report("r1", 1)], &["1 ok"]);
    check(
        &[Shows("", 5), Report("r1", 1), done(6), Shows("r1", 6), Report("r1", 2)],
        &["write r1", "1 ok", "2 ok"],
    );
    // Our own echo, and what is older, is nobody's change.
    check(
        &[Shows("", 5), Report("r1", 1), done(8), Shows("f", 7), Shows("r1", 8)],
        &["write r1", "1 ok"],
    );
    // Somebody's change is undone, at once the first time, later the next.
    check(
        &[
            Shows("", 5),
            Report("r1", 1),
            done(6),
            Shows("f", 7),
            done(8),
            Shows("g", 9),
            Passes(1000),
        ],
        &["write r1", "1 ok", "write r1", "write r1"],
    );
    check(
        &[Shows("", 5), Report("r1", 1), done(6), Shows("f", 7), done(8), Shows("g", 9)],
        &["write r1", "1 ok", "write r1"],
    );
    // A change by somebody while our write is under way is seen after it.
    check(
        &[Shows("", 5), Report("r1", 1), Shows("f", 6), done(7), Shows("f", 8)],
        &["write r1", "1 ok", "write r1"],
    );
}

#[test]
fn failures_are_counted_until_a_write_succeeds() {
    let (mut bench, uid) = (Bench::new(), Uid::new("a").unwrap());
    let mut check = |given: &[Happens], expected| {
        for happens in given {
            bench.take(happens.clone());
        }
        assert_eq!(bench.queue.failures(&uid), expected, "{given:?}");
    };
    check(&[], 0);
    check(&[Shows("", 5), Report("r1", 1), failed(None)], 1);
    check(&[Passes(30_000), failed(None)], 2);
    check(&[Passes(30_000), done(6)], 0);
}

#[test]
fn failures_wait_refusals_stay_and_removal_comes_last() {
    let check = |given: &[Happens], expected: &[&str]| {
        let mut bench = Bench::new();
        for happens in given {
            bench.take(happens.clone());
        }
        assert_eq!(bench.log, expected, "{given:?}");
    };
    let wait = Duration::from_secs(5);
    // A failure is answered at once, and repeated here after a while.
    check(&[Shows("", 5), Report("r1", 1), failed(None)], &["write r1", "1 retry"]);
    check(
        &[Shows("", 5), Report("r1", 1), failed(None), Passes(500), done(6)],
        &["write r1", "1 retry", "write r1"],
    );
    // The edge's own repetition does not hurry it.
    check(
        &[Shows("", 5), Report("r1", 1), failed(None), Report("r2", 2), Passes(500), done(6)],
        &["write r1", "1 retry", "write r2", "2 ok"],
    );
    // The API server's wish is granted.
    check(
        &[Shows("", 5), Report("r1", 1), failed(Some(wait)), Passes(4000), Passes(1000)],
        &["write r1", "1 retry", "write r1"],
    );
    check(
        &[Shows("", 5), Report("r1", 1), failed(Some(wait)), Passes(4000)],
        &["write r1", "1 retry"],
    );
    // A refused status is not written again; another one is.
    check(
        &[Shows("", 5), Report("r1", 1), refused(), Shows("f", 6), Report("r2", 2), done(7)],
        &["write r1", "1 refused", "write r2", "2 ok"],
    );
    // Gone is as good as done.
    check(&[Shows("", 5), Report("r1", 1), Ends(Written::Gone)], &["write r1", "1 ok"]);
    check(
        &[Shows("", 5), Report("r1", 1), Ends(Written::Gone), Shows("", 7)],
        &["write r1", "1 ok"],
    );
    // The mirror after one that is gone says what was reported, even if nothing new is.
    check(
        &[Shows("", 5), Report("r1", 1), Shows("", 7), Ends(Written::MirrorGone), done(8)],
        &["write r1", "1 ok", "write r1"],
    );
    // A terminating pod is removed after its last status, once.
    check(
        &[ShowsTerminating("", 5), Done("r1", 1), done(6), done(0), ShowsTerminating("r1", 8)],
        &["write r1", "remove", "1 ok"],
    );
    // One that an API server restored from a backup shows again may be deleted again.
    check(
        &[
            ShowsTerminating("", 5),
            Done("r1", 1),
            done(6),
            done(0),
            Shows("r1", 7),
            ShowsTerminating("r1", 8),
        ],
        &["write r1", "remove", "1 ok", "remove"],
    );
    // The deletion may be seen after the last status; a pod that only finished stays.
    check(&[Shows("", 5), Done("r1", 1), done(6), Shows("r1", 6)], &["write r1", "1 ok"]);
    check(
        &[Shows("", 5), Done("r1", 1), done(6), ShowsTerminating("r1", 7), Ends(Written::Gone)],
        &["write r1", "1 ok", "remove"],
    );
    // Not even a refused status holds a removal up.
    check(
        &[ShowsTerminating("", 5), Done("r1", 1), refused(), done(0)],
        &["write r1", "1 refused", "remove"],
    );
}

#[test]
fn writes_at_once_are_bounded_and_no_pod_waits_for_another() {
    let mut queue = Queue::new(1);
    let now = crate::clock::now();
    let uids: Vec<_> =
        (0..2 * WRITES_MAX).map(|i| Uid::new(format!("pod-{i:02}")).unwrap()).collect();
    for (seq, uid) in (1..).zip(&uids) {
        assert_eq!(queue.report(uid, Bytes::from_static(b"r"), false, seq), None);
        let point = Point { epoch: 1, revision: 5 };
        let shown = Shown { point, says_report: false, is_terminating: false };
        assert_eq!(queue.shown(uid, shown, now), []);
    }
    let mut under_way: Vec<_> = std::iter::from_fn(|| queue.next(now)).collect();
    assert_eq!(under_way.len(), WRITES_MAX);
    assert_eq!(queue.wake_at(), None, "nothing to do before a write has ended");
    // The first never ends; all others are written.
    let mut written = 0;
    while under_way.len() > 1 {
        let (uid, write) = under_way.pop().unwrap();
        queue.written(&uid, &write, Written::Done { revision: 6 }, 1, now);
        written += 1;
        under_way.extend(queue.next(now));
    }
    assert_eq!(written, uids.len() - 1);
}

#[test]
fn pods_that_are_gone_are_forgotten_and_reports_about_more_than_fit_refused() {
    let mut queue = Queue::new(1);
    let (a, b) = (Uid::new("a").unwrap(), Uid::new("b").unwrap());
    queue.report(&a, Bytes::from_static(b"r"), false, 1);
    queue.report(&b, Bytes::from_static(b"r"), false, 2);
    assert_eq!(queue.retain(|uid| *uid == a), [(2, Outcome::Done)]);
    for i in 1..PODS_MAX {
        let uid = Uid::new(format!("p{i}")).unwrap();
        assert_eq!(queue.report(&uid, Bytes::new(), false, 3), None);
    }
    assert!(matches!(queue.report(&b, Bytes::new(), false, 4), Some((4, Outcome::Refused { .. }))));
}

#[test]
fn a_report_is_kept_for_a_pod_that_is_yet_to_come() {
    let mut queue = Queue::new(1);
    let (uid, now) = (Uid::new("a").unwrap(), crate::clock::now());
    queue.report(&uid, Bytes::from_static(b"{}"), false, 4);
    assert_eq!(queue.keep(&uid), [(4, Outcome::Done)]);
    assert!(queue.next(now).is_none());

    let point = Point { epoch: 1, revision: 7 };
    queue.shown(&uid, Shown { point, says_report: false, is_terminating: false }, now);
    assert_eq!(queue.next(now), Some((uid, Write::Status(Bytes::from_static(b"{}")))));
}
