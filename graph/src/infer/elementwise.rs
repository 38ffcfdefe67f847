//! Ops that treat each element by itself.

use super::{InferError, bad_attribute, bad_shape, exactly, float, number, one_of, same_dtype};
use crate::op::QuantFormat;
use crate::types::{DType, Dim, Shape, TensorType};

pub(super) fn binary(inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [a, b] = exactly(inputs)?;
    number(0, a)?;
    same_dtype(1, a, b)?;
    Ok(TensorType { dtype: a.dtype, shape: broadcast(&a.shape, &b.shape)? })
}

pub(super) fn float_unary(inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    float(0, x)?;
    Ok(x.clone())
}

pub(super) fn signed_unary(inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    one_of(0, x, x.dtype.is_float() || matches!(x.dtype, DType::I32 | DType::I64), "a signed number type")?;
    Ok(x.clone())
}

pub(super) fn cast(to: DType, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    Ok(TensorType { dtype: to, shape: x.shape.clone() })
}

pub(super) fn dequantize(format: QuantFormat, to: DType, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    one_of(0, x, x.dtype == DType::U8, "u8")?;
    if !to.is_float() {
        return Err(bad_attribute("to", format!("is {to}, but must be f32, f16 or bf16")));
    }
    let block = format.block_bytes();
    let mut y = TensorType { dtype: to, shape: x.shape.clone() };
    match y.shape.0.last_mut() {
        Some(Dim::Fixed(width)) if width.is_multiple_of(block) => {
            // What saturates is over the limit, and refused as such.
            *width = (*width / block).saturating_mul(QuantFormat::BLOCK);
            Ok(y)
        }
        _ => Err(bad_shape(0, x, format!("[.., W] with W a multiple of {format:?}'s {block} bytes a block"))),
    }
}

pub(super) fn broadcast(a: &Shape, b: &Shape) -> Result<Shape, InferError> {
    let (long, short) = if a.rank() >= b.rank() { (a, b) } else { (b, a) };
    let lead = long.rank() - short.rank();
    let mut dims = long.0.clone();
    for (dim, &other) in dims[lead..].iter_mut().zip(&short.0) {
        match (*dim, other) {
            (x, y) if x == y => {}
            (_, Dim::Fixed(1)) => {}
            (Dim::Fixed(1), y) => *dim = y,
            _ => return Err(InferError::Broadcast { left: a.clone(), right: b.clone() }),
        }
    }
    Ok(Shape(dims))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{B, S, n, t};
    use super::*;
    use crate::infer;
    use crate::limits::MAX_DIM;
    use crate::op::Op;
    use crate::size::TypeError;

    #[test]
    fn binary_broadcasts_as_numpy_does() {
        let f = |a: &[Dim], b: &[Dim]| infer(&Op::Mul, &[&t(DType::F32, a), &t(DType::F32, b)]).map(|t| t.shape.0);
        assert_eq!(f(&[n(2), n(3)], &[n(2), n(3)]), Ok(vec![n(2), n(3)]));
        assert_eq!(f(&[n(3)], &[B, S, n(3)]), Ok(vec![B, S, n(3)]));
        assert_eq!(f(&[B, n(1), n(3)], &[S, n(1)]), Ok(vec![B, S, n(3)]));
        assert_eq!(f(&[], &[B]), Ok(vec![B]));
        for (a, b) in [([B], [S]), ([B], [n(2)]), ([n(2)], [n(3)]), ([n(2)], [S])] {
            assert!(matches!(f(&a, &b), Err(InferError::Broadcast { .. })), "{a:?} {b:?}");
        }
    }

    #[test]
    fn binary_wants_two_numbers_of_one_type() {
        let x = t(DType::F32, &[B]);
        for op in [Op::Add, Op::Sub, Op::Mul, Op::Div] {
            assert_eq!(infer(&op, &[&x, &x]), Ok(x.clone()));
            assert_eq!(infer(&op, &[&x]), Err(InferError::Arity { expected: "2", got: 1 }));
            assert_eq!(
                infer(&op, &[&x, &t(DType::F16, &[B])]),
                Err(InferError::DTypeMismatch { input: 1, expected: DType::F32, got: DType::F16 })
            );
            let flag = t(DType::Bool, &[B]);
            assert!(matches!(infer(&op, &[&flag, &flag]), Err(InferError::DType { input: 0, .. })));
            let byte = t(DType::U8, &[B]);
            assert_eq!(infer(&op, &[&byte, &byte]), Ok(byte.clone()));
        }
    }

    #[test]
    fn unary_ops_keep_the_type_they_accept() {
        let ops = [
            Op::Gelu { tanh: true },
            Op::Silu,
            Op::Relu,
            Op::Sigmoid,
            Op::Tanh,
            Op::Exp,
            Op::Log,
            Op::Sqrt,
            Op::Abs,
            Op::Neg,
        ];
        for op in ops {
            let signed = matches!(op, Op::Abs | Op::Neg);
            for dtype in DType::ALL {
                let x = t(dtype, &[B, Dim::Fixed(3)]);
                let accepted = dtype.is_float() || (signed && matches!(dtype, DType::I32 | DType::I64));
                match infer(&op, &[&x]) {
                    Ok(y) => assert!(accepted && y == x, "{op:?} {dtype}"),
                    Err(e) => assert!(!accepted && matches!(e, InferError::DType { input: 0, .. }), "{op:?} {e}"),
                }
                assert!(matches!(infer(&op, &[&x, &x]), Err(InferError::Arity { .. })));
            }
        }
    }

    #[test]
    fn cast_goes_between_any_two_types() {
        for from in DType::ALL {
            for to in DType::ALL {
                assert_eq!(infer(&Op::Cast { to }, &[&t(from, &[S])]), Ok(t(to, &[S])));
            }
        }
        assert!(infer(&Op::Cast { to: DType::F32 }, &[]).is_err());
    }

    #[test]
    fn dequantizing_takes_whole_blocks_of_bytes() {
        let f = |format, to, dtype, dims: &[Dim]| infer(&Op::Dequantize { format, to }, &[&t(dtype, dims)]);
        for (format, bytes) in [(QuantFormat::Q8_0, 34), (QuantFormat::Q4_0, 18), (QuantFormat::Q4_1, 20)] {
            let of = |width| f(format, DType::F16, DType::U8, &[B, n(5), n(width)]);
            assert_eq!(of(3 * bytes), Ok(t(DType::F16, &[B, n(5), n(96)])));
            for width in [bytes - 1, bytes + 1, 3 * bytes - 2, u64::MAX] {
                assert!(of(width).is_err(), "{format:?} {width}");
            }
            assert!(matches!(of(bytes + 1), Err(InferError::Shape { input: 0, .. })));
            assert!(matches!(of(4 * MAX_DIM / bytes * bytes), Err(InferError::Result(TypeError::DimTooLarge { .. }))));
        }
        let q8 = QuantFormat::Q8_0;
        assert_eq!(f(q8, DType::F32, DType::U8, &[n(34)]), Ok(t(DType::F32, &[n(32)])));
        assert!(matches!(f(q8, DType::F32, DType::F32, &[n(34)]), Err(InferError::DType { input: 0, .. })));
        assert!(matches!(f(q8, DType::I32, DType::U8, &[n(34)]), Err(InferError::Attribute { name: "to", .. })));
        for dims in [&[][..], &[n(34), B]] {
            assert!(matches!(f(q8, DType::F32, DType::U8, dims), Err(InferError::Shape { input: 0, .. })), "{dims:?}");
        }
    }
}
