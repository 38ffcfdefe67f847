//! What is true of elements, and what is chosen by it.

use genie_graph::{BinaryKind, CompareKind, DType, NodeId, Op};

use super::Def;
use super::call::Call;
use super::promote::{Operand, promoted};
use crate::error::Failure;
use crate::kwargs::Number;

macro_rules! compare {
    ($kind:ident: $($name:literal),+) => {
        Def { names: &[$($name),+], inputs: (1, 2), kwargs: &["other"], build: |c| compare(c, CompareKind::$kind) }
    };
}

pub(super) const TABLE: &[Def] = &[
    compare!(Eq: "eq"),
    compare!(Ne: "ne", "not_equal"),
    compare!(Lt: "lt", "less"),
    compare!(Le: "le", "less_equal"),
    compare!(Gt: "gt", "greater"),
    compare!(Ge: "ge", "greater_equal"),
    Def { names: &["logical_and"], inputs: (2, 2), kwargs: &[], build: |c| logical(c, BinaryKind::BitAnd) },
    Def { names: &["logical_or"], inputs: (2, 2), kwargs: &[], build: |c| logical(c, BinaryKind::BitOr) },
    Def { names: &["logical_xor"], inputs: (2, 2), kwargs: &[], build: |c| logical(c, BinaryKind::BitXor) },
    Def { names: &["where"], inputs: (1, 3), kwargs: &["input", "other"], build: choose },
    Def { names: &["masked_fill"], inputs: (2, 2), kwargs: &["value"], build: masked_fill },
    Def { names: &["clamp", "clip"], inputs: (1, 1), kwargs: &["min", "max"], build: clamp },
];

fn compare(call: &mut Call<'_>, kind: CompareKind) -> Result<NodeId, Failure> {
    let operands = call.operands("other")?;
    let both = call.both(operands, promoted(call, &operands))?;
    call.push(Op::Compare { kind }, &both)
}

/// Whether elements are something else than zero.
pub(super) fn truth(call: &mut Call<'_>, x: NodeId) -> Result<NodeId, Failure> {
    let dtype = call.dtype(x);
    if dtype == DType::Bool {
        return Ok(x);
    }
    let zero = call.constant(Number::Int(0), dtype)?;
    call.push(Op::Compare { kind: CompareKind::Ne }, &[x, zero])
}

fn logical(call: &mut Call<'_>, kind: BinaryKind) -> Result<NodeId, Failure> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let both = [truth(call, a)?, truth(call, b)?];
    call.push(Op::Binary { kind }, &both)
}

/// Where a condition is true one, else the other: tensors in this order, or numbers.
fn choose(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let condition = condition(call, 0)?;
    let mut tensors = call.inputs.iter().skip(1).copied();
    let mut next = |key: &str| match call.kwargs.number(key)? {
        Some(number) => Ok(Operand::Number(number)),
        None => {
            let missing =
                || call.refuse(&format!("takes a condition, and for each of both a tensor or a number: '{key}'"));
            tensors.next().map(Operand::Tensor).ok_or_else(missing)
        }
    };
    let operands = [next("input")?, next("other")?];
    if tensors.next().is_some() {
        return Err(call.refuse("takes a tensor or a number for each of both, and not more"));
    }
    let [a, b] = call.both(operands, promoted(call, &operands))?;
    call.push(Op::Where, &[condition, a, b])
}

/// PyTorch takes u8 as bools here.
fn condition(call: &mut Call<'_>, i: usize) -> Result<NodeId, Failure> {
    let condition = call.input(i)?;
    match call.dtype(condition) {
        DType::Bool | DType::U8 => truth(call, condition),
        _ => Err(call.refuse("takes a condition of bool")),
    }
}

fn masked_fill(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let mask = condition(call, 1)?;
    let value = call.kwargs.number("value")?.ok_or_else(|| call.refuse("needs 'value'"))?;
    let value = call.constant(value, call.dtype(x))?;
    call.push(Op::Where, &[mask, value, x])
}

fn clamp(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let bounds = [("min", BinaryKind::Maximum), ("max", BinaryKind::Minimum)];
    let mut operands = vec![Operand::Tensor(x)];
    let mut steps = Vec::new();
    for (key, kind) in bounds {
        if let Some(number) = call.kwargs.number(key)? {
            operands.push(Operand::Number(number));
            steps.push((number, kind));
        }
    }
    if steps.is_empty() {
        return Err(call.refuse("needs 'min' or 'max'"));
    }
    let dtype = promoted(call, &operands);
    let mut y = call.cast(x, dtype)?;
    for (number, kind) in steps {
        let bound = call.constant(number, dtype)?;
        y = call.push(Op::Binary { kind }, &[y, bound])?;
    }
    Ok(y)
}
