//! The kernel's word that something in a folder has changed (inotify).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::net::unix::pipe::Receiver;

use crate::blocking;
use crate::telemetry::chain;

/// Of a message only its arrival counts.
const MESSAGES_BYTES: usize = 4096;
/// Reads at once; what is left is another notice.
const MESSAGES_AT_ONCE_MAX: usize = 16;

/// What is watched, once something could be.
#[derive(Debug, Default)]
pub(super) struct Notice {
    watching: Option<Watching>,
    told: bool,
}

#[derive(Debug)]
struct Watching {
    /// Read like a pipe, which is all that tokio needs to know of it.
    messages: Receiver,
    /// The folder that was found under its path.
    folder: Folder,
}

impl Notice {
    /// Watches the folder that is now there.
    pub(super) async fn watch(&mut self, dir: &Path) {
        let known = self.watching.as_ref().map(|watching| watching.folder);
        let dir = dir.to_owned();
        let Some(found) = blocking::run(move || look(&dir, known)).await else { return };
        self.watching = None;
        let watching = found.and_then(|(folder, fd)| {
            Ok(Watching { messages: Receiver::from_owned_fd_unchecked(fd)?, folder })
        });
        match watching {
            Ok(watching) => self.watching = Some(watching),
            // It is looked for again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    let error = chain(&error);
                    tracing::warn!(error, "changed files of staticPodPath are seen late");
                }
            }
        }
    }

    /// Resolves when something has changed.
    pub(super) async fn wait(&self) {
        let Some(watching) = &self.watching else { return std::future::pending().await };
        if watching.messages.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Takes what the kernel has told.
    pub(super) fn drain(&mut self) {
        let Some(watching) = &self.watching else { return };
        let mut buffer = [0; MESSAGES_BYTES];
        for _ in 0..MESSAGES_AT_ONCE_MAX {
            match watching.messages.try_read(&mut buffer) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "watching staticPodPath anew");
                    self.watching = None;
                    return;
                }
            }
        }
    }
}

/// Device and inode.
type Folder = (u64, u64);

/// Watches the folder under `dir`, unless it is the one known.
fn look(dir: &Path, known: Option<Folder>) -> Option<io::Result<(Folder, OwnedFd)>> {
    let folder = std::fs::metadata(dir).map(|found| (found.dev(), found.ino()));
    if known.is_some() && folder.as_ref().ok() == known.as_ref() {
        return None;
    }

    Some(folder.and_then(|folder| Ok((folder, watch(dir)?))))
}

fn watch(dir: &Path) -> io::Result<OwnedFd> {
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let changes = WatchFlags::CREATE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    inotify::add_watch(&fd, dir, changes)?;

    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Far below the period of looks that need no notice.
    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn changes_are_noticed_also_in_a_folder_that_comes_later() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let parent = tempfile::tempdir().unwrap();
            let dir = parent.path().join("manifests");
            let mut notice = Notice::default();
            notice.watch(&dir).await;
            assert!(notice.watching.is_none());
            std::fs::create_dir(&dir).unwrap();
            for file in ["a", "b"] {
                notice.watch(&dir).await;
                std::fs::write(dir.join(file), "").unwrap();
                tokio::time::timeout(SOON, notice.wait()).await.expect(file);
                notice.drain();
            }
            let quiet = tokio::time::timeout(Duration::ZERO, notice.wait()).await;
            assert!(quiet.is_err(), "what was told is told once");
        });
    }
}
