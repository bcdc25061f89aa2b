//! Removes images when their file system fills up, the longest unneeded first (kubelet:
//! `imageGCHighThresholdPercent` and its kin). Never one that a pod of this node may start from: without
//! its registry it could not be had again (invariant 5).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::CriError;
use cri_api::v1;
use podcore::pod::PodView;
use proto::ids::ObjectKey;

use super::context::Context;
use crate::blocking;
use crate::clock;
use crate::events::{self, EventType};

/// Between two looks at the file system.
const PERIOD: Duration = Duration::from_secs(30);

/// When to remove images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// In use of the file system: from here on images are removed.
    pub high_percent: u32,
    /// Until that is in use.
    pub low_percent: u32,
    /// An image stays for so long after it was found to be needed no more.
    pub age_min: Duration,
}

/// An image that no pod needs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unneeded {
    id: String,
    size: u64,
    since: Instant,
}

/// Looks now and then; ends only when it is dropped.
pub async fn run(context: Arc<Context>) {
    let mut since = BTreeMap::new();
    loop {
        tokio::time::sleep(PERIOD).await;
        if let Err(error) = look(&context, &mut since).await {
            tracing::warn!(%error, "cannot look for images to remove");
        }
    }
}

/// `since` is when images were first seen to be of no need.
async fn look(context: &Context, since: &mut BTreeMap<String, Instant>) -> Result<(), CriError> {
    let policy = context.image_policy;
    let Some(to_free) = too_much(&context.runtime, policy).await? else {
        since.clear();
        return Ok(());
    };
    let found = remove(context, since, to_free, policy.age_min).await?;
    if found < to_free {
        // The kubelet's words.
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {to_free} bytes, but only found {found} bytes eligible to free."
        );
        let told = ("FreeDiskSpaceFailed", message.as_str());
        context.upstream.event(events::about_node(context.node.as_str(), EventType::Warning, told));
    }

    Ok(())
}

/// Removes every image that no pod needs: the node is short of disk space.
pub async fn remove_unneeded(context: &Context) -> Result<(), CriError> {
    let freed = remove(context, &mut BTreeMap::new(), u64::MAX, Duration::ZERO).await?;
    tracing::info!(bytes = freed, "removed the images that no pod needs");

    Ok(())
}

/// Removes images that no pod needs until so much is free; answers how much that was.
async fn remove(
    context: &Context,
    since: &mut BTreeMap<String, Instant>,
    to_free: u64,
    age_min: Duration,
) -> Result<u64, CriError> {
    let needed = needed(context).await?;
    let now = clock::instant();
    let unneeded: Vec<_> = context
        .runtime
        .list_images()
        .await?
        .into_iter()
        .filter(|image| !image.pinned && !is_pause(image) && !needed.contains(&image.id))
        .map(|image| {
            let since = *since.entry(image.id.clone()).or_insert(now);
            Unneeded { id: image.id, size: image.size, since }
        })
        .collect();
    since.retain(|id, _| unneeded.iter().any(|image| image.id == *id));
    let chosen = choose(unneeded, to_free, age_min, now);
    let found: u64 = chosen.iter().map(|image| image.size).sum();
    for image in chosen {
        let id = image.id;
        tracing::info!(id, bytes = image.size, "removing an image that no pod needs");
        let spec = v1::ImageSpec { image: id.clone(), ..v1::ImageSpec::default() };
        context.runtime.remove_image(spec).await?;
        since.remove(&id);
    }
    context.images.changed();

    Ok(found)
}

/// How much must go; `None` while there is room.
async fn too_much(runtime: &cri::Runtime, policy: Policy) -> Result<Option<u64>, CriError> {
    let info = runtime.image_fs_info().await?;
    let mounts: BTreeSet<_> = info
        .image_filesystems
        .into_iter()
        .filter_map(|usage| Some(usage.fs_id?.mountpoint))
        .collect();
    let usages = blocking::run(move || {
        let usage = |mount: &String| {
            let disk = rustix::fs::statvfs(Path::new(mount)).ok()?;
            let all = disk.f_blocks.saturating_mul(disk.f_frsize);
            Some((all, all.saturating_sub(disk.f_bavail.saturating_mul(disk.f_frsize))))
        };
        mounts.iter().filter_map(usage).collect::<Vec<_>>()
    });

    Ok(usages.await.into_iter().filter_map(|(all, used)| excess(all, used, policy)).max())
}

/// How much of `used` bytes must go.
fn excess(all: u64, used: u64, policy: Policy) -> Option<u64> {
    let share = |percent: u32| {
        u64::try_from(u128::from(all) * u128::from(percent) / 100).unwrap_or(u64::MAX)
    };
    let is_high = used >= share(policy.high_percent);

    is_high.then(|| used.saturating_sub(share(policy.low_percent))).filter(|bytes| *bytes > 0)
}

/// Ids of images that containers are of, that pods of this node name, and that sandboxes need.
async fn needed(context: &Context) -> Result<BTreeSet<String>, CriError> {
    let runtime = &context.runtime;
    let mut ids = BTreeSet::new();
    let mut names: BTreeSet<String> = runtime.sandbox_image().await?.into_iter().collect();
    for container in runtime.list_containers(None).await? {
        ids.insert(container.image_ref);
        names.extend(container.image.map(|image| image.image));
    }
    for uid in context.desired.pods() {
        let Some(object) = context.desired.get(&ObjectKey::pod(&uid)) else { continue };
        if let Ok(pod) = PodView::parse(&object.bytes) {
            names.extend(pod.all_containers().filter_map(|container| container.image.clone()));
            let volumes = pod.spec().volumes.iter().flatten();
            names.extend(volumes.filter_map(|volume| volume.image.as_ref()?.reference.clone()));
        }
    }
    for name in names {
        let spec = v1::ImageSpec { image: name.clone(), ..v1::ImageSpec::default() };
        // A name that the runtime does not understand names no image that it has.
        if let Ok(Some(image)) = runtime.image_status(spec).await {
            ids.insert(image.id);
        }
        ids.insert(name);
    }

    Ok(ids)
}

/// What sandboxes are made of, should the runtime neither pin nor name it.
fn is_pause(image: &v1::Image) -> bool {
    image.repo_tags.iter().any(|tag| tag.contains("/pause:"))
}

/// The longest unneeded first, until enough goes.
fn choose(
    mut unneeded: Vec<Unneeded>,
    to_free: u64,
    age_min: Duration,
    now: Instant,
) -> Vec<Unneeded> {
    unneeded.retain(|image| now.saturating_duration_since(image.since) >= age_min);
    unneeded.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
    let mut freed: u64 = 0;
    unneeded.retain(|image| {
        let is_due = freed < to_free;
        freed = if is_due { freed.saturating_add(image.size) } else { freed };
        is_due
    });

    unneeded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_as_much_goes_as_must_and_what_is_old_goes_first() {
        let start = clock::instant();
        let minutes = |count: u64| Duration::from_mins(count);
        let image =
            |id: &str, size, at| Unneeded { id: id.into(), size, since: start + minutes(at) };
        let all =
            || vec![image("c", 30, 5), image("b", 20, 1), image("a", 10, 1), image("d", 40, 9)];
        let check = |to_free, expected: &[&str]| {
            let chosen = choose(all(), to_free, minutes(2), start + minutes(10));
            let ids: Vec<_> = chosen.iter().map(|image| image.id.as_str()).collect();
            assert_eq!(ids, expected, "{to_free}");
        };
        check(0, &[]);
        check(1, &["a"]);
        check(11, &["a", "b"]);
        check(31, &["a", "b", "c"]);
        // Not what was needed a moment ago.
        check(1000, &["a", "b", "c"]);
    }

    #[test]
    fn a_file_system_is_emptied_from_one_mark_to_the_other() {
        let policy = Policy { high_percent: 85, low_percent: 80, age_min: Duration::ZERO };
        for (used, expected) in [(0, None), (849, None), (850, Some(50)), (1000, Some(200))] {
            assert_eq!(excess(1000, used, policy), expected, "{used}");
        }
        assert_eq!(excess(u64::MAX, u64::MAX, policy).map(|bytes| bytes > 0), Some(true));
        assert_eq!(excess(0, 0, policy), None);
    }
}
