//! Quantised blocks to floats.

use genie_cuda_kernels::launch::dequant::dequantize;
use genie_graph::{DType, QuantFormat};
use half::f16;

use super::support::{FLOATS, Tensor, rounded, run};

/// A block's numbers in f32, operation by operation as the format's description has them.
fn reference(format: QuantFormat, block: &[u8]) -> Vec<f32> {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let nibble = |from: usize, i: usize| block[from + i % 16] >> (4 * (i / 16)) & 15;
    let number = |i: usize| match format {
        QuantFormat::Q8_0 => f32::from(block[2 + i].cast_signed()) * half(0),
        QuantFormat::Q4_0 => (f32::from(nibble(2, i)) - 8.0) * half(0),
        QuantFormat::Q4_1 => {
            let product = f32::from(nibble(4, i)) * half(0);
            product + half(2)
        }
    };
    (0..32).map(number).collect()
}

/// Bytes of `blocks` blocks: every kind of scale, NaN and infinities among them.
fn bytes(format: QuantFormat, blocks: usize) -> Vec<u8> {
    let mut noise = vec![0.0; blocks * format.block_bytes() as usize];
    genie_graph::random::fill_uniform(blocks as u64, 0, &mut noise);
    noise.iter().map(|v| (v * 256.0) as u8).collect()
}

#[test]
fn blocks_are_those_of_the_cpu_bit_for_bit() {
    for format in [QuantFormat::Q8_0, QuantFormat::Q4_0, QuantFormat::Q4_1] {
        for blocks in [0, 1, 3, 64, 301] {
            let bytes = bytes(format, blocks);
            let x = Tensor::new(DType::U8, &bytes.iter().map(|&b| b.into()).collect::<Vec<_>>());
            let exact: Vec<f64> = bytes
                .chunks(format.block_bytes() as usize)
                .flat_map(|block| reference(format, block))
                .map(f64::from)
                .collect();
            for dtype in FLOATS {
                for skipped in [0, 1] {
                    // An output that starts past an element is not aligned to packs.
                    let mut y = Tensor::poisoned(dtype, 32 * blocks + skipped);
                    let mut view = y.view();
                    view.at += skipped as u64 * dtype.bytes();
                    view.elements -= skipped as u64;
                    run(dequantize(format, x.view(), view), &mut [&mut y]);
                    for (i, (got, expected)) in y.values()[skipped..].iter().zip(rounded(dtype, &exact)).enumerate() {
                        let same = *got == expected || (got.is_nan() && expected.is_nan());
                        assert!(same, "{format:?} {dtype}: {i} is {got}, expected {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (x, y) = (Tensor::poisoned(DType::U8, 36), Tensor::poisoned(DType::F32, 64));
    assert!(dequantize(QuantFormat::Q4_0, x.view(), y.view()).expect("two blocks").is_some());
    assert!(dequantize(QuantFormat::Q8_0, x.view(), y.view()).is_err(), "parts of blocks");
    assert!(dequantize(QuantFormat::Q4_0, x.view(), Tensor::poisoned(DType::F32, 63).view()).is_err());
    assert!(dequantize(QuantFormat::Q4_0, x.view(), Tensor::poisoned(DType::I32, 64).view()).is_err());
    assert!(dequantize(QuantFormat::Q4_0, y.view(), y.view()).is_err(), "not bytes");
    let mut odd = x.view();
    odd.at += 1;
    assert!(dequantize(QuantFormat::Q4_0, odd, y.view()).is_err());
}
