//! Sizes to measure: single ones, and sweeps.

use crate::connect::size;

/// One item of `--sizes`: `4K`, or a sweep `64:64M:4` (from, to, factor).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sizes(Vec<u64>);

/// A sweep has no more sizes than a figure can show.
const MOST: usize = 64;

/// Reads one item.
pub(super) fn sizes(text: &str) -> Result<Sizes, String> {
    let mut parts = text.split(':');
    let from = size(parts.next().unwrap_or_default())?;
    let Some(to) = parts.next() else { return Ok(Sizes(vec![from])) };
    let to = size(to)?;
    let factor: u64 = match parts.next() {
        None => 2,
        Some(factor) => factor.parse().ok().filter(|f| *f > 1).ok_or("a sweep's factor is a number from 2 on")?,
    };
    if from > to || parts.next().is_some() {
        return Err("write a sweep as FROM:TO:FACTOR, the smaller size first: 64:64M:4".to_owned());
    }
    let all: Vec<u64> =
        std::iter::successors(Some(from), |n| n.checked_mul(factor).filter(|n| *n <= to)).take(MOST + 1).collect();
    if all.len() > MOST {
        return Err(format!("a sweep has at most {MOST} sizes: take a larger factor"));
    }
    Ok(Sizes(all))
}

/// All of them, in the order in which they were written, each once.
pub(super) fn flatten(items: &[Sizes]) -> Vec<u64> {
    let mut all = Vec::new();
    for &size in items.iter().flat_map(|item| &item.0) {
        if !all.contains(&size) {
            all.push(size);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_are_read() {
        assert_eq!(sizes("4K"), Ok(Sizes(vec![4096])));
        assert_eq!(sizes("64:4K:4"), Ok(Sizes(vec![64, 256, 1024, 4096])));
        assert_eq!(sizes("1K:5K"), Ok(Sizes(vec![1024, 2048, 4096])));
        for bad in ["", "64:", "4K:64:2", "64:4K:1", "64:4K:2:3", "64:4K:x"] {
            assert!(sizes(bad).is_err(), "{bad}");
        }
        let items = [sizes("64:256:2").unwrap(), sizes("128").unwrap(), sizes("1M").unwrap()];
        assert_eq!(flatten(&items), [64, 128, 256, 1 << 20]);
    }
}
