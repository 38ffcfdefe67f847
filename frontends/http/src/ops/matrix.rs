//! Products, norms and tables.

use genie_graph::{LinearLayout, NodeId, Op};

use super::Def;
use super::call::{Call, broadcast};
use crate::error::Failure;

pub(super) const TABLE: &[Def] = &[
    Def { names: &["matmul", "mm", "bmm"], inputs: (2, 2), kwargs: &[], build: matmul },
    Def { names: &["linear"], inputs: (2, 3), kwargs: &[], build: linear },
    Def { names: &["layer_norm"], inputs: (1, 3), kwargs: &["normalized_shape", "eps"], build: layer_norm },
    Def { names: &["rms_norm"], inputs: (1, 2), kwargs: &["normalized_shape", "eps"], build: rms_norm },
    Def { names: &["embedding"], inputs: (2, 2), kwargs: &[], build: embedding },
];

/// Vectors are a row on the left and a column on the right, and what comes before matrices broadcasts.
fn matmul(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (mut a, mut b) = (call.input(0)?, call.input(1)?);
    let (mut left, mut right) = (call.dims(a), call.dims(b));
    let (row, column) = (left.len() == 1, right.len() == 1);
    if row {
        left.insert(0, 1);
        a = call.reshape(a, &left)?;
    }
    if column {
        right.push(1);
        b = call.reshape(b, &right)?;
    }
    let (Some((before_left, a_dims)), Some((before_right, b_dims))) =
        (left.split_last_chunk::<2>(), right.split_last_chunk::<2>())
    else {
        return Err(call.refuse("takes tensors with dimensions"));
    };
    if !before_right.is_empty() && before_left != before_right {
        let before = broadcast(before_left, before_right);
        let before = before.ok_or_else(|| call.refuse("takes matrices whose leading dimensions broadcast"))?;
        a = call.broadcast(a, &[&before[..], a_dims].concat())?;
        b = call.broadcast(b, &[&before[..], b_dims].concat())?;
    }
    let y = call.push(Op::MatMul, &[a, b])?;
    if !row && !column {
        return Ok(y);
    }
    let mut dims = call.dims(y);
    if column {
        dims.pop();
    }
    if row {
        dims.remove(dims.len() - usize::from(!column) - 1);
    }
    call.reshape(y, &dims)
}

/// x, weight `[out, in]`, perhaps a bias.
fn linear(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let inputs = call.inputs;
    call.push(Op::Linear { layout: LinearLayout::OutIn }, inputs)
}

/// The ids, and then the table; PyTorch's own operator has them the other way round.
fn embedding(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (ids, table) = if call.native { (1, 0) } else { (0, 1) };
    let (ids, table) = (call.input(ids)?, call.input(table)?);
    let dtype = call.dtype(table);
    call.push(Op::Embedding { dtype }, &[table, ids])
}

fn layer_norm(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (x, width) = (call.input(0)?, width(call)?);
    let eps = eps(call, 1e-5)?;
    let dtype = call.dtype(x);
    let weight = match call.inputs.get(1) {
        Some(&weight) => weight,
        None => call.create(Op::Ones, dtype, &[width])?,
    };
    let bias = match call.inputs.get(2) {
        Some(&bias) => bias,
        None => call.create(Op::Zeros, dtype, &[width])?,
    };
    call.push(Op::LayerNorm { eps }, &[x, weight, bias])
}

fn rms_norm(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (x, width) = (call.input(0)?, width(call)?);
    // PyTorch's own, where none is given.
    let eps = eps(call, f64::from(f32::EPSILON))?;
    let dtype = call.dtype(x);
    let weight = match call.inputs.get(1) {
        Some(&weight) => weight,
        None => call.create(Op::Ones, dtype, &[width])?,
    };
    call.push(Op::RmsNorm { eps }, &[x, weight])
}

pub(super) fn eps(call: &Call<'_>, default: f64) -> Result<f32, Failure> {
    Ok(call.kwargs.float("eps")?.unwrap_or(default) as f32)
}

/// The last dimension, which is the one that norms go over.
fn width(call: &Call<'_>) -> Result<u64, Failure> {
    let dims = call.dims(call.input(0)?);
    let width = dims.last().copied().ok_or_else(|| call.refuse("takes a tensor with dimensions"))?;
    match call.kwargs.ints("normalized_shape")? {
        Some(shape) if shape != [i64::try_from(width).unwrap_or(i64::MAX)] => {
            Err(call.refuse(&format!("goes over the last dimension alone: 'normalized_shape' can be [{width}]")))
        }
        _ => Ok(width),
    }
}
