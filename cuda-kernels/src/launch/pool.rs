//! The largest or the mean of windows.

use bytemuck::{Pod, Zeroable};

use super::floats;
use crate::kernel::{self, Launch};
use crate::view::{Check, LaunchError, View};

/// What becomes of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Its largest element, NaN if it has one; padding is none.
    Max,
    /// The mean of its elements.
    Average {
        /// Whether padding counts in the divisor; in the sum it is 0.
        count_padding: bool,
    },
}

/// The sizes of a pool over x `[planes, height, width]`.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    /// Images times channels.
    pub planes: u64,
    /// Height and width of a plane.
    pub size: [u64; 2],
    /// Rows and columns of a window.
    pub kernel: [u64; 2],
    /// Rows and columns from one window to the next.
    pub stride: [u64; 2],
    /// Rows and columns around a plane: top, left, bottom, right; each fewer than the window has.
    pub padding: [u64; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PoolParams {
    x: u64,
    y: u64,
    outputs: u64,
    size: [u32; 2],
    output_size: [u32; 2],
    kernel: [u32; 2],
    stride: [u32; 2],
    corner: [u32; 2],
    average: u32,
    count_padding: u32,
    lanes: u32,
    padding: u32,
}

const CHECK: Check = Check("pool");
const THREADS: u64 = 256;
const WARP: u64 = 32;
const MOST_SIZE: u64 = 1 << 28;

impl Pool {
    /// Height and width of a result.
    ///
    /// # Errors
    /// A stride of 0, padding that is not smaller than the window, or a window that is larger than the plane with its padding.
    pub fn output_size(&self) -> Result<[u64; 2], LaunchError> {
        let mut sizes = [0; 2];
        for axis in 0..2 {
            let (size, kernel, stride) = (self.size[axis], self.kernel[axis], self.stride[axis]);
            CHECK.size("height or width", size, (1..MOST_SIZE).contains(&size), "in 1..2^28")?;
            CHECK.size("kernel", kernel, (1..MOST_SIZE).contains(&kernel), "in 1..2^28")?;
            CHECK.size("stride", stride, (1..MOST_SIZE).contains(&stride), "in 1..2^28")?;
            let around = [self.padding[axis], self.padding[axis + 2]];
            for padding in around {
                CHECK.size("padding", padding, padding < kernel, "smaller than the window")?;
            }
            let padded = size + around[0] + around[1];
            CHECK.size("a window", kernel, kernel <= padded, "no larger than the plane with its padding")?;
            sizes[axis] = (padded - kernel) / stride + 1;
        }
        Ok(sizes)
    }
}

/// y `[planes, height, width]` by [`Pool::output_size`], of x's float type, from each window of x. Sums are in f32.
///
/// # Errors
/// [`LaunchError`].
pub fn pool(pooling: Pooling, pool: &Pool, x: View, y: View) -> Result<Option<Launch>, LaunchError> {
    let kernels = [&kernel::POOL_F32, &kernel::POOL_F16, &kernel::POOL_BF16];
    let kernel = floats::pick(CHECK, "x", x, kernels)?;
    let size = pool.output_size()?;
    let positions = size[0] * size[1];
    CHECK.size("positions", positions, positions < 1 << 31, "under 2^31")?;
    let window = pool.kernel[0] * pool.kernel[1];
    CHECK.size("a window", window, window < 1 << 31, "of under 2^31 elements")?;
    CHECK.same_type("y", y, x)?;
    CHECK.tensor("x", x, CHECK.product("x", &[pool.planes, pool.size[0], pool.size[1]])?)?;
    let outputs = CHECK.product("y", &[pool.planes, positions])?;
    CHECK.tensor("y", y, outputs)?;
    if outputs == 0 {
        return Ok(None);
    }
    let narrow = |pair: [u64; 2]| pair.map(|n| n as u32);
    // A thread alone would read a large window for long, and far from its neighbours.
    let lanes = if window >= WARP { WARP } else { 1 };
    let blocks = outputs.div_ceil(THREADS / lanes);
    CHECK.size("y's elements", outputs, blocks < 1 << 31, "fewer, for windows of this size")?;
    let params = PoolParams {
        x: x.at,
        y: y.at,
        outputs,
        size: narrow(pool.size),
        output_size: narrow(size),
        kernel: narrow(pool.kernel),
        stride: narrow(pool.stride),
        corner: [pool.padding[0] as u32, pool.padding[1] as u32],
        average: u32::from(pooling != Pooling::Max),
        count_padding: u32::from(pooling == Pooling::Average { count_padding: true }),
        lanes: lanes as u32,
        padding: 0,
    };
    Ok(Some(Launch::new(kernel, [blocks as u32, 1, 1], [THREADS as u32, 1, 1], 0, &params)))
}
