//! Batch norm.

use genie_cuda_kernels::launch::batch_norm::{BatchNorm, batch_norm};
use genie_cuda_kernels::launch::elementwise::Unary;
use genie_graph::DType;

use super::support::{FLOATS, Tensor, assert_close, precision, run};

#[test]
fn channels_have_their_own_numbers() {
    const EPS: f32 = 1e-3;
    for dtype in FLOATS {
        for (i, sizes) in
            [[2, 5, 1], [1, 3, 64], [3, 7, 49], [1, 2, 4100], [2, 300, 8], [0, 3, 8], [2, 3, 0]].into_iter().enumerate()
        {
            let (channels, inner) = (sizes[1], sizes[2]);
            let count = sizes.iter().product::<usize>();
            let x = Tensor::random(dtype, count, 2.0, i as u64);
            let vector = |seed| Tensor::random(FLOATS[(i + seed) % 3], channels, 1.0, seed as u64);
            let (weight, bias, mean) = (vector(10), vector(11), vector(12));
            let variance: Vec<f64> = vector(13).values().iter().map(|v| v * v).collect();
            let variance = Tensor::new(DType::F32, &variance);
            for activation in [None, Some(Unary::Relu)] {
                let mut y = Tensor::poisoned(dtype, count);
                let tensors = BatchNorm {
                    x: x.view(),
                    weight: weight.view(),
                    bias: bias.view(),
                    mean: mean.view(),
                    variance: variance.view(),
                    y: y.view(),
                };
                run(batch_norm(sizes.map(|n| n as u64), EPS, &tensors, activation), &mut [&mut y]);
                let (w, b, m, v) = (weight.values(), bias.values(), mean.values(), variance.values());
                let one = |(i, x): (usize, f64)| {
                    let c = i / inner % channels;
                    let y = (x - m[c]) / (v[c] + f64::from(EPS)).sqrt() * w[c] + b[c];
                    if activation.is_some() { y.max(0.0) } else { y }
                };
                let expected: Vec<f64> = x.values().into_iter().enumerate().map(one).collect();
                // A few roundings in f32 of terms that may cancel, then one to the type.
                let largest = expected.iter().fold(1.0_f64, |most, v| most.max(v.abs()));
                let what = format!("{dtype} {sizes:?} {activation:?}");
                assert_close(&what, &y.values(), &expected, 0.5 * precision(dtype) + 1e-6, 1e-6 * largest);
            }
        }
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (x, c) = (Tensor::poisoned(DType::F16, 12), Tensor::poisoned(DType::F32, 3));
    let all = |view, y| BatchNorm { x: x.view(), weight: view, bias: view, mean: view, variance: view, y };
    assert!(batch_norm([2, 3, 2], 0.0, &all(c.view(), x.view()), None).expect("in place").is_some());
    assert!(batch_norm([2, 2, 3], 0.0, &all(c.view(), x.view()), None).is_err(), "two channels");
    assert!(batch_norm([3, 3, 2], 0.0, &all(c.view(), x.view()), None).is_err(), "three images");
    assert!(batch_norm([4, 1, 3], 0.0, &all(c.view(), c.view()), None).is_err(), "another type");
    assert!(batch_norm([u64::MAX, 3, 2], 0.0, &all(c.view(), x.view()), None).is_err());
    assert!(batch_norm([2, 3, 2], 0.0, &all(c.view(), x.view()), Some(Unary::Neg)).is_err());
}
