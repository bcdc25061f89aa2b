//! How full the volumes of pods are. What is on a server that is away stays unknown: nobody waits for it
//! for long, and not at all while an earlier look still waits.

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

/// How long all volumes on this node are counted; the rest is left out.
const COUNT_TIME: Duration = Duration::from_secs(10);
/// How long a server is waited for.
const SERVER_TIME: Duration = Duration::from_secs(2);

/// A volume that is to be looked at.
#[derive(Clone, Debug)]
struct Job {
    /// Which of the pods.
    pod: usize,
    volume: Measured,
    dir: PathBuf,
    /// That has it.
    server: Option<String>,
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
        for (pod, volume) in measure_all(jobs).await {
            look.pods[pod].volumes.push(volume);
        }
    }

    /// The volumes with claims of pods that run. Other pods are not looked at.
    pub async fn claimed_volumes(&self, desired: &Desired) -> Vec<VolumeUsage> {
        let pods = self.pods.all().into_iter();
        let pods = pods.filter(|pod| pod.running > 0 && !pod.claimed.is_empty());
        let jobs = self.jobs(desired, pods.map(Some).collect(), |volume| volume.claim.is_some());

        measure_all(jobs.await).await.into_iter().map(|(_, volume)| volume).collect()
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
                    jobs.push(Job { pod, volume, dir, server: None });
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

/// Whether the volume can be looked at; notes the server that has it.
fn is_there(job: &mut Job, points: &[Point]) -> bool {
    // Of those at one place the last is on top.
    let point = points.iter().rfind(|point| point.path == job.dir);
    let server = point.and_then(|point| point.server.clone());
    match job.volume.by {
        By::Contents => server.is_none(),
        By::FileSystem => {
            job.server = server;
            point.is_some()
        }
    }
}

/// What is on this node first, then every server beside the others.
async fn measure_all(jobs: Vec<Job>) -> Vec<Found> {
    let mut servers: BTreeMap<Option<String>, Vec<Job>> = BTreeMap::new();
    for job in jobs {
        servers.entry(job.server.clone()).or_default().push(job);
    }
    let here = servers.remove(&None).unwrap_or_default();
    let mut found = within(COUNT_TIME, here, look).await;
    let away = servers.into_values().map(|jobs| within(SERVER_TIME, jobs, look));
    found.extend(join_all(away).await.into_iter().flatten());

    found
}

/// Looks at one after the other as long as there is time, and at nothing of a server that hangs. A look that
/// is under way when the time is over goes on.
async fn within(
    time: Duration,
    jobs: Vec<Job>,
    look: impl Fn(&Job) -> Option<(Disk, Taken)> + Clone + Send + 'static,
) -> Vec<Found> {
    let mut found = Vec::new();
    let all = async {
        for job in jobs {
            if hangs(&job) {
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

fn hangs(job: &Job) -> bool {
    let server = job.server.as_ref();

    server.is_some_and(|server| blocking::SERVER_MEASURES.hangs(server, SERVER_TIME))
}

async fn in_lane(
    job: Job,
    look: impl Fn(&Job) -> Option<(Disk, Taken)> + Send + 'static,
) -> Option<Found> {
    let (by, server) = (job.volume.by, job.server.clone());
    let work = move || {
        let (disk, taken) = look(&job)?;
        let Measured { name, claim, is_ephemeral, .. } = job.volume;
        Some((job.pod, VolumeUsage { name, claim, disk, taken, is_ephemeral }))
    };
    match (server, by) {
        (Some(server), _) => blocking::SERVER_MEASURES.run(&server, work).await,
        (None, By::Contents) => blocking::run_in(&blocking::MEASURES, work).await,
        (None, By::FileSystem) => blocking::run_in(&blocking::LOCAL_VOLUMES, work).await,
    }
}

fn look(job: &Job) -> Option<(Disk, Taken)> {
    let (disk, whole) = read::file_system(&job.dir)?;
    if job.volume.by == By::FileSystem {
        return Some((disk, whole));
    }

    Some((disk, read::counted(&job.dir)))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::sync::{Arc, Mutex};

    use podcore::volumes::Place;

    use super::*;

    fn job(dir: &str, by: By, server: Option<&str>) -> Job {
        let place = Place::Own { plugin: "kubernetes.io/nfs", name: "v".to_owned() };
        let volume = Measured { name: dir.to_owned(), claim: None, place, by, is_ephemeral: false };

        Job { pod: 0, volume, dir: dir.into(), server: server.map(str::to_owned) }
    }

    fn check(dir: &str, by: By, expected: (bool, Option<&str>)) {
        let point = |path: &str, server: Option<&str>| Point {
            path: path.into(),
            server: server.map(str::to_owned),
        };
        let points = [
            point("/p/nfs", Some("s")),
            point("/p/disk", None),
            point("/p/dir/in", Some("s")),
            point("/p/over", Some("s")),
        ];
        let mut job = job(dir, by, None);
        let is_there = is_there(&mut job, &points);
        assert_eq!((is_there, job.server.as_deref()), expected, "{dir}");
    }

    #[test]
    fn what_is_not_mounted_or_on_a_server_unasked_is_not_looked_at() {
        check("/p/nfs", By::FileSystem, (true, Some("s")));
        check("/p/disk", By::FileSystem, (true, None));
        check("/p/later", By::FileSystem, (false, None));
        check("/p/other", By::Contents, (true, None));
        // What is in it is not entered.
        check("/p/dir", By::Contents, (true, None));
        check("/p/over", By::Contents, (false, None));
    }

    #[test]
    fn a_server_that_is_away_costs_only_its_own_volumes() {
        let on = |server: &str| job(server, By::FileSystem, Some(server));
        let runtime = crate::runtime().unwrap();
        let (release, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let look = move |job: &Job| {
            if job.server.as_deref() == Some("away") {
                assert!(held.lock().unwrap().recv().is_err());
            }
            Some((Disk::default(), Taken::default()))
        };
        let short = Duration::from_millis(1);
        runtime.block_on(async {
            assert!(within(short, vec![on("away")], look.clone()).await.is_empty());
            // The thread still waits, and the next look does not wait for it for long.
            assert!(within(short, vec![on("away")], look.clone()).await.is_empty());
            assert_eq!(within(COUNT_TIME, vec![on("there")], look.clone()).await.len(), 1);
            let here = job("/p/disk", By::FileSystem, None);
            assert_eq!(within(COUNT_TIME, vec![here], look.clone()).await.len(), 1);
            assert_eq!(blocking::SERVERS.run("away", || 7).await, 7);
            drop(release);
            assert_eq!(within(COUNT_TIME, vec![on("away")], look).await.len(), 1);
        });
    }
}
