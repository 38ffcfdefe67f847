//! The frames of an RDMA bulk lane: who may reach which memory, and until when.
//!
//! The bytes of tensors never travel in them. A put's slice: the server sends [`OneSided::Grant`], the client writes the bytes into
//! the pieces and the slice's head into the window's place, with an immediate. A get's slice: the server sends
//! [`OneSided::Readable`], the client reads the pieces and sends [`OneSided::Release`]. A right ends with the immediate, or with
//! the release, whatever the client does later.

use zerocopy::IntoBytes;

use super::error::DecodeError;
use super::header::{Flags, Header, Kind};
use super::slice::SliceHead;
use super::{layout, limits};

/// Slices of one direction that may be granted on a lane at a time, at the most.
pub const WINDOWS: u32 = 64;

/// Pieces of memory that one slice may lie in, at the most.
pub const PIECES: usize = 8;

/// Where the heads of written slices go: window `i`'s at `64 * i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// In the server's memory.
    pub address: u64,
    /// The right to write there.
    pub rkey: u32,
    /// Windows, 1 to [`WINDOWS`].
    pub count: u32,
}

/// Memory of the server that the client may reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// First byte.
    pub address: u64,
    /// The right to it, and to nothing beyond it.
    pub rkey: u32,
    /// Bytes, at least 1.
    pub len: u32,
}

/// The pieces of one slice, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    all: [Piece; PIECES],
    count: usize,
}

impl Pieces {
    /// Adds one; whether there was room.
    pub fn push(&mut self, piece: Piece) -> bool {
        let Some(place) = self.all.get_mut(self.count) else { return false };
        *place = piece;
        self.count += 1;
        true
    }

    /// All of them.
    pub fn as_slice(&self) -> &[Piece] {
        self.all.get(..self.count).unwrap_or_default()
    }
}

/// A frame of the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OneSided {
    /// The server's first frame after the welcome.
    Heads(Heads),
    /// The client may write this slice.
    Grant {
        /// Of this transfer.
        transfer: u64,
        /// First byte within the transfer.
        offset: u64,
        /// Bytes of the whole transfer.
        total: u64,
        /// Bytes of the slice.
        len: u32,
        /// Names the grant in the immediate.
        window: u8,
        /// Where to.
        pieces: Pieces,
    },
    /// The grant of this window is not wanted any more: the client releases it, unless it has written by then.
    Recall(u8),
    /// The client may read this slice.
    Readable {
        /// The slice, with its checksum.
        head: SliceHead,
        /// Names it in the release.
        window: u8,
        /// Where from.
        pieces: Pieces,
    },
    /// The client will not write (`false`) or has read (`true`) the slice of this window.
    Release {
        /// The window.
        window: u8,
        /// Of [`Self::Readable`], or else of [`Self::Grant`].
        read: bool,
    },
}

impl OneSided {
    /// Checks a frame's metadata. There is no payload.
    ///
    /// # Errors
    /// [`DecodeError`]: the lane cannot be trusted any further.
    pub fn decode(header: &Header, meta: &[u8]) -> Result<Self, DecodeError> {
        let kind = header.kind.map_err(DecodeError::Kind)?;
        if header.payload_len != 0 {
            return Err(DecodeError::Trailing(header.payload_len as usize));
        }
        if header.flags != Flags::default() {
            return Err(DecodeError::Reserved("flags"));
        }
        Ok(match kind {
            Kind::Heads => {
                let raw = layout::whole::<layout::Heads>(meta)?;
                let (address, rkey, count) = (raw.address.get(), raw.rkey.get(), raw.count.get());
                if !(1..=WINDOWS).contains(&count) {
                    return Err(DecodeError::Range("more windows than a lane may have, or none"));
                }
                address.checked_add(u64::from(count) * 64).ok_or(DecodeError::Overflow("heads"))?;
                Self::Heads(Heads { address, rkey, count })
            }
            Kind::Grant => {
                let (raw, rest) = layout::take::<layout::Grant>(meta)?;
                layout::zero(&raw.zero, "grant")?;
                let (offset, total, len) = (raw.offset.get(), raw.total.get(), raw.len.get());
                within(offset, total, len)?;
                let pieces = pieces(rest, raw.pieces, len)?;
                Self::Grant { transfer: header.id, offset, total, len, window: window(raw.window)?, pieces }
            }
            Kind::Readable => {
                let (raw, rest) = layout::take::<layout::Readable>(meta)?;
                layout::zero(&raw.zero, "readable")?;
                let (offset, total, len, crc) = (raw.offset.get(), raw.total.get(), raw.len.get(), raw.crc.get());
                within(offset, total, len)?;
                let pieces = pieces(rest, raw.pieces, len)?;
                let head = SliceHead { transfer: header.id, offset, total, len, crc };
                Self::Readable { head, window: window(raw.window)?, pieces }
            }
            Kind::Recall | Kind::Release => {
                let raw = layout::whole::<layout::WindowField>(meta)?;
                layout::zero(&raw.zero, "window")?;
                match (kind, raw.way) {
                    (Kind::Recall, 0) => Self::Recall(window(raw.window)?),
                    (Kind::Release, way @ (0 | 1)) => Self::Release { window: window(raw.window)?, read: way == 1 },
                    _ => return Err(DecodeError::Range("a window of neither direction")),
                }
            }
            kind => return Err(DecodeError::Misplaced(kind as u8)),
        })
    }

    /// Kind and id of the frame; its metadata is appended to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) -> (Kind, u64) {
        let field = |window, read| layout::WindowField { window, way: u8::from(read), zero: [0; 2] };
        match *self {
            Self::Heads(Heads { address, rkey, count }) => {
                let raw = layout::Heads { address: address.into(), rkey: rkey.into(), count: count.into() };
                out.extend_from_slice(raw.as_bytes());
                (Kind::Heads, 0)
            }
            Self::Grant { transfer, offset, total, len, window, pieces } => {
                let raw = layout::Grant {
                    offset: offset.into(),
                    total: total.into(),
                    len: len.into(),
                    window,
                    pieces: pieces.count as u8,
                    zero: [0; 2],
                };
                out.extend_from_slice(raw.as_bytes());
                write_pieces(&pieces, out);
                (Kind::Grant, transfer)
            }
            Self::Readable { head, window, pieces } => {
                let raw = layout::Readable {
                    offset: head.offset.into(),
                    total: head.total.into(),
                    len: head.len.into(),
                    crc: head.crc.into(),
                    window,
                    pieces: pieces.count as u8,
                    zero: [0; 6],
                };
                out.extend_from_slice(raw.as_bytes());
                write_pieces(&pieces, out);
                (Kind::Readable, head.transfer)
            }
            Self::Recall(window) => {
                out.extend_from_slice(field(window, false).as_bytes());
                (Kind::Recall, 0)
            }
            Self::Release { window, read } => {
                out.extend_from_slice(field(window, read).as_bytes());
                (Kind::Release, 0)
            }
        }
    }
}

fn write_pieces(pieces: &Pieces, out: &mut Vec<u8>) {
    for piece in pieces.as_slice() {
        let raw = layout::PieceField { address: piece.address.into(), rkey: piece.rkey.into(), len: piece.len.into() };
        out.extend_from_slice(raw.as_bytes());
    }
}

fn window(raw: u8) -> Result<u8, DecodeError> {
    if u32::from(raw) < WINDOWS { Ok(raw) } else { Err(DecodeError::Range("a window that a lane cannot have")) }
}

fn within(offset: u64, total: u64, len: u32) -> Result<(), DecodeError> {
    let end = offset.checked_add(u64::from(len)).ok_or(DecodeError::Overflow("slice offset and length"))?;
    if len == 0 || len > limits::SLICE_BYTES || end > total || total > limits::TENSOR_BYTES {
        return Err(DecodeError::Range("a slice lies outside its tensor"));
    }
    Ok(())
}

fn pieces(mut rest: &[u8], count: u8, len: u32) -> Result<Pieces, DecodeError> {
    let mut pieces = Pieces::default();
    let mut sum = 0u32;
    for _ in 0..count {
        let (raw, after) = layout::take::<layout::PieceField>(rest)?;
        rest = after;
        let piece = Piece { address: raw.address.get(), rkey: raw.rkey.get(), len: raw.len.get() };
        piece.address.checked_add(u64::from(piece.len)).ok_or(DecodeError::Overflow("piece"))?;
        sum = sum.checked_add(piece.len).ok_or(DecodeError::Overflow("pieces"))?;
        if piece.len == 0 || !pieces.push(piece) {
            return Err(DecodeError::Range("a slice in more pieces than it may have, or an empty one"));
        }
    }
    if !rest.is_empty() {
        return Err(DecodeError::Trailing(rest.len()));
    }
    if sum != len {
        return Err(DecodeError::Range("the pieces of a slice are not as long as the slice"));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{body_crc, decode_header, encode_header};

    fn frame(message: &OneSided) -> (Header, Vec<u8>) {
        let mut meta = Vec::new();
        let (kind, id) = message.encode(&mut meta);
        let bytes = encode_header(kind, Flags::default(), id, meta.len() as u32, 0, body_crc(&meta, &[]));
        (decode_header(&bytes, 0).expect("a header"), meta)
    }

    fn samples() -> Vec<OneSided> {
        let mut pieces = Pieces::default();
        assert!(pieces.push(Piece { address: 4096, rkey: 7, len: 60 }));
        assert!(pieces.push(Piece { address: 1 << 40, rkey: 8, len: 4 }));
        let head = SliceHead { transfer: 9, offset: 64, total: 128, len: 64, crc: 0xdead_beef };
        vec![
            OneSided::Heads(Heads { address: 1 << 47, rkey: 3, count: 64 }),
            OneSided::Grant { transfer: 9, offset: 64, total: 128, len: 64, window: 63, pieces },
            OneSided::Recall(2),
            OneSided::Readable { head, window: 0, pieces },
            OneSided::Release { window: 5, read: true },
            OneSided::Release { window: 5, read: false },
        ]
    }

    #[test]
    fn frames_come_back_as_they_were() {
        for message in samples() {
            let (header, meta) = frame(&message);
            assert_eq!(OneSided::decode(&header, &meta), Ok(message));
            for n in 0..meta.len() {
                assert!(OneSided::decode(&header, &meta[..n]).is_err(), "{message:?} cut to {n}");
            }
        }
    }

    #[test]
    fn numbers_outside_their_limits_are_refused() {
        let mut one = Pieces::default();
        one.push(Piece { address: 0, rkey: 0, len: 64 });
        let mut wraps = Pieces::default();
        wraps.push(Piece { address: u64::MAX - 10, rkey: 0, len: 64 });
        let grant =
            |offset, total, len, window, pieces| OneSided::Grant { transfer: 1, offset, total, len, window, pieces };
        let bad = [
            OneSided::Heads(Heads { address: 0, rkey: 0, count: 0 }),
            OneSided::Heads(Heads { address: 0, rkey: 0, count: WINDOWS + 1 }),
            OneSided::Heads(Heads { address: u64::MAX - 63, rkey: 0, count: 1 }),
            grant(0, 64, 64, WINDOWS as u8, one),
            grant(1, 64, 64, 0, one),
            grant(u64::MAX, 64, 64, 0, one),
            grant(0, limits::TENSOR_BYTES + 1, 64, 0, one),
            grant(0, 64, 63, 0, one),
            grant(0, 64, 64, 0, wraps),
            grant(0, 64, 64, 0, Pieces::default()),
            OneSided::Recall(255),
        ];
        for message in bad {
            let (header, meta) = frame(&message);
            assert!(OneSided::decode(&header, &meta).is_err(), "{message:?}");
        }
    }
}
