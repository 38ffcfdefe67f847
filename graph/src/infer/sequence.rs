//! Ops that know of tokens and positions.

use super::{InferError, bad_attribute, bad_shape, exactly, float, one_of, same_dtype, shape_is};
use crate::op::Op;
use crate::types::{DType, Dim, Symbol, TensorType};

/// The head geometry of an attention.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) heads: u32,
    pub(super) kv_heads: u32,
    pub(super) head_dim: u32,
}

pub(super) fn rope(theta: f32, head_dim: u32, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let (x, positions, frequencies) = match *inputs {
        [x, positions] => (x, positions, None),
        [x, positions, frequencies] => (x, positions, Some(frequencies)),
        _ => return Err(InferError::Arity { expected: "2 or 3", got: inputs.len() }),
    };
    if !(theta.is_finite() && theta > 0.0) {
        return Err(bad_attribute("theta", format!("is {theta}, but must be finite and positive")));
    }
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(bad_attribute("head_dim", format!("is {head_dim}, but must be even and positive")));
    }
    float(0, x)?;
    let [batch, sequence, width] = x.shape.0[..] else {
        return Err(bad_shape(0, x, "[B, S, heads * head_dim]"));
    };
    match width {
        Dim::Fixed(w) if w.is_multiple_of(u64::from(head_dim)) => {}
        _ => return Err(bad_shape(0, x, format!("[B, S, a multiple of head_dim {head_dim}]"))),
    }
    one_of(1, positions, positions.dtype == DType::I32, "i32")?;
    shape_is(1, positions, &[batch, sequence])?;
    if let Some(frequencies) = frequencies {
        one_of(2, frequencies, frequencies.dtype == DType::F32, "f32")?;
        shape_is(2, frequencies, &[Dim::Fixed(u64::from(head_dim / 2))])?;
    }
    Ok(x.clone())
}

pub(super) fn attention(
    layer: u32,
    shape: Heads,
    scale: f32,
    inputs: &[&TensorType],
) -> Result<TensorType, InferError> {
    let (q, k, v, cache) = match *inputs {
        [q, k, v] => (q, k, v, None),
        [q, k, v, cache] => (q, k, v, Some(cache)),
        _ => return Err(InferError::Arity { expected: "3 or 4", got: inputs.len() }),
    };
    let Heads { heads, kv_heads, head_dim } = shape;
    if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(bad_attribute(
            "heads",
            format!("is {heads}, but must be a positive multiple of kv_heads {kv_heads}"),
        ));
    }
    if head_dim == 0 {
        return Err(bad_attribute("head_dim", "is 0, but must be positive"));
    }
    if !scale.is_finite() {
        return Err(bad_attribute("scale", format!("is {scale}, but must be finite")));
    }
    float(0, q)?;
    let [batch, sequence, _] = q.shape.0[..] else {
        return Err(bad_shape(0, q, "[B, S, heads * head_dim]"));
    };
    let width = |heads: u32| Dim::Fixed(u64::from(heads) * u64::from(head_dim));
    shape_is(0, q, &[batch, sequence, width(heads)])?;
    for (i, input) in [(1, k), (2, v)] {
        same_dtype(i, q, input)?;
        shape_is(i, input, &[batch, sequence, width(kv_heads)])?;
    }
    if let Some(cache) = cache {
        cache_type(3, layer, shape, cache)?;
    }
    Ok(q.clone())
}

fn cache_type(input: usize, layer: u32, shape: Heads, cache: &TensorType) -> Result<(), InferError> {
    float(input, cache)?;
    let layers = cache_layers(cache).ok_or_else(|| bad_shape(input, cache, CACHE_SHAPE))?;
    let Heads { kv_heads, head_dim, .. } = shape;
    let dims = [
        Dim::Symbol(Symbol::Position),
        Dim::Fixed(layers),
        Dim::Fixed(2),
        Dim::Fixed(u64::from(kv_heads)),
        Dim::Fixed(Op::KV_BLOCK),
        Dim::Fixed(u64::from(head_dim)),
    ];
    shape_is(input, cache, &dims)?;
    if u64::from(layer) >= layers {
        return Err(bad_attribute("layer", format!("is {layer}, but the cache has {layers} layer(s)")));
    }
    Ok(())
}

/// What a cache's shape must be, in words.
pub(crate) const CACHE_SHAPE: &str = "[position, layers, 2, kv_heads, 64, head_dim] with all but the first fixed";

/// The number of layers of a cache's type, or `None` where the shape is not a cache's.
pub(crate) fn cache_layers(cache: &TensorType) -> Option<u64> {
    match cache.shape.0[..] {
        [
            Dim::Symbol(Symbol::Position),
            Dim::Fixed(layers),
            Dim::Fixed(2),
            Dim::Fixed(_),
            Dim::Fixed(Op::KV_BLOCK),
            Dim::Fixed(_),
        ] => Some(layers),
        _ => None,
    }
}

pub(super) fn sample(inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [logits, real, int, positions] = exactly(inputs)?;
    float(0, logits)?;
    let [batch, Dim::Fixed(vocabulary)] = logits.shape.0[..] else {
        return Err(bad_shape(0, logits, "[B, V] with fixed V"));
    };
    if vocabulary > i32::MAX as u64 {
        return Err(bad_shape(0, logits, "[B, V] with V small enough for i32"));
    }
    one_of(1, real, real.dtype == DType::F32, "f32")?;
    shape_is(1, real, &[batch, Dim::Fixed(2)])?;
    one_of(2, int, int.dtype == DType::I64, "i64")?;
    shape_is(2, int, &[batch, Dim::Fixed(2)])?;
    one_of(3, positions, positions.dtype == DType::I32, "i32")?;
    match positions.shape.0[..] {
        [b, _] if b == batch => Ok(TensorType::new(DType::I32, [batch])),
        _ => Err(bad_shape(3, positions, format!("[{batch}, S]"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{B, P, S, n, t};
    use super::*;
    use crate::infer;
    use crate::op::RopeStyle;

    fn is_shape<T>(r: &Result<T, InferError>, at: usize) -> bool {
        matches!(r, Err(InferError::Shape { input, .. }) if *input == at)
    }

    fn is_attribute<T>(r: &Result<T, InferError>, which: &str) -> bool {
        matches!(r, Err(InferError::Attribute { name, .. }) if *name == which)
    }

    #[test]
    fn rope_checks_heads_positions_and_frequencies() {
        let op = |theta, head_dim| Op::Rope { theta, head_dim, style: RopeStyle::Half };
        let x = t(DType::F32, &[B, S, n(12)]);
        let pos = t(DType::I32, &[B, S]);
        let good = op(1e4, 4);
        assert_eq!(infer(&good, &[&x, &pos]), Ok(x.clone()));
        assert_eq!(infer(&good, &[&x, &pos, &t(DType::F32, &[n(2)])]), Ok(x.clone()));
        assert!(is_shape(&infer(&good, &[&x, &pos, &t(DType::F32, &[n(4)])]), 2));
        assert!(is_shape(&infer(&good, &[&x, &t(DType::I32, &[S, B])]), 1));
        assert!(matches!(infer(&good, &[&x, &t(DType::I64, &[B, S])]), Err(InferError::DType { input: 1, .. })));
        assert!(is_shape(&infer(&op(1e4, 8), &[&x, &pos]), 0));
        assert!(is_attribute(&infer(&op(1e4, 3), &[&x, &pos]), "head_dim"));
        assert!(is_attribute(&infer(&op(1e4, 0), &[&x, &pos]), "head_dim"));
        assert!(is_attribute(&infer(&op(0.0, 4), &[&x, &pos]), "theta"));
        assert!(is_attribute(&infer(&op(f32::NAN, 4), &[&x, &pos]), "theta"));
    }

    #[test]
    fn attention_checks_heads_and_cache() {
        let op = |layer, heads, kv_heads, head_dim| Op::Attention {
            layer,
            heads,
            kv_heads,
            head_dim,
            scale: 0.5,
            causal: true,
        };
        let q = t(DType::F32, &[B, S, n(24)]);
        let kv = t(DType::F32, &[B, S, n(8)]);
        let cache = t(DType::F16, &[P, n(2), n(2), n(2), n(64), n(4)]);
        let good = op(1, 6, 2, 4);
        assert_eq!(infer(&good, &[&q, &kv, &kv]), Ok(q.clone()));
        assert_eq!(infer(&good, &[&q, &kv, &kv, &cache]), Ok(q.clone()));
        assert!(is_attribute(&infer(&op(2, 6, 2, 4), &[&q, &kv, &kv, &cache]), "layer"));
        for (heads, kv_heads) in [(6, 4), (0, 2), (6, 0), (0, 0)] {
            assert!(is_attribute(&infer(&op(0, heads, kv_heads, 4), &[&q, &kv, &kv]), "heads"));
        }
        assert!(is_attribute(&infer(&op(0, 6, 2, 0), &[&q, &kv, &kv]), "head_dim"));
        assert!(is_shape(&infer(&good, &[&kv, &kv, &kv]), 0));
        assert!(is_shape(&infer(&good, &[&q, &q, &kv]), 1));
        assert!(is_shape(&infer(&good, &[&q, &kv, &t(DType::F32, &[B, P, n(8)])]), 2));
        assert!(matches!(
            infer(&good, &[&q, &kv, &t(DType::F16, &[B, S, n(8)])]),
            Err(InferError::DTypeMismatch { input: 2, .. })
        ));
        for dims in [
            &[B, n(2), n(2), n(2), n(64), n(4)][..],
            &[P, n(2), n(1), n(2), n(64), n(4)],
            &[P, n(2), n(2), n(3), n(64), n(4)],
            &[P, n(2), n(2), n(2), n(32), n(4)],
            &[P, n(2), n(2), n(2), n(64), n(8)],
            &[P, n(2), n(2), n(2), n(64)],
        ] {
            assert!(is_shape(&infer(&good, &[&q, &kv, &kv, &t(DType::F16, dims)]), 3), "{dims:?}");
        }
        assert!(matches!(
            infer(&good, &[&q, &kv, &kv, &t(DType::I32, &cache.shape.0)]),
            Err(InferError::DType { input: 3, .. })
        ));
        assert!(infer(&op(0, u32::MAX, u32::MAX, u32::MAX), &[&q, &kv, &kv]).is_err());
    }

    #[test]
    fn sample_checks_each_input() {
        let logits = t(DType::F32, &[B, n(10)]);
        let real = t(DType::F32, &[B, n(2)]);
        let int = t(DType::I64, &[B, n(2)]);
        let pos = t(DType::I32, &[B, S]);
        assert_eq!(infer(&Op::Sample, &[&logits, &real, &int, &pos]), Ok(t(DType::I32, &[B])));
        assert!(matches!(infer(&Op::Sample, &[&logits, &real, &int]), Err(InferError::Arity { .. })));
        assert!(is_shape(&infer(&Op::Sample, &[&t(DType::F32, &[B, S]), &real, &int, &pos]), 0));
        assert!(matches!(
            infer(&Op::Sample, &[&t(DType::U8, &[B, n(10)]), &real, &int, &pos]),
            Err(InferError::DType { input: 0, .. })
        ));
        assert!(is_shape(&infer(&Op::Sample, &[&logits, &t(DType::F32, &[B, n(3)]), &int, &pos]), 1));
        assert!(matches!(
            infer(&Op::Sample, &[&logits, &real, &t(DType::I32, &[B, n(2)]), &pos]),
            Err(InferError::DType { input: 2, .. })
        ));
        assert!(is_shape(&infer(&Op::Sample, &[&logits, &real, &int, &t(DType::I32, &[S, B])]), 3));
        assert!(is_shape(&infer(&Op::Sample, &[&t(DType::F16, &[B, n(1 << 31)]), &real, &int, &pos]), 0));
    }
}
