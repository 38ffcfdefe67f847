//! The ops that come in many kinds, and those along an axis.

use genie_graph::{
    ArgReduceKind, BinaryKind, CompareKind, CumulativeKind, DType, Op, RandomKind, ScatterKind, UnaryKind, random,
};

use super::{Tensor, indices, normal_cdf, wrap};

/// The elements of the result, before they are rounded to its type.
pub(super) fn apply(op: &Op, dims: &[usize], x: &[&Tensor]) -> Vec<f64> {
    let each = |f: &dyn Fn(&[usize]) -> f64| indices(dims).iter().map(|i| f(i)).collect();
    match op {
        Op::Unary { kind } => x[0].data.iter().map(|&v| unary(*kind, x[0].dtype, v)).collect(),
        Op::Binary { kind } => each(&|i| binary(*kind, x[0].dtype, x[0].at(i), x[1].at(i))),
        Op::Compare { kind } => each(&|i| {
            let (a, b) = (x[0].at(i), x[1].at(i));
            f64::from(u8::from(match kind {
                CompareKind::Eq => a == b,
                CompareKind::Ne => a != b,
                CompareKind::Lt => a < b,
                CompareKind::Le => a <= b,
                CompareKind::Gt => a > b,
                CompareKind::Ge => a >= b,
            }))
        }),
        Op::Where => each(&|i| if x[0].at(i) != 0.0 { x[1].at(i) } else { x[2].at(i) }),
        Op::Broadcast { .. } => each(&|i| x[0].at(i)),
        Op::Cumulative { kind, axis } => {
            let axis = wrap(*axis, dims.len());
            each(&|i| {
                let sofar = (0..=i[axis]).map(|j| x[0].at(&with(i, axis, j)));
                match kind {
                    CumulativeKind::Sum => sofar.sum(),
                    CumulativeKind::Prod => sofar.product(),
                    _ if sofar.clone().any(f64::is_nan) => f64::NAN,
                    CumulativeKind::Max => sofar.fold(f64::NEG_INFINITY, f64::max),
                    CumulativeKind::Min => sofar.fold(f64::INFINITY, f64::min),
                }
            })
        }
        Op::ArgSort { axis, descending } => {
            let axis = wrap(*axis, dims.len());
            each(&|i| {
                let mut order: Vec<usize> = (0..dims[axis]).collect();
                let key = |j: usize| x[0].at(&with(i, axis, j));
                // A stable sort; NaN above everything.
                order.sort_by(|&a, &b| {
                    let (a, b) = (key(a), key(b));
                    let ascending =
                        a.is_nan().cmp(&b.is_nan()).then(a.partial_cmp(&b).unwrap_or(std::cmp::Ordering::Equal));
                    if *descending { ascending.reverse() } else { ascending }
                });
                order[i[axis]] as f64
            })
        }
        Op::TakeAlong { axis } => {
            let axis = wrap(*axis, dims.len());
            each(&|i| x[0].at(&with(i, axis, x[1].at(i) as usize)))
        }
        Op::ScatterAlong { axis, kind } => {
            let axis = wrap(*axis, dims.len());
            let mut y = (*x[0]).clone();
            for i in indices(&x[1].dims) {
                let to = with(&i, axis, x[1].at(&i) as usize);
                let at = to.iter().zip(dims).fold(0, |at, (&i, &d)| at * d + i);
                let (old, new) = (y.data[at], x[2].at(&i));
                y.data[at] = match kind {
                    ScatterKind::Set => new,
                    ScatterKind::Add => old + new,
                    ScatterKind::Mul => old * new,
                    ScatterKind::Max | ScatterKind::Min if old.is_nan() || new.is_nan() => f64::NAN,
                    ScatterKind::Max => old.max(new),
                    ScatterKind::Min => old.min(new),
                };
            }
            y.data
        }
        Op::ArgReduce { kind, axis, keep_dims } => {
            let axis = wrap(*axis, x[0].dims.len());
            each(&|i| {
                let mut i = i.to_vec();
                if !keep_dims {
                    i.insert(axis, 0);
                }
                let row: Vec<f64> = (0..x[0].dims[axis]).map(|j| x[0].at(&with(&i, axis, j))).collect();
                let nan = row.iter().position(|v| v.is_nan());
                let best = match kind {
                    ArgReduceKind::Max => row.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                    ArgReduceKind::Min => row.iter().copied().fold(f64::INFINITY, f64::min),
                };
                nan.or_else(|| row.iter().position(|&v| v == best)).unwrap() as f64
            })
        }
        Op::Random { kind, .. } => {
            let (key, start) = (x[0].data[0] as i64 as u64, x[0].data[1] as i64 as u64);
            let word = |i: usize, a_block: usize| random::philox(key, u128::from(start) + (i / a_block) as u128);
            (0..dims.iter().product())
                .map(|i| match kind {
                    RandomKind::Uniform => random::uniform_f32(word(i, 4)[i % 4]).into(),
                    RandomKind::Normal => {
                        let words = word(i, 4);
                        let pair = if i % 4 < 2 { [words[0], words[1]] } else { [words[2], words[3]] };
                        random::normal(pair)[i % 2].into()
                    }
                    RandomKind::Bits => {
                        let (low, high) = (word(i, 2)[i % 2 * 2], word(i, 2)[i % 2 * 2 + 1]);
                        ((u64::from(high & 0x7FFF_FFFF) << 32) | u64::from(low)) as f64
                    }
                })
                .collect()
        }
        Op::Flip { axes } => each(&|i| {
            let mut i = i.to_vec();
            for axis in 0..dims.len() {
                if axes.is_empty() || axes.iter().any(|&a| wrap(a, dims.len()) == axis) {
                    i[axis] = dims[axis] - 1 - i[axis];
                }
            }
            x[0].at(&i)
        }),
        Op::Pad { before, value, .. } => each(&|i| {
            let from: Option<Vec<usize>> = (i.iter().zip(before).zip(&x[0].dims))
                .map(|((&i, &b), &d)| i.checked_sub(b as usize).filter(|&i| i < d))
                .collect();
            from.map_or(if x[0].dtype.is_float() { *value } else { value.trunc() }, |i| x[0].at(&i))
        }),
        op => unreachable!("{op:?}"),
    }
}

/// An index with another number along an axis.
fn with(index: &[usize], axis: usize, at: usize) -> Vec<usize> {
    let mut index = index.to_vec();
    index[axis] = at;
    index
}

fn unary(kind: UnaryKind, dtype: DType, v: f64) -> f64 {
    let flag = |b: bool| f64::from(u8::from(b));
    match kind {
        UnaryKind::Sin => v.sin(),
        UnaryKind::Cos => v.cos(),
        UnaryKind::Tan => v.tan(),
        UnaryKind::Asin => v.asin(),
        UnaryKind::Acos => v.acos(),
        UnaryKind::Atan => v.atan(),
        UnaryKind::Sinh => v.sinh(),
        UnaryKind::Cosh => v.cosh(),
        UnaryKind::Asinh => v.asinh(),
        UnaryKind::Acosh => v.acosh(),
        UnaryKind::Atanh => v.atanh(),
        UnaryKind::Erf => 2.0 * normal_cdf(v * std::f64::consts::SQRT_2) - 1.0,
        UnaryKind::Erfc => 2.0 * normal_cdf(-v * std::f64::consts::SQRT_2),
        UnaryKind::Erfinv => erfinv(v),
        UnaryKind::Lgamma => lgamma(v),
        // The slope of the logarithm; poles are tested beside the kernel.
        UnaryKind::Digamma => (lgamma(v + 1e-5) - lgamma(v - 1e-5)) / 2e-5,
        UnaryKind::Expm1 => v.exp_m1(),
        UnaryKind::Log1p => v.ln_1p(),
        UnaryKind::Log2 => v.log2(),
        UnaryKind::Log10 => v.log10(),
        UnaryKind::Exp2 => v.exp2(),
        UnaryKind::Rsqrt => 1.0 / v.sqrt(),
        UnaryKind::Reciprocal => 1.0 / v,
        // The mean of e^(v cos t): evenly spaced points find a periodic function's exactly.
        UnaryKind::I0 => {
            (0..400).map(|i| (v * (f64::from(i) * std::f64::consts::TAU / 400.0).cos()).exp()).sum::<f64>() / 400.0
        }
        UnaryKind::Floor => v.floor(),
        UnaryKind::Ceil => v.ceil(),
        UnaryKind::Round => {
            let down = v.floor();
            let up = v - down > 0.5 || (v - down == 0.5 && down % 2.0 != 0.0);
            if up { down + 1.0 } else { down }
        }
        UnaryKind::Trunc => v.trunc(),
        UnaryKind::Sign => flag(v > 0.0) - flag(v < 0.0),
        UnaryKind::Not if dtype == DType::Bool => 1.0 - v,
        UnaryKind::Not => -v - 1.0,
        UnaryKind::IsNan => flag(v.is_nan()),
        UnaryKind::IsInf => flag(v.abs() == f64::INFINITY),
        UnaryKind::IsFinite => flag(v.abs() < f64::INFINITY),
    }
}

fn binary(kind: BinaryKind, dtype: DType, a: f64, b: f64) -> f64 {
    let bits = |f: &dyn Fn(i64, i64) -> i64| f(a as i64, b as i64) as f64;
    let width = dtype.bytes() as f64 * 8.0;
    match kind {
        BinaryKind::Pow if !dtype.is_float() && b < 0.0 && a.abs() != 1.0 => 0.0,
        BinaryKind::Pow => a.powf(b),
        BinaryKind::Maximum | BinaryKind::Minimum if a.is_nan() || b.is_nan() => f64::NAN,
        BinaryKind::Maximum => a.max(b),
        BinaryKind::Minimum => a.min(b),
        BinaryKind::Remainder if a % b != 0.0 && (a % b < 0.0) != (b < 0.0) => a % b + b,
        BinaryKind::Remainder | BinaryKind::Fmod => a % b,
        BinaryKind::FloorDivide if b == 0.0 || (a % b).is_nan() => {
            if b == 0.0 {
                a / b
            } else {
                f64::NAN
            }
        }
        // A quotient too small to be seen.
        BinaryKind::FloorDivide if a % b != 0.0 && (a < 0.0) != (b < 0.0) => (a / b).floor().min(-1.0),
        // Two numbers of 24 bits have no quotient so near a whole one that f64 would round it there.
        BinaryKind::FloorDivide => (a / b).floor(),
        BinaryKind::Atan2 => a.atan2(b),
        BinaryKind::Hypot => a.hypot(b),
        BinaryKind::Copysign => a.copysign(b),
        BinaryKind::Nextafter => nextafter(dtype, a, b),
        BinaryKind::BitAnd => bits(&|a, b| a & b),
        BinaryKind::BitOr => bits(&|a, b| a | b),
        BinaryKind::BitXor => bits(&|a, b| a ^ b),
        BinaryKind::ShiftLeft => {
            if b < 0.0 || b >= width {
                0.0
            } else {
                a * b.exp2()
            }
        }
        BinaryKind::ShiftRight if b < 0.0 || b >= width => -f64::from(u8::from(a < 0.0)),
        BinaryKind::ShiftRight => (a / b.exp2()).floor(),
    }
}

/// The nearest of all numbers of the type beyond a: those around it are tried.
fn nextafter(dtype: DType, a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() || a == b {
        return if a == b { b } else { f64::NAN };
    }
    // Bits of the fraction, and the exponents of the least number and of the largest.
    let (fraction, least, most) = match dtype {
        DType::F32 => (23, -149, 127),
        DType::F16 => (10, -24, 15),
        _ => (7, -133, 127),
    };
    if a.is_infinite() {
        return (f64::from(most + 1).exp2() - f64::from(most - fraction).exp2()).copysign(a);
    }
    let up = b > a;
    let exponent = if a == 0.0 { least } else { a.abs().log2().floor() as i32 };
    // Towards 0 from a power of two the numbers are half as far apart.
    let halves = a != 0.0 && (a > 0.0) != up && a.abs() == f64::from(exponent).exp2();
    let step = f64::from((exponent - fraction - i32::from(halves)).max(least)).exp2();
    if up { a + step } else { a - step }
}

/// By halving the interval that it lies in.
fn erfinv(v: f64) -> f64 {
    if v.abs() >= 1.0 || v.is_nan() {
        return if v.abs() == 1.0 { v * f64::INFINITY } else { f64::NAN };
    }
    let (mut low, mut high) = (0.0, 6.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        let tail = 2.0 * normal_cdf(-middle * std::f64::consts::SQRT_2);
        if tail > 1.0 - v.abs() { low = middle } else { high = middle }
    }
    low.copysign(v)
}

/// By Stirling's series far out, to where the recurrence leads.
fn lgamma(v: f64) -> f64 {
    if v == f64::INFINITY || (v <= 0.0 && v == v.floor()) {
        return f64::INFINITY;
    }
    let (mut v, mut sum) = (v, 0.0);
    while v < 40.0 {
        sum -= v.abs().ln();
        v += 1.0;
    }
    sum + (v - 0.5) * v.ln() - v + 0.5 * std::f64::consts::TAU.ln() + 1.0 / (12.0 * v) - 1.0 / (360.0 * v.powi(3))
}
