//! Tensors made from nothing.

use bytemuck::{Pod, Zeroable};
use genie_graph::{DType, RandomKind};

use super::elementwise::{THREADS, blocks};
use crate::kernel::{self, Kernel, Launch};
use crate::view::{Check, LaunchError, View};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FillParams {
    y: u64,
    bytes: u64,
    pattern: u64,
}

/// Every element of y, of any type, becomes the one whose bits are the lowest of `bits`.
///
/// # Errors
/// [`LaunchError`].
pub fn fill(y: View, bits: u64) -> Result<Option<Launch>, LaunchError> {
    let check = Check("fill");
    check.tensor("y", y, y.elements)?;
    let size = y.dtype.bytes();
    let bytes = check.product("y", &[y.elements, size])?;
    if bytes == 0 {
        return Ok(None);
    }
    let one = if size == 8 { bits } else { bits & ((1 << (8 * size)) - 1) };
    let pattern = (0..8 / size).fold(0, |pattern, i| pattern | one << (8 * size * i));
    let params = FillParams { y: y.at, bytes, pattern };
    // Also a thread for each of up to 30 bytes around the packs.
    let grid = blocks((bytes / 16).max(30));
    Ok(Some(Launch::new(&kernel::FILL, [grid, 1, 1], [THREADS, 1, 1], 0, &params)))
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ArangeParams {
    y: u64,
    count: u64,
    start: f64,
    step: f64,
    dtype: u32,
    padding: u32,
}

/// y\[i\] = start + i * step, computed in f64 and converted as a cast does; any type but bool.
///
/// # Errors
/// [`LaunchError`].
pub fn arange(start: f64, step: f64, y: View) -> Result<Option<Launch>, LaunchError> {
    let check = Check("arange");
    if y.dtype == DType::Bool {
        return Err(check.wrong_type("y", y.dtype));
    }
    check.tensor("y", y, y.elements)?;
    if y.elements == 0 {
        return Ok(None);
    }
    let params = ArangeParams { y: y.at, count: y.elements, start, step, dtype: y.dtype as u32, padding: 0 };
    Ok(Some(Launch::new(&kernel::ARANGE, [blocks(y.elements), 1, 1], [THREADS, 1, 1], 0, &params)))
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RandomParams {
    y: u64,
    count: u64,
    seed: u64,
}

/// Uniform numbers in [0, 1), float: those of [`genie_graph::random::fill_uniform`], rounded to y's type.
///
/// # Errors
/// [`LaunchError`].
pub fn rand(seed: u64, y: View) -> Result<Option<Launch>, LaunchError> {
    random(Check("rand"), [&kernel::RAND_F32, &kernel::RAND_F16, &kernel::RAND_BF16], seed, y)
}

/// Standard normal numbers, float: those of [`genie_graph::random::fill_normal`] to the precision of f64 logarithms and sines before
/// they are rounded to f32 and to y's type.
///
/// # Errors
/// [`LaunchError`].
pub fn randn(seed: u64, y: View) -> Result<Option<Launch>, LaunchError> {
    random(Check("randn"), [&kernel::RANDN_F32, &kernel::RANDN_F16, &kernel::RANDN_BF16], seed, y)
}

fn random(check: Check, kernels: [&'static Kernel; 3], seed: u64, y: View) -> Result<Option<Launch>, LaunchError> {
    let kernel = match y.dtype {
        DType::F32 => kernels[0],
        DType::F16 => kernels[1],
        DType::BF16 => kernels[2],
        other => return Err(check.wrong_type("y", other)),
    };
    check.tensor("y", y, y.elements)?;
    if y.elements == 0 {
        return Ok(None);
    }
    let params = RandomParams { y: y.at, count: y.elements, seed };
    Ok(Some(Launch::new(kernel, [blocks(y.elements.div_ceil(4)), 1, 1], [THREADS, 1, 1], 0, &params)))
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct KeyedParams {
    y: u64,
    count: u64,
    key: u64,
}

/// Numbers of the stream that `key` names when the launch runs, i64 `[2]`: key and first block. Uniform and normal ones are those of
/// [`genie_graph::random::fill_uniform_from`] and [`genie_graph::random::fill_normal_from`], as exact as [`rand`] and [`randn`]; bits are
/// those of [`genie_graph::random::fill_bits_from`].
///
/// # Errors
/// [`LaunchError`].
pub fn random_by(kind: RandomKind, key: View, y: View) -> Result<Option<Launch>, LaunchError> {
    let check = Check("random");
    let kernel: &'static Kernel = match (kind, y.dtype) {
        (RandomKind::Uniform, DType::F32) => &kernel::RANDOM_UNIFORM_F32,
        (RandomKind::Uniform, DType::F16) => &kernel::RANDOM_UNIFORM_F16,
        (RandomKind::Uniform, DType::BF16) => &kernel::RANDOM_UNIFORM_BF16,
        (RandomKind::Normal, DType::F32) => &kernel::RANDOM_NORMAL_F32,
        (RandomKind::Normal, DType::F16) => &kernel::RANDOM_NORMAL_F16,
        (RandomKind::Normal, DType::BF16) => &kernel::RANDOM_NORMAL_BF16,
        (RandomKind::Bits, DType::I64) => &kernel::RANDOM_BITS,
        (_, other) => return Err(check.wrong_type("y", other)),
    };
    if key.dtype != DType::I64 {
        return Err(check.wrong_type("key", key.dtype));
    }
    check.tensor("key", key, 2)?;
    check.tensor("y", y, y.elements)?;
    if y.elements == 0 {
        return Ok(None);
    }
    let params = KeyedParams { y: y.at, count: y.elements, key: key.at };
    Ok(Some(Launch::new(kernel, [blocks(y.elements.div_ceil(2)), 1, 1], [THREADS, 1, 1], 0, &params)))
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PositionsParams {
    lens: u64,
    y: u64,
    count: u64,
    steps: u32,
    is_wide: u32,
}

/// y\[b, s\] = lens\[b\] + s: lens i32 or i64 `[rows]`, read when the launch runs; y i32 `[rows, steps]`. Sums wrap.
///
/// # Errors
/// [`LaunchError`].
pub fn positions(lens: View, y: View, rows: u64, steps: u64) -> Result<Option<Launch>, LaunchError> {
    let check = Check("positions");
    if !matches!(lens.dtype, DType::I32 | DType::I64) {
        return Err(check.wrong_type("lens", lens.dtype));
    }
    if y.dtype != DType::I32 {
        return Err(check.wrong_type("y", y.dtype));
    }
    let narrow = u32::try_from(steps).unwrap_or(u32::MAX);
    check.size("the number of steps", steps, narrow < 1 << 31, "under 2^31")?;
    let count = check.product("y", &[rows, steps])?;
    check.tensor("lens", lens, rows)?;
    check.tensor("y", y, count)?;
    if count == 0 {
        return Ok(None);
    }
    let is_wide = u32::from(lens.dtype == DType::I64);
    let params = PositionsParams { lens: lens.at, y: y.at, count, steps: narrow, is_wide };
    Ok(Some(Launch::new(&kernel::POSITIONS, [blocks(count), 1, 1], [THREADS, 1, 1], 0, &params)))
}
