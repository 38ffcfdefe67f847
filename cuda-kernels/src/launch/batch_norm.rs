//! Batch norm with the statistics of training.

use bytemuck::{Pod, Zeroable};

use super::elementwise::Unary;
use super::{conv, floats};
use crate::kernel::{self, Launch};
use crate::view::{Check, LaunchError, View};

/// What a batch norm reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    /// Float `[images, channels, inner]`.
    pub x: View,
    /// Factors, float `[channels]`, as the three below, each of any float type.
    pub weight: View,
    /// Terms.
    pub bias: View,
    /// Means of the channels.
    pub mean: View,
    /// Variances of the channels.
    pub variance: View,
    /// Of x's shape and type; x itself is allowed.
    pub y: View,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BatchNormParams {
    x: u64,
    /// Weight, bias, mean, variance.
    channel: [u64; 4],
    y: u64,
    planes: u64,
    inner: u64,
    channels: u32,
    eps: f32,
    types: [u32; 4],
    activation: u32,
    lanes: u32,
    wide: u32,
    padding: u32,
}

const THREADS: u64 = 256;
/// Packs that a thread takes of a plane before more blocks share it.
const TURNS: u64 = 4;

/// y = activation((x - mean) / sqrt(variance + eps) * weight + bias), each channel by its own numbers, over
/// `[images, channels, inner]` (Ioffe and Szegedy 2015). The activation is one of [`Unary`]'s first six.
///
/// # Errors
/// [`LaunchError`].
pub fn batch_norm(
    sizes: [u64; 3],
    eps: f32,
    tensors: &BatchNorm,
    activation: Option<Unary>,
) -> Result<Option<Launch>, LaunchError> {
    let check = Check("batch_norm");
    let BatchNorm { x, weight, bias, mean, variance, y } = *tensors;
    let [images, channels, inner] = sizes;
    let elements = check.product("images * channels * inner", &sizes)?;
    check.size("channels", channels, channels < 1 << 31, "under 2^31")?;
    check.same_type("y", y, x)?;
    check.tensor("x", x, elements)?;
    check.tensor("y", y, elements)?;
    let mut types = [0; 4];
    let vectors = [("weight", weight), ("bias", bias), ("mean", mean), ("variance", variance)];
    for (code, (what, view)) in types.iter_mut().zip(vectors) {
        check.tensor(what, view, channels)?;
        *code = floats::code(check, what, view)?;
    }
    let activation = conv::code(check, activation)?;
    let kernels = [&kernel::BATCH_NORM_F32, &kernel::BATCH_NORM_F16, &kernel::BATCH_NORM_BF16];
    let kernel = floats::pick(check, "x", x, kernels)?;
    if elements == 0 {
        return Ok(None);
    }
    let wide = floats::wide(x.dtype);
    let packed = inner.is_multiple_of(wide) && x.is_aligned(16) && y.is_aligned(16);
    let items = if packed { inner / wide } else { inner };
    let lanes = items.min(THREADS).next_power_of_two();
    let planes = images * channels;
    let blocks = planes.div_ceil(THREADS / lanes);
    check.size("images * channels", planes, blocks < 1 << 31, "fewer, for planes of this size")?;
    let params = BatchNormParams {
        x: x.at,
        channel: vectors.map(|(_, view)| view.at),
        y: y.at,
        planes,
        inner,
        channels: channels as u32,
        eps,
        types,
        activation,
        lanes: lanes as u32,
        wide: u32::from(packed),
        padding: 0,
    };
    let pieces = items.div_ceil(lanes * TURNS).min(65_535);
    Ok(Some(Launch::new(kernel, [blocks as u32, pieces as u32, 1], [THREADS as u32, 1, 1], 0, &params)))
}
