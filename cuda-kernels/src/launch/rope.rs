//! Rotary position embedding.

use bytemuck::{Pod, Zeroable};
use genie_graph::{DType, RopeStyle};

use super::floats;
use crate::kernel::{self, Launch};
use crate::view::{Check, LaunchError, View};

/// A tensor to turn: `[tokens, heads * head_dim]`, its rows `stride` elements apart, so that it may be a part of a
/// wider one.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// What is turned, up to the end of its last row at least.
    pub x: View,
    /// Elements from a row of x to the next.
    pub x_stride: u64,
    /// Where it goes: of x's type; x itself with the same stride is allowed.
    pub y: View,
    /// Elements from a row of y to the next.
    pub y_stride: u64,
    /// Heads.
    pub heads: u64,
}

/// What heads are turned by: positions times frequencies.
#[derive(Clone, Copy, Debug)]
pub struct Angles {
    /// Which elements of a head make a pair.
    pub style: RopeStyle,
    /// Elements of a head: even, and no more than 1024.
    pub head_dim: u64,
    /// Tokens.
    pub tokens: u64,
    /// i32 `[tokens]`.
    pub positions: View,
    /// f32 `[head_dim / 2]`, given or made by [`frequencies`].
    pub frequencies: View,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RopePart {
    x: u64,
    y: u64,
    x_stride: u64,
    y_stride: u64,
    heads: u32,
    wide: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RopeParams {
    parts: [RopePart; 2],
    positions: u64,
    frequencies: u64,
    half: u32,
    interleaved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FrequencyParams {
    y: u64,
    theta: f64,
    half: u32,
    padding: u32,
}

const CHECK: Check = Check("rope");
const THREADS: u64 = 256;
/// Half of the largest head.
const MOST_HALF: u64 = 512;
const FREQUENCY_THREADS: u32 = 128;

/// Turns the heads of one or two parts (queries and keys) of one float type. Sines and cosines are right to f32 for
/// every position; their angle is position * frequency, rounded to f32. `sms`: multiprocessors of the GPU, over which
/// few tokens are spread.
///
/// # Errors
/// [`LaunchError`].
pub fn rope(angles: Angles, part: Part, second: Option<Part>, sms: u32) -> Result<Option<Launch>, LaunchError> {
    let Angles { style, head_dim, tokens, positions, frequencies } = angles;
    let half = half_of(head_dim)?;
    CHECK.size("tokens", tokens, tokens < 1 << 31, "under 2^31")?;
    for (what, view, dtype, elements) in
        [("positions", positions, DType::I32, tokens), ("frequencies", frequencies, DType::F32, half)]
    {
        if view.dtype != dtype {
            return Err(CHECK.wrong_type(what, view.dtype));
        }
        CHECK.tensor(what, view, elements)?;
    }
    let kernels = [&kernel::ROPE_F32, &kernel::ROPE_F16, &kernel::ROPE_BF16];
    let kernel = floats::pick(CHECK, "x", part.x, kernels)?;
    let none = Part { heads: 0, ..part };
    let both = [part, second.unwrap_or(none)];
    for each in &both {
        CHECK.same_type("x", each.x, part.x)?;
        CHECK.same_type("y", each.y, part.x)?;
        rows(each, tokens, head_dim)?;
    }
    let heads = both[0].heads.max(both[1].heads);
    if tokens == 0 || heads == 0 {
        return Ok(None);
    }
    let wide = floats::wide(part.x.dtype);
    let parts = both.map(|p| RopePart {
        x: p.x.at,
        y: p.y.at,
        x_stride: p.x_stride,
        y_stride: p.y_stride,
        heads: p.heads as u32,
        wide: u32::from(
            half.is_multiple_of(wide)
                && p.x.is_aligned(16)
                && p.y.is_aligned(16)
                && p.x_stride.is_multiple_of(wide)
                && p.y_stride.is_multiple_of(wide),
        ),
    });
    let params = RopeParams {
        parts,
        positions: positions.at,
        frequencies: frequencies.at,
        half: half as u32,
        interleaved: u32::from(style == RopeStyle::Interleaved),
    };
    let items = heads * half / if parts.iter().all(|p| p.wide == 1) { wide } else { 1 };
    let threads = items.next_multiple_of(32).min(THREADS);
    // Two turns a thread leave some reuse of the angles where there are tokens enough.
    let split = items.div_ceil(threads).min(u64::from(sms).div_ceil(tokens)).clamp(1, 64);
    Ok(Some(Launch::new(kernel, [tokens as u32, split as u32, 1], [threads as u32, 1, 1], 0, &params)))
}

fn half_of(head_dim: u64) -> Result<u64, LaunchError> {
    let half = head_dim / 2;
    let fits = head_dim.is_multiple_of(2) && (1..=MOST_HALF).contains(&half);
    CHECK.size("head_dim", head_dim, fits, "even and in 2..=1024")?;
    Ok(half)
}

fn rows(part: &Part, tokens: u64, head_dim: u64) -> Result<(), LaunchError> {
    let width = CHECK.product("heads * head_dim", &[part.heads, head_dim])?;
    CHECK.size("heads * head_dim", width, width < 1 << 31, "under 2^31")?;
    for (what, view, stride) in [("x", part.x, part.x_stride), ("y", part.y, part.y_stride)] {
        CHECK.size("the stride of a row", stride, stride >= width, "no less than heads * head_dim")?;
        CHECK.aligned(what, view, view.dtype.bytes())?;
        let before = CHECK.product("tokens * stride", &[tokens.saturating_sub(1), stride])?;
        let expected = if tokens == 0 { 0 } else { before.saturating_add(width) };
        if view.elements < expected {
            return Err(LaunchError::Elements { kernel: CHECK.0, what, expected, got: view.elements });
        }
    }
    Ok(())
}

/// The table of inverse frequencies that [`rope`] takes, theta^(-2 i / head_dim), into y f32 `[head_dim / 2]`: once for
/// a program.
///
/// # Errors
/// [`LaunchError`].
pub fn frequencies(theta: f32, head_dim: u64, y: View) -> Result<Option<Launch>, LaunchError> {
    let half = half_of(head_dim)?;
    if y.dtype != DType::F32 {
        return Err(CHECK.wrong_type("frequencies", y.dtype));
    }
    CHECK.tensor("frequencies", y, half)?;
    let params = FrequencyParams { y: y.at, theta: theta.into(), half: half as u32, padding: 0 };
    let blocks = (half as u32).div_ceil(FREQUENCY_THREADS);
    Ok(Some(Launch::new(&kernel::ROPE_FREQUENCIES, [blocks, 1, 1], [FREQUENCY_THREADS, 1, 1], 0, &params)))
}
