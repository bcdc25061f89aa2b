//! Bytes to frames and back. Lengths are checked before anything is allocated for them.

mod reading;
mod writing;

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use crate::pb;
use crate::wire::Frame;

/// Longest frame: the largest object ([`crate::object::OBJECT_BYTES_MAX`]) with its key and some
/// room. What a WebSocket shell must accept, and no more.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Longest report, packed or not. A status of 100 containers has 60 KiB; etcd ends at 1.5 MiB.
pub const REPORT_BYTES_MAX: usize = 1024 * 1024;

/// Longest of all other frames: a Held of 256 usual entries has 30 KiB, a stream chunk 16.
pub const SMALL_FRAME_BYTES_MAX: usize = 64 * 1024;

/// Longest event: an API server's own limit for its message and annotations is far lower.
pub const EVENT_BYTES_MAX: usize = 32 * 1024;

/// Longest text for people; longer ones are cut when sent.
pub const REASON_LEN_MAX: usize = 1024;

/// Longest agent version, address, boot id or token source.
pub const TEXT_LEN_MAX: usize = 128;

/// Longest certificate or request for one: ours have 600 bytes, an RSA authority's 1.5 KiB.
pub const CERTIFICATE_BYTES_MAX: usize = 8 * 1024;

/// Authorities at once: one, or two while the one takes over from the other, with room.
pub const AUTHORITIES_MAX: usize = 4;

/// Room for keys, versions and tags around a payload.
const ENVELOPE_BYTES_MAX: usize = 8 * 1024;

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Too many bytes for what they say they are.
    #[error("a frame with field {field} has {len} bytes, at most {max} are allowed")]
    TooLong {
        /// Field number in `frames.proto`.
        field: usize,
        /// Bytes.
        len: usize,
        /// Allowed for that field.
        max: usize,
    },
    /// Not a single length-delimited field.
    #[error("a frame of {len} bytes does not hold exactly one field")]
    Envelope {
        /// Bytes.
        len: usize,
    },
    /// A field that this version does not have.
    #[error("a frame holds field {field}, which protocol version 1 does not have")]
    UnknownFrame {
        /// Field number.
        field: usize,
    },
    /// Not protobuf.
    #[error("cannot decode a frame with field {field}")]
    Decode {
        /// Field number.
        field: usize,
        /// prost's word.
        #[source]
        source: prost::DecodeError,
    },
    /// Protobuf, but nonsense.
    #[error("a {frame} frame has a bad {field}")]
    BadField {
        /// Name of the frame.
        frame: &'static str,
        /// Name of the field.
        field: &'static str,
    },
}

/// Encodes `frame`.
pub fn encode(frame: &Frame) -> Bytes {
    pb::Frame { body: Some(writing::body(frame)) }.encode_to_vec().into()
}

/// Decodes one WebSocket message.
pub fn decode(bytes: &Bytes) -> Result<Frame, CodecError> {
    let field = check_envelope(bytes)?;
    let frame =
        pb::Frame::decode(bytes.clone()).map_err(|source| CodecError::Decode { field, source })?;
    let body = frame.body.ok_or(CodecError::UnknownFrame { field })?;

    reading::from_body(body)
}

/// The number of the only field, whose length is within its limit.
fn check_envelope(bytes: &Bytes) -> Result<usize, CodecError> {
    const LENGTH_DELIMITED: usize = 2;
    let envelope = || CodecError::Envelope { len: bytes.len() };
    let mut rest: &[u8] = bytes;
    // Tags and lengths are both varints.
    let tag = prost::decode_length_delimiter(&mut rest).map_err(|_| envelope())?;
    let len = prost::decode_length_delimiter(&mut rest).map_err(|_| envelope())?;
    if tag & 7 != LENGTH_DELIMITED || len != rest.len() {
        return Err(envelope());
    }
    let field = tag >> 3;
    let max = match field {
        PUT_FIELD => FRAME_BYTES_MAX,
        REPORT_FIELD => REPORT_BYTES_MAX + ENVELOPE_BYTES_MAX,
        _ => SMALL_FRAME_BYTES_MAX,
    };
    if bytes.len() > max {
        return Err(CodecError::TooLong { field, len: bytes.len(), max });
    }

    Ok(field)
}

/// In `frames.proto`.
const PUT_FIELD: usize = 10;
/// In `frames.proto`.
const REPORT_FIELD: usize = 20;

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// Cuts a text for people at [`REASON_LEN_MAX`].
fn cut(reason: &str) -> String {
    reason[..reason.floor_char_boundary(REASON_LEN_MAX)].to_owned()
}
