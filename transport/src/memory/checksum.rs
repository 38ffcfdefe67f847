//! CRC32C of what is small: a header, the body of a small frame.

/// Up to so many bytes the processor's own instruction is the fastest; above, several streams of it, or wider ones, are.
#[cfg(target_arch = "x86_64")]
const SMALL: usize = 256;

/// CRC32C (Castagnoli, RFC 3720 appendix B.4) of some bytes and those that follow them.
pub fn crc32c(first: &[u8], then: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if first.len() + then.len() <= SMALL && std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the instructions, as was just asked.
        return unsafe { small(first, then) };
    }
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(first);
    digest.update(then);
    digest.finalize() as u32
}

/// CRC32C of a header's words, as they lie in memory in little-endian order: what is about to be written is not read back first.
pub fn crc32c_words(words: [u64; 3], last: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the instructions, as was just asked.
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

    #[test]
    fn the_known_answer() {
        assert_eq!(crc32c(b"123456789", &[]), 0xe306_9283);
        assert_eq!(crc32c(b"1234", b"56789"), 0xe306_9283);
        assert_eq!(crc32c(&[], &[]), 0);
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
    fn small_and_large_agree() {
        let bytes: Vec<u8> = (0..600_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for len in (0..=600).filter(|len| *len < 300 || len % 37 == 0) {
            let whole = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[..len]) as u32;
            for cut in [0, 1, 3, 4, 7, 8, 28, len / 2, len] {
                let (first, then) = bytes[..len].split_at(cut.min(len));
                assert_eq!(crc32c(first, then), whole, "{len} bytes, cut at {cut}");
            }
        }
    }
}
