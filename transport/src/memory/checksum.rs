//! CRC32C (Castagnoli, RFC 3720 appendix B.4), made in the way that is fastest here.
//!
//! Nearly everywhere that is by the processor's instructions for it. Where these are emulated they take fifteen times as long as
//! shifts and exclusive ors ([`words`]); no flag of the processor tells, so that it is measured, once in a process's life.

mod words;

use std::hint::black_box;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crc_fast::{CrcAlgorithm, Digest};

/// Up to so many bytes the processor's own instruction is the fastest; above, several streams of it, or wider ones, are.
#[cfg(target_arch = "x86_64")]
const SMALL: usize = 256;

/// How checksums are made here: one of the following, once that is known.
static WAY: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
/// By `crc_fast`, which chooses by the processor's flags; small ones by the instruction. Never without SSE4.2.
#[cfg(target_arch = "x86_64")]
const INSTRUCTION: u8 = 1;
/// By `crc_fast`, whatever the size.
const FAST: u8 = 2;
const WORDS: u8 = 3;

/// CRC32C of some bytes and those that follow them.
pub fn crc32c(first: &[u8], then: &[u8]) -> u32 {
    let way = way();
    #[cfg(target_arch = "x86_64")]
    if way == INSTRUCTION && first.len() + then.len() <= SMALL {
        // SAFETY: the processor has the instructions, or this would not be the way.
        return unsafe { small(first, then) };
    }
    if way == WORDS {
        return !words::update(words::update(!0, first), then);
    }
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(first);
    digest.update(then);
    digest.finalize() as u32
}

/// CRC32C of some bytes and the `then_len` that follow them, from that of each.
pub fn crc32c_of_both(first: u32, then: u32, then_len: u64) -> u32 {
    crc_fast::checksum_combine(CrcAlgorithm::Crc32Iscsi, first.into(), then.into(), then_len) as u32
}

/// CRC32C of a header's words, as they lie in memory in little-endian order: what is about to be written is not read back first.
pub fn crc32c_words(words: [u64; 3], last: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if way() == INSTRUCTION {
        // SAFETY: the processor has the instructions, or this would not be the way.
        return unsafe { few(words, last) };
    }
    let mut bytes = [0; 28];
    let (front, back) = bytes.split_at_mut(24);
    for (to, word) in front.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    back.copy_from_slice(&last.to_le_bytes());
    crc32c(&bytes, &[])
}

/// CRC32C of bytes that come piece by piece.
#[derive(Clone, Debug)]
pub struct Crc32c(State);

#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "it lives on the stack while one slice is gone through; a box would be allocated for each"
)]
enum State {
    Fast(Digest),
    /// The register.
    Words(u32),
}

impl Crc32c {
    /// Of no bytes so far.
    #[expect(clippy::new_without_default, reason = "nobody wants one by default")]
    pub fn new() -> Self {
        Self(match way() {
            WORDS => State::Words(!0),
            _ => State::Fast(Digest::new(CrcAlgorithm::Crc32Iscsi)),
        })
    }

    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Fast(digest) => digest.update(bytes),
            State::Words(register) => *register = words::update(*register, bytes),
        }
    }

    /// Of all the bytes so far.
    pub fn value(&self) -> u32 {
        match &self.0 {
            State::Fast(digest) => digest.finalize() as u32,
            State::Words(register) => !register,
        }
    }
}

/// Which of the ways it is.
#[inline]
fn way() -> u8 {
    match WAY.load(Ordering::Relaxed) {
        UNKNOWN => choose(),
        known => known,
    }
}

/// What is measured: as many bytes, the best of as many tries, of which some may be disturbed. Together that takes microseconds.
const SAMPLE: usize = 4096;
const TRIES: usize = 7;

#[cold]
fn choose() -> u8 {
    let sample: [u8; SAMPLE] = std::array::from_fn(|i| (i * 131) as u8);
    let best = |make: fn(&[u8]) -> u32| {
        let one = |_| {
            let began = Instant::now();
            black_box(make(black_box(&sample)));
            began.elapsed()
        };
        (0..TRIES).map(one).min().unwrap_or_default()
    };
    let fast = best(|bytes| crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32);
    let way = preferred(fast, best(|bytes| words::update(!0, bytes)));
    tracing::debug!(?fast, way, "how checksums are made was chosen");
    WAY.store(way, Ordering::Relaxed);
    way
}

/// Words alone only where they are clearly faster: a measurement that was disturbed does not take the instructions away.
fn preferred(fast: Duration, words: Duration) -> u8 {
    if fast > words + words / 2 {
        return WORDS;
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        return INSTRUCTION;
    }
    FAST
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn few([a, b, c]: [u64; 3], last: u32) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u32, _mm_crc32_u64};
    let crc = _mm_crc32_u64(_mm_crc32_u64(_mm_crc32_u64(u64::from(!0u32), a), b), c);
    !_mm_crc32_u32(crc as u32, last)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn small(first: &[u8], then: &[u8]) -> u32 {
    !more(more(!0, first), then)
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse4.2")]
fn more(crc: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u32, _mm_crc32_u64};
    let (words, mut rest) = bytes.as_chunks::<8>();
    let wide = words.iter().fold(u64::from(crc), |crc, word| _mm_crc32_u64(crc, u64::from_le_bytes(*word)));
    let mut crc = wide as u32;
    if let Some((half, last)) = rest.split_first_chunk::<4>() {
        crc = _mm_crc32_u32(crc, u32::from_le_bytes(*half));
        rest = last;
    }
    rest.iter().fold(crc, |crc, byte| _mm_crc32_u8(crc, *byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: u32) -> Vec<u8> {
        (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    #[test]
    fn the_known_answer() {
        assert_eq!(crc32c(b"123456789", &[]), 0xe306_9283);
        assert_eq!(crc32c(b"1234", b"56789"), 0xe306_9283);
        assert_eq!(crc32c(&[], &[]), 0);
        assert_eq!(!words::update(!0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn words_are_their_bytes() {
        let words = [0x0123_4567_89ab_cdef, u64::MAX, 7];
        let bytes: Vec<u8> =
            words.iter().flat_map(|word: &u64| word.to_le_bytes()).chain(9_u32.to_le_bytes()).collect();
        assert_eq!(crc32c_words(words, 9), crc32c(&bytes, &[]));
    }

    /// Whatever way it is made, and however the bytes are cut.
    #[test]
    fn every_way_agrees() {
        let bytes = bytes(5000);
        for len in (0..=5000).filter(|len| *len < 300 || len % 137 == 0) {
            let whole = crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, &bytes[..len]) as u32;
            for cut in [0, 1, 3, 4, 7, 8, 28, 63, 64, 65, len / 2, len] {
                let (first, then) = bytes[..len].split_at(cut.min(len));
                assert_eq!(crc32c(first, then), whole, "{len} bytes, cut at {cut}");
                assert_eq!(!words::update(words::update(!0, first), then), whole, "{len} bytes, cut at {cut}");
                let fast = Crc32c(State::Fast(Digest::new(CrcAlgorithm::Crc32Iscsi)));
                for mut digest in [fast, Crc32c(State::Words(!0)), Crc32c::new()] {
                    digest.update(first);
                    digest.update(then);
                    assert_eq!(digest.value(), whole, "{len} bytes, cut at {cut}: {digest:?}");
                }
                #[cfg(target_arch = "x86_64")]
                if std::arch::is_x86_feature_detected!("sse4.2") {
                    // SAFETY: as was just asked.
                    assert_eq!(unsafe { small(first, then) }, whole, "{len} bytes, cut at {cut}");
                }
            }
        }
    }

    /// Any register may be what is gone on from, and every bit counts.
    #[test]
    fn words_carry_every_bit() {
        let mut bytes = bytes(8 * 24 + 5);
        let whole = words::update(!0, &bytes);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
            digest.update(&bytes);
            assert_eq!(!words::update(!0, &bytes), digest.finalize() as u32, "bit {bit}");
            assert_ne!(words::update(!0, &bytes), whole, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn instructions_are_given_up_only_where_they_are_clearly_slower() {
        let micros = Duration::from_micros;
        assert_eq!(preferred(micros(15), micros(1)), WORDS);
        for fast in [1, 9, 10, 15] {
            assert_ne!(preferred(micros(fast), micros(10)), WORDS, "{fast} us");
        }
    }
}
