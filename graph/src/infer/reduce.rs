//! Ops along one or more axes.

use super::{InferError, bad_attribute, bad_shape, exactly, float, normalize_axis, number};
use crate::op::ReduceKind;
use crate::size::TypeError;
use crate::types::{DType, Dim, Shape, TensorType};

pub(super) fn softmax(axis: i32, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    float(0, x)?;
    normalize_axis("axis", axis, x.shape.rank())?;
    Ok(x.clone())
}

pub(super) fn reduce(
    kind: ReduceKind,
    axes: &[i32],
    keep_dims: bool,
    inputs: &[&TensorType],
) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    match kind {
        ReduceKind::Mean => float(0, x)?,
        ReduceKind::Sum | ReduceKind::Prod => number(0, x)?,
        ReduceKind::Max | ReduceKind::Min => {}
    }
    let rank = x.shape.rank();
    if rank > Shape::MAX_RANK {
        return Err(TypeError::Rank { rank }.into());
    }
    let mut reduced = [axes.is_empty(); Shape::MAX_RANK];
    for &axis in axes {
        if std::mem::replace(&mut reduced[normalize_axis("axes", axis, rank)?], true) {
            return Err(bad_attribute("axes", format!("names axis {axis} twice")));
        }
    }
    let dims = x.shape.0.iter().zip(reduced).filter_map(|(&dim, gone)| match (gone, keep_dims) {
        (false, _) => Some(dim),
        (true, true) => Some(Dim::Fixed(1)),
        (true, false) => None,
    });
    Ok(TensorType::new(x.dtype, dims))
}

pub(super) fn argmax(axis: i32, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    number(0, x)?;
    let axis = normalize_axis("axis", axis, x.shape.rank())?;
    if x.shape.fixed_dim(axis).is_some_and(|n| n > i32::MAX as u64) {
        return Err(bad_shape(0, x, format!("small enough along axis {axis} for an i32 index")));
    }
    let mut dims = x.shape.0.clone();
    dims.remove(axis);
    Ok(TensorType { dtype: DType::I32, shape: Shape(dims) })
}

pub(super) fn arg_reduce(axis: i32, keep_dims: bool, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    let axis = normalize_axis("axis", axis, x.shape.rank())?;
    let mut dims = x.shape.0.clone();
    if keep_dims {
        dims[axis] = Dim::Fixed(1);
    } else {
        dims.remove(axis);
    }
    Ok(TensorType { dtype: DType::I64, shape: Shape(dims) })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{B, S, n, t};
    use super::*;
    use crate::infer;
    use crate::kinds::ArgReduceKind;
    use crate::op::Op;

    fn refused(r: &Result<TensorType, InferError>, which: &str) -> bool {
        matches!(r, Err(InferError::Attribute { name, .. }) if *name == which)
    }

    #[test]
    fn softmax_wants_floats_and_an_axis() {
        let x = t(DType::F16, &[B, S]);
        for axis in -2..2 {
            assert_eq!(infer(&Op::Softmax { axis }, &[&x]), Ok(x.clone()));
        }
        for axis in [2, -3, i32::MAX, i32::MIN] {
            assert!(refused(&infer(&Op::Softmax { axis }, &[&x]), "axis"));
        }
        assert!(matches!(
            infer(&Op::Softmax { axis: 0 }, &[&t(DType::I32, &[B])]),
            Err(InferError::DType { input: 0, .. })
        ));
    }

    #[test]
    fn reduce_drops_or_keeps_axes() {
        let f = |kind, axes: &[i32], keep_dims, dtype| {
            infer(&Op::Reduce { kind, axes: axes.to_vec(), keep_dims }, &[&t(dtype, &[B, S, n(3)])])
        };
        assert_eq!(f(ReduceKind::Sum, &[], false, DType::F32), Ok(t(DType::F32, &[])));
        assert_eq!(f(ReduceKind::Sum, &[], true, DType::I32), Ok(t(DType::I32, &[n(1), n(1), n(1)])));
        assert_eq!(f(ReduceKind::Mean, &[-1, 0], false, DType::F32), Ok(t(DType::F32, &[S])));
        assert_eq!(f(ReduceKind::Max, &[1], true, DType::U8), Ok(t(DType::U8, &[B, n(1), n(3)])));
        assert!(refused(&f(ReduceKind::Min, &[0, -3], false, DType::F32), "axes"));
        assert!(refused(&f(ReduceKind::Prod, &[3], false, DType::F32), "axes"));
        assert!(matches!(f(ReduceKind::Mean, &[], false, DType::I32), Err(InferError::DType { .. })));
        assert_eq!(f(ReduceKind::Min, &[0, 1], false, DType::Bool), Ok(t(DType::Bool, &[n(3)])));
        for kind in [ReduceKind::Sum, ReduceKind::Prod, ReduceKind::Mean] {
            assert!(matches!(f(kind, &[], false, DType::Bool), Err(InferError::DType { .. })));
        }
    }

    #[test]
    fn argmax_gives_indices() {
        let x = t(DType::F32, &[B, S, n(3)]);
        assert_eq!(infer(&Op::ArgMax { axis: -1 }, &[&x]), Ok(t(DType::I32, &[B, S])));
        assert_eq!(infer(&Op::ArgMax { axis: 0 }, &[&x]), Ok(t(DType::I32, &[S, n(3)])));
        assert!(refused(&infer(&Op::ArgMax { axis: 3 }, &[&x]), "axis"));
        assert!(refused(&infer(&Op::ArgMax { axis: 0 }, &[&t(DType::F32, &[])]), "axis"));
        assert!(infer(&Op::ArgMax { axis: 0 }, &[&t(DType::Bool, &[B])]).is_err());
        assert!(matches!(
            infer(&Op::ArgMax { axis: 0 }, &[&t(DType::U8, &[n(1 << 31)])]),
            Err(InferError::Shape { input: 0, .. })
        ));
    }

    #[test]
    fn arg_reduce_takes_any_type() {
        for dtype in DType::ALL {
            let f = |axis, keep_dims| {
                infer(&Op::ArgReduce { kind: ArgReduceKind::Min, axis, keep_dims }, &[&t(dtype, &[B, S, n(3)])])
            };
            assert_eq!(f(-1, false), Ok(t(DType::I64, &[B, S])));
            assert_eq!(f(1, true), Ok(t(DType::I64, &[B, n(1), n(3)])));
            assert!(refused(&f(3, false), "axis"));
        }
        let scalar = Op::ArgReduce { kind: ArgReduceKind::Max, axis: 0, keep_dims: true };
        assert!(refused(&infer(&scalar, &[&t(DType::F32, &[])]), "axis"));
    }
}
