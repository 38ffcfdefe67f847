//! CRC32C with ordinary instructions alone, for processors that make the special ones of slow parts (emulated ones do).
//!
//! A word of a message adds to the remainder what later words would have added, if these had its bits at other places: the
//! generator divides `1 + x^-65 + x^-155 + x^-170 + x^-195 + x^-209`, its sparsest multiple of less than 5,275 bits. So each word in
//! turn is struck out, and its bits are added to those that lie so far behind: no product, no table, and no look at memory but one for
//! the word itself. The last four words then stand for all of the message, and go through tables.

use crc::{CRC_32_ISCSI, Crc, Table};

/// Sixteen tables: 16 KiB.
static TABLES: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// Words that a message's bits are carried on over.
const REACH: usize = 4;

/// From so many words on it pays.
const LEAST: usize = 2 * REACH;

/// The register after these bytes, from what it was before: not inverted.
pub(super) fn update(register: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    let Some((body, tail)) = words.split_last_chunk::<REACH>().filter(|_| words.len() >= LEAST) else {
        return through_tables(register, bytes);
    };
    let mut before = [0; REACH];
    let mut register = u64::from(register);
    // Four at a time, so that what was before stays where it is in registers.
    let (fours, few) = body.as_chunks::<4>();
    for [a, b, c, d] in fours {
        let [h, i, j, _] = before;
        let a = u64::from_le_bytes(*a) ^ register ^ carried(before);
        let b = u64::from_le_bytes(*b) ^ carried([a, h, i, j]);
        let c = u64::from_le_bytes(*c) ^ carried([b, a, h, i]);
        let d = u64::from_le_bytes(*d) ^ carried([c, b, a, h]);
        (before, register) = ([d, c, b, a], 0);
    }
    for word in few {
        let word = u64::from_le_bytes(*word) ^ register ^ carried(before);
        (before, register) = (shifted(word, before), 0);
    }
    let mut last = [0; REACH * 8 + 7];
    for (word, to) in tail.iter().zip(last.as_chunks_mut().0) {
        *to = (u64::from_le_bytes(*word) ^ carried(before)).to_le_bytes();
        before = shifted(0, before);
    }
    let end = REACH * 8 + rest.len();
    last[REACH * 8..end].copy_from_slice(rest);
    through_tables(0, &last[..end])
}

/// What the words before add to the next one; the last one first. Bits that come later are higher ones.
#[inline(always)]
fn carried([a, b, c, d]: [u64; REACH]) -> u64 {
    let by_65 = a << 1 ^ b >> 63;
    let by_155 = b << 27 ^ c >> 37;
    let by_170 = b << 42 ^ c >> 22;
    let by_195 = c << 3 ^ d >> 61;
    let by_209 = c << 17 ^ d >> 47;
    by_65 ^ by_155 ^ by_170 ^ by_195 ^ by_209
}

#[inline(always)]
fn shifted(next: u64, [a, b, c, _]: [u64; REACH]) -> [u64; REACH] {
    [next, a, b, c]
}

fn through_tables(register: u32, bytes: &[u8]) -> u32 {
    let mut digest = TABLES.digest_with_initial(register.reverse_bits());
    digest.update(bytes);
    !digest.finalize()
}
