//! A replica that stops, and the streams that are open then.

use proto::wire::{StreamId, StreamKind};

use super::*;

impl Link {
    /// The stream that is opened.
    async fn opened(&mut self) -> StreamId {
        loop {
            match self.next().await {
                Some(Frame::StreamOpen { id, .. }) => return id,
                Some(_) => {}
                None => panic!("the link ended before the stream began"),
            }
        }
    }

    /// What is said on the stream, to its end.
    async fn said(&mut self) -> Vec<u8> {
        let mut said = Vec::new();
        loop {
            match self.next().await {
                Some(Frame::StreamData { bytes, end, .. }) => {
                    said.extend_from_slice(&bytes);
                    if end {
                        return said;
                    }
                }
                Some(Frame::Bye(_)) | None => panic!("the link ended before the stream: {said:?}"),
                Some(_) => {}
            }
        }
    }

    async fn goodbye(&mut self) {
        loop {
            match self.next().await {
                Some(Frame::Bye(_)) => return,
                Some(_) => {}
                None => panic!("the link ended without a word"),
            }
        }
    }
}

/// A link with an open stream.
async fn streaming(hub: &mut Hub) -> (Link, StreamId, SessionHandle, TunnelStream) {
    hub.keep_record(false);
    let mut link = hub.link(&hub.node("edge-1"), "edge-1", None).await;
    link.welcomed().await;
    let session = soon("a session", hub.connected.recv()).await.unwrap().session;
    let stream = session.open_stream(StreamKind::KUBELET_API).await.unwrap();
    let id = link.opened().await;

    (link, id, session, stream)
}

#[test]
fn streams_go_on_while_a_replica_stops() {
    block_on(async {
        let mut hub = Hub::start().await;
        let (mut link, _id, _session, mut stream) = streaming(&mut hub).await;
        hub.stop.cancel();
        // From here on it is stopping: nobody else is let in.
        soon("the end of the listener", async { while hub.dial(None).await.is_ok() {} }).await;
        stream.write_all(b"to the end").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(link.said().await, b"to the end");
    });
}

#[test]
fn a_link_ends_with_its_last_stream() {
    block_on(async {
        let mut hub = Hub::start().await;
        let (mut link, id, session, mut stream) = streaming(&mut hub).await;
        let much_later = crate::clock::now() + Duration::from_hours(1);
        session.drain("cloudcore stops", Duration::ZERO, much_later).await;
        stream.shutdown().await.unwrap();
        assert_eq!(link.said().await, b"");
        link.send(&Frame::StreamData { id, bytes: Bytes::new(), end: true }).await;
        let mut rest = Vec::new();
        soon("the end", stream.read_to_end(&mut rest)).await.unwrap();
        drop(stream);
        link.goodbye().await;
    });
}

#[test]
fn a_stream_that_does_not_end_is_cut_off_when_it_is_time() {
    block_on(async {
        let mut hub = Hub::start().await;
        let (mut link, _id, session, mut stream) = streaming(&mut hub).await;
        session.drain("cloudcore stops", Duration::ZERO, crate::clock::now()).await;
        link.goodbye().await;
        let mut rest = Vec::new();
        let read = soon("the end of the stream", stream.read_to_end(&mut rest)).await;
        assert!(read.unwrap_err().to_string().contains("the link to the node is down"));
    });
}
