//! Convolutions in two dimensions.

use genie_cuda_kernels::launch::conv::{Conv, Piece, Tensors, conv2d, windows};
use genie_cuda_kernels::launch::elementwise::Unary;
use genie_graph::DType;

use super::support::{FLOATS, Tensor, assert_close, precision, run};

const PLAIN: Conv = Conv {
    images: 1,
    channels: 1,
    size: [1, 1],
    outputs: 1,
    kernel: [1, 1],
    stride: [1, 1],
    padding: [0; 4],
    dilation: [1, 1],
    groups: 1,
};

/// Element `(r, c)` of the window at `(y, x)` of a plane; nothing where it is padding.
fn at(conv: &Conv, plane: &[f64], [y, x]: [u64; 2], [r, c]: [u64; 2]) -> Option<f64> {
    let place = |axis: usize, i: u64, k: u64| {
        let at = (i * conv.stride[axis] + k * conv.dilation[axis]).checked_sub(conv.padding[axis])?;
        (at < conv.size[axis]).then_some(at)
    };
    Some(plane[(place(0, y, r)? * conv.size[1] + place(1, x, c)?) as usize])
}

/// The columns of a group and image: `[channels of the group * rows * columns, positions]`.
fn columns(conv: &Conv, x: &[f64], image: u64, group: u64) -> Vec<Vec<f64>> {
    let plane = (conv.size[0] * conv.size[1]) as usize;
    let size = conv.output_size().expect("a window that fits");
    let mut rows = Vec::new();
    let channels = conv.channels / conv.groups;
    for channel in 0..channels {
        let from = (image * conv.channels + group * channels + channel) as usize * plane;
        for r in 0..conv.kernel[0] {
            for c in 0..conv.kernel[1] {
                let positions = (0..size[0] * size[1]).map(|p| [p / size[1], p % size[1]]);
                rows.push(positions.map(|p| at(conv, &x[from..][..plane], p, [r, c]).unwrap_or(0.0)).collect());
            }
        }
    }
    rows
}

/// The results, and for each the sum of its products' magnitudes.
fn reference(conv: &Conv, x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut magnitudes) = (Vec::new(), Vec::new());
    let group_outputs = conv.outputs / conv.groups;
    for image in 0..conv.images {
        for group in 0..conv.groups {
            let columns = columns(conv, x, image, group);
            for output in group * group_outputs..(group + 1) * group_outputs {
                let weights = &weight[output as usize * columns.len()..][..columns.len()];
                for p in 0..columns[0].len() {
                    let products = || columns.iter().zip(weights).map(|(row, w)| row[p] * w);
                    let bias = bias.map_or(0.0, |b| b[output as usize]);
                    y.push(products().sum::<f64>() + bias);
                    magnitudes.push(products().map(f64::abs).sum::<f64>() + bias.abs());
                }
            }
        }
    }
    (y, magnitudes)
}

fn elements(sizes: &[u64]) -> usize {
    sizes.iter().product::<u64>() as usize
}

fn weight_elements(conv: &Conv) -> usize {
    elements(&[conv.outputs, conv.channels / conv.groups, conv.kernel[0], conv.kernel[1]])
}

fn check(conv: &Conv, dtype: DType, weights: DType, has_bias: bool) {
    let x = Tensor::random(dtype, elements(&[conv.images, conv.channels, conv.size[0], conv.size[1]]), 1.0, 1);
    let weight = Tensor::random(weights, weight_elements(conv), 0.5, 2);
    let bias = Tensor::random(weights, conv.outputs as usize, 1.0, 3);
    let (expected, magnitudes) =
        reference(conv, &x.values(), &weight.values(), has_bias.then(|| bias.values()).as_deref());
    let mut y = Tensor::poisoned(dtype, expected.len());
    let tensors = Tensors { x: x.view(), weight: weight.view(), bias: has_bias.then(|| bias.view()), y: y.view() };
    run(conv2d(conv, tensors, None, 2), &mut [&mut y]);
    let terms = weight_elements(conv) as f64 / conv.outputs as f64 + 1.0;
    for (i, (got, expected)) in y.values().into_iter().zip(expected).enumerate() {
        // Each sum rounds once a term, and the result once more to its type.
        let bound = terms * f64::from(f32::EPSILON) * magnitudes[i] + 0.5 * precision(dtype) * expected.abs() + 1e-7;
        assert!((got - expected).abs() <= bound, "{conv:?} {dtype} {weights}: {i} is {got}, expected {expected}");
    }
}

/// Convolutions of every kind: what is tiled, depthwise and small groups, and their edges.
fn convolutions() -> Vec<Conv> {
    vec![
        Conv { channels: 3, size: [9, 11], outputs: 20, kernel: [3, 3], padding: [1; 4], images: 2, ..PLAIN },
        Conv { channels: 5, size: [8, 13], outputs: 70, kernel: [1, 1], images: 3, ..PLAIN },
        Conv {
            channels: 4,
            size: [15, 10],
            outputs: 17,
            kernel: [5, 2],
            stride: [2, 3],
            padding: [2, 0, 1, 3],
            ..PLAIN
        },
        Conv {
            channels: 8,
            size: [12, 9],
            outputs: 64,
            kernel: [3, 3],
            dilation: [2, 3],
            padding: [4, 3, 0, 2],
            groups: 2,
            ..PLAIN
        },
        Conv { channels: 3, size: [16, 16], outputs: 33, kernel: [16, 16], stride: [16, 16], images: 2, ..PLAIN },
        Conv { channels: 8, size: [7, 7], outputs: 130, kernel: [3, 3], padding: [1; 4], images: 2, ..PLAIN },
        // Few outputs a group.
        Conv {
            channels: 7,
            size: [13, 10],
            outputs: 7,
            kernel: [3, 3],
            padding: [1; 4],
            groups: 7,
            images: 2,
            ..PLAIN
        },
        Conv {
            channels: 6,
            size: [40, 37],
            outputs: 12,
            kernel: [5, 3],
            stride: [2, 1],
            padding: [2, 1, 2, 0],
            groups: 6,
            ..PLAIN
        },
        Conv { channels: 12, size: [7, 7], outputs: 9, kernel: [3, 3], padding: [1; 4], groups: 3, images: 2, ..PLAIN },
        Conv {
            channels: 4,
            size: [5, 70],
            outputs: 3,
            kernel: [1, 7],
            dilation: [1, 4],
            padding: [0, 9, 0, 9],
            ..PLAIN
        },
        // A window that no shared memory holds, of few outputs all the same.
        Conv { channels: 1, size: [3, 3], outputs: 1, kernel: [2, 2], dilation: [130, 130], padding: [70; 4], ..PLAIN },
    ]
}

#[test]
fn convolutions_of_every_kind() {
    for (i, conv) in convolutions().iter().enumerate() {
        check(conv, DType::F32, DType::F32, i % 2 == 0);
        check(conv, DType::F16, DType::F16, i % 3 == 0);
        check(conv, DType::BF16, DType::BF16, i % 3 == 1);
        check(conv, FLOATS[1 + i % 2], FLOATS[i % 3], i % 2 == 1);
    }
}

type Function = fn(f64) -> f64;

#[test]
fn activations_follow() {
    let functions: [(Unary, Function); 5] = [
        (Unary::Relu, |x| x.max(0.0)),
        (Unary::Silu, |x| x / (1.0 + (-x).exp())),
        (Unary::GeluTanh, |x| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh())),
        (Unary::Sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
        (Unary::Tanh, f64::tanh),
    ];
    for outputs in [2, 18] {
        let conv = Conv { channels: 2, size: [4, 5], outputs, kernel: [2, 2], ..PLAIN };
        let x = Tensor::random(DType::F32, 40, 2.0, 4);
        let weight = Tensor::random(DType::BF16, weight_elements(&conv), 1.0, 5);
        let (sums, _) = reference(&conv, &x.values(), &weight.values(), None);
        for (function, activation) in functions {
            let mut y = Tensor::poisoned(DType::F32, sums.len());
            let tensors = Tensors { x: x.view(), weight: weight.view(), bias: None, y: y.view() };
            run(conv2d(&conv, tensors, Some(function), 100), &mut [&mut y]);
            let expected: Vec<f64> = sums.iter().map(|&v| activation(v)).collect();
            assert_close(&format!("{function:?}"), &y.values(), &expected, 2e-6, 4e-6);
        }
        let tensors = Tensors { x: x.view(), weight: weight.view(), bias: None, y: x.view() };
        assert!(conv2d(&conv, tensors, Some(Unary::Exp), 1).is_err());
    }
}

#[test]
fn nan_is_seen_by_its_windows_alone() {
    for outputs in [1, 16] {
        let conv = Conv { size: [6, 6], outputs, kernel: [3, 3], ..PLAIN };
        let mut values = vec![1.0; 36];
        values[0] = f64::NAN;
        values[35] = f64::INFINITY;
        let (x, weight) = (Tensor::new(DType::F16, &values), Tensor::new(DType::F32, &vec![1.0; 9 * outputs as usize]));
        let mut y = Tensor::poisoned(DType::F16, 16 * outputs as usize);
        let tensors = Tensors { x: x.view(), weight: weight.view(), bias: None, y: y.view() };
        run(conv2d(&conv, tensors, None, 1), &mut [&mut y]);
        for plane in y.values().chunks(16) {
            assert!(plane[0].is_nan() && plane[15] == f64::INFINITY && plane[1..15].iter().all(|&v| v == 9.0));
        }
    }
}

#[test]
fn windows_are_columns() {
    for (i, conv) in convolutions().iter().enumerate() {
        let positions = conv.output_size().expect("a window that fits").iter().product::<u64>();
        for dtype in [DType::F32, DType::BF16] {
            let x = Tensor::random(dtype, elements(&[conv.images, conv.channels, conv.size[0], conv.size[1]]), 1.0, 6);
            let group = conv.groups - 1;
            for range in
                [0..positions, positions / 3..positions - positions / 4, positions - 1..positions, 0..positions / 8 * 8]
            {
                let first = conv.images.min(2) - 1;
                let piece = Piece { images: first..conv.images, group, positions: range.clone() };
                let expected: Vec<f64> = piece
                    .images
                    .clone()
                    .flat_map(|image| columns(conv, &x.values(), image, group))
                    .flat_map(|row| row[range.start as usize..range.end as usize].to_vec())
                    .collect();
                let mut to = Tensor::poisoned(dtype, expected.len());
                run(windows(conv, &piece, x.view(), to.view()), &mut [&mut to]);
                assert_eq!(to.values(), expected, "{i} {range:?}");
            }
        }
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let good = Conv { channels: 4, size: [5, 5], outputs: 2, kernel: [3, 3], groups: 2, ..PLAIN };
    let (x, weight) = (Tensor::poisoned(DType::F32, 100), Tensor::poisoned(DType::F16, 36));
    let y = Tensor::poisoned(DType::F32, 18);
    let launch =
        |conv: Conv| conv2d(&conv, Tensors { x: x.view(), weight: weight.view(), bias: None, y: y.view() }, None, 1);
    assert!(launch(good).expect("sizes that fit").is_some());
    let wrong = [
        Conv { stride: [0, 1], ..good },
        Conv { dilation: [1, 0], ..good },
        Conv { dilation: [1, 3], ..good },
        Conv { dilation: [1 << 40, 1], kernel: [1 << 40, 1], ..good },
        Conv { groups: 0, ..good },
        Conv { groups: 3, ..good },
        Conv { padding: [0, 0, u64::MAX, 0], ..good },
        Conv { kernel: [0, 3], ..good },
        Conv { kernel: [6, 3], ..good },
        Conv { images: u64::MAX, ..good },
        Conv { outputs: 4, ..good },
    ];
    for conv in wrong {
        assert!(launch(conv).is_err(), "{conv:?}");
    }
    let piece = |images, group, positions| windows(&good, &Piece { images, group, positions }, x.view(), y.view());
    assert!(piece(0..1, 1, 0..1).expect("a column").is_some());
    assert!(piece(0..2, 1, 0..1).is_err() && piece(0..1, 2, 0..1).is_err() && piece(0..1, 1, 9..10).is_err());
}
