//! Ops along dimensions.

use genie_graph::{DType, NodeId, Op, ReduceKind};

use super::{Call, Def};
use crate::error::Failure;

pub(super) const TABLE: &[Def] = &[
    Def { names: &["softmax"], inputs: (1, 1), kwargs: &["dim"], build: softmax },
    Def { names: &["sum"], inputs: (1, 1), kwargs: &["dim", "keepdim"], build: |c| widened(c, ReduceKind::Sum) },
    Def { names: &["prod"], inputs: (1, 1), kwargs: &["dim", "keepdim"], build: |c| widened(c, ReduceKind::Prod) },
    Def { names: &["mean"], inputs: (1, 1), kwargs: &["dim", "keepdim"], build: |c| reduce(c, ReduceKind::Mean) },
    Def { names: &["max", "amax"], inputs: (1, 1), kwargs: &["dim", "keepdim"], build: |c| reduce(c, ReduceKind::Max) },
    Def { names: &["min", "amin"], inputs: (1, 1), kwargs: &["dim", "keepdim"], build: |c| reduce(c, ReduceKind::Min) },
    Def { names: &["argmax"], inputs: (1, 1), kwargs: &["dim", "keepdim"], build: argmax },
];

fn softmax(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (x, axis) = (call.input(0)?, call.kwargs.axis("dim")?.unwrap_or(-1));
    call.push(Op::Softmax { axis }, &[x])
}

fn reduce(call: &mut Call<'_>, kind: ReduceKind) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    over(call, x, kind)
}

/// PyTorch adds and multiplies integers as i64.
fn widened(call: &mut Call<'_>, kind: ReduceKind) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let x = if call.dtype(x).is_float() { x } else { call.cast(x, DType::I64)? };
    over(call, x, kind)
}

fn over(call: &mut Call<'_>, x: NodeId, kind: ReduceKind) -> Result<NodeId, Failure> {
    let rank = call.dims(x).len();
    let mut axes = Vec::new();
    for axis in call.kwargs.ints("dim")?.unwrap_or_default() {
        // A rank is at most 8.
        axes.push(call.axis(axis, rank)? as i32);
    }
    let keep_dims = call.kwargs.flag("keepdim")?;
    call.push(Op::Reduce { kind, axes, keep_dims }, &[x])
}

/// Of i64, as PyTorch's; without a dimension the index into all elements.
fn argmax(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let mut x = call.input(0)?;
    let dims = call.dims(x);
    let keep = call.kwargs.flag("keepdim")?;
    let (axis, mut kept) = match call.kwargs.int("dim")? {
        Some(axis) => (call.axis(axis, dims.len())?, dims),
        None => {
            x = call.reshape(x, &[dims.iter().product()])?;
            (0, vec![1; dims.len()])
        }
    };
    let mut y = call.push(Op::ArgMax { axis: axis as i32 }, &[x])?;
    if keep {
        if let Some(dim) = kept.get_mut(axis) {
            *dim = 1;
        }
        y = call.reshape(y, &kept)?;
    }
    call.cast(y, DType::I64)
}
