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
    fill(first, out, |block| philox(seed, u128::from(block)).map(uniform_f32));
}

/// Elements `first..` of the tensor that [`crate::Op::Randn`] makes: words 0 and 1 of block i / 4 give elements 0 and 1
/// of each four, words 2 and 3 the other two, by [`normal`].
pub fn fill_normal(seed: u64, first: u64, out: &mut [f32]) {
    fill(first, out, |block| {
        let [a, b, c, d] = philox(seed, u128::from(block));
        let ([a, b], [c, d]) = (normal([a, b]), normal([c, d]));
        [a, b, c, d]
    });
}

fn fill(first: u64, out: &mut [f32], block: impl Fn(u64) -> [f32; 4]) {
    let lead = ((4 - first % 4) % 4).min(out.len() as u64) as usize;
    let (head, body) = out.split_at_mut(lead);
    if !head.is_empty() {
        let skip = (first % 4) as usize;
        head.copy_from_slice(&block(first / 4)[skip..skip + lead]);
    }
    for (i, chunk) in (first.div_ceil(4)..).zip(body.chunks_mut(4)) {
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
