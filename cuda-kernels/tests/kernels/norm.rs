//! Norms of rows.

use genie_cuda_kernels::View;
use genie_cuda_kernels::launch::norm::{Addition, Norm, norm};
use genie_graph::DType;

use super::support::{FLOATS, Tensor, assert_close, precision, rounded, run, run_once};

const EPS: f32 = 1e-5;

/// Rows of the norm in f64: weight and bias repeat.
fn reference(x: &[f64], width: usize, weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let n = width as f64;
        let mean = if bias.is_some() { row.iter().sum::<f64>() / n } else { 0.0 };
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let factor = 1.0 / (variance + f64::from(EPS)).sqrt();
        (0..width).map(|i| (row[i] - mean) * factor * weight[i] + bias.map_or(0.0, |b| b[i])).collect()
    };
    x.chunks(width).flat_map(row).collect()
}

struct Case {
    rows: usize,
    width: usize,
    dtype: DType,
    weights: DType,
    layer: bool,
    add: bool,
    in_place: bool,
}

fn check(case: &Case) {
    let Case { rows, width, dtype, weights, layer, add, in_place } = *case;
    let what = format!("{dtype} {rows} x {width}, {weights}, layer {layer}, add {add}, in place {in_place}");
    let count = rows * width;
    let seed = count as u64;
    let x = Tensor::random(dtype, count, 2.0, seed);
    let residual = Tensor::random(dtype, count, 1.0, seed + 1);
    let weight = Tensor::random(weights, width, 1.0, seed + 2);
    let bias = Tensor::random(weights, width, 1.0, seed + 3);
    let sums: Vec<f64> = x.values().iter().zip(residual.values()).map(|(a, b)| a + b).collect();
    let (mut sum, mut y) = (Tensor::poisoned(dtype, count), Tensor::poisoned(dtype, count));
    let which = match layer {
        true => Norm::Layer { weight: weight.view(), bias: bias.view() },
        false => Norm::Rms { weight: weight.view() },
    };
    let (rows, wide) = (rows as u64, width as u64);
    if in_place {
        // Once only: each order would start from what the last one left.
        let target = Tensor::new(dtype, &x.values());
        let residuals = Tensor::new(dtype, &residual.values());
        let addition = add.then(|| Addition { residual: residuals.view(), sum: residuals.view() });
        let launch = norm(which, rows, wide, EPS, target.view(), addition, target.view()).expect("a launch");
        run_once(&launch);
        y = target;
        sum = residuals;
    } else {
        let addition = add.then(|| Addition { residual: residual.view(), sum: sum.view() });
        let launch = norm(which, rows, wide, EPS, x.view(), addition, y.view());
        let mut outputs = if add { vec![&mut y, &mut sum] } else { vec![&mut y] };
        run(launch, &mut outputs);
    }
    let read = if add { rounded(dtype, &sums) } else { x.values() };
    if add {
        assert_eq!(sum.values(), read, "{what}: sums");
    }
    let expected = reference(&read, width, &weight.values(), layer.then(|| bias.values()).as_deref());
    // The result is rounded once, by half a unit; the f32 sums before it add a few of f32's. Near zero, terms cancel.
    assert_close(&what, &y.values(), &expected, 0.5 * precision(dtype) + 2e-6, 4e-6);
}

#[test]
fn norms_of_rows() {
    // A warp a row, a block a row, more than registers hold, and rows that are not aligned.
    let shapes =
        [(5, 16), (9, 64), (3, 512), (2, 1600), (1, 2048), (2, 4096), (1, 8200), (1, 16640), (3, 1), (2, 577), (3, 33)];
    for dtype in FLOATS {
        for (i, (rows, width)) in shapes.into_iter().enumerate() {
            let case = |layer, add, in_place| Case { rows, width, dtype, weights: FLOATS[i % 3], layer, add, in_place };
            check(&case(true, false, false));
            check(&case(false, true, false));
            check(&case(i % 2 == 0, true, true));
            check(&case(i % 2 == 1, false, true));
        }
    }
}

/// Rows that become another type on the way: what a product of 16 bits reads of a residual stream of 32.
#[test]
fn norms_into_another_type() {
    let shapes = [(5, 16), (3, 512), (2, 1600), (1, 8200), (3, 1), (2, 577), (3, 33)];
    for (dtype, to) in [(DType::F32, DType::F16), (DType::F32, DType::BF16), (DType::BF16, DType::F32)] {
        for (i, (rows, width)) in shapes.into_iter().enumerate() {
            let count = rows * width;
            let x = Tensor::random(dtype, count, 2.0, count as u64);
            let weight = Tensor::random(FLOATS[i % 3], width, 1.0, 2);
            let bias = Tensor::random(FLOATS[i % 3], width, 1.0, 3);
            for layer in [false, true] {
                let which = match layer {
                    true => Norm::Layer { weight: weight.view(), bias: bias.view() },
                    false => Norm::Rms { weight: weight.view() },
                };
                let mut y = Tensor::poisoned(to, count);
                run(norm(which, rows as u64, width as u64, EPS, x.view(), None, y.view()), &mut [&mut y]);
                let bias = layer.then(|| bias.values());
                let expected = reference(&x.values(), width, &weight.values(), bias.as_deref());
                let what = format!("{dtype} to {to}, {rows} x {width}");
                assert_close(&what, &y.values(), &expected, 0.5 * precision(to) + 2e-6, 4e-6);
            }
        }
    }
}

#[test]
fn a_small_variance_keeps_its_digits() {
    let width = 512;
    let values: Vec<f64> = (0..width).map(|i| 4096.0 + f64::from(i % 2)).collect();
    let (x, mut y) = (Tensor::new(DType::F32, &values), Tensor::poisoned(DType::F32, width as usize));
    let weight = Tensor::new(DType::F32, &vec![1.0; width as usize]);
    let bias = Tensor::new(DType::F32, &vec![0.0; width as usize]);
    let layer = Norm::Layer { weight: weight.view(), bias: bias.view() };
    run(norm(layer, 1, width as u64, EPS, x.view(), None, y.view()), &mut [&mut y]);
    let expected = reference(&values, width as usize, &weight.values(), Some(&bias.values()));
    assert_close("small variance", &y.values(), &expected, 1e-6, 0.0);
}

#[test]
fn nan_and_infinity_stay_in_their_row() {
    let (rows, width) = (3, 64);
    let mut values = vec![1.0; rows * width];
    values[5] = f64::NAN;
    values[width + 7] = f64::INFINITY;
    for dtype in FLOATS {
        let (x, mut y) = (Tensor::new(dtype, &values), Tensor::poisoned(dtype, rows * width));
        let weight = Tensor::new(dtype, &vec![1.0; width]);
        run(norm(Norm::Rms { weight: weight.view() }, 3, 64, EPS, x.view(), None, y.view()), &mut [&mut y]);
        let y = y.values();
        assert!(y[..width].iter().all(|v| v.is_nan()));
        // Finite numbers over an infinite root are 0; infinity over it is NaN.
        assert!(y[width..2 * width].iter().enumerate().all(|(i, v)| if i == 7 { v.is_nan() } else { *v == 0.0 }));
        assert!(y[2 * width..].iter().all(|v| (v - 1.0).abs() < 1e-2));
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let x = Tensor::poisoned(DType::F16, 32);
    let weight = Tensor::poisoned(DType::F32, 8);
    let launch = |norm_of, rows, width, y: &Tensor| norm(norm_of, rows, width, EPS, x.view(), None, y.view());
    let rms = Norm::Rms { weight: weight.view() };
    assert!(launch(rms, 4, 8, &x).expect("in place").is_some());
    assert!(launch(rms, 2, 16, &x).is_err(), "the weight is shorter than a row");
    assert!(launch(rms, 5, 8, &x).is_err(), "there are four rows");
    assert!(launch(rms, 4, 8, &Tensor::poisoned(DType::I32, 32)).is_err(), "no float type");
    let wide = View { dtype: DType::F32, elements: 32, ..x.view() };
    assert!(norm(rms, 4, 8, EPS, x.view(), None, wide).is_err(), "another type in place");
    let bytes = Tensor::poisoned(DType::U8, 8);
    assert!(launch(Norm::Rms { weight: bytes.view() }, 4, 8, &x).is_err());
    let none = Tensor::poisoned(DType::F32, 0);
    assert!(norm(rms, 0, 8, EPS, none.view(), None, none.view()).expect("nothing to do").is_none());
    assert!(norm(rms, u64::MAX, 8, EPS, none.view(), None, none.view()).is_err());
}
