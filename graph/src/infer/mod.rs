//! Type and shape inference, one function an op, grouped by what the ops do.
//!
//! Inference is total: whatever the types and attributes, it returns a type that [`TensorType::check`] accepts or an
//! error. The time it takes is bounded by the number of inputs and [`Shape::MAX_RANK`].

mod along;
mod elementwise;
mod image;
mod layout;
mod matrix;
mod pointwise;
mod reduce;
mod sequence;

use crate::op::Op;
use crate::size::TypeError;
use crate::types::{DType, Dim, Shape, TensorType};

pub(crate) use sequence::{CACHE_SHAPE, cache_layers};

/// Why an op cannot take its inputs or attributes.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InferError {
    /// Inputs and creation ops declare their type: there is nothing to infer it from.
    #[error("the type of this op is declared, not inferred; give it with the node")]
    Declared,
    /// Wrong number of inputs.
    #[error("takes {expected} input(s) but has {got}")]
    Arity {
        /// How many it takes.
        expected: &'static str,
        /// How many it has.
        got: usize,
    },
    /// An input (or the declared type) has an element type that the op does not take.
    #[error("input {input} is {got} but must be {expected}; cast it")]
    DType {
        /// Which input.
        input: usize,
        /// What is accepted.
        expected: &'static str,
        /// What it is.
        got: DType,
    },
    /// Two inputs whose element types must agree do not.
    #[error("input {input} is {got} but input 0 is {expected}, and they must be the same; cast one")]
    DTypeMismatch {
        /// Which input.
        input: usize,
        /// Type of input 0.
        expected: DType,
        /// Type of this input.
        got: DType,
    },
    /// An input has the wrong shape.
    #[error("input {input} has shape {got} but must be {expected}")]
    Shape {
        /// Which input.
        input: usize,
        /// What is accepted, in words.
        expected: String,
        /// What it has.
        got: Shape,
    },
    /// Two shapes that do not broadcast.
    #[error("shapes {left} and {right} do not broadcast: from the right, dimensions must be equal or 1")]
    Broadcast {
        /// Shape of input 0.
        left: Shape,
        /// Shape of input 1.
        right: Shape,
    },
    /// An attribute is out of its range.
    #[error("attribute {name} {reason}")]
    Attribute {
        /// Which attribute.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The result would have an impossible type.
    #[error("the result is impossible: {0}")]
    Result(#[from] TypeError),
}

/// The type that `op` makes of inputs of these types.
///
/// ```
/// use genie_graph::{DType, Op, Shape, TensorType, infer};
/// let a = TensorType { dtype: DType::F32, shape: Shape::fixed(&[4, 1]) };
/// let b = TensorType { dtype: DType::F32, shape: Shape::fixed(&[3]) };
/// assert_eq!(infer(&Op::Add, &[&a, &b]).unwrap().shape, Shape::fixed(&[4, 3]));
/// assert!(infer(&Op::Add, &[&a]).is_err());
/// ```
///
/// # Errors
/// Wrong arity, element types, shapes or attributes; [`InferError::Declared`] for inputs and creation ops.
pub fn infer(op: &Op, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let ty = match op {
        Op::Input { .. }
        | Op::Zeros
        | Op::Ones
        | Op::Full { .. }
        | Op::Arange { .. }
        | Op::Rand { .. }
        | Op::Randn { .. } => return Err(InferError::Declared),
        Op::Embedding { dtype } => matrix::embedding(*dtype, inputs),
        Op::MatMul => matrix::matmul(inputs),
        Op::Linear { layout } => matrix::linear(*layout, inputs),
        Op::RmsNorm { eps } => matrix::norm(*eps, false, inputs),
        Op::LayerNorm { eps } => matrix::norm(*eps, true, inputs),
        Op::Add | Op::Sub | Op::Mul | Op::Div => elementwise::binary(inputs),
        Op::Gelu { .. } | Op::Silu | Op::Relu | Op::Sigmoid | Op::Tanh | Op::Exp | Op::Log | Op::Sqrt => {
            elementwise::float_unary(inputs)
        }
        Op::Abs | Op::Neg => elementwise::signed_unary(inputs),
        Op::Cast { to } => elementwise::cast(*to, inputs),
        Op::Rope { theta, head_dim, .. } => sequence::rope(*theta, *head_dim, inputs),
        Op::Attention { layer, heads, kv_heads, head_dim, scale, .. } => {
            let shape = sequence::Heads { heads: *heads, kv_heads: *kv_heads, head_dim: *head_dim };
            sequence::attention(*layer, shape, *scale, inputs)
        }
        Op::Sample => sequence::sample(inputs),
        Op::Reshape { dims } => layout::reshape(dims, inputs),
        Op::Transpose { perm } => layout::transpose(perm, inputs),
        Op::Slice { axis, start, end, step } => layout::slice(*axis, *start, *end, *step, inputs),
        Op::Concat { axis } => layout::concat(*axis, inputs),
        Op::Gather => layout::gather(inputs),
        Op::Scatter => layout::scatter(inputs),
        Op::Dequantize { format, to } => elementwise::dequantize(*format, *to, inputs),
        Op::Conv2d { stride, padding, dilation, groups } => {
            image::conv2d(image::Windows { stride, padding, dilation }, *groups, inputs)
        }
        Op::BatchNorm { eps } => image::batch_norm(*eps, inputs),
        Op::Pool { kernel, stride, padding, .. } => image::pool(*kernel, *stride, *padding, inputs),
        Op::Softmax { axis } => reduce::softmax(*axis, inputs),
        Op::Reduce { kind, axes, keep_dims } => reduce::reduce(*kind, axes, *keep_dims, inputs),
        Op::ArgMax { axis } => reduce::argmax(*axis, inputs),
        Op::Unary { kind } => pointwise::unary(*kind, inputs),
        Op::Binary { kind } => pointwise::binary(*kind, inputs),
        Op::Compare { .. } => pointwise::compare(inputs),
        Op::Where => pointwise::choose(inputs),
        Op::Broadcast { dims } => pointwise::broadcast_to(dims, inputs),
        Op::Cumulative { axis, .. } => along::cumulative(*axis, inputs),
        Op::ArgSort { axis, .. } => along::argsort(*axis, inputs),
        Op::TakeAlong { axis } => along::take(*axis, inputs),
        Op::ScatterAlong { axis, kind } => along::scatter(*axis, *kind, inputs),
        Op::ArgReduce { axis, keep_dims, .. } => reduce::arg_reduce(*axis, *keep_dims, inputs),
        Op::Random { kind, dtype, dims } => pointwise::random(*kind, *dtype, dims, inputs),
        Op::Flip { axes } => layout::flip(axes, inputs),
        Op::Pad { before, after, value } => layout::pad(before, after, *value, inputs),
    }?;
    ty.check()?;
    Ok(ty)
}

/// The inputs as an array of exactly N.
fn exactly<'a, const N: usize>(inputs: &[&'a TensorType]) -> Result<[&'a TensorType; N], InferError> {
    const COUNTS: [&str; 6] = ["no", "1", "2", "3", "4", "5"];
    inputs.try_into().map_err(|_| InferError::Arity { expected: COUNTS[N], got: inputs.len() })
}

fn float(input: usize, ty: &TensorType) -> Result<(), InferError> {
    one_of(input, ty, ty.dtype.is_float(), "f32, f16 or bf16")
}

fn index(input: usize, ty: &TensorType) -> Result<(), InferError> {
    one_of(input, ty, matches!(ty.dtype, DType::I32 | DType::I64), "i32 or i64")
}

fn number(input: usize, ty: &TensorType) -> Result<(), InferError> {
    one_of(input, ty, ty.dtype != DType::Bool, "a number type")
}

fn one_of(input: usize, ty: &TensorType, ok: bool, expected: &'static str) -> Result<(), InferError> {
    if ok { Ok(()) } else { Err(InferError::DType { input, expected, got: ty.dtype }) }
}

fn same_dtype(input: usize, first: &TensorType, ty: &TensorType) -> Result<(), InferError> {
    if first.dtype == ty.dtype {
        Ok(())
    } else {
        Err(InferError::DTypeMismatch { input, expected: first.dtype, got: ty.dtype })
    }
}

/// An input's shape must be exactly this.
fn shape_is(input: usize, ty: &TensorType, dims: &[Dim]) -> Result<(), InferError> {
    if ty.shape.0 == dims { Ok(()) } else { Err(bad_shape(input, ty, Shape(dims.to_vec()).to_string())) }
}

fn bad_shape(input: usize, ty: &TensorType, expected: impl Into<String>) -> InferError {
    InferError::Shape { input, expected: expected.into(), got: ty.shape.clone() }
}

fn bad_attribute(name: &'static str, reason: impl Into<String>) -> InferError {
    InferError::Attribute { name, reason: reason.into() }
}

/// An axis counted from either end, as an index into a shape of this rank.
fn normalize_axis(name: &'static str, axis: i32, rank: usize) -> Result<usize, InferError> {
    let index = if axis < 0 { i64::from(axis) + rank as i64 } else { i64::from(axis) };
    match usize::try_from(index) {
        Ok(i) if i < rank => Ok(i),
        _ => Err(bad_attribute(name, format!("is {axis}, but the input has {rank} dimension(s)"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Symbol;

    pub(super) const B: Dim = Dim::Symbol(Symbol::Batch);
    pub(super) const S: Dim = Dim::Symbol(Symbol::Sequence);
    pub(super) const P: Dim = Dim::Symbol(Symbol::Position);

    pub(super) fn n(size: u64) -> Dim {
        Dim::Fixed(size)
    }

    pub(super) fn t(dtype: DType, dims: &[Dim]) -> TensorType {
        TensorType::new(dtype, dims.iter().copied())
    }

    #[test]
    fn declared_ops_have_nothing_to_infer() {
        for op in [Op::Zeros, Op::Ones, Op::Full { value: 1.0 }, Op::Rand { seed: 1 }, Op::Randn { seed: 1 }] {
            assert!(op.is_declared());
            assert_eq!(infer(&op, &[]), Err(InferError::Declared));
        }
    }

    #[test]
    fn errors_say_what_and_where() {
        let x = t(DType::F32, &[B, n(3)]);
        let w = t(DType::F32, &[n(4), n(5)]);
        let e = infer(&Op::MatMul, &[&x, &w]).unwrap_err();
        assert_eq!(e.to_string(), "input 1 has shape [4, 5] but must be [3] followed by N, or [3, N]");
        let e = infer(&Op::Sqrt, &[&t(DType::Bool, &[])]).unwrap_err();
        assert_eq!(e.to_string(), "input 0 is bool but must be f32, f16 or bf16; cast it");
    }
}
