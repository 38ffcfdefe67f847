//! Ops that treat each element by itself, in many kinds; and those that repeat and make elements.

use super::elementwise::broadcast;
use super::{InferError, bad_attribute, exactly, one_of, same_dtype, shape_is};
use crate::kinds::{BinaryKind, RandomKind, UnaryKind};
use crate::types::{DType, Dim, Shape, TensorType};

pub(super) fn unary(kind: UnaryKind, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    let expected = match kind {
        UnaryKind::Not => "an integer type or bool",
        _ if kind.takes(DType::I32) => "a number type",
        _ => "f32, f16 or bf16",
    };
    one_of(0, x, kind.takes(x.dtype), expected)?;
    Ok(TensorType { dtype: kind.result(x.dtype), shape: x.shape.clone() })
}

pub(super) fn binary(kind: BinaryKind, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [a, b] = exactly(inputs)?;
    let expected = match (kind.takes(DType::F32), kind.takes(DType::I32), kind.takes(DType::Bool)) {
        (true, true, _) => "a number type",
        (true, false, _) => "f32, f16 or bf16",
        (false, _, true) => "an integer type or bool",
        (false, _, false) => "an integer type",
    };
    one_of(0, a, kind.takes(a.dtype), expected)?;
    same_dtype(1, a, b)?;
    Ok(TensorType { dtype: a.dtype, shape: broadcast(&a.shape, &b.shape)? })
}

pub(super) fn compare(inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [a, b] = exactly(inputs)?;
    same_dtype(1, a, b)?;
    Ok(TensorType { dtype: DType::Bool, shape: broadcast(&a.shape, &b.shape)? })
}

pub(super) fn choose(inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [condition, a, b] = exactly(inputs)?;
    one_of(0, condition, condition.dtype == DType::Bool, "bool")?;
    if a.dtype != b.dtype {
        return Err(InferError::DTypeMismatch { input: 2, expected: a.dtype, got: b.dtype });
    }
    let shape = broadcast(&condition.shape, &broadcast(&a.shape, &b.shape)?)?;
    Ok(TensorType { dtype: a.dtype, shape })
}

pub(super) fn broadcast_to(dims: &[Dim], inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    let shape = Shape(dims.to_vec());
    let fits = dims.len() >= x.shape.rank() && broadcast(&x.shape, &shape)? == shape;
    if fits {
        Ok(TensorType { dtype: x.dtype, shape })
    } else {
        Err(bad_attribute("dims", format!("is {shape}, to which {} cannot be repeated", x.shape)))
    }
}

pub(super) fn random(
    kind: RandomKind,
    dtype: DType,
    dims: &[Dim],
    inputs: &[&TensorType],
) -> Result<TensorType, InferError> {
    let [key] = exactly(inputs)?;
    one_of(0, key, key.dtype == DType::I64, "i64")?;
    shape_is(0, key, &[Dim::Fixed(2)])?;
    if !kind.makes(dtype) {
        let made = if kind == RandomKind::Bits { "i64" } else { "f32, f16 or bf16" };
        return Err(bad_attribute("dtype", format!("is {dtype}, but must be {made}")));
    }
    Ok(TensorType::new(dtype, dims.iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{B, S, n, t};
    use super::*;
    use crate::infer;
    use crate::kinds::CompareKind;
    use crate::op::Op;

    #[test]
    fn each_kind_takes_its_types() {
        let floats = |d: DType| d.is_float();
        let numbers = |d: DType| d != DType::Bool;
        for (kinds, takes) in [
            (&UnaryKind::ALL[..24], floats as fn(DType) -> bool),
            (&UnaryKind::ALL[24..29], numbers),
            (&UnaryKind::ALL[29..30], |d| !d.is_float()),
            (&UnaryKind::ALL[30..], floats),
        ] {
            for (&kind, dtype) in kinds.iter().flat_map(|kind| DType::ALL.map(|d| (kind, d))) {
                let made = infer(&Op::Unary { kind }, &[&t(dtype, &[B, n(3)])]);
                let tests = matches!(kind, UnaryKind::IsNan | UnaryKind::IsInf | UnaryKind::IsFinite);
                match made {
                    Ok(y) => {
                        assert!(takes(dtype) && y == t(if tests { DType::Bool } else { dtype }, &[B, n(3)]), "{kind:?}")
                    }
                    Err(e) => {
                        assert!(!takes(dtype) && matches!(e, InferError::DType { input: 0, .. }), "{kind:?} {e}")
                    }
                }
            }
        }
        let binary = |kind, dtype| infer(&Op::Binary { kind }, &[&t(dtype, &[n(3)]), &t(dtype, &[B, n(1)])]);
        for (kind, taken) in [
            (BinaryKind::Pow, &DType::ALL[..6]),
            (BinaryKind::Maximum, &DType::ALL[..]),
            (BinaryKind::Nextafter, &DType::ALL[..3]),
            (BinaryKind::BitXor, &DType::ALL[3..]),
            (BinaryKind::ShiftLeft, &DType::ALL[3..6]),
        ] {
            for dtype in DType::ALL {
                match binary(kind, dtype) {
                    Ok(y) => assert!(taken.contains(&dtype) && y == t(dtype, &[B, n(3)]), "{kind:?} {dtype}"),
                    Err(e) => assert!(!taken.contains(&dtype) && matches!(e, InferError::DType { .. }), "{kind:?} {e}"),
                }
            }
        }
        let mixed = infer(&Op::Binary { kind: BinaryKind::Pow }, &[&t(DType::F32, &[]), &t(DType::I32, &[])]);
        assert!(matches!(mixed, Err(InferError::DTypeMismatch { input: 1, .. })));
    }

    #[test]
    fn comparisons_and_choices_broadcast() {
        for dtype in DType::ALL {
            let (a, b, flag) = (t(dtype, &[B, n(1), n(3)]), t(dtype, &[S, n(1)]), t(DType::Bool, &[n(3)]));
            let compared = infer(&Op::Compare { kind: CompareKind::Lt }, &[&a, &b]);
            assert_eq!(compared, Ok(t(DType::Bool, &[B, S, n(3)])));
            assert_eq!(infer(&Op::Where, &[&flag, &a, &b]), Ok(t(dtype, &[B, S, n(3)])));
        }
        let (f, i, flag) = (t(DType::F32, &[n(3)]), t(DType::I32, &[n(3)]), t(DType::Bool, &[n(2)]));
        assert!(matches!(infer(&Op::Where, &[&i, &f, &f]), Err(InferError::DType { input: 0, .. })));
        assert!(matches!(infer(&Op::Where, &[&flag, &f, &i]), Err(InferError::DTypeMismatch { input: 2, .. })));
        assert!(matches!(infer(&Op::Where, &[&flag, &f, &f]), Err(InferError::Broadcast { .. })));
        let kind = CompareKind::Eq;
        assert!(matches!(infer(&Op::Compare { kind }, &[&f, &i]), Err(InferError::DTypeMismatch { input: 1, .. })));
    }

    #[test]
    fn repeating_leaves_what_is_there() {
        let f = |from: &[Dim], to: &[Dim]| {
            infer(&Op::Broadcast { dims: to.to_vec() }, &[&t(DType::U8, from)]).map(|t| t.shape.0)
        };
        for (from, to) in [
            (&[][..], &[][..]),
            (&[], &[B, n(3)]),
            (&[n(1), S], &[n(4), S]),
            (&[n(1)], &[B]),
            (&[S, n(3)], &[B, S, n(3)]),
        ] {
            assert_eq!(f(from, to), Ok(to.to_vec()));
        }
        for (from, to) in [(&[n(3)][..], &[n(1)][..]), (&[B, n(3)], &[n(3)]), (&[n(1), n(3)], &[n(3)])] {
            assert!(matches!(f(from, to), Err(InferError::Attribute { name: "dims", .. })), "{from:?} {to:?}");
        }
        for (from, to) in [(&[n(3)][..], &[n(4)][..]), (&[B], &[S]), (&[n(2)], &[B])] {
            assert!(matches!(f(from, to), Err(InferError::Broadcast { .. })), "{from:?} {to:?}");
        }
        assert!(matches!(f(&[], &[n(0)]), Err(InferError::Result(_))));
    }

    #[test]
    fn samples_are_of_the_kinds_type() {
        let f = |kind, dtype, key: &TensorType| infer(&Op::Random { kind, dtype, dims: vec![B, n(3)] }, &[key]);
        let key = t(DType::I64, &[n(2)]);
        for dtype in DType::ALL {
            for (&kind, ok) in RandomKind::ALL.iter().zip([dtype.is_float(), dtype.is_float(), dtype == DType::I64]) {
                match f(kind, dtype, &key) {
                    Ok(y) => assert!(ok && y == t(dtype, &[B, n(3)])),
                    Err(e) => assert!(!ok && matches!(e, InferError::Attribute { name: "dtype", .. }), "{e}"),
                }
            }
        }
        let wrong = f(RandomKind::Bits, DType::I64, &t(DType::I32, &[n(2)]));
        assert!(matches!(wrong, Err(InferError::DType { input: 0, .. })));
        let wrong = f(RandomKind::Bits, DType::I64, &t(DType::I64, &[n(3)]));
        assert!(matches!(wrong, Err(InferError::Shape { input: 0, .. })));
    }
}
