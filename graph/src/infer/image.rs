//! Ops over images: windows that move over rows and columns, and norms of channels.

use super::{InferError, bad_attribute, bad_shape, exactly, float, shape_is};
use crate::types::{Dim, Symbol, TensorType};

/// How windows lie over an image, as [`crate::Op::Conv2d`] has it.
#[derive(Clone, Copy)]
pub(super) struct Windows<'a> {
    pub(super) stride: &'a [u32; 2],
    pub(super) padding: &'a [u32; 4],
    pub(super) dilation: &'a [u32; 2],
}

impl Windows<'_> {
    /// How many windows of `kernel` elements there are down and across an image of `[H, W]`; `None` where not even one fits, or
    /// where they cannot be counted. No stride may be 0.
    fn count(&self, image: [u64; 2], kernel: [u64; 2]) -> Option<[u64; 2]> {
        let [top, left, bottom, right] = *self.padding;
        let along = |axis: usize, before: u32, after: u32| {
            let padded = image[axis].checked_add(before.into())?.checked_add(after.into())?;
            let reach = u64::from(self.dilation[axis]).checked_mul(kernel[axis].checked_sub(1)?)?.checked_add(1)?;
            (padded.checked_sub(reach)? / u64::from(self.stride[axis])).checked_add(1)
        };
        Some([along(0, top, bottom)?, along(1, left, right)?])
    }
}

pub(super) fn conv2d(windows: Windows<'_>, groups: u32, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let (x, weight, bias) = match *inputs {
        [x, weight] => (x, weight, None),
        [x, weight, bias] => (x, weight, Some(bias)),
        _ => return Err(InferError::Arity { expected: "2 or 3", got: inputs.len() }),
    };
    positive("stride", windows.stride)?;
    positive("dilation", windows.dilation)?;
    float(0, x)?;
    float(1, weight)?;
    let (images, [channels, height, width]) = image(x)?;
    let [out @ Dim::Fixed(out_channels), Dim::Fixed(seen), Dim::Fixed(rows), Dim::Fixed(columns)] = weight.shape.0[..]
    else {
        return Err(bad_shape(1, weight, "[O, C / groups, kh, kw], all fixed"));
    };
    let parts = u64::from(groups);
    if groups == 0 || !channels.is_multiple_of(parts) || !out_channels.is_multiple_of(parts) {
        let reason = format!("is {groups}, but must divide {channels} input and {out_channels} output channels");
        return Err(bad_attribute("groups", reason));
    }
    if seen != channels / parts {
        let expected = format!("[O, {}, kh, kw] ({channels} channels in {groups} group(s))", channels / parts);
        return Err(bad_shape(1, weight, expected));
    }
    if let Some(bias) = bias {
        float(2, bias)?;
        shape_is(2, bias, &[out])?;
    }
    let [down, across] =
        windows.count([height, width], [rows, columns]).ok_or_else(|| too_small(x, [rows, columns]))?;
    Ok(TensorType::new(x.dtype, [images, out, Dim::Fixed(down), Dim::Fixed(across)]))
}

pub(super) fn pool(
    kernel: [u32; 2],
    stride: [u32; 2],
    padding: [u32; 4],
    inputs: &[&TensorType],
) -> Result<TensorType, InferError> {
    let [x] = exactly(inputs)?;
    positive("kernel", &kernel)?;
    positive("stride", &stride)?;
    if (0..4).any(|side| padding[side] >= kernel[side % 2]) {
        let reason = format!("is {padding:?}, but must be smaller than the kernel {kernel:?} on each side");
        return Err(bad_attribute("padding", reason));
    }
    float(0, x)?;
    let (images, [channels, height, width]) = image(x)?;
    let kernel = kernel.map(u64::from);
    let windows = Windows { stride: &stride, padding: &padding, dilation: &[1, 1] };
    let [down, across] = windows.count([height, width], kernel).ok_or_else(|| too_small(x, kernel))?;
    Ok(TensorType::new(x.dtype, [images, Dim::Fixed(channels), Dim::Fixed(down), Dim::Fixed(across)]))
}

pub(super) fn batch_norm(eps: f32, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
    let [x, ..] = exactly::<5>(inputs)?;
    if !(eps.is_finite() && eps >= 0.0) {
        return Err(bad_attribute("eps", format!("is {eps}, but must be finite and not negative")));
    }
    float(0, x)?;
    let &[_, channels @ Dim::Fixed(_), ..] = &x.shape.0[..] else {
        return Err(bad_shape(0, x, "[N, C, ..] with fixed C"));
    };
    for (i, parameter) in inputs.iter().enumerate().skip(1) {
        float(i, parameter)?;
        shape_is(i, parameter, &[channels])?;
    }
    Ok(x.clone())
}

/// An image's first dimension, and the sizes of the others.
fn image(x: &TensorType) -> Result<(Dim, [u64; 3]), InferError> {
    match x.shape.0[..] {
        [
            images @ (Dim::Fixed(_) | Dim::Symbol(Symbol::Batch)),
            Dim::Fixed(channels),
            Dim::Fixed(height),
            Dim::Fixed(width),
        ] => Ok((images, [channels, height, width])),
        _ => Err(bad_shape(0, x, "[N, C, H, W] with N fixed or the batch, the others fixed")),
    }
}

fn positive(name: &'static str, values: &[u32; 2]) -> Result<(), InferError> {
    if values.contains(&0) {
        return Err(bad_attribute(name, format!("is {values:?}, but must be at least 1 each way")));
    }
    Ok(())
}

fn too_small(x: &TensorType, [rows, columns]: [u64; 2]) -> InferError {
    bad_shape(0, x, format!("large enough, with its padding, for a window of {rows} by {columns}, dilation included"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{B, S, n, t};
    use super::*;
    use crate::infer;
    use crate::limits::MAX_DIM;
    use crate::op::{Op, PoolKind};
    use crate::size::TypeError;
    use crate::types::DType;

    fn is_shape<T>(r: &Result<T, InferError>, at: usize) -> bool {
        matches!(r, Err(InferError::Shape { input, .. }) if *input == at)
    }

    fn is_attribute<T>(r: &Result<T, InferError>, which: &str) -> bool {
        matches!(r, Err(InferError::Attribute { name, .. }) if *name == which)
    }

    fn conv(stride: [u32; 2], padding: [u32; 4], dilation: [u32; 2], groups: u32) -> Op {
        Op::Conv2d { stride, padding, dilation, groups }
    }

    #[test]
    fn convolutions_count_their_windows() {
        let plain = conv([1, 1], [0; 4], [1, 1], 1);
        let dims = |op: &Op, x: [Dim; 4], w: [u64; 4]| {
            infer(op, &[&t(DType::F16, &x), &t(DType::BF16, &w.map(n))]).map(|ty| (ty.dtype, ty.shape.0))
        };
        let image = [B, n(6), n(9), n(8)];
        let is = |h, w| Ok((DType::F16, vec![B, n(4), n(h), n(w)]));
        assert_eq!(dims(&plain, image, [4, 6, 3, 2]), is(7, 7));
        assert_eq!(dims(&conv([2, 3], [0; 4], [1, 1], 1), image, [4, 6, 3, 2]), is(4, 3));
        // Rows: 9 + 1 + 3 padded, windows reach 5, every second; columns: 8 + 2 + 0, reaching 4.
        assert_eq!(dims(&conv([2, 1], [1, 2, 3, 0], [2, 3], 1), image, [4, 6, 3, 2]), is(5, 7));
        assert_eq!(dims(&conv([1, 1], [0; 4], [1, 1], 2), image, [4, 3, 9, 8]), is(1, 1));
        let depthwise = dims(&conv([1, 1], [1; 4], [1, 1], 6), image, [12, 1, 3, 3]);
        assert_eq!(depthwise, Ok((DType::F16, vec![B, n(12), n(9), n(8)])));
        let fixed = dims(&plain, [n(5), n(1), n(1), n(1)], [1, 1, 1, 1]);
        assert_eq!(fixed, Ok((DType::F16, vec![n(5), n(1), n(1), n(1)])));
    }

    #[test]
    fn convolutions_check_types_shapes_and_attributes() {
        let x = t(DType::F32, &[B, n(6), n(9), n(8)]);
        let w = t(DType::F32, &[n(4), n(6), n(3), n(2)]);
        let plain = conv([1, 1], [0; 4], [1, 1], 1);
        let bias = |dtype, size| t(dtype, &[n(size)]);
        assert!(infer(&plain, &[&x, &w, &bias(DType::F16, 4)]).is_ok());
        assert!(is_shape(&infer(&plain, &[&x, &w, &bias(DType::F16, 6)]), 2));
        assert!(matches!(infer(&plain, &[&x, &w, &bias(DType::I32, 4)]), Err(InferError::DType { input: 2, .. })));
        assert!(matches!(infer(&plain, &[&x]), Err(InferError::Arity { got: 1, .. })));
        let bytes = t(DType::U8, &x.shape.0);
        assert!(matches!(infer(&plain, &[&bytes, &w]), Err(InferError::DType { input: 0, .. })));
        assert!(matches!(infer(&plain, &[&x, &bytes]), Err(InferError::DType { input: 1, .. })));
        for (stride, dilation, which) in [
            ([0, 1], [1, 1], "stride"),
            ([1, 0], [1, 1], "stride"),
            ([1, 1], [0, 1], "dilation"),
            ([1, 1], [1, 0], "dilation"),
        ] {
            assert!(is_attribute(&infer(&conv(stride, [0; 4], dilation, 1), &[&x, &w]), which));
        }
        for groups in [0, 3, 4, 5, u32::MAX] {
            assert!(is_attribute(&infer(&conv([1, 1], [0; 4], [1, 1], groups), &[&x, &w]), "groups"), "{groups}");
        }
        assert!(is_shape(&infer(&conv([1, 1], [0; 4], [1, 1], 2), &[&x, &w]), 1));
        for dims in [vec![B, n(6), n(9)], vec![S, n(6), n(9), n(8)], vec![B, n(6), S, n(8)], vec![B, B, n(9), n(8)]] {
            assert!(is_shape(&infer(&plain, &[&t(DType::F32, &dims), &w]), 0), "{dims:?}");
        }
        for dims in [vec![n(4), n(6), n(3)], vec![B, n(6), n(3), n(2)], vec![n(4), n(5), n(3), n(2)]] {
            assert!(is_shape(&infer(&plain, &[&x, &t(DType::F32, &dims)]), 1), "{dims:?}");
        }
        // The window is larger than the image, by itself or by its dilation.
        assert!(is_shape(&infer(&plain, &[&x, &t(DType::F32, &[n(4), n(6), n(10), n(2)])]), 0));
        assert!(is_shape(&infer(&conv([1, 1], [0; 4], [5, 1], 1), &[&x, &w]), 0));
    }

    #[test]
    fn sizes_beyond_all_bounds_are_refused() {
        let x = t(DType::F32, &[B, n(1), n(1), n(1)]);
        let w = t(DType::F32, &[n(1), n(1), n(1), n(1)]);
        let wide = conv([1, 1], [u32::MAX; 4], [1, 1], 1);
        let e = infer(&wide, &[&x, &w]);
        assert!(matches!(e, Err(InferError::Result(TypeError::TooLarge { .. }))), "{e:?}");
        let huge = t(DType::F32, &[B, n(1), n(u64::MAX), n(u64::MAX)]);
        assert!(is_shape(&infer(&wide, &[&huge, &w]), 0));
        let tall = t(DType::F32, &[n(1), n(1), n(u64::MAX), n(1)]);
        assert!(is_shape(&infer(&conv([1, 1], [0; 4], [u32::MAX; 2], 1), &[&x, &tall]), 0));
        let many = t(DType::F32, &[n(MAX_DIM), n(1), n(MAX_DIM), n(1)]);
        assert!(infer(&conv([1, 1], [0; 4], [1, 1], 1), &[&many, &w]).is_err());
        let op = Op::Pool {
            kind: PoolKind::Max,
            kernel: [u32::MAX; 2],
            stride: [1, 1],
            padding: [u32::MAX - 1; 4],
            count_padding: true,
        };
        assert!(is_shape(&infer(&op, &[&huge]), 0));
        assert!(infer(&op, &[&x]).is_err());
    }

    #[test]
    fn pools_keep_channels_and_want_little_padding() {
        let x = t(DType::BF16, &[B, n(3), n(9), n(8)]);
        let pool = |kernel, stride, padding| {
            let op = Op::Pool { kind: PoolKind::Average, kernel, stride, padding, count_padding: false };
            infer(&op, &[&x])
        };
        assert_eq!(pool([2, 3], [2, 1], [0; 4]), Ok(t(DType::BF16, &[B, n(3), n(4), n(6)])));
        assert_eq!(pool([3, 3], [2, 2], [1, 0, 2, 1]), Ok(t(DType::BF16, &[B, n(3), n(5), n(4)])));
        assert_eq!(pool([9, 8], [7, 7], [0; 4]), Ok(t(DType::BF16, &[B, n(3), n(1), n(1)])));
        assert!(is_attribute(&pool([0, 1], [1, 1], [0; 4]), "kernel"));
        assert!(is_attribute(&pool([2, 2], [1, 0], [0; 4]), "stride"));
        for padding in [[2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 2, 0], [0, 0, 0, 3]] {
            assert!(is_attribute(&pool([2, 3], [1, 1], padding), "padding"), "{padding:?}");
        }
        assert!(pool([2, 3], [1, 1], [1, 2, 1, 2]).is_ok());
        assert!(is_shape(&pool([10, 1], [1, 1], [0; 4]), 0));
        let op = Op::Pool { kind: PoolKind::Max, kernel: [1; 2], stride: [1; 2], padding: [0; 4], count_padding: true };
        assert!(matches!(infer(&op, &[&t(DType::I32, &x.shape.0)]), Err(InferError::DType { input: 0, .. })));
        assert!(is_shape(&infer(&op, &[&t(DType::F32, &[B, n(3), n(9), S])]), 0));
        assert!(matches!(infer(&op, &[&x, &x]), Err(InferError::Arity { .. })));
    }

    #[test]
    fn batch_norms_want_a_number_a_channel() {
        let x = t(DType::F16, &[B, n(3), S]);
        let c = t(DType::F32, &[n(3)]);
        let op = Op::BatchNorm { eps: 1e-5 };
        assert_eq!(infer(&op, &[&x, &c, &c, &c, &c]), Ok(x.clone()));
        assert!(matches!(infer(&op, &[&x, &c, &c, &c]), Err(InferError::Arity { expected: "5", got: 4 })));
        for at in 1..5 {
            let mut inputs = [&x, &c, &c, &c, &c];
            let (other, ints) = (t(DType::F32, &[n(4)]), t(DType::I32, &[n(3)]));
            inputs[at] = &other;
            assert!(is_shape(&infer(&op, &inputs), at));
            inputs[at] = &ints;
            assert!(matches!(infer(&op, &inputs), Err(InferError::DType { input, .. }) if input == at));
        }
        assert!(is_shape(&infer(&op, &[&t(DType::F32, &[n(3), B]), &c, &c, &c, &c]), 0));
        assert!(is_shape(&infer(&op, &[&c, &c, &c, &c, &c]), 0));
        for eps in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(is_attribute(&infer(&Op::BatchNorm { eps }, &[&x, &c, &c, &c, &c]), "eps"));
        }
    }
}
