//! Orders to run things in.

/// `0..count` in the order that `seed` picks: 0 forwards, 1 backwards, else a walk that visits each once.
pub(super) fn order(count: u64, seed: u64) -> impl Iterator<Item = u64> {
    let (first, stride) = match seed {
        0 => (0, 1),
        1 => (count.saturating_sub(1), count.saturating_sub(1)),
        _ => {
            let mixed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16;
            (mixed % count.max(1), coprime(mixed / 7 % count.max(1), count))
        }
    };
    (0..count).scan(first, move |at, _| {
        let now = *at;
        // Counts of threads and blocks are far from the end of the range.
        *at = (now + stride) % count;
        Some(now)
    })
}

/// The first number from `from` on that has no divisor with `count`: steps of it visit everything.
fn coprime(from: u64, count: u64) -> u64 {
    let gcd = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (from.max(1)..).find(|&n| gcd(n, count.max(1)) == 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn every_order_visits_each_once() {
        for count in [0, 1, 2, 5, 31, 32, 97, 256] {
            for seed in 0..40 {
                let mut seen: Vec<u64> = order(count, seed).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..count).collect::<Vec<_>>(), "{count} {seed}");
            }
        }
        assert_eq!(order(4, 1).collect::<Vec<_>>(), [3, 2, 1, 0]);
    }
}
