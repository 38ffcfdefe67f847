//! Products with matrices and rows of them, and the norms.

use super::{InferError, bad_attribute, bad_shape, exactly, float, index, shape_is};
use crate::op::LinearLayout;
use crate::types::{DType, Dim, Shape, TensorType};

pub(super) fn embedding(dtype: DType, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [table, ids] = exactly(inputs)?;
    if !dtype.is_float() {
        return Err(bad_attribute("dtype", format!("is {dtype}, but must be f32, f16 or bf16")));
    }
    float(0, table)?;
    index(1, ids)?;
    let [Dim::Fixed(_), Dim::Fixed(width)] = table.shape.0[..] else {
        return Err(bad_shape(0, table, "[V, H] with fixed V and H"));
    };
    Ok(TensorType { dtype, shape: appended(&ids.shape.0, Dim::Fixed(width)) })
}

pub(super) fn matmul(inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [a, b] = exactly(inputs)?;
    float(0, a)?;
    float(1, b)?;
    let [lead @ .., rows, inner] = &a.shape.0[..] else {
        return Err(bad_shape(0, a, "[.., M, K]"));
    };
    let [b_lead @ .., b_inner, columns] = &b.shape.0[..] else {
        return Err(bad_shape(1, b, "[.., K, N]"));
    };
    if b_inner != inner || !(b_lead.is_empty() || b_lead == lead) {
        let full = [lead, &[*inner]].concat();
        return Err(bad_shape(1, b, format!("{} followed by N, or [{inner}, N]", Shape(full))));
    }
    let mut dims = lead.to_vec();
    dims.extend([*rows, *columns]);
    Ok(TensorType { dtype: a.dtype, shape: Shape(dims) })
}

pub(super) fn linear(layout: LinearLayout, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let (x, weight, bias) = match *inputs {
        [x, weight] => (x, weight, None),
        [x, weight, bias] => (x, weight, Some(bias)),
        _ => return Err(InferError::Arity { expected: "2 or 3", got: inputs.len() }),
    };
    float(0, x)?;
    float(1, weight)?;
    let [lead @ .., inner] = &x.shape.0[..] else {
        return Err(bad_shape(0, x, "[.., K]"));
    };
    let (weight_inner, out) = match (layout, &weight.shape.0[..]) {
        (LinearLayout::OutIn, &[out @ Dim::Fixed(_), inner @ Dim::Fixed(_)]) => (inner, out),
        (LinearLayout::InOut, &[inner @ Dim::Fixed(_), out @ Dim::Fixed(_)]) => (inner, out),
        _ => return Err(bad_shape(1, weight, "a matrix of fixed dimensions")),
    };
    if weight_inner != *inner {
        let expected = match layout {
            LinearLayout::OutIn => format!("[out, {inner}] (layout OutIn)"),
            LinearLayout::InOut => format!("[{inner}, out] (layout InOut)"),
        };
        return Err(bad_shape(1, weight, expected));
    }
    if let Some(bias) = bias {
        float(2, bias)?;
        shape_is(2, bias, &[out])?;
    }
    Ok(TensorType { dtype: x.dtype, shape: appended(lead, out) })
}

pub(super) fn norm(eps: f32, with_bias: bool, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let x = if with_bias {
        let [x, _, _] = exactly(inputs)?;
        x
    } else {
        let [x, _] = exactly(inputs)?;
        x
    };
    if !(eps.is_finite() && eps >= 0.0) {
        return Err(bad_attribute("eps", format!("is {eps}, but must be finite and not negative")));
    }
    float(0, x)?;
    let &[.., width @ Dim::Fixed(_)] = &x.shape.0[..] else {
        return Err(bad_shape(0, x, "[.., H] with fixed H"));
    };
    for (i, parameter) in inputs.iter().enumerate().skip(1) {
        float(i, parameter)?;
        shape_is(i, parameter, &[width])?;
    }
    Ok(x.clone())
}

fn appended(lead: &[Dim], last: Dim) -> Shape {
    let mut dims = Vec::with_capacity(lead.len() + 1);
    dims.extend_from_slice(lead);
    dims.push(last);
    Shape(dims)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{B, S, n, t};
    use super::*;
    use crate::infer;
    use crate::op::Op;
    use crate::size::TypeError;

    #[test]
    fn embedding_appends_the_width() {
        let op = Op::Embedding { dtype: DType::F32 };
        let table = t(DType::BF16, &[n(100), n(8)]);
        let ids = t(DType::I32, &[B, S]);
        assert_eq!(infer(&op, &[&table, &ids]), Ok(t(DType::F32, &[B, S, n(8)])));
        assert!(matches!(infer(&op, &[&ids, &table]), Err(InferError::DType { input: 0, .. })));
        assert!(matches!(infer(&op, &[&table, &table]), Err(InferError::DType { input: 1, .. })));
        assert!(matches!(infer(&op, &[&t(DType::F32, &[B, n(8)]), &ids]), Err(InferError::Shape { input: 0, .. })));
        assert!(matches!(
            infer(&Op::Embedding { dtype: DType::I32 }, &[&table, &ids]),
            Err(InferError::Attribute { name: "dtype", .. })
        ));
        let deep = t(DType::I64, &[n(1); 8]);
        assert_eq!(infer(&op, &[&table, &deep]), Err(InferError::Result(TypeError::Rank { rank: 9 })));
    }

    #[test]
    fn matmul_checks_inner_and_leading_dimensions() {
        let f = |a: &[Dim], b: &[Dim]| infer(&Op::MatMul, &[&t(DType::F16, a), &t(DType::F32, b)]);
        assert_eq!(f(&[n(2), n(3)], &[n(3), n(4)]), Ok(t(DType::F16, &[n(2), n(4)])));
        assert_eq!(f(&[B, S, n(3)], &[n(3), n(4)]), Ok(t(DType::F16, &[B, S, n(4)])));
        assert_eq!(f(&[B, n(5), S, S], &[B, n(5), S, n(4)]), Ok(t(DType::F16, &[B, n(5), S, n(4)])));
        for (a, b) in [
            (&[n(2), n(3)][..], &[n(4), n(3)][..]),
            (&[B, S, n(3)], &[S, n(3), n(4)]),
            (&[n(2), S], &[n(2), n(2)]),
            (&[n(2), n(3)], &[n(1), n(3), n(4)]),
            (&[n(2), n(3)], &[n(3)]),
        ] {
            assert!(matches!(f(a, b), Err(InferError::Shape { input: 1, .. })), "{a:?} {b:?}");
        }
        assert!(matches!(f(&[n(3)], &[n(3), n(4)]), Err(InferError::Shape { input: 0, .. })));
        let ints = t(DType::I32, &[n(2), n(2)]);
        assert!(matches!(infer(&Op::MatMul, &[&ints, &ints]), Err(InferError::DType { input: 0, .. })));
    }

    #[test]
    fn linear_reads_either_layout() {
        let x = t(DType::F32, &[B, S, n(3)]);
        let w = t(DType::BF16, &[n(5), n(3)]);
        let out_in = Op::Linear { layout: LinearLayout::OutIn };
        let in_out = Op::Linear { layout: LinearLayout::InOut };
        let y = t(DType::F32, &[B, S, n(5)]);
        assert_eq!(infer(&out_in, &[&x, &w]), Ok(y.clone()));
        assert_eq!(infer(&out_in, &[&x, &w, &t(DType::F16, &[n(5)])]), Ok(y.clone()));
        assert_eq!(infer(&in_out, &[&x, &t(DType::F32, &[n(3), n(5)])]), Ok(y));
        assert!(matches!(infer(&in_out, &[&x, &w]), Err(InferError::Shape { input: 1, .. })));
        assert!(matches!(infer(&out_in, &[&x, &w, &t(DType::F32, &[n(3)])]), Err(InferError::Shape { input: 2, .. })));
        assert!(matches!(infer(&out_in, &[&x]), Err(InferError::Arity { .. })));
        assert!(matches!(
            infer(&out_in, &[&x, &t(DType::I32, &[n(5), n(3)])]),
            Err(InferError::DType { input: 1, .. })
        ));
        assert!(matches!(infer(&out_in, &[&t(DType::F32, &[]), &w]), Err(InferError::Shape { input: 0, .. })));
        assert!(matches!(
            infer(&out_in, &[&t(DType::F32, &[S]), &t(DType::F32, &[n(5), S])]),
            Err(InferError::Shape { input: 1, .. })
        ));
    }

    #[test]
    fn norms_want_parameters_of_the_last_width() {
        let x = t(DType::BF16, &[B, S, n(4)]);
        let w = t(DType::F32, &[n(4)]);
        let rms = Op::RmsNorm { eps: 1e-5 };
        let layer = Op::LayerNorm { eps: 0.0 };
        assert_eq!(infer(&rms, &[&x, &w]), Ok(x.clone()));
        assert_eq!(infer(&layer, &[&x, &w, &w]), Ok(x.clone()));
        assert!(matches!(infer(&layer, &[&x, &w]), Err(InferError::Arity { expected: "3", got: 2 })));
        assert!(matches!(infer(&rms, &[&x, &w, &w]), Err(InferError::Arity { expected: "2", got: 3 })));
        assert!(matches!(infer(&rms, &[&x, &t(DType::F32, &[n(5)])]), Err(InferError::Shape { input: 1, .. })));
        assert!(matches!(infer(&rms, &[&t(DType::F32, &[B]), &w]), Err(InferError::Shape { input: 0, .. })));
        for eps in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(matches!(infer(&Op::RmsNorm { eps }, &[&x, &w]), Err(InferError::Attribute { name: "eps", .. })));
        }
    }
}
