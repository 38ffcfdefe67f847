//! Elementwise functions, and what stands between the products of a layer.

use bytemuck::{Pod, Zeroable};
use genie_graph::DType;

use crate::kernel::{self, Kernel, Launch};
use crate::view::{Check, LaunchError, View};

/// A function of one number. The codes are those of `elementwise.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Unary {
    /// max(x, 0); NaN stays.
    Relu = 0,
    /// x * sigmoid(x).
    Silu = 1,
    /// x Phi(x), by the error function.
    Gelu = 2,
    /// x Phi(x), by the hyperbolic tangent.
    GeluTanh = 3,
    /// 1 / (1 + e^-x).
    Sigmoid = 4,
    /// Hyperbolic tangent.
    Tanh = 5,
    /// e^x.
    Exp = 6,
    /// Natural logarithm.
    Log = 7,
    /// Square root.
    Sqrt = 8,
    /// |x|; integers wrap.
    Abs = 9,
    /// -x; integers wrap.
    Neg = 10,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct UnaryParams {
    x: u64,
    y: u64,
    count: u64,
    function: u32,
    padding: u32,
}

/// Threads a block of every kernel that treats elements alike.
pub(crate) const THREADS: u32 = 256;
/// Blocks past which the threads of a grid take several turns: enough to fill any GPU.
const MOST_BLOCKS: u64 = 4096;

/// y = function(x), elementwise, of one type: floats, and for [`Unary::Abs`] and [`Unary::Neg`] i64 and i32. In place is allowed.
///
/// # Errors
/// [`LaunchError`].
pub fn unary(function: Unary, x: View, y: View) -> Result<Option<Launch>, LaunchError> {
    let check = Check("unary");
    let kernel: &'static Kernel = match x.dtype {
        DType::F32 => &kernel::UNARY_F32,
        DType::F16 => &kernel::UNARY_F16,
        DType::BF16 => &kernel::UNARY_BF16,
        DType::I64 if matches!(function, Unary::Abs | Unary::Neg) => &kernel::UNARY_I64,
        DType::I32 if matches!(function, Unary::Abs | Unary::Neg) => &kernel::UNARY_I32,
        other => return Err(check.wrong_type("x", other)),
    };
    check.same_type("y", y, x)?;
    check.tensor("x", x, x.elements)?;
    check.tensor("y", y, x.elements)?;
    if x.elements == 0 {
        return Ok(None);
    }
    let params = UnaryParams { x: x.at, y: y.at, count: x.elements, function: function as u32, padding: 0 };
    let per_thread = 16 / x.dtype.bytes();
    Ok(Some(Launch::new(kernel, [blocks(x.elements.div_ceil(per_thread)), 1, 1], [THREADS, 1, 1], 0, &params)))
}

/// A function that follows a layer. The codes are those of `functions.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Activation {
    /// x.
    None = 11,
    /// See [`Unary::Relu`].
    Relu = Unary::Relu as u32,
    /// See [`Unary::Silu`].
    Silu = Unary::Silu as u32,
    /// See [`Unary::Gelu`].
    Gelu = Unary::Gelu as u32,
    /// See [`Unary::GeluTanh`].
    GeluTanh = Unary::GeluTanh as u32,
    /// See [`Unary::Sigmoid`].
    Sigmoid = Unary::Sigmoid as u32,
    /// See [`Unary::Tanh`].
    Tanh = Unary::Tanh as u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GatedParams {
    x: u64,
    gate: u64,
    y: u64,
    count: u64,
    function: u32,
    padding: u32,
}

/// y = activation(x) * gate, elementwise, of one float type; computed in f32 and rounded once. In place of either is allowed.
///
/// # Errors
/// [`LaunchError`].
pub fn gated(activation: Activation, x: View, gate: View, y: View) -> Result<Option<Launch>, LaunchError> {
    let check = Check("gated");
    let kernel = match x.dtype {
        DType::F32 => &kernel::GATED_F32,
        DType::F16 => &kernel::GATED_F16,
        DType::BF16 => &kernel::GATED_BF16,
        other => return Err(check.wrong_type("x", other)),
    };
    for (what, view) in [("x", x), ("gate", gate), ("y", y)] {
        check.same_type(what, view, x)?;
        check.tensor(what, view, x.elements)?;
    }
    if x.elements == 0 {
        return Ok(None);
    }
    let function = activation as u32;
    let params = GatedParams { x: x.at, gate: gate.at, y: y.at, count: x.elements, function, padding: 0 };
    let grid = blocks(x.elements.div_ceil(16 / x.dtype.bytes()));
    Ok(Some(Launch::new(kernel, [grid, 1, 1], [THREADS, 1, 1], 0, &params)))
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BiasActivationParams {
    x: u64,
    bias: u64,
    residual: u64,
    y: u64,
    rows: u64,
    width: u32,
    packs: u32,
    function: u32,
    bias_type: u32,
}

/// y = activation(x + bias) + residual: x, residual and y `[rows, width]` of one float type, bias `[width]` of any; computed in f32
/// and rounded once. In place of x or residual is allowed.
///
/// # Errors
/// [`LaunchError`].
pub fn bias_activation(
    activation: Activation,
    x: View,
    bias: Option<View>,
    residual: Option<View>,
    y: View,
    rows: u64,
    width: u64,
) -> Result<Option<Launch>, LaunchError> {
    let check = Check("bias_activation");
    let kernel = match x.dtype {
        DType::F32 => &kernel::BIAS_ACTIVATION_F32,
        DType::F16 => &kernel::BIAS_ACTIVATION_F16,
        DType::BF16 => &kernel::BIAS_ACTIVATION_BF16,
        other => return Err(check.wrong_type("x", other)),
    };
    let count = check.product("x", &[rows, width])?;
    for (what, view) in [("x", Some(x)), ("residual", residual), ("y", Some(y))] {
        if let Some(view) = view {
            check.same_type(what, view, x)?;
            check.tensor(what, view, count)?;
        }
    }
    if let Some(bias) = bias {
        if !bias.dtype.is_float() {
            return Err(check.wrong_type("bias", bias.dtype));
        }
        check.tensor("bias", bias, width)?;
    }
    if count == 0 {
        return Ok(None);
    }
    let narrow = u32::try_from(width).unwrap_or(u32::MAX);
    check.size("the width", width, narrow < 1 << 31, "under 2^31")?;
    let packs = narrow.div_ceil(16 / x.dtype.bytes() as u32);
    let params = BiasActivationParams {
        x: x.at,
        bias: bias.map_or(0, |view| view.at),
        residual: residual.map_or(0, |view| view.at),
        y: y.at,
        rows,
        width: narrow,
        packs,
        function: activation as u32,
        bias_type: bias.map_or(0, |view| view.dtype as u32),
    };
    // Threads along a row up to all of a block, and the others on further rows.
    let along = packs.next_power_of_two().min(THREADS);
    let (down, across) = (THREADS / along, packs.div_ceil(along));
    let most = (MOST_BLOCKS as u32 / across).max(1);
    let turns = rows.div_ceil(u64::from(down)).min(u64::from(most)) as u32;
    Ok(Some(Launch::new(kernel, [across, turns, 1], [along, down, 1], 0, &params)))
}

/// Blocks for a grid-stride loop over `items`.
pub(crate) fn blocks(items: u64) -> u32 {
    items.div_ceil(u64::from(THREADS)).clamp(1, MOST_BLOCKS) as u32
}
