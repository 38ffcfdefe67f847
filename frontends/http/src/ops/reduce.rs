//! Ops that leave dimensions out.

use genie_graph::{ArgReduceKind, BinaryKind, DType, NodeId, Op, ReduceKind};

use super::Def;
use super::call::Call;
use super::compare::truth;
use super::promote::{Operand, promoted};
use crate::error::Failure;
use crate::kwargs::Number;

const OVER: &[&str] = &["dim", "keepdim"];
const OVER_AS: &[&str] = &["dim", "keepdim", "dtype"];

pub(super) const TABLE: &[Def] = &[
    Def { names: &["softmax"], inputs: (1, 1), kwargs: &["dim", "dtype"], build: softmax },
    Def { names: &["sum"], inputs: (1, 1), kwargs: OVER_AS, build: |c| widened(c, ReduceKind::Sum) },
    Def { names: &["prod"], inputs: (1, 1), kwargs: OVER_AS, build: |c| widened(c, ReduceKind::Prod) },
    Def { names: &["mean"], inputs: (1, 1), kwargs: OVER_AS, build: mean },
    Def { names: &["max"], inputs: (1, 2), kwargs: OVER, build: |c| extreme(c, ReduceKind::Max) },
    Def { names: &["min"], inputs: (1, 2), kwargs: OVER, build: |c| extreme(c, ReduceKind::Min) },
    Def { names: &["amax"], inputs: (1, 1), kwargs: OVER, build: |c| reduce(c, ReduceKind::Max) },
    Def { names: &["amin"], inputs: (1, 1), kwargs: OVER, build: |c| reduce(c, ReduceKind::Min) },
    Def { names: &["any"], inputs: (1, 1), kwargs: OVER, build: |c| quantified(c, ReduceKind::Max) },
    Def { names: &["all"], inputs: (1, 1), kwargs: OVER, build: |c| quantified(c, ReduceKind::Min) },
    Def { names: &["argmax"], inputs: (1, 1), kwargs: OVER, build: |c| index(c, ArgReduceKind::Max) },
    Def { names: &["argmin"], inputs: (1, 1), kwargs: OVER, build: |c| index(c, ArgReduceKind::Min) },
];

fn softmax(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input_as(false)?;
    let along = call.along(x, call.kwargs.int("dim")?.unwrap_or(-1))?;
    call.keep_along(&along, |axis| Op::Softmax { axis }, &[])
}

fn mean(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input_as(false)?;
    over(call, x, ReduceKind::Mean)
}

fn reduce(call: &mut Call<'_>, kind: ReduceKind) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    over(call, x, kind)
}

fn widened(call: &mut Call<'_>, kind: ReduceKind) -> Result<NodeId, Failure> {
    let x = call.input_as(true)?;
    over(call, x, kind)
}

/// Of one tensor along dimensions, the values alone; of two for each element.
fn extreme(call: &mut Call<'_>, kind: ReduceKind) -> Result<NodeId, Failure> {
    let &[a, b] = call.inputs else { return reduce(call, kind) };
    if OVER.iter().any(|key| call.kwargs.has(key)) {
        return Err(call.refuse("takes 'dim' and 'keepdim' of one tensor, not of two"));
    }
    let operands = [a, b].map(Operand::Tensor);
    let both = call.both(operands, promoted(call, &operands))?;
    let kind = if kind == ReduceKind::Max { BinaryKind::Maximum } else { BinaryKind::Minimum };
    call.push(Op::Binary { kind }, &both)
}

/// Of u8 PyTorch makes u8.
fn quantified(call: &mut Call<'_>, kind: ReduceKind) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let dtype = if call.dtype(x) == DType::U8 { DType::U8 } else { DType::Bool };
    let x = truth(call, x)?;
    let y = over(call, x, kind)?;
    call.cast(y, dtype)
}

fn over(call: &mut Call<'_>, x: NodeId, kind: ReduceKind) -> Result<NodeId, Failure> {
    let rank = call.dims(x).len();
    let mut axes = Vec::new();
    for axis in call.kwargs.ints("dim")?.unwrap_or_default() {
        // A rank is at most 8.
        axes.push(call.axis(axis, rank)? as i32);
    }
    if rank == 0 {
        axes.clear();
    }
    let keep_dims = call.kwargs.flag("keepdim")?;
    call.push(Op::Reduce { kind, axes, keep_dims }, &[x])
}

/// Without a dimension the index into all elements.
fn index(call: &mut Call<'_>, kind: ArgReduceKind) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let dims = call.dims(x);
    let keep_dims = call.kwargs.flag("keepdim")?;
    let Some(dim) = call.kwargs.int("dim")? else {
        let flat = call.reshape(x, &[dims.iter().product()])?;
        let y = call.push(Op::ArgReduce { kind, axis: 0, keep_dims: false }, &[flat])?;
        return if keep_dims { call.reshape(y, &vec![1; dims.len()]) } else { Ok(y) };
    };
    let along = call.along(x, dim)?;
    if along.bare {
        return call.constant(Number::Int(0), DType::I64);
    }
    call.push(Op::ArgReduce { kind, axis: along.axis, keep_dims }, &[along.x])
}
