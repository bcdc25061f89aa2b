//! How full the volumes of pods are. What is on a server that is away, or on a disk that is dead, stays
//! unknown: nobody waits for it for long, and not at all while an earlier look still waits.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use podcore::materials::Materials;
use podcore::pod::PodView;
use podcore::usage::volumes::{By, Measured, measured};
use podcore::usage::{Disk, Look, Taken, VolumeUsage};
use proto::ids::ObjectKey;

use super::{Usages, read};
use crate::blocking;
use crate::desired::Desired;
use crate::kubelet_api::PodFacts;
use crate::volumes::mounts::{self, Point};

/// How long all volumes are counted whose contents are; the rest is left out.
const COUNT_TIME: Duration = Duration::from_secs(10);
/// How long a server or a disk is waited for.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// Who says how full a volume is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// The node's own disk.
    Own,
    /// What a volume lies on, by the number of the device.
    Disk(String),
    /// A server, by its name.
    Server(String),
}

/// A volume that is to be looked at.
#[derive(Clone, Debug)]
struct Job {
    /// Which of the pods.
    pod: usize,
    volume: Measured,
    dir: PathBuf,
    source: Source,
}

/// Which pod's, and what.
type Found = (usize, VolumeUsage);

impl Usages {
    /// Adds the volumes of its pods to a look.
    pub async fn add_volumes(&self, desired: &Desired, look: &mut Look) {
        let all = self.pods.all().into_iter();
        let mut all: BTreeMap<_, _> = all.map(|pod| (pod.uid.to_string(), pod)).collect();
        let pods = look.pods.iter().map(|pod| all.remove(&pod.uid)).collect();
        let jobs = self.jobs(desired, pods, |_| true).await;
        for (pod, volume) in measure_all(jobs, look_at).await {
            look.pods[pod].volumes.push(volume);
        }
    }

    /// The volumes with claims of pods that run. Other pods are not looked at.
    pub async fn claimed_volumes(&self, desired: &Desired) -> Vec<VolumeUsage> {
        let pods = self.pods.all().into_iter();
        let pods = pods.filter(|pod| pod.running > 0 && !pod.claimed.is_empty());
        let jobs = self.jobs(desired, pods.map(Some).collect(), |volume| volume.claim.is_some());

        measure_all(jobs.await, look_at).await.into_iter().map(|(_, volume)| volume).collect()
    }

    async fn jobs(
        &self,
        desired: &Desired,
        pods: Vec<Option<PodFacts>>,
        is_wanted: fn(&Measured) -> bool,
    ) -> Vec<Job> {
        let mut jobs = Vec::new();
        for (pod, facts) in pods.into_iter().enumerate() {
            let Some(PodFacts { uid, claimed, .. }) = facts else { continue };
            let Some(object) = desired.get(&ObjectKey::pod(&uid)) else { continue };
            let Ok(view) = PodView::parse(&object.bytes) else { continue };
            // Also without its claim a volume is where it was set up.
            let materials = Materials { set_up: claimed.as_ref().clone(), ..Materials::default() };
            for volume in measured(&view, &materials) {
                if is_wanted(&volume)
                    && let Ok(dir) = self.place.layout.place(&uid, &volume.place)
                {
                    jobs.push(Job { pod, volume, dir, source: Source::Own });
                }
            }
        }
        if jobs.is_empty() {
            return jobs;
        }
        let pods = self.place.layout.pods();
        let points = blocking::run(move || mounts::points(&pods)).await.unwrap_or_default();
        jobs.retain_mut(|job| is_there(job, &points));

        jobs
    }
}

/// Whether the volume can be looked at; notes who is asked.
fn is_there(job: &mut Job, points: &[Point]) -> bool {
    // Of those at one place the last is on top.
    let point = points.iter().rfind(|point| point.path == job.dir);
    match (job.volume.by, point) {
        (By::Contents, point) => point.is_none_or(|point| point.server.is_none()),
        (By::FileSystem, Some(Point { device, server, .. })) => {
            let disk = || Source::Disk(device.clone());
            job.source = server.clone().map_or_else(disk, Source::Server);
            true
        }
        (By::FileSystem, None) => false,
    }
}

/// What each can say, beside the others.
async fn measure_all(
    jobs: Vec<Job>,
    look: impl Fn(&Job) -> Option<(Disk, Taken)> + Clone + Send + 'static,
) -> Vec<Found> {
    let mut sources: BTreeMap<Source, Vec<Job>> = BTreeMap::new();
    for job in jobs {
        sources.entry(job.source.clone()).or_default().push(job);
    }
    let found = sources.into_iter().map(|(source, jobs)| {
        let time = if source == Source::Own { COUNT_TIME } else { ANSWER_TIME };
        within(time, jobs, look.clone())
    });

    join_all(found).await.into_iter().flatten().collect()
}

/// Looks at one after the other as long as there is time, and at nothing of what hangs. A look that is under
/// way when the time is over goes on.
async fn within(
    time: Duration,
    jobs: Vec<Job>,
    look: impl Fn(&Job) -> Option<(Disk, Taken)> + Clone + Send + 'static,
) -> Vec<Found> {
    let mut found = Vec::new();
    let all = async {
        for job in jobs {
            if hangs(&job.source) {
                continue;
            }
            let look = look.clone();
            found.extend(in_lane(job, look).await);
        }
    };
    if tokio::time::timeout(time, all).await.is_err() {
        tracing::debug!("not all volumes said in time how full they are");
    }

    found
}

fn hangs(source: &Source) -> bool {
    match source {
        Source::Own => false,
        Source::Disk(device) => blocking::DISK_MEASURES.hangs(device, ANSWER_TIME),
        Source::Server(server) => blocking::SERVER_MEASURES.hangs(server, ANSWER_TIME),
    }
}

async fn in_lane(
    job: Job,
    look: impl Fn(&Job) -> Option<(Disk, Taken)> + Send + 'static,
) -> Option<Found> {
    let source = job.source.clone();
    let work = move || {
        let (disk, taken) = look(&job)?;
        let Measured { name, claim, is_ephemeral, .. } = job.volume;
        Some((job.pod, VolumeUsage { name, claim, disk, taken, is_ephemeral }))
    };
    match source {
        Source::Own => blocking::run_in(&blocking::MEASURES, work).await,
        Source::Disk(device) => blocking::DISK_MEASURES.run(&device, work).await,
        Source::Server(server) => blocking::SERVER_MEASURES.run(&server, work).await,
    }
}

fn look_at(job: &Job) -> Option<(Disk, Taken)> {
    let (disk, whole) = read::file_system(&job.dir)?;
    if job.volume.by == By::FileSystem {
        return Some((disk, whole));
    }

    Some((disk, read::counted(&job.dir)))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};

    use podcore::volumes::Place;

    use super::*;

    fn job(dir: &str, by: By, source: Source) -> Job {
        let place = Place::Own { plugin: "kubernetes.io/nfs", name: "v".to_owned() };
        let volume = Measured { name: dir.to_owned(), claim: None, place, by, is_ephemeral: false };

        Job { pod: 0, volume, dir: dir.into(), source }
    }

    fn disk(device: &str) -> Source {
        Source::Disk(device.to_owned())
    }

    fn server(name: &str) -> Source {
        Source::Server(name.to_owned())
    }

    fn check(dir: &str, by: By, expected: Option<&Source>) {
        let point = |path: &str, device: &str, server: Option<&str>| Point {
            path: path.into(),
            device: device.to_owned(),
            server: server.map(str::to_owned),
        };
        let points = [
            point("/p/nfs", "0:50", Some("s")),
            point("/p/disk", "8:1", None),
            point("/p/ram", "0:60", None),
            point("/p/dir/in", "0:50", Some("s")),
            point("/p/over", "0:50", Some("s")),
        ];
        let mut job = job(dir, by, Source::Own);
        let is_there = is_there(&mut job, &points);
        assert_eq!(is_there.then_some(&job.source), expected, "{dir}");
    }

    #[test]
    fn what_is_not_mounted_or_on_a_server_unasked_is_not_looked_at() {
        check("/p/nfs", By::FileSystem, Some(&server("s")));
        check("/p/disk", By::FileSystem, Some(&disk("8:1")));
        check("/p/later", By::FileSystem, None);
        check("/p/other", By::Contents, Some(&Source::Own));
        check("/p/ram", By::Contents, Some(&Source::Own));
        // What is in it is not entered.
        check("/p/dir", By::Contents, Some(&Source::Own));
        check("/p/over", By::Contents, None);
    }

    /// One that hangs, and one beside it.
    fn check_away(away: &Source, there: Source) {
        let on = |source: &Source| vec![job("/p/v", By::FileSystem, source.clone())];
        let runtime = crate::runtime().unwrap();
        let (release, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let hanging = away.clone();
        let look = move |job: &Job| {
            if job.source == hanging {
                assert!(held.lock().unwrap().recv().is_err());
            }
            Some((Disk::default(), Taken::default()))
        };
        let short = Duration::from_millis(1);
        runtime.block_on(async {
            assert!(within(short, on(away), look.clone()).await.is_empty());
            // The thread still waits, and the next look does not wait for it for long.
            assert!(within(short, on(away), look.clone()).await.is_empty());
            let others = vec![
                job("/p/other", By::FileSystem, there),
                job("/p/dir", By::Contents, Source::Own),
            ];
            assert_eq!(measure_all(others, look.clone()).await.len(), 2);
            // Nor does what is set up.
            assert_eq!(blocking::SERVERS.run("away", || 7).await, 7);
            assert_eq!(blocking::run_in(&blocking::LOCAL_VOLUMES, || 7).await, 7);
            drop(release);
            while hangs(away) {
                tokio::task::yield_now().await;
            }
            assert_eq!(within(COUNT_TIME, on(away), look).await.len(), 1);
        });
    }

    #[test]
    fn what_is_away_costs_only_its_own_volumes() {
        check_away(&server("away"), server("there"));
        check_away(&disk("8:66"), disk("8:67"));
    }

    #[test]
    fn disks_are_asked_while_a_local_volume_is_set_up_and_others_are_counted() {
        type Meeting = (Sender<()>, Arc<Mutex<Receiver<()>>>);
        fn meet((here, there): &Meeting) -> bool {
            here.send(()).is_ok() && there.lock().unwrap().recv_timeout(COUNT_TIME).is_ok()
        }
        let ((one, from_one), (other, from_other)) = (channel(), channel());
        let from = |end: Receiver<()>| Arc::new(Mutex::new(end));
        let (counted, asked) = ((one, from(from_other)), (other, from(from_one)));
        // Each goes on once the other is looked at too.
        let look = move |job: &Job| {
            let met = meet(if job.source == Source::Own { &counted } else { &asked });
            met.then(<(Disk, Taken)>::default)
        };
        let jobs = vec![
            job("/p/dir", By::Contents, Source::Own),
            job("/p/disk", By::FileSystem, disk("8:68")),
        ];
        let runtime = crate::runtime().unwrap();
        let (release, held) = channel::<()>();
        runtime.block_on(async {
            let set_up = blocking::run_in(&blocking::LOCAL_VOLUMES, move || held.recv().is_err());
            let set_up = tokio::time::timeout(Duration::from_millis(1), set_up);
            set_up.await.unwrap_err();
            assert_eq!(measure_all(jobs, look).await.len(), 2);
            drop(release);
        });
    }
}
