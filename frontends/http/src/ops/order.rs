//! Ops along a dimension: orders, indices, and what is carried.

use genie_graph::{CumulativeKind, NodeId, Op};

use super::Def;
use super::call::{Call, broadcast};
use crate::error::Failure;

pub(super) const TABLE: &[Def] = &[
    Def {
        names: &["cumsum"],
        inputs: (1, 1),
        kwargs: &["dim", "dtype"],
        build: |c| cumulative(c, CumulativeKind::Sum),
    },
    Def {
        names: &["cumprod"],
        inputs: (1, 1),
        kwargs: &["dim", "dtype"],
        build: |c| cumulative(c, CumulativeKind::Prod),
    },
    Def { names: &["sort"], inputs: (1, 1), kwargs: &["dim", "descending", "stable"], build: sort },
    Def { names: &["argsort"], inputs: (1, 1), kwargs: &["dim", "descending", "stable"], build: argsort },
    Def { names: &["gather"], inputs: (2, 2), kwargs: &["dim"], build: gather },
    Def { names: &["take_along_dim"], inputs: (2, 2), kwargs: &["dim"], build: take_along_dim },
];

fn cumulative(call: &mut Call<'_>, kind: CumulativeKind) -> Result<NodeId, Failure> {
    let x = call.input_as(true)?;
    let dim = call.kwargs.int("dim")?.ok_or_else(|| call.refuse("needs 'dim'"))?;
    let along = call.along(x, dim)?;
    call.keep_along(&along, |axis| Op::Cumulative { kind, axis }, &[])
}

/// The values alone, without their indices. Equals stay in their order, whether that is asked for or not.
fn sort(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (along, descending) = order(call)?;
    let ids = call.push(Op::ArgSort { axis: along.axis, descending }, &[along.x])?;
    call.keep_along(&along, |axis| Op::TakeAlong { axis }, &[ids])
}

fn argsort(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (along, descending) = order(call)?;
    call.keep_along(&along, |axis| Op::ArgSort { axis, descending }, &[])
}

fn order(call: &mut Call<'_>) -> Result<(super::call::Along, bool), Failure> {
    call.kwargs.flag("stable")?;
    let (x, dim) = (call.input(0)?, call.kwargs.int("dim")?.unwrap_or(-1));
    Ok((call.along(x, dim)?, call.kwargs.flag("descending")?))
}

/// x, ids of the result's shape.
fn gather(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (x, ids) = (call.input(0)?, call.input(1)?);
    let dim = call.kwargs.int("dim")?.ok_or_else(|| call.refuse("needs 'dim'"))?;
    let along = call.along(x, dim)?;
    let bare = call.dims(ids).is_empty();
    let ids = if bare { call.reshape(ids, &[1])? } else { ids };
    let y = call.push(Op::TakeAlong { axis: along.axis }, &[along.x, ids])?;
    if bare { call.reshape(y, &[]) } else { Ok(y) }
}

/// As gather, but that other dimensions broadcast; without 'dim' into all elements.
fn take_along_dim(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (x, ids) = (call.input(0)?, call.input(1)?);
    let Some(dim) = call.kwargs.int("dim")? else {
        let all = |call: &mut Call<'_>, node| {
            let count = call.dims(node).iter().product();
            call.reshape(node, &[count])
        };
        let (x, ids) = (all(call, x)?, all(call, ids)?);
        return call.push(Op::TakeAlong { axis: 0 }, &[x, ids]);
    };
    let (mut dims, mut id_dims) = (call.dims(x), call.dims(ids));
    let axis = call.axis(dim, dims.len())?;
    let (Some(&length), Some(&count), true) = (dims.get(axis), id_dims.get(axis), dims.len() == id_dims.len()) else {
        return Err(call.refuse("takes indices of as many dimensions as the tensor has, of which there must be one"));
    };
    // Along the dimension itself both stay as they are.
    let set = |along: &mut Vec<u64>, to: u64| along.iter_mut().skip(axis).take(1).for_each(|dim| *dim = to);
    set(&mut dims, 1);
    set(&mut id_dims, 1);
    let shared = broadcast(&dims, &id_dims);
    let mut shared = shared.ok_or_else(|| call.refuse("takes indices that broadcast with the tensor"))?;
    set(&mut shared, length);
    let x = call.broadcast(x, &shared)?;
    set(&mut shared, count);
    let ids = call.broadcast(ids, &shared)?;
    call.push(Op::TakeAlong { axis: axis as i32 }, &[x, ids])
}
