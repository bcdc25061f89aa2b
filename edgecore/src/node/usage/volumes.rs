//! How full the volumes of pods are. What is on a server that is away stays unknown: nobody waits for it
//! for long.

use std::path::PathBuf;
use std::time::Duration;

use podcore::pod::PodView;
use podcore::usage::volumes::{By, Measured, measured};
use podcore::usage::{Disk, Look, Taken, VolumeUsage};
use proto::ids::{Kind, ObjectKey, Uid};

use super::{Usages, read};
use crate::blocking::{self, Lane};
use crate::desired::Desired;
use crate::pods::materials::gather_claims;
use crate::volumes::mounts::{self, Point};

/// How long all volumes on this node are counted; the rest is left out.
const COUNT_TIME: Duration = Duration::from_secs(10);
/// How long servers are waited for.
const SERVER_TIME: Duration = Duration::from_secs(2);

/// A volume that is to be looked at.
#[derive(Clone, Debug)]
struct Job {
    /// Which of the pods.
    pod: usize,
    volume: Measured,
    dir: PathBuf,
    /// A server has it.
    leads_away: bool,
}

/// Which pod's, and what.
type Found = (usize, VolumeUsage);

impl Usages {
    /// Adds the volumes of its pods to a look.
    pub async fn add_volumes(&self, desired: &Desired, look: &mut Look) {
        let pods = look.pods.iter().map(|pod| Uid::new(&pod.uid).ok());
        let jobs = self.jobs(desired, pods.collect(), |_| true).await;
        for (pod, volume) in measure_all(jobs).await {
            look.pods[pod].volumes.push(volume);
        }
    }

    /// The volumes with claims of pods that run. Pods where there are no claims are not looked at.
    pub async fn claimed_volumes(&self, desired: &Desired) -> Vec<VolumeUsage> {
        let claimed = desired.namespaces_with(Kind::PersistentVolumeClaim);
        if claimed.is_empty() {
            return Vec::new();
        }
        let pods = self.pods.all().into_iter();
        let pods = pods.filter(|pod| pod.running > 0 && claimed.contains(&pod.namespace));
        let pods = pods.map(|pod| Some(pod.uid)).collect();
        let jobs = self.jobs(desired, pods, |volume| volume.claim.is_some()).await;

        measure_all(jobs).await.into_iter().map(|(_, volume)| volume).collect()
    }

    async fn jobs(
        &self,
        desired: &Desired,
        pods: Vec<Option<Uid>>,
        is_wanted: fn(&Measured) -> bool,
    ) -> Vec<Job> {
        let mut jobs = Vec::new();
        for (pod, uid) in pods.into_iter().enumerate() {
            let Some(uid) = uid else { continue };
            let Some(object) = desired.get(&ObjectKey::pod(&uid)) else { continue };
            let Ok(view) = PodView::parse(&object.bytes) else { continue };
            for volume in measured(&view, &gather_claims(desired, &view)) {
                if is_wanted(&volume)
                    && let Ok(dir) = self.place.layout.place(&uid, &volume.place)
                {
                    jobs.push(Job { pod, volume, dir, leads_away: false });
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

/// Whether the volume can be looked at; notes whether a server has it. Directories with mounts of servers
/// below them are not walked into.
fn is_there(job: &mut Job, points: &[Point]) -> bool {
    let leads_away =
        points.iter().any(|point| point.leads_away && point.path.starts_with(&job.dir));
    match job.volume.by {
        By::Contents => !leads_away,
        By::FileSystem => {
            job.leads_away = leads_away;
            points.iter().any(|point| point.path == job.dir)
        }
    }
}

/// What is on this node first.
async fn measure_all(jobs: Vec<Job>) -> Vec<Found> {
    let (away, here): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.leads_away);
    let mut found = Vec::new();
    within(COUNT_TIME, here, look, &mut found).await;
    within(SERVER_TIME, away, look, &mut found).await;

    found
}

/// Looks at one after the other as long as there is time. A look that is under way then goes on, and its
/// lane is full until it ends.
async fn within(
    time: Duration,
    jobs: Vec<Job>,
    look: impl Fn(&Job) -> Option<(Disk, Taken)> + Clone + Send + 'static,
    found: &mut Vec<Found>,
) {
    let all = async {
        for job in jobs {
            let look = look.clone();
            let usage = blocking::run_in(lane(&job), move || {
                let (disk, taken) = look(&job)?;
                let Measured { name, claim, is_ephemeral, .. } = job.volume;
                Some((job.pod, VolumeUsage { name, claim, disk, taken, is_ephemeral }))
            });
            found.extend(usage.await);
        }
    };
    if tokio::time::timeout(time, all).await.is_err() {
        tracing::debug!("not all volumes said in time how full they are");
    }
}

fn lane(job: &Job) -> &'static Lane {
    match job.volume.by {
        _ if job.leads_away => &blocking::SERVER_MEASURES,
        By::Contents => &blocking::MEASURES,
        By::FileSystem => &blocking::LOCAL_VOLUMES,
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

    fn job(dir: &str, by: By) -> Job {
        let place = Place::Own { plugin: "kubernetes.io/nfs", name: "v".to_owned() };
        let volume = Measured { name: dir.to_owned(), claim: None, place, by, is_ephemeral: false };

        Job { pod: 0, volume, dir: dir.into(), leads_away: false }
    }

    fn check(dir: &str, by: By, expected: (bool, bool)) {
        let point = |path: &str, leads_away| Point { path: path.into(), leads_away };
        let points = [point("/p/nfs", true), point("/p/disk", false), point("/p/dir/in", true)];
        let mut job = job(dir, by);
        let is_there = is_there(&mut job, &points);
        assert_eq!((is_there, job.leads_away), expected, "{dir}");
    }

    #[test]
    fn what_is_not_mounted_or_leads_away_inside_is_not_looked_at() {
        check("/p/nfs", By::FileSystem, (true, true));
        check("/p/disk", By::FileSystem, (true, false));
        check("/p/later", By::FileSystem, (false, false));
        check("/p/other", By::Contents, (true, false));
        check("/p/dir", By::Contents, (false, false));
    }

    #[test]
    fn a_server_that_is_away_holds_up_neither_the_answer_nor_mounts() {
        let away = |dir: &str| Job { leads_away: true, ..job(dir, By::FileSystem) };
        let runtime = crate::runtime().unwrap();
        let (release, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        runtime.block_on(async {
            let mut found = Vec::new();
            let hang = move |_: &Job| {
                assert!(held.lock().unwrap().recv().is_err());
                None
            };
            within(Duration::from_millis(1), vec![away("/p/nfs")], hang, &mut found).await;
            // The thread still waits, and the next look does not wait for it for long.
            let known = |_: &Job| Some((Disk::default(), Taken::default()));
            within(Duration::from_millis(1), vec![away("/p/nfs")], known, &mut found).await;
            assert!(found.is_empty());
            let mount = blocking::run_in(&blocking::SERVERS, || 7);
            assert_eq!(mount.await, 7);
            within(COUNT_TIME, vec![job("/p/disk", By::FileSystem)], known, &mut found).await;
            assert_eq!(found.len(), 1);
            drop(release);
            within(COUNT_TIME, vec![away("/p/nfs")], known, &mut found).await;
            assert_eq!(found.len(), 2);
        });
    }
}
