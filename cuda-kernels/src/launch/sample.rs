//! Drawing the next token.

use bytemuck::{Pod, Zeroable};
use genie_graph::DType;

use super::floats;
use crate::kernel::{self, Launch};
use crate::view::{Check, LaunchError, View};

/// What a draw reads and writes; see [`genie_graph::Op::Sample`].
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Rows.
    pub rows: u64,
    /// Logits of a row.
    pub width: u64,
    /// Float `[rows, width]`.
    pub logits: View,
    /// f32 `[rows, 2]`: temperature, top-p.
    pub real: View,
    /// i64 `[rows, 2]`: top-k, seed.
    pub integer: View,
    /// i32 `[rows, steps]` with any number of steps but 0: the last is the position of the draw.
    pub positions: View,
    /// i32 `[rows]`: the result.
    pub tokens: View,
    /// u8 `[scratch_bytes(rows)]` at a multiple of 8, which may hold anything and is not shared with another draw under
    /// way.
    pub scratch: View,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SampleParams {
    logits: u64,
    real: u64,
    integer: u64,
    positions: u64,
    tokens: u64,
    scratch: u64,
    width: u32,
    steps: u32,
    chunk: u32,
    chunks: u32,
}

const THREADS: u32 = 512;
/// As `sample.cu` has them.
const MOST_CHUNKS: u64 = 64;
const DIGITS: u64 = 2048;
const ROW_WORDS: u64 = 1 + 2 * MOST_CHUNKS + DIGITS + DIGITS / 2;
/// Logits that a block has at least, so that it does more than start.
const LEAST_CHUNK: u64 = 4096;

/// Bytes of scratch for so many rows.
pub const fn scratch_bytes(rows: u64) -> u64 {
    rows.saturating_mul(ROW_WORDS * 8)
}

/// Two launches that draw a token of each row: the very tokens that [`genie_graph::sample_row`] draws. Settings and
/// positions are read when they run. `sms`: multiprocessors of the GPU.
///
/// # Errors
/// [`LaunchError`]; also for rows without a logit, whose token would be none.
pub fn sample(sample: &Sample, sms: u32) -> Result<[Option<Launch>; 2], LaunchError> {
    let check = Check("sample");
    let Sample { rows, width, logits, real, integer, positions, tokens, scratch } = *sample;
    check.size("rows", rows, rows < 1 << 16, "under 2^16")?;
    check.size("width", width, (1..1 << 31).contains(&width), "in 1..2^31")?;
    let best = [&kernel::SAMPLE_BEST_F32, &kernel::SAMPLE_BEST_F16, &kernel::SAMPLE_BEST_BF16];
    let draw = [&kernel::SAMPLE_DRAW_F32, &kernel::SAMPLE_DRAW_F16, &kernel::SAMPLE_DRAW_BF16];
    let kernels = [floats::pick(check, "logits", logits, best)?, floats::pick(check, "logits", logits, draw)?];
    check.tensor("logits", logits, check.product("rows * width", &[rows, width])?)?;
    let steps = positions.elements / rows.max(1);
    check.size("positions a row", steps, rows == 0 || (1..1 << 31).contains(&steps), "in 1..2^31")?;
    for (what, view, dtype, elements) in [
        ("temperatures and top-p", real, DType::F32, 2 * rows),
        ("top-k and seeds", integer, DType::I64, 2 * rows),
        ("positions", positions, DType::I32, rows * steps),
        ("tokens", tokens, DType::I32, rows),
        ("scratch", scratch, DType::U8, scratch_bytes(rows)),
    ] {
        if view.dtype != dtype {
            return Err(check.wrong_type(what, view.dtype));
        }
        check.tensor(what, view, elements)?;
    }
    check.aligned("scratch", scratch, 8)?;
    if rows == 0 {
        return Ok([None, None]);
    }
    // Two blocks a multiprocessor, as far as chunks are worth it. They begin where packs do, if the row does.
    let wanted = (2 * u64::from(sms)).div_ceil(rows).min(width.div_ceil(LEAST_CHUNK)).clamp(1, MOST_CHUNKS);
    let chunk = width.div_ceil(wanted).next_multiple_of(8);
    let chunks = width.div_ceil(chunk);
    let params = SampleParams {
        logits: logits.at,
        real: real.at,
        integer: integer.at,
        positions: positions.at,
        tokens: tokens.at,
        scratch: scratch.at,
        width: width as u32,
        steps: steps as u32,
        chunk: chunk as u32,
        chunks: chunks as u32,
    };
    let grid = [chunks as u32, rows as u32, 1];
    Ok(kernels.map(|kernel| Some(Launch::new(kernel, grid, [THREADS, 1, 1], 0, &params))))
}
