//! A program on a GPU: finds or makes the plan for what a run is given, runs it, hands out the results.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};

use genie_cuda_kernels::gpu::{Gpu, GpuError, Graph, Stream};
use genie_cuda_kernels::{Address, Launch};
use genie_graph::{Op, Sizes, VerifiedGraph};

use super::Inner;
use super::buffer::GpuBuffer;
use super::lower::{FaultSite, Lowered, Machine, lower, missing};
use super::plan::{At, Place, Step, V, Work};
use super::pool::Pool;
use super::workspace::{Copies, Workspace, address};
use crate::device::run::{self, Batch, Contract, lock};
use crate::device::{Buffer, DeviceError, Loaded, Memory, Row, Space};

/// Blocks of a cache that a table has room for at the least: more are the next power of two, so that a plan, and its graph, serves
/// a cache for as long as it has been.
const LEAST_BLOCKS: u64 = 8;
/// Graphs that a plan has at the most: for other weights, or other outputs that are wanted, it is another one.
const GRAPHS: usize = 4;

/// A program planned for a GPU.
pub(super) struct Program {
    device: Arc<Inner>,
    contract: Contract,
    plans: Mutex<Plans>,
}

#[derive(Default)]
struct Plans {
    /// The life of the GPU's memory that they have their constants in.
    life: u64,
    list: run::Plans<Key, Ready>,
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
    /// Least recently used first.
    captured: Mutex<Vec<Captured>>,
}

/// A plan's work as one thing, with the copies between host and GPU where they are the same from run to run: one call of the driver does
/// all of a step.
struct Captured {
    /// Runs without one: a plan that runs once is not worth it.
    runs: u32,
    base: Base,
    graph: Option<Graph>,
}

/// What a plan's work was made for: it can be done again as long as all of that is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Base {
    /// Arena, head and counters, which all plans share.
    space: [Address; 3],
    weights: Vec<Address>,
    /// None: the run's copies are not part of it.
    copies: Option<Copies>,
}

impl Base {
    /// Whether both were made for the same workspace.
    fn has_memory_of(&self, other: &Self) -> bool {
        let pinned = match (&self.copies, &other.copies) {
            (Some(copies), Some(others)) => copies.have_pinned_of(others),
            _ => true,
        };
        self.space == other.space && pinned
    }
}

impl Program {
    pub(super) fn new(device: Arc<Inner>, graph: Arc<VerifiedGraph>) -> Result<Self, DeviceError> {
        let contract = Contract::of(graph)?;
        let is_wide = |op: &Op| matches!(op, Op::Attention { head_dim, .. } if *head_dim > 256);
        if contract.graph.nodes.iter().any(|node| is_wide(&node.op)) {
            let op = "attention with heads of more than 256 elements".to_owned();
            return Err(DeviceError::Unsupported { op });
        }
        if let Some(op) = contract.graph.nodes.iter().find_map(missing) {
            return Err(DeviceError::NoKernel { device: format!("cuda:{}", device.index), op });
        }
        Ok(Self { device, contract, plans: Mutex::default() })
    }

    /// The plan for these sizes: the one kept, or a new one.
    fn plan(
        &self,
        pool: &Arc<Pool>,
        sizes: Sizes,
        blocks: u64,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Arc<Ready>, DeviceError> {
        let max_blocks = u32::try_from(blocks.max(LEAST_BLOCKS).next_power_of_two()).unwrap_or(u32::MAX);
        let max_blocks = if self.contract.inputs.caches() == 0 { 1 } else { max_blocks };
        let mut plans = lock(&self.plans);
        if plans.life != pool.life {
            *plans = Plans { life: pool.life, ..Plans::default() };
        }
        let make = || -> Result<Ready, DeviceError> {
            // This takes long, and the device has nothing to do meanwhile.
            meanwhile();
            let properties = self.device.gpu.properties();
            let (sms, shared) = (properties.multiprocessors, properties.shared_bytes);
            let prefetches = self.device.prefetches;
            let lowered = lower(&self.contract.graph, &sizes, Machine { sms, shared, max_blocks, prefetches })?;
            let constants = constants(pool, &lowered, sms)?;
            Ok(Ready { lowered, constants, captured: Mutex::default() })
        };
        // What a plan has on the GPU is counted by the pool.
        plans.list.get(Key { sizes: self.contract.planned(sizes), max_blocks }, make, |_| 0)
    }

    /// Runs rows as one batch. Caches are reserved; they do not grow here.
    fn run_batch(
        &self,
        pool: &Arc<Pool>,
        space: &mut Workspace,
        weights: &[Memory],
        rows: &mut [Row<'_>],
        batch: &Batch<'_>,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<(), DeviceError> {
        let caches = || rows.iter().flat_map(|row| &row.caches);
        let tokens = batch.sizes.sequence;
        let blocks = caches().map(|cache| cache.spec().blocks(cache.len() + tokens)).max().unwrap_or(0);
        let ready = self.plan(pool, batch.sizes, blocks as u64, meanwhile)?;
        space.make_room(pool, &ready.lowered, rows, batch)?;
        space.fill(&ready.lowered, rows, batch)?;
        // Nothing of an earlier life gets to the GPU: within this use, the pool and what it lent are there.
        let gone = |row: &Row<'_>| row.caches.iter().any(|cache| !cache.lies_on(pool.id()));
        if weights.iter().any(|weight| !pool.has(weight)) || rows.iter().any(gone) {
            return Err(DeviceError::Lost { reason: "a weight or a cache is from before it failed".to_owned() });
        }
        pool.with(|gpu| go(gpu, space, &ready, weights, meanwhile))?;
        self.check_faults(space, &ready.lowered, weights, |batch_row| batch.row_of(batch_row))?;
        let here = |space: &Space| matches!(space, Space::Device(buffer) if buffer.device() == pool.id());
        self.contract.hand_out(
            rows,
            batch,
            |output| space.bytes_of(output),
            |kept, bytes| {
                // It is there already.
                if here(kept) { Ok(()) } else { kept.write(0, bytes) }
            },
        )
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
            let op = self.contract.graph.nodes[node.0 as usize].op.name();
            return Err(DeviceError::IndexOutOfRange { row, node: *node, op, index, bound });
        }
        Ok(())
    }
}

impl Loaded for Program {
    fn run(&self, weights: &[Memory], rows: &mut [Row<'_>]) -> Result<(), DeviceError> {
        self.run_with(weights, rows, &mut || ())
    }

    fn run_with(
        &self,
        weights: &[Memory],
        rows: &mut [Row<'_>],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<(), DeviceError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut space = lock(&self.device.workspace);
        // Who has the workspace sees no revival.
        let pool = self.device.pool();
        let space = &mut *space;
        let mut sizes = std::mem::take(&mut space.sizes);
        let checked = self.contract.check(weights, rows, &mut sizes);
        let done = checked.and_then(|()| {
            if weights.iter().any(|weight| weight.host().is_some()) {
                return Err(DeviceError::Internal("a weight lies in the host's memory, not the GPU's".to_owned()));
            }
            self.contract.run(rows, &sizes, |rows, batch| self.run_batch(&pool, space, weights, rows, batch, meanwhile))
        });
        space.sizes = sizes;
        done
    }

    fn kept_bytes(&self) -> Option<u64> {
        let plans = lock(&self.plans);
        if plans.life != self.device.pool().life {
            return None;
        }
        // What graphs take the driver knows alone.
        let of = |ready: &Ready| {
            let graphs = lock(&ready.captured).iter().any(|captured| captured.graph.is_some());
            let constants = ready.constants.as_ref().map(Buffer::bytes);
            constants.or_else(|| graphs.then_some(0))
        };
        plans.list.kept().filter_map(of).reduce(|a, b| a.saturating_add(b))
    }
}

/// Brings what a run is given, runs, and fetches what is wanted; `meanwhile` is called when the GPU has it all.
fn go(
    gpu: &dyn Gpu,
    space: &mut Workspace,
    ready: &Ready,
    weights: &[Memory],
    meanwhile: &mut dyn FnMut(),
) -> Result<(), DeviceError> {
    let lowered = &ready.lowered;
    let base = Base {
        space: [&space.arena, &space.head, &space.counters].map(address),
        weights: weights.iter().map(Memory::address).collect(),
        copies: space.copies(),
    };
    let [arena, head, counters] = base.space;
    let at = At {
        values: &lowered.values,
        arena,
        head,
        faults: head + lowered.faults_at as u64,
        constants: ready.constants.as_ref().map_or(0, Buffer::address),
        weights: &base.weights,
        counters,
        sms: gpu.properties().multiprocessors,
        ahead: None,
    };
    let apart = base.copies.is_none();
    let put = || {
        if apart {
            // SAFETY: this run holds the workspace, and its rows the residents, until it has waited for its end.
            unsafe { space.bring(gpu, lowered) }?;
        }
        work(gpu, space, ready, &base, &at)?;
        if apart {
            // SAFETY: as above; the rows hold what they keep for themselves alone.
            unsafe { space.take(gpu, &at) }?;
        }
        Ok(())
    };
    let put: Result<(), DeviceError> = put();
    let done = space.done(gpu)?;
    gpu.record(Stream::Compute, done)?;
    // Whatever becomes of these, the next run uses the same memory: what is in the stream is waited for.
    let called = put.is_ok().then(|| catch_unwind(AssertUnwindSafe(&mut *meanwhile)));
    let ended = gpu.synchronize(done);
    if let Some(Err(panic)) = called {
        resume_unwind(panic);
    }
    put?;
    Ok(ended?)
}

/// Puts the plan's work into the compute stream, with the run's copies where they are part of it: as it was captured, if it was, and still
/// is the same.
fn work(gpu: &dyn Gpu, space: &Workspace, ready: &Ready, base: &Base, at: &At<'_>) -> Result<(), DeviceError> {
    /// Runs of one plan before it is captured.
    const UNCAPTURED: u32 = 2;
    let with_copies = base.copies.is_some();
    let put_all = |steps: &[Work]| {
        // SAFETY: this run holds the workspace, the caches and the weights until it has waited for its end, and so does whoever replays
        // it: addresses are those of the workspace, the caches' tables, the pinned memory and the weights.
        unsafe {
            if with_copies {
                space.bring(gpu, &ready.lowered)?;
            }
            put(gpu, steps)?;
            if with_copies { space.take(gpu, at) } else { Ok(()) }
        }
    };
    let mut list = lock(&ready.captured);
    let captured = find(&mut list, base)?;
    if captured.graph.is_none() && captured.runs == UNCAPTURED {
        let steps = make(&ready.lowered.steps, at)?;
        match gpu.capture(&mut || put_all(&steps)) {
            Ok(graph) => captured.graph = Some(graph),
            // Copies of memory that is not pinned, for one, or no more memory for graphs: each run puts its steps into the stream by
            // itself then.
            Err(error @ (GpuError::Refused { .. } | GpuError::OutOfMemory { .. })) => {
                tracing::warn!(%error, "a program's steps are not captured: each run takes longer");
            }
            Err(error) => return Err(error.into()),
        }
    }
    captured.runs = captured.runs.saturating_add(1);
    match &captured.graph {
        // SAFETY: everything lies where it did, and this run holds it.
        Some(graph) => Ok(unsafe { gpu.replay(graph) }?),
        None => Ok(put_all(&make(&ready.lowered.steps, at)?)?),
    }
}

/// What was captured for this, or is to be, as the last of the list.
fn find<'l>(list: &'l mut Vec<Captured>, base: &Base) -> Result<&'l mut Captured, DeviceError> {
    match list.iter().position(|captured| captured.base == *base) {
        Some(at) => list[at..].rotate_left(1),
        None => {
            // What was made for a workspace that is gone is of no use.
            list.retain(|captured| captured.base.has_memory_of(base));
            if list.len() >= GRAPHS {
                list.remove(0);
            }
            list.push(Captured { runs: 0, base: base.clone(), graph: None });
        }
    }
    list.last_mut().ok_or_else(|| DeviceError::Internal("a graph was lost".to_owned()))
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
        ahead: None,
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

/// What steps are, with everything where `at` says.
fn make(steps: &[Step], at: &At<'_>) -> Result<Vec<Work>, DeviceError> {
    let mut all = Vec::with_capacity(steps.len());
    for step in steps {
        let work = step.work(at).map_err(|error| DeviceError::Internal(format!("a launch was refused: {error}")))?;
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
    // Whether what was put there last is a kernel of ours, so that the next may overlap with it.
    let mut behind = false;
    let launch = |launch: &Launch, behind: &mut bool| {
        // SAFETY: as the caller has it.
        unsafe {
            if std::mem::replace(behind, true) {
                gpu.launch_behind(Stream::Compute, launch)
            } else {
                gpu.launch(Stream::Compute, launch)
            }
        }
    };
    for work in work {
        match work {
            Work::Launch(one) => launch(one, &mut behind)?,
            Work::Product { ways, otherwise } => {
                let mut rest = otherwise;
                for way in ways {
                    // SAFETY: as the caller has it.
                    if unsafe { gpu.multiply(&way.product, &way.operands) }? {
                        behind = false;
                        rest = &way.then;
                        break;
                    }
                }
                rest.iter().try_for_each(|one| launch(one, &mut behind))?;
            }
        }
    }
    Ok(())
}
