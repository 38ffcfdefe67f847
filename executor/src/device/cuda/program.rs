//! A program on a GPU: finds or makes the plan for what a run is given, runs it, hands out the results.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use genie_cuda_kernels::gpu::{Gpu, GpuError, Graph, Stream};
use genie_cuda_kernels::{Address, Launch};
use genie_graph::{Dim, InputRole, Op, Sizes, Symbol, VerifiedGraph};

use super::Inner;
use super::buffer::GpuBuffer;
use super::lower::{FaultSite, Lowered, Machine, lower};
use super::pinned::Pinned;
use super::plan::{At, Place, Step, V, Work};
use super::pool::Pool;
use crate::device::inputs::Inputs;
use crate::device::rows::rows_are_independent;
use crate::device::{Buffer, DeviceError, HostTensor, Loaded, Memory, Row};

/// Plans that a program keeps: one for each of the last so many sets of sizes.
const KEPT_PLANS: usize = 32;
/// Blocks of a cache that a table has room for at the least: more are the next power of two, so that a plan, and its graph, serves
/// a cache for as long as it has been.
const LEAST_BLOCKS: u64 = 8;
/// What a word holds in which no step left a fault.
const NO_FAULT: u8 = 0xFF;

/// A program planned for a GPU.
pub(super) struct Program {
    device: Arc<Inner>,
    graph: Arc<VerifiedGraph>,
    inputs: Inputs,
    /// Whether several rows can run as one batch.
    batchable: bool,
    /// Whether a tensor's size depends on the position.
    positional: bool,
    plans: Mutex<Plans>,
}

/// Plans, least recently used first.
#[derive(Default)]
struct Plans {
    /// The life of the GPU's memory that they have their constants in.
    life: u64,
    list: Vec<(Key, Arc<Ready>)>,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    sizes: Sizes,
    max_blocks: u32,
}

/// A plan with its constants.
struct Ready {
    lowered: Lowered,
    constants: Option<GpuBuffer>,
    captured: Mutex<Captured>,
}

/// A plan's work as one thing.
#[derive(Default)]
struct Captured {
    /// Runs without one: a plan that runs once is not worth it.
    runs: u32,
    /// For what it was made: whether all of it still lies where it did.
    base: Base,
    graph: Option<Graph>,
}

/// Where everything lies that a plan's work was made for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Base {
    arena: Address,
    head: Address,
    faults: Address,
    counters: Address,
    weights: Vec<Address>,
}

/// What runs on a device work in, kept between them.
#[derive(Default)]
pub(super) struct Workspace {
    arena: Option<GpuBuffer>,
    head: Option<GpuBuffer>,
    faults: Option<GpuBuffer>,
    /// Words that are 0 between runs, and what lies behind them.
    counters: Option<GpuBuffer>,
    /// What a run brings, and what it gives.
    input: Option<Pinned>,
    output: Option<Pinned>,
    sizes: Vec<Sizes>,
    blocks: Vec<*mut u8>,
}

// SAFETY: the pointers are only so many numbers: the host never follows them.
unsafe impl Send for Workspace {}

impl Program {
    pub(super) fn new(device: Arc<Inner>, graph: Arc<VerifiedGraph>) -> Result<Self, DeviceError> {
        let inputs = Inputs::of(&graph)?;
        let unsupported = |op: &str| DeviceError::Unsupported { op: op.to_owned() };
        for node in &graph.nodes {
            let step = [Dim::Symbol(Symbol::Batch), Dim::Symbol(Symbol::Sequence)];
            let Op::Attention { head_dim, .. } = node.op else { continue };
            if node.inputs.len() == 4 && !node.ty.shape.0.starts_with(&step) {
                return Err(unsupported("attention with a cache over other dimensions than [batch, sequence, ..]"));
            }
            if head_dim > 256 {
                return Err(unsupported("attention with heads of more than 256 elements"));
            }
        }
        let positional = graph.nodes.iter().any(|n| {
            !matches!(n.op, Op::Input { role: InputRole::KvCache, .. })
                && n.ty.shape.0.contains(&Dim::Symbol(Symbol::Position))
        });
        let batchable = !positional && rows_are_independent(&graph);
        Ok(Self { device, graph, inputs, batchable, positional, plans: Mutex::default() })
    }

    /// The plan for these sizes: the one kept, or a new one.
    fn plan(&self, pool: &Arc<Pool>, sizes: Sizes, blocks: u64) -> Result<Arc<Ready>, DeviceError> {
        let position = if self.positional { sizes.position } else { 0 };
        let max_blocks = u32::try_from(blocks.max(LEAST_BLOCKS).next_power_of_two()).unwrap_or(u32::MAX);
        let max_blocks = if self.inputs.caches() == 0 { 1 } else { max_blocks };
        let key = Key { sizes: Sizes { position, ..sizes }, max_blocks };
        let mut plans = lock(&self.plans);
        if plans.life != pool.life {
            *plans = Plans { life: pool.life, ..Plans::default() };
        }
        let plans = &mut plans.list;
        if let Some(i) = plans.iter().position(|(other, _)| *other == key) {
            plans[i..].rotate_left(1);
        } else {
            let properties = self.device.gpu.properties();
            let (sms, shared) = (properties.multiprocessors, properties.shared_bytes);
            let lowered = lower(&self.graph, &sizes, Machine { sms, shared, max_blocks })?;
            let constants = constants(pool, &lowered, sms)?;
            if plans.len() >= KEPT_PLANS {
                plans.remove(0);
            }
            plans.push((key, Arc::new(Ready { lowered, constants, captured: Mutex::default() })));
        }
        // Either way it is the last now.
        plans.last().map(|(_, ready)| Arc::clone(ready)).ok_or_else(|| DeviceError::Internal("a plan was lost".into()))
    }

    /// Runs `rows`, whose sizes are `space.sizes[first..]`, as one batch. Caches are reserved; they do not grow here.
    fn run_batch(
        &self,
        pool: &Arc<Pool>,
        space: &mut Workspace,
        weights: &[Memory],
        rows: &mut [Row<'_>],
        first: usize,
    ) -> Result<(), DeviceError> {
        let own = first..first + rows.len();
        let batch = space.sizes[own.clone()].iter().try_fold(0_u64, |sum, s| sum.checked_add(s.batch));
        let sizes = Sizes { batch: batch.unwrap_or(u64::MAX), ..space.sizes[first] };
        let caches = || rows.iter().flat_map(|row| &row.caches);
        let blocks = caches().map(|cache| cache.spec().blocks(cache.len() + sizes.sequence)).max().unwrap_or(0);
        let ready = self.plan(pool, sizes, blocks as u64)?;
        let wanted = rows.iter().fold(0, |all, row| all | row.wanted);
        let outputs = outputs(&ready.lowered, wanted);
        space.make_room(pool, &ready.lowered, &outputs)?;
        let row_sizes = space.sizes[own].to_vec();
        space.fill(&ready.lowered, rows, &row_sizes)?;
        // Nothing of an earlier life gets to the GPU: within this use, the pool and what it lent are there.
        let gone = |row: &Row<'_>| row.caches.iter().any(|cache| !cache.lies_on(pool.id()));
        if weights.iter().any(|weight| !pool.has(weight)) || rows.iter().any(gone) {
            return Err(DeviceError::Lost { reason: "a weight or a cache is from before it failed".to_owned() });
        }
        pool.with(|gpu| go(gpu, space, &ready, weights, &outputs))?;
        let row_of = |batch_row: u64| {
            let mut end = 0;
            let within = row_sizes.iter().position(|s| {
                end += s.batch;
                batch_row < end
            });
            first + within.unwrap_or_default()
        };
        self.check_faults(space, &ready.lowered, weights, row_of)?;
        self.hand_out(space, &ready.lowered, &outputs, rows, &row_sizes);
        Ok(())
    }

    /// The first fault that a step left, if any.
    fn check_faults(
        &self,
        space: &Workspace,
        lowered: &Lowered,
        weights: &[Memory],
        row_of: impl Fn(u64) -> usize,
    ) -> Result<(), DeviceError> {
        let Some(output) = &space.output else { return Ok(()) };
        for (site, word) in lowered.faults.iter().zip(output.bytes().chunks_exact(8)) {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            let element = u64::from_le_bytes(bytes);
            if element == u64::MAX {
                continue;
            }
            let FaultSite { node, ids, per_row, .. } = site;
            let row = row_of(element / per_row);
            let Some((ids, bound)) = *ids else { return Err(DeviceError::DivisionByZero { row, node: *node }) };
            let index = index_of(space, lowered, weights, ids, element)?;
            let op = self.graph.nodes[node.0 as usize].op.name();
            return Err(DeviceError::IndexOutOfRange { row, node: *node, op, index, bound });
        }
        Ok(())
    }

    /// Copies the results to the rows that want them.
    fn hand_out(
        &self,
        space: &Workspace,
        lowered: &Lowered,
        outputs: &[Fetched],
        rows: &mut [Row<'_>],
        row_sizes: &[Sizes],
    ) {
        let batch: u64 = row_sizes.iter().map(|s| s.batch).sum();
        let count = lowered.outputs.len();
        for row in rows.iter_mut() {
            if row.outputs.len() < count {
                row.outputs.resize_with(count, HostTensor::default);
            }
        }
        let Some(output) = &space.output else { return };
        for fetched in outputs {
            let ty = &self.graph.nodes[self.graph.outputs[fetched.output].node.0 as usize].ty;
            let all = output.bytes().get(fetched.offset..fetched.offset + fetched.bytes).unwrap_or_default();
            let mut from = 0;
            for (row, own) in rows.iter_mut().zip(row_sizes) {
                // Several rows in one batch: every output has the batch as its first dimension.
                let bytes =
                    if row_sizes.len() == 1 { all.len() } else { all.len() / batch as usize * own.batch as usize };
                let bytes = all.get(from..from + bytes).inspect(|b| from += b.len()).unwrap_or_default();
                if fetched.output < 64 && row.wanted >> fetched.output & 1 == 0 {
                    continue;
                }
                let to = &mut row.outputs[fetched.output];
                to.dtype = Some(ty.dtype);
                to.dims.clear();
                to.dims.extend(ty.shape.0.iter().map(|&d| own.dim(d)));
                to.data.clear();
                to.data.extend_from_slice(bytes);
            }
        }
    }

    fn run_checked(
        &self,
        pool: &Arc<Pool>,
        space: &mut Workspace,
        weights: &[Memory],
        rows: &mut [Row<'_>],
    ) -> Result<(), DeviceError> {
        let sequence = space.sizes.first().map_or(0, |s| s.sequence);
        for row in rows.iter_mut() {
            for cache in &mut row.caches {
                cache.reserve(sequence)?;
            }
        }
        if self.batchable {
            return self.run_batch(pool, space, weights, rows, 0);
        }
        for i in 0..rows.len() {
            self.run_batch(pool, space, weights, &mut rows[i..=i], i)?;
        }
        Ok(())
    }
}

impl Loaded for Program {
    fn run(&self, weights: &[Memory], rows: &mut [Row<'_>]) -> Result<(), DeviceError> {
        if rows.is_empty() {
            return Ok(());
        }
        self.inputs.check_weights(weights)?;
        if weights.iter().any(|weight| weight.host().is_some()) {
            return Err(DeviceError::Internal("a weight lies in the host's memory, not the GPU's".to_owned()));
        }
        let mut space = lock(&self.device.workspace);
        // Who has the workspace sees no revival.
        let pool = self.device.pool();
        let space = &mut *space;
        space.sizes.clear();
        for (i, row) in rows.iter().enumerate() {
            let sizes = self.inputs.check_row(i, row)?;
            if let Some(first) = space.sizes.first()
                && first.sequence != sizes.sequence
            {
                let reason = format!(
                    "it runs {} tokens, row 0 runs {}; batch rows of one length only",
                    sizes.sequence, first.sequence
                );
                return Err(DeviceError::Row { row: i, reason });
            }
            space.sizes.push(sizes);
        }
        let done = self.run_checked(&pool, space, weights, rows);
        let sequence = space.sizes[0].sequence;
        for cache in rows.iter_mut().flat_map(|r| &mut r.caches) {
            match done {
                Ok(()) => cache.advance(sequence),
                Err(_) => cache.shrink(),
            }
        }
        done
    }
}

/// Brings what was filled in, runs, and fetches what is wanted.
fn go(
    gpu: &dyn Gpu,
    space: &Workspace,
    ready: &Ready,
    weights: &[Memory],
    outputs: &[Fetched],
) -> Result<(), DeviceError> {
    let lowered = &ready.lowered;
    let base = Base {
        arena: address(&space.arena),
        head: address(&space.head),
        faults: address(&space.faults),
        counters: address(&space.counters),
        weights: weights.iter().map(Memory::address).collect(),
    };
    let at = At {
        values: &lowered.values,
        arena: base.arena,
        head: base.head,
        faults: base.faults,
        constants: ready.constants.as_ref().map_or(0, Buffer::address),
        weights: &base.weights,
        counters: base.counters,
        sms: gpu.properties().multiprocessors,
    };
    if let Some(input) = space.input.as_ref().filter(|_| lowered.head_bytes > 0) {
        // SAFETY: both are the workspace's, which this run holds until it has waited for its end.
        unsafe { gpu.copy_in(Stream::Compute, base.head, input.at.as_ptr(), lowered.head_bytes) }?;
    }
    let fault_bytes = 8 * lowered.faults.len();
    if fault_bytes > 0 {
        // SAFETY: as above.
        unsafe { gpu.fill(Stream::Compute, base.faults, NO_FAULT, fault_bytes as u64) }?;
    }
    work(gpu, ready, &base, &at)?;
    if let Some(output) = &space.output {
        for fetched in outputs {
            // SAFETY: `make_room` made room for it; the value lives to the plan's end.
            unsafe {
                let to = output.at.as_ptr().add(fetched.offset);
                gpu.copy_out(Stream::Compute, to, at.view(fetched.v).at, fetched.bytes)
            }?;
        }
        if fault_bytes > 0 {
            // SAFETY: they come first.
            unsafe { gpu.copy_out(Stream::Compute, output.at.as_ptr(), base.faults, fault_bytes) }?;
        }
    }
    let done = gpu.event()?;
    gpu.record(Stream::Compute, &done)?;
    Ok(gpu.synchronize(&done)?)
}

/// Puts the plan's work into the compute stream: as it was captured, if it was, and still is the same.
fn work(gpu: &dyn Gpu, ready: &Ready, base: &Base, at: &At<'_>) -> Result<(), DeviceError> {
    /// Runs of one plan before it is captured.
    const UNCAPTURED: u32 = 2;
    let mut captured = lock(&ready.captured);
    if captured.base != *base {
        *captured = Captured { base: base.clone(), ..Captured::default() };
    }
    if captured.graph.is_none() && captured.runs >= UNCAPTURED {
        let steps = make(&ready.lowered.steps, at)?;
        // SAFETY: addresses are those of the workspace, the caches' tables and the weights: whoever replays it holds them.
        let graph = gpu.capture(&mut || unsafe { put(gpu, &steps) })?;
        captured.graph = Some(graph);
    }
    captured.runs = captured.runs.saturating_add(1);
    match &captured.graph {
        // SAFETY: everything lies where it did, and this run holds it.
        Some(graph) => Ok(unsafe { gpu.replay(graph) }?),
        // SAFETY: this run holds the workspace, the caches and the weights until it has waited for its end.
        None => unsafe { enqueue(gpu, &ready.lowered.steps, at) },
    }
}

/// A plan's constants, made.
fn constants(pool: &Arc<Pool>, lowered: &Lowered, sms: u32) -> Result<Option<GpuBuffer>, DeviceError> {
    if lowered.constant_bytes == 0 {
        return Ok(None);
    }
    let buffer = pool.take(lowered.constant_bytes as u64)?;
    let at = At {
        values: &lowered.values,
        arena: 0,
        head: 0,
        faults: 0,
        constants: buffer.address(),
        weights: &[],
        counters: 0,
        sms,
    };
    // SAFETY: constants are made of nothing but themselves, in the buffer that was just taken.
    pool.with(|gpu| unsafe { enqueue(gpu, &lowered.constants, &at) })?;
    Ok(Some(buffer))
}

/// An index that a step read: it still lies where the step found it.
fn index_of(
    space: &Workspace,
    lowered: &Lowered,
    weights: &[Memory],
    ids: V,
    element: u64,
) -> Result<i64, DeviceError> {
    let value = &lowered.values[ids.0];
    let width = value.dtype.bytes();
    let mut bytes = [0; 8];
    let to = &mut bytes[..width as usize];
    let lost = || DeviceError::Internal("indices lie where no step reads them".to_owned());
    let offset = element * width;
    let buffer = match value.place {
        Place::Weight(i) => {
            weights.get(i).ok_or_else(lost)?.read(offset, to)?;
            None
        }
        Place::Arena(start) => Some((space.arena.as_ref(), start)),
        Place::Head(start) => Some((space.head.as_ref(), start)),
        Place::Fault(_) | Place::Constant(_) => return Err(lost()),
    };
    if let Some((buffer, start)) = buffer {
        buffer.ok_or_else(lost)?.read(start as u64 + offset, to)?;
    }
    if to.last().is_some_and(|&byte| byte >= 0x80) {
        bytes[width as usize..].fill(0xFF);
    }
    Ok(i64::from_le_bytes(bytes))
}

/// An output that is fetched.
struct Fetched {
    output: usize,
    v: V,
    /// Of the pinned memory that it comes to.
    offset: usize,
    bytes: usize,
}

/// The outputs that somebody wants, behind the words of faults.
fn outputs(lowered: &Lowered, wanted: u64) -> Vec<Fetched> {
    let mut offset = (8 * lowered.faults.len()).next_multiple_of(16);
    let wanted = |i: usize| i >= 64 || wanted >> i & 1 == 1;
    let all = lowered.outputs.iter().enumerate().filter(|(i, _)| wanted(*i));
    all.map(|(output, &v)| {
        let bytes = lowered.values[v.0].bytes();
        let fetched = Fetched { output, v, offset, bytes };
        offset = offset.saturating_add(bytes.next_multiple_of(16));
        fetched
    })
    .collect()
}

impl Workspace {
    /// Gives back the memory that runs work in; the next run takes it anew.
    pub(super) fn release(&mut self) {
        *self = Self {
            sizes: std::mem::take(&mut self.sizes),
            blocks: std::mem::take(&mut self.blocks),
            ..Self::default()
        };
    }

    fn make_room(&mut self, pool: &Arc<Pool>, lowered: &Lowered, outputs: &[Fetched]) -> Result<(), DeviceError> {
        grow(&mut self.arena, pool, lowered.arena_bytes)?;
        grow(&mut self.head, pool, lowered.head_bytes)?;
        grow(&mut self.faults, pool, 8 * lowered.faults.len())?;
        if grow(&mut self.counters, pool, lowered.counter_bytes)?
            && let Some(counters) = &self.counters
        {
            counters.clear()?;
        }
        let fetched = outputs.last().map_or(8 * lowered.faults.len(), |last| last.offset.saturating_add(last.bytes));
        Pinned::grow(&mut self.input, pool, lowered.head_bytes)?;
        Pinned::grow(&mut self.output, pool, fetched)
    }

    /// Puts what a run brings where it is copied from.
    fn fill(&mut self, lowered: &Lowered, rows: &mut [Row<'_>], sizes: &[Sizes]) -> Result<(), DeviceError> {
        let lost = || DeviceError::Internal("an argument has no place in what a run brings".to_owned());
        let Some(input) = &mut self.input else { return Ok(()) };
        let head = input.bytes_mut();
        let mut put = |v: V, at: usize, bytes: &[u8]| {
            let Place::Head(offset) = lowered.values[v.0].place else { return Err(lost()) };
            let to = offset.checked_add(at).and_then(|from| head.get_mut(from..from.checked_add(bytes.len())?));
            to.ok_or_else(lost)?.copy_from_slice(bytes);
            Ok(())
        };
        for (i, &v) in lowered.arguments.iter().enumerate() {
            let mut at = 0;
            for argument in rows.iter().filter_map(|row| row.arguments.get(i)) {
                put(v, at, &argument.data)?;
                at += argument.data.len();
            }
        }
        if let Some(v) = lowered.positions {
            let all = sizes.iter().flat_map(|s| (0..s.batch).flat_map(|_| s.position..s.position + s.sequence));
            for (i, position) in all.enumerate() {
                // Positions fit 31 bits: `check_row` saw to it.
                put(v, 4 * i, &(position as i32).to_le_bytes())?;
            }
        }
        for (row, caches) in rows.iter_mut().map(|row| &mut row.caches).enumerate() {
            for (cache, tables) in caches.iter_mut().zip(&lowered.tables) {
                put(tables.lens, 4 * row, &(cache.len() as i32).to_le_bytes())?;
                self.blocks.clear();
                cache.addresses(&mut self.blocks);
                let width = lowered.values[tables.blocks.0].elements as usize / rows_of(lowered, tables.lens);
                for (i, block) in self.blocks.iter().enumerate() {
                    put(tables.blocks, 8 * (row * width + i), &(block.addr() as u64).to_le_bytes())?;
                }
            }
        }
        Ok(())
    }
}

fn rows_of(lowered: &Lowered, lens: V) -> usize {
    lowered.values[lens.0].elements.max(1) as usize
}

/// Makes a buffer at least so large; whether it is another now.
fn grow(buffer: &mut Option<GpuBuffer>, pool: &Arc<Pool>, bytes: usize) -> Result<bool, DeviceError> {
    if bytes == 0 || buffer.as_ref().is_some_and(|buffer| buffer.bytes() >= bytes as u64) {
        return Ok(false);
    }
    // First the old one goes, so that it counts no more.
    *buffer = None;
    *buffer = Some(pool.take(bytes as u64)?);
    Ok(true)
}

fn address(buffer: &Option<GpuBuffer>) -> Address {
    buffer.as_ref().map_or(0, Buffer::address)
}

/// What steps are, with everything where `at` says.
fn make(steps: &[Step], at: &At<'_>) -> Result<Vec<Work>, DeviceError> {
    let mut all = Vec::with_capacity(steps.len());
    for step in steps {
        let work = (step.make)(at).map_err(|error| DeviceError::Internal(format!("a launch was refused: {error}")))?;
        all.extend(work);
    }
    Ok(all)
}

/// Puts steps into the compute stream.
///
/// # Safety
/// What `at` points to is live until they are done, and large enough for the plan.
unsafe fn enqueue(gpu: &dyn Gpu, steps: &[Step], at: &At<'_>) -> Result<(), DeviceError> {
    let work = make(steps, at)?;
    // SAFETY: as the caller has it.
    Ok(unsafe { put(gpu, &work) }?)
}

/// # Safety
/// As [`enqueue`].
unsafe fn put(gpu: &dyn Gpu, work: &[Work]) -> Result<(), GpuError> {
    // SAFETY: as the caller has it.
    let launch = |launch: &Launch| unsafe { gpu.launch(Stream::Compute, launch) };
    for work in work {
        match work {
            Work::Launch(one) => launch(one)?,
            Work::Product { product, a, b, c, then, otherwise } => {
                // SAFETY: as the caller has it.
                let done = unsafe { gpu.multiply(product, *a, *b, *c) }?;
                let rest = if done { then } else { otherwise };
                rest.iter().try_for_each(launch)?;
            }
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under the lock leaves lists that are cleared or replaced before they are used.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
