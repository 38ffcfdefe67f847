//! A cursor over a file's bytes that cannot run past their end.

use genie_transport::memory::Region;

use super::GgufError;

pub(super) struct Reader<'a> {
    file: &'a Region,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a Region) -> Self {
        Self { file, at: 0 }
    }

    /// A second cursor at the same place.
    pub(super) fn fork(&self) -> Self {
        Self { file: self.file, at: self.at }
    }

    pub(super) fn position(&self) -> u64 {
        self.at as u64
    }

    /// A count that fits: `count` items of at least `least` bytes each are no more than what is left.
    pub(super) fn check_count(&self, count: u64, least: u64, what: &'static str) -> Result<usize, GgufError> {
        let left = (self.file.len() - self.at) as u64;
        match count.checked_mul(least) {
            Some(bytes) if bytes <= left => usize::try_from(count).map_err(|_| GgufError::Truncated(what)),
            _ => Err(GgufError::Truncated(what)),
        }
    }

    pub(super) fn bytes(&mut self, len: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let len = self.check_count(len, 1, what)?;
        let bytes = self.file.get(self.at..self.at + len).ok_or(GgufError::Truncated(what))?;
        self.at += len;
        Ok(bytes)
    }

    /// The same as a region of its own, without a copy.
    pub(super) fn region(&mut self, len: u64, what: &'static str) -> Result<Region, GgufError> {
        let start = self.at;
        self.bytes(len, what)?;
        self.file.slice(start..self.at).ok_or(GgufError::Truncated(what))
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        self.bytes(N as u64, what)?.try_into().map_err(|_| GgufError::Truncated(what))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(super) fn string(&mut self, what: &'static str) -> Result<&'a str, GgufError> {
        let len = self.u64(what)?;
        std::str::from_utf8(self.bytes(len, what)?).map_err(|_| GgufError::Utf8(what))
    }
}
