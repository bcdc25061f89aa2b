//! Users of the node for pods that have their own (`hostUsers: false`): each pod has a range that no other
//! has, noted in its directory as the kubelet does (`pkg/kubelet/userns`).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use podcore::translate::UserRange;
use proto::ids::Uid;
use serde::{Deserialize, Serialize};

use crate::layout::Layout;

/// Users of a pod: as many as the programs of one can name.
const LENGTH: u32 = 1 << 16;
/// Ranges that there are, the first being the node's own.
const RANGES: u32 = u32::MAX / LENGTH;

/// One taker at a time.
static TAKING: Mutex<()> = Mutex::new(());

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

/// The range of the pod, taken if it has none. It is free again when the pod's directory is gone.
pub fn take(layout: &Layout, pod: &Uid) -> io::Result<UserRange> {
    let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = layout.pod(pod);
    if let Some(range) = read(&dir)? {
        return Ok(range);
    }
    let mut taken = BTreeSet::new();
    for entry in fs::read_dir(layout.pods())? {
        taken.extend(read(&entry?.path())?.map(|range| range.first / LENGTH));
    }
    let free = (1..=RANGES).find(|number| !taken.contains(number));
    let free = free.ok_or_else(|| io::Error::other("no range of users is free"))?;
    let range = UserRange { first: free * LENGTH, length: LENGTH };
    fs::create_dir_all(&dir)?;
    write(&dir, range)?;

    Ok(range)
}

fn read(pod_dir: &Path) -> io::Result<Option<UserRange>> {
    let bytes = match fs::read(pod_dir.join("userns")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let note: Note = serde_json::from_slice(&bytes)?;

    Ok(note.uid_mappings.first().map(|of| UserRange { first: of.host_id, length: of.length }))
}

/// Durable before it is used: after a power cut the files of the pod are still those users'.
fn write(pod_dir: &Path, range: UserRange) -> io::Result<()> {
    let mapping = Mapping { host_id: range.first, container_id: 0, length: range.length };
    let note = Note { uid_mappings: vec![mapping.clone()], gid_mappings: vec![mapping] };
    let new = pod_dir.join(".userns");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(&note)?)?;
    file.sync_all()?;
    fs::rename(new, pod_dir.join("userns"))?;

    File::open(pod_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_has_users_of_its_own_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout {
            root: dir.path().to_owned(),
            pod_logs: dir.path().to_owned(),
            container_logs: dir.path().to_owned(),
        };
        fs::create_dir_all(layout.pods()).unwrap();
        let first = |pod: &str| take(&layout, &Uid::new(pod).unwrap()).unwrap().first;

        assert_eq!((first("a"), first("b"), first("a")), (65_536, 131_072, 65_536));
        let note = fs::read_to_string(layout.pods().join("b/userns")).unwrap();
        assert!(
            note.starts_with(
                r#"{"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gid"#
            ),
            "{note}"
        );
        fs::remove_dir_all(layout.pods().join("a")).unwrap();
        assert_eq!((first("c"), first("d")), (65_536, 196_608));
    }
}
