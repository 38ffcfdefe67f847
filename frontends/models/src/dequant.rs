//! ggml's block formats to f32, and conversion between float types.
//!
//! Results are bit for bit those of the reference (`gguf` on PyPI): the products are taken in the same order, in f32.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::gguf::GgmlType;

/// Bytes of input that one task takes; a multiple of every block size fits in it.
const TASK_ELEMENTS: usize = 256 * 256;

/// Stored blocks to f32, on all cores.
///
/// Returns false, having written nothing of use, if `data` and `out` do not have the same number of whole blocks.
#[must_use]
pub fn dequantize(ty: GgmlType, data: &[u8], out: &mut [f32]) -> bool {
    let (elements, bytes) = (ty.block_elements(), ty.block_bytes());
    if !data.len().is_multiple_of(bytes) || data.len() / bytes * elements != out.len() {
        return false;
    }
    let task_bytes = TASK_ELEMENTS / elements * bytes;
    out.par_chunks_mut(TASK_ELEMENTS).zip(data.par_chunks(task_bytes)).for_each(|(out, data)| blocks(ty, data, out));
    true
}

/// The same on this thread; as many blocks as both hold whole.
pub(crate) fn blocks(ty: GgmlType, data: &[u8], out: &mut [f32]) {
    match ty {
        GgmlType::F32 => each::<4, 1>(data, out, |b, o| o[0] = f32::from_le_bytes(*b)),
        GgmlType::F16 => each::<2, 1>(data, out, |b, o| o[0] = f16::from_le_bytes(*b).to_f32()),
        GgmlType::BF16 => each::<2, 1>(data, out, |b, o| o[0] = bf16::from_le_bytes(*b).to_f32()),
        GgmlType::Q4_0 => each(data, out, q4_0),
        GgmlType::Q4_1 => each(data, out, q4_1),
        GgmlType::Q8_0 => each(data, out, q8_0),
        GgmlType::Q6K => each(data, out, q6_k),
    }
}

fn each<const BYTES: usize, const ELEMENTS: usize>(
    data: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let blocks = data.as_chunks::<BYTES>().0;
    for (b, o) in blocks.iter().zip(out.as_chunks_mut::<ELEMENTS>().0) {
        block(b, o);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Scale, then 16 bytes: the low nibbles are elements 0-15, the high ones 16-31.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let (low, high) = out.split_at_mut(16);
    for ((&q, low), high) in block[2..].iter().zip(low).zip(high) {
        *low = f32::from((q & 15) as i8 - 8) * d;
        *high = f32::from((q >> 4) as i8 - 8) * d;
    }
}

/// Scale, minimum, then nibbles as in Q4_0.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = out.split_at_mut(16);
    for ((&q, low), high) in block[4..].iter().zip(low).zip(high) {
        *low = f32::from(q & 15) * d + m;
        *high = f32::from(q >> 4) * d + m;
    }
}

/// Scale, then 32 signed bytes.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (&q, out) in block[2..].iter().zip(out) {
        *out = f32::from(q as i8) * d;
    }
}

/// 128 bytes of low nibbles, 64 of high bit pairs, 16 scales, the scale of the scales. Each half of the block (128
/// elements) has four rows of 32; row r takes the nibbles of bytes 32 (r mod 2).., low for r < 2, and bit pair r.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let low = &block[64 * half..][..64];
        let high = &block[128 + 32 * half..][..32];
        let scales = &block[192 + 8 * half..][..8];
        for (row, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = &low[32 * (row % 2)..][..32];
            for (i, out) in out.iter_mut().enumerate() {
                let nibble = (low[i] >> (4 * (row / 2))) & 15;
                let pair = (high[i] >> (2 * row)) & 3;
                let scale = d * f32::from(scales[2 * row + i / 16] as i8);
                *out = scale * f32::from((nibble | pair << 4) as i8 - 32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One element at a time, straight from the format's description, in f64.
    fn slow(ty: GgmlType, block: &[u8], i: usize) -> f64 {
        let nibble = |base: usize, i: usize| f64::from((block[base + i % 16] >> (4 * (i / 16))) & 15);
        let half = |at| f64::from(half_at(block, at));
        match ty {
            GgmlType::F32 => f64::from(f32::from_le_bytes(block.try_into().unwrap())),
            GgmlType::F16 => half(0),
            GgmlType::BF16 => f64::from(bf16::from_le_bytes(block.try_into().unwrap())),
            GgmlType::Q4_0 => (nibble(2, i) - 8.0) * half(0),
            GgmlType::Q4_1 => nibble(4, i) * half(0) + half(2),
            GgmlType::Q8_0 => f64::from(block[2 + i] as i8) * half(0),
            GgmlType::Q6K => {
                let (n, within) = (i / 128, i % 128);
                let low = block[n * 64 + within % 64] >> (4 * (within / 64)) & 15;
                let high = block[128 + n * 32 + within % 32] >> (2 * (within / 32)) & 3;
                let scale = f64::from(block[192 + i / 16] as i8);
                half(208) * scale * (f64::from(low) + 16.0 * f64::from(high) - 32.0)
            }
        }
    }

    proptest! {
        #[test]
        fn blocks_equal_the_element_by_element_reference(bytes in prop::collection::vec(any::<u8>(), 420), n in 0usize..7) {
            let ty = GgmlType::ALL[n];
            let blocks = bytes.len() / ty.block_bytes();
            let data = &bytes[..blocks * ty.block_bytes()];
            let mut out = vec![f32::NAN; blocks * ty.block_elements()];
            prop_assert!(dequantize(ty, data, &mut out));
            for (i, &fast) in out.iter().enumerate() {
                let block = &data[i / ty.block_elements() * ty.block_bytes()..][..ty.block_bytes()];
                let exact = slow(ty, block, i % ty.block_elements());
                if exact.is_finite() && exact.abs() < f64::from(f32::MAX) {
                    // Two roundings at the most; a sum may cancel, so its parts bound the error.
                    let parts = exact.abs() + if ty == GgmlType::Q4_1 { 2.0 * f64::from(half_at(block, 2)).abs() } else { 0.0 };
                    prop_assert!((f64::from(fast) - exact).abs() <= parts * 2f64.powi(-22) , "{ty:?} {i}: {fast} {exact}");
                } else {
                    prop_assert!(!fast.is_finite());
                }
            }
        }
    }

    #[test]
    fn parts_of_blocks_are_refused() {
        assert!(!dequantize(GgmlType::Q8_0, &[0; 33], &mut [0.0; 32]));
        assert!(!dequantize(GgmlType::Q8_0, &[0; 34], &mut [0.0; 31]));
        assert!(dequantize(GgmlType::Q8_0, &[], &mut []));
    }

    #[test]
    fn tasks_join_seamlessly() {
        let blocks = TASK_ELEMENTS / 32 + 3;
        let data: Vec<u8> = (0..blocks)
            .flat_map(|b| {
                let mut block = [b as u8; 34];
                block[..2].copy_from_slice(&f16::ONE.to_le_bytes());
                block
            })
            .collect();
        let mut out = vec![0.0; blocks * 32];
        assert!(dequantize(GgmlType::Q8_0, &data, &mut out));
        assert!(out.iter().enumerate().all(|(i, &x)| x == f32::from((i / 32) as u8 as i8)));
    }
}
