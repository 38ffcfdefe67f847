//! Elementwise kernels.

use genie_cuda_kernels::launch::elementwise::{Activation, Unary, bias_activation, gated, unary};
use genie_graph::DType;

use super::support::{FLOATS, Tensor, assert_close, precision, run, run_any_grid, run_over};

/// (the function, what it computes, its error in units of the type's last place, and near zero in absolute terms).
type Case = (Unary, fn(f64) -> f64, f64, f64);

const UNARY: [Case; 11] = [
    (Unary::Relu, |x| if x.is_nan() { x } else { x.max(0.0) }, 0.0, 0.0),
    (Unary::Silu, silu, 4.0, 1e-7),
    (Unary::Gelu, gelu, 6.0, 0.0),
    (Unary::GeluTanh, gelu_tanh, 6.0, 1e-6),
    (Unary::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 4.0, 1e-7),
    (Unary::Tanh, f64::tanh, 4.0, 1e-7),
    (Unary::Exp, f64::exp, 4.0, 0.0),
    (Unary::Log, f64::ln, 2.0, 1e-7),
    (Unary::Sqrt, f64::sqrt, 0.0, 0.0),
    (Unary::Abs, f64::abs, 0.0, 0.0),
    (Unary::Neg, |x| -x, 0.0, 0.0),
];

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x.powi(3))).tanh())
}

/// x Phi(x), with Phi by Simpson's rule from far below, where the density is nothing.
fn gelu(x: f64) -> f64 {
    if !x.is_finite() || x > 9.0 {
        return if x < 0.0 { f64::NAN } else { x };
    }
    let density = |t: f64| (-0.5 * t * t).exp() / std::f64::consts::TAU.sqrt();
    let (steps, from) = (4000, x.min(0.0) - 10.0);
    let width = (x - from) / f64::from(steps);
    let weight = |i: i32| if i == 0 || i == steps { 1.0 } else { f64::from(2 + i % 2 * 2) };
    let sum: f64 = (0..=steps).map(|i| weight(i) * density(from + f64::from(i) * width)).sum();
    x * sum * width / 3.0
}

#[test]
fn edges_are_as_on_the_cpu_device() {
    let x = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.0, -100.0, 100.0, -5.5, -9.0, 1e-30];
    let of = |function| {
        let (x, mut y) = (Tensor::new(DType::F32, &x), Tensor::poisoned(DType::F32, x.len()));
        run(unary(function, x.view(), y.view()), &mut [&mut y]);
        y.values()
    };
    for function in [Unary::Relu, Unary::Silu, Unary::Gelu, Unary::GeluTanh, Unary::Sigmoid, Unary::Tanh, Unary::Exp] {
        let y = of(function);
        assert!(y[0].is_nan(), "{function:?} loses NaN");
        let rises = !matches!(function, Unary::Sigmoid | Unary::Tanh);
        assert_eq!(y[1], if rises { f64::INFINITY } else { 1.0 }, "{function:?} of infinity");
    }
    assert!(of(Unary::Gelu)[2].is_nan() && of(Unary::Silu)[2].is_nan());
    assert_eq!(of(Unary::Relu)[2..7], [0.0, 0.0, 0.0, 0.0, 100.0]);
    assert!(of(Unary::Relu)[3].is_sign_negative());
    // Far below, an error function that is 1 loses every digit.
    let tails = of(Unary::Gelu);
    for (i, expected) in [(7, -5.5 * 1.898_956_246_588_773e-8), (8, -9.0 * 1.128_588_405_953_840_5e-19)] {
        assert!((tails[i] / expected - 1.0).abs() < 1e-6, "{} {expected}", tails[i]);
    }
}

/// The function, and what it computes.
type Follows = (Activation, fn(f64) -> f64);

const ACTIVATIONS: [Follows; 7] = [
    (Activation::None, |x| x),
    (Activation::Relu, |x| x.max(0.0)),
    (Activation::Silu, silu),
    (Activation::Gelu, gelu),
    (Activation::GeluTanh, gelu_tanh),
    (Activation::Sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
    (Activation::Tanh, f64::tanh),
];

#[test]
fn gates_multiply() {
    for dtype in FLOATS {
        for (count, first) in [(0, 0), (5, 0), (1000, 0), (1003, 1)] {
            let (x, gate) = (Tensor::random(dtype, count, 2.0, 1), Tensor::random(dtype, count, 1.0, 2));
            for (activation, reference) in ACTIVATIONS {
                let mut y = Tensor::poisoned(dtype, count);
                let launch = gated(activation, x.tail(first), gate.tail(first), y.tail(first));
                run(launch, &mut [&mut y]);
                let pairs = x.values().into_iter().zip(gate.values()).skip(first as usize);
                let expected: Vec<f64> = pairs.map(|(x, gate)| reference(x) * gate).collect();
                let what = format!("{activation:?} of {count} {dtype}");
                assert_close(&what, &y.values()[first as usize..], &expected, 8.0 * precision(dtype), 2e-7);
            }
        }
    }
}

#[test]
fn biases_and_residuals_are_added() {
    for dtype in FLOATS {
        for (rows, width) in [(1, 1), (3, 8), (5, 77), (2, 2056), (70, 32), (0, 4)] {
            let count = rows * width;
            let x = Tensor::random(dtype, count, 1.0, 3);
            let residual = Tensor::random(dtype, count, 1.0, 5);
            for (i, (activation, reference)) in ACTIVATIONS.into_iter().enumerate() {
                let bias = Tensor::random(FLOATS[i % 3], width, 1.0, 4);
                let mut y = Tensor::poisoned(dtype, count);
                let (with_bias, with_residual) = (i != 1, i % 2 == 0);
                let launch = bias_activation(
                    activation,
                    x.view(),
                    with_bias.then(|| bias.view()),
                    with_residual.then(|| residual.view()),
                    y.view(),
                    rows as u64,
                    width as u64,
                );
                run(launch, &mut [&mut y]);
                let (b, r) = (bias.values(), residual.values());
                let at = |i: usize, x: f64| {
                    let sum = x + if with_bias { b[i % width] } else { 0.0 };
                    reference(sum) + if with_residual { r[i] } else { 0.0 }
                };
                let expected: Vec<f64> = x.values().into_iter().enumerate().map(|(i, x)| at(i, x)).collect();
                let what = format!("{activation:?} of {rows} x {width} {dtype}");
                // The terms may cancel: errors are those of the largest.
                assert_close(&what, &y.values(), &expected, precision(dtype), 4e-6);
            }
        }
    }
}

#[test]
fn in_place_is_allowed() {
    let mut x = Tensor::random(DType::BF16, 333, 1.0, 6);
    let expected: Vec<f64> = x.values().iter().map(|x| -x).collect();
    run_over(&[unary(Unary::Neg, x.view(), x.view()).expect("a launch")], &mut x);
    assert_eq!(x.values(), expected);
}

#[test]
fn unary_functions_of_floats() {
    for dtype in FLOATS {
        // Half of the last place below f16's normal numbers.
        let tiny = if dtype == DType::F16 { 3e-8 } else { 0.0 };
        for (count, first) in [(0, 0), (1, 0), (7, 0), (8, 0), (255, 0), (1000, 0), (4099, 0), (999, 3)] {
            let x = Tensor::random(dtype, count, 3.0, count as u64);
            let values = x.values().split_off(first);
            for (function, reference, units, absolute) in UNARY {
                let mut y = Tensor::poisoned(dtype, count);
                let launch = unary(function, x.tail(first as u64), y.tail(first as u64));
                run_any_grid(&[launch.expect("a launch")], &mut [&mut y]);
                let expected: Vec<f64> = values.iter().map(|&v| reference(v)).collect();
                let what = format!("{function:?} of {count} {dtype}");
                assert_close(&what, &y.values()[first..], &expected, (units + 0.5) * precision(dtype), absolute + tiny);
            }
        }
    }
}

#[test]
fn integers_wrap() {
    for (dtype, least) in [(DType::I32, f64::from(i32::MIN)), (DType::I64, i64::MIN as f64)] {
        let x = Tensor::new(dtype, &[0.0, 5.0, -7.0, least]);
        for (function, expected) in [(Unary::Abs, [0.0, 5.0, 7.0, least]), (Unary::Neg, [0.0, -5.0, 7.0, least])] {
            let mut y = Tensor::poisoned(dtype, 4);
            run(unary(function, x.view(), y.view()), &mut [&mut y]);
            assert_eq!(y.values(), expected);
        }
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (x, y) = (Tensor::poisoned(DType::F32, 8), Tensor::poisoned(DType::F16, 8));
    assert!(unary(Unary::Relu, x.view(), y.view()).is_err());
    let short = Tensor::poisoned(DType::F32, 7);
    let error = unary(Unary::Relu, x.view(), short.view()).expect_err("y is too short");
    assert_eq!(error.to_string(), "`unary` needs 8 elements of y, but the tensor has 7");
    let bytes = Tensor::poisoned(DType::U8, 8);
    assert!(unary(Unary::Abs, bytes.view(), bytes.view()).is_err());
}
