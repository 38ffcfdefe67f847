//! Ops that go along an axis and keep it.

use super::{InferError, bad_shape, exactly, index, normalize_axis, number, same_dtype, shape_is};
use crate::kinds::ScatterKind;
use crate::types::{DType, Dim, TensorType};

pub(super) fn cumulative(axis: i32, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    number(0, x)?;
    normalize_axis("axis", axis, x.shape.rank())?;
    Ok(x.clone())
}

pub(super) fn argsort(axis: i32, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    normalize_axis("axis", axis, x.shape.rank())?;
    Ok(TensorType { dtype: DType::I64, shape: x.shape.clone() })
}

pub(super) fn take(axis: i32, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x, ids] = exactly(inputs)?;
    indices(axis, x, ids)?;
    Ok(TensorType { dtype: x.dtype, shape: ids.shape.clone() })
}

pub(super) fn scatter(axis: i32, kind: ScatterKind, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x, ids, updates] = exactly(inputs)?;
    if kind != ScatterKind::Set {
        number(0, x)?;
    }
    indices(axis, x, ids)?;
    same_dtype(2, x, updates)?;
    shape_is(2, updates, &ids.shape.0)?;
    Ok((*x).clone())
}

/// Whether each index of `ids` but for `axis` is one of `x`.
fn indices(axis: i32, x: &TensorType, ids: &TensorType) -> Result<(), InferError> {
    index(1, ids)?;
    let axis = normalize_axis("axis", axis, x.shape.rank())?;
    let within = |(i, (&x, &ids)): (usize, (&Dim, &Dim))| match (x, ids) {
        _ if i == axis => true,
        (Dim::Fixed(x), Dim::Fixed(ids)) => ids <= x,
        (x, ids) => x == ids,
    };
    let fits = ids.shape.rank() == x.shape.rank() && x.shape.0.iter().zip(&ids.shape.0).enumerate().all(within);
    if fits { Ok(()) } else { Err(bad_shape(1, ids, format!("at most {} but for axis {axis}", x.shape))) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{B, S, n, t};
    use super::*;
    use crate::infer;
    use crate::kinds::CumulativeKind;
    use crate::op::Op;

    #[test]
    fn what_is_carried_or_sorted_keeps_its_shape() {
        for dtype in DType::ALL {
            let x = t(dtype, &[B, n(3)]);
            for axis in -2..2 {
                match infer(&Op::Cumulative { kind: CumulativeKind::Sum, axis }, &[&x]) {
                    Ok(y) => assert!(dtype != DType::Bool && y == x),
                    Err(e) => assert!(dtype == DType::Bool && matches!(e, InferError::DType { input: 0, .. }), "{e}"),
                }
                let order = infer(&Op::ArgSort { axis, descending: true }, &[&x]);
                assert_eq!(order, Ok(t(DType::I64, &[B, n(3)])));
            }
        }
        for axis in [-3, 2, i32::MIN, i32::MAX] {
            let x = t(DType::F32, &[B, n(3)]);
            let ids = t(DType::I32, &[B, n(3)]);
            let scattered = Op::ScatterAlong { axis, kind: ScatterKind::Set };
            for (op, inputs) in [
                (Op::Cumulative { kind: CumulativeKind::Max, axis }, &[&x][..]),
                (Op::ArgSort { axis, descending: false }, &[&x]),
                (Op::TakeAlong { axis }, &[&x, &ids]),
                (scattered, &[&x, &ids, &x]),
            ] {
                let refused = infer(&op, inputs);
                assert!(matches!(refused, Err(InferError::Attribute { name: "axis", .. })), "{op:?} {refused:?}");
            }
        }
        assert!(infer(&Op::ArgSort { axis: 0, descending: false }, &[&t(DType::F32, &[])]).is_err());
    }

    #[test]
    fn ids_stay_within_the_other_dimensions() {
        let x = t(DType::Bool, &[B, n(4), n(3)]);
        let take = |ids: &TensorType| infer(&Op::TakeAlong { axis: 1 }, &[&x, ids]);
        let set = |ids: &TensorType, updates: &TensorType| {
            infer(&Op::ScatterAlong { axis: 1, kind: ScatterKind::Set }, &[&x, ids, updates])
        };
        for dims in [[B, n(9), n(3)], [B, S, n(1)], [B, n(1), n(2)]] {
            let (ids, updates) = (t(DType::I64, &dims), t(DType::Bool, &dims));
            assert_eq!(take(&ids), Ok(updates.clone()));
            assert_eq!(set(&ids, &updates), Ok(x.clone()));
            assert!(matches!(set(&ids, &t(DType::U8, &dims)), Err(InferError::DTypeMismatch { input: 2, .. })));
            assert!(matches!(set(&ids, &t(DType::Bool, &dims[..2])), Err(InferError::Shape { input: 2, .. })));
        }
        for dims in [&[B, n(4), n(4)][..], &[n(1), n(4), n(3)], &[S, n(4), n(3)], &[B, n(4)], &[B, n(4), n(3), n(1)]] {
            assert!(matches!(take(&t(DType::I32, dims)), Err(InferError::Shape { input: 1, .. })), "{dims:?}");
        }
        assert!(matches!(take(&t(DType::U8, &[B, n(4), n(3)])), Err(InferError::DType { input: 1, .. })));
        for &kind in &ScatterKind::ALL[1..] {
            let ids = t(DType::I32, &x.shape.0);
            let refused = infer(&Op::ScatterAlong { axis: 0, kind }, &[&x, &ids, &x]);
            assert!(matches!(refused, Err(InferError::DType { input: 0, .. })), "{kind:?}");
        }
    }
}
