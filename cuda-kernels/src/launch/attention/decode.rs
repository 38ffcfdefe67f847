//! Attention of few queries over a cache.

use genie_graph::DType;

use super::{Attention, BLOCK, Cache, Gpu, Heads, Path, Rope, Source, Strided, THREADS, padded, pick, tile_row};
use crate::kernel::{self, Kernel, Launch};
use crate::view::{Check, LaunchError, View};

/// Chunks that a row's keys are cut into at the most, and blocks of a chunk at the least: those of `attention_split.cuh`.
const MOST_CHUNKS: u32 = 64;
const LEAST_BLOCKS: u32 = 2;
/// Rows of the batch that a block counts the chunks of.
const MOST_BATCH: u32 = 4096;

/// What [`decode`] works in, in elements. Launches that may run at the same time need one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// f32, of any content, at a multiple of 16.
    pub partials: u64,
    /// i32, zero before the first launch; each launch leaves them zero.
    pub arrived: u64,
}

/// The key and the value of a step of one token a row, not yet in the cache: they go there on the way.
///
/// With them, the lengths, the tables and what the cache holds before each row's length are nobody's result: no kernel that may still run
/// when the launch begins writes there. They may be read before such kernels have ended (see [`crate::gpu::Gpu::launch_behind`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct New {
    /// `[batch, 1, kv_heads * head_dim]`, of q's type.
    pub k: Strided,
    /// The same, of the same stride.
    pub v: Strided,
    /// Turns keys and queries by their positions.
    pub rope: Option<Rope>,
}

/// What [`decode`] needs for these sizes.
pub fn decode_scratch(batch: u32, tokens: u32, heads: Heads, max_blocks: u32) -> Scratch {
    let sets = |rows: u32| {
        let groups = (u64::from(tokens) * u64::from(heads.heads / heads.kv_heads.max(1))).div_ceil(rows.into());
        u64::from(batch).saturating_mul(heads.kv_heads.into()).saturating_mul(groups)
    };
    let partials = |rows: u32, dims: &[u32]| {
        let floats = u64::from(rows) * (u64::from(padded(heads.head_dim, dims)) + 2);
        sets(rows).saturating_mul(splits(max_blocks).into()).saturating_mul(floats)
    };
    Scratch {
        partials: partials(MATRIX_ROWS, &[32, 64, 96, 128, 256]).max(partials(FEW_ROWS, &[64, 128, 256])),
        arrived: sets(FEW_ROWS),
    }
}

/// Attention of few tokens (a decode step, or some that were guessed and are checked) over a cache of any length.
///
/// With `new`, of one token a row, the step's keys and values are appended to the cache, as [`super::append`] does it: results and
/// cache have the same bits as after that. Without, they are there already.
///
/// Each row's result depends on its own tokens, cache and length alone: it has the same bits in any batch and with any
/// `max_blocks`. `partials` and `arrived` are what [`decode_scratch`] asks for, or more.
///
/// # Errors
/// [`LaunchError`].
pub fn decode(
    attention: &Attention,
    cache: &Cache,
    new: Option<&New>,
    partials: View,
    arrived: View,
    gpu: Gpu,
) -> Result<Option<Launch>, LaunchError> {
    let check = Check("attention_decode");
    let Some((mut params, path)) = attention.plan(check, &Source::Cached(*cache), new)? else { return Ok(None) };
    let Attention { batch, tokens, heads, .. } = *attention;
    check.size("tokens", tokens.into(), new.is_none() || tokens == 1, "1, where they are appended on the way")?;
    check.size("batch", batch.into(), batch <= MOST_BATCH, "at most 4096")?;
    let needs = decode_scratch(batch, tokens, heads, cache.max_blocks);
    for (what, view, dtype, elements, align) in
        [("partials", partials, DType::F32, needs.partials, 16), ("arrived", arrived, DType::I32, needs.arrived, 4)]
    {
        if view.dtype != dtype {
            return Err(check.wrong_type(what, view.dtype));
        }
        if view.elements < elements {
            return Err(LaunchError::Elements { kernel: check.0, what, expected: elements, got: view.elements });
        }
        check.aligned(what, view, align)?;
    }
    params.splits = splits(cache.max_blocks);
    (params.partials, params.arrived) = (partials.at, arrived.at);
    let block = match path {
        Path::Matrix { dim } => match matrix_block(attention.q.view.dtype, dim, batch, gpu.shared) {
            Some((block, slots)) => {
                params.slots = slots;
                block
            }
            None => {
                params.scale = attention.scale;
                few_block(padded(heads.head_dim, &[64, 128, 256]), batch)
            }
        },
        Path::Rows { dim } => few_block(dim, batch),
    };
    check.size("shared memory of the GPU", gpu.shared.into(), block.shared <= gpu.shared, "at least 64 KiB a block")?;
    let groups = attention.queries().div_ceil(block.rows);
    let chunks = u64::from(batch) * u64::from(params.splits) * u64::from(heads.kv_heads) * u64::from(groups);
    check.size("tokens", tokens.into(), chunks < 1 << 31, "few: there are 2^31 chunks of work, or more")?;
    // A table has room for many more chunks than most rows have. The kernel behind this one can begin to load while it runs where a
    // multiprocessor has shared memory left: idle blocks take none of the other half, and of what is sure to have work, each has a block.
    let resident = (gpu.shared / 2 / (block.shared + RESERVED)).clamp(1, block.most_resident);
    let sure = u64::from(batch) * u64::from(heads.kv_heads) * u64::from(groups);
    let grid = chunks.min(sure.max(u64::from(gpu.sms.max(1)) * u64::from(resident))) as u32;
    Ok(Some(Launch::new(block.kernel, [grid, 1, 1], [THREADS, 1, 1], block.shared, &params)))
}

/// Shared memory that a GPU takes for itself, for each block, and the kernels' own arrays.
const RESERVED: u32 = 3 << 10;
/// Rows of a block on matrix units, and of one in f32.
const MATRIX_ROWS: u32 = 16;
const FEW_ROWS: u32 = 4;

/// The most chunks that a row whose blocks are no more can have.
fn splits(max_blocks: u32) -> u32 {
    max_blocks.div_ceil(LEAST_BLOCKS).min(MOST_CHUNKS)
}

struct Block {
    kernel: &'static Kernel,
    rows: u32,
    shared: u32,
    /// Blocks that a multiprocessor's registers take.
    most_resident: u32,
}

/// Bytes for the number of chunks before each row.
fn counts(batch: u32) -> u32 {
    (batch / 4 + 1) * 16
}

/// Bytes of the last block's factors, in `finish_chunk`.
fn factors(rows: u32) -> u32 {
    3 * MOST_CHUNKS * rows * 4
}

/// What the matrix kernels have of shared memory besides, at the most (`RESOURCES.md`).
const MATRIX_OWN: u32 = 2 << 10;

/// As much on its way as lets two blocks share a multiprocessor; else as much as there is room for.
fn matrix_block(dtype: DType, dim: u32, batch: u32, room: u32) -> Option<(Block, u32)> {
    let bytes = |slots: u32| {
        let tiles = slots * BLOCK as u32 * tile_row(dim);
        counts(batch) + MATRIX_ROWS * tile_row(dim) + tiles.max(factors(MATRIX_ROWS))
    };
    let fits = |room: u32| (2..=4).rev().find(|&slots| bytes(slots) <= room);
    // Some of a block's shared memory is the kernel's own.
    let slots = fits(room / 2).or_else(|| fits(room.saturating_sub(MATRIX_OWN)))?;
    let kernel = pick(
        dtype,
        dim,
        [
            [
                &kernel::ATTENTION_DECODE_F16_32,
                &kernel::ATTENTION_DECODE_F16_64,
                &kernel::ATTENTION_DECODE_F16_96,
                &kernel::ATTENTION_DECODE_F16_128,
                &kernel::ATTENTION_DECODE_F16_256,
            ],
            [
                &kernel::ATTENTION_DECODE_BF16_32,
                &kernel::ATTENTION_DECODE_BF16_64,
                &kernel::ATTENTION_DECODE_BF16_96,
                &kernel::ATTENTION_DECODE_BF16_128,
                &kernel::ATTENTION_DECODE_BF16_256,
            ],
        ],
    );
    let most_resident = if dim == 256 {
        2
    } else if dim > 64 {
        3
    } else {
        4
    };
    Some((Block { kernel, rows: MATRIX_ROWS, shared: bytes(slots), most_resident }, slots))
}

/// Queries, keys, weights, and three numbers a row (`RowsTile`).
fn few_block(dim: u32, batch: u32) -> Block {
    let (kernel, most_resident) = match dim {
        64 => (&kernel::ATTENTION_FEW_64, 3),
        128 => (&kernel::ATTENTION_FEW_128, 3),
        _ => (&kernel::ATTENTION_FEW_256, 2),
    };
    let shared = counts(batch) + 4 * ((FEW_ROWS + 32) * (dim + 16) + FEW_ROWS * 33 + 3 * FEW_ROWS);
    Block { kernel, rows: FEW_ROWS, shared, most_resident }
}
