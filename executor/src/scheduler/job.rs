//! One session's run, from its request to its reply.

use std::sync::Arc;

use genie_graph::Sizes;
use genie_transport::memory::Slab;
use genie_transport::wire::{ErrorCode, RemoteError, TensorSpec, limits, write_argument, write_resident};

use super::Class;
use crate::account::Charge;
use crate::buffers::Buffers;
use crate::caches::Turn;
use crate::core::Core;
use crate::error::{fail, partly};
use crate::generate::{Generation, Onward};
use crate::programs::Binding;
use crate::replies::Answer;
use crate::residents::{Content, Tensor};
use crate::session::{Object, Session};

/// See the module.
pub(crate) struct Job {
    pub(crate) session: Arc<Session>,
    pub(crate) id: u64,
    pub(crate) binding: Arc<Binding>,
    pub(crate) buffers: Box<Buffers>,
    pub(crate) sizes: Sizes,
    /// The length that the cache must have when the run begins.
    pub(crate) position: Option<u32>,
    /// Bit i: output i comes back.
    pub(crate) wanted: u32,
    /// Bit i: output i becomes a resident.
    pub(crate) keep: u32,
    /// Memory for the outputs that become residents.
    pub(crate) kept: Vec<Kept>,
    /// Set where the run is a step of a generate.
    pub(crate) generation: Option<Box<Generation>>,
    /// Caches whose turn it has.
    pub(crate) turns: usize,
    /// Something has changed: an error from here on says so.
    pub(crate) changed: bool,
}

/// Memory for an output that becomes a resident.
pub(crate) struct Kept {
    output: usize,
    spec: TensorSpec,
    slab: Slab,
    charge: Charge,
}

impl Job {
    /// Takes its turn with the next cache, or, when it has them all, gets ready to run.
    pub(crate) fn proceed(mut self, core: &Arc<Core>) {
        match self.binding.turns.get(self.turns) {
            Some(&next) => {
                let cache = self.binding.caches[next].clone();
                self.turns += 1;
                cache.enter(core, Turn::Job(self));
            }
            None => self.begin(core),
        }
    }

    /// Has every cache: checks what could not be checked before, takes memory, and goes to the device's queue.
    fn begin(mut self, core: &Arc<Core>) {
        for cache in &self.binding.caches {
            match cache.take() {
                Some(kv) => self.buffers.kvs.push(kv),
                None => {
                    let error = fail(ErrorCode::Internal, "a KV cache is used out of turn");
                    return self.fail(core, error);
                }
            }
        }
        let checked = self.check_position().and_then(|()| self.prepare(core));
        match checked {
            Ok(()) => self.enqueue(core),
            Err(error) => self.fail(core, error),
        }
    }

    /// To the device's queue. A batch's jobs go there before the next batch is picked, so that generates that run at the same
    /// time fall into step.
    pub(crate) fn enqueue(self, core: &Arc<Core>) {
        if self.session.is_cancelled(self.id) {
            return self.fail(core, fail(ErrorCode::Cancelled, "the request was cancelled"));
        }
        let queue = core.queue(self.binding.program.device);
        if let Err(job) = queue.push(self) {
            job.fail(core, shutting_down());
        }
    }

    fn check_position(&self) -> Result<(), RemoteError> {
        let Some(expected) = self.position else { return Ok(()) };
        let length = self.length();
        if length == expected {
            return Ok(());
        }
        let message = format!("the cache holds {length} tokens, not {expected}: look it up, or truncate it");
        Err(fail(ErrorCode::StalePosition, message))
    }

    /// Takes the memory of the next run: what its caches grow by, and what its kept outputs take. Changes nothing where that
    /// fails.
    pub(crate) fn prepare(&mut self, core: &Arc<Core>) -> Result<(), RemoteError> {
        let device = self.binding.program.device;
        let tokens = self.sizes.sequence;
        let length = self.buffers.kvs.first().map_or(0, |kv| kv.len());
        let fits = u32::try_from(length.saturating_add(tokens)).is_ok_and(|n| n < u32::MAX);
        if !fits {
            return Err(fail(ErrorCode::OutOfRange, "a KV cache holds at most 2^32 - 2 tokens"));
        }
        for (cache, kv) in self.binding.caches.iter().zip(&mut self.buffers.kvs) {
            cache.charge_for(kv, tokens)?;
            core.with_room(device, kv.growth(tokens), || kv.reserve(tokens))?;
        }
        if self.generation.is_some() {
            return Ok(());
        }
        let mut inline = 0_u64;
        for output in 0..u32::BITS {
            let (wanted, keep) = (self.wanted >> output & 1 == 1, self.keep >> output & 1 == 1);
            if !wanted && !keep {
                continue;
            }
            let output = output as usize;
            let sizes = Sizes { position: length, ..self.sizes };
            if wanted {
                inline = inline.saturating_add(self.binding.output_bytes(output, &sizes)?).saturating_add(64);
            }
            if keep {
                let spec = self.binding.output_spec(output, &sizes)?;
                let charge = self.session.account.charge(spec.bytes())?;
                let slab = core.allocate(device, spec.bytes())?;
                self.kept.push(Kept { output, spec, slab, charge });
            }
        }
        if inline > u64::from(limits::CONTROL_PAYLOAD_BYTES) {
            let message = format!("the outputs that are wanted take {inline} bytes: keep them, and get them in slices");
            return Err(fail(ErrorCode::OutOfRange, message));
        }
        Ok(())
    }

    /// The outputs that the device must fill.
    pub(crate) fn outputs_needed(&self) -> u64 {
        u64::from(self.wanted | self.keep)
    }

    pub(crate) fn class(&self) -> Class {
        self.binding.program.class
    }

    /// Whether the two can run as one batch: one decode step each, of the same program with the same weights.
    pub(crate) fn runs_with(&self, other: &Self) -> bool {
        let single = |job: &Self| job.sizes.sequence == 1 && job.sizes.batch == 1 && !job.buffers.kvs.is_empty();
        Arc::ptr_eq(&self.binding.program, &other.binding.program)
            && Arc::ptr_eq(&self.binding.weights, &other.binding.weights)
            && single(self)
            && single(other)
    }

    /// The length of the first cache; 0 where there is none.
    pub(crate) fn length(&self) -> u32 {
        self.buffers.kvs.first().map_or(0, |kv| u32::try_from(kv.len()).unwrap_or(u32::MAX))
    }

    /// The device has run it.
    pub(crate) fn ran(mut self, core: &Arc<Core>) {
        self.changed |= !self.buffers.kvs.is_empty();
        if let Some(mut generation) = self.generation.take() {
            match generation.advance(core, &mut self) {
                Onward::Again => {
                    self.generation = Some(generation);
                    return self.enqueue(core);
                }
                Onward::Ended => {}
                Onward::Failed(error) => self.answer_failed(error),
            }
        } else {
            self.answer_ran();
        }
        self.leave(core);
    }

    /// It did not work out.
    pub(crate) fn fail(mut self, core: &Arc<Core>, error: RemoteError) {
        self.kept.clear();
        // What was reserved for the run goes back, and with it any reservation of the cache's own.
        self.buffers.kvs.iter_mut().for_each(|kv| kv.truncate(kv.len()));
        self.answer_failed(error);
        self.leave(core);
    }

    fn answer_failed(&self, error: RemoteError) {
        let error = if self.changed { partly(error) } else { error };
        self.session.complete(self.id, Answer::Failed(error));
    }

    fn answer_ran(&mut self) {
        let (device, position) = (self.binding.program.device, self.length());
        let (wanted, keep) = (self.wanted, self.keep);
        let outputs = &self.buffers.outputs;
        let kept = &mut self.kept;
        self.session.complete_with(self.id, |state| {
            let mut bytes = state.window.buffer();
            let mut count = 0;
            for i in 0..u32::BITS as usize {
                let Some(output) = outputs.get(i) else { break };
                if keep >> i & 1 == 1 {
                    let Some(at) = kept.iter().position(|k| k.output == i) else { continue };
                    let Kept { spec, mut slab, charge, .. } = kept.swap_remove(at);
                    if slab.len() != output.data.len() {
                        return Answer::Failed(partly(fail(ErrorCode::DeviceFailed, "an output has the wrong size")));
                    }
                    slab.copy_from_slice(&output.data);
                    let content = Content::new(slab.freeze(), charge);
                    let tensor = Tensor::new(device, spec.clone(), None, content);
                    match state.insert(Object::Tensor(tensor)) {
                        Ok(handle) => write_resident(&mut bytes, i as u16, &spec, handle),
                        Err(error) => return Answer::Failed(partly(error)),
                    }
                    count += 1;
                }
                if wanted >> i & 1 == 1 {
                    let Some(dtype) = output.dtype else { continue };
                    if let Err(error) = write_argument(&mut bytes, i as u16, dtype, &output.dims, &output.data) {
                        return Answer::Failed(partly(fail(ErrorCode::DeviceFailed, error.to_string())));
                    }
                    count += 1;
                }
            }
            Answer::Ran { device, position, count, outputs: bytes }
        });
    }

    /// Gives caches and buffers back, and lets the next in line have the caches.
    fn leave(self, core: &Arc<Core>) {
        let Self { binding, mut buffers, .. } = self;
        for (cache, kv) in binding.caches.iter().zip(buffers.kvs.drain(..)) {
            cache.settle(&kv);
            cache.put_back(kv);
        }
        binding.recycle(buffers);
        for &turn in &binding.turns {
            binding.caches[turn].leave(core);
        }
    }
}

/// What a request gets that the server's end cut off.
pub(crate) fn shutting_down() -> RemoteError {
    fail(ErrorCode::ShuttingDown, "the server is shutting down: try again when it is back, or on another server")
}
