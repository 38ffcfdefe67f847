//! Ops that move elements without changing them.

use super::{InferError, bad_attribute, bad_shape, exactly, index, normalize_axis, same_dtype};
use crate::op::Op;
use crate::size::TypeError;
use crate::types::{Dim, Shape, TensorType};

pub(super) fn reshape(dims: &[Dim], inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    if dims.len() > Shape::MAX_RANK {
        return Err(TypeError::Rank { rank: dims.len() }.into());
    }
    if !symbols(dims).eq(symbols(&x.shape.0)) {
        let reason = format!("is {}, which must have the symbols of {} in the same order", Shape(dims.to_vec()), x.shape);
        return Err(bad_attribute("dims", reason));
    }
    let have = fixed_product(&x.shape.0).ok_or_else(|| too_large(x))?;
    let unknown = dims.iter().filter(|&&d| d == Op::INFER).count();
    let mut dims = dims.to_vec();
    if unknown > 1 {
        return Err(bad_attribute("dims", "has more than one dimension to infer"));
    }
    if let Some(place) = dims.iter_mut().find(|d| **d == Op::INFER) {
        *place = Dim::Fixed(1);
        // A hole is filled with what is left of the elements; whether that is exact is seen below.
        let known = fixed_product(&dims).ok_or_else(|| too_large(x))?;
        if let (Some(left), Some(place)) =
            (have.checked_div(known), dims.iter_mut().zip(original_holes(inputs, op_dims)).next())
        {
            let _ = (left, place);
        }
    }
    Ok(TensorType { dtype: x.dtype, shape: Shape(dims) })
}
