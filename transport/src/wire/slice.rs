//! The head of a slice: the one message of the bulk lanes.

use zerocopy::IntoBytes;

use super::error::DecodeError;
use super::header::{Flags, HEADER_BYTES, Header, Kind, decode_header, encode_header};
use super::{layout, limits};
use crate::memory::{Crc32c, crc32c, crc32c_of_both};

/// Bytes in front of a slice's payload: header and slice head.
pub const SLICE_FRAME_BYTES: usize = HEADER_BYTES + size_of::<layout::Slice>();

/// The slice size for a transfer of `total` bytes: the one that the server `prefers`, unless that makes too many slices.
pub fn slice_bytes_for(total: u64, prefers: u32) -> u32 {
    let least = total.div_ceil(limits::SLICES).next_multiple_of(4096).min(u64::from(limits::SLICE_BYTES));
    prefers.max(least as u32)
}

/// Where a slice belongs. Its payload is `len` bytes of tensor, and `crc` is CRC32C over the slice head and them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceHead {
    /// The transfer: the id of the put or get that it serves.
    pub transfer: u64,
    /// First byte within the transfer.
    pub offset: u64,
    /// Bytes of the whole transfer.
    pub total: u64,
    /// Bytes of this slice, at least 1.
    pub len: u32,
    /// Checksum as sent; 0 where both sides do without.
    pub crc: u32,
}

impl SliceHead {
    /// Checks a slice's header and head: it lies within its transfer, and nothing overflows.
    ///
    /// # Errors
    /// [`DecodeError`]: the lane cannot be trusted any further.
    pub fn decode(bytes: &[u8; SLICE_FRAME_BYTES]) -> Result<Self, DecodeError> {
        let (head, meta) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(DecodeError::Truncated)?;
        Self::from_parts(&decode_header(head, limits::SLICE_BYTES)?, meta)
    }

    pub(super) fn from_parts(header: &Header, meta: &[u8]) -> Result<Self, DecodeError> {
        match header.kind {
            Ok(Kind::Slice) if header.flags == Flags::default() => {}
            Ok(kind) => return Err(DecodeError::Misplaced(kind as u8)),
            Err(code) => return Err(DecodeError::Kind(code)),
        }
        if header.meta_len as usize != meta.len() {
            return Err(DecodeError::Truncated);
        }
        let raw = layout::whole::<layout::Slice>(meta)?;
        layout::zero(&raw.zero, "slice")?;
        let (found, expected) = (raw.head_crc.get(), head(raw.offset.get(), raw.total.get()).head_crc.get());
        if found != expected {
            return Err(DecodeError::HeaderChecksum { found, expected });
        }
        let (offset, total, len) = (raw.offset.get(), raw.total.get(), header.payload_len);
        let end = offset.checked_add(u64::from(len)).ok_or(DecodeError::Overflow("slice offset and length"))?;
        if len == 0 || end > total || total > limits::TENSOR_BYTES {
            return Err(DecodeError::Range("a slice lies outside its tensor"));
        }
        Ok(Self { transfer: header.id, offset, total, len, crc: header.body_crc })
    }

    /// The bytes in front of `payload`, checksum included.
    pub fn encode(transfer: u64, offset: u64, total: u64, payload: &[u8]) -> [u8; SLICE_FRAME_BYTES] {
        Self::encode_pieces(transfer, offset, total, std::iter::once(payload))
    }

    /// The bytes in front of a payload of `len` bytes whose checksum neither side wants.
    pub fn encode_unchecked(transfer: u64, offset: u64, total: u64, len: u32) -> [u8; SLICE_FRAME_BYTES] {
        frame(transfer, &head(offset, total), len, 0)
    }

    /// The bytes in front of a payload that lies in several pieces, checksum included.
    pub fn encode_pieces<'a>(
        transfer: u64,
        offset: u64,
        total: u64,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> [u8; SLICE_FRAME_BYTES] {
        let meta = head(offset, total);
        let mut digest = Crc32c::new();
        digest.update(meta.as_bytes());
        let mut len = 0;
        for piece in pieces {
            digest.update(piece);
            len += piece.len() as u32;
        }
        frame(transfer, &meta, len, digest.value())
    }

    /// As [`Self::encode`], for a payload of `len` bytes that lies elsewhere: `crc` is CRC32C of it alone.
    pub fn encode_summed(transfer: u64, offset: u64, total: u64, len: u32, crc: u32) -> [u8; SLICE_FRAME_BYTES] {
        let meta = head(offset, total);
        let of_meta = crc32c(meta.as_bytes(), &[]);
        frame(transfer, &meta, len, crc32c_of_both(of_meta, crc, len.into()))
    }

    /// Whether this is the head of a payload whose CRC32C, of it alone, is `crc`.
    pub fn is_of(&self, crc: u32) -> bool {
        let of_meta = crc32c(head(self.offset, self.total).as_bytes(), &[]);
        crc32c_of_both(of_meta, crc, self.len.into()) == self.crc
    }

    /// A running check of the payload's bytes.
    pub fn checker(&self) -> SliceChecker {
        let meta = head(self.offset, self.total);
        let mut digest = Crc32c::new();
        digest.update(meta.as_bytes());
        SliceChecker { digest, expected: self.crc }
    }
}

fn frame(transfer: u64, meta: &layout::Slice, len: u32, crc: u32) -> [u8; SLICE_FRAME_BYTES] {
    let meta_len = size_of::<layout::Slice>() as u32;
    let header = encode_header(Kind::Slice, Flags::default(), transfer, meta_len, len, crc);
    let mut bytes = [0; SLICE_FRAME_BYTES];
    bytes[..HEADER_BYTES].copy_from_slice(&header);
    bytes[HEADER_BYTES..].copy_from_slice(meta.as_bytes());
    bytes
}

/// A slice's head with its checksum. Without one, a corrupted offset would claim the place of another slice: that one would be
/// asked for again, and the one that was sent would be missed by nobody.
fn head(offset: u64, total: u64) -> layout::Slice {
    let mut head = layout::Slice { offset: offset.into(), total: total.into(), head_crc: 0.into(), zero: 0.into() };
    let covered = std::mem::offset_of!(layout::Slice, head_crc);
    head.head_crc = super::header::body_crc(&head.as_bytes()[..covered], &[]).into();
    head
}

/// Checks a slice's payload piece by piece.
#[derive(Debug)]
pub struct SliceChecker {
    digest: Crc32c,
    expected: u32,
}

impl SliceChecker {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    /// Whether all the bytes so far have the checksum that was sent.
    pub fn matches(self) -> bool {
        self.digest.value() == self.expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_lies_elsewhere_has_the_head_of_one_that_is_here() {
        for len in [1, 5, 100, 4096, 70_001] {
            let payload: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let crc = crc32c(&payload, &[]);
            let bytes = SliceHead::encode(3, 8192, 1 << 20, &payload);
            assert_eq!(SliceHead::encode_summed(3, 8192, 1 << 20, len, crc), bytes);
            let head = SliceHead::decode(&bytes).unwrap();
            assert!(head.is_of(crc) && !head.is_of(crc ^ 1));
        }
    }

    #[test]
    fn a_large_transfer_goes_in_larger_slices() {
        for (total, size) in [
            (1, 1 << 18),
            (1 << 36, 1 << 18),
            ((1 << 36) + 1, (1 << 18) + 4096),
            (1 << 40, 4 << 20),
            (u64::MAX - (1 << 20), 4 << 20),
        ] {
            assert_eq!(slice_bytes_for(total, 1 << 18), size, "{total}");
        }
    }
}
