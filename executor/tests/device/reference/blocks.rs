//! What blocks of quantised numbers hold.

use genie_graph::QuantFormat;
use half::f16;

/// The numbers of blocks whose bytes are given, one element at a time from the format's description.
pub(super) fn numbers(format: QuantFormat, bytes: &[f64]) -> Vec<f64> {
    bytes
        .chunks_exact(format.block_bytes() as usize)
        .flat_map(|block| {
            let block: Vec<u8> = block.iter().map(|&b| b as u8).collect();
            (0..32).map(move |i| number(format, &block, i))
        })
        .collect()
}

fn number(format: QuantFormat, block: &[u8], i: usize) -> f64 {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f64();
    let nibble = |from: usize| f64::from(if i < 16 { block[from + i] & 15 } else { block[from + i - 16] >> 4 });
    match format {
        QuantFormat::Q8_0 => f64::from(block[2 + i] as i8) * half(0),
        QuantFormat::Q4_0 => (nibble(2) - 8.0) * half(0),
        QuantFormat::Q4_1 => nibble(4) * half(0) + half(2),
    }
}
