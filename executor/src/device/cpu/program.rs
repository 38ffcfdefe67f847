//! A program on a CPU device: finds or makes the plan for what a run is given, runs it, hands out the results.

use std::sync::{Arc, Mutex};

use genie_graph::{Cost, Sizes, VerifiedGraph, byte_len};
use genie_transport::memory::{Region, Slab};

use super::Inner;
use super::constants;
use super::lower::{Lowered, lower};
use super::plan::{ALIGN, Place, V};
use super::step::{CacheView, Context, Failure, MemberSpace};
use super::team::Team;
use crate::device::inputs::Argument;
use crate::device::run::{Batch, Contract, Plans, lock};
use crate::device::{DeviceError, Loaded, Memory, Row, Space};

/// A program planned for a CPU device.
pub(super) struct Program {
    device: Arc<Inner>,
    contract: Contract,
    plans: Mutex<Plans<Sizes, Ready>>,
}

/// A plan with its constants.
struct Ready {
    lowered: Lowered,
    constants: Option<Slab>,
    /// It takes less time than waking threads for it would.
    brief: bool,
}

/// What a plan that is brief costs at the most, and how many nodes it has: some ten microseconds of one thread.
const BRIEF: Cost = Cost { flops: 16 << 10, bytes: 256 << 10 };
const BRIEF_NODES: usize = 64;

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
    lent: Vec<*mut u8>,
    blocks: Vec<*mut u8>,
    caches: Vec<CacheView>,
    failure: Failure,
    pub(super) members: Vec<Mutex<MemberSpace>>,
}

// SAFETY: the pointers are used only within the run that put them there; between runs they are only so many words.
unsafe impl Send for Workspace {}

impl Program {
    pub(super) fn new(device: Arc<Inner>, graph: Arc<VerifiedGraph>) -> Result<Self, DeviceError> {
        Ok(Self { device, contract: Contract::of(graph)?, plans: Mutex::default() })
    }

    /// The plan for these sizes: the one kept, or a new one.
    fn plan(&self, sizes: Sizes) -> Result<Arc<Ready>, DeviceError> {
        let make = || -> Result<Ready, DeviceError> {
            let lowered = lower(&self.contract.graph, &sizes, self.device.team.members())?;
            let constants = self.constants(&lowered)?;
            Ok(Ready { lowered, constants, brief: self.costs_little(&sizes) })
        };
        lock(&self.plans).get(self.contract.planned(sizes), make, Ready::bytes)
    }

    fn costs_little(&self, sizes: &Sizes) -> bool {
        let graph = &self.contract.graph;
        let cost = graph.total_cost(sizes);
        graph.nodes.len() <= BRIEF_NODES && cost.flops <= BRIEF.flops && cost.bytes <= BRIEF.bytes
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

    /// Runs rows as one batch. Caches are reserved; they do not grow here.
    fn run_batch(
        &self,
        space: &mut Workspace,
        weights: &[Memory],
        rows: &mut [Row<'_>],
        batch: &Batch<'_>,
    ) -> Result<(), DeviceError> {
        let ready = self.plan(batch.sizes)?;
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
        let Workspace { arena, failure, members, lent, .. } = space;
        let arena = arena.as_deref_mut().unwrap_or_default();
        fill_arguments(lowered, arena, rows)?;
        fill_positions(lowered, arena, batch);
        let arena = arena.as_mut_ptr();
        lend(lowered, arena, rows, lent);
        let context = Context {
            isa: self.device.isa,
            values: &lowered.plan.values,
            arena,
            constants: ready.constants.as_deref().map_or(std::ptr::null(), <[u8]>::as_ptr),
            weights: &space.weights,
            lent,
            blocks: &space.blocks,
            caches: &space.caches,
            cache_inputs: self.contract.inputs.caches(),
            failure,
            members,
        };
        let team = &self.device.team;
        let run = if ready.brief { Team::run_alone } else { Team::run };
        run(team, &|member| {
            for step in &lowered.plan.steps {
                if step.meet && !member.meet() {
                    return;
                }
                // SAFETY: the context is made for this plan, and members meet where steps depend on each other. Weights and
                // arguments have been checked, caches reserved.
                unsafe { step.step.execute(&context, member.share) };
            }
        })?;
        context.failure.take(|batch_row| batch.row_of(batch_row as u64))?;
        // SAFETY: the members are done, and what the values lie in is held by this run.
        let bytes_of = |output: usize| lowered.outputs.get(output).map(|&v| unsafe { context.bytes(v) });
        self.contract.hand_out(rows, batch, bytes_of, |space, bytes| match space {
            Space::Host(slab) if slab.as_ptr() == bytes.as_ptr() => Ok(()),
            elsewhere => elsewhere.write(0, bytes),
        })
    }
}

impl Loaded for Program {
    fn run(&self, weights: &[Memory], rows: &mut [Row<'_>]) -> Result<(), DeviceError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut space = lock(&self.device.workspace);
        let space = &mut *space;
        let mut sizes = std::mem::take(&mut space.sizes);
        let checked = self.contract.check(weights, rows, &mut sizes);
        let done = checked.and_then(|()| {
            if weights.iter().any(|weight| weight.host().is_none()) {
                return Err(DeviceError::Internal("a weight lies in another device's memory".to_owned()));
            }
            self.contract.run(rows, &sizes, |rows, batch| self.run_batch(space, weights, rows, batch))
        });
        space.sizes = sizes;
        done
    }

    fn is_brief(&self, sizes: &Sizes) -> bool {
        lock(&self.plans).find(&self.contract.planned(*sizes)).is_some_and(|ready| ready.brief)
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

/// The memory that an argument of rows is read from where it lies, if that can be: it is one row's, of this host, starts as any value
/// does, and no peer can write it.
fn in_place<'r>(rows: &'r [Row<'_>], argument: usize) -> Option<&'r Region> {
    let [row] = rows else { return None };
    let Some(Argument::Resident(Memory::Host(region))) = row.argument(argument) else { return None };
    (!region.is_peer_writable() && region.as_ptr().addr().is_multiple_of(ALIGN)).then_some(region)
}

/// Copies arguments to their places in the arena, but for those that are read where they lie.
fn fill_arguments(lowered: &Lowered, arena: &mut [u8], rows: &[Row<'_>]) -> Result<(), DeviceError> {
    for (i, &v) in lowered.arguments.iter().enumerate() {
        let Some(mut at) = offset(lowered, v).filter(|_| in_place(rows, i).is_none()) else { continue };
        for argument in rows.iter().filter_map(|row| row.argument(i)) {
            // As many as the argument's dimensions make, which the plan has counted.
            let end = at + argument.len() as usize;
            if let Some(to) = arena.get_mut(at..end) {
                argument.read(to)?;
            }
            at = end;
        }
    }
    Ok(())
}

fn fill_positions(lowered: &Lowered, arena: &mut [u8], batch: &Batch<'_>) {
    let Some(at) = lowered.positions.and_then(|v| offset(lowered, v)) else { return };
    for (to, position) in arena[at..].chunks_exact_mut(4).zip(batch.positions()) {
        to.copy_from_slice(&position.to_le_bytes());
    }
}

/// Says where the values lie that a run has a say in: arguments in residents' memory, outputs of one row in the memory that keeps them,
/// all others in the arena.
fn lend(lowered: &Lowered, arena: *mut u8, rows: &mut [Row<'_>], lent: &mut Vec<*mut u8>) {
    let own = |offset: &usize| arena.wrapping_add(*offset);
    lent.clear();
    lent.extend(lowered.lent.iter().map(own));
    for i in 0..lowered.arguments.len() {
        if let (Some(region), Some(place)) = (in_place(rows, i), lent.get_mut(i)) {
            // No step writes an argument.
            *place = region.as_ptr().cast_mut();
        }
    }
    let [row] = rows else { return };
    for kept in &mut row.kept {
        let place = lowered.outputs.get(kept.output).map(|v| lowered.plan.values[v.0].place);
        let (Some(Place::Lent(i)), Space::Host(slab)) = (place, &mut *kept.space) else { continue };
        // One that is an argument, or is kept a second time, is copied there.
        if i >= lowered.arguments.len()
            && lent[i] == own(&lowered.lent[i])
            && slab.as_ptr().addr().is_multiple_of(ALIGN)
        {
            lent[i] = slab.as_mut_ptr();
        }
    }
}

/// A value's offset in the arena, if it has a place there.
fn offset(lowered: &Lowered, v: V) -> Option<usize> {
    match lowered.plan.values[v.0].place {
        Place::Arena(offset) => Some(offset),
        Place::Lent(i) => lowered.lent.get(i).copied(),
        _ => None,
    }
}
