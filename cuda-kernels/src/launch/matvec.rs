//! Products of a few rows with a weight that is read once: what a decode step is made of.

use bytemuck::{Pod, Zeroable};
use genie_graph::{DType, LinearLayout, QuantFormat};

use super::ahead::{Ahead, Part};
use super::epilogue::{Epilogue, EpilogueParams, Prologue, address, type_code};
use super::weight::Weight;
use super::workspace::{self, MOST_SPLITS, Machine, RESIDENT};
use crate::kernel::{self, Kernel, Launch};
use crate::view::{Address, Check, LaunchError, View};

/// `y[m, n] = epilogue(sum over k of prologue(x)[m, k] * weight[n, k])`, with f32 sums.
#[derive(Clone, Copy, Debug)]
pub struct Matvec {
    /// `[rows, k]`, a float type. Must not overlap `y`.
    pub x: View,
    /// The float type that elements of x are rounded to behind the prologue: x's own, or a narrower one. Of a weight's 16-bit type, it
    /// takes the matrix units.
    pub x_as: DType,
    /// `[rows, n]`, a float type.
    pub y: View,
    /// Any float type in either layout, or quantised.
    pub weight: Weight,
    /// A second weight, stored as the first: `y = activation(sum + bias) * (gate's sum + gate's bias)`, then the rest of the
    /// epilogue.
    pub gate: Option<Gate>,
    /// What is done to x's rows first; x itself stays as it is.
    pub prologue: Prologue,
    /// What is done to the sums.
    pub epilogue: Epilogue,
    /// What is asked for meanwhile.
    pub ahead: Option<Ahead>,
    /// 1 to [`MOST_ROWS`].
    pub rows: u64,
    /// Columns of y.
    pub n: u64,
    /// Elements of each sum.
    pub k: u64,
}

/// The second half of a gated pair.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// Of the first weight's type, format and layout.
    pub weight: Weight,
    /// `[n]`, of the type of the epilogue's bias where there is one.
    pub bias: Option<View>,
}

/// Rows that [`Matvec::launches`] takes.
pub const MOST_ROWS: u64 = 2 * ROWS;
/// Rows that one launch takes.
const ROWS: u64 = 8;

const THREADS: u32 = 256;
pub(super) const WARPS: u64 = THREADS as u64 / 32;
/// Elements of a sum that are worth a block.
const LEAST_CHUNK: u64 = 256;
/// Twin of `HEAD_BYTES` in `matvec.cuh`.
const HEAD_BYTES: u64 = WARPS * 32 * 8 * 4 + 128;
/// Stages of a block that has a multiprocessor to itself.
const DEEP_STAGES: u64 = 8;
/// What a multiprocessor keeps of its shared memory for each block.
const RESERVED: u64 = 1024;

const ALIGNED_X: u32 = 1;
const ALIGNED_NORM: u32 = 2;
const ALIGNED_WEIGHT: u32 = 4;
const CONSTANT_WEIGHT: u32 = 8;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MatvecParams {
    x: Address,
    weight: Address,
    gate: Address,
    y: Address,
    partial: Address,
    counters: Address,
    epilogue: EpilogueParams,
    gate_bias: Address,
    norm_weight: Address,
    norm_bias: Address,
    n: u64,
    k: u64,
    rows: u32,
    chunk: u32,
    x_stride: u32,
    stages: u32,
    x_type: u32,
    norm: u32,
    norm_type: u32,
    aligned: u32,
    eps: f32,
    weight_type: u32,
    as_type: u32,
    y_type: u32,
    ahead: Address,
    ahead_pitch: u64,
    ahead_rows: u32,
    ahead_bytes: u32,
}

/// A kernel and its tile: twins of the constants of its policy.
#[derive(Clone, Copy)]
pub(super) struct Policy {
    kernel: &'static Kernel,
    pub(super) tile: u64,
    pub(super) step: u64,
    stage: u64,
    /// Sums of a tile.
    sums: u64,
    /// Bytes of an element of x in shared memory, and elements behind each row of it, against bank conflicts.
    x_bytes: u64,
    pad: u64,
    /// Bytes for each element of k besides, times 32.
    block_bytes: u64,
}

/// How a product is cut up. It depends on everything but the rows: a row's sums are the same with any others beside it.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) policy: Policy,
    tiles: u64,
    pub(super) chunk: u64,
    pub(super) splits: u64,
    pub(super) stages: u64,
}

const CHECK: Check = Check("matvec");

impl Matvec {
    /// Bytes of workspace that the launches need, of which the first [`workspace::ZEROED_BYTES`] must be zero before its first use;
    /// 0 where they need none.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn workspace_bytes(&self, machine: Machine) -> Result<u64, LaunchError> {
        self.plan(machine)?.workspace_bytes(self.gate.is_some())
    }

    /// The launches, one after another: the second has the rows from the ninth on, and reads the weight once more.
    ///
    /// A row's result does not depend, bit for bit, on the other rows or their number.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn launches(&self, workspace: View, machine: Machine) -> Result<[Option<Launch>; 2], LaunchError> {
        let &Self { x, y, weight, rows, n, k, .. } = self;
        CHECK.size("rows", rows, rows <= MOST_ROWS, "0 to 16")?;
        for (what, dtype) in [("x", x.dtype), ("what x is rounded to", self.x_as), ("y", y.dtype)] {
            if !dtype.is_float() {
                return Err(CHECK.wrong_type(what, dtype));
            }
        }
        CHECK.tensor("x", x, CHECK.product("x", &[rows, k])?)?;
        CHECK.tensor("y", y, CHECK.product("y", &[rows, n])?)?;
        weight.check(CHECK, 1, n, k)?;
        let epilogue = self.epilogue.params(CHECK, y, n)?;
        let norm = self.prologue.params(CHECK, k)?;
        let bias_type = self.check_gate(epilogue.bias_type)?;
        if rows == 0 || n == 0 {
            return Ok([None, None]);
        }
        let plan = self.plan(machine)?;
        let needed = plan.workspace_bytes(self.gate.is_some())?;
        let (counters, partial) = workspace::addresses(CHECK, workspace, needed)?;

        let mut aligned = 0;
        if x.is_aligned(16) && k % 8 == 0 {
            aligned |= ALIGNED_X;
        }
        if norm.aligned {
            aligned |= ALIGNED_NORM;
        }
        let row = if weight.layout == LinearLayout::OutIn { k } else { n };
        let begins = weight.view.is_aligned(16) && self.gate.is_none_or(|gate| gate.weight.view.is_aligned(16));
        if begins && (row * weight.view.dtype.bytes()) % 16 == 0 {
            aligned |= ALIGNED_WEIGHT;
        }
        // Rows that are not aligned are read through the L1 cache, of which nobody says that it forgets an earlier run's weights before a
        // kernel has waited: there another one may have lain.
        let past_l1 = aligned & ALIGNED_WEIGHT != 0 || weight.format.is_some();
        if past_l1 && weight.constant && self.gate.is_none_or(|gate| gate.weight.constant) {
            aligned |= CONSTANT_WEIGHT;
        }
        let params = MatvecParams {
            x: x.at,
            weight: weight.view.at,
            gate: address(self.gate.map(|gate| gate.weight.view)),
            y: y.at,
            partial,
            counters,
            epilogue: EpilogueParams { bias_type, ..epilogue },
            gate_bias: address(self.gate.and_then(|gate| gate.bias)),
            norm_weight: norm.weight,
            norm_bias: norm.bias,
            n,
            k,
            rows: rows.min(ROWS) as u32,
            chunk: plan.chunk as u32,
            x_stride: plan.x_stride() as u32,
            stages: plan.stages as u32,
            x_type: type_code(x.dtype),
            norm: norm.norm,
            norm_type: norm.dtype,
            aligned,
            eps: norm.eps,
            weight_type: weight.code(),
            as_type: type_code(self.x_as),
            y_type: type_code(y.dtype),
            ahead: 0,
            ahead_pitch: 0,
            ahead_rows: 0,
            ahead_bytes: 0,
        };
        let rest = (rows > ROWS).then(|| MatvecParams {
            x: x.at + ROWS * k * x.dtype.bytes(),
            y: y.at + ROWS * n * y.dtype.bytes(),
            epilogue: params.epilogue.behind(ROWS * n),
            rows: (rows - ROWS) as u32,
            ..params
        });
        let (first, rest) = match rest {
            Some(rest) => (params, Some(self.asking(rest)?)),
            None => (self.asking(params)?, None),
        };
        let launch = |params: MatvecParams| plan.launch(machine, &params);
        Ok([Some(launch(first)?), rest.map(launch).transpose()?])
    }

    /// The same with what is asked for meanwhile.
    fn asking(&self, params: MatvecParams) -> Result<MatvecParams, LaunchError> {
        let Some(asked) = self.ahead else { return Ok(params) };
        let Some(ahead) = asked.address(CHECK)? else { return Ok(params) };
        let Part { pitch: ahead_pitch, rows: ahead_rows, bytes: ahead_bytes, .. } = asked.part;
        Ok(MatvecParams { ahead, ahead_pitch, ahead_rows, ahead_bytes, ..params })
    }

    /// Bytes of shared memory of the first launch's blocks.
    pub(super) fn shared(&self, plan: &Plan) -> u64 {
        plan.shared(self.rows.min(ROWS))
    }

    /// The type of the biases, which is `of_bias` where the epilogue has one.
    fn check_gate(&self, of_bias: u32) -> Result<u32, LaunchError> {
        let Some(gate) = self.gate else { return Ok(of_bias) };
        if (gate.weight.format, gate.weight.layout) != (self.weight.format, self.weight.layout) {
            return Err(CHECK.wrong_type("gate of another format or layout", gate.weight.view.dtype));
        }
        CHECK.same_type("gate", gate.weight.view, self.weight.view)?;
        gate.weight.check(CHECK, 1, self.n, self.k)?;
        let Some(bias) = gate.bias else { return Ok(of_bias) };
        CHECK.tensor("gate's bias", bias, self.n)?;
        let fits = bias.dtype.is_float() && self.epilogue.bias.is_none_or(|other| other.dtype == bias.dtype);
        if fits { Ok(type_code(bias.dtype)) } else { Err(CHECK.wrong_type("gate's bias", bias.dtype)) }
    }

    fn policy(&self) -> Result<Policy, LaunchError> {
        if let Some(format) = self.weight.format {
            let (kernel, stage, block_bytes) = match format {
                QuantFormat::Q8_0 => (&kernel::MATVEC_Q8_0, 16 * 160, 0),
                QuantFormat::Q4_0 => (&kernel::MATVEC_Q4_0, 16 * 96, 0),
                // The sums of x over each block.
                QuantFormat::Q4_1 => (&kernel::MATVEC_Q4_1, 16 * 96, ROWS * 4),
            };
            // As many bf16 as hold an element.
            let x_bytes = match self.x_as {
                DType::F32 => 6,
                DType::F16 => 4,
                _ => 2,
            };
            return Ok(Policy { kernel, tile: 16, step: 128, stage, sums: 128, x_bytes, pad: 32, block_bytes });
        }
        let out_in = Policy {
            kernel: &kernel::MATVEC_F16_OUT_IN,
            tile: 32,
            step: 32,
            stage: 2048,
            sums: 256,
            x_bytes: 2,
            pad: 32,
            block_bytes: 0,
        };
        let in_out = Policy { tile: 64, step: 16, sums: 512, pad: 16, ..out_in };
        let scalar = Policy { x_bytes: 4, pad: 0, ..out_in };
        let wide = 16 / self.weight.view.dtype.bytes();
        let scalar_out_in = Policy { tile: 4, step: 32 * wide, sums: 32, ..scalar };
        let scalar_in_out = Policy { tile: 32 * wide, step: 4, sums: 32 * wide * ROWS, ..scalar };
        let (policy, kernel) = match (self.weight.layout, self.weight.view.dtype, self.x_as) {
            (LinearLayout::OutIn, DType::F16, DType::F16) => (out_in, &kernel::MATVEC_F16_OUT_IN),
            (LinearLayout::InOut, DType::F16, DType::F16) => (in_out, &kernel::MATVEC_F16_IN_OUT),
            (LinearLayout::OutIn, DType::BF16, DType::BF16) => (out_in, &kernel::MATVEC_BF16_OUT_IN),
            (LinearLayout::InOut, DType::BF16, DType::BF16) => (in_out, &kernel::MATVEC_BF16_IN_OUT),
            (LinearLayout::OutIn, DType::F32, _) => (scalar_out_in, &kernel::MATVEC_SCALAR_F32_OUT_IN),
            (LinearLayout::InOut, DType::F32, _) => (scalar_in_out, &kernel::MATVEC_SCALAR_F32_IN_OUT),
            (LinearLayout::OutIn, DType::F16 | DType::BF16, _) => (scalar_out_in, &kernel::MATVEC_SCALAR_16_OUT_IN),
            (LinearLayout::InOut, DType::F16 | DType::BF16, _) => (scalar_in_out, &kernel::MATVEC_SCALAR_16_IN_OUT),
            (_, other, _) => return Err(CHECK.wrong_type("weight", other)),
        };
        Ok(Policy { kernel, ..policy })
    }

    pub(super) fn plan(&self, machine: Machine) -> Result<Plan, LaunchError> {
        machine.check(CHECK)?;
        let policy = self.policy()?;
        let shared = u64::from(machine.shared);
        let tiles = self.n.div_ceil(policy.tile);
        // A block that has a multiprocessor to itself has twice as much on its way: then half of the multiprocessors keep the memory
        // busy. Parts of sums that meet in memory cost more than the others would bring: a microsecond, in which 4 MB come.
        let half = u64::from(machine.sms).div_ceil(2);
        if tiles > 0 && tiles < u64::from(machine.sms) {
            let chunk = policy.chunk(self.k, half.div_ceil(tiles).min(MOST_SPLITS));
            let steps = chunk.div_ceil(WARPS * policy.step) * if self.gate.is_some() { 2 } else { 1 };
            let stages = if steps < 4 { 4 } else { DEEP_STAGES };
            if chunk <= policy.most_chunk(shared, stages) {
                return Ok(Plan { policy, tiles, chunk, splits: self.k.div_ceil(chunk).max(1), stages });
            }
        }
        // Four stages want at least half of what there is left for x.
        let stages = if 8 * WARPS * policy.stage <= shared { 4 } else { 2 };
        let fits = policy.most_chunk(shared, stages);
        CHECK.size("shared", shared, fits > 0, "64 KiB or more, as every GPU has")?;
        let chunk = policy.chunk(self.k, machine.splits(tiles)).min(fits);
        let splits = self.k.div_ceil(chunk).max(1);
        CHECK.size("k", self.k, splits < 1 << 16, "no more than 65535 of the parts that fit into shared memory")?;
        Ok(Plan { policy, tiles, chunk, splits, stages })
    }
}

impl Policy {
    /// Parts of a sum are multiples of this: packs of x are eight elements.
    fn granule(&self) -> u64 {
        self.step.max(8)
    }

    /// Elements of each of `parts` parts of a sum.
    fn chunk(&self, k: u64, parts: u64) -> u64 {
        k.div_ceil(parts).max(LEAST_CHUNK.min(k.max(1))).next_multiple_of(self.granule())
    }

    /// The most elements of which shared memory holds all rows beside so many stages.
    fn most_chunk(&self, shared: u64, stages: u64) -> u64 {
        let others = WARPS * stages * self.stage + HEAD_BYTES + ROWS * (self.pad + 63) * self.x_bytes;
        let free = shared.saturating_sub(others);
        free * 32 / (ROWS * self.x_bytes * 32 + self.block_bytes) / self.granule() * self.granule()
    }
}

impl Plan {
    fn workspace_bytes(&self, gated: bool) -> Result<u64, LaunchError> {
        let floats = self.policy.sums * if gated { 2 } else { 1 };
        workspace::bytes(CHECK, self.tiles, self.splits, floats)
    }

    /// Elements from a row of x in shared memory to the next: 64 of 2 bytes go through all banks.
    fn x_stride(&self) -> u64 {
        self.chunk.next_multiple_of(64) + self.policy.pad
    }

    /// Bytes of shared memory of a block with so many rows.
    fn shared(&self, rows: u64) -> u64 {
        let policy = self.policy;
        WARPS * self.stages * policy.stage
            + HEAD_BYTES
            + rows * self.x_stride() * policy.x_bytes
            + self.chunk / QuantFormat::BLOCK * policy.block_bytes
    }

    /// Blocks side by side. Whole turns: each takes as many tiles as the others, or one less.
    pub(super) fn columns(&self, machine: Machine, shared: u64) -> u64 {
        let two = RESIDENT * (shared + RESERVED) <= u64::from(machine.shared) + RESERVED;
        let blocks = u64::from(machine.sms) * if two { RESIDENT } else { 1 };
        let turns = self.tiles.div_ceil((blocks / self.splits).max(1));
        self.tiles.div_ceil(turns.max(1))
    }

    fn launch(&self, machine: Machine, params: &MatvecParams) -> Result<Launch, LaunchError> {
        let shared = self.shared(params.rows.into());
        let columns = self.columns(machine, shared);
        CHECK.size("n", params.n, columns < 1 << 31, "no more tiles than a grid has blocks")?;
        let grid = [columns as u32, self.splits as u32, 1];
        Ok(Launch::new(self.policy.kernel, grid, [THREADS, 1, 1], shared as u32, params))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: Machine = Machine { sms: 132, shared: 227 << 10 };
    const A100: Machine = Machine { sms: 108, shared: 163 << 10 };
    const T4: Machine = Machine { sms: 40, shared: 64 << 10 };

    /// Columns and elements of each sum of the products of a decode step: GPT-2 XL, GPT-J 6B, Llama 8B.
    const PRODUCTS: [(u64, u64); 14] = [
        (4800, 1600),
        (1600, 1600),
        (6400, 1600),
        (1600, 6400),
        (50_257, 1600),
        (4096, 4096),
        (16_384, 4096),
        (4096, 16_384),
        (50_400, 4096),
        (1024, 4096),
        (6144, 4096),
        (14_336, 4096),
        (4096, 14_336),
        (128_256, 4096),
    ];

    fn plan(layout: LinearLayout, n: u64, k: u64, rows: u64, machine: Machine) -> (Plan, Launch) {
        // Addresses are only looked at for their alignment.
        let view = |elements| View::new(1 << 20, DType::BF16, elements);
        let weight = Weight::plain(view(n * k), layout);
        let (x, y) = (view(rows * k), view(rows * n));
        let (prologue, epilogue) = (Prologue::None, Epilogue::default());
        let ahead = None;
        let matvec = Matvec { x, x_as: DType::BF16, y, weight, gate: None, prologue, epilogue, ahead, rows, n, k };
        let workspace = View::new(1 << 20, DType::U8, matvec.workspace_bytes(machine).expect("a product"));
        let launches = matvec.launches(workspace, machine).expect("a product");
        (matvec.plan(machine).expect("a product"), launches[0].expect("rows"))
    }

    #[test]
    fn enough_of_the_weight_is_on_its_way() {
        // Bandwidth times latency of memory, for each multiprocessor.
        for (machine, wanted) in [(H200, 34 << 10), (A100, 16 << 10), (T4, 6 << 10)] {
            for layout in [LinearLayout::OutIn, LinearLayout::InOut] {
                for (n, k) in PRODUCTS {
                    for rows in [1, 8] {
                        let (plan, launch) = plan(layout, n, k, rows, machine);
                        let [columns, parts, _] = launch.grid.map(u64::from);
                        let most = plan.chunk.div_ceil(WARPS * plan.policy.step).min(plan.stages - 1);
                        let resident = (u64::from(machine.shared) + RESERVED) / (u64::from(launch.shared) + RESERVED);
                        let blocks = (columns * parts).min(resident * u64::from(machine.sms));
                        let on_its_way = blocks * WARPS * most * plan.policy.stage;
                        let all = n * k * 2;
                        assert!(
                            on_its_way >= (wanted * u64::from(machine.sms)).min(all / 2),
                            "{layout:?} [{n}, {k}] of {rows} rows: {on_its_way} bytes by {blocks} blocks on {machine:?}"
                        );
                        assert!(resident > 0 && launch.shared <= machine.shared);
                    }
                }
            }
        }
    }

    #[test]
    fn sums_are_cut_where_there_are_few_tiles() {
        let parts = |layout, n, k, machine| plan(layout, n, k, 1, machine).0.splits;
        // Of GPT-2 XL's, whose weights lie [k, n]: 75, 100 and 25 tiles on 132 multiprocessors.
        assert_eq!(parts(LinearLayout::InOut, 4800, 1600, H200), 1);
        assert_eq!(parts(LinearLayout::InOut, 6400, 1600, H200), 1);
        assert_eq!(parts(LinearLayout::InOut, 1600, 1600, H200), 3);
        assert_eq!(parts(LinearLayout::InOut, 1600, 6400, H200), 3);
        // Sums of 16,384 do not fit beside eight stages, and so are cut for two blocks a multiprocessor.
        assert_eq!(parts(LinearLayout::OutIn, 4096, 4096, H200), 1);
        assert_eq!(parts(LinearLayout::OutIn, 4096, 16_384, H200), 2);
    }
}
