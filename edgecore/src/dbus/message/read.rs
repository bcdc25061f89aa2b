//! Values out of bytes, as far as they are in messages that matter here.

/// Bytes that are no message that is understood here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message bus sent what is no message")]
pub struct Malformed;

/// Reads values one after the other.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// From a place in `bytes`, which are aligned.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(super) fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Result<&[u8], Malformed> {
        let end = self.at.checked_add(count).ok_or(Malformed)?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed)?;
        self.at = end;

        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn number(&mut self) -> Result<u32, Malformed> {
        self.align(4);
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed)?;

        Ok(u32::from_le_bytes(bytes))
    }

    pub(super) fn large_number(&mut self) -> Result<u64, Malformed> {
        self.align(8);
        let bytes = self.take(8)?.try_into().map_err(|_| Malformed)?;

        Ok(u64::from_le_bytes(bytes))
    }

    fn string(&mut self, length: usize) -> Result<String, Malformed> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| Malformed)?.to_owned();
        if self.byte()? != 0 {
            return Err(Malformed);
        }

        Ok(text)
    }

    pub(super) fn text(&mut self) -> Result<String, Malformed> {
        let length = self.number()? as usize;

        self.string(length)
    }

    pub(super) fn signature(&mut self) -> Result<String, Malformed> {
        let length = self.byte()?.into();

        self.string(length)
    }
}
