//! What every device does alike with a program and its runs: it checks them, joins rows to batches, keeps plans, hands out results.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use genie_graph::{Dim, InputRole, Op, Sizes, Symbol, VerifiedGraph};

use super::inputs::Inputs;
use super::rows::rows_are_independent;
use super::{DeviceError, HostTensor, Memory, Row, Space};

/// What a program asks of a run, whatever device it is planned for.
pub(super) struct Contract {
    pub(super) graph: Arc<VerifiedGraph>,
    pub(super) inputs: Inputs,
    /// Whether several rows can run as one batch.
    batchable: bool,
    /// Whether a tensor's size depends on the position.
    positional: bool,
}

/// Rows that run together.
pub(super) struct Batch<'a> {
    /// Each row's sizes.
    pub(super) rows: &'a [Sizes],
    /// What they are as one.
    pub(super) sizes: Sizes,
    /// The number of the first among all rows of the run.
    first: usize,
}

impl Contract {
    /// # Errors
    /// [`DeviceError::Unsupported`] where the graph has what no device does.
    pub(super) fn of(graph: Arc<VerifiedGraph>) -> Result<Self, DeviceError> {
        let inputs = Inputs::of(&graph)?;
        let step = [Dim::Symbol(Symbol::Batch), Dim::Symbol(Symbol::Sequence)];
        for node in &graph.nodes {
            let appends = matches!(node.op, Op::Attention { .. }) && node.inputs.len() == 4;
            if appends && !node.ty.shape.0.starts_with(&step) && graph.fixed_step().is_none() {
                let op = "attention with a cache over other dimensions than [batch, sequence, ..], or [1, n, ..] in all of the graph";
                return Err(DeviceError::Unsupported { op: op.to_owned() });
            }
        }
        let positional = graph.nodes.iter().any(|n| {
            !matches!(n.op, Op::Input { role: InputRole::KvCache, .. })
                && n.ty.shape.0.contains(&Dim::Symbol(Symbol::Position))
        });
        let batchable = !positional && rows_are_independent(&graph);
        Ok(Self { graph, inputs, batchable, positional })
    }

    /// Of these sizes, those that a plan depends on.
    pub(super) fn planned(&self, sizes: Sizes) -> Sizes {
        if self.positional { sizes } else { Sizes { position: 0, ..sizes } }
    }

    /// Checks what a run is given, and finds the sizes of its rows.
    pub(super) fn check(
        &self,
        weights: &[Memory],
        rows: &[Row<'_>],
        sizes: &mut Vec<Sizes>,
    ) -> Result<(), DeviceError> {
        self.inputs.check_weights(weights)?;
        sizes.clear();
        for (i, row) in rows.iter().enumerate() {
            let own = self.inputs.check_row(i, row)?;
            if let Some(first) = sizes.first()
                && first.sequence != own.sequence
            {
                let reason = format!(
                    "it runs {} tokens, row 0 runs {}; batch rows of one length only",
                    own.sequence, first.sequence
                );
                return Err(DeviceError::Row { row: i, reason });
            }
            self.check_kept(i, row, &own)?;
            sizes.push(own);
        }
        Ok(())
    }

    fn check_kept(&self, index: usize, row: &Row<'_>, sizes: &Sizes) -> Result<(), DeviceError> {
        for kept in &row.kept {
            let node = self.graph.outputs.get(kept.output).map(|output| output.node);
            let wanted = node.and_then(|node| self.graph.nodes[node.0 as usize].ty.bytes(sizes));
            let (output, got) = (kept.output, kept.space.len());
            let reason = match wanted {
                Some(bytes) if bytes == got => continue,
                Some(bytes) => {
                    format!("output {output} has {bytes} bytes, the memory to keep it in {got}; give as many")
                }
                None => format!("there is no output {output} that could be kept"),
            };
            return Err(DeviceError::Row { row: index, reason });
        }
        Ok(())
    }

    /// Runs rows of these sizes, as one batch where they do not depend on each other, else one after another. Their caches have room
    /// for what `batch` appends; they grow once all has gone well.
    pub(super) fn run(
        &self,
        rows: &mut [Row<'_>],
        sizes: &[Sizes],
        batch: impl FnMut(&mut [Row<'_>], &Batch<'_>) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let sequence = sizes.first().map_or(0, |s| s.sequence);
        let mut caches = rows.iter_mut().flat_map(|row| &mut row.caches);
        let reserved = caches.try_for_each(|cache| cache.reserve(sequence));
        let done = reserved.and_then(|()| self.run_batches(rows, sizes, batch));
        for cache in rows.iter_mut().flat_map(|row| &mut row.caches) {
            match done {
                Ok(()) => cache.advance(sequence),
                Err(_) => cache.shrink(),
            }
        }
        done
    }

    fn run_batches(
        &self,
        rows: &mut [Row<'_>],
        sizes: &[Sizes],
        mut batch: impl FnMut(&mut [Row<'_>], &Batch<'_>) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        if self.batchable {
            return batch(rows, &Batch::of(sizes, 0));
        }
        for i in 0..rows.len() {
            batch(&mut rows[i..=i], &Batch::of(&sizes[i..=i], i))?;
        }
        Ok(())
    }

    /// Gives the rows what they want of the outputs, and hands each that stays to `keep`. `bytes_of` gives the bytes of those that
    /// came to the host, of all rows.
    pub(super) fn hand_out<'b>(
        &self,
        rows: &mut [Row<'_>],
        batch: &Batch<'_>,
        bytes_of: impl Fn(usize) -> Option<&'b [u8]>,
        keep: impl Fn(&mut Space, &[u8]) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let outputs = &self.graph.outputs;
        for row in rows.iter_mut().filter(|row| row.outputs.len() < outputs.len()) {
            row.outputs.resize_with(outputs.len(), HostTensor::default);
        }
        for (i, output) in outputs.iter().enumerate() {
            let Some(all) = bytes_of(i) else { continue };
            let ty = &self.graph.nodes[output.node.0 as usize].ty;
            for ((row, own), part) in rows.iter_mut().zip(batch.rows).zip(batch.parts(all.len())) {
                let short = || DeviceError::Internal(format!("output {i} is shorter than its rows"));
                let bytes = all.get(part).ok_or_else(short)?;
                for kept in row.kept.iter_mut().filter(|kept| kept.output == i) {
                    keep(kept.space, bytes)?;
                }
                if !wants(row.wanted, i) {
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
        Ok(())
    }
}

/// Whether a row's mask has this output.
pub(super) fn wants(wanted: u64, output: usize) -> bool {
    output >= 64 || wanted >> output & 1 == 1
}

impl<'a> Batch<'a> {
    fn of(rows: &'a [Sizes], first: usize) -> Self {
        let batch = rows.iter().try_fold(0_u64, |sum, s| sum.checked_add(s.batch));
        let any = rows.first().copied().unwrap_or_default();
        Self { rows, sizes: Sizes { batch: batch.unwrap_or(u64::MAX), ..any }, first }
    }

    /// The row of the run that a row of the batch dimension belongs to.
    pub(super) fn row_of(&self, batch_row: u64) -> usize {
        let mut end = 0;
        let within = self.rows.iter().position(|own| {
            end += own.batch;
            batch_row < end
        });
        self.first + within.unwrap_or_default()
    }

    /// The positions of all tokens.
    pub(super) fn positions(&self) -> impl Iterator<Item = i32> {
        let of = |s: &'a Sizes| (0..s.batch).flat_map(move |_| s.position..s.position + s.sequence);
        // They fit 31 bits: `check_row` saw to it.
        self.rows.iter().flat_map(of).map(|position| position as i32)
    }

    /// Where each row's part is of `bytes` bytes of an output.
    pub(super) fn parts(&self, bytes: usize) -> impl Iterator<Item = Range<usize>> {
        // Of several rows every output has the batch as its first dimension, and no row is without a sequence.
        let alone = self.rows.len() == 1;
        let each = bytes / self.sizes.batch.max(1) as usize;
        let mut end = 0;
        self.rows.iter().map(move |own| {
            let start = end;
            end += if alone { bytes } else { each * own.batch as usize };
            start..end
        })
    }
}

/// Plans that a program keeps: one for each of the last so many sets of sizes,
const KEPT_PLANS: usize = 32;
/// as far as they take no more bytes than this together, for these are in nobody's quota. The last one is kept in any case.
const KEPT_BYTES: usize = 32 << 20;

/// Plans by what they are made for, least recently used first.
pub(super) struct Plans<K, P> {
    list: Vec<(K, Arc<P>)>,
}

impl<K, P> Default for Plans<K, P> {
    fn default() -> Self {
        Self { list: Vec::new() }
    }
}

impl<K: PartialEq, P> Plans<K, P> {
    /// The plan that is kept, or the new one that `make` makes. `bytes` says what a plan takes that nobody pays for.
    pub(super) fn get(
        &mut self,
        key: K,
        make: impl FnOnce() -> Result<P, DeviceError>,
        bytes: impl Fn(&P) -> usize,
    ) -> Result<Arc<P>, DeviceError> {
        if let Some(i) = self.list.iter().position(|(other, _)| *other == key) {
            self.list[i..].rotate_left(1);
        } else {
            let plan = Arc::new(make()?);
            let mut sum = bytes(&plan);
            let fits = |(_, other): &&(K, Arc<P>)| {
                sum = sum.saturating_add(bytes(other));
                sum <= KEPT_BYTES
            };
            let stay = self.list.iter().rev().take(KEPT_PLANS - 1).take_while(fits).count();
            let go = self.list.len() - stay;
            self.list.drain(..go);
            self.list.push((key, plan));
        }
        // Either way it is the last now.
        self.list.last().map(|(_, plan)| plan.clone()).ok_or_else(|| DeviceError::Internal("a plan was lost".into()))
    }
}

impl<K: PartialEq, P> Plans<K, P> {
    /// The plan, if it is kept.
    pub(super) fn find(&self, key: &K) -> Option<&P> {
        self.list.iter().rev().find(|(other, _)| other == key).map(|(_, plan)| &**plan)
    }
}

impl<K, P> Plans<K, P> {
    /// Those that are kept.
    pub(super) fn kept(&self) -> impl Iterator<Item = &P> {
        self.list.iter().map(|(_, plan)| &**plan)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under the lock leaves lists that are cleared or replaced before they are used.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
