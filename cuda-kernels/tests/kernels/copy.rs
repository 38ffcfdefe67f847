//! Copies between tensors whose elements lie apart.

use genie_cuda_kernels::launch::copy::{Strided, copy};
use genie_graph::DType;

use super::support::{Numbers, Tensor, run_any_grid};

/// Strides of a contiguous tensor.
fn contiguous(dims: &[u64]) -> Vec<u64> {
    (0..dims.len()).map(|i| dims[i + 1..].iter().product()).collect()
}

/// Where element `index` of `dims` lies.
fn offset(index: u64, dims: &[u64], start: u64, strides: &[u64]) -> usize {
    let (mut rest, mut at) = (index, start);
    for (dim, stride) in dims.iter().zip(strides).rev() {
        at += rest % dim * stride;
        rest /= dim;
    }
    at as usize
}

/// Bytes that tell elements apart.
fn numbered(dtype: DType, count: u64) -> Tensor {
    Tensor::new(dtype, &Numbers::new(count).integers(dtype, count, 120))
}

fn check(dtype: DType, dims: &[u64], x: (u64, &[u64], u64), y: (u64, &[u64], u64)) {
    let ((x_start, x_strides, x_elements), (y_start, y_strides, y_elements)) = (x, y);
    let (from, mut to) = (numbered(dtype, x_elements), Tensor::poisoned(dtype, y_elements as usize));
    let x = Strided { view: from.view(), start: x_start, strides: x_strides };
    let y = Strided { view: to.view(), start: y_start, strides: y_strides };
    run_any_grid(&[copy(dims, x, y).expect("a launch")], &mut [&mut to]);
    let size = dtype.bytes() as usize;
    let mut expected = vec![0xFF; y_elements as usize * size];
    for i in 0..dims.iter().product() {
        let (a, b) = (offset(i, dims, x_start, x_strides) * size, offset(i, dims, y_start, y_strides) * size);
        expected[b..b + size].copy_from_slice(&from.bytes()[a..a + size]);
    }
    assert!(to.bytes() == expected, "{dims:?} of {dtype}, {x_start} {x_strides:?} to {y_start} {y_strides:?}");
}

const BY_SIZE: [DType; 4] = [DType::U8, DType::F16, DType::F32, DType::I64];

#[test]
fn tensors_are_transposed() {
    let cases: [(&[u64], &[usize]); 9] = [
        (&[33, 70], &[1, 0]),
        (&[64, 64], &[1, 0]),
        (&[16, 130], &[1, 0]),
        (&[3, 40, 40], &[0, 2, 1]),
        (&[20, 3, 18], &[2, 1, 0]),
        (&[2, 5, 3, 16], &[0, 2, 1, 3]),
        (&[2, 3, 5, 7], &[3, 1, 0, 2]),
        (&[100, 3], &[1, 0]),
        (&[2, 3, 2, 2, 3, 2, 2, 3], &[7, 6, 5, 4, 3, 2, 1, 0]),
    ];
    for dtype in BY_SIZE {
        for (from, perm) in cases {
            let strides = contiguous(from);
            let dims: Vec<u64> = perm.iter().map(|&p| from[p]).collect();
            let x_strides: Vec<u64> = perm.iter().map(|&p| strides[p]).collect();
            let count = from.iter().product();
            check(dtype, &dims, (0, &x_strides, count), (0, &contiguous(&dims), count));
        }
    }
}

#[test]
fn slices_pieces_and_broadcasts_are_copied() {
    for dtype in BY_SIZE {
        // All of a tensor, aligned and not.
        check(dtype, &[1000], (0, &[1], 1000), (0, &[1], 1000));
        check(dtype, &[1000], (3, &[1], 1003), (0, &[1], 1000));
        check(dtype, &[1000], (0, &[1], 1000), (3, &[1], 1003));
        check(dtype, &[1000], (8, &[1], 1008), (8, &[1], 1011));
        // Every third element; columns of a matrix; rows with an odd length.
        check(dtype, &[50], (1, &[3], 150), (0, &[1], 50));
        check(dtype, &[20, 8], (16, &[32, 1], 640), (0, &[8, 1], 160));
        check(dtype, &[20, 7], (5, &[33, 1], 660), (0, &[7, 1], 140));
        // A piece of a concatenation along the last axis, and one that is transposed into it.
        check(dtype, &[6, 16], (0, &[16, 1], 96), (16, &[48, 1], 288));
        check(dtype, &[32, 40], (0, &[1, 32], 1280), (7, &[50, 1], 1600));
        // A row and a column repeated; one element; nothing.
        check(dtype, &[9, 24], (0, &[0, 1], 24), (0, &[24, 1], 216));
        check(dtype, &[24, 40], (0, &[1, 0], 24), (0, &[40, 1], 960));
        check(dtype, &[1, 1], (4, &[9, 9], 5), (2, &[1, 1], 4));
        check(dtype, &[], (4, &[], 5), (2, &[], 4));
        check(dtype, &[3, 0], (0, &[9, 9], 0), (0, &[1, 1], 0));
    }
}

#[test]
fn random_shapes_are_copied() {
    let mut numbers = Numbers::new(5);
    for _ in 0..60 {
        let rank = 1 + numbers.below(5) as usize;
        let dims: Vec<u64> = (0..rank).map(|_| 1 + numbers.below([4000, 70, 20, 8, 5][rank - 1])).collect();
        // Each side has the dimensions in an order of its own, and room between them.
        let mut side = || {
            let mut order: Vec<usize> = (0..rank).collect();
            (1..rank).for_each(|i| order.swap(i, numbers.below(i as u64 + 1) as usize));
            let (mut strides, mut stride) = (vec![0; rank], 1 + numbers.below(4) / 3);
            for d in order {
                strides[d] = stride;
                stride *= dims[d] + numbers.below(4) / 3 * numbers.below(9);
            }
            let start = numbers.below(5);
            (start, strides, start + stride)
        };
        let (x, y, dtype) = (side(), side(), BY_SIZE[dims[0] as usize % 4]);
        check(dtype, &dims, (x.0, &x.1, x.2), (y.0, &y.1, y.2));
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (x, y) = (Tensor::poisoned(DType::F32, 12), Tensor::poisoned(DType::F32, 12));
    let with = |dims: &[u64], start, strides: &[u64]| {
        let x = Strided { view: x.view(), start, strides };
        copy(dims, x, Strided { view: y.view(), start: 0, strides: &contiguous(dims) })
    };
    assert!(with(&[3, 4], 0, &[4, 1]).is_ok());
    assert!(with(&[3, 4], 1, &[4, 1]).is_err());
    assert!(with(&[3, 4], 0, &[5, 1]).is_err());
    assert!(with(&[3, 4], 0, &[4]).is_err());
    assert!(with(&[2, 2], 0, &[u64::MAX, 2]).is_err());
    assert!(with(&[1; 9], 0, &[1; 9]).is_err());
    let other = Tensor::poisoned(DType::I32, 12);
    let side = |tensor: &Tensor| Strided { view: tensor.view(), start: 0, strides: &[1] };
    assert!(copy(&[12], side(&x), side(&other)).is_err());
}
