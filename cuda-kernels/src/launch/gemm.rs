//! Products of many rows, one matrix or a batch of them.

use bytemuck::{Pod, Zeroable};
use genie_graph::{DType, LinearLayout};

use super::epilogue::{Epilogue, EpilogueParams, type_code};
use super::weight::Weight;
use super::workspace::{self, Machine};
use crate::kernel::{self, Kernel, Launch};
use crate::view::{Address, Check, LaunchError, View};

/// `c[i, m, n] = epilogue(sum over k of a[i, m, k] * b[i, n, k])` for each matrix i of a batch, with f32 sums.
///
/// For a of f16 or bf16, elements of b are rounded to a's type; for f32 the products are those of f32. Sums are taken in the
/// order of k; where there are few tiles, in several parts that are added in their order.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// `[m, k]` each, a float type. Must not overlap `c`.
    pub a: View,
    /// `[n, k]` or `[k, n]` each: any float type, or one quantised matrix.
    pub b: Weight,
    /// `[batch, m, n]`, a float type.
    pub c: View,
    /// What is done to the sums.
    pub epilogue: Epilogue,
    /// Rows of each matrix of a and c.
    pub m: u64,
    /// Columns of each matrix of c.
    pub n: u64,
    /// Elements of each sum.
    pub k: u64,
    /// Matrices of the batch.
    pub batch: Batch,
}

/// How the matrices of a batch lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// How many there are.
    pub count: u64,
    /// Whether all take the same matrix of a; otherwise they lie one after another.
    pub same_a: bool,
    /// Whether all take the same matrix of b.
    pub same_b: bool,
}

impl Batch {
    /// One matrix.
    pub const ONE: Self = Self { count: 1, same_a: false, same_b: false };
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GemmParams {
    a: Address,
    b: Address,
    c: Address,
    epilogue: EpilogueParams,
    m: u64,
    n: u64,
    k: u64,
    a_stride: u64,
    b_stride: u64,
    partial: Address,
    counters: Address,
    tiles_m: u32,
    tiles_n: u32,
    part_steps: u32,
    c_type: u32,
    b_format: u32,
    aligned: u32,
}

const ALIGNED_A: u32 = 1;
const ALIGNED_B: u32 = 2;

/// Elements of a sum that shared memory holds at a time.
const DEPTH: u64 = 32;
/// Steps of so many that are worth a block.
const LEAST_STEPS: u64 = 4;
const THREADS: u32 = 128;

/// A kernel and its tile of `tile` by `tile` sums.
struct Tile {
    kernel: &'static Kernel,
    tile: u64,
    shared: u32,
}

/// How a product is cut up.
struct Plan {
    tile: Tile,
    tiles_m: u64,
    tiles_n: u64,
    /// Of the whole batch.
    tiles: u64,
    part_steps: u64,
    parts: u64,
}

const CHECK: Check = Check("gemm");

impl Gemm {
    /// Bytes of workspace that the launch needs, of which the first [`workspace::ZEROED_BYTES`] must be zero before its first use;
    /// 0 where it needs none.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn workspace_bytes(&self, machine: Machine) -> Result<u64, LaunchError> {
        self.plan(machine)?.workspace_bytes()
    }

    /// The launch.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn launch(&self, workspace: View, machine: Machine) -> Result<Option<Launch>, LaunchError> {
        let &Self { a, b, c, m, n, k, batch, .. } = self;
        let a_count = if batch.same_a { batch.count.min(1) } else { batch.count };
        let b_count = if batch.same_b { batch.count.min(1) } else { batch.count };
        if !c.dtype.is_float() {
            return Err(CHECK.wrong_type("c", c.dtype));
        }
        CHECK.tensor("a", a, CHECK.product("a", &[a_count, m, k])?)?;
        CHECK.tensor("c", c, CHECK.product("c", &[batch.count, m, n])?)?;
        b.check(CHECK, b_count, n, k)?;
        let one = b.format.is_none() || b_count <= 1;
        CHECK.size("batch", batch.count, one, "of one matrix where b is quantised")?;
        let epilogue = self.epilogue.params(CHECK, c, n)?;
        let plan = self.plan(machine)?;
        if c.elements == 0 {
            return Ok(None);
        }
        let (counters, partial) = workspace::addresses(CHECK, workspace, plan.workspace_bytes()?)?;

        let in_packs = |view: View, row: u64| view.is_aligned(16) && (row * view.dtype.bytes()).is_multiple_of(16);
        let mut aligned = 0;
        if in_packs(a, k) {
            aligned |= ALIGNED_A;
        }
        if in_packs(b.view, if b.layout == LinearLayout::OutIn { k } else { n }) {
            aligned |= ALIGNED_B;
        }
        let params = GemmParams {
            a: a.at,
            b: b.view.at,
            c: c.at,
            epilogue,
            m,
            n,
            k,
            a_stride: if batch.same_a { 0 } else { m * k },
            b_stride: if batch.same_b || b_count <= 1 { 0 } else { n * k },
            partial,
            counters,
            tiles_m: plan.tiles_m as u32,
            tiles_n: plan.tiles_n as u32,
            part_steps: plan.part_steps as u32,
            c_type: type_code(c.dtype),
            b_format: b.code(),
            aligned,
        };
        let grid = [plan.tiles as u32, plan.parts as u32, 1];
        Ok(Some(Launch::new(plan.tile.kernel, grid, [THREADS, 1, 1], plan.tile.shared, &params)))
    }

    fn plan(&self, machine: Machine) -> Result<Plan, LaunchError> {
        machine.check(CHECK)?;
        let tile = self.tile(machine.sms)?;
        let (tiles_m, tiles_n) = (self.m.div_ceil(tile.tile), self.n.div_ceil(tile.tile));
        let tiles = CHECK.product("tiles", &[tiles_m, tiles_n, self.batch.count])?;
        CHECK.size("tiles", tiles, tiles < 1 << 31, "no more than a grid has blocks")?;
        let steps = self.k.div_ceil(DEPTH).max(1);
        CHECK.size("k", self.k, steps < 1 << 31, "under 2^36")?;
        let part_steps = steps.div_ceil(machine.splits(tiles)).max(LEAST_STEPS);
        Ok(Plan { tile, tiles_m, tiles_n, tiles, part_steps, parts: steps.div_ceil(part_steps) })
    }

    fn tile(&self, sms: u32) -> Result<Tile, LaunchError> {
        let out_in = self.b.layout == LinearLayout::OutIn;
        let small = |kernel| Ok(Tile { kernel, tile: 64, shared: 32 << 10 });
        // Its shared memory is the kernel's own.
        let scalar = |kernel| Ok(Tile { kernel, tile: 64, shared: 0 });
        let same = self.b.format.is_none() && self.b.view.dtype == self.a.dtype;
        match (self.a.dtype, out_in) {
            (DType::F32, true) => return scalar(&kernel::GEMM_F32_OUT_IN),
            (DType::F32, false) => return scalar(&kernel::GEMM_F32_IN_OUT),
            (DType::F16, true) if !same => return small(&kernel::GEMM_F16_OUT_IN_CONVERT),
            (DType::F16, false) if !same => return small(&kernel::GEMM_F16_IN_OUT_CONVERT),
            (DType::BF16, true) if !same => return small(&kernel::GEMM_BF16_OUT_IN_CONVERT),
            (DType::BF16, false) if !same => return small(&kernel::GEMM_BF16_IN_OUT_CONVERT),
            (DType::F16 | DType::BF16, _) => {}
            (other, _) => return Err(CHECK.wrong_type("a", other)),
        }
        // Large tiles read less, but only if every multiprocessor has one.
        let tiles = self.m.div_ceil(128).saturating_mul(self.n.div_ceil(128)).saturating_mul(self.batch.count);
        if self.m > 64 && self.n > 64 && tiles >= u64::from(sms) {
            let kernel = match (self.a.dtype, out_in) {
                (DType::F16, true) => &kernel::GEMM_F16_OUT_IN_128,
                (DType::F16, false) => &kernel::GEMM_F16_IN_OUT_128,
                (_, true) => &kernel::GEMM_BF16_OUT_IN_128,
                (_, false) => &kernel::GEMM_BF16_IN_OUT_128,
            };
            return Ok(Tile { kernel, tile: 128, shared: 64 << 10 });
        }
        small(match (self.a.dtype, out_in) {
            (DType::F16, true) => &kernel::GEMM_F16_OUT_IN_64,
            (DType::F16, false) => &kernel::GEMM_F16_IN_OUT_64,
            (_, true) => &kernel::GEMM_BF16_OUT_IN_64,
            (_, false) => &kernel::GEMM_BF16_IN_OUT_64,
        })
    }
}

impl Plan {
    fn workspace_bytes(&self) -> Result<u64, LaunchError> {
        workspace::bytes(CHECK, self.tiles, self.parts, self.tile.tile * self.tile.tile)
    }
}
