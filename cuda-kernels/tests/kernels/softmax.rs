//! Softmax along an axis.

use genie_cuda_kernels::launch::softmax::{softmax, softmax_scratch};
use genie_graph::DType;

use super::reduce::{AXES, along, axis};
use super::support::{FLOATS, Tensor, assert_close, precision, run_all, run_any_grid, run_over};

fn computed(x: &Tensor, shape: [u64; 3]) -> Vec<f64> {
    let mut y = Tensor::poisoned(x.dtype, shape.iter().product::<u64>() as usize);
    let mut scratch = Tensor::poisoned(DType::U8, softmax_scratch(x.dtype, axis(shape)).expect("a size") as usize);
    let launches = softmax(x.view(), axis(shape), y.view(), scratch.view()).expect("launches");
    let launches: Vec<_> = launches.into_iter().map(Some).collect();
    // Columns have a block for each tile, and so has the merge of pieces.
    let run = if shape[2] == 1 && launches.len() <= 2 { run_any_grid } else { run_all };
    run(&launches, &mut [&mut y, &mut scratch]);
    y.values()
}

/// As the CPU device has it: a row with a NaN, with +infinity or of -infinity alone is NaN.
fn reference(values: &[f64], shape: [u64; 3]) -> Vec<f64> {
    let [outer, length, inner] = shape;
    let mut y = vec![0.0; values.len()];
    for (n, row) in along(values, shape).into_iter().enumerate() {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = row.iter().map(|x| (x - max).exp()).sum();
        for (k, x) in row.iter().enumerate() {
            let (o, i) = (n as u64 / inner, n as u64 % inner);
            y[((o * length + k as u64) * inner + i) as usize] = (x - max).exp() / total;
        }
    }
    assert!(outer == 0 || !y.is_empty());
    y
}

fn check(x: &Tensor, shape: [u64; 3]) {
    let what = format!("{shape:?} {}", x.dtype);
    // x - max is rounded, and may be as much as 100 where the result is not 0; results below f16's normal numbers err by half of
    // its last place.
    let absolute = if x.dtype == DType::F16 { 3e-8 } else { 1e-30 };
    assert_close(
        &what,
        &computed(x, shape),
        &reference(&x.values(), shape),
        0.51 * precision(x.dtype) + 1e-5,
        absolute,
    );
}

#[test]
fn rows_and_columns_of_every_size() {
    for dtype in FLOATS {
        for shape in AXES.into_iter().chain([[3, 4096, 1], [2, 8193, 1], [1, 20_000, 1]]) {
            check(&Tensor::random(dtype, shape.iter().product::<u64>() as usize, 4.0, shape[1]), shape);
        }
    }
}

#[test]
fn large_numbers_and_masks() {
    for shape in [[3, 40, 1], [2, 3000, 1], [2, 10_000, 1], [2, 40_000, 1], [2, 40, 5], [1, 9000, 3]] {
        let [_, length, inner] = shape;
        let count = shape.iter().product::<u64>() as usize;
        let base: Vec<f64> = (0..count).map(|i| (i * 7919 % 1000) as f64 - 500.0).collect();
        check(&Tensor::new(DType::F32, &base.iter().map(|x| x * 1e35).collect::<Vec<_>>()), shape);
        let masked = |from: usize| {
            let hidden = |i: usize| i / inner as usize % length as usize >= from;
            (0..count).map(|i| if hidden(i) { f64::NEG_INFINITY } else { base[i] }).collect::<Vec<_>>()
        };
        for from in [0, 1, length as usize / 2] {
            check(&Tensor::new(DType::F32, &masked(from)), shape);
        }
        let mut reversed = masked(length as usize / 2);
        reversed.reverse();
        check(&Tensor::new(DType::F32, &reversed), shape);
        for value in [f64::NAN, f64::INFINITY] {
            for at in [0, count / 3, count - 1] {
                let mut values = base.clone();
                values[at] = value;
                check(&Tensor::new(DType::F32, &values), shape);
            }
        }
    }
}

#[test]
fn in_place_is_allowed() {
    for shape in [[3, 40, 1], [1, 9000, 1], [2, 40, 5]] {
        let count = shape.iter().product::<u64>() as usize;
        let mut x = Tensor::random(DType::F32, count, 1.0, 3);
        let expected = computed(&x, shape);
        let bytes = softmax_scratch(DType::F32, axis(shape)).expect("a size");
        let scratch = Tensor::poisoned(DType::U8, bytes as usize);
        let launches = softmax(x.view(), axis(shape), x.view(), scratch.view()).expect("launches");
        run_over(&launches.into_iter().map(Some).collect::<Vec<_>>(), &mut x);
        assert_eq!(x.values(), expected);
    }
}

#[test]
fn a_row_does_not_depend_on_other_rows() {
    for [length, inner] in [[77, 1], [5001, 1], [40_000, 1], [3000, 3]] {
        let one = Tensor::random(DType::F32, (length * inner) as usize, 1.0, 8);
        let two = Tensor::new(DType::F32, &[one.values(), one.values()].concat());
        let alone = computed(&one, [1, length, inner]);
        assert_eq!(computed(&two, [2, length, inner]), [alone.clone(), alone].concat());
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (x, none) = (Tensor::poisoned(DType::F32, 12), Tensor::poisoned(DType::U8, 0));
    let with = |x: &Tensor, shape| softmax(x.view(), axis(shape), x.view(), none.view());
    assert!(with(&x, [2, 6, 1]).is_ok());
    assert!(with(&x, [2, 5, 1]).is_err());
    assert!(with(&x, [2, 3, 2]).is_err());
    assert!(with(&x, [12, 0, 1]).is_err());
    assert!(with(&Tensor::poisoned(DType::I32, 12), [2, 6, 1]).is_err());
}
