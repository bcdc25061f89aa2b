//! JSON on the wire, compressed where that pays, never decompressed beyond what was announced.

use bytes::Bytes;

/// Shorter texts are sent as they are: zstd gains little below and costs a context.
const COMPRESS_ABOVE_BYTES: usize = 1024;

/// 2^17 = 128 KiB, so that an edge never needs a larger window to read.
const WINDOW_LOG: u32 = 17;

/// Fast and close to the best for JSON of a few KiB.
const LEVEL: i32 = 3;

/// How the bytes are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they are.
    None,
    /// One zstd frame.
    Zstd,
}

/// Encoded bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// How.
    pub encoding: Encoding,
    /// Length once decoded.
    pub raw_len: u32,
    /// Encoded bytes.
    pub bytes: Bytes,
}

/// Why a payload cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// More is announced than allowed.
    #[error("a payload of {len} bytes is announced, at most {max} are allowed")]
    TooLarge {
        /// Announced.
        len: usize,
        /// Allowed.
        max: usize,
    },
    /// What came is not what was announced.
    #[error("a payload of {found} bytes came where {announced} were announced")]
    WrongLength {
        /// In `raw_len`.
        announced: usize,
        /// After decoding.
        found: usize,
    },
    /// zstd cannot read it.
    #[error("cannot decompress a payload of {len} bytes")]
    Decompress {
        /// Compressed length.
        len: usize,
        /// zstd's word.
        #[source]
        source: std::io::Error,
    },
}

impl Payload {
    /// Encodes `raw`, compressed if that makes it shorter.
    pub fn pack(raw: &Bytes) -> Self {
        let raw_len = u32::try_from(raw.len()).expect("objects and reports are bounded far lower");
        if raw.len() > COMPRESS_ABOVE_BYTES
            && let Ok(packed) = compress(raw)
            && packed.len() < raw.len()
        {
            return Self { encoding: Encoding::Zstd, raw_len, bytes: packed.into() };
        }

        Self { encoding: Encoding::None, raw_len, bytes: raw.clone() }
    }

    /// Decodes; never allocates more than `max` bytes for the result.
    pub fn unpack(&self, max: usize) -> Result<Bytes, PayloadError> {
        let announced = self.raw_len as usize;
        if announced > max {
            return Err(PayloadError::TooLarge { len: announced, max });
        }
        let raw = match self.encoding {
            Encoding::None => self.bytes.clone(),
            Encoding::Zstd => zstd::bulk::decompress(&self.bytes, announced)
                .map_err(|source| PayloadError::Decompress { len: self.bytes.len(), source })?
                .into(),
        };
        if raw.len() != announced {
            return Err(PayloadError::WrongLength { announced, found: raw.len() });
        }

        Ok(raw)
    }
}

fn compress(raw: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    compressor.set_parameter(zstd::zstd_safe::CParameter::WindowLog(WINDOW_LOG))?;

    compressor.compress(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repeated(len: usize) -> Bytes {
        Bytes::from(b"{\"status\":true}".repeat(len / 15 + 1)).slice(..len)
    }

    #[test]
    fn what_is_packed_can_be_unpacked() {
        for (len, encoding) in [
            (0, Encoding::None),
            (COMPRESS_ABOVE_BYTES, Encoding::None),
            (COMPRESS_ABOVE_BYTES + 1, Encoding::Zstd),
            (1 << 20, Encoding::Zstd),
        ] {
            let raw = repeated(len);
            let payload = Payload::pack(&raw);
            assert_eq!(payload.encoding, encoding, "{len}");
            assert_eq!(payload.unpack(1 << 20).unwrap(), raw, "{len}");
        }
    }

    #[test]
    fn lies_about_the_length_are_found() {
        let honest = Payload::pack(&repeated(4096));
        for (raw_len, message) in [
            (1 << 30, "a payload of 1073741824 bytes is announced, at most 65536 are allowed"),
            (5000, "a payload of 4096 bytes came where 5000 were announced"),
            (4000, "cannot decompress a payload of"),
        ] {
            let lie = Payload { raw_len, ..honest.clone() };
            let found = lie.unpack(1 << 16).unwrap_err().to_string();
            assert!(found.starts_with(message), "{found}");
        }
    }
}
