//! Arithmetic of two: tensors, or a tensor and a number.

use genie_graph::{BinaryKind, DType, NodeId, Op, UnaryKind};

use super::Def;
use super::call::Call;
use super::promote::{Operand, promoted};
use crate::error::Failure;
use crate::kwargs::Number;

/// Two operands of one type.
macro_rules! two {
    ($kind:ident: $($name:literal),+) => {
        Def { names: &[$($name),+], inputs: (1, 2), kwargs: &["other"], build: |c| binary(c, BinaryKind::$kind) }
    };
}

/// Two operands, of floats.
macro_rules! floats {
    ($kind:ident: $($name:literal),+) => {
        Def { names: &[$($name),+], inputs: (1, 2), kwargs: &["other"], build: |c| floats(c, BinaryKind::$kind) }
    };
}

pub(super) const TABLE: &[Def] = &[
    Def { names: &["add"], inputs: (1, 2), kwargs: &["other", "alpha"], build: |c| scaled(c, Op::Add) },
    Def { names: &["sub", "subtract"], inputs: (1, 2), kwargs: &["other", "alpha"], build: |c| scaled(c, Op::Sub) },
    Def { names: &["mul", "multiply"], inputs: (1, 2), kwargs: &["other"], build: mul },
    Def { names: &["div", "divide", "true_divide"], inputs: (1, 2), kwargs: &["other", "rounding_mode"], build: div },
    Def { names: &["pow"], inputs: (1, 2), kwargs: &["exponent"], build: pow },
    two!(FloorDivide: "floor_divide"),
    two!(Remainder: "remainder"),
    two!(Fmod: "fmod"),
    two!(Maximum: "maximum"),
    two!(Minimum: "minimum"),
    two!(BitAnd: "bitwise_and"),
    two!(BitOr: "bitwise_or"),
    two!(BitXor: "bitwise_xor"),
    two!(ShiftLeft: "bitwise_left_shift"),
    two!(ShiftRight: "bitwise_right_shift"),
    two!(Hypot: "hypot"),
    floats!(Atan2: "atan2", "arctan2"),
    floats!(Copysign: "copysign"),
];

fn binary(call: &mut Call<'_>, kind: BinaryKind) -> Result<NodeId, Failure> {
    let operands = call.operands("other")?;
    let both = call.both(operands, promoted(call, &operands))?;
    call.push(Op::Binary { kind }, &both)
}

fn floats(call: &mut Call<'_>, kind: BinaryKind) -> Result<NodeId, Failure> {
    let operands = call.operands("other")?;
    let both = call.both(operands, call.promoted_float(&operands))?;
    call.push(Op::Binary { kind }, &both)
}

/// Of bools it is whether both are true.
fn mul(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let operands = call.operands("other")?;
    let dtype = promoted(call, &operands);
    let op = if dtype == DType::Bool { Op::Binary { kind: BinaryKind::BitAnd } } else { Op::Mul };
    let wide = width(call, dtype, &operands);
    let both = call.both(operands, wide)?;
    let y = call.push(op, &both)?;
    call.cast(y, dtype)
}

/// `a + alpha * b`; of bools it is whether either is true.
fn scaled(call: &mut Call<'_>, op: Op) -> Result<NodeId, Failure> {
    let operands = call.operands("other")?;
    let dtype = promoted(call, &operands);
    let alpha = call.kwargs.number("alpha")?.filter(|alpha| !matches!(alpha, Number::Int(1)));
    let [mut a, mut b] = call.both(operands, dtype)?;
    if let Some(alpha) = alpha {
        if !dtype.is_float() && matches!(alpha, Number::Float(_)) {
            return Err(call.refuse("takes an integer for 'alpha' where tensors hold integers"));
        }
        let mut alpha = call.constant(alpha, dtype)?;
        if dtype.is_float() {
            // Only the sum is rounded.
            (a, b, alpha) = (call.cast(a, DType::F32)?, call.cast(b, DType::F32)?, call.cast(alpha, DType::F32)?);
        }
        let product = if dtype == DType::Bool { Op::Binary { kind: BinaryKind::BitAnd } } else { Op::Mul };
        b = call.push(product, &[b, alpha])?;
    }
    let either = dtype == DType::Bool && op == Op::Add;
    let y = call.push(if either { Op::Binary { kind: BinaryKind::BitOr } } else { op }, &[a, b])?;
    call.cast(y, dtype)
}

/// Of integers f32, unless the result is to be made whole.
fn div(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let operands = call.operands("other")?;
    let dtype = promoted(call, &operands);
    match call.kwargs.word("rounding_mode")? {
        None => {
            let dtype = call.promoted_float(&operands);
            let both = call.both(operands, width(call, dtype, &operands))?;
            let y = call.push(Op::Div, &both)?;
            call.cast(y, dtype)
        }
        Some("trunc") => {
            let both = call.both(operands, dtype)?;
            let y = call.push(Op::Div, &both)?;
            if dtype.is_float() { call.push(Op::Unary { kind: UnaryKind::Trunc }, &[y]) } else { Ok(y) }
        }
        Some("floor") => binary(call, BinaryKind::FloorDivide),
        Some(_) => Err(call.refuse("takes 'trunc' or 'floor' for 'rounding_mode'")),
    }
}

fn pow(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let operands = call.operands("exponent")?;
    let dtype = promoted(call, &operands);
    if let [_, Operand::Number(Number::Int(..0))] = operands
        && !dtype.is_float()
    {
        return Err(call.refuse("takes no integers to a negative power: cast them to float32"));
    }
    let both = call.both(operands, dtype)?;
    call.push(Op::Binary { kind: BinaryKind::Pow }, &both)
}

/// What PyTorch multiplies and divides halves by: what has no dimensions is not rounded to their type before it is used. (What is added is.)
fn width(call: &Call<'_>, dtype: DType, operands: &[Operand; 2]) -> DType {
    let half = matches!(dtype, DType::F16 | DType::BF16);
    let number = match operands[1] {
        Operand::Number(_) => true,
        Operand::Tensor(node) => call.dims(node).is_empty(),
    };
    if half && number { DType::F32 } else { dtype }
}
