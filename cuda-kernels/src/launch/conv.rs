//! Convolutions in two dimensions.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use genie_graph::DType;

use super::elementwise::Unary;
use super::floats;
use crate::kernel::{self, Launch};
use crate::view::{Check, LaunchError, View};

/// The sizes of a convolution of x `[images, channels, height, width]` with a weight
/// `[outputs, channels / groups, rows, columns]`.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Images.
    pub images: u64,
    /// Channels of an image.
    pub channels: u64,
    /// Height and width of an image.
    pub size: [u64; 2],
    /// Channels of a result.
    pub outputs: u64,
    /// Rows and columns of a window.
    pub kernel: [u64; 2],
    /// Rows and columns from one window to the next.
    pub stride: [u64; 2],
    /// Rows and columns of zeros around an image: top, left, bottom, right.
    pub padding: [u64; 4],
    /// Rows and columns from one element of a window to the next.
    pub dilation: [u64; 2],
    /// Groups: each output sees the channels of its own.
    pub groups: u64,
}

/// What a convolution reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Tensors {
    /// Float.
    pub x: View,
    /// Float, of any type.
    pub weight: View,
    /// `[outputs]`, float, of any type.
    pub bias: Option<View>,
    /// `[images, outputs, height, width]` by [`Conv::output_size`], of x's type; not x.
    pub y: View,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ConvParams {
    x: u64,
    weight: u64,
    bias: u64,
    y: u64,
    images: u64,
    channels: u32,
    size: [u32; 2],
    outputs: u32,
    output_size: [u32; 2],
    kernel: [u32; 2],
    stride: [u32; 2],
    corner: [u32; 2],
    dilation: [u32; 2],
    groups: u32,
    weight_type: u32,
    bias_type: u32,
    activation: u32,
    tile: [u32; 3],
    weight_packs: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WindowsParams {
    conv: ConvParams,
    to: u64,
    first: u64,
    count: u64,
    group: u32,
    padding: u32,
}

const CHECK: Check = Check("conv2d");
const THREADS: u64 = 256;
/// Positions of a block of `conv_tiled` and `conv_matrix`, and its outputs, or half of them.
const TILE: u64 = 64;
/// Outputs of a block of `conv_planes`.
const TILE_OUTPUTS: u64 = 1024;
/// Groups with fewer outputs would leave most of a tile empty.
const FEW_OUTPUTS: u64 = 16;
/// Shared memory that a block has without being asked for.
const MOST_SHARED: u64 = 48 << 10;
/// Images are smaller than this, with padding: half of `OUTSIDE` in `conv.cu`.
const MOST_SIZE: u64 = 1 << 28;

impl Conv {
    /// Height and width of a result.
    ///
    /// # Errors
    /// A stride or dilation of 0, or a window that is larger than the image with its padding.
    pub fn output_size(&self) -> Result<[u64; 2], LaunchError> {
        let mut sizes = [0; 2];
        for axis in 0..2 {
            let (kernel, stride, dilation) = (self.kernel[axis], self.stride[axis], self.dilation[axis]);
            let padded = [self.size[axis], self.padding[axis], self.padding[axis + 2]]
                .into_iter()
                .try_fold(0_u64, u64::checked_add)
                .unwrap_or(u64::MAX);
            CHECK.size("an image with its padding", padded, padded < MOST_SIZE, "under 2^28")?;
            CHECK.size("kernel", kernel, (1..MOST_SIZE).contains(&kernel), "in 1..2^28")?;
            CHECK.size("stride", stride, (1..MOST_SIZE).contains(&stride), "in 1..2^28")?;
            CHECK.size("dilation", dilation, (1..MOST_SIZE).contains(&dilation), "in 1..2^28")?;
            let window = dilation * (kernel - 1) + 1;
            CHECK.size("a window", window, window <= padded, "no larger than the image with its padding")?;
            sizes[axis] = (padded - window) / stride + 1;
        }
        Ok(sizes)
    }

    /// Checks the sizes, and gives those of the result with the elements that an output sums.
    fn checked(&self) -> Result<([u64; 2], u64), LaunchError> {
        let small = |n: u64| (1..1 << 31).contains(&n);
        CHECK.size("groups", self.groups, small(self.groups), "in 1..2^31")?;
        for (what, count) in [("channels", self.channels), ("outputs", self.outputs)] {
            let divided = small(count) && count.is_multiple_of(self.groups);
            CHECK.size(what, count, divided, "a multiple of the groups, in 1..2^31")?;
        }
        let size = self.output_size()?;
        let positions = size[0] * size[1];
        CHECK.size("positions", positions, positions < 1 << 31, "under 2^31")?;
        let depth = CHECK.product("a window", &[self.channels / self.groups, self.kernel[0], self.kernel[1]])?;
        CHECK.size("a window", depth, depth < 1 << 31, "of under 2^31 elements")?;
        Ok((size, depth))
    }

    fn check_x(&self, x: View) -> Result<(), LaunchError> {
        let elements = [self.images, self.channels, self.size[0], self.size[1]];
        CHECK.tensor("x", x, CHECK.product("x", &elements)?)
    }

    fn params(&self, x: View, output_size: [u64; 2]) -> ConvParams {
        let narrow = |pair: [u64; 2]| pair.map(|n| n as u32);
        ConvParams {
            x: x.at,
            images: self.images,
            channels: self.channels as u32,
            size: narrow(self.size),
            outputs: self.outputs as u32,
            output_size: narrow(output_size),
            kernel: narrow(self.kernel),
            stride: narrow(self.stride),
            corner: [self.padding[0] as u32, self.padding[1] as u32],
            dilation: narrow(self.dilation),
            groups: self.groups as u32,
            ..ConvParams::zeroed()
        }
    }

    /// The part of a plane's outputs, and how many planes, that a block of `conv_planes` makes, with the bytes of
    /// shared memory that it takes: none, if not even one output's window fits.
    fn tile(&self, [height, width]: [u64; 2], sms: u32) -> Option<([u64; 3], u64)> {
        // Tiles of equal size leave less of the last one empty.
        let even = |size: u64, most: u64| size.div_ceil(size.div_ceil(most));
        let across = even(width, 32);
        let down = even(height, TILE_OUTPUTS / across);
        let planes = (self.images * self.outputs / (2 * u64::from(sms).max(1))).max(1);
        let mut tile = [down, across, (TILE_OUTPUTS / (down * across)).min(planes)];
        let bytes = |tile: [u64; 3]| {
            let side = |axis: usize| {
                let windows = (tile[axis] - 1).checked_mul(self.stride[axis])?;
                windows.checked_add((self.kernel[axis] - 1) * self.dilation[axis] + 1)
            };
            let elements = side(0)?.checked_mul(side(1)?)?.checked_add(self.kernel[0] * self.kernel[1])?;
            elements.checked_mul(4 * tile[2]).filter(|&bytes| bytes <= MOST_SHARED)
        };
        loop {
            if let Some(bytes) = bytes(tile) {
                return Some((tile, bytes));
            }
            // Planes first: they share nothing.
            let shrunk = [2, 0, 1].into_iter().find(|&axis| tile[axis] > 1)?;
            tile[shrunk] = tile[shrunk].div_ceil(2);
        }
    }
}

/// y = activation(conv(x) + bias), as [`Conv`] has the sizes. Products and sums are in f32. The activation is one of
/// [`Unary`]'s first six. `sms`: multiprocessors of the GPU.
///
/// # Errors
/// [`LaunchError`].
pub fn conv2d(
    conv: &Conv,
    tensors: Tensors,
    activation: Option<Unary>,
    sms: u32,
) -> Result<Option<Launch>, LaunchError> {
    let Tensors { x, weight, bias, y } = tensors;
    let (size, depth) = conv.checked()?;
    let positions = size[0] * size[1];
    floats::code(CHECK, "x", x)?;
    CHECK.same_type("y", y, x)?;
    conv.check_x(x)?;
    CHECK.tensor("weight", weight, CHECK.product("weight", &[conv.outputs, depth])?)?;
    CHECK.tensor("y", y, CHECK.product("y", &[conv.images, conv.outputs, positions])?)?;
    let mut params = conv.params(x, size);
    (params.weight, params.weight_type) = (weight.at, floats::code(CHECK, "weight", weight)?);
    if let Some(bias) = bias {
        CHECK.tensor("bias", bias, conv.outputs)?;
        (params.bias, params.bias_type) = (bias.at, floats::code(CHECK, "bias", bias)?);
    }
    params.y = y.at;
    params.activation = code(CHECK, activation)?;
    if y.elements == 0 {
        return Ok(None);
    }
    let group_outputs = conv.outputs / conv.groups;
    if group_outputs < FEW_OUTPUTS
        && let Some((tile, shared)) = conv.tile(size, sms)
    {
        params.tile = tile.map(|n| n as u32);
        let planes = (conv.images * conv.outputs).div_ceil(tile[2]);
        let tiles = size[0].div_ceil(tile[0]) * size[1].div_ceil(tile[1]);
        if planes < 1 << 31 && tiles < 1 << 16 {
            let kernels = [&kernel::CONV_PLANES_F32, &kernel::CONV_PLANES_F16, &kernel::CONV_PLANES_BF16];
            let grid = [planes as u32, tiles as u32, 1];
            let kernel = floats::pick(CHECK, "x", x, kernels)?;
            return Ok(Some(Launch::new(kernel, grid, [THREADS as u32, 1, 1], shared as u32, &params)));
        }
    }
    // Matrix units, where x and the weight are of the same type and they have it.
    let matrix = |large| match (x.dtype, weight.dtype, large) {
        (DType::F16, DType::F16, false) => Some(&kernel::CONV_MATRIX_64_F16),
        (DType::F16, DType::F16, true) => Some(&kernel::CONV_MATRIX_128_F16),
        (DType::BF16, DType::BF16, false) => Some(&kernel::CONV_MATRIX_64_BF16),
        (DType::BF16, DType::BF16, true) => Some(&kernel::CONV_MATRIX_128_BF16),
        _ => None,
    };
    params.weight_packs = u32::from(weight.is_aligned(16) && depth.is_multiple_of(8));
    let columns = CHECK.product("images * positions", &[conv.images, positions])?.div_ceil(TILE);
    // Where larger blocks would leave multiprocessors without one, smaller ones end sooner.
    let large = group_outputs > TILE
        && columns.saturating_mul(group_outputs.div_ceil(2 * TILE)).saturating_mul(conv.groups) >= sms.into();
    let (kernel, tile, threads) = match matrix(large) {
        Some(kernel) if large => (kernel, 2 * TILE, THREADS),
        Some(kernel) => (kernel, TILE, THREADS / 2),
        None => {
            let kernels = [&kernel::CONV_TILED_F32, &kernel::CONV_TILED_F16, &kernel::CONV_TILED_BF16];
            (floats::pick(CHECK, "x", x, kernels)?, TILE, THREADS)
        }
    };
    let rows = group_outputs.div_ceil(tile);
    CHECK.size("images * positions", columns * TILE, columns < 1 << 31, "under 2^37")?;
    CHECK.size("outputs of a group", group_outputs, rows < 1 << 16, "under 2^22")?;
    CHECK.size("groups", conv.groups, conv.groups < 1 << 16, "under 2^16, for windows of this size")?;
    let grid = [columns as u32, rows as u32, conv.groups as u32];
    Ok(Some(Launch::new(kernel, grid, [threads as u32, 1, 1], 0, &params)))
}

/// A piece of the matrix of windows: some images, a group, and some of the result's positions, counted row by row.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Images.
    pub images: Range<u64>,
    /// The group.
    pub group: u64,
    /// Positions.
    pub positions: Range<u64>,
}

/// The windows of a piece as columns, in `to` `[images, channels / groups * rows * columns, positions]` of x's type.
/// The weight of the piece's group, `[outputs / groups, channels / groups * rows * columns]`, times an image's columns
/// is the group's part of its result, at these positions. A window of one element with stride 1 and no padding needs
/// none of this: x itself is that matrix.
///
/// # Errors
/// [`LaunchError`].
pub fn windows(conv: &Conv, piece: &Piece, x: View, to: View) -> Result<Option<Launch>, LaunchError> {
    let (size, depth) = conv.checked()?;
    let Piece { images, group, positions } = piece;
    floats::code(CHECK, "x", x)?;
    conv.check_x(x)?;
    CHECK.same_type("the windows", to, x)?;
    CHECK.size("the last image", images.end, images.end <= conv.images, "no more than there are")?;
    CHECK.size("the group", *group, *group < conv.groups, "less than the groups")?;
    CHECK.size("the last position", positions.end, positions.end <= size[0] * size[1], "no more than there are")?;
    let (image_count, count) = (images.end.saturating_sub(images.start), positions.end.saturating_sub(positions.start));
    CHECK.size("images of a piece", image_count, image_count < 1 << 16, "under 2^16")?;
    CHECK.tensor("the windows", to, CHECK.product("the windows", &[image_count, depth, count])?)?;
    if to.elements == 0 {
        return Ok(None);
    }
    let image_bytes = conv.channels * conv.size[0] * conv.size[1] * x.dtype.bytes();
    let moved = View { at: x.at + images.start * image_bytes, ..x };
    let params = WindowsParams {
        conv: conv.params(moved, size),
        to: to.at,
        first: positions.start,
        count,
        group: *group as u32,
        padding: 0,
    };
    let wide = floats::wide(x.dtype);
    let packed = count.is_multiple_of(wide) && to.is_aligned(16);
    let kernel = match (x.dtype.bytes(), packed) {
        (2, false) => &kernel::WINDOWS_2,
        (2, true) => &kernel::WINDOWS_WIDE_2,
        (_, false) => &kernel::WINDOWS_4,
        (_, true) => &kernel::WINDOWS_WIDE_4,
    };
    let items = if packed { count / wide } else { count };
    let grid = [items.div_ceil(THREADS) as u32, depth.min(65_535) as u32, image_count as u32];
    Ok(Some(Launch::new(kernel, grid, [THREADS as u32, 1, 1], 0, &params)))
}

/// An activation's code in `conv.cuh`.
pub(super) fn code(check: Check, activation: Option<Unary>) -> Result<u32, LaunchError> {
    let Some(function) = activation else { return Ok(u32::MAX) };
    let code = function as u32;
    let fits = code <= Unary::Tanh as u32;
    check.size("the activation's code", code.into(), fits, "that of relu, silu, gelu, sigmoid or tanh")?;
    Ok(code)
}
