//! Ops that move elements without changing them.

use super::{InferError, bad_attribute, bad_shape, exactly, index, normalize_axis, same_dtype, shape_is};
use crate::op::Op;
use crate::size::TypeError;
use crate::types::{Dim, Shape, TensorType};
use crate::verify::holds;

pub(super) fn reshape(dims: &[Dim], inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    if dims.len() > Shape::MAX_RANK {
        return Err(TypeError::Rank { rank: dims.len() }.into());
    }
    let refuse = |what: &str| bad_attribute("dims", format!("is {}, {what} of {}", Shape(dims.to_vec()), x.shape));
    if !symbols(dims).eq(symbols(&x.shape.0)) {
        return Err(refuse("which must keep the symbols, in order,"));
    }
    if dims.iter().filter(|&&d| d == Op::INFER).count() > 1 {
        return Err(refuse("with more than one dimension to infer from the shape"));
    }
    let wrong_count = || refuse("which does not have the number of elements");
    let have = fixed_product(&x.shape.0).ok_or_else(wrong_count)?;
    let known = fixed_product(dims).ok_or_else(wrong_count)?;
    let inferred = if dims.contains(&Op::INFER) { have.checked_div(known).ok_or_else(wrong_count)? } else { 1 };
    if known.checked_mul(inferred) != Some(have) {
        return Err(wrong_count());
    }
    let dims = dims.iter().map(|&d| if d == Op::INFER { Dim::Fixed(inferred) } else { d });
    Ok(TensorType::new(x.dtype, dims))
}

fn symbols(dims: &[Dim]) -> impl Iterator<Item = &Dim> {
    dims.iter().filter(|d| matches!(d, Dim::Symbol(_)))
}

/// Product of the fixed dimensions other than [`Op::INFER`].
fn fixed_product(dims: &[Dim]) -> Option<u64> {
    dims.iter().filter(|&&d| d != Op::INFER).try_fold(1_u64, |product, dim| match dim {
        Dim::Fixed(n) => product.checked_mul(*n),
        Dim::Symbol(_) => Some(product),
    })
}

pub(super) fn transpose(perm: &[u32], inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    let rank = x.shape.rank();
    let bad = || bad_attribute("perm", format!("must hold each of 0..{rank} once for an input of rank {rank}"));
    if perm.len() != rank || rank > Shape::MAX_RANK {
        return Err(bad());
    }
    let mut seen = [false; Shape::MAX_RANK];
    let mut dims = Vec::with_capacity(rank);
    for &p in perm {
        let p = p as usize;
        let &dim = x.shape.0.get(p).ok_or_else(bad)?;
        if std::mem::replace(&mut seen[p], true) {
            return Err(bad());
        }
        dims.push(dim);
    }
    Ok(TensorType { dtype: x.dtype, shape: Shape(dims) })
}

pub(super) fn slice(
    axis: i32,
    start: i64,
    end: Option<i64>,
    step: u64,
    inputs: &[&TensorType],
) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    let axis = normalize_axis("axis", axis, x.shape.rank())?;
    if step == 0 {
        return Err(bad_attribute("step", "is 0, but must be at least 1"));
    }
    let mut y = x.clone();
    y.shape.0[axis] = match x.shape.0[axis] {
        Dim::Fixed(size) => {
            let first = bound("start", start, size)?;
            let last = end.map_or(Ok(size), |end| bound("end", end, size))?;
            match last.checked_sub(first) {
                None | Some(0) => {
                    return Err(bad_attribute("end", format!("leaves nothing: {first}..{last} of {size} elements")));
                }
                Some(length) => Dim::Fixed(length.div_ceil(step)),
            }
        }
        whole @ Dim::Symbol(_) => match (start, end, step) {
            (0, None, 1) => whole,
            (i64::MIN..0, None, 1) => Dim::Fixed(start.unsigned_abs()),
            _ => {
                let reason = format!(
                    "and bounds must take all (start 0) or the last n (start -n) of the symbolic dimension {whole}, with no end and step 1"
                );
                return Err(bad_attribute("start", reason));
            }
        },
    };
    Ok(y)
}

/// A bound counted from either end, as a place in `0..=size`.
fn bound(name: &'static str, value: i64, size: u64) -> Result<u64, InferError> {
    let place = if value < 0 { size.checked_sub(value.unsigned_abs()) } else { Some(value.unsigned_abs()) };
    place
        .filter(|&p| p <= size)
        .ok_or_else(|| bad_attribute(name, format!("is {value}, outside the dimension of {size} elements")))
}

pub(super) fn concat(axis: i32, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [first, rest @ ..] = inputs else {
        return Err(InferError::Arity { expected: "at least 1", got: 0 });
    };
    let axis = normalize_axis("axis", axis, first.shape.rank())?;
    let along = |input: usize, ty: &TensorType| {
        ty.shape.fixed_dim(axis).ok_or_else(|| bad_shape(input, ty, format!("of fixed size along axis {axis}")))
    };
    let mut total = along(0, first)?;
    for (i, ty) in (1..).zip(rest) {
        same_dtype(i, first, ty)?;
        let others = |s: &Shape| s.0.iter().copied().enumerate().filter(move |&(i, _)| i != axis).collect::<Vec<_>>();
        if ty.shape.rank() != first.shape.rank() || others(&ty.shape) != others(&first.shape) {
            return Err(bad_shape(i, ty, format!("that of input 0, {}, but for axis {axis}", first.shape)));
        }
        total = total.saturating_add(along(i, ty)?);
    }
    let mut y = (*first).clone();
    y.shape.0[axis] = Dim::Fixed(total);
    Ok(y)
}

pub(super) fn gather(inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x, ids] = exactly(inputs)?;
    index(1, ids)?;
    let [_, row @ ..] = &x.shape.0[..] else {
        return Err(bad_shape(0, x, "[V, ..]"));
    };
    Ok(TensorType::new(x.dtype, ids.shape.0.iter().chain(row).copied()))
}

pub(super) fn scatter(inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x, ids, updates] = exactly(inputs)?;
    index(1, ids)?;
    same_dtype(2, x, updates)?;
    let [_, row @ ..] = &x.shape.0[..] else {
        return Err(bad_shape(0, x, "[V, ..]"));
    };
    let &[count] = &ids.shape.0[..] else {
        return Err(bad_shape(1, ids, "[n]"));
    };
    shape_is(2, updates, &[&[count], row].concat())?;
    Ok(x.clone())
}

pub(super) fn flip(axes: &[i32], inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    let rank = x.shape.rank();
    if rank > Shape::MAX_RANK {
        return Err(TypeError::Rank { rank }.into());
    }
    let mut flipped = [false; Shape::MAX_RANK];
    for &axis in axes {
        if std::mem::replace(&mut flipped[normalize_axis("axes", axis, rank)?], true) {
            return Err(bad_attribute("axes", format!("names axis {axis} twice")));
        }
    }
    Ok(x.clone())
}

pub(super) fn pad(before: &[u32], after: &[u32], value: f64, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    if !holds(x.dtype, value) {
        return Err(bad_attribute("value", format!("is {value}, which {} cannot hold", x.dtype)));
    }
    let rank = x.shape.rank();
    for (name, list) in [("before", before), ("after", after)] {
        if list.len() != rank {
            return Err(bad_attribute(name, format!("must have {rank} number(s), one a dimension of {}", x.shape)));
        }
    }
    let mut y = x.clone();
    for (axis, dim) in y.shape.0.iter_mut().enumerate() {
        match (dim, before[axis], after[axis]) {
            (_, 0, 0) => {}
            // What saturates is over the limit, and refused as such.
            (Dim::Fixed(size), b, a) => *size = size.saturating_add(u64::from(b) + u64::from(a)),
            (Dim::Symbol(_), ..) => return Err(bad_shape(0, x, format!("of fixed size along axis {axis}"))),
        }
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{B, S, n, t};
    use crate::infer;
    use crate::limits::MAX_DIM;
    use crate::types::{DType, Dim};
    use crate::{InferError, Op, TypeError};

    fn refused(r: &Result<Vec<Dim>, InferError>, which: &str) -> bool {
        matches!(r, Err(InferError::Attribute { name, .. }) if *name == which)
    }

    #[test]
    fn reshape_keeps_elements_and_symbols() {
        let f = |from: &[Dim], to: &[Dim]| {
            infer(&Op::Reshape { dims: to.to_vec() }, &[&t(DType::U8, from)]).map(|t| t.shape.0)
        };
        assert_eq!(f(&[B, S, n(12)], &[B, S, n(3), n(4)]), Ok(vec![B, S, n(3), n(4)]));
        assert_eq!(f(&[n(2), B, n(6)], &[B, n(12)]), Ok(vec![B, n(12)]));
        assert_eq!(f(&[B, S, n(12)], &[B, S, Op::INFER, n(4)]), Ok(vec![B, S, n(3), n(4)]));
        assert_eq!(f(&[B], &[B, Op::INFER]), Ok(vec![B, n(1)]));
        assert_eq!(f(&[n(1)], &[]), Ok(vec![]));
        assert_eq!(f(&[], &[n(1), n(1)]), Ok(vec![n(1), n(1)]));
        for (from, to) in [
            (&[B, S][..], &[S, B][..]),
            (&[B, n(4)], &[n(4)]),
            (&[n(4)], &[B, n(4)]),
            (&[n(12)], &[n(5), Op::INFER]),
            (&[n(12)], &[Op::INFER, Op::INFER]),
            (&[n(12)], &[n(11)]),
            (&[n(12)], &[n(0), Op::INFER]),
            (&[n(12)], &[n(0)]),
            (&[n(12)], &[n(1 << 40), n(1 << 40)]),
        ] {
            assert!(refused(&f(from, to), "dims"), "{from:?} {to:?}");
        }
        assert_eq!(f(&[n(1)], &[n(1); 9]), Err(InferError::Result(TypeError::Rank { rank: 9 })));
    }

    #[test]
    fn transpose_wants_a_permutation() {
        let f = |from: &[Dim], perm: &[u32]| {
            infer(&Op::Transpose { perm: perm.to_vec() }, &[&t(DType::U8, from)]).map(|t| t.shape.0)
        };
        assert_eq!(f(&[B, S, n(3)], &[2, 0, 1]), Ok(vec![n(3), B, S]));
        assert_eq!(f(&[], &[]), Ok(vec![]));
        for perm in [&[0, 1][..], &[0, 1, 1], &[0, 1, 3], &[0, 1, u32::MAX], &[0, 1, 2, 3]] {
            assert!(refused(&f(&[B, S, n(3)], perm), "perm"), "{perm:?}");
        }
    }

    #[test]
    fn slice_counts_and_checks_bounds() {
        let f = |from: &[Dim], axis, start, end, step| {
            infer(&Op::Slice { axis, start, end, step }, &[&t(DType::U8, from)]).map(|t| t.shape.0)
        };
        let x = [B, S, n(10)];
        assert_eq!(f(&x, 2, 0, None, 1), Ok(x.to_vec()));
        assert_eq!(f(&x, -1, 2, Some(9), 3), Ok(vec![B, S, n(3)]));
        assert_eq!(f(&x, -1, -4, Some(-1), 2), Ok(vec![B, S, n(2)]));
        assert_eq!(f(&x, -1, 0, None, u64::MAX), Ok(vec![B, S, n(1)]));
        assert_eq!(f(&x, 1, -1, None, 1), Ok(vec![B, n(1), n(10)]));
        assert_eq!(f(&x, 1, 0, None, 1), Ok(x.to_vec()));
        assert!(refused(&f(&x, 3, 0, None, 1), "axis"));
        assert!(refused(&f(&x, -4, 0, None, 1), "axis"));
        assert!(refused(&f(&x, i32::MIN, 0, None, 1), "axis"));
        assert!(refused(&f(&x, 2, 0, None, 0), "step"));
        assert!(refused(&f(&x, 2, 11, None, 1), "start"));
        assert!(refused(&f(&x, 2, i64::MIN, None, 1), "start"));
        assert!(refused(&f(&x, 2, 0, Some(11), 1), "end"));
        assert!(refused(&f(&x, 2, 5, Some(5), 1), "end"));
        assert!(refused(&f(&x, 2, 10, None, 1), "end"));
        assert!(refused(&f(&x, 2, 6, Some(5), 1), "end"));
        for (start, end, step) in [(1, None, 1), (0, Some(3), 1), (-2, Some(-1), 1), (0, None, 2), (-4, None, 2)] {
            assert!(refused(&f(&x, 1, start, end, step), "start"), "{start} {end:?} {step}");
        }
        assert!(matches!(f(&x, 1, i64::MIN, None, 1), Err(InferError::Result(TypeError::DimTooLarge { axis: 1, .. }))));
    }

    #[test]
    fn concat_joins_fixed_dimensions() {
        let f = |axis, shapes: &[&[Dim]]| {
            let types: Vec<_> = shapes.iter().map(|s| t(DType::F32, s)).collect();
            infer(&Op::Concat { axis }, &types.iter().collect::<Vec<_>>()).map(|t| t.shape.0)
        };
        assert_eq!(f(-1, &[&[B, n(2)], &[B, n(3)], &[B, n(1)]]), Ok(vec![B, n(6)]));
        assert_eq!(f(0, &[&[n(2), S]]), Ok(vec![n(2), S]));
        assert!(matches!(f(0, &[]), Err(InferError::Arity { .. })));
        assert!(matches!(f(0, &[&[B], &[B]]), Err(InferError::Shape { input: 0, .. })));
        assert!(matches!(f(0, &[&[n(1)], &[B]]), Err(InferError::Shape { input: 1, .. })));
        assert!(matches!(f(0, &[&[n(1), B], &[n(1), S]]), Err(InferError::Shape { input: 1, .. })));
        assert!(matches!(f(0, &[&[n(1)], &[n(1), n(1)]]), Err(InferError::Shape { input: 1, .. })));
        assert!(refused(&f(1, &[&[n(1)]]), "axis"));
        assert!(matches!(f(0, &[&[n(MAX_DIM)], &[n(1)]]), Err(InferError::Result(TypeError::DimTooLarge { .. }))));
        let mixed = [&t(DType::F32, &[n(1)]), &t(DType::F16, &[n(1)])];
        assert!(matches!(infer(&Op::Concat { axis: 0 }, &mixed), Err(InferError::DTypeMismatch { input: 1, .. })));
    }

    #[test]
    fn gather_replaces_the_first_dimension() {
        let x = t(DType::Bool, &[n(9), n(4), S]);
        assert_eq!(infer(&Op::Gather, &[&x, &t(DType::I64, &[B, n(2)])]), Ok(t(DType::Bool, &[B, n(2), n(4), S])));
        assert_eq!(infer(&Op::Gather, &[&x, &t(DType::I32, &[])]), Ok(t(DType::Bool, &[n(4), S])));
        assert!(matches!(infer(&Op::Gather, &[&x, &x]), Err(InferError::DType { input: 1, .. })));
        let scalar = t(DType::I32, &[]);
        assert!(matches!(infer(&Op::Gather, &[&scalar, &scalar]), Err(InferError::Shape { input: 0, .. })));
    }

    #[test]
    fn scatter_keeps_the_table_and_checks_each_row() {
        let x = t(DType::F16, &[n(10), n(2), S]);
        let ids = t(DType::I64, &[B]);
        let updates = t(DType::F16, &[B, n(2), S]);
        assert_eq!(infer(&Op::Scatter, &[&x, &ids, &updates]), Ok(x.clone()));
        assert_eq!(
            infer(&Op::Scatter, &[&t(DType::Bool, &[B]), &t(DType::I32, &[n(3)]), &t(DType::Bool, &[n(3)])]),
            Ok(t(DType::Bool, &[B]))
        );
        let shape = |inputs: [&_; 3], at: usize| matches!(infer(&Op::Scatter, &inputs), Err(InferError::Shape { input, .. }) if input == at);
        assert!(shape([&t(DType::F16, &[]), &ids, &updates], 0));
        assert!(shape([&x, &t(DType::I64, &[B, S]), &updates], 1));
        assert!(shape([&x, &t(DType::I64, &[]), &updates], 1));
        for dims in [&[n(2), S][..], &[n(10), n(2), S], &[B, n(3), S], &[B, n(2), S, n(1)]] {
            assert!(shape([&x, &ids, &t(DType::F16, dims)], 2), "{dims:?}");
        }
        assert!(matches!(
            infer(&Op::Scatter, &[&x, &t(DType::U8, &[B]), &updates]),
            Err(InferError::DType { input: 1, .. })
        ));
        assert!(matches!(
            infer(&Op::Scatter, &[&x, &ids, &t(DType::F32, &updates.shape.0)]),
            Err(InferError::DTypeMismatch { input: 2, .. })
        ));
        assert!(matches!(infer(&Op::Scatter, &[&x, &ids]), Err(InferError::Arity { got: 2, .. })));
    }

    #[test]
    fn flips_name_each_axis_once() {
        let f = |axes: &[i32]| infer(&Op::Flip { axes: axes.to_vec() }, &[&t(DType::Bool, &[B, n(3)])]);
        for axes in [&[][..], &[0], &[-1], &[1, 0]] {
            assert_eq!(f(axes), Ok(t(DType::Bool, &[B, n(3)])));
        }
        for axes in [&[2][..], &[-3], &[1, -1]] {
            assert!(matches!(f(axes), Err(InferError::Attribute { name: "axes", .. })), "{axes:?}");
        }
        assert_eq!(infer(&Op::Flip { axes: vec![] }, &[&t(DType::F16, &[])]), Ok(t(DType::F16, &[])));
    }

    #[test]
    fn padding_grows_fixed_dimensions() {
        let f = |before: &[u32], after: &[u32], value| {
            let op = Op::Pad { before: before.to_vec(), after: after.to_vec(), value };
            infer(&op, &[&t(DType::U8, &[B, n(3)])]).map(|t| t.shape.0)
        };
        assert_eq!(f(&[0, 1], &[0, 2], 255.9), Ok(vec![B, n(6)]));
        assert_eq!(f(&[0, 0], &[0, 0], 0.0), Ok(vec![B, n(3)]));
        assert!(refused(&f(&[0], &[0, 0], 0.0), "before"));
        assert!(refused(&f(&[0, 0], &[0, 0, 0], 0.0), "after"));
        assert!(refused(&f(&[0, 1], &[0, 0], 256.0), "value"));
        assert!(refused(&f(&[0, 1], &[0, 0], f64::NAN), "value"));
        assert!(matches!(f(&[1, 0], &[0, 0], 0.0), Err(InferError::Shape { input: 0, .. })));
        let far = Op::Pad { before: vec![u32::MAX], after: vec![1], value: 0.0 };
        let made = infer(&far, &[&t(DType::F32, &[n(MAX_DIM)])]);
        assert!(matches!(made, Err(InferError::Result(TypeError::DimTooLarge { axis: 0, .. }))));
    }
}
