//! Rotary position embedding.

use std::f32::consts::{FRAC_PI_2, FRAC_PI_4, PI};

use genie_cuda_kernels::launch::rope::{Angles, Part, frequencies, rope};
use genie_graph::{DType, RopeStyle};

use super::support::{FLOATS, Tensor, assert_close, precision, run, run_once};

/// A row's heads turned by the angles of f32 products, as the CPU device has them.
fn reference(x: &[f64], head_dim: usize, position: i32, table: &[f32], style: RopeStyle) -> Vec<f64> {
    let half = head_dim / 2;
    let mut y = x.to_vec();
    for head in y.chunks_mut(head_dim) {
        for i in 0..half {
            let (a, b) = match style {
                RopeStyle::Half => (i, i + half),
                RopeStyle::Interleaved => (2 * i, 2 * i + 1),
            };
            let (sin, cos) = f64::from(position as f32 * table[i]).sin_cos();
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
        }
    }
    y
}

fn table(theta: f64, half: usize) -> Vec<f32> {
    (0..half).map(|i| theta.powf(-(i as f64) / half as f64) as f32).collect()
}

fn angles(style: RopeStyle, head_dim: u64, positions: &Tensor, table: &Tensor) -> Angles {
    let (positions, frequencies) = (positions.view(), table.view());
    Angles { style, head_dim, tokens: positions.elements, positions, frequencies }
}

fn tensor(values: &[f32]) -> Tensor {
    Tensor::new(DType::F32, &values.iter().map(|&v| v.into()).collect::<Vec<_>>())
}

#[test]
fn queries_and_keys_are_turned() {
    let positions = [0, 1, 77, 131_071, 1_000_000, -3];
    let tokens = positions.len();
    let at = Tensor::new(DType::I32, &positions.map(f64::from));
    for dtype in FLOATS {
        for (head_dim, heads, keys, offset) in
            [(64, 3, 1, 0), (128, 2, 2, 16), (2, 5, 3, 0), (80, 1, 4, 0), (12, 3, 1, 1)]
        {
            for style in [RopeStyle::Half, RopeStyle::Interleaved] {
                let frequencies = table(10_000.0, head_dim / 2);
                let (wide, narrow) = (heads * head_dim, keys * head_dim);
                // Queries lie in rows that are longer; keys do not, unless they start at an odd place.
                let stride = wide + offset;
                let q = Tensor::random(dtype, tokens * stride, 1.0, 1);
                let k = Tensor::random(dtype, tokens * narrow, 1.0, 2);
                let mut q_out = Tensor::poisoned(dtype, tokens * wide);
                let mut k_out = Tensor::poisoned(dtype, tokens * narrow);
                let part = |x: &Tensor, x_stride: usize, y: &Tensor, heads: usize| Part {
                    x: x.view(),
                    x_stride: x_stride as u64,
                    y: y.view(),
                    y_stride: (heads * head_dim) as u64,
                    heads: heads as u64,
                };
                let (queries, keys) = (part(&q, stride, &q_out, heads), part(&k, narrow, &k_out, keys));
                let table = tensor(&frequencies);
                let launch = rope(angles(style, head_dim as u64, &at, &table), queries, Some(keys), 8);
                run(launch, &mut [&mut q_out, &mut k_out]);
                for (x, y, stride, width) in [(&q, &q_out, stride, wide), (&k, &k_out, narrow, narrow)] {
                    let (x, y) = (x.values(), y.values());
                    for (token, &position) in positions.iter().enumerate() {
                        let row = &x[token * stride..][..width];
                        let expected = reference(row, head_dim, position, &frequencies, style);
                        let what = format!("{dtype} {style:?} {head_dim} at {position}");
                        // Two products of f32 and one rounding to the type.
                        assert_close(&what, &y[token * width..][..width], &expected, 0.5 * precision(dtype), 1e-6);
                    }
                }
            }
        }
    }
}

#[test]
fn in_place_and_one_part() {
    let (tokens, heads, head_dim) = (3, 2, 32);
    let positions = Tensor::new(DType::I32, &[5.0, 6.0, 7.0]);
    let frequencies = table(500_000.0, head_dim / 2);
    for dtype in FLOATS {
        let x = Tensor::random(dtype, tokens * heads * head_dim, 1.0, 9);
        let before = x.values();
        let stride = (heads * head_dim) as u64;
        let part = Part { x: x.view(), x_stride: stride, y: x.view(), y_stride: stride, heads: heads as u64 };
        let table = tensor(&frequencies);
        let launch = rope(angles(RopeStyle::Interleaved, 32, &positions, &table), part, None, 132);
        run_once(&launch.expect("a launch"));
        let expected: Vec<f64> = before
            .chunks(heads * head_dim)
            .zip(5..)
            .flat_map(|(row, at)| reference(row, head_dim, at, &frequencies, RopeStyle::Interleaved))
            .collect();
        assert_close("in place", &x.values(), &expected, 0.5 * precision(dtype), 1e-6);
    }
}

/// Every quarter of the circle and its borders, and angles that are none.
#[test]
fn angles_of_any_size() {
    let scale = [1.0, FRAC_PI_4, FRAC_PI_2, PI, 0.1, 4.0 * PI, 1e-30, f32::INFINITY, f32::NAN, 3e38];
    let at = [0, 1, 2, 3, 4, 5, 7, -1, -2, 1_000_000, i32::MAX];
    let half = scale.len();
    let pairs: Vec<f64> = (0..at.len() * 2 * half).map(|i| f64::from(u8::from(i % (2 * half) < half))).collect();
    let (x, mut y) = (Tensor::new(DType::F32, &pairs), Tensor::poisoned(DType::F32, pairs.len()));
    let stride = 2 * half as u64;
    let part = Part { x: x.view(), x_stride: stride, y: y.view(), y_stride: stride, heads: 1 };
    let positions = Tensor::new(DType::I32, &at.map(f64::from));
    let table = tensor(&scale);
    let launch = rope(angles(RopeStyle::Half, stride, &positions, &table), part, None, 4);
    run(launch, &mut [&mut y]);
    for (row, &position) in y.values().chunks(2 * half).zip(&at) {
        for i in 0..half {
            let angle = position as f32 * scale[i];
            let (sin, cos) = f64::from(angle).sin_cos();
            let known = angle.abs() < 8_589_934_592.0;
            let expected = if known { [cos, sin] } else { [f64::NAN; 2] };
            assert_close(&format!("angle {angle:e}"), &[row[i], row[half + i]], &expected, 1.3e-7, 1e-10);
        }
    }
}

#[test]
fn frequencies_are_those_of_the_cpu() {
    for (theta, half) in [(10_000.0, 64), (500_000.0, 37), (1.0, 1)] {
        let mut y = Tensor::poisoned(DType::F32, half);
        run(frequencies(theta, 2 * half as u64, y.view()), &mut [&mut y]);
        let expected: Vec<f64> = table(theta.into(), half).into_iter().map(f64::from).collect();
        assert_eq!(y.values(), expected);
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let x = Tensor::poisoned(DType::F32, 24);
    let (positions, table) = (Tensor::poisoned(DType::I32, 2), Tensor::poisoned(DType::F32, 2));
    let part = |stride, heads| Part { x: x.view(), x_stride: stride, y: x.view(), y_stride: stride, heads };
    let launch = |head_dim, part| rope(angles(RopeStyle::Half, head_dim, &positions, &table), part, None, 1);
    assert!(launch(4, part(12, 3)).expect("two rows of three heads").is_some());
    assert!(launch(4, part(11, 3)).is_err(), "rows that overlap");
    assert!(launch(4, part(13, 3)).is_err(), "past the end");
    assert!(launch(3, part(12, 3)).is_err(), "an odd head");
    assert!(launch(6, part(12, 2)).is_err(), "a table for other heads");
    assert!(launch(4, part(12, u64::MAX / 2)).is_err());
    assert!(launch(4, part(12, 0)).expect("no heads").is_none());
    assert!(frequencies(1.0, 4096, table.view()).is_err());
}
