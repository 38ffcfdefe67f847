//! The reference for [`crate::Op::Sample`], made so that every device can compute the same token.
//!
//! Floating-point sums depend on their order, and library exponentials on their library. So the weight of a token is
//! computed with IEEE multiplications and additions only, and rounded down to a whole number of 2^-32; sums of weights
//! are then exact in any order, and a parallel device gets the same token as this loop.
//!
//! 1. Logits that are NaN or -inf cannot be drawn. If none is left, the token is 0.
//! 2. Temperature 0, negative or NaN, or a largest logit of +inf: the first of the largest logits is the token.
//! 3. Order tokens by logit, largest first, then by id. If `top_k` > 0, the first `top_k` stay.
//! 4. Weight of a token: `floor(2^32 * exp((logit - max) / temperature))`, in f64.
//! 5. If `top_p` < 1, the shortest prefix of the order stays whose weights sum to at least
//!    `ceil(top_p * sum of all weights)`, but at least one token (a NaN `top_p` is off).
//! 6. With the 64-bit number `r` from words 0 (low) and 1 (high) of Philox4x32-10 with key `seed` and counter
//!    `position`: target = floor(r * sum / 2^64). The token is the first, by id, at which the sum of the weights of
//!    the tokens that stay exceeds the target.

use std::cmp::Ordering;

use crate::random::philox;

/// Working space of [`sample_row`]: one token that may still be drawn.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    logit: f32,
    token: u32,
    weight: u64,
}

/// Draws the index of one of `logits`, as the module's source describes step by step; see [`crate::Op::Sample`].
///
/// `top_k` 0 or negative and `top_p` 1 or more are off; `temperature` 0 is greedy. NaN logits are never drawn, and a
/// row without any number gives 0. `scratch` keeps its allocation: once it has held a row, no call allocates for rows
/// of that size. `logits` must have fewer than 2^31 elements, as `Op::Sample` has it.
///
/// ```
/// let logits = [0.5, 2.0, f32::NAN, 1.9];
/// let mut scratch = Vec::new();
/// assert_eq!(genie_graph::sample_row(&logits, 0.0, 1.0, 0, 7, 0, &mut scratch), 1);
/// let token = genie_graph::sample_row(&logits, 1.0, 0.9, 2, 7, 0, &mut scratch);
/// assert!(token == 1 || token == 3);
/// ```
pub fn sample_row(
    logits: &[f32],
    temperature: f32,
    top_p: f32,
    top_k: i64,
    seed: u64,
    position: u64,
    scratch: &mut Vec<Candidate>,
) -> u32 {
    let Some((best, max)) = argmax(logits) else {
        return 0;
    };
    if temperature.is_nan() || temperature <= 0.0 || max == f32::INFINITY || top_k == 1 {
        return best;
    }
    scratch.clear();
    scratch.reserve(logits.len());
    let drawable = (0_u32..).zip(logits).filter(|(_, l)| **l > f32::NEG_INFINITY);
    scratch.extend(drawable.map(|(token, &logit)| Candidate { logit, token, weight: 0 }));
    let mut kept = &mut scratch[..];
    if let Ok(k) = usize::try_from(top_k)
        && 0 < k
        && k < kept.len()
    {
        kept.select_nth_unstable_by(k - 1, by_logit);
        kept = &mut kept[..k];
    }
    for candidate in kept.iter_mut() {
        candidate.weight = weight(candidate.logit, max, temperature);
    }
    let mut total: u64 = kept.iter().map(|c| c.weight).sum();
    if top_p < 1.0 {
        let wanted = (f64::from(top_p) * total as f64).ceil() as u64;
        let wanted = wanted.clamp(1, total);
        let likely = likely_first(kept, wanted, max, temperature);
        let prefix = shortest_prefix(&mut kept[..likely], wanted, by_logit);
        kept = &mut kept[..prefix];
        total = kept.iter().map(|c| c.weight).sum();
    }
    let words = philox(seed, u128::from(position));
    let r = u64::from(words[1]) << 32 | u64::from(words[0]);
    let target = ((u128::from(r) * u128::from(total)) >> 64) as u64;
    let prefix = shortest_prefix(kept, target + 1, |a, b| a.token.cmp(&b.token));
    kept.get(prefix.wrapping_sub(1)).map_or(best, |c| c.token)
}

/// The first of the largest numbers above -inf.
fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
    (0_u32..).zip(logits).fold(None, |best: Option<(u32, f32)>, (i, &logit)| {
        if logit > best.map_or(f32::NEG_INFINITY, |(_, max)| max) { Some((i, logit)) } else { best }
    })
}

/// Largest first, then by id. There are no NaNs among candidates.
fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

/// Moves a superset of [`shortest_prefix`] by logit to the front and returns its length: one histogram instead of the
/// first, largest rounds of a selection over a whole vocabulary.
fn likely_first(items: &mut [Candidate], wanted: u64, max: f32, temperature: f32) -> usize {
    const BUCKETS: usize = 256;
    // Monotonic in the logit, so that whole buckets are in order; weights end at 23.
    let bucket = |c: &Candidate| {
        let depth = (f64::from(max) - f64::from(c.logit)) / f64::from(temperature);
        ((depth * (BUCKETS as f64 / 23.0)) as usize).min(BUCKETS - 1)
    };
    let mut sums = [0_u64; BUCKETS];
    items.iter().for_each(|c| sums[bucket(c)] += c.weight);
    let mut sum = 0;
    let last = sums.iter().position(|&s| {
        sum += s;
        sum >= wanted
    });
    let last = last.unwrap_or(BUCKETS - 1);
    let mut front = 0;
    for i in 0..items.len() {
        if bucket(&items[i]) <= last {
            items.swap(front, i);
            front += 1;
        }
    }
    front
}

/// Arranges `items` so that the shortest prefix in `order` whose weights sum to at least `wanted` comes first with its
/// last element last, and returns its length. A quickselect by weight: linear time on average, no allocation.
fn shortest_prefix(
    items: &mut [Candidate],
    mut wanted: u64,
    order: impl Fn(&Candidate, &Candidate) -> Ordering + Copy,
) -> usize {
    let (mut from, mut to) = (0, items.len());
    while to - from > 1 {
        let middle = (to - from) / 2;
        items[from..to].select_nth_unstable_by(middle, order);
        let before: u64 = items[from..from + middle].iter().map(|c| c.weight).sum();
        if before >= wanted {
            to = from + middle;
        } else {
            wanted -= before;
            from += middle;
        }
    }
    to
}

/// `floor(2^32 * exp((logit - max) / temperature))` for logit <= max, by operations that every device rounds alike.
fn weight(logit: f32, max: f32, temperature: f32) -> u64 {
    let x = (f64::from(logit) - f64::from(max)) / f64::from(temperature);
    // Below this the weight rounds to 0; and the comparison also keeps NaN out of the integer conversions below.
    if x > -23.0 { (exp(x) * 4_294_967_296.0) as u64 } else { 0 }
}

/// e^x for -23 < x <= 0, to about 1e-15: x = n ln 2 + r with |r| <= ln 2 / 2, then the Taylor series of e^r by Horner's
/// rule. Multiplications and additions stay apart (no fused ones), so that the result does not depend on the device.
fn exp(x: f64) -> f64 {
    const LN_2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
    const LN_2_LOW: f64 = f64::from_bits(0x3DEA_39EF_3579_3C76);
    let n = (x * std::f64::consts::LOG2_E - 0.5) as i64;
    let r = (x - n as f64 * LN_2_HIGH) - n as f64 * LN_2_LOW;
    let series = INVERSE_FACTORIALS.iter().rev().fold(0.0, |sum, &c| sum * r + c);
    series * f64::from_bits(((1023 + n) as u64) << 52)
}

/// 1 / k! for k = 0, 1, ..., each the f64 quotient.
const INVERSE_FACTORIALS: [f64; 14] = {
    let mut inverse = [1.0; 14];
    let (mut k, mut factorial) = (1, 1_u64);
    while k < inverse.len() {
        factorial *= k as u64;
        inverse[k] = 1.0 / factorial as f64;
        k += 1;
    }
    inverse
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{fill_normal, fill_uniform};

    fn draw(logits: &[f32], temperature: f32, top_p: f32, top_k: i64, position: u64) -> u32 {
        sample_row(logits, temperature, top_p, top_k, 42, position, &mut Vec::new())
    }

    /// The steps of the module's documentation with full sorts and no cleverness.
    fn slow(logits: &[f32], temperature: f32, top_p: f32, top_k: i64, seed: u64, position: u64) -> u32 {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut order: Vec<u32> =
            (0..logits.len() as u32).filter(|&i| logits[i as usize] > f32::NEG_INFINITY).collect();
        order.sort_by(|&a, &b| logits[b as usize].partial_cmp(&logits[a as usize]).unwrap());
        if temperature <= 0.0 {
            return order[0];
        }
        if top_k > 0 {
            order.truncate(top_k as usize);
        }
        let w = |i: u32| weight(logits[i as usize], max, temperature);
        let total: u64 = order.iter().map(|&i| w(i)).sum();
        if top_p < 1.0 {
            let wanted = ((f64::from(top_p) * total as f64).ceil() as u64).clamp(1, total);
            let mut sum = 0;
            let last = order.iter().position(|&i| {
                sum += w(i);
                sum >= wanted
            });
            order.truncate(last.unwrap() + 1);
        }
        order.sort();
        let total: u64 = order.iter().map(|&i| w(i)).sum();
        let words = philox(seed, position.into());
        let r = u64::from(words[1]) << 32 | u64::from(words[0]);
        let target = ((u128::from(r) * u128::from(total)) >> 64) as u64;
        let mut sum = 0;
        *order
            .iter()
            .find(|&&i| {
                sum += w(i);
                sum > target
            })
            .unwrap()
    }

    #[test]
    fn exp_is_accurate() {
        let mut x = 0.0;
        while x > -23.0 {
            let relative = exp(x) / x.exp() - 1.0;
            assert!(relative.abs() < 2e-15, "{x}: {relative:e}");
            x -= 0.000_713;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(weight(1.0, 1.0, 0.7), 1 << 32);
        assert_eq!(weight(f32::MIN, f32::MAX, f32::MIN_POSITIVE), 0);
        assert_eq!(weight(-1.0, 1.0, f32::INFINITY), 1 << 32);
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_never_nan() {
        assert_eq!(draw(&[1.0, 3.0, 3.0, 2.0], 0.0, 1.0, 0, 0), 1);
        assert_eq!(draw(&[-0.0, 0.0], 0.0, 1.0, 0, 0), 0);
        assert_eq!(draw(&[f32::NAN, f32::NEG_INFINITY, -5.0], 0.0, 1.0, 0, 0), 2);
        for temperature in [-1.0, f32::NAN] {
            assert_eq!(draw(&[0.0, 1.0], temperature, 1.0, 0, 0), 1);
        }
        for row in [&[][..], &[f32::NAN; 3], &[f32::NEG_INFINITY; 3]] {
            assert_eq!(draw(row, 0.0, 1.0, 0, 0), 0);
            assert_eq!(draw(row, 1.0, 0.5, 2, 0), 0);
        }
        assert_eq!(draw(&[0.0, f32::INFINITY, f32::INFINITY], 1.0, 0.5, 0, 0), 1);
    }

    #[test]
    fn quick_and_slow_agree_on_every_setting() {
        let mut row = vec![0.0; 997];
        let mut scratch = Vec::new();
        for seed in 0..40 {
            fill_normal(seed, 0, &mut row);
            for v in &mut row {
                *v = (*v * 8.0).round() / 2.0; // Many equals.
            }
            row[3] = f32::NAN;
            row[4] = f32::NEG_INFINITY;
            for temperature in [0.0, 0.2, 1.0, 3.0, f32::INFINITY] {
                for top_p in [-1.0, 0.0, 0.3, 0.9, 1.0, f32::NAN] {
                    for top_k in [-1, 0, 1, 2, 40, 996, i64::MAX] {
                        let quick = sample_row(&row, temperature, top_p, top_k, seed, seed + 9, &mut scratch);
                        let slow = slow(&row, temperature, top_p, top_k, seed, seed + 9);
                        assert_eq!(quick, slow, "seed {seed} t {temperature} p {top_p} k {top_k}");
                    }
                }
            }
        }
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        let mut counts = [0_u32; 4];
        const DRAWS: u32 = 20_000;
        for position in 0..DRAWS {
            counts[draw(&logits, 1.0, 1.0, 0, position.into()) as usize] += 1;
        }
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        for (&l, &count) in logits.iter().zip(&counts) {
            let expected = f64::from(l).exp() / sum;
            let seen = f64::from(count) / f64::from(DRAWS);
            assert!((expected - seen).abs() < 0.015, "{l}: {expected} {seen}");
        }
    }

    #[test]
    fn top_k_and_top_p_restrict_the_draw() {
        let logits = [1.0, 1.2, 1.1, 0.9];
        for position in 0..200 {
            assert!(matches!(draw(&logits, 1.0, 1.0, 2, position), 1 | 2));
            assert!(matches!(draw(&logits, 1.0, 0.5, 0, position), 1 | 2));
            assert_eq!(draw(&logits, 1.0, 0.0, 0, position), 1);
        }
        let seen: std::collections::HashSet<u32> = (0..200).map(|p| draw(&logits, 1.0, 1.0, 0, p)).collect();
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn a_used_scratch_does_not_grow() {
        let row = [0.25; 500];
        let mut scratch = Vec::new();
        sample_row(&row, 1.0, 0.9, 50, 1, 1, &mut scratch);
        let (capacity, place) = (scratch.capacity(), scratch.as_ptr());
        for position in 0..50 {
            sample_row(&row, 1.0, 0.9, 0, 1, position, &mut scratch);
        }
        assert_eq!((scratch.capacity(), scratch.as_ptr()), (capacity, place));
    }

    /// Written down once: a change here changes the text that users' seeds give.
    #[test]
    fn draws_are_pinned() {
        let mut row = vec![0.0; 1000];
        fill_uniform(5, 0, &mut row);
        row.iter_mut().for_each(|v| *v *= 8.0);
        let tokens: Vec<u32> = (0..8).map(|p| draw(&row, 0.8, 0.95, 100, p)).collect();
        assert_eq!(tokens, [473, 295, 703, 711, 817, 264, 751, 397]);
    }
}
