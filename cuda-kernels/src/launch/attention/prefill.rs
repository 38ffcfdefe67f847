//! Attention of many queries.

use super::{Attention, Gpu, Path, Source, THREADS, padded, pick, tile_row};
use crate::kernel::{self, Launch};
use crate::view::{Check, LaunchError};

/// Attention of many queries a head: a prefill, or without a cache.
///
/// For few tokens over a long cache [`super::decode`] fills the GPU better.
///
/// # Errors
/// [`LaunchError`].
pub fn prefill(attention: &Attention, source: &Source, gpu: Gpu) -> Result<Option<Launch>, LaunchError> {
    let check = Check("attention_prefill");
    let Some((mut params, path)) = attention.plan(check, source, None)? else { return Ok(None) };
    let grid = |rows: u32| [attention.queries().div_ceil(rows), attention.heads.kv_heads, attention.batch];
    if let Path::Matrix { dim } = path {
        if let Some(Cut { warps, slots, shared }) = cut(dim, attention.queries(), gpu.shared) {
            params.slots = slots;
            let kernel = pick(
                attention.q.view.dtype,
                dim,
                [
                    [
                        &kernel::ATTENTION_PREFILL_F16_32,
                        &kernel::ATTENTION_PREFILL_F16_64,
                        &kernel::ATTENTION_PREFILL_F16_96,
                        &kernel::ATTENTION_PREFILL_F16_128,
                        &kernel::ATTENTION_PREFILL_F16_256,
                    ],
                    [
                        &kernel::ATTENTION_PREFILL_BF16_32,
                        &kernel::ATTENTION_PREFILL_BF16_64,
                        &kernel::ATTENTION_PREFILL_BF16_96,
                        &kernel::ATTENTION_PREFILL_BF16_128,
                        &kernel::ATTENTION_PREFILL_BF16_256,
                    ],
                ],
            );
            return Ok(Some(Launch::new(kernel, grid(warps * rows_a_warp(dim)), [32 * warps, 1, 1], shared, &params)));
        }
        params.scale = attention.scale;
    }
    let dim = padded(attention.heads.head_dim, &[64, 128, 256]);
    let kernel = match dim {
        64 => &kernel::ATTENTION_MANY_64,
        128 => &kernel::ATTENTION_MANY_128,
        _ => &kernel::ATTENTION_MANY_256,
    };
    let shared = many_shared(dim);
    check.size("shared memory of the GPU", gpu.shared.into(), shared <= gpu.shared, "at least 64 KiB a block")?;
    Ok(Some(Launch::new(kernel, grid(ROWS), [THREADS, 1, 1], shared, &params)))
}

/// Rows of a block of `attention_many`.
const ROWS: u32 = 32;

/// Bytes of a block of `attention_many`: queries, keys, weights, and three numbers a row (`RowsTile`).
fn many_shared(dim: u32) -> u32 {
    let keys = if dim == 256 { 16 } else { 32 };
    4 * ((ROWS + keys) * (dim + 4) + ROWS * (keys + 1) + 3 * ROWS)
}

/// How a block on matrix units is made.
struct Cut {
    warps: u32,
    slots: u32,
    shared: u32,
}

fn rows_a_warp(dim: u32) -> u32 {
    if dim == 256 { 16 } else { 32 }
}

/// Four warps and as much on its way as lets two blocks share a multiprocessor; else as much as there is room for.
fn cut(dim: u32, queries: u32, room: u32) -> Option<Cut> {
    let keys = if dim == 256 { 32 } else { 64 };
    let most = queries.div_ceil(rows_a_warp(dim)).clamp(1, 4);
    let tries = |warps: u32, room: u32| {
        let bytes = move |slots: u32| (warps * rows_a_warp(dim) + slots * keys) * tile_row(dim);
        (2..=4).rev().find(|&slots| bytes(slots) <= room).map(|slots| Cut { warps, slots, shared: bytes(slots) })
    };
    tries(most, room / 2).or_else(|| (1..=most).rev().find_map(|warps| tries(warps, room)))
}
