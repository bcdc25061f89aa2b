//! Feeds bytes to the decoder as the peer of a link would: `cargo +nightly fuzz run decode`.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use proto::codec::{self, REPORT_BYTES_MAX};
use proto::object::OBJECT_BYTES_MAX;
use proto::wire::Frame;

fuzz_target!(|data: &[u8]| {
    let Ok(frame) = codec::decode(&Bytes::copy_from_slice(data)) else { return };
    match &frame {
        Frame::Put { payload, .. } => drop(payload.unpack(OBJECT_BYTES_MAX)),
        Frame::Report { payload, .. } => drop(payload.unpack(REPORT_BYTES_MAX)),
        _ => {}
    }
    let again = codec::decode(&codec::encode(&frame)).expect("what was decoded can be encoded");
    assert_eq!(frame, again);
});
