//! What element type comes of several, as PyTorch has it.

use genie_graph::{DType, NodeId};

use super::Call;
use crate::error::Failure;
use crate::kwargs::Number;

/// What an op computes with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    Tensor(NodeId),
    Number(Number),
}

/// The type of a result of these. Tensors without dimensions, and numbers even more, count only where no other is of their kind:
/// bool, integer or float.
pub(super) fn promoted(call: &Call<'_>, operands: &[Operand]) -> DType {
    let [mut shaped, mut bare, mut numbers] = [None; 3];
    for operand in operands {
        let (place, dtype) = match *operand {
            Operand::Tensor(node) if call.dims(node).is_empty() => (&mut bare, call.dtype(node)),
            Operand::Tensor(node) => (&mut shaped, call.dtype(node)),
            Operand::Number(Number::Bool(_)) => (&mut numbers, DType::Bool),
            Operand::Number(Number::Int(_)) => (&mut numbers, DType::I64),
            Operand::Number(Number::Float(_)) => (&mut numbers, DType::F32),
        };
        *place = Some(place.map_or(dtype, |other| of_two(other, dtype)));
    }
    let combined = |strong: Option<DType>, weak: Option<DType>| match (strong, weak) {
        (Some(strong), Some(weak)) if !strong.is_float() && (strong == DType::Bool || weak.is_float()) => {
            Some(of_two(strong, weak))
        }
        (strong, weak) => strong.or(weak),
    };
    combined(shaped, combined(bare, numbers)).unwrap_or(DType::F32)
}

/// The type that holds both.
fn of_two(a: DType, b: DType) -> DType {
    let rank = |dtype| match dtype {
        DType::Bool => 0,
        DType::U8 => 1,
        DType::I32 => 2,
        DType::I64 => 3,
        DType::F16 | DType::BF16 => 4,
        DType::F32 => 5,
    };
    match (a, b) {
        (DType::F16, DType::BF16) | (DType::BF16, DType::F16) => DType::F32,
        _ if rank(a) >= rank(b) => a,
        _ => b,
    }
}

impl Call<'_> {
    /// Two tensors, or a tensor and the number that `key` names.
    pub(super) fn operands(&self, key: &str) -> Result<[Operand; 2], Failure> {
        let a = Operand::Tensor(self.input(0)?);
        match (self.inputs.get(1), self.kwargs.number(key)?) {
            (Some(&b), None) => Ok([a, Operand::Tensor(b)]),
            (None, Some(number)) => Ok([a, Operand::Number(number)]),
            _ => Err(self.refuse(&format!("takes a second tensor, or a number as '{key}'"))),
        }
    }

    /// An operand as elements of this type.
    pub(super) fn operand(&mut self, operand: Operand, to: DType) -> Result<NodeId, Failure> {
        match operand {
            Operand::Tensor(node) => self.cast(node, to),
            Operand::Number(number) => self.constant(number, to),
        }
    }

    /// Both as elements of one type.
    pub(super) fn both(&mut self, [a, b]: [Operand; 2], to: DType) -> Result<[NodeId; 2], Failure> {
        Ok([self.operand(a, to)?, self.operand(b, to)?])
    }

    /// The type of their result, made a float.
    pub(super) fn promoted_float(&self, operands: &[Operand]) -> DType {
        let dtype = promoted(self, operands);
        if dtype.is_float() { dtype } else { DType::F32 }
    }
}
