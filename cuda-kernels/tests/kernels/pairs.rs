//! Functions and comparisons of two tensors in many kinds, and choices.

use genie_cuda_kernels::launch::pairs::{Operand, choose, combine, compare};
use genie_graph::{BinaryKind, CompareKind, DType};

use super::support::{
    FLOATS, INTEGERS, Tensor, assert_close, fault, fault_word, precision, rounded, run, run_any_grid,
};

/// (dimensions of a, of b, of y): equal, scalars, rows, columns, what is joined to one dimension.
const SHAPES: [[&[u64]; 3]; 7] = [
    [&[0], &[0], &[0]],
    [&[], &[], &[]],
    [&[5003], &[5003], &[5003]],
    [&[5, 64], &[1], &[5, 64]],
    [&[7, 48], &[7, 1], &[7, 48]],
    [&[3, 1, 5], &[4, 1], &[3, 4, 5]],
    [&[2, 1, 3, 1, 2, 1, 2, 3], &[2, 1, 2, 1, 2, 1, 3], &[2, 2, 3, 2, 2, 2, 2, 3]],
];

/// The element of a tensor of dimensions `of` that belongs to element `index` of one of `dims`.
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

fn operand<'a>(tensor: &Tensor, dims: &'a [u64]) -> Operand<'a> {
    Operand { view: tensor.view(), dims }
}

fn floats(kind: BinaryKind, a: f64, b: f64) -> f64 {
    let rest = a % b;
    match kind {
        BinaryKind::Pow => a.powf(b),
        BinaryKind::Maximum => {
            if a > b || a.is_nan() {
                a
            } else {
                b
            }
        }
        BinaryKind::Minimum => {
            if a < b || a.is_nan() {
                a
            } else {
                b
            }
        }
        BinaryKind::Remainder if rest != 0.0 && (rest < 0.0) != (b < 0.0) => rest + b,
        BinaryKind::Remainder | BinaryKind::Fmod => rest,
        BinaryKind::FloorDivide => (a / b).floor(),
        BinaryKind::Atan2 => a.atan2(b),
        BinaryKind::Hypot => a.hypot(b),
        _ => a.copysign(b),
    }
}

#[test]
fn floats_are_broadcast() {
    for dtype in FLOATS {
        for [a_dims, b_dims, dims] in SHAPES {
            // Quarters, so that some are equal and the numbers that are left over are exact.
            let quarters = |n, seed| {
                let values = Tensor::random(DType::F32, n, 8.0, seed).values();
                Tensor::new(dtype, &values.iter().map(|v| v.round() / 4.0).collect::<Vec<_>>())
            };
            let (a, b) = (quarters(count(a_dims), 1), quarters(count(b_dims), 2));
            let positive = Tensor::new(dtype, &a.values().iter().map(|v| v.abs() + 0.25).collect::<Vec<_>>());
            let divisors =
                Tensor::new(dtype, &b.values().iter().map(|&v| if v == 0.0 { 0.5 } else { v }).collect::<Vec<_>>());
            for &kind in BinaryKind::ALL.iter().take(9) {
                let a = if kind == BinaryKind::Pow { &positive } else { &a };
                let b = if kind.takes(DType::I32) && kind != BinaryKind::Pow { &divisors } else { &b };
                let (mut y, word) = (Tensor::poisoned(dtype, count(dims)), fault_word());
                let launch = combine(kind, operand(a, a_dims), operand(b, b_dims), y.view(), word.at());
                run_any_grid(&[launch.expect("a launch")], &mut [&mut y]);
                let (a, b) = (a.values(), b.values());
                let expected: Vec<f64> =
                    (0..count(dims)).map(|i| floats(kind, a[at(i, dims, a_dims)], b[at(i, dims, b_dims)])).collect();
                let (what, near) = (format!("{kind:?} {dims:?} {dtype}"), 4.0 * precision(dtype));
                // A power may be beyond the type.
                assert_close(&what, &y.values(), &rounded(dtype, &expected), near, 0.0);
                assert_eq!(fault(&word), None);
            }
        }
    }
}

#[test]
fn integers_and_bools() {
    let of = |kind, dtype, a: &[f64], b: &[f64]| {
        let (a, b) = (Tensor::new(dtype, a), Tensor::new(dtype, b));
        let (n, word) = ([a.values().len() as u64], fault_word());
        let mut y = Tensor::poisoned(dtype, n[0] as usize);
        run(combine(kind, operand(&a, &n), operand(&b, &n), y.view(), word.at()), &mut [&mut y]);
        assert_eq!(fault(&word), None);
        y.values()
    };
    for dtype in [DType::I64, DType::I32] {
        let (a, b) = (&[7.0, -7.0, 7.0, -7.0, 6.0], &[2.0, 2.0, -2.0, -2.0, 3.0]);
        assert_eq!(of(BinaryKind::FloorDivide, dtype, a, b), [3.0, -4.0, -4.0, 3.0, 2.0]);
        assert_eq!(of(BinaryKind::Remainder, dtype, a, b), [1.0, 1.0, -1.0, -1.0, 0.0]);
        assert_eq!(of(BinaryKind::Fmod, dtype, a, b), [1.0, -1.0, 1.0, -1.0, 0.0]);
        assert_eq!(
            of(BinaryKind::Pow, dtype, &[3.0, -2.0, -1.0, 1.0, 0.0, 2.0], &[4.0, 3.0, -3.0, -5.0, 0.0, -1.0]),
            [81.0, -8.0, -1.0, 1.0, 1.0, 0.0]
        );
        assert_eq!(
            of(BinaryKind::ShiftLeft, dtype, &[3.0, -3.0, 3.0, 3.0], &[2.0, 2.0, 64.0, -1.0]),
            [12.0, -12.0, 0.0, 0.0]
        );
        assert_eq!(
            of(BinaryKind::ShiftRight, dtype, &[12.0, -3.0, -3.0, 3.0], &[2.0, 1.0, 64.0, -1.0]),
            [3.0, -2.0, -1.0, 0.0]
        );
        assert_eq!(of(BinaryKind::BitXor, dtype, &[12.0, -1.0], &[10.0, 5.0]), [6.0, -6.0]);
    }
    let least = f64::from(i32::MIN);
    assert_eq!(of(BinaryKind::FloorDivide, DType::I32, &[least], &[-1.0]), [least]);
    assert_eq!(of(BinaryKind::Remainder, DType::I32, &[least], &[-1.0]), [0.0]);
    assert_eq!(of(BinaryKind::Pow, DType::U8, &[3.0, 255.0], &[6.0, 2.0]), [217.0, 1.0]);
    assert_eq!(of(BinaryKind::Maximum, DType::U8, &[3.0, 255.0], &[6.0, 2.0]), [6.0, 255.0]);
    let (a, b) = (&[0.0, 0.0, 1.0, 1.0], &[0.0, 1.0, 0.0, 1.0]);
    assert_eq!(of(BinaryKind::BitAnd, DType::Bool, a, b), [0.0, 0.0, 0.0, 1.0]);
    assert_eq!(of(BinaryKind::Maximum, DType::Bool, a, b), [0.0, 1.0, 1.0, 1.0]);
    assert_eq!(of(BinaryKind::BitXor, DType::Bool, a, b), [0.0, 1.0, 1.0, 0.0]);
}

#[test]
fn the_first_division_by_zero_is_reported() {
    for (dtype, kind) in INTEGERS.into_iter().zip([BinaryKind::Remainder, BinaryKind::Fmod, BinaryKind::FloorDivide]) {
        let mut values = vec![3.0; 1003];
        [1002, 501, 502].into_iter().for_each(|i| values[i] = 0.0);
        let (a, b) = (Tensor::new(dtype, &[7.0; 1003]), Tensor::new(dtype, &values));
        let (mut y, mut word) = (Tensor::poisoned(dtype, 1003), fault_word());
        let launch = combine(kind, operand(&a, &[1003]), operand(&b, &[1003]), y.view(), word.at());
        run(launch, &mut [&mut y, &mut word]);
        assert_eq!((fault(&word), y.values()[501]), (Some(501), 0.0), "{kind:?} {dtype}");
    }
}

#[test]
fn the_next_number_is_that_of_the_type() {
    let of = |dtype, a: &[f64], b: &[f64]| {
        let (a, b, n, word) = (Tensor::new(dtype, a), Tensor::new(dtype, b), [a.len() as u64], fault_word());
        let mut y = Tensor::poisoned(dtype, a.values().len());
        run(combine(BinaryKind::Nextafter, operand(&a, &n), operand(&b, &n), y.view(), word.at()), &mut [&mut y]);
        y.values()
    };
    for (dtype, ulp, least) in [(DType::F32, -23, -149), (DType::F16, -10, -24), (DType::BF16, -7, -133)] {
        let (ulp, least) = (f64::from(ulp).exp2(), f64::from(least).exp2());
        let got = of(dtype, &[1.0, 1.0, -1.0, 0.0, 0.0, 2.0], &[2.0, -2.0, -2.0, 1.0, -1.0, 2.0]);
        assert_eq!(got, [1.0 + ulp, 1.0 - ulp / 2.0, -1.0 - ulp, least, -least, 2.0], "{dtype}");
        assert!(of(dtype, &[f64::NAN, 1.0], &[1.0, f64::NAN]).iter().all(|y| y.is_nan()));
    }
}

#[test]
fn comparisons() {
    for dtype in DType::ALL {
        for [a_dims, b_dims, dims] in SHAPES {
            let few = |n: usize, by: usize| (0..n).map(|i| (i * by % 3) as f64).collect::<Vec<_>>();
            let (a, b) = (Tensor::new(dtype, &few(count(a_dims), 5)), Tensor::new(dtype, &few(count(b_dims), 7)));
            for &kind in CompareKind::ALL {
                let mut y = Tensor::poisoned(DType::Bool, count(dims));
                let launch = compare(kind, operand(&a, a_dims), operand(&b, b_dims), y.view()).expect("a launch");
                run_any_grid(&[launch], &mut [&mut y]);
                let (a, b) = (a.values(), b.values());
                let is = |a: f64, b: f64| match kind {
                    CompareKind::Eq => a == b,
                    CompareKind::Ne => a != b,
                    CompareKind::Lt => a < b,
                    CompareKind::Le => a <= b,
                    CompareKind::Gt => a > b,
                    CompareKind::Ge => a >= b,
                };
                let expected: Vec<f64> = (0..count(dims))
                    .map(|i| f64::from(u8::from(is(a[at(i, dims, a_dims)], b[at(i, dims, b_dims)]))))
                    .collect();
                assert_eq!(y.values(), expected, "{kind:?} {dims:?} {dtype}");
            }
        }
    }
    let odd = Tensor::new(DType::F16, &[f64::NAN, -0.0]);
    let other = Tensor::new(DType::F16, &[f64::NAN, 0.0]);
    for (kind, expected) in
        [(CompareKind::Eq, [0.0, 1.0]), (CompareKind::Ne, [1.0, 0.0]), (CompareKind::Ge, [0.0, 1.0])]
    {
        let mut y = Tensor::poisoned(DType::Bool, 2);
        run(compare(kind, operand(&odd, &[2]), operand(&other, &[2]), y.view()), &mut [&mut y]);
        assert_eq!(y.values(), expected, "{kind:?}");
    }
}

#[test]
fn choices() {
    for dtype in DType::ALL {
        for (n, one) in [(0_usize, None), (1, None), (1003, None), (1003, Some(0)), (1003, Some(1)), (1003, Some(2))] {
            let size = |place: usize| if one == Some(place) { 1 } else { n };
            let flags: Vec<f64> = (0..size(0)).map(|i| f64::from(u8::from(i % 3 == 0))).collect();
            let condition = Tensor::new(DType::Bool, &flags);
            let (a, b) = (Tensor::new(dtype, &vec![1.0; size(1)]), Tensor::new(dtype, &vec![0.0; size(2)]));
            let mut y = Tensor::poisoned(dtype, n);
            let launch = choose(condition.view(), a.view(), b.view(), y.view()).expect("a launch");
            run_any_grid(&[launch], &mut [&mut y]);
            let expected: Vec<f64> = (0..n).map(|i| flags[if one == Some(0) { 0 } else { i }]).collect();
            assert_eq!(y.values(), expected, "{dtype} {one:?}");
        }
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (x, flags, word) = (Tensor::poisoned(DType::F32, 6), Tensor::poisoned(DType::Bool, 6), fault_word());
    let (six, flag) = (operand(&x, &[6]), operand(&flags, &[6]));
    assert!(combine(BinaryKind::BitAnd, six, six, x.view(), word.at()).is_err());
    assert!(combine(BinaryKind::Pow, flag, flag, flags.view(), word.at()).is_err());
    assert!(combine(BinaryKind::Hypot, six, six, x.view(), 0).is_err());
    assert!(combine(BinaryKind::Hypot, six, operand(&x, &[2, 3]), x.view(), word.at()).is_err());
    assert!(compare(CompareKind::Eq, six, six, x.view()).is_err());
    assert!(compare(CompareKind::Eq, six, flag, flags.view()).is_err());
    assert!(choose(x.view(), x.view(), x.view(), x.view()).is_err());
    assert!(choose(flags.view(), x.view(), flags.view(), x.view()).is_err());
    assert!(choose(flags.view(), x.tail(1), x.view(), x.view()).is_err());
}
