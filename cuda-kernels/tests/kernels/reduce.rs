//! Reductions along an axis.

use genie_cuda_kernels::launch::reduce::{Axis, reduce, reduce_scratch};
use genie_graph::{DType, ReduceKind};

use super::support::{FLOATS, INTEGERS, Numbers, Tensor, assert_close, precision, run_all, run_any_grid};

const KINDS: [ReduceKind; 5] = [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max, ReduceKind::Min, ReduceKind::Prod];

/// (outer, length, inner): rows of a few lanes, of a warp, of a block, in pieces; columns of every width, deep, in pieces, several tiles a
/// block.
pub(crate) const AXES: [[u64; 3]; 21] = [
    [1, 1, 1],
    [300, 1, 1],
    [257, 3, 1],
    [9, 64, 1],
    [5, 77, 1],
    [3, 1024, 1],
    [2, 5000, 1],
    [1, 33_001, 1],
    [2, 32_768, 1],
    [1, 5, 2],
    [2, 3, 1030],
    [3, 100, 7],
    [2, 17, 49],
    [5, 2, 64],
    [1, 700, 64],
    [1, 9000, 1],
    [2, 9000, 2],
    [301, 3, 2],
    [17, 9, 5],
    [3, 40, 300],
    [0, 4, 4],
];

/// The elements along the axis, by place in the result.
pub(crate) fn along(values: &[f64], [outer, length, inner]: [u64; 3]) -> Vec<Vec<f64>> {
    let at = |o: u64, k: u64, i: u64| values[((o * length + k) * inner + i) as usize];
    (0..outer * inner).map(|n| (0..length).map(|k| at(n / inner, k, n % inner)).collect()).collect()
}

pub(crate) fn axis([outer, length, inner]: [u64; 3]) -> Axis {
    Axis { outer, length, inner }
}

fn reduced(kind: ReduceKind, x: &Tensor, shape: [u64; 3]) -> Vec<f64> {
    let mut y = Tensor::poisoned(x.dtype, (shape[0] * shape[2]) as usize);
    let bytes = reduce_scratch(x.dtype, axis(shape)).expect("a size");
    let mut scratch = Tensor::poisoned(DType::U8, bytes as usize);
    let launches = reduce(kind, x.view(), axis(shape), y.view(), scratch.view()).expect("launches");
    assert_eq!(launches.len(), if y.values().is_empty() { 0 } else { 1 + usize::from(bytes != 0) });
    let launches: Vec<_> = launches.into_iter().map(Some).collect();
    // Columns have a block for each tile, and so has the merge of pieces.
    let run = if shape[2] == 1 && launches.len() <= 1 { run_any_grid } else { run_all };
    run(&launches, &mut [&mut y, &mut scratch]);
    y.values()
}

fn reference(kind: ReduceKind, x: &[f64]) -> f64 {
    let pick = |better: fn(f64, f64) -> bool| {
        x.iter().copied().reduce(|a, x| if a.is_nan() || better(a, x) { a } else { x }).expect("an element")
    };
    match kind {
        ReduceKind::Sum => x.iter().sum(),
        ReduceKind::Mean => x.iter().sum::<f64>() / x.len() as f64,
        ReduceKind::Max => pick(|a, x| a > x),
        ReduceKind::Min => pick(|a, x| a < x),
        ReduceKind::Prod => x.iter().product(),
    }
}

#[test]
fn floats_are_reduced() {
    for dtype in FLOATS {
        for shape in AXES {
            let [outer, length, inner] = shape;
            let mut x = Tensor::random(dtype, (outer * length * inner) as usize, 1.0, length);
            for kind in KINDS {
                if kind == ReduceKind::Prod {
                    // Near 1, so that products of thousands stay numbers.
                    let near = x.values().iter().map(|x| 1.0 + x / 64.0 / (length as f64).sqrt()).collect::<Vec<_>>();
                    x = Tensor::new(dtype, &near);
                }
                let rows = along(&x.values(), shape);
                let expected: Vec<f64> = rows.iter().map(|row| reference(kind, row)).collect();
                // A tree of sums errs by some roundings of its largest terms; products by one a factor, most of which cancel.
                let largest = rows.iter().map(|row| row.iter().map(|x| x.abs()).sum()).fold(0.0, f64::max);
                let (relative, absolute) = match kind {
                    ReduceKind::Sum => (precision(dtype), 2e-7 * largest),
                    ReduceKind::Mean => (precision(dtype), 2e-7 * largest / length as f64),
                    ReduceKind::Prod => (precision(dtype) + 6e-8 * length as f64, 0.0),
                    _ => (0.0, 0.0),
                };
                let what = format!("{kind:?} of {shape:?} {dtype}");
                assert_close(&what, &reduced(kind, &x, shape), &expected, relative, absolute);
            }
        }
    }
}

#[test]
fn integers_are_reduced_and_wrap() {
    let wrap = |dtype: DType, x: i64| match dtype {
        DType::U8 => f64::from(x as u8),
        DType::I32 => f64::from(x as i32),
        _ => x as f64,
    };
    for dtype in INTEGERS {
        for shape in AXES {
            let count = shape.iter().product();
            let x = Tensor::new(dtype, &Numbers::new(count).integers(dtype, count, 120));
            let rows = along(&x.values(), shape);
            let each = |f: &dyn Fn(&[f64]) -> f64| rows.iter().map(|row| f(row)).collect::<Vec<_>>();
            let sum = |row: &[f64]| wrap(dtype, row.iter().sum::<f64>() as i64);
            let product = |row: &[f64]| wrap(dtype, row.iter().fold(1_i64, |p, &x| p.wrapping_mul(x as i64)));
            assert_eq!(reduced(ReduceKind::Sum, &x, shape), each(&sum), "sum {shape:?} {dtype}");
            assert_eq!(reduced(ReduceKind::Prod, &x, shape), each(&product), "product {shape:?} {dtype}");
            for kind in [ReduceKind::Max, ReduceKind::Min] {
                assert_eq!(reduced(kind, &x, shape), each(&|row| reference(kind, row)), "{kind:?} {shape:?} {dtype}");
            }
        }
    }
}

#[test]
fn nan_and_infinities_go_through() {
    for shape in [[4, 50, 1], [4, 9000, 1], [1, 40_000, 1], [2, 40, 4], [1, 5000, 4]] {
        let [outer, length, inner] = shape;
        for (value, kinds) in [(f64::NAN, &KINDS[..]), (f64::INFINITY, &KINDS[..4]), (f64::NEG_INFINITY, &KINDS[..4])] {
            let mut values = vec![1.0; (outer * length * inner) as usize];
            let at = values.len() * 2 / 3;
            values[at] = value;
            let x = Tensor::new(DType::BF16, &values);
            for &kind in kinds {
                let expected: Vec<f64> = along(&values, shape).iter().map(|row| reference(kind, row)).collect();
                let got = reduced(kind, &x, shape);
                assert_close(&format!("{kind:?} of {value} in {shape:?}"), &got, &expected, 0.01, 0.0);
            }
        }
    }
    let low = Tensor::new(DType::F32, &[f64::NEG_INFINITY; 5]);
    assert_eq!(reduced(ReduceKind::Max, &low, [1, 5, 1]), [f64::NEG_INFINITY]);
}

#[test]
fn a_row_s_sum_does_not_depend_on_other_rows() {
    for [length, inner] in [[1001, 1], [70_000, 1], [3000, 3]] {
        let one = Tensor::random(DType::F32, (length * inner) as usize, 1.0, 8);
        let two = Tensor::new(DType::F32, &[one.values(), one.values()].concat());
        let alone = reduced(ReduceKind::Sum, &one, [1, length, inner]);
        assert_eq!(reduced(ReduceKind::Sum, &two, [2, length, inner]), [alone.clone(), alone].concat());
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (x, y, none) =
        (Tensor::poisoned(DType::I32, 12), Tensor::poisoned(DType::I32, 4), Tensor::poisoned(DType::U8, 0));
    let with = |kind, x: &Tensor, shape, y: &Tensor| reduce(kind, x.view(), axis(shape), y.view(), none.view());
    assert!(with(ReduceKind::Sum, &x, [2, 3, 2], &y).is_ok());
    assert!(with(ReduceKind::Mean, &x, [2, 3, 2], &y).is_err());
    assert!(with(ReduceKind::Sum, &x, [2, 0, 2], &y).is_err());
    assert!(with(ReduceKind::Sum, &x, [1, 12, 1], &y).is_err());
    assert!(with(ReduceKind::Sum, &x, [1 << 40, 1 << 30, 2], &y).is_err());
    assert!(with(ReduceKind::Sum, &Tensor::poisoned(DType::Bool, 4), [4, 1, 1], &y).is_err());
    let (long, one) = (Tensor::poisoned(DType::F32, 40_000), Tensor::poisoned(DType::F32, 1));
    let error = with(ReduceKind::Sum, &long, [1, 40_000, 1], &one).expect_err("there is no scratch");
    assert!(error.to_string().contains("scratch"), "{error}");
}
