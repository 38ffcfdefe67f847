//! Operations on two tensors, broadcast.

use genie_cuda_kernels::launch::binary::{Binary, binary};
use genie_graph::DType;

use super::support::{
    FLOATS, INTEGERS, Numbers, Tensor, assert_close, fault, fault_word, precision, rounded, run, run_all, run_any_grid,
    run_over,
};

const KINDS: [Binary; 4] = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div];

/// (dimensions of a, of b, of y): equal, scalars, rows, columns, channels, what is no whole pack, what is joined to one dimension.
const SHAPES: [[&[u64]; 3]; 14] = [
    [&[0], &[0], &[0]],
    [&[], &[], &[]],
    [&[5003], &[5003], &[5003]],
    [&[5, 64], &[1], &[5, 64]],
    [&[], &[33], &[33]],
    [&[7, 48], &[48], &[7, 48]],
    [&[7, 48], &[7, 1], &[7, 48]],
    [&[2, 5, 49], &[5, 1], &[2, 5, 49]],
    [&[2, 3, 32], &[3, 1], &[2, 3, 32]],
    [&[3, 1, 5], &[4, 1], &[3, 4, 5]],
    [&[1, 6], &[6, 1], &[6, 6]],
    [&[2, 1, 3, 1, 2, 1, 2, 3], &[2, 1, 2, 1, 2, 1, 3], &[2, 2, 3, 2, 2, 2, 2, 3]],
    [&[31, 16], &[31, 16], &[31, 16]],
    [&[2, 2, 16], &[1, 2, 16], &[2, 2, 16]],
];

/// Where in a tensor of dimensions `of` the element is that belongs to element `index` of one of `dims`.
fn at(index: usize, dims: &[u64], of: &[u64]) -> usize {
    let (mut rest, mut offset, mut stride) = (index, 0, 1);
    for (i, &dim) in dims.iter().enumerate().rev() {
        let here = rest % dim as usize;
        rest /= dim as usize;
        if let Some(&own) = (i + of.len()).checked_sub(dims.len()).and_then(|k| of.get(k)) {
            offset += if own == 1 { 0 } else { here * stride };
            stride *= own as usize;
        }
    }
    offset
}

fn count(dims: &[u64]) -> usize {
    dims.iter().product::<u64>() as usize
}

#[test]
fn floats_are_broadcast() {
    for dtype in FLOATS {
        for [a_dims, b_dims, dims] in SHAPES {
            let (a, b) = (Tensor::random(dtype, count(a_dims), 2.0, 1), Tensor::random(dtype, count(b_dims), 2.0, 2));
            let (a_values, b_values) = (a.values(), b.values());
            for kind in KINDS {
                let (mut y, word) = (Tensor::poisoned(dtype, count(dims)), fault_word());
                let launch = binary(kind, a.view(), a_dims, b.view(), b_dims, y.view(), word.at());
                run_any_grid(&[launch.expect("a launch")], &mut [&mut y]);
                let expected: Vec<f64> = (0..count(dims))
                    .map(|i| (a_values[at(i, dims, a_dims)], b_values[at(i, dims, b_dims)]))
                    .map(|(a, b)| match kind {
                        Binary::Add => a + b,
                        Binary::Sub => a - b,
                        Binary::Mul => a * b,
                        Binary::Div => a / b,
                    })
                    .collect();
                // Rounded to f32, where f64's own rounding changes nothing, then to the type.
                let expected = rounded(dtype, &expected.iter().map(|&y| f64::from(y as f32)).collect::<Vec<_>>());
                let what = format!("{kind:?} {a_dims:?} {b_dims:?} {dtype}");
                assert_close(&what, &y.values(), &expected, 0.0, 0.0);
                assert_eq!(fault(&word), None);
            }
        }
    }
}

#[test]
fn integers_wrap_and_truncate() {
    let mut numbers = Numbers::new(1);
    for dtype in INTEGERS {
        for [a_dims, b_dims, dims] in SHAPES {
            let a = Tensor::new(dtype, &numbers.integers(dtype, count(a_dims) as u64, 100));
            let b: Vec<f64> = numbers.integers(dtype, count(b_dims) as u64, 100);
            let b = Tensor::new(dtype, &b.iter().map(|&b| if b == 0.0 { 7.0 } else { b }).collect::<Vec<_>>());
            let (a_values, b_values) = (a.values(), b.values());
            for kind in KINDS {
                let (mut y, word) = (Tensor::poisoned(dtype, count(dims)), fault_word());
                run(binary(kind, a.view(), a_dims, b.view(), b_dims, y.view(), word.at()), &mut [&mut y]);
                let expected: Vec<f64> = (0..count(dims))
                    .map(|i| (a_values[at(i, dims, a_dims)] as i64, b_values[at(i, dims, b_dims)] as i64))
                    .map(|(a, b)| match kind {
                        Binary::Add => a + b,
                        Binary::Sub => a - b,
                        Binary::Mul => a * b,
                        Binary::Div => a / b,
                    })
                    .map(|y| if dtype == DType::U8 { f64::from(y as u8) } else { y as f64 })
                    .collect();
                assert_eq!(y.values(), expected, "{kind:?} {a_dims:?} {b_dims:?} {dtype}");
                assert_eq!(fault(&word), None);
            }
        }
    }
    let (least, word) = (f64::from(i32::MIN), fault_word());
    let (a, b) = (Tensor::new(DType::I32, &[least, least, 5.0]), Tensor::new(DType::I32, &[-1.0, 1.0, -2.0]));
    for (kind, expected) in [
        (Binary::Div, [least, least, -2.0]),
        (Binary::Add, [f64::from(i32::MAX), least + 1.0, 3.0]),
        (Binary::Mul, [least, least, -10.0]),
    ] {
        let mut y = Tensor::poisoned(DType::I32, 3);
        run(binary(kind, a.view(), &[3], b.view(), &[3], y.view(), word.at()), &mut [&mut y]);
        assert_eq!(y.values(), expected);
    }
    assert_eq!(fault(&word), None);
}

#[test]
fn the_first_division_by_zero_is_reported() {
    for dtype in INTEGERS {
        // Whole packs with an end, a column that repeats, and single elements.
        for (dims, b_dims) in [([1, 1003], [1, 1003]), ([40, 48], [40, 1]), ([40, 47], [40, 47])] {
            let n = count(&b_dims);
            let mut values = vec![3.0; n];
            [n - 1, n / 2, n / 2 + 1].into_iter().for_each(|i| values[i] = 0.0);
            let (a, b) = (Tensor::new(dtype, &vec![7.0; count(&dims)]), Tensor::new(dtype, &values));
            let (mut y, mut word) = (Tensor::poisoned(dtype, count(&dims)), fault_word());
            let launch = binary(Binary::Div, a.view(), &dims, b.view(), &b_dims, y.view(), word.at());
            run(launch, &mut [&mut y, &mut word]);
            let expected: Vec<f64> =
                (0..count(&dims)).map(|i| if values[at(i, &dims, &b_dims)] == 0.0 { 0.0 } else { 2.0 }).collect();
            assert_eq!(y.values(), expected, "{dims:?} {dtype}");
            assert_eq!(fault(&word), expected.iter().position(|&y| y == 0.0).map(|i| i as u64), "{dims:?} {dtype}");
        }
    }
    // Floats have no such fault.
    let zero = Tensor::new(DType::F32, &[0.0, 1.0]);
    let (mut y, word) = (Tensor::poisoned(DType::F32, 2), fault_word());
    run(binary(Binary::Div, zero.view(), &[2], zero.view(), &[2], y.view(), word.at()), &mut [&mut y]);
    assert!(y.values()[0].is_nan() && y.values()[1] == 1.0);
    assert_eq!(fault(&word), None);
}

#[test]
fn addresses_need_not_be_aligned() {
    let (a, b, word) = (Tensor::random(DType::F16, 200, 1.0, 1), Tensor::random(DType::F16, 200, 1.0, 2), fault_word());
    for (i, j, k) in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 3, 3)] {
        let mut y = Tensor::poisoned(DType::F16, 200);
        let n = 200 - i.max(j).max(k);
        let part = |tensor: &Tensor, first| genie_cuda_kernels::View { elements: n, ..tensor.tail(first) };
        let launch = binary(Binary::Add, part(&a, i), &[n], part(&b, j), &[n], part(&y, k), word.at());
        run_all(&[launch.expect("a launch")], &mut [&mut y]);
        let sums = (0..n as usize).map(|m| a.values()[m + i as usize] + b.values()[m + j as usize]);
        let got = &y.values()[k as usize..(k + n) as usize];
        assert_close("sum", got, &sums.collect::<Vec<_>>(), 0.501 * precision(DType::F16), 0.0);
    }
}

#[test]
fn in_place_is_allowed() {
    let (mut a, b, word) = (Tensor::new(DType::I32, &[5.0; 96]), Tensor::new(DType::I32, &[2.0; 32]), fault_word());
    let launch = binary(Binary::Sub, a.view(), &[3, 32], b.view(), &[32], a.view(), word.at());
    run_over(&[launch.expect("a launch")], &mut a);
    assert_eq!(a.values(), [3.0; 96]);
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (x, word) = (Tensor::poisoned(DType::F32, 6), fault_word());
    let with = |a: &[u64], b: &[u64]| binary(Binary::Add, x.view(), a, x.view(), b, x.view(), word.at());
    assert!(with(&[6], &[6]).is_ok());
    let error = with(&[6], &[2, 3]).expect_err("6 and 3");
    assert_eq!(error.to_string(), "`binary`: a dimension of b is 3, but must be that of a, or one of them 1");
    assert!(with(&[7], &[7]).is_err());
    assert!(with(&[6, 1, 1, 1, 1, 1, 1, 1, 1], &[6, 1, 1, 1, 1, 1, 1, 1, 1]).is_ok());
    assert!(with(&[u64::MAX, 3], &[3]).is_err());
    assert!(binary(Binary::Add, x.view(), &[6], x.view(), &[6], x.view(), 0).is_err());
    let flags = Tensor::poisoned(DType::Bool, 6);
    assert!(binary(Binary::Add, flags.view(), &[6], flags.view(), &[6], flags.view(), word.at()).is_err());
}
