//! Streams over a link.

use super::*;
use crate::stream::{CHUNK_BYTES_MAX, STREAMS_MAX, StreamInput, StreamOutput, WINDOW_BYTES};
use crate::wire::{StreamId, StreamKind};

fn open(pair: &mut Pair) -> StreamId {
    let id = pair.cloud.open_stream(StreamKind::KUBELET_API).unwrap();
    pair.run();
    let opened = StreamOutput::Opened { id, kind: StreamKind::KUBELET_API };
    assert!(edge_streams(pair).contains(&opened));

    id
}

/// What the edge said of streams since the last call.
fn edge_streams(pair: &mut Pair) -> Vec<StreamOutput> {
    let (streams, rest) = std::mem::take(&mut pair.edge_said)
        .into_iter()
        .partition::<Vec<_>, _>(|said| matches!(said, EdgeOutput::Stream(_)));
    pair.edge_said = rest;
    let of = |said| match said {
        EdgeOutput::Stream(output) => Some(output),
        _ => None,
    };

    streams.into_iter().filter_map(of).collect()
}

fn cloud_streams(pair: &mut Pair) -> Vec<StreamOutput> {
    let of = |said| match said {
        CloudOutput::Stream(output) => Some(output),
        _ => None,
    };

    std::mem::take(&mut pair.cloud_said).into_iter().filter_map(of).collect()
}

fn data_len(outputs: &[StreamOutput]) -> usize {
    let of = |output: &StreamOutput| match output {
        StreamOutput::Data { bytes, .. } => Some(bytes.len()),
        _ => None,
    };

    outputs.iter().filter_map(of).sum()
}

fn write(pair: &mut Pair, id: StreamId, len: usize) {
    let bytes = Bytes::from(vec![b'x'; len]);
    pair.cloud_input(CloudInput::Stream(StreamInput::Write { id, bytes }));
    pair.run();
}

#[test]
fn a_stalled_reader_stops_its_own_stream_only() {
    let mut pair = Pair::up();
    let (slow, fast) = (open(&mut pair), open(&mut pair));
    let window = WINDOW_BYTES as usize;
    write(&mut pair, slow, window);
    let took = edge_streams(&mut pair);
    assert_eq!(data_len(&took), window);
    let biggest = pair.passed.iter().map(|frame| match frame {
        Frame::StreamData { bytes, .. } => bytes.len(),
        _ => 0,
    });
    assert_eq!(biggest.max(), Some(CHUNK_BYTES_MAX));
    // The writer has room again, the reader has not read: one more window waits here.
    write(&mut pair, slow, window);
    assert_eq!(data_len(&edge_streams(&mut pair)), 0);
    write(&mut pair, fast, 1000);
    assert_eq!(data_len(&edge_streams(&mut pair)), 1000);
    pair.edge_input(EdgeInput::Stream(StreamInput::Consumed { id: slow, bytes: WINDOW_BYTES }));
    pair.run();
    assert_eq!(data_len(&edge_streams(&mut pair)), window);
    // Beyond its window the stream is reset.
    write(&mut pair, slow, window);
    write(&mut pair, slow, 1);
    assert!(cloud_streams(&mut pair).iter().any(|o| matches!(o, StreamOutput::Closed { .. })));
    assert!(edge_streams(&mut pair).iter().any(|o| matches!(o, StreamOutput::Closed { .. })));
}

#[test]
fn a_megabyte_passes_with_little_credit_traffic() {
    let mut pair = Pair::up();
    let id = open(&mut pair);
    let mut allowed = WINDOW_BYTES as usize;
    let (mut written, mut read) = (0, 0);
    while read < 1 << 20 {
        let len = allowed.min((1 << 20) - written).min(10_000);
        if len > 0 {
            write(&mut pair, id, len);
            written += len;
            allowed -= len;
        }
        for output in cloud_streams(&mut pair) {
            if let StreamOutput::Writable { bytes, .. } = output {
                allowed += bytes as usize;
            }
        }
        let got = data_len(&edge_streams(&mut pair));
        read += got;
        let bytes = u32::try_from(got).unwrap();
        pair.edge_input(EdgeInput::Stream(StreamInput::Consumed { id, bytes }));
        pair.run();
    }
    let names = pair.passed_names();
    assert_eq!(names.iter().filter(|name| **name == "StreamCredit").count(), 26);
}

#[test]
fn each_direction_ends_by_itself() {
    let mut pair = Pair::up();
    let id = open(&mut pair);
    write(&mut pair, id, 5);
    pair.cloud_input(CloudInput::Stream(StreamInput::Finish { id }));
    pair.run();
    let said = edge_streams(&mut pair);
    assert!(matches!(said.as_slice(), [StreamOutput::Data { .. }, StreamOutput::Ended { .. }]));
    let bytes = Bytes::from_static(b"answer");
    pair.edge_input(EdgeInput::Stream(StreamInput::Write { id, bytes }));
    pair.edge_input(EdgeInput::Stream(StreamInput::Finish { id }));
    pair.run();
    let said = cloud_streams(&mut pair);
    assert_eq!(data_len(&said), 6);
    assert_eq!(said.last(), Some(&StreamOutput::Ended { id }));
    // Both are gone: what comes late is ignored.
    pair.edge_input(EdgeInput::Stream(StreamInput::Consumed { id, bytes: 5 }));
    pair.cloud_input(CloudInput::Stream(StreamInput::Reset { id, reason: String::new() }));
    pair.passed.clear();
    pair.run();
    assert!(pair.passed.is_empty());
}

#[test]
fn streams_take_turns() {
    let mut pair = Pair::up();
    let (a, b) = (open(&mut pair), open(&mut pair));
    for id in [a, b] {
        let bytes = Bytes::from(vec![0; 3 * CHUNK_BYTES_MAX]);
        pair.cloud_input(CloudInput::Stream(StreamInput::Write { id, bytes }));
    }
    let order: Vec<_> = std::iter::from_fn(|| pair.cloud.poll_send())
        .filter_map(|frame| match frame {
            Frame::StreamData { id, .. } => Some(id),
            _ => None,
        })
        .collect();
    assert_eq!(order, [a, b, a, b, a, b]);
}

#[test]
fn streams_beyond_the_bound_are_refused() {
    let mut pair = Pair::up();
    for _ in 0..STREAMS_MAX {
        open(&mut pair);
    }
    assert!(pair.cloud.open_stream(StreamKind::KUBELET_API).is_err());
    pair.cloud_input(CloudInput::Stream(StreamInput::Reset {
        id: StreamId(1),
        reason: "client gone".to_owned(),
    }));
    pair.run();
    let closed = StreamOutput::Closed { id: StreamId(1), reason: "client gone".to_owned() };
    assert_eq!(edge_streams(&mut pair), [closed]);
    open(&mut pair);
}

#[test]
fn a_broken_link_closes_every_stream() {
    let mut pair = Pair::up();
    let id = open(&mut pair);
    pair.lose();
    let reason = "the link is down".to_owned();
    assert_eq!(edge_streams(&mut pair), [StreamOutput::Closed { id, reason }]);
    pair.cloud_input(CloudInput::Drain { reason: String::new(), retry_after: SECOND });
    pair.run();
    assert!(matches!(cloud_streams(&mut pair).as_slice(), [StreamOutput::Closed { .. }]));
    let late = pair.cloud.open_stream(StreamKind::KUBELET_API).unwrap();
    pair.cloud_outputs();
    assert!(matches!(
        cloud_streams(&mut pair).as_slice(),
        [StreamOutput::Closed { id, .. }] if *id == late
    ));
}
