//! The index of the largest element along an axis.

use genie_cuda_kernels::launch::argmax::{argmax, argmax_scratch};
use genie_graph::DType;

use super::reduce::{AXES, along, axis};
use super::support::{FLOATS, INTEGERS, Numbers, Tensor, run_all, run_any_grid};

fn found(x: &Tensor, shape: [u64; 3]) -> Vec<f64> {
    let mut y = Tensor::poisoned(DType::I32, (shape[0] * shape[2]) as usize);
    let bytes = argmax_scratch(x.dtype, axis(shape)).expect("a size");
    let mut scratch = Tensor::poisoned(DType::U8, bytes as usize);
    let launches = argmax(x.view(), axis(shape), y.view(), scratch.view()).expect("launches");
    let launches: Vec<_> = launches.into_iter().map(Some).collect();
    // Padding of what pieces found is never written: y alone is compared.
    // Columns have a block for each tile, and so has the merge of pieces.
    let run = if shape[2] == 1 && launches.len() <= 1 { run_any_grid } else { run_all };
    run(&launches, &mut [&mut y, &mut scratch]);
    y.values()
}

fn reference(row: &[f64]) -> f64 {
    let mut best: Option<(usize, f64)> = None;
    for (i, &x) in row.iter().enumerate() {
        if !x.is_nan() && best.is_none_or(|(_, b)| x > b) {
            best = Some((i, x));
        }
    }
    best.map_or(0.0, |(i, _)| i as f64)
}

#[test]
fn the_first_of_equals_is_found() {
    for dtype in FLOATS.into_iter().chain(INTEGERS) {
        for shape in AXES {
            let count = shape.iter().product();
            // So few values that the largest is there many times.
            for most in [1, 100] {
                let x = Tensor::new(dtype, &Numbers::new(count + most).integers(dtype, count, most));
                let expected: Vec<f64> = along(&x.values(), shape).iter().map(|row| reference(row)).collect();
                assert_eq!(found(&x, shape), expected, "{shape:?} {dtype}");
            }
        }
    }
}

#[test]
fn nan_is_never_the_largest() {
    for shape in [[3, 40, 1], [1, 9000, 1], [1, 40_000, 1], [2, 40, 5], [1, 9000, 5]] {
        let [_, length, inner] = shape;
        let count = shape.iter().product::<u64>() as usize;
        for dtype in FLOATS {
            let only = |value: f64| vec![value; count];
            assert!(found(&Tensor::new(dtype, &only(f64::NAN)), shape).iter().all(|&i| i == 0.0), "{shape:?}");
            assert!(found(&Tensor::new(dtype, &only(f64::NEG_INFINITY)), shape).iter().all(|&i| i == 0.0));
            let mut values = only(f64::NAN);
            let last = ((length - 1) * inner) as usize;
            values[last] = f64::NEG_INFINITY;
            assert_eq!(found(&Tensor::new(dtype, &values), shape)[0], (length - 1) as f64, "{shape:?} {dtype}");
        }
    }
    // Zeros are equal whatever their sign, in a piece and across pieces.
    let mut values = vec![-1.0; 40_000];
    (values[5], values[30_000]) = (-0.0, 0.0);
    assert_eq!(found(&Tensor::new(DType::F32, &values), [1, 40_000, 1]), [5.0]);
    assert_eq!(found(&Tensor::new(DType::F32, &[-0.0, 0.0]), [1, 2, 1]), [0.0]);
    // The ends of the range, which floats would not tell apart.
    let mut x = vec![i64::MAX as f64; 20_000];
    x[0] = i64::MIN as f64;
    assert_eq!(found(&Tensor::new(DType::I64, &x), [1, 20_000, 1]), [1.0]);
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (x, y, none) =
        (Tensor::poisoned(DType::F32, 12), Tensor::poisoned(DType::I32, 4), Tensor::poisoned(DType::U8, 0));
    let with = |x: &Tensor, shape, y: &Tensor| argmax(x.view(), axis(shape), y.view(), none.view());
    assert!(with(&x, [2, 3, 2], &y).is_ok());
    assert!(with(&x, [2, 3, 2], &x).is_err());
    assert!(with(&x, [4, 0, 1], &y).is_err());
    assert!(with(&Tensor::poisoned(DType::Bool, 4), [4, 1, 1], &y).is_err());
}
