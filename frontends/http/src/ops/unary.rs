//! Functions of one element.

use genie_graph::{BinaryKind, DType, NodeId, Op, UnaryKind};

use super::Def;
use super::call::Call;
use super::compare::truth;
use crate::error::Failure;
use crate::kwargs::Number;

/// A function of floats.
macro_rules! float {
    ($kind:ident: $($name:literal),+) => {
        Def { names: &[$($name),+], inputs: (1, 1), kwargs: &[], build: |c| floating(c, Op::Unary { kind: UnaryKind::$kind }) }
    };
}

/// A function of numbers.
macro_rules! plain {
    ($kind:ident: $($name:literal),+) => {
        Def { names: &[$($name),+], inputs: (1, 1), kwargs: &[], build: |c| unary(c, Op::Unary { kind: UnaryKind::$kind }) }
    };
}

pub(super) const TABLE: &[Def] = &[
    Def { names: &["relu"], inputs: (1, 1), kwargs: &[], build: relu },
    Def { names: &["sigmoid"], inputs: (1, 1), kwargs: &[], build: |c| floating(c, Op::Sigmoid) },
    Def { names: &["tanh"], inputs: (1, 1), kwargs: &[], build: |c| floating(c, Op::Tanh) },
    Def { names: &["silu", "swish"], inputs: (1, 1), kwargs: &[], build: |c| unary(c, Op::Silu) },
    Def { names: &["gelu"], inputs: (1, 1), kwargs: &["approximate"], build: gelu },
    Def { names: &["abs", "absolute"], inputs: (1, 1), kwargs: &[], build: abs },
    Def { names: &["neg", "negative"], inputs: (1, 1), kwargs: &[], build: neg },
    Def { names: &["exp"], inputs: (1, 1), kwargs: &[], build: |c| floating(c, Op::Exp) },
    Def { names: &["log"], inputs: (1, 1), kwargs: &[], build: |c| floating(c, Op::Log) },
    Def { names: &["sqrt"], inputs: (1, 1), kwargs: &[], build: |c| floating(c, Op::Sqrt) },
    float!(Sin: "sin"),
    float!(Cos: "cos"),
    float!(Tan: "tan"),
    float!(Asin: "asin", "arcsin"),
    float!(Acos: "acos", "arccos"),
    float!(Atan: "atan", "arctan"),
    float!(Sinh: "sinh"),
    float!(Cosh: "cosh"),
    float!(Asinh: "asinh", "arcsinh"),
    float!(Acosh: "acosh", "arccosh"),
    float!(Atanh: "atanh", "arctanh"),
    float!(Erf: "erf"),
    float!(Erfc: "erfc"),
    float!(Erfinv: "erfinv"),
    float!(Lgamma: "lgamma"),
    float!(Digamma: "digamma"),
    float!(Expm1: "expm1"),
    float!(Log1p: "log1p"),
    float!(Log2: "log2"),
    float!(Log10: "log10"),
    float!(Exp2: "exp2"),
    float!(Rsqrt: "rsqrt"),
    float!(Reciprocal: "reciprocal"),
    float!(I0: "i0"),
    plain!(Floor: "floor"),
    plain!(Ceil: "ceil"),
    plain!(Round: "round"),
    plain!(Trunc: "trunc", "fix"),
    Def { names: &["sign", "sgn"], inputs: (1, 1), kwargs: &[], build: sign },
    plain!(Not: "bitwise_not"),
    Def { names: &["logical_not"], inputs: (1, 1), kwargs: &[], build: logical_not },
    Def { names: &["isnan"], inputs: (1, 1), kwargs: &[], build: |c| class(c, UnaryKind::IsNan, false) },
    Def { names: &["isinf"], inputs: (1, 1), kwargs: &[], build: |c| class(c, UnaryKind::IsInf, false) },
    Def { names: &["isfinite"], inputs: (1, 1), kwargs: &[], build: |c| class(c, UnaryKind::IsFinite, true) },
    Def { names: &["to", "cast"], inputs: (1, 1), kwargs: &["dtype"], build: to },
];

fn unary(call: &mut Call<'_>, op: Op) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    call.push(op, &[x])
}

fn floating(call: &mut Call<'_>, op: Op) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let x = call.float(x)?;
    call.push(op, &[x])
}

fn relu(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    match call.dtype(x) {
        DType::Bool => Err(call.refuse("takes no bool")),
        dtype if dtype.is_float() => call.push(Op::Relu, &[x]),
        dtype => {
            let zero = call.constant(Number::Int(0), dtype)?;
            call.push(Op::Binary { kind: BinaryKind::Maximum }, &[x, zero])
        }
    }
}

fn gelu(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let tanh = match call.kwargs.word("approximate")? {
        None | Some("none") => false,
        Some("tanh") => true,
        Some(_) => return Err(call.refuse("takes 'none' or 'tanh' for 'approximate'")),
    };
    unary(call, Op::Gelu { tanh })
}

fn abs(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    match call.dtype(x) {
        DType::U8 | DType::Bool => call.same(x),
        _ => call.push(Op::Abs, &[x]),
    }
}

fn neg(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    if call.dtype(x) == DType::U8 {
        let zero = call.constant(Number::Int(0), DType::U8)?;
        return call.push(Op::Sub, &[zero, x]);
    }
    call.push(Op::Neg, &[x])
}

fn sign(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    if call.dtype(x) == DType::Bool {
        return call.same(x);
    }
    call.push(Op::Unary { kind: UnaryKind::Sign }, &[x])
}

fn logical_not(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    let x = truth(call, x)?;
    call.push(Op::Unary { kind: UnaryKind::Not }, &[x])
}

/// Whether elements are floats of a kind: integers are all finite.
fn class(call: &mut Call<'_>, kind: UnaryKind, of_integers: bool) -> Result<NodeId, Failure> {
    let x = call.input(0)?;
    if call.dtype(x).is_float() {
        return call.push(Op::Unary { kind }, &[x]);
    }
    let dims = call.dims(x);
    call.filled(Number::Bool(of_integers), DType::Bool, &dims)
}

fn to(call: &mut Call<'_>) -> Result<NodeId, Failure> {
    let to = call.kwargs.dtype("dtype")?.ok_or_else(|| call.refuse("needs 'dtype'"))?;
    unary(call, Op::Cast { to })
}
