//! A program on a CPU device: finds or makes the plan for what a run is given, runs it, hands out the results.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use genie_graph::{Dim, InputRole, Op, Sizes, Symbol, VerifiedGraph, byte_len};
use genie_transport::memory::Slab;

use super::Inner;
use super::constants;
use super::lower::{Lowered, lower};
use super::plan::{Place, V};
use super::step::{CacheView, Context, Failure, MemberSpace};
use crate::device::inputs::Inputs;
use crate::device::rows::rows_are_independent;
use crate::device::{DeviceError, HostTensor, Loaded, Memory, Row};

/// Plans that a program keeps: one for each of the last so many sets of sizes,
const KEPT_PLANS: usize = 32;
/// as far as they take no more bytes than this together, for these are in nobody's quota. The last one is kept in any case.
const KEPT_BYTES: usize = 32 << 20;

/// A program planned for a CPU device.
pub(super) struct Program {
    device: Arc<Inner>,
    graph: Arc<VerifiedGraph>,
    inputs: Inputs,
    /// Whether several rows can run as one batch.
    batchable: bool,
    /// Whether a tensor's size depends on the position.
    positional: bool,
    /// Least recently used first.
    plans: Mutex<Vec<(Sizes, Arc<Ready>)>>,
}

/// A plan with its constants.
struct Ready {
    lowered: Lowered,
    constants: Option<Slab>,
}

impl Ready {
    /// Bytes that it takes, about.
    fn bytes(&self) -> usize {
        let Lowered { plan, constant_bytes, .. } = &self.lowered;
        size_of_val(&plan.steps[..]) + size_of_val(&plan.values[..]) + constant_bytes
    }
}

/// What runs on a device work in, kept between them.
#[derive(Default)]
pub(super) struct Workspace {
    arena: Option<Slab>,
    sizes: Vec<Sizes>,
    weights: Vec<*const u8>,
    blocks: Vec<*mut u8>,
    caches: Vec<CacheView>,
    failure: Failure,
    pub(super) members: Vec<Mutex<MemberSpace>>,
}

// SAFETY: the pointers are used only within the run that put them there; between runs they are only so many words.
unsafe impl Send for Workspace {}

impl Program {
    pub(super) fn new(device: Arc<Inner>, graph: Arc<VerifiedGraph>) -> Result<Self, DeviceError> {
        let inputs = Inputs::of(&graph)?;
        let unsupported = |op: &str| DeviceError::Unsupported { op: op.to_owned() };
        for node in &graph.nodes {
            let step = [Dim::Symbol(Symbol::Batch), Dim::Symbol(Symbol::Sequence)];
            if matches!(node.op, Op::Attention { .. }) && node.inputs.len() == 4 && !node.ty.shape.0.starts_with(&step)
            {
                return Err(unsupported("attention with a cache over other dimensions than [batch, sequence, ..]"));
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
    fn plan(&self, sizes: Sizes) -> Result<Arc<Ready>, DeviceError> {
        let key = if self.positional { sizes } else { Sizes { position: 0, ..sizes } };
        let mut plans = lock(&self.plans);
        if let Some(i) = plans.iter().position(|(sizes, _)| *sizes == key) {
            plans[i..].rotate_left(1);
        } else {
            let lowered = lower(&self.graph, &sizes, self.device.team.members())?;
            let constants = self.constants(&lowered)?;
            let ready = Arc::new(Ready { lowered, constants });
            let mut bytes = ready.bytes();
            let fits = |plan: &&(Sizes, Arc<Ready>)| {
                bytes = bytes.saturating_add(plan.1.bytes());
                bytes <= KEPT_BYTES
            };
            let stay = plans.iter().rev().take(KEPT_PLANS - 1).take_while(fits).count();
            let go = plans.len() - stay;
            plans.drain(..go);
            plans.push((key, ready));
        }
        // Either way it is the last now.
        plans.last().map(|(_, ready)| Arc::clone(ready)).ok_or_else(|| DeviceError::Internal("a plan was lost".into()))
    }

    fn constants(&self, lowered: &Lowered) -> Result<Option<Slab>, DeviceError> {
        if lowered.constant_bytes == 0 {
            return Ok(None);
        }
        let mut slab = self.device.pool.take(lowered.constant_bytes)?;
        for constant in &lowered.constants {
            let bytes = byte_len(constant.dtype, &[constant.elements as u64]).unwrap_or_default() as usize;
            if let Some(bytes) = slab.get_mut(constant.offset..constant.offset + bytes) {
                constants::fill(constant, bytes);
            }
        }
        Ok(Some(slab))
    }

    /// Runs `rows`, whose sizes are `space.sizes[first..]`, as one batch. Caches are reserved; they do not grow here.
    fn run_batch(
        &self,
        space: &mut Workspace,
        weights: &[Memory],
        rows: &mut [Row<'_>],
        first: usize,
    ) -> Result<(), DeviceError> {
        let own = first..first + rows.len();
        let batch = space.sizes[own.clone()].iter().try_fold(0_u64, |sum, s| sum.checked_add(s.batch));
        let sizes = Sizes { batch: batch.unwrap_or(u64::MAX), ..space.sizes[first] };
        let ready = self.plan(sizes)?;
        let lowered = &ready.lowered;
        space.make_room(&self.device, lowered.plan.arena_bytes)?;
        space.weights.clear();
        space.weights.extend(weights.iter().filter_map(Memory::host).map(|w| w.as_ptr()));
        space.blocks.clear();
        space.caches.clear();
        for row in rows.iter_mut() {
            for cache in &mut row.caches {
                // Positions fit 31 bits: `check_row` saw to it.
                space.caches.push(CacheView { first: space.blocks.len(), len: cache.len() as usize });
                cache.addresses(&mut space.blocks);
            }
        }
        let Workspace { arena, failure, members, sizes: row_sizes, .. } = space;
        let row_sizes = &row_sizes[own];
        let arena = arena.as_deref_mut().unwrap_or_default();
        fill_arguments(lowered, arena, rows);
        fill_positions(lowered, arena, row_sizes);
        let context = Context {
            isa: self.device.isa,
            values: &lowered.plan.values,
            arena: arena.as_mut_ptr(),
            constants: ready.constants.as_deref().map_or(std::ptr::null(), <[u8]>::as_ptr),
            weights: &space.weights,
            blocks: &space.blocks,
            caches: &space.caches,
            cache_inputs: self.inputs.caches(),
            failure,
            members,
        };
        self.device.team.run(&|member| {
            for step in &lowered.plan.steps {
                if step.meet && !member.meet() {
                    return;
                }
                // SAFETY: the context is made for this plan, and members meet where steps depend on each other. Weights and
                // arguments have been checked, caches reserved.
                unsafe { step.step.execute(&context, member.share) };
            }
        })?;
        let row_of = |batch_row: usize| {
            let mut end = 0;
            let within = row_sizes.iter().position(|s| {
                end += s.batch;
                (batch_row as u64) < end
            });
            first + within.unwrap_or_default()
        };
        failure.take(row_of)?;
        self.hand_out(&ready, arena, weights, rows, row_sizes);
        Ok(())
    }

    /// Copies the results to the rows that want them.
    fn hand_out(&self, ready: &Ready, arena: &[u8], weights: &[Memory], rows: &mut [Row<'_>], row_sizes: &[Sizes]) {
        let Ready { lowered, constants } = ready;
        let batch: u64 = row_sizes.iter().map(|s| s.batch).sum();
        for (i, (output, &v)) in self.graph.outputs.iter().zip(&lowered.outputs).enumerate() {
            let value = &lowered.plan.values[v.0];
            let ty = &self.graph.nodes[output.node.0 as usize].ty;
            let all = match value.place {
                Place::Arena(offset) => arena.get(offset..offset + value.bytes),
                Place::Constant(offset) => constants.as_deref().and_then(|c| c.get(offset..offset + value.bytes)),
                Place::Weight(w) => weights.get(w).and_then(Memory::host).map(|w| &**w),
                Place::Cache(_) => None,
            };
            let all = all.unwrap_or_default();
            let mut from = 0;
            for (row, own) in rows.iter_mut().zip(row_sizes) {
                // Several rows in one batch: every output has the batch as its first dimension.
                let bytes =
                    if row_sizes.len() == 1 { all.len() } else { all.len() / batch as usize * own.batch as usize };
                let bytes = all.get(from..from + bytes).inspect(|b| from += b.len()).unwrap_or_default();
                if row.outputs.len() < self.graph.outputs.len() {
                    row.outputs.resize_with(self.graph.outputs.len(), HostTensor::default);
                }
                if i < 64 && row.wanted >> i & 1 == 0 {
                    continue;
                }
                let to = &mut row.outputs[i];
                to.dtype = Some(ty.dtype);
                to.dims.clear();
                to.dims.extend(ty.shape.0.iter().map(|&d| own.dim(d)));
                to.data.clear();
                to.data.extend_from_slice(bytes);
            }
        }
    }

    fn run_checked(&self, space: &mut Workspace, weights: &[Memory], rows: &mut [Row<'_>]) -> Result<(), DeviceError> {
        let sequence = space.sizes.first().map_or(0, |s| s.sequence);
        for row in rows.iter_mut() {
            for cache in &mut row.caches {
                cache.reserve(sequence)?;
            }
        }
        if self.batchable {
            return self.run_batch(space, weights, rows, 0);
        }
        for i in 0..rows.len() {
            self.run_batch(space, weights, &mut rows[i..=i], i)?;
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
        if weights.iter().any(|weight| weight.host().is_none()) {
            return Err(DeviceError::Internal("a weight lies in another device's memory".to_owned()));
        }
        let mut space = lock(&self.device.workspace);
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
        let done = self.run_checked(space, weights, rows);
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

impl Workspace {
    /// Gives back the memory that runs work in; the next run takes it anew.
    pub(super) fn release(&mut self) {
        self.arena = None;
    }

    fn make_room(&mut self, device: &Inner, bytes: usize) -> Result<(), DeviceError> {
        if self.arena.as_ref().is_none_or(|a| a.len() < bytes.max(1)) {
            // First the old one goes, so that it counts no more.
            self.arena = None;
            self.arena = Some(device.pool.take(bytes.max(1))?);
        }
        Ok(())
    }
}

fn fill_arguments(lowered: &Lowered, arena: &mut [u8], rows: &[Row<'_>]) {
    for (i, &v) in lowered.arguments.iter().enumerate() {
        let Some(mut at) = offset(lowered, v) else { continue };
        for argument in rows.iter().filter_map(|r| r.arguments.get(i)) {
            let end = at + argument.data.len();
            if let Some(to) = arena.get_mut(at..end) {
                to.copy_from_slice(&argument.data);
            }
            at = end;
        }
    }
}

fn fill_positions(lowered: &Lowered, arena: &mut [u8], rows: &[Sizes]) {
    let Some(at) = lowered.positions.and_then(|v| offset(lowered, v)) else { return };
    let positions = rows.iter().flat_map(|s| (0..s.batch).flat_map(|_| s.position..s.position + s.sequence));
    for (to, position) in arena[at..].chunks_exact_mut(4).zip(positions) {
        to.copy_from_slice(&(position as i32).to_le_bytes());
    }
}

fn offset(lowered: &Lowered, v: V) -> Option<usize> {
    match lowered.plan.values[v.0].place {
        Place::Arena(offset) => Some(offset),
        _ => None,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under the lock leaves lists that are cleared or replaced before they are used.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
