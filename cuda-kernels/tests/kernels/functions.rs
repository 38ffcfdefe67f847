//! Functions of one element, in many kinds.

use genie_cuda_kernels::launch::functions::function;
use genie_graph::{DType, UnaryKind};

use super::support::{FLOATS, INTEGERS, Tensor, assert_close, precision, run, run_any_grid};

/// (the kind, what it computes, what makes any number one that it is defined for).
type Case = (UnaryKind, fn(f64) -> f64, fn(f64) -> f64);

/// Those that the standard library has for f64; the device's suite has the others.
const CASES: [Case; 26] = [
    (UnaryKind::Sin, f64::sin, same),
    (UnaryKind::Cos, f64::cos, same),
    (UnaryKind::Tan, f64::tan, same),
    (UnaryKind::Asin, f64::asin, f64::sin),
    (UnaryKind::Acos, f64::acos, f64::sin),
    (UnaryKind::Atan, f64::atan, same),
    (UnaryKind::Sinh, f64::sinh, same),
    (UnaryKind::Cosh, f64::cosh, same),
    (UnaryKind::Asinh, f64::asinh, same),
    (UnaryKind::Acosh, f64::acosh, |x| 1.0 + x.abs()),
    (UnaryKind::Atanh, f64::atanh, |x| x.sin() * 0.9),
    (UnaryKind::Expm1, f64::exp_m1, same),
    (UnaryKind::Log1p, f64::ln_1p, f64::abs),
    (UnaryKind::Log2, f64::log2, f64::abs),
    (UnaryKind::Log10, f64::log10, f64::abs),
    (UnaryKind::Exp2, f64::exp2, same),
    (UnaryKind::Rsqrt, |x| 1.0 / x.sqrt(), |x| x.abs() + 0.1),
    (UnaryKind::Reciprocal, |x| 1.0 / x, |x| x.abs() + 0.1),
    (UnaryKind::Floor, f64::floor, |x| (x * 8.0).round() / 2.0),
    (UnaryKind::Ceil, f64::ceil, |x| (x * 8.0).round() / 2.0),
    (UnaryKind::Round, f64::round_ties_even, |x| (x * 8.0).round() / 2.0),
    (UnaryKind::Trunc, f64::trunc, |x| (x * 8.0).round() / 2.0),
    (UnaryKind::Sign, |x| if x == 0.0 { 0.0 } else { x.signum() }, |x| x.round()),
    (UnaryKind::IsNan, |x| f64::from(u8::from(x.is_nan())), |x| if x > 1.0 { f64::NAN } else { x }),
    (UnaryKind::IsInf, |x| f64::from(u8::from(x.is_infinite())), |x| if x > 1.0 { f64::INFINITY } else { x }),
    (UnaryKind::IsFinite, |x| f64::from(u8::from(x.is_finite())), |x| if x > 1.0 { f64::NEG_INFINITY } else { x }),
];

fn same(x: f64) -> f64 {
    x
}

#[test]
fn functions_of_floats() {
    for dtype in FLOATS {
        for (count, first) in [(0, 0), (7, 0), (1000, 0), (1003, 1)] {
            let x = Tensor::random(dtype, count, 2.0, 1).values();
            for (kind, reference, domain) in CASES {
                let x = Tensor::new(dtype, &x.iter().map(|&x| domain(x)).collect::<Vec<_>>());
                let mut y = Tensor::poisoned(kind.result(dtype), count);
                let launch = function(kind, x.tail(first), y.tail(first)).expect("a launch");
                run_any_grid(&[launch], &mut [&mut y]);
                let expected: Vec<f64> = x.values()[first as usize..].iter().map(|&x| reference(x)).collect();
                let near = if kind.result(dtype) == DType::Bool { 0.0 } else { 4.0 * precision(dtype) };
                assert_close(&format!("{kind:?} {dtype}"), &y.values()[first as usize..], &expected, near, near / 4.0);
            }
        }
    }
}

#[test]
fn integers_and_bools() {
    let of = |kind, dtype, values: &[f64]| {
        let (x, mut y) = (Tensor::new(dtype, values), Tensor::poisoned(dtype, values.len()));
        run(function(kind, x.view(), y.view()), &mut [&mut y]);
        y.values()
    };
    for dtype in [DType::I64, DType::I32] {
        assert_eq!(of(UnaryKind::Sign, dtype, &[-7.0, 0.0, 9.0]), [-1.0, 0.0, 1.0]);
        assert_eq!(of(UnaryKind::Not, dtype, &[-7.0, 0.0, 9.0]), [6.0, -1.0, -10.0]);
    }
    assert_eq!(of(UnaryKind::Sign, DType::U8, &[0.0, 200.0]), [0.0, 1.0]);
    assert_eq!(of(UnaryKind::Not, DType::U8, &[0.0, 200.0]), [255.0, 55.0]);
    assert_eq!(of(UnaryKind::Not, DType::Bool, &[0.0, 1.0, 1.0]), [1.0, 0.0, 0.0]);
}

/// Poles and ends, where a library's function and the device that has it must agree.
#[test]
fn poles_and_ends() {
    let of = |kind, values: &[f64]| {
        let (x, mut y) = (Tensor::new(DType::F32, values), Tensor::poisoned(DType::F32, values.len()));
        run(function(kind, x.view(), y.view()), &mut [&mut y]);
        y.values()
    };
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let near = |got: Vec<f64>, expected: &[f64]| assert_close("poles", &got, expected, 1e-6, 0.0);
    near(of(UnaryKind::Digamma, &[0.0, -0.0, -3.0, inf, -inf, nan]), &[-inf, inf, nan, inf, nan, nan]);
    near(of(UnaryKind::Digamma, &[1.0, 10.5, -0.5]), &[-0.577_215_664_9, 2.303_001_034_3, 0.036_489_973_978_6]);
    near(of(UnaryKind::Erfinv, &[1.0, -1.0, 2.0, nan, 0.5]), &[inf, -inf, nan, nan, 0.476_936_276_2]);
    near(of(UnaryKind::I0, &[inf, -inf, nan, 0.0, -10.0]), &[inf, inf, nan, 1.0, 2_815.716_628_5]);
    near(of(UnaryKind::Lgamma, &[0.0, -4.0, inf, 2.0, 0.5]), &[inf, inf, inf, 0.0, 0.572_364_942_9]);
}

#[test]
fn what_a_kind_does_not_take_is_refused() {
    for dtype in INTEGERS {
        let x = Tensor::poisoned(dtype, 3);
        for kind in [UnaryKind::Sin, UnaryKind::Floor, UnaryKind::IsNan] {
            assert!(function(kind, x.view(), x.view()).is_err(), "{kind:?} {dtype}");
        }
    }
    let (x, flags) = (Tensor::poisoned(DType::F32, 3), Tensor::poisoned(DType::Bool, 3));
    assert!(function(UnaryKind::Not, x.view(), x.view()).is_err());
    assert!(function(UnaryKind::IsNan, x.view(), x.view()).is_err());
    assert!(function(UnaryKind::Sin, x.view(), x.tail(1)).is_err());
    assert!(function(UnaryKind::Sign, flags.view(), flags.view()).is_err());
}
