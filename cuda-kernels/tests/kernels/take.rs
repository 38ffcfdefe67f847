//! Elements by index along an axis, and in the opposite order along some.

use genie_cuda_kernels::View;
use genie_cuda_kernels::launch::copy::flip;
use genie_cuda_kernels::launch::pairs::Operand;
use genie_cuda_kernels::launch::take::take;
use genie_graph::DType;

use super::support::{Numbers, Tensor, fault, fault_word, run, run_any_grid};

/// An element's index along each dimension.
fn index(mut at: usize, dims: &[u64]) -> Vec<u64> {
    let mut index = vec![0; dims.len()];
    for (i, &dim) in dims.iter().enumerate().rev() {
        index[i] = at as u64 % dim;
        at /= dim as usize;
    }
    index
}

fn place(index: &[u64], dims: &[u64]) -> usize {
    index.iter().zip(dims).fold(0, |at, (&i, &d)| at * d as usize + i as usize)
}

fn count(dims: &[u64]) -> usize {
    dims.iter().product::<u64>() as usize
}

#[test]
fn elements_are_taken() {
    let mut numbers = Numbers::new(3);
    let shapes: [(usize, &[u64], &[u64]); 6] = [
        (0, &[9], &[700]),
        (0, &[5, 4], &[7, 3]),
        (1, &[5, 40], &[5, 2]),
        (1, &[3, 6, 5], &[2, 9, 5]),
        (2, &[3, 2, 8], &[3, 2, 20]),
        (0, &[4], &[0]),
    ];
    for (dtype, (axis, dims, id_dims)) in DType::ALL.into_iter().flat_map(|d| shapes.map(|s| (d, s))) {
        let x: Vec<f64> =
            (0..count(dims)).map(|i| (i * 7 % if dtype == DType::Bool { 2 } else { 100 }) as f64).collect();
        let ids: Vec<f64> = (0..count(id_dims)).map(|_| numbers.below(dims[axis]) as f64).collect();
        let x = Tensor::new(dtype, &x);
        for id in [DType::I32, DType::I64] {
            let (ids, mut y, word) = (Tensor::new(id, &ids), Tensor::poisoned(dtype, count(id_dims)), fault_word());
            let of = |tensor: &Tensor, dims| Operand { view: tensor.view(), dims };
            let launch = take(axis, of(&x, dims), of(&ids, id_dims), y.view(), word.at()).expect("a launch");
            run_any_grid(&[launch], &mut [&mut y]);
            let (from, ids) = (x.values(), ids.values());
            let element = |i: usize| {
                let mut at = index(i, id_dims);
                at[axis] = ids[i] as u64;
                from[place(&at, dims)]
            };
            assert_eq!(
                y.values(),
                (0..count(id_dims)).map(element).collect::<Vec<_>>(),
                "{dims:?} {id_dims:?} {dtype}"
            );
            assert_eq!(fault(&word), None);
        }
    }
}

#[test]
fn the_first_id_outside_is_reported() {
    for bad in [4, -1, i64::MAX, i64::MIN] {
        let (x, ids) = (Tensor::new(DType::F32, &[1.0, 2.0, 3.0, 4.0]), Tensor::of_i64(&[0, 3, bad, 9]));
        let (mut y, mut word) = (Tensor::poisoned(DType::F32, 4), fault_word());
        let of = |tensor: &Tensor| Operand { view: tensor.view(), dims: &[4] };
        run(take(0, of(&x), of(&ids), y.view(), word.at()), &mut [&mut y, &mut word]);
        assert_eq!((y.values(), fault(&word)), (vec![1.0, 4.0, 0.0, 0.0], Some(2)), "{bad}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (x, ids, word) = (Tensor::poisoned(DType::F32, 6), Tensor::poisoned(DType::I32, 6), fault_word());
    let with = |axis, dims: &[u64], id_dims: &[u64]| {
        let (x, ids) = (Operand { view: x.view(), dims }, Operand { view: ids.view(), dims: id_dims });
        take(axis, x, ids, View { dtype: DType::F32, ..ids.view }, word.at())
    };
    assert!(with(0, &[2, 3], &[2, 3]).is_ok());
    assert!(with(2, &[2, 3], &[2, 3]).is_err());
    assert!(with(0, &[2, 3], &[6]).is_err());
    assert!(with(0, &[3, 2], &[2, 3]).is_err());
    assert!(with(0, &[7], &[6]).is_err());
    let wrong = Operand { view: x.view(), dims: &[6] };
    assert!(take(0, wrong, wrong, x.view(), word.at()).is_err());
}

#[test]
fn elements_are_put_in_the_opposite_order() {
    for dtype in DType::ALL {
        for (dims, flipped) in [
            (&[][..], &[][..]),
            (&[1003], &[true]),
            (&[6, 32], &[true, false]),
            (&[6, 32], &[false, true]),
            (&[40, 48], &[true, true]),
            (&[3, 1, 5, 16], &[true, true, false, false]),
            (&[0, 4], &[true, true]),
        ] {
            let x =
                Tensor::new(dtype, &(0..count(dims)).map(|i| (i % 2) as f64 * (i % 251) as f64).collect::<Vec<_>>());
            let mut y = Tensor::poisoned(dtype, count(dims));
            run_any_grid(&[flip(dims, flipped, x.view(), y.view()).expect("a launch")], &mut [&mut y]);
            let from = x.values();
            let element = |i: usize| {
                let at = index(i, dims);
                let turned = |d: usize| if flipped[d] { dims[d] - 1 - at[d] } else { at[d] };
                from[place(&(0..dims.len()).map(turned).collect::<Vec<_>>(), dims)]
            };
            assert_eq!(y.values(), (0..count(dims)).map(element).collect::<Vec<_>>(), "{dims:?} {flipped:?} {dtype}");
        }
    }
    let x = Tensor::poisoned(DType::F32, 6);
    assert!(flip(&[6], &[], x.view(), x.view()).is_err());
    assert!(flip(&[7], &[true], x.view(), x.view()).is_err());
}
