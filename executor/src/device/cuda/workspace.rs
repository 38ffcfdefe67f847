//! What runs on a GPU work in, and how what they are given gets there.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use genie_cuda_kernels::Address;
use genie_cuda_kernels::gpu::{Event, Gpu, GpuError, Stream};
use genie_graph::Sizes;

use super::buffer::GpuBuffer;
use super::lower::Lowered;
use super::pinned::Pinned;
use super::plan::{At, HEAD_ALIGN, Place, V};
use super::pool::Pool;
use crate::device::inputs::Argument;
use crate::device::run::{Batch, wants};
use crate::device::{Buffer, DeviceError, Row, Space};

/// What a word holds in which no step left a fault.
const NO_FAULT: u8 = 0xFF;

/// See the module. It is kept between runs.
#[derive(Default)]
pub(super) struct Workspace {
    pub(super) arena: Option<GpuBuffer>,
    pub(super) head: Option<GpuBuffer>,
    /// Words that are 0 between runs, and what lies behind them.
    pub(super) counters: Option<GpuBuffer>,
    /// What a run brings from the host, and what it gives to it.
    input: Option<Pinned>,
    pub(super) output: Option<Pinned>,
    /// The end of a run.
    done: Option<Event>,
    pub(super) sizes: Vec<Sizes>,
    blocks: Vec<*mut u8>,
    /// Arguments that are on the GPU, in the order of the head.
    resident: Vec<Resident>,
    /// Outputs that stay on it.
    kept: Vec<Stays>,
    /// Outputs that come to the host.
    fetched: Vec<Fetched>,
    /// Bytes that come in one copy, from the words of faults on; what comes apart lies behind them in the pinned memory.
    together: usize,
}

// SAFETY: the pointers are only so many numbers: the host never follows them.
unsafe impl Send for Workspace {}

/// An argument, or a row's part of one, that is copied on the GPU.
struct Resident {
    from: Address,
    bytes: u64,
    /// The part of the head that the host brings nothing for.
    head: Range<usize>,
}

/// A row's part of an output that is copied on the GPU.
struct Stays {
    v: V,
    part: Range<usize>,
    to: Address,
}

/// An output that is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fetched {
    output: usize,
    v: V,
    /// Of the pinned memory that it comes to.
    offset: usize,
    bytes: usize,
    /// By a copy of its own.
    apart: bool,
}

impl Copies {
    /// Whether both pass through the same pinned memory.
    pub(super) fn have_pinned_of(&self, other: &Self) -> bool {
        self.pinned == other.pinned
    }
}

/// The copies between host and GPU of a run of which nothing else is copied: with a plan, they are known from run to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copies {
    /// The pinned memory, by its numbers; 0: none.
    pinned: [u64; 2],
    together: usize,
    fetched: Vec<Fetched>,
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

    /// Gets ready for a run: finds what of it stays on the GPU, and takes memory for all else.
    pub(super) fn make_room(
        &mut self,
        pool: &Arc<Pool>,
        lowered: &Lowered,
        rows: &[Row<'_>],
        batch: &Batch<'_>,
    ) -> Result<(), DeviceError> {
        self.find_residents(pool, lowered, rows)?;
        self.find_kept(pool, lowered, rows, batch)?;
        grow(&mut self.arena, pool, lowered.arena_bytes)?;
        grow(&mut self.head, pool, lowered.head_bytes)?;
        if grow(&mut self.counters, pool, lowered.counter_bytes)?
            && let Some(counters) = &self.counters
        {
            counters.clear()?;
        }
        let ends = self.fetched.iter().map(|fetched| fetched.offset.saturating_add(fetched.bytes));
        let fetched = ends.max().unwrap_or(0).max(self.together);
        let brought = lowered.brought_bytes - self.resident_before(lowered.brought_bytes);
        Pinned::grow(&mut self.input, pool, brought)?;
        Pinned::grow(&mut self.output, pool, fetched)
    }

    /// Finds the arguments that are in the pool's memory.
    fn find_residents(&mut self, pool: &Arc<Pool>, lowered: &Lowered, rows: &[Row<'_>]) -> Result<(), DeviceError> {
        self.resident.clear();
        for (i, &v) in lowered.arguments.iter().enumerate() {
            let Place::Head(start) = lowered.values[v.0].place else { return Err(no_place()) };
            let mut at = start;
            for argument in rows.iter().filter_map(|row| row.argument(i)) {
                // As many as the argument's dimensions make, which the plan has counted.
                let end = at + argument.len() as usize;
                match argument {
                    Argument::Resident(memory) if pool.has(memory) => {
                        let (from, bytes) = (memory.address(), memory.len());
                        self.resident.extend((bytes > 0).then_some(Resident { from, bytes, head: at..end }));
                    }
                    Argument::Resident(memory) => refuse_lost(memory.is_lost())?,
                    Argument::Inline(_) => {}
                }
                at = end;
            }
            // Nothing is between this value and the next.
            if let Some(last) = self.resident.last_mut().filter(|last| last.head.end == at) {
                last.head.end = at.next_multiple_of(HEAD_ALIGN);
            }
        }
        self.resident.sort_unstable_by_key(|resident| resident.head.start);
        Ok(())
    }

    /// Finds which outputs stay on the GPU, and which come to the host.
    fn find_kept(
        &mut self,
        pool: &Arc<Pool>,
        lowered: &Lowered,
        rows: &[Row<'_>],
        batch: &Batch<'_>,
    ) -> Result<(), DeviceError> {
        self.kept.clear();
        self.fetched.clear();
        self.together = 8 * lowered.faults.len();
        let mut behind = (lowered.head_bytes - lowered.faults_at).next_multiple_of(16);
        for (output, &v) in lowered.outputs.iter().enumerate() {
            let bytes = lowered.values[v.0].bytes();
            let mut comes = false;
            for (row, part) in rows.iter().zip(batch.parts(bytes)) {
                comes |= wants(row.wanted, output);
                for kept in row.kept.iter().filter(|kept| kept.output == output) {
                    match &*kept.space {
                        Space::Device(buffer) if buffer.device() == pool.id() => {
                            if let Some(buffer) = (&**buffer as &dyn Any).downcast_ref::<GpuBuffer>() {
                                pool.with(|gpu| Ok(buffer.order_kernels(gpu)?))?;
                            }
                            let to = buffer.address();
                            self.kept.push(Stays { v, part: part.clone(), to });
                        }
                        Space::Device(buffer) => {
                            refuse_lost(buffer.is_lost())?;
                            comes = true;
                        }
                        Space::Host(_) => comes = true,
                    }
                }
            }
            if !comes {
                continue;
            }
            let offset = match lowered.values[v.0].place {
                Place::Head(at) => at.checked_sub(lowered.faults_at),
                _ => None,
            };
            self.fetched.push(Fetched { output, v, offset: offset.unwrap_or(behind), bytes, apart: offset.is_none() });
            match offset {
                Some(offset) => self.together = self.together.max(offset + bytes),
                None => behind = behind.saturating_add(bytes.next_multiple_of(16)),
            }
        }
        Ok(())
    }

    /// Bytes of the head before `at` that the host brings nothing for.
    fn resident_before(&self, at: usize) -> usize {
        let before = self.resident.iter().take_while(|resident| resident.head.start < at);
        before.map(|resident| resident.head.len()).sum()
    }

    /// Puts what a run brings from the host where it is copied from.
    pub(super) fn fill(
        &mut self,
        lowered: &Lowered,
        rows: &mut [Row<'_>],
        batch: &Batch<'_>,
    ) -> Result<(), DeviceError> {
        let Some(mut input) = self.input.take() else { return Ok(()) };
        let filled = self.fill_input(input.bytes_mut(), lowered, rows, batch);
        self.input = Some(input);
        filled
    }

    fn fill_input(
        &mut self,
        input: &mut [u8],
        lowered: &Lowered,
        rows: &mut [Row<'_>],
        batch: &Batch<'_>,
    ) -> Result<(), DeviceError> {
        let mut blocks = std::mem::take(&mut self.blocks);
        for (i, &v) in lowered.arguments.iter().enumerate() {
            let mut at = 0;
            for argument in rows.iter().filter_map(|row| row.argument(i)) {
                let bytes = argument.len() as usize;
                if !self.is_resident(lowered, v, at) {
                    argument.read(self.part(input, lowered, v, at..at + bytes)?)?;
                }
                at += bytes;
            }
        }
        let mut put = |v: V, at: usize, bytes: &[u8]| {
            self.part(input, lowered, v, at..at + bytes.len()).map(|to| to.copy_from_slice(bytes))
        };
        if let Some(v) = lowered.positions {
            for (i, position) in batch.positions().enumerate() {
                put(v, 4 * i, &position.to_le_bytes())?;
            }
        }
        for (row, caches) in rows.iter_mut().map(|row| &mut row.caches).enumerate() {
            for (cache, tables) in caches.iter_mut().zip(&lowered.tables) {
                put(tables.lens, 4 * row, &(cache.len() as i32).to_le_bytes())?;
                blocks.clear();
                cache.addresses(&mut blocks);
                let width = lowered.values[tables.blocks.0].elements as usize / rows_of(lowered, tables.lens);
                for (i, block) in blocks.iter().enumerate() {
                    put(tables.blocks, 8 * (row * width + i), &(block.addr() as u64).to_le_bytes())?;
                }
            }
        }
        self.blocks = blocks;
        let faults = lowered.faults_at - self.resident_before(lowered.faults_at);
        input.get_mut(faults..faults + 8 * lowered.faults.len()).ok_or_else(no_place)?.fill(NO_FAULT);
        Ok(())
    }

    /// The run's copies, if nothing of what it is given or gives stays on the GPU.
    pub(super) fn copies(&self) -> Option<Copies> {
        let pinned = [&self.input, &self.output].map(|pinned| pinned.as_ref().map_or(0, |pinned| pinned.id));
        let apart = !self.resident.is_empty() || !self.kept.is_empty();
        (!apart).then(|| Copies { pinned, together: self.together, fetched: self.fetched.clone() })
    }

    /// The event that a run ends with, made once.
    pub(super) fn done(&mut self, gpu: &dyn Gpu) -> Result<&Event, GpuError> {
        match &mut self.done {
            Some(done) => Ok(done),
            none => Ok(none.insert(gpu.event()?)),
        }
    }

    /// Where bytes of a value of the head are in what comes from the host.
    fn part<'i>(
        &self,
        input: &'i mut [u8],
        lowered: &Lowered,
        v: V,
        bytes: Range<usize>,
    ) -> Result<&'i mut [u8], DeviceError> {
        let Place::Head(offset) = lowered.values[v.0].place else { return Err(no_place()) };
        let start = offset.checked_add(bytes.start).map(|start| start - self.resident_before(start));
        let part = start.and_then(|start| input.get_mut(start..start.checked_add(bytes.len())?));
        part.ok_or_else(no_place)
    }

    fn is_resident(&self, lowered: &Lowered, v: V, at: usize) -> bool {
        let Place::Head(start) = lowered.values[v.0].place else { return false };
        self.resident.iter().any(|resident| resident.head.start == start + at)
    }

    /// Puts the copies of what a run brings into the compute stream: from the host what was filled in, the rest from where it lies.
    ///
    /// # Safety
    /// The workspace is not touched, and residents are live, until they are done.
    pub(super) unsafe fn bring(&self, gpu: &dyn Gpu, lowered: &Lowered) -> Result<(), GpuError> {
        let head = address(&self.head);
        let mut from = self.input.as_ref().map_or(std::ptr::null(), |input| input.at.as_ptr().cast_const());
        let mut at = 0;
        let end = lowered.brought_bytes..lowered.brought_bytes;
        for part in self.resident.iter().map(|resident| &resident.head).chain([&end]) {
            let bytes = part.start - at;
            if bytes > 0 {
                // SAFETY: `make_room` made room for all that comes from the host; the rest as the caller has it.
                from = unsafe {
                    gpu.copy_in(Stream::Compute, head + at as u64, from, bytes)?;
                    from.add(bytes)
                };
            }
            at = part.end;
        }
        for Resident { from, bytes, head: part } in &self.resident {
            // SAFETY: as the caller has it; the part is at least as large.
            unsafe { gpu.copy(Stream::Compute, head + part.start as u64, *from, *bytes) }?;
        }
        Ok(())
    }

    /// Puts the copies of outputs into the compute stream, behind what made them: those that stay to their memory, the others to the
    /// host's.
    ///
    /// # Safety
    /// As [`Self::bring`]; and the memory of what stays is live, and nobody else uses it.
    pub(super) unsafe fn take(&self, gpu: &dyn Gpu, at: &At<'_>) -> Result<(), GpuError> {
        let output = self.output.as_ref().map(|output| output.at.as_ptr());
        if let Some(to) = output.filter(|_| self.together > 0) {
            // SAFETY: `make_room` made room for it in both; as the caller has it.
            unsafe { gpu.copy_out(Stream::Compute, to, at.faults, self.together) }?;
        }
        for Stays { v, part, to } in &self.kept {
            let from = at.view(*v).at + part.start as u64;
            if !part.is_empty() {
                // SAFETY: the part is within the value, which lives to the plan's end; `check` saw to it that the memory has as many
                // bytes.
                unsafe { gpu.copy(Stream::Compute, *to, from, part.len() as u64) }?;
            }
        }
        let Some(output) = output else { return Ok(()) };
        for fetched in self.fetched.iter().filter(|fetched| fetched.apart) {
            // SAFETY: `make_room` made room for it; the value lives to the plan's end.
            unsafe {
                let to = output.add(fetched.offset);
                gpu.copy_out(Stream::Compute, to, at.view(fetched.v).at, fetched.bytes)
            }?;
        }
        Ok(())
    }

    /// The bytes of an output, if it came to the host.
    pub(super) fn bytes_of(&self, output: usize) -> Option<&[u8]> {
        let fetched = self.fetched.iter().find(|fetched| fetched.output == output)?;
        if fetched.bytes == 0 {
            return Some(&[]);
        }
        self.output.as_ref()?.bytes().get(fetched.offset..fetched.offset.checked_add(fetched.bytes)?)
    }
}

fn refuse_lost(is_lost: bool) -> Result<(), DeviceError> {
    let reason = "a tensor that the run was given is from before it failed";
    if is_lost { Err(DeviceError::Lost { reason: reason.to_owned() }) } else { Ok(()) }
}

fn no_place() -> DeviceError {
    DeviceError::Internal("an argument has no place in what a run brings".to_owned())
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

pub(super) fn address(buffer: &Option<GpuBuffer>) -> Address {
    buffer.as_ref().map_or(0, Buffer::address)
}
