//! Ops that move elements.

use genie_graph::{NodeId, Op};

use super::call::Call;
use super::promote::{Operand, promoted};
use super::{Def, MANY};
use crate::error::Failure;

pub(super) const TABLE: &[Def] = &[
    Def { names: &["transpose", "t"], inputs: (1, 1), kwargs: &["dim0", "dim1"], build: transpose },
    Def { names: &["expand", "broadcast_to"], inputs: (1, 1), kwargs: &["size", "shape"], build: expand },
    Def { names: &["flip"], inputs: (1, 1), kwargs: &["dims"], build: flip },
    Def { names: &["pad"], inputs: (1, 1), kwargs: &["pad", "mode", "value"], build: pad },
    Def { names: &["permute"], inputs: (1, 1), kwargs: &["dims"], build: permute },
    Def { names: &["reshape", "view"], inputs: (1, 1), kwargs: &["shape"], build: reshape },
    Def { names: &["flatten"], inputs: (1, 1), kwargs: &["start_dim", "end_dim"], build: flatten },
    Def { names: &["squeeze"], inputs: (1, 1), kwargs: &["dim"], build: squeeze },
    Def { names: &["unsqueeze"], inputs: (1, 1), kwargs: &["dim"], build: unsqueeze },
    Def { names: &["slice"], inputs: (1, 1), kwargs: &["dim", "start", "end", "step"], build: slice },
    Def { names: &["narrow"], inputs: (1, 1), kwargs: &["dim", "start", "length"], build: narrow },
    Def { names: &["cat", "concat", "concatenate"], inputs: (1, MANY), kwargs: &["dim"], build: cat },
    Def { names: &["stack"], inputs: (1, MANY), kwargs: &["dim"], build: stack },
    Def { names: &["index_select"], inputs: (2, 2), kwargs: &["dim"], build: index_select },
];

fn transpose(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let rank = call.dims(x).len();
    let (a, b) = match (call.kwargs.int("dim0")?, call.kwargs.int("dim1")?) {
        (Some(a), Some(b)) => (call.axis(a, rank)?, call.axis(b, rank)?),
        (None, None) if rank == 2 => (0, 1),
        (None, None) if rank < 2 && call.name == "t" => return call.same(x),
        _ => return Err(call.refuse("needs 'dim0' and 'dim1', unless the tensor has two dimensions")),
    };
    if a == b {
        return call.same(x);
    }
    let mut perm: Vec<u32> = (0..rank as u32).collect();
    perm.swap(a, b);
    call.push(Op::Transpose { perm }, &[x])
}

fn permute(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let rank = call.dims(x).len();
    let dims = call.kwargs.ints("dims")?.ok_or_else(|| call.refuse("needs 'dims'"))?;
    let perm = dims.into_iter().map(|dim| Ok(call.axis(dim, rank)? as u32)).collect::<Result<_, Failure>>()?;
    call.push(Op::Transpose { perm }, &[x])
}

fn reshape(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let shape = call.kwargs.ints("shape")?.ok_or_else(|| call.refuse("needs 'shape'"))?;
    let dim = |dim| match dim {
        -1 => Ok(Op::INFER),
        dim => u64::try_from(dim).map(Into::into).map_err(|_| call.refuse("takes no negative dimension but -1")),
    };
    let dims = shape.into_iter().map(dim).collect::<Result<_, _>>()?;
    call.push(Op::Reshape { dims }, &[x])
}

fn flatten(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let dims = call.dims(x);
    if dims.is_empty() {
        return call.reshape(x, &[1]);
    }
    let start = call.axis(call.kwargs.int("start_dim")?.unwrap_or(0), dims.len())?;
    let end = call.axis(call.kwargs.int("end_dim")?.unwrap_or(-1), dims.len())?;
    let (Some(before), Some(joined), Some(after)) =
        (dims.get(..start), dims.get(start..=end).filter(|joined| !joined.is_empty()), dims.get(end + 1..))
    else {
        return Err(call.refuse("needs 'start_dim' before 'end_dim'"));
    };
    let all = [before, &[joined.iter().product()], after].concat();
    call.reshape(x, &all)
}

fn squeeze(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let mut dims = call.dims(x);
    match call.kwargs.int("dim")? {
        None => dims.retain(|dim| *dim != 1),
        Some(axis) => {
            let axis = call.axis(axis, dims.len())?;
            if dims.get(axis) == Some(&1) {
                dims.remove(axis);
            }
        }
    }
    call.reshape(x, &dims)
}

fn unsqueeze(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let axis = call.kwargs.int("dim")?.ok_or_else(|| call.refuse("needs 'dim'"))?;
    inserted(call, x, axis)
}

fn inserted(call: &mut Call<'_>, x: NodeId, axis: i64) -> Result<NodeId, Failure> {
    let mut dims = call.dims(x);
    let axis = call.axis(axis, dims.len() + 1)?;
    dims.insert(axis, 1);
    call.reshape(x, &dims)
}

/// Bounds beyond the tensor are cut to it, as Python has it.
fn slice(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let dims = call.dims(x);
    let axis = call.axis(call.kwargs.int("dim")?.unwrap_or(0), dims.len())?;
    let size = dims.get(axis).and_then(|dim| i64::try_from(*dim).ok()).unwrap_or(i64::MAX);
    let bound = |bound: i64| if bound < 0 { bound.saturating_add(size).max(0) } else { bound.min(size) };
    let start = bound(call.kwargs.int("start")?.unwrap_or(0));
    let end = bound(call.kwargs.int("end")?.unwrap_or(size));
    let step = call.kwargs.int("step")?.unwrap_or(1);
    let step = u64::try_from(step).map_err(|_| call.refuse("takes a positive 'step'"))?;
    call.push(Op::Slice { axis: axis as i32, start, end: Some(end), step }, &[x])
}

fn narrow(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let (dim, start, length) = (call.kwargs.axis("dim")?, call.kwargs.int("start")?, call.kwargs.int("length")?);
    let (Some(axis), Some(start), Some(length)) = (dim, start, length) else {
        return Err(call.refuse("needs 'dim', 'start' and 'length'"));
    };
    let end = start.checked_add(length).filter(|_| start >= 0 && length > 0);
    let end = end.ok_or_else(|| call.refuse("takes a 'start' from 0 on, and a 'length' of 1 at the least"))?;
    call.push(Op::Slice { axis, start, end: Some(end), step: 1 }, &[x])
}

fn cat(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let (all, axis) = (same_type(call)?, call.kwargs.axis("dim")?.unwrap_or(0));
    call.push(Op::Concat { axis }, &all)
}

fn stack(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let axis = call.kwargs.axis("dim")?.unwrap_or(0);
    let all = same_type(call)?;
    let all = all.into_iter().map(|x| inserted(call, x, axis.into())).collect::<Result<Vec<_>, _>>()?;
    call.push(Op::Concat { axis }, &all)
}

/// All inputs as elements of one type.
fn same_type(call: &mut Call<'_>) -> Result<Vec<NodeId>, Failure> {
    let operands: Vec<_> = call.inputs.iter().copied().map(Operand::Tensor).collect();
    let dtype = promoted(call, &operands);
    operands.into_iter().map(|operand| call.operand(operand, dtype)).collect()
}

/// A size of -1 is that of the tensor.
fn expand(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let mut dims = call.dims(x);
    let (size, shape) = (call.kwargs.ints("size")?, call.kwargs.ints("shape")?);
    let Some(size) = size.xor(shape) else { return Err(call.refuse("needs 'size'")) };
    let Some(new) = size.len().checked_sub(dims.len()) else {
        return Err(call.refuse("takes a size of as many dimensions as the tensor has, or more"));
    };
    for (i, &wanted) in size.iter().enumerate() {
        if i < new {
            dims.insert(i, 1);
        }
        if let Some(dim) = dims.get_mut(i)
            && (wanted != -1 || i < new)
        {
            *dim = u64::try_from(wanted)
                .map_err(|_| call.refuse("takes -1 for a dimension that there is, and no less"))?;
        }
    }
    call.push(Op::Broadcast { dims: dims.iter().map(|&dim| dim.into()).collect() }, &[x])
}

fn flip(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let rank = call.dims(x).len();
    let dims = call.kwargs.ints("dims")?.ok_or_else(|| call.refuse("needs 'dims'"))?;
    let axes = dims.into_iter().map(|dim| Ok(call.axis(dim, rank)? as i32)).collect::<Result<Vec<_>, Failure>>()?;
    // The graph would take none for all.
    if axes.is_empty() || rank == 0 {
        return call.same(x);
    }
    call.push(Op::Flip { axes }, &[x])
}

/// How many before and after: of the last dimension first, as PyTorch has it.
fn pad(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let rank = call.dims(x).len();
    if !matches!(call.kwargs.word("mode")?, None | Some("constant")) {
        return Err(call.refuse("takes 'constant' for 'mode'"));
    }
    let pad = call.kwargs.ints("pad")?.ok_or_else(|| call.refuse("needs 'pad'"))?;
    let value = call.kwargs.float("value")?.unwrap_or(0.0);
    let (pairs, []) = pad.as_chunks::<2>() else {
        return Err(call.refuse("takes two numbers in 'pad' for each dimension, from the last one on"));
    };
    if pairs.len() > rank {
        return Err(call.refuse(&format!("has {rank} dimension(s), but 'pad' is for {}", pairs.len())));
    }
    let [mut before, mut after] = [vec![0; rank], vec![0; rank]];
    for (pair, (first, last)) in pairs.iter().zip(before.iter_mut().zip(&mut after).rev()) {
        let count = |n: i64| u32::try_from(n).map_err(|_| call.refuse("takes no negative number in 'pad': slice it"));
        (*first, *last) = (count(pair[0])?, count(pair[1])?);
    }
    call.push(Op::Pad { before, after, value }, &[x])
}

/// Rows of a tensor.
fn index_select(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    if call.kwargs.int("dim")?.unwrap_or(0) != 0 {
        return Err(call.refuse("takes rows: 'dim' can be 0"));
    }
    let (x, ids) = (call.input(0)?, call.input(1)?);
    call.push(Op::Gather, &[x, ids])
}
