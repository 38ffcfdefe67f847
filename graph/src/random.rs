//! Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
//! 1, 2, 3" (SC 2011), and the mappings from its words to samples.
//!
//! A counter-based generator has no state: any element of a random tensor can be computed by itself, on any device, in
//! any order.

/// Block `counter` of the stream `key`: four independent words.
///
/// The low 32 bits of `key` and `counter` are the first words of the paper's vectors.
pub fn philox(key: u64, counter: u128) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let mut key = [key as u32, (key >> 32) as u32];
    let mut c = [counter as u32, (counter >> 32) as u32, (counter >> 64) as u32, (counter >> 96) as u32];
    for _ in 0..10 {
        let a = MULTIPLIERS[0] * u64::from(c[0]);
        let b = MULTIPLIERS[1] * u64::from(c[2]);
        c = [(b >> 32) as u32 ^ c[1] ^ key[0], b as u32, (a >> 32) as u32 ^ c[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    c
}

/// A word as a number in [0, 1): its upper 24 bits, so that every result is exact.
pub fn uniform_f32(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// Two words as two independent standard normal numbers (Box and Muller 1958): `r cos t` and `r sin t` with
/// `r = sqrt(-2 ln(1 - u0))` and `t = 2 pi u1`, computed in f64 and rounded once.
pub fn normal(words: [u32; 2]) -> [f32; 2] {
    let [u0, u1] = words.map(|w| f64::from(uniform_f32(w)));
    let radius = (-2.0 * (1.0 - u0).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * u1).sin_cos();
    [(radius * cos) as f32, (radius * sin) as f32]
}

/// Elements `first..` of the tensor that [`crate::Op::Rand`] makes: element i is word i % 4 of block i / 4, by
/// [`uniform_f32`].
pub fn fill_uniform(seed: u64, first: u64, out: &mut [f32]) {
    fill_uniform_from(seed, 0, first, out);
}

/// Elements `first..` of the tensor that [`crate::Op::Randn`] makes: words 0 and 1 of block i / 4 give elements 0 and 1
/// of each four, words 2 and 3 the other two, by [`normal`].
pub fn fill_normal(seed: u64, first: u64, out: &mut [f32]) {
    fill_normal_from(seed, 0, first, out);
}

/// As [`fill_uniform`], of the stream that begins with block `start`: elements `first..` of [`crate::Op::Random`].
pub fn fill_uniform_from(key: u64, start: u64, first: u64, out: &mut [f32]) {
    fill(first, out, |block| philox(key, counter(start, block)).map(uniform_f32));
}

/// As [`fill_normal`], of the stream that begins with block `start`: elements `first..` of [`crate::Op::Random`].
pub fn fill_normal_from(key: u64, start: u64, first: u64, out: &mut [f32]) {
    fill(first, out, |block| {
        let [a, b, c, d] = philox(key, counter(start, block));
        let ([a, b], [c, d]) = (normal([a, b]), normal([c, d]));
        [a, b, c, d]
    });
}

/// Elements `first..` of whole numbers in 0..2^63, of the stream that begins with block `start`: words 0 and 1 of block i / 2 give
/// element 0 of each two, words 2 and 3 the other, the first of them the lower half, less the highest bit.
pub fn fill_bits_from(key: u64, start: u64, first: u64, out: &mut [i64]) {
    fill(first, out, |block| {
        let [a, b, c, d] = philox(key, counter(start, block)).map(u64::from);
        [(a | b << 32) & (u64::MAX >> 1), (c | d << 32) & (u64::MAX >> 1)].map(|bits| bits as i64)
    });
}

fn counter(start: u64, block: u64) -> u128 {
    u128::from(start) + u128::from(block)
}

/// Elements `first..` of a tensor that is made of blocks of N.
fn fill<T: Copy, const N: usize>(first: u64, out: &mut [T], block: impl Fn(u64) -> [T; N]) {
    let skip = (first % N as u64) as usize;
    let lead = ((N - skip) % N).min(out.len());
    let (head, body) = out.split_at_mut(lead);
    if !head.is_empty() {
        head.copy_from_slice(&block(first / N as u64)[skip..skip + lead]);
    }
    for (i, chunk) in (first.div_ceil(N as u64)..).zip(body.chunks_mut(N)) {
        chunk.copy_from_slice(&block(i)[..chunk.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that accompany the paper's Random123 library.
    #[test]
    fn philox_gives_the_known_answers() {
        let words = |w: [u32; 4]| w.iter().rev().fold(0_u128, |n, &w| n << 32 | u128::from(w));
        assert_eq!(philox(0, 0), [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]);
        assert_eq!(philox(u64::MAX, u128::MAX), [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]);
        assert_eq!(
            philox(0x299F_31D0_A409_3822, words([0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344])),
            [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1]
        );
    }

    #[test]
    fn uniform_stays_below_one() {
        assert_eq!(uniform_f32(0), 0.0);
        assert_eq!(uniform_f32(255), 0.0);
        assert_eq!(uniform_f32(1 << 31), 0.5);
        assert_eq!(uniform_f32(u32::MAX), 1.0 - f32::EPSILON / 2.0);
    }

    #[test]
    fn any_part_of_a_tensor_can_be_made_alone() {
        for fill in [fill_uniform, fill_normal] {
            let mut whole = [0.0; 40];
            fill(7, 0, &mut whole);
            for first in 0..40 {
                for last in first..40 {
                    let mut part = vec![0.0; last - first];
                    fill(7, first as u64, &mut part);
                    assert_eq!(part, whole[first..last], "{first}..{last}");
                }
            }
        }
    }

    /// A stream that begins later is the same one, some blocks on; the last blocks are no special case.
    #[test]
    fn a_later_start_is_further_along() {
        for fill in [fill_uniform_from, fill_normal_from] {
            let (mut whole, mut later) = ([0.0; 40], [0.0; 24]);
            fill(7, 0, 0, &mut whole);
            fill(7, 4, 0, &mut later);
            assert_eq!(whole[16..], later);
        }
        let (mut whole, mut later, mut part) = ([0; 40], [0; 32], [0; 7]);
        fill_bits_from(7, u64::MAX - 1, 0, &mut whole);
        fill_bits_from(7, u64::MAX - 1 + 1, 0, &mut later[..8]);
        fill_bits_from(7, u64::MAX - 1, 5, &mut part);
        assert_eq!((&whole[2..10], &whole[5..12]), (&later[..8], &part[..]));
        assert!(whole.iter().all(|&v| v >= 0) && whole.iter().any(|&v| v > i64::MAX / 2));
        let [a, b, ..] = philox(7, u128::from(u64::MAX) + 3);
        assert_eq!(whole[8], ((u64::from(a) | u64::from(b) << 32) & i64::MAX as u64) as i64);
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut x = vec![0.0; 200_000];
        let moments = |x: &[f32]| {
            let n = x.len() as f64;
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            (mean, x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n)
        };
        fill_uniform(1, 0, &mut x);
        let (mean, variance) = moments(&x);
        assert!((mean - 0.5).abs() < 3e-3 && (variance - 1.0 / 12.0).abs() < 1e-3, "{mean} {variance}");
        fill_normal(1, 0, &mut x);
        let (mean, variance) = moments(&x);
        assert!(mean.abs() < 1e-2 && (variance - 1.0).abs() < 1e-2, "{mean} {variance}");
        assert!(x.iter().all(|v| v.is_finite()));
        assert!(normal([u32::MAX, u32::MAX]).iter().all(|v| v.is_finite()));
    }
}
