//! Reads a log file from a place to its end, and on as it grows.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cri::Runtime;
use cri_api::v1::ContainerState;

use super::line::{Printer, Want};
use super::options::LogOptions;
use super::watch::Watch;
use crate::blocking;
use crate::kubelet_api::Incarnation;

/// Read at once. Twice what the link carries in one frame.
const CHUNK_BYTES: usize = 32 * 1024;

/// Longest line kept whole. Runtimes cut at 16 KiB unless they were told otherwise; of a longer line
/// the beginning is printed.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// How often a quiet container is asked whether it still runs, as the kubelet does.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A log being read.
#[derive(Debug)]
pub(super) struct Reading {
    file: Arc<File>,
    offset: u64,
    incarnation: Incarnation,
    printer: Printer,
    /// The unfinished line at the end of what was read.
    rest: Vec<u8>,
    /// The rest of a line that is too long is skipped.
    skipping: bool,
    follow: Option<Follow>,
    finished: bool,
}

#[derive(Debug)]
struct Follow {
    watch: Watch,
    /// Tells whether the container still runs; `None` once it does not.
    runtime: Option<Runtime>,
    /// The file that has taken the place of the one being read.
    next: Option<File>,
    /// The time to ask has come: always so before the first wait.
    ask: bool,
}

impl Reading {
    /// `runtime` is given for a container that runs.
    pub(super) fn new(
        file: File,
        offset: u64,
        incarnation: Incarnation,
        options: &LogOptions,
        runtime: Option<Runtime>,
    ) -> Self {
        let printer = Printer::new(options);
        let follow = options.follow.then(|| Follow {
            watch: Watch::new(&incarnation.log),
            runtime,
            next: None,
            ask: true,
        });

        Self {
            file: Arc::new(file),
            offset,
            incarnation,
            finished: printer.wants() == Want::Nothing,
            printer,
            rest: Vec::new(),
            skipping: false,
            follow,
        }
    }

    /// The next piece of output; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<io::Result<Bytes>> {
        while !self.finished {
            let chunk = match self.read().await {
                Ok(chunk) => chunk,
                Err(error) => {
                    self.finished = true;
                    return Some(Err(error));
                }
            };
            let mut out = Vec::new();
            if chunk.is_empty() {
                self.at_end(&mut out).await;
            } else {
                self.take(&chunk, &mut out);
            }
            if !out.is_empty() {
                return Some(Ok(Bytes::from(out)));
            }
        }

        None
    }

    async fn read(&mut self) -> io::Result<Vec<u8>> {
        let (file, offset) = (Arc::clone(&self.file), self.offset);
        let chunk = blocking::run(move || {
            let mut chunk = vec![0; CHUNK_BYTES];
            let length = file.read_at(&mut chunk, offset)?;
            chunk.truncate(length);
            Ok::<_, io::Error>(chunk)
        })
        .await?;
        self.offset += chunk.len() as u64;

        Ok(chunk)
    }

    /// Prints the lines that `chunk` ends and keeps the one it begins.
    fn take(&mut self, chunk: &[u8], out: &mut Vec<u8>) {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            let ends = piece.ends_with(b"\n");
            if self.skipping {
                self.skipping = !ends;
                continue;
            }
            self.rest.extend_from_slice(piece);
            if !ends && self.rest.len() < LINE_BYTES_MAX {
                return;
            }
            self.skipping = !ends;
            if self.print_rest(out) == Want::Nothing {
                self.finished = true;
                return;
            }
        }
    }

    fn print_rest(&mut self, out: &mut Vec<u8>) -> Want {
        let wants = self.printer.print(&self.rest, out);
        self.rest.clear();

        wants
    }

    /// Waits for more, or prints what there is of the last line and ends.
    async fn at_end(&mut self, out: &mut Vec<u8>) {
        let Some(follow) = &mut self.follow else {
            self.finish(out);
            return;
        };
        // A container that has ended adds nothing to a file that was read to its end since.
        let Some(runtime) = &follow.runtime else {
            self.finish(out);
            return;
        };
        if let Some(next) = follow.next.take() {
            self.file = Arc::new(next);
            self.offset = 0;
            self.print_rest(out);
            return;
        }
        // The old file may have grown since its end was read: it is read to its end once more.
        follow.next = replaced(&self.file, &self.incarnation.log).await;
        if follow.next.is_some() {
            return;
        }
        if follow.ask && !runs(runtime, &self.incarnation.id).await {
            follow.runtime = None;
            return;
        }
        follow.ask = tokio::select! {
            () = follow.watch.changed() => false,
            () = tokio::time::sleep(LOOK_AGAIN) => true,
        };
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        self.finished = true;
        if !self.rest.is_empty() {
            self.print_rest(out);
        }
    }
}

/// The file now at `path`, if it is not `current`: the runtime was told to open its log anew.
async fn replaced(current: &Arc<File>, path: &Path) -> Option<File> {
    let (current, path) = (Arc::clone(current), path.to_owned());
    blocking::run(move || {
        let next = File::open(path).ok()?;
        let (old, new) = (current.metadata().ok()?, next.metadata().ok()?);
        let same = (old.dev(), old.ino()) == (new.dev(), new.ino());
        (!same).then_some(next)
    })
    .await
}

/// Whether the container runs. It is taken to while the runtime does not say: one that is away, or has too
/// much to do to answer in time, has ended nothing.
async fn runs(runtime: &Runtime, id: &str) -> bool {
    match runtime.container_status(id).await {
        Ok(status) => status.state() == ContainerState::ContainerRunning,
        Err(error) => !error.is_not_found(),
    }
}
