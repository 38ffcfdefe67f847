//! Tensors that are made of nothing, or of another's shape.

use genie_graph::{CompareKind, DType, NodeId, Op};

use super::Def;
use super::call::Call;
use crate::error::Failure;
use crate::kwargs::Number;

pub(super) const TABLE: &[Def] = &[
    Def { names: &["zeros"], inputs: (0, 0), kwargs: &["size", "dtype"], build: |c| sized(c, Number::Float(0.0)) },
    Def { names: &["ones"], inputs: (0, 0), kwargs: &["size", "dtype"], build: |c| sized(c, Number::Float(1.0)) },
    Def { names: &["full"], inputs: (0, 0), kwargs: &["size", "fill_value", "dtype"], build: full },
    Def { names: &["arange"], inputs: (0, 0), kwargs: &["start", "end", "step", "dtype"], build: arange },
    Def { names: &["eye"], inputs: (0, 0), kwargs: &["n", "m", "dtype"], build: eye },
    Def { names: &["zeros_like"], inputs: (1, 1), kwargs: &["dtype"], build: |c| like(c, Number::Int(0)) },
    Def { names: &["ones_like"], inputs: (1, 1), kwargs: &["dtype"], build: |c| like(c, Number::Int(1)) },
    Def { names: &["full_like"], inputs: (1, 1), kwargs: &["fill_value", "dtype"], build: full_like },
];

/// The type that a tensor of this number has where none is asked for.
fn dtype_of(call: &Call<'_>, number: Number) -> Result<DType, Failure> {
    let own = match number {
        Number::Bool(_) => DType::Bool,
        Number::Int(_) => DType::I64,
        Number::Float(_) => DType::F32,
    };
    Ok(call.kwargs.dtype("dtype")?.unwrap_or(own))
}

fn sized(call: &mut Call<'_>, number: Number) -> Result<NodeId, Failure> {
    let size = call.size("size")?.ok_or_else(|| call.refuse("needs 'size'"))?;
    let dtype = dtype_of(call, number)?;
    call.filled(number, dtype, &size)
}

fn value(call: &Call<'_>) -> Result<Number, Failure> {
    call.kwargs.number("fill_value")?.ok_or_else(|| call.refuse("needs 'fill_value'"))
}

fn full(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let value = value(call)?;
    sized(call, value)
}

fn like(call: &mut Call<'_>, number: Number) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let dtype = call.kwargs.dtype("dtype")?.unwrap_or(call.dtype(x));
    let dims = call.dims(x);
    call.filled(number, dtype, &dims)
}

fn full_like(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let value = value(call)?;
    like(call, value)
}

/// From 'start' to before 'end'.
fn arange(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let end = call.kwargs.number("end")?.ok_or_else(|| call.refuse("needs 'end'"))?;
    let start = call.kwargs.number("start")?.unwrap_or(Number::Int(0));
    let step = call.kwargs.number("step")?.unwrap_or(Number::Int(1));
    let whole = ![start, end, step].iter().any(|number| matches!(number, Number::Float(_)));
    let dtype = dtype_of(call, if whole { Number::Int(0) } else { Number::Float(0.0) })?;
    let float = |number| match number {
        Number::Bool(value) => Some(f64::from(u8::from(value))),
        // Larger ones are not all floats.
        Number::Int(value) => (value.unsigned_abs() <= 1 << 53).then_some(value as f64),
        Number::Float(value) => Some(value).filter(|value| value.is_finite()),
    };
    let (Some(start), Some(end), Some(step)) = (float(start), float(end), float(step)) else {
        return Err(call.refuse("takes numbers up to 2^53"));
    };
    let count = ((end - start) / step).ceil();
    // One that is no number is not taken either.
    if !(count >= 1.0 && count <= genie_graph::limits::MAX_DIM as f64) {
        return Err(call.refuse("needs a 'step' that leads from 'start' to 'end', and an element at the least"));
    }
    call.create(Op::Arange { start, step }, dtype, &[count as u64])
}

/// Ones where the row is the column.
fn eye(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let rows = call.kwargs.int("n")?.ok_or_else(|| call.refuse("needs 'n'"))?;
    let columns = call.kwargs.int("m")?.unwrap_or(rows);
    let dtype = dtype_of(call, Number::Float(1.0))?;
    let count = |n: i64| u64::try_from(n).map_err(|_| call.refuse("takes no negative number of rows or columns"));
    let (rows, columns) = (count(rows)?, count(columns)?);
    let places = Op::Arange { start: 0.0, step: 1.0 };
    let column = call.create(places.clone(), DType::I64, &[rows])?;
    let column = call.reshape(column, &[rows, 1])?;
    let row = call.create(places, DType::I64, &[columns])?;
    let equal = call.push(Op::Compare { kind: CompareKind::Eq }, &[column, row])?;
    call.cast(equal, dtype)
}
