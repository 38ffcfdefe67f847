//! What creation ops make: computed once per plan.

use genie_graph::{DType, Op, random};
use half::{bf16, f16};

use super::lower::{Constant, Content};

/// Writes a constant to the bytes it has in the plan's constants.
pub(super) fn fill(constant: &Constant, bytes: &mut [u8]) {
    let n = constant.elements;
    match &constant.content {
        Content::Frequencies { theta } => {
            // In f64 and rounded once.
            let theta = f64::from(*theta);
            numbers(constant.dtype, bytes, |i| theta.powf(-(i as f64) / n as f64));
        }
        Content::Op(Op::Ones) => numbers(constant.dtype, bytes, |_| 1.0),
        Content::Op(Op::Full { value }) => numbers(constant.dtype, bytes, |_| *value),
        Content::Op(Op::Arange { start, step }) => numbers(constant.dtype, bytes, |i| start + i as f64 * step),
        Content::Op(Op::Rand { seed }) => randoms(constant.dtype, bytes, |i, out| random::fill_uniform(*seed, i, out)),
        Content::Op(Op::Randn { seed }) => randoms(constant.dtype, bytes, |i, out| random::fill_normal(*seed, i, out)),
        Content::Op(_) => bytes.fill(0),
    }
}

/// A number as the first bytes of an element, as creation ops make it.
pub(super) fn number(dtype: DType, value: f64) -> [u8; 8] {
    let mut bits = [0; 8];
    numbers(dtype, &mut bits[..dtype.bytes() as usize], |_| value);
    bits
}

fn numbers(dtype: DType, bytes: &mut [u8], f: impl Fn(u64) -> f64) {
    fn put<const N: usize>(bytes: &mut [u8], f: impl Fn(u64) -> [u8; N]) {
        for (i, element) in (0..).zip(bytes.chunks_exact_mut(N)) {
            element.copy_from_slice(&f(i));
        }
    }
    match dtype {
        DType::F32 => put(bytes, |i| (f(i) as f32).to_le_bytes()),
        DType::F16 => put(bytes, |i| f16::from_f32(f(i) as f32).to_le_bytes()),
        DType::BF16 => put(bytes, |i| bf16::from_f32(f(i) as f32).to_le_bytes()),
        DType::I64 => put(bytes, |i| (f(i) as i64).to_le_bytes()),
        DType::I32 => put(bytes, |i| (f(i) as i32).to_le_bytes()),
        DType::U8 => put(bytes, |i| [f(i) as u8]),
        DType::Bool => put(bytes, |i| [u8::from(f(i) != 0.0)]),
    }
}

/// Random floats, made a piece at a time.
fn randoms(dtype: DType, bytes: &mut [u8], fill: impl Fn(u64, &mut [f32])) {
    let mut piece = [0.0_f32; 256];
    let size = dtype.bytes() as usize;
    for (first, bytes) in (0..).step_by(piece.len()).zip(bytes.chunks_mut(piece.len() * size)) {
        let piece = &mut piece[..bytes.len() / size];
        fill(first, piece);
        numbers(dtype, bytes, |i| f64::from(piece[i as usize]));
    }
}
