//! containerd's own event service, which every containerd has.

use std::pin::pin;

use prost::Message as _;
use tokio::sync::mpsc;
use tonic::{Request, Streaming};

use super::{Ended, RuntimeEvent, Source, closed, lost, send};
use crate::containerd::{NAMESPACE, in_namespace};
use crate::grpc::events::events_client::EventsClient;
use crate::grpc::events::{Envelope, SubscribeRequest, TaskEvent, TaskExit};
use crate::runtime::Runtime;

const TOPIC_START: &str = "/tasks/start";
const TOPIC_EXIT: &str = "/tasks/exit";
const TOPIC_OOM: &str = "/tasks/oom";

fn request() -> Request<SubscribeRequest> {
    let filters = [TOPIC_START, TOPIC_EXIT, TOPIC_OOM]
        .map(|topic| format!("namespace=={NAMESPACE},topic=={topic:?}"))
        .to_vec();

    in_namespace(Request::new(SubscribeRequest { filters }))
}

/// Reads events until the reader or containerd is gone.
pub(super) async fn subscribe(runtime: &Runtime, events: &mpsc::Sender<RuntimeEvent>) -> Ended {
    match read(runtime, events).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

async fn read(
    runtime: &Runtime,
    events: &mpsc::Sender<RuntimeEvent>,
) -> Result<std::convert::Infallible, Ended> {
    let mut stream = open(runtime, events).await?;
    loop {
        let next = tokio::select! {
            next = stream.message() => next,
            () = events.closed() => return Err(Ended::Unwanted),
        };
        match next {
            Ok(Some(envelope)) => {
                if let Some(event) = interpret(&envelope) {
                    send(events, event).await?;
                }
            }
            Ok(None) => return Err(closed(Source::Containerd)),
            Err(status) => return Err(lost(runtime, Source::Containerd, &status)),
        }
    }
}

/// Subscribes and announces the resync.
///
/// containerd answers a subscription with the first event, not before. That the request has reached
/// it is known from the answer to a later call on the same connection.
async fn open(
    runtime: &Runtime,
    events: &mpsc::Sender<RuntimeEvent>,
) -> Result<Streaming<Envelope>, Ended> {
    let mut client = EventsClient::new(runtime.channel());
    let mut subscription = pin!(client.subscribe(request()));
    let answer = tokio::select! {
        biased;
        answer = &mut subscription => answer,
        version = runtime.version() => {
            version.map_err(|error| Ended::Lost(Box::new(error)))?;
            send(events, RuntimeEvent::Resync).await?;
            tokio::select! {
                answer = &mut subscription => {
                    return opened(runtime, answer);
                }
                () = events.closed() => return Err(Ended::Unwanted),
            }
        }
    };
    let stream = opened(runtime, answer)?;
    send(events, RuntimeEvent::Resync).await?;

    Ok(stream)
}

fn opened(
    runtime: &Runtime,
    answer: Result<tonic::Response<Streaming<Envelope>>, tonic::Status>,
) -> Result<Streaming<Envelope>, Ended> {
    match answer {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err(lost(runtime, Source::Containerd, &status)),
    }
}

fn interpret(envelope: &Envelope) -> Option<RuntimeEvent> {
    let payload = envelope.event.as_ref()?.value.as_slice();
    let event = match envelope.topic.as_str() {
        TOPIC_EXIT => {
            let exit = TaskExit::decode(payload).ok()?;
            // The end of an exec is its caller's business.
            if exit.id != exit.container_id && !exit.id.is_empty() {
                return None;
            }
            RuntimeEvent::Exited { id: exit.container_id }
        }
        TOPIC_START => RuntimeEvent::Started { id: TaskEvent::decode(payload).ok()?.container_id },
        TOPIC_OOM => {
            RuntimeEvent::OutOfMemory { id: TaskEvent::decode(payload).ok()?.container_id }
        }
        _ => return None,
    };

    Some(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::events::Any;

    fn check(topic: &str, payload: Vec<u8>, expected: Option<&RuntimeEvent>) {
        let envelope = Envelope {
            namespace: NAMESPACE.to_owned(),
            topic: topic.to_owned(),
            event: Some(Any { value: payload }),
        };
        assert_eq!(interpret(&envelope).as_ref(), expected, "{topic}");
    }

    fn exit(container: &str, id: &str) -> Vec<u8> {
        TaskExit { container_id: container.into(), id: id.into() }.encode_to_vec()
    }

    #[test]
    fn an_event_is_about_the_container_it_names() {
        let task = TaskEvent { container_id: "c".into() }.encode_to_vec();
        check(TOPIC_EXIT, exit("c", "c"), Some(&RuntimeEvent::Exited { id: "c".into() }));
        check(TOPIC_EXIT, exit("c", ""), Some(&RuntimeEvent::Exited { id: "c".into() }));
        check(TOPIC_EXIT, exit("c", "exec-1"), None);
        check(TOPIC_OOM, task.clone(), Some(&RuntimeEvent::OutOfMemory { id: "c".into() }));
        check(TOPIC_START, task.clone(), Some(&RuntimeEvent::Started { id: "c".into() }));
        check("/tasks/paused", task, None);
        check(TOPIC_EXIT, vec![0xff; 4], None);
    }

    #[test]
    fn the_filters_quote_topics_as_containerd_wants() {
        assert_eq!(request().into_inner().filters[1], r#"namespace==k8s.io,topic=="/tasks/exit""#);
    }
}
