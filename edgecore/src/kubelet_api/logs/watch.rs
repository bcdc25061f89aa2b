//! Waiting for a log file to grow or to be replaced: inotify on its folder, which holds nothing but
//! the logs of one container.

use std::future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Room for a few events; they are dropped unread, any of them means "look again".
const EVENTS_BYTES: usize = 4096;

/// A watched folder. Where inotify is not to be had, nothing ever happens in it, and the caller's
/// own clock has to do.
#[derive(Debug)]
pub(super) struct Watch(Option<AsyncFd<OwnedFd>>);

impl Watch {
    /// Watches the folder of `file`.
    pub(super) fn new(file: &Path) -> Self {
        match Self::open(file) {
            Ok(watch) => Self(Some(watch)),
            Err(error) => {
                tracing::debug!(%error, file = %file.display(), "no inotify: the log is polled");
                Self(None)
            }
        }
    }

    fn open(file: &Path) -> io::Result<AsyncFd<OwnedFd>> {
        let folder = file.parent().unwrap_or_else(|| Path::new("/"));
        let events = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
        let descriptor = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&descriptor, folder, events)?;

        #[expect(
            deprecated,
            reason = "its successor is unsafe for the sake of types whose descriptor may change; an \
                      OwnedFd keeps its own"
        )]
        AsyncFd::with_interest(descriptor, Interest::READABLE)
    }

    /// Waits until something happened since the last call.
    pub(super) async fn changed(&self) {
        let Some(descriptor) = &self.0 else {
            return future::pending().await;
        };
        let mut events = [0; EVENTS_BYTES];
        let read = descriptor
            .async_io(Interest::READABLE, |descriptor| {
                rustix::io::read(descriptor, &mut events).map_err(io::Error::from)
            })
            .await;
        if read.is_err() {
            future::pending::<()>().await;
        }
    }
}
