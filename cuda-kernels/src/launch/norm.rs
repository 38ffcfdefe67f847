//! Norms of rows.

use bytemuck::{Pod, Zeroable};

use super::floats;
use crate::kernel::{self, Launch};
use crate::view::{Check, LaunchError, View};

/// Which norm, with its parameters, each `[width]` of any float type.
#[derive(Clone, Copy, Debug)]
pub enum Norm {
    /// x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019).
    Rms {
        /// Factors.
        weight: View,
    },
    /// (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias (Ba et al. 2016).
    Layer {
        /// Factors.
        weight: View,
        /// Terms.
        bias: View,
    },
}

/// What is added to x before the norm.
#[derive(Clone, Copy, Debug)]
pub struct Addition {
    /// Of x's shape and type.
    pub residual: View,
    /// Where x + residual goes, rounded to x's type; the norm is of these numbers. It may be x or the residual.
    pub sum: View,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormParams {
    x: u64,
    residual: u64,
    weight: u64,
    bias: u64,
    sum: u64,
    y: u64,
    rows: u64,
    width: u32,
    eps: f32,
    weight_type: u32,
    bias_type: u32,
    centred: u32,
    y_type: u32,
}

const WARP: u64 = 32;
/// Threads of a block whose warps have a row each.
const WARPS_BLOCK: u32 = 256;
/// Threads that a block has at the most where all of it has one row.
const BLOCK: u64 = 512;
/// Packs of 16 bytes that a thread holds at the most.
const PACKS: u64 = 4;

/// The norm of each row of x `[rows, width]`, float, into y of the same shape, of a float type of its own, both contiguous. Sums are
/// in f32, and the result is rounded once.
///
/// y may be x or the residual where it has their type, but not `sum`.
///
/// # Errors
/// [`LaunchError`].
pub fn norm(
    norm: Norm,
    rows: u64,
    width: u64,
    eps: f32,
    x: View,
    add: Option<Addition>,
    y: View,
) -> Result<Option<Launch>, LaunchError> {
    let (check, weight, bias) = match norm {
        Norm::Rms { weight } => (Check("rms_norm"), weight, None),
        Norm::Layer { weight, bias } => (Check("layer_norm"), weight, Some(bias)),
    };
    let elements = check.product("rows * width", &[rows, width])?;
    check.size("rows", rows, rows < 1 << 31, "under 2^31")?;
    check.size("width", width, width < 1 << 30, "under 2^30")?;
    let mut tensors = vec![("x", x), ("y", y)];
    tensors.extend(add.into_iter().flat_map(|a| [("residual", a.residual), ("sum", a.sum)]));
    for &(what, view) in &tensors {
        if what != "y" || [Some(x.at), add.map(|a| a.residual.at)].contains(&Some(y.at)) {
            check.same_type(what, view, x)?;
        }
        check.tensor(what, view, elements)?;
    }
    let y_type = floats::code(check, "y", y)?;
    let weight_type = floats::code(check, "weight", weight)?;
    let bias_type = bias.map_or(Ok(0), |bias| floats::code(check, "bias", bias))?;
    check.tensor("weight", weight, width)?;
    bias.map_or(Ok(()), |bias| check.tensor("bias", bias, width))?;
    floats::code(check, "x", x)?;
    if elements == 0 {
        return Ok(None);
    }
    let wide = floats::wide(x.dtype);
    let packed = width.is_multiple_of(wide)
        && tensors.iter().all(|(_, view)| view.is_aligned(16))
        && [Some(weight), bias].into_iter().flatten().all(|view| view.is_aligned(16));
    let packs = width / wide;
    // Each thread has as many packs as the others, as nearly as whole warps allow.
    let threads = |items: u64| items.div_ceil(items.div_ceil(BLOCK)).next_multiple_of(WARP).min(BLOCK) as u32;
    let (kernels, blocks, threads) = if packed && packs <= WARP * PACKS {
        let kernels = [&kernel::NORM_WARPS_F32, &kernel::NORM_WARPS_F16, &kernel::NORM_WARPS_BF16];
        (kernels, rows.div_ceil(u64::from(WARPS_BLOCK) / WARP), WARPS_BLOCK)
    } else if packed && packs <= BLOCK * PACKS {
        ([&kernel::NORM_BLOCKS_F32, &kernel::NORM_BLOCKS_F16, &kernel::NORM_BLOCKS_BF16], rows, threads(packs))
    } else if packed {
        ([&kernel::NORM_WIDE_F32, &kernel::NORM_WIDE_F16, &kernel::NORM_WIDE_BF16], rows, BLOCK as u32)
    } else {
        ([&kernel::NORM_ANY_F32, &kernel::NORM_ANY_F16, &kernel::NORM_ANY_BF16], rows, threads(width))
    };
    let params = NormParams {
        x: x.at,
        residual: add.map_or(0, |a| a.residual.at),
        weight: weight.at,
        bias: bias.map_or(0, |bias| bias.at),
        sum: add.map_or(0, |a| a.sum.at),
        y: y.at,
        rows,
        width: width as u32,
        eps,
        weight_type,
        bias_type,
        centred: u32::from(bias.is_some()),
        y_type,
    };
    let kernel = floats::pick(check, "x", x, kernels)?;
    Ok(Some(Launch::new(kernel, [blocks as u32, 1, 1], [threads, 1, 1], 0, &params)))
}
