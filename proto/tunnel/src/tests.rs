//! A stream between its owner and a shell.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const ID: StreamId = StreamId(1);

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
}

#[test]
fn what_is_written_and_read_reaches_the_session() {
    block_on(async {
        let mut tunnels = Tunnels::default();
        let mut stream = tunnels.open(ID);
        stream.write_all(b"request").await.unwrap();
        let data = StreamOutput::Data { id: ID, bytes: Bytes::from_static(b"answer") };
        assert!(tunnels.handle(data).is_none());
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await.unwrap();

        assert_eq!(&answer, b"answer");
        assert_eq!(
            tunnels.take_inputs(),
            [
                StreamInput::Write { id: ID, bytes: Bytes::from_static(b"request") },
                StreamInput::Consumed { id: ID, bytes: 6 },
            ]
        );
    });
}

#[test]
fn a_writer_stops_at_the_window_and_goes_on_when_told() {
    block_on(async {
        let mut tunnels = Tunnels::default();
        let mut stream = tunnels.open(ID);
        let window = usize::try_from(WINDOW_BYTES).unwrap();
        stream.write_all(&vec![7; window]).await.unwrap();
        let blocked = tokio::select! {
            biased;
            _ = stream.write(b"x") => false,
            () = std::future::ready(()) => true,
        };
        assert!(blocked);
        tunnels.handle(StreamOutput::Writable { id: ID, bytes: 1 });
        assert_eq!(stream.write(b"xy").await.unwrap(), 1);
    });
}

#[test]
fn ends_resets_and_losses_are_told_to_both_sides() {
    block_on(async {
        let mut tunnels = Tunnels::default();
        let mut stream = tunnels.open(ID);
        stream.shutdown().await.unwrap();
        assert_eq!(tunnels.take_inputs(), [StreamInput::Finish { id: ID }]);
        tunnels.handle(StreamOutput::Ended { id: ID });
        assert_eq!(stream.read(&mut [0; 4]).await.unwrap(), 0);
        drop(stream);
        assert_eq!(tunnels.take_inputs(), [], "both ends had finished");

        drop(tunnels.open(StreamId(2)));
        assert!(matches!(tunnels.take_inputs()[..], [StreamInput::Reset { id: StreamId(2), .. }]));

        let mut stream = tunnels.open(StreamId(3));
        tunnels.lose("the link is down");
        let error = stream.read(&mut [0; 4]).await.unwrap_err();
        assert_eq!(error.to_string(), "the link is down");
    });
}

#[test]
fn the_last_words_of_a_dropped_stream_reach_the_peer() {
    block_on(async {
        let mut tunnels = Tunnels::default();
        let mut stream = tunnels.open(ID);
        stream.write_all(b"last words").await.unwrap();
        let data = |bytes| StreamOutput::Data { id: ID, bytes: Bytes::from_static(bytes) };
        tunnels.handle(data(b"unread"));
        stream.shutdown().await.unwrap();
        drop(stream);
        assert_eq!(
            tunnels.take_inputs(),
            [
                StreamInput::Write { id: ID, bytes: Bytes::from_static(b"last words") },
                StreamInput::Consumed { id: ID, bytes: 6 },
                StreamInput::Finish { id: ID },
            ]
        );

        // The peer goes on until it has seen the end; it must not be blocked by what nobody reads.
        tunnels.handle(data(b"more"));
        assert_eq!(tunnels.take_inputs(), [StreamInput::Consumed { id: ID, bytes: 4 }]);
        tunnels.handle(StreamOutput::Ended { id: ID });
        assert_eq!(tunnels.take_inputs(), []);
        assert!(tunnels.streams.is_empty());
    });
}
