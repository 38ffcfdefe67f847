//! Ops that take elements one by one.

use genie_graph::{DType, NodeId, Op};

use super::{Call, Def};
use crate::error::Failure;

pub(super) const TABLE: &[Def] = &[
    Def { names: &["relu"], inputs: (1, 1), kwargs: &[], build: |c| unary(c, Op::Relu) },
    Def { names: &["sigmoid"], inputs: (1, 1), kwargs: &[], build: |c| floating(c, Op::Sigmoid) },
    Def { names: &["tanh"], inputs: (1, 1), kwargs: &[], build: |c| floating(c, Op::Tanh) },
    Def { names: &["silu", "swish"], inputs: (1, 1), kwargs: &[], build: |c| unary(c, Op::Silu) },
    Def { names: &["gelu"], inputs: (1, 1), kwargs: &["approximate"], build: gelu },
    Def { names: &["abs"], inputs: (1, 1), kwargs: &[], build: |c| unary(c, Op::Abs) },
    Def { names: &["neg", "negative"], inputs: (1, 1), kwargs: &[], build: |c| unary(c, Op::Neg) },
    Def { names: &["exp"], inputs: (1, 1), kwargs: &[], build: |c| floating(c, Op::Exp) },
    Def { names: &["log"], inputs: (1, 1), kwargs: &[], build: |c| floating(c, Op::Log) },
    Def { names: &["sqrt"], inputs: (1, 1), kwargs: &[], build: |c| floating(c, Op::Sqrt) },
    Def { names: &["add"], inputs: (1, 2), kwargs: &["other", "alpha"], build: |c| scaled(c, Op::Add) },
    Def { names: &["sub", "subtract"], inputs: (1, 2), kwargs: &["other", "alpha"], build: |c| scaled(c, Op::Sub) },
    Def { names: &["mul", "multiply"], inputs: (1, 2), kwargs: &["other"], build: mul },
    Def { names: &["div", "divide", "true_divide"], inputs: (1, 2), kwargs: &["other", "rounding_mode"], build: div },
    Def { names: &["to", "cast"], inputs: (1, 1), kwargs: &["dtype"], build: to },
];

fn unary(call: &mut Call<'_>, op: Op) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    call.push(op, &[x])
}

/// PyTorch makes f32 of integers first.
fn floating(call: &mut Call<'_>, op: Op) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let x = if call.dtype(x).is_float() { x } else { call.cast(x, DType::F32)? };
    call.push(op, &[x])
}

fn gelu(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let tanh = match call.kwargs.word("approximate")? {
        None | Some("none") => false,
        Some("tanh") => true,
        Some(_) => return Err(call.refuse("takes 'none' or 'tanh' for 'approximate'")),
    };
    unary(call, Op::Gelu { tanh })
}

fn to(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let to = call.kwargs.dtype("dtype")?.ok_or_else(|| call.refuse("needs 'dtype'"))?;
    unary(call, Op::Cast { to })
}

fn mul(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (a, b) = operands(call)?;
    call.push(Op::Mul, &[a, b])
}

/// `a + alpha * b`.
fn scaled(call: &mut Call<'_>, op: Op) -> Result<NodeId, Failure> {
    let (a, mut b) = operands(call)?;
    if let Some(alpha) = call.kwargs.float("alpha")? {
        let dtype = call.dtype(b);
        if !dtype.is_float() && alpha.fract() != 0.0 {
            return Err(call.refuse("takes an integer for 'alpha' where tensors hold integers"));
        }
        let alpha = call.create(Op::Full { value: alpha }, dtype, &[])?;
        b = call.push(Op::Mul, &[b, alpha])?;
    }
    call.push(op, &[a, b])
}

/// Of integers f32, unless the result is to be cut to an integer.
fn div(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (mut a, mut b) = operands(call)?;
    let floats = call.dtype(a).is_float();
    match call.kwargs.word("rounding_mode")? {
        None if floats => {}
        None => (a, b) = (call.cast(a, DType::F32)?, call.cast(b, DType::F32)?),
        Some("trunc") if !floats => {}
        Some(_) => return Err(call.refuse("takes 'trunc' for 'rounding_mode', and of integers alone")),
    }
    call.push(Op::Div, &[a, b])
}

/// Two tensors, or a tensor and the number `other`, as elements of one type: as PyTorch promotes them.
fn operands(call: &mut Call<'_>) -> Result<(NodeId, NodeId), Failure> {
    let a = call.input(0)?;
    let (b, to) = match (call.inputs.get(1), call.kwargs.float("other")?) {
        (Some(&b), None) => (b, promoted(call.dtype(a), call.dtype(b))),
        (None, Some(value)) => {
            let whole = call.kwargs.int("other").is_ok();
            let to = match call.dtype(a) {
                dtype if dtype.is_float() => dtype,
                DType::Bool if whole => DType::I64,
                dtype if whole => dtype,
                _ => DType::F32,
            };
            (call.create(Op::Full { value }, to, &[])?, to)
        }
        _ => return Err(call.refuse("takes a second tensor, or a number as 'other'")),
    };
    Ok((call.cast(a, to)?, call.cast(b, to)?))
}

/// The element type of a result of these two.
fn promoted(a: DType, b: DType) -> DType {
    let rank = |dtype| match dtype {
        DType::Bool => 0,
        DType::U8 => 1,
        DType::I32 => 2,
        DType::I64 => 3,
        DType::F16 | DType::BF16 => 4,
        DType::F32 => 5,
    };
    match (a, b) {
        (DType::F16, DType::BF16) | (DType::BF16, DType::F16) => DType::F32,
        _ if rank(a) >= rank(b) => a,
        _ => b,
    }
}
