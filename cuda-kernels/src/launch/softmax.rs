//! Softmax along an axis.

use bytemuck::{Pod, Zeroable};
use genie_graph::DType;

use super::axis::{Axis, Split, check_scratch};
use super::elementwise::THREADS;
use crate::kernel::{self, Kernel, Launch};
use crate::view::{Check, LaunchError, View};

const CHECK: Check = Check("softmax");

/// Bytes of the largest and the sum of a row.
const STATS: u64 = 8;

/// Packs a thread that a row in registers may have: `PACKS` in `softmax.cu`.
const PACKS: u64 = 4;

/// The twin of `ApplyParams` in `softmax.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ApplyParams {
    x: u64,
    y: u64,
    stats: u64,
    outer: u64,
    length: u64,
    inner: u64,
    piece: u64,
    shift: u32,
    deep: u32,
}

/// Bytes of working space that [`softmax`] needs.
///
/// # Errors
/// [`LaunchError`].
pub fn softmax_scratch(dtype: DType, axis: Axis) -> Result<u64, LaunchError> {
    let (count, kept) = axis.counts(CHECK)?;
    if count == 0 || short(dtype, axis).is_some() {
        return Ok(0);
    }
    // The merged stats come first, then those of the pieces, where there are several.
    let pieces = Split::new(CHECK, axis, 16 / dtype.bytes())?.pieces;
    CHECK.product("scratch", &[if pieces == 1 { 1 } else { pieces + 1 }, kept.next_multiple_of(2), STATS])
}

/// y = softmax of x `[outer, length, inner]` over the middle axis, of one float type; computed in f32 and rounded once. A row with a
/// NaN, with +infinity or of -infinity alone becomes NaN. In place is allowed. `scratch`: u8, as many as [`softmax_scratch`] says. The
/// launches run one after another.
///
/// # Errors
/// [`LaunchError`].
pub fn softmax(x: View, axis: Axis, y: View, scratch: View) -> Result<Vec<Launch>, LaunchError> {
    let kernels = kernels(x.dtype)?;
    let (count, kept) = axis.counts(CHECK)?;
    CHECK.same_type("y", y, x)?;
    CHECK.tensor("x", x, count)?;
    CHECK.tensor("y", y, count)?;
    check_scratch(CHECK, scratch, softmax_scratch(x.dtype, axis)?)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let wide = 16 / x.dtype.bytes();
    let mut split = Split::new(CHECK, axis, wide)?;
    if let Some(lanes) = short(x.dtype, axis) {
        split = Split {
            shift: lanes.trailing_zeros(),
            blocks: axis.outer.div_ceil(u64::from(THREADS) / lanes).min(1 << 20) as u32,
            piece: axis.length,
            pieces: 1,
            ..split
        };
        return Ok(vec![split.launch(kernels.short, &split.params(x.at, y.at))]);
    }
    let [stats_kernel, apply_kernel] = if split.is_rows() { kernels.rows } else { kernels.columns };
    let stats = scratch.at;
    let mut launches = Vec::with_capacity(3);
    if split.pieces == 1 {
        launches.push(split.launch(stats_kernel, &split.params(x.at, stats)));
    } else {
        let apart = stats + kept.next_multiple_of(2) * STATS;
        let merge = split.merge(CHECK, 16 / STATS)?;
        launches.push(split.launch(stats_kernel, &split.params(x.at, apart)));
        launches.push(merge.launch(&kernel::SOFTMAX_MERGE, &merge.params(apart, stats)));
    }
    let Axis { outer, length, inner } = axis;
    let params = ApplyParams {
        x: x.at,
        y: y.at,
        stats,
        outer,
        length,
        inner,
        piece: split.piece,
        shift: split.shift,
        deep: split.deep,
    };
    launches.push(if split.is_rows() {
        let pieces = length.div_ceil(wide * u64::from(THREADS) * 2).min(1 << 16) as u32;
        Launch::new(apply_kernel, [pieces, outer.min(65_535) as u32, 1], [THREADS, 1, 1], 0, &params)
    } else {
        split.launch(apply_kernel, &params)
    });
    Ok(launches)
}

/// How many threads share a row that fits into their registers.
fn short(dtype: DType, axis: Axis) -> Option<u64> {
    let lanes = axis.length.div_ceil(PACKS * 16 / dtype.bytes());
    match lanes {
        _ if axis.inner != 1 => None,
        1..=32 => Some(lanes.next_power_of_two()),
        33..=256 => Some(u64::from(THREADS)),
        _ => None,
    }
}

struct Kernels {
    short: &'static Kernel,
    /// Stats, then y.
    rows: [&'static Kernel; 2],
    columns: [&'static Kernel; 2],
}

fn kernels(dtype: DType) -> Result<Kernels, LaunchError> {
    Ok(match dtype {
        DType::F32 => Kernels {
            short: &kernel::SOFTMAX_SHORT_F32,
            rows: [&kernel::SOFTMAX_STATS_ROWS_F32, &kernel::SOFTMAX_ROWS_F32],
            columns: [&kernel::SOFTMAX_STATS_COLUMNS_F32, &kernel::SOFTMAX_COLUMNS_F32],
        },
        DType::F16 => Kernels {
            short: &kernel::SOFTMAX_SHORT_F16,
            rows: [&kernel::SOFTMAX_STATS_ROWS_F16, &kernel::SOFTMAX_ROWS_F16],
            columns: [&kernel::SOFTMAX_STATS_COLUMNS_F16, &kernel::SOFTMAX_COLUMNS_F16],
        },
        DType::BF16 => Kernels {
            short: &kernel::SOFTMAX_SHORT_BF16,
            rows: [&kernel::SOFTMAX_STATS_ROWS_BF16, &kernel::SOFTMAX_ROWS_BF16],
            columns: [&kernel::SOFTMAX_STATS_COLUMNS_BF16, &kernel::SOFTMAX_COLUMNS_BF16],
        },
        other => return Err(CHECK.wrong_type("x", other)),
    })
}
