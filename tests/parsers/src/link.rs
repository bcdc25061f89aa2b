//! What the peer of a link sends.

use bytes::Bytes;
use proto::codec::{self, REPORT_BYTES_MAX};
use proto::object::OBJECT_BYTES_MAX;
use proto::renewal::Renewal;
use proto::wire::Frame;

use crate::Fed;

/// What one message may cost beside itself: the largest object, and zstd's context and window.
const LARGE_BYTES_MAX: usize = OBJECT_BYTES_MAX + 1024 * 1024;

/// What a message that is neither object nor report may cost: a list of empty entries.
const SMALL_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Decodes as a session does.
pub(crate) fn frame(bytes: &[u8]) -> Fed {
    let decoded = codec::decode(&Bytes::copy_from_slice(bytes));
    let allowed = match &decoded {
        Ok(Frame::Put { payload, .. }) => {
            drop(payload.unpack(OBJECT_BYTES_MAX));
            LARGE_BYTES_MAX
        }
        Ok(Frame::Report { payload, .. }) => {
            drop(payload.unpack(REPORT_BYTES_MAX));
            LARGE_BYTES_MAX
        }
        Ok(_) | Err(_) => SMALL_BYTES_MAX,
    };
    let fed = Fed::within(allowed);
    let Ok(frame) = decoded else { return fed };

    fed.and(move || {
        let again = codec::decode(&codec::encode(&frame)).expect("what was decoded can be encoded");
        assert_eq!(frame, again);
    })
}

/// The request of a node whose certificate has expired.
pub(crate) fn renewal(bytes: &[u8]) -> Fed {
    let fed = Fed::tree(bytes);
    let Some(renewal) = Renewal::decode(&Bytes::copy_from_slice(bytes)) else { return fed };

    fed.and(move || assert_eq!(Renewal::decode(&renewal.encode()), Some(renewal)))
}

/// Gives a frame the length that its envelope says, or most mutations end there.
pub fn mend(bytes: &[u8]) -> Vec<u8> {
    let Some((tag, body)) = bytes.split_at_checked(2) else { return bytes.to_vec() };
    // Fields above 15 have tags of two bytes.
    let tag = if tag[0] & 0x80 == 0 { &tag[..1] } else { tag };
    let mut mended = tag.to_vec();
    let mut len = body.len();
    while len >= 0x80 {
        mended.push(u8::try_from(len & 0x7f).expect("it is seven bits") | 0x80);
        len >>= 7;
    }
    mended.push(u8::try_from(len).expect("it is seven bits"));
    mended.extend(body);

    mended
}

/// The most entries that fit into a small frame.
pub fn most_entries() -> Vec<u8> {
    mend(&[[0x7a, 0].as_slice(), &[0x12, 0].repeat(32_000)].concat())
}
