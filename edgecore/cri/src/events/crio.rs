//! `GetContainerEvents` of CRI, which CRI-O has where its configuration turns it on.

use cri_api::v1::{ContainerEventResponse, ContainerEventType, GetEventsRequest};
use tokio::sync::mpsc;

use super::{Ended, RuntimeEvent, Source, lost, send};
use crate::runtime::Runtime;

/// Reads events until the reader or the runtime is gone.
pub(super) async fn subscribe(runtime: &Runtime, events: &mpsc::Sender<RuntimeEvent>) -> Ended {
    match read(runtime, events).await {
        Ok(()) => Ended::Unsupported,
        Err(ended) => ended,
    }
}

/// Ends well if the runtime ends the stream, which is how CRI-O says that events are turned off.
async fn read(runtime: &Runtime, events: &mpsc::Sender<RuntimeEvent>) -> Result<(), Ended> {
    send(events, RuntimeEvent::Resync).await?;
    let mut client = runtime.runtime();
    let opened = tokio::select! {
        opened = client.get_container_events(GetEventsRequest {}) => opened,
        () = events.closed() => return Err(Ended::Unwanted),
    };
    let mut stream = opened.map_err(|status| lost(runtime, Source::Cri, &status))?.into_inner();
    loop {
        let next = tokio::select! {
            next = stream.message() => next,
            () = events.closed() => return Err(Ended::Unwanted),
        };
        match next {
            Ok(Some(response)) => {
                if let Some(event) = interpret(response) {
                    send(events, event).await?;
                }
            }
            Ok(None) => return Ok(()),
            Err(status) => return Err(lost(runtime, Source::Cri, &status)),
        }
    }
}

fn interpret(response: ContainerEventResponse) -> Option<RuntimeEvent> {
    match response.container_event_type() {
        ContainerEventType::ContainerStartedEvent => {
            Some(RuntimeEvent::Started { id: response.container_id })
        }
        ContainerEventType::ContainerStoppedEvent => {
            Some(RuntimeEvent::Exited { id: response.container_id })
        }
        ContainerEventType::ContainerCreatedEvent | ContainerEventType::ContainerDeletedEvent => {
            None
        }
    }
}
