//! What happens to containers, as it happens.
//!
//! An event says "look again at this id", no more: what happened is read from CRI (see
//! [`crate::settled_container`]). Events can be lost while the runtime restarts, so every new
//! subscription begins with [`RuntimeEvent::Resync`].

mod containerd;
mod crio;
mod poll;

use std::fmt;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::error::CriError;
use crate::runtime::Runtime;
use crate::version::RuntimeVersion;

/// First and longest wait before a lost subscription is renewed: a restart of containerd takes about
/// a second, and until it is back nothing can be missed that the resync would not find.
const RESUBSCRIBE_WAIT: Duration = Duration::from_millis(100);
const RESUBSCRIBE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuntimeEvent {
    /// Anything may have changed unseen: look at every pod.
    Resync,
    /// The process of a container or sandbox was started.
    Started {
        /// Of the container or sandbox.
        id: String,
    },
    /// The process of a container or sandbox has ended.
    Exited {
        /// Of the container or sandbox.
        id: String,
    },
    /// The kernel killed something in a container for want of memory.
    OutOfMemory {
        /// Of the container or sandbox.
        id: String,
    },
}

/// Where events come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// containerd's own event service.
    Containerd,
    /// `GetContainerEvents` of CRI.
    Cri,
    /// The list of containers, read every second.
    Poll,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Containerd => "containerd's event service",
            Self::Cri => "GetContainerEvents",
            Self::Poll => "a poll every second",
        })
    }
}

/// Why a subscription ended.
enum Ended {
    /// The reader of the events is gone.
    Unwanted,
    /// The runtime does not have this source.
    Unsupported,
    /// The runtime went away.
    Lost(Box<CriError>),
}

/// Sends events to `events` until its receiver is dropped. A slow receiver delays the reading, not
/// the runtime (backpressure).
pub async fn watch(
    runtime: &Runtime,
    version: &RuntimeVersion,
    events: mpsc::Sender<RuntimeEvent>,
) {
    // containerd's CRI events are missing in 1.6 and split between subscribers before 2.0.
    let mut source = match version.name.as_str() {
        "containerd" => Source::Containerd,
        _ => Source::Cri,
    };
    tracing::info!(%source, runtime = %version.name, "watching the runtime's events");

    let mut wait = RESUBSCRIBE_WAIT;
    loop {
        let ended = match source {
            Source::Containerd => containerd::subscribe(runtime, &events).await,
            Source::Cri => crio::subscribe(runtime, &events).await,
            Source::Poll => poll::run(runtime, &events).await,
        };
        match ended {
            Ended::Unwanted => return,
            Ended::Unsupported => {
                tracing::warn!(
                    from = %source, to = %Source::Poll,
                    "the runtime has no events: exits are seen up to a second late"
                );
                source = Source::Poll;
            }
            Ended::Lost(error) => {
                tracing::warn!(%error, %source, "lost the runtime's events");
                tokio::time::sleep(wait).await;
                wait = back_again(runtime, wait).await;
            }
        }
    }
}

/// The next wait: the first one again once the runtime answers.
async fn back_again(runtime: &Runtime, wait: Duration) -> Duration {
    match runtime.version().await {
        Ok(_) => RESUBSCRIBE_WAIT,
        Err(_) => (wait * 2).min(RESUBSCRIBE_WAIT_MAX),
    }
}

async fn send(events: &mpsc::Sender<RuntimeEvent>, event: RuntimeEvent) -> Result<(), Ended> {
    events.send(event).await.map_err(|_| Ended::Unwanted)
}

fn lost(runtime: &Runtime, source: Source, status: &tonic::Status) -> Ended {
    let attempted = format!("read the runtime's events by {source}");
    let error = CriError::from_status(attempted, runtime.socket(), status);
    if error.is_unimplemented() {
        return Ended::Unsupported;
    }

    Ended::Lost(Box::new(error))
}

fn closed(source: Source) -> Ended {
    let attempted = format!("read the runtime's events by {source}");

    Ended::Lost(Box::new(CriError::NoAnswer {
        attempted,
        message: "the runtime closed the stream".to_owned(),
    }))
}
