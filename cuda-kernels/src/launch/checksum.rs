//! CRC32C (Castagnoli) of bytes in a GPU's memory.

use bytemuck::{Pod, Zeroable};
use genie_graph::DType;

use crate::kernel::{self, Launch};
use crate::view::{Check, LaunchError, View};

/// Bytes that one block takes.
const TILE: u64 = 64 << 10;
const THREADS: u32 = 256;
/// The polynomial, its bits reversed: x^32.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// x^0: the highest bit.
const ONE: u32 = 1 << 31;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Crc32cParams {
    at: u64,
    remainders: u64,
    bytes: u64,
    powers: [u32; 9],
    padding: u32,
}

/// How many remainders [`crc32c`] gives for so many bytes.
pub const fn remainders_of(bytes: u64) -> u64 {
    bytes.div_ceil(TILE)
}

/// The remainders of x, u8, of which [`Crc32c::add`] makes a checksum, into `remainders`, i32: [`remainders_of`] of them.
///
/// # Errors
/// [`LaunchError`].
pub fn crc32c(x: View, remainders: View) -> Result<Option<Launch>, LaunchError> {
    let check = Check("crc32c");
    if x.dtype != DType::U8 {
        return Err(check.wrong_type("x", x.dtype));
    }
    if remainders.dtype != DType::I32 {
        return Err(check.wrong_type("the remainders", remainders.dtype));
    }
    let tiles = remainders_of(x.elements);
    check.tensor("the remainders", remainders, tiles)?;
    if x.elements == 0 {
        return Ok(None);
    }
    let grid = u32::try_from(tiles).ok().filter(|&tiles| tiles <= i32::MAX as u32);
    check.size("x's bytes", x.elements, grid.is_some(), "at most 2^31 tiles of 64 KiB")?;
    let mut powers = [POLYNOMIAL; 9];
    for i in 1..powers.len() {
        powers[i] = times(powers[i - 1], powers[i - 1]);
    }
    let params = Crc32cParams { at: x.at, remainders: remainders.at, bytes: x.elements, powers, padding: 0 };
    Ok(Some(Launch::new(&kernel::CRC32C, [grid.unwrap_or_default(), 1, 1], [THREADS, 1, 1], 0, &params)))
}

/// A checksum from the remainders of pieces, one after another.
#[derive(Clone, Copy, Debug)]
pub struct Crc32c(u32);

impl Crc32c {
    /// Of no bytes so far.
    #[expect(clippy::new_without_default, reason = "nobody wants one by default")]
    pub const fn new() -> Self {
        Self(!0)
    }

    /// The next piece: so many bytes, and what [`crc32c`] gave for them.
    pub fn add(&mut self, bytes: u64, remainders: &[u32]) {
        let tile = power(TILE);
        let piece = remainders.iter().fold(0, |sum, remainder| times(sum, tile) ^ remainder);
        self.0 = times(self.0, power(bytes)) ^ piece;
    }

    /// Of all the pieces so far.
    pub const fn value(self) -> u32 {
        !self.0
    }
}

/// The product of two remainders.
fn times(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    for i in (0..32).rev() {
        product ^= b & 0_u32.wrapping_sub(a >> i & 1);
        b = b >> 1 ^ (POLYNOMIAL & 0_u32.wrapping_sub(b & 1));
    }
    product
}

/// x to the power of the bits of so many bytes.
fn power(bytes: u64) -> u32 {
    // x^8.
    let (mut result, mut square, mut left) = (ONE, ONE >> 8, bytes);
    while left > 0 {
        if left & 1 == 1 {
            result = times(result, square);
        }
        square = times(square, square);
        left >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bit at a time.
    fn bit_by_bit(bytes: &[u8], mut register: u32) -> u32 {
        for &byte in bytes {
            register ^= u32::from(byte);
            for _ in 0..8 {
                register = register >> 1 ^ (POLYNOMIAL & 0_u32.wrapping_sub(register & 1));
            }
        }
        register
    }

    #[test]
    fn pieces_are_put_together() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for cuts in [vec![9], vec![1, 65_536, 7], vec![70_000, 3, 130_000 - 3]] {
            let (mut crc, mut at) = (Crc32c::new(), 0);
            for len in cuts {
                let piece = &bytes[at..at + len];
                at += len;
                // Zeros are in front of the first tile.
                let first = len % TILE as usize;
                let (head, rest) = piece.split_at(first);
                let head = (!head.is_empty()).then_some(head);
                let tiles: Vec<u32> =
                    head.into_iter().chain(rest.chunks(TILE as usize)).map(|tile| bit_by_bit(tile, 0)).collect();
                assert_eq!(tiles.len() as u64, remainders_of(len as u64));
                crc.add(len as u64, &tiles);
            }
            assert_eq!(crc.value(), !bit_by_bit(&bytes[..at], !0));
        }
        // RFC 3720, appendix B.4.
        let mut crc = Crc32c::new();
        crc.add(32, &[0]);
        assert_eq!(crc.value(), 0x8a91_36aa);
    }
}
