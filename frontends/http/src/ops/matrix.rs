//! Products, norms and tables.

use genie_graph::{LinearLayout, NodeId, Op};

use super::{Call, Def};
use crate::error::Failure;

pub(super) const TABLE: &[Def] = &[
    Def { names: &["matmul", "mm", "bmm"], inputs: (2, 2), kwargs: &[], build: matmul },
    Def { names: &["linear"], inputs: (2, 3), kwargs: &[], build: linear },
    Def { names: &["layer_norm"], inputs: (1, 3), kwargs: &["normalized_shape", "eps"], build: layer_norm },
    Def { names: &["rms_norm"], inputs: (1, 2), kwargs: &["normalized_shape", "eps"], build: rms_norm },
    Def { names: &["embedding"], inputs: (2, 2), kwargs: &[], build: embedding },
];

fn matmul(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    call.push(Op::MatMul, &[a, b])
}

/// x, weight `[out, in]`, perhaps a bias.
fn linear(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let inputs = call.inputs;
    call.push(Op::Linear { layout: LinearLayout::OutIn }, inputs)
}

/// PyTorch has the ids first, and then the table.
fn embedding(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (ids, table) = (call.input(0)?, call.input(1)?);
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
