//! One session's run, from its request to its reply.

use std::sync::Arc;

use genie_graph::Sizes;
use genie_transport::wire::{ErrorCode, RemoteError, TensorSpec, limits, write_argument, write_resident};

use super::worker::run_here;
use super::{Class, Share};
use crate::account::{Charge, HostMemory};
use crate::buffers::Buffers;
use crate::caches::{Turn, serve_lines};
use crate::config::Mode;
use crate::core::Core;
use crate::device::{Kept, Space};
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
    pub(crate) wanted: u64,
    /// Bit i: output i becomes a resident.
    pub(crate) keep: u64,
    /// Memory for the outputs that become residents, which the device fills.
    pub(crate) kept: Vec<KeptOutput>,
    /// What it takes beside residents.
    pub(crate) host: HostMemory,
    /// Set where the run is a step of a generate.
    pub(crate) generation: Option<Box<Generation>>,
    /// Caches whose turn it has.
    pub(crate) turns: usize,
    /// Something has changed: an error from here on says so.
    pub(crate) changed: bool,
}

/// Memory for an output that becomes a resident.
pub(crate) struct KeptOutput {
    output: usize,
    spec: TensorSpec,
    space: Space,
    charge: Charge,
}

/// A token that a step of a generate has made, and that is still to be sent. It waits until the device has the next run, so that nobody's
/// next step waits for the sending.
pub(crate) struct Said {
    pub(crate) session: Arc<Session>,
    pub(crate) id: u64,
    pub(crate) device: u16,
    /// The length of the cache then.
    pub(crate) position: u32,
    pub(crate) token: [u8; 4],
}

impl Said {
    fn send(self) {
        self.session.generated(self.id, self.device, self.position, Some(self.token), None);
    }

    /// Sends them all.
    pub(super) fn all(list: &mut Vec<Self>) {
        list.drain(..).for_each(Self::send);
    }
}

impl KeptOutput {
    /// What the device is given of it.
    pub(crate) fn for_device(&mut self) -> Kept<'_> {
        Kept { output: self.output, space: &mut self.space }
    }
}

impl Job {
    /// A new run: takes its turns with its caches, and gets ready. One that is over before the device's thread were awake runs here.
    pub(crate) fn start(self, core: &Arc<Core>) {
        let device = self.binding.program.device;
        let lent = self.may_run_here(core).then(|| core.queue(device).lend()).flatten();
        let done = match lent.filter(|_| self.binding.program.loaded.is_brief(&self.sizes)) {
            Some(lent) => self.get_ready(core).map(|job| run_here(core, lent, job)),
            None => self.proceed(core),
        };
        if let Err(ended) = done {
            serve_lines(core, ended.caches.clone());
        }
    }

    /// Whether it waits for nobody: where there is a thread for the device, the caller's may do its work for once.
    fn may_run_here(&self, core: &Core) -> bool {
        core.config.mode == Mode::Threads && self.binding.caches.is_empty() && self.generation.is_none()
    }

    /// Takes its turn with one cache after another and, when it has them all, gets ready to run.
    ///
    /// # Errors
    /// It has failed, and its request is answered; the caller must let the next in line have the binding's caches.
    pub(crate) fn proceed(mut self, core: &Arc<Core>) -> Result<(), Arc<Binding>> {
        while let Some(&next) = self.binding.turns.get(self.turns) {
            let cache = self.binding.caches[next].clone();
            self.turns += 1;
            match cache.line_up(Turn::Job(self)) {
                Some(Turn::Job(job)) => self = job,
                _ => return Ok(()),
            }
        }
        self.begin(core)
    }

    /// Has every cache: gets ready, and goes to the device's queue.
    fn begin(self, core: &Arc<Core>) -> Result<(), Arc<Binding>> {
        self.get_ready(core)?.enqueue(core)
    }

    /// Checks what could not be checked before, and takes memory.
    fn get_ready(mut self, core: &Arc<Core>) -> Result<Self, Arc<Binding>> {
        for cache in &self.binding.caches {
            match cache.take() {
                Some(kv) => self.buffers.kvs.push(kv),
                None => {
                    let error = fail(ErrorCode::Internal, "a KV cache is used out of turn");
                    return Err(self.end(error));
                }
            }
        }
        let checked = self.take_token().and_then(|()| self.check_position()).and_then(|()| self.prepare(core));
        match checked {
            Ok(()) => Ok(self),
            Err(error) => Err(self.end(error)),
        }
    }

    /// To the device's queue. A batch's jobs go there before the next batch is picked, so that generates that run at the same
    /// time fall into step.
    ///
    /// # Errors
    /// As for [`Self::proceed`].
    fn enqueue(self, core: &Arc<Core>) -> Result<(), Arc<Binding>> {
        self.try_enqueue(core).map_err(|(job, error)| job.end(error))
    }

    /// As [`Self::enqueue`]; gives the job back where that did not work, with why.
    fn try_enqueue(self, core: &Arc<Core>) -> Result<(), (Box<Self>, RemoteError)> {
        if self.session.is_cancelled(self.id) {
            return Err((Box::new(self), fail(ErrorCode::Cancelled, "the request was cancelled")));
        }
        let queue = core.queue(self.binding.program.device);
        match queue.push(self) {
            None => Ok(()),
            Some(job) => Err((Box::new(job), shutting_down())),
        }
    }

    /// Takes the token that an earlier run gave, where it was asked to. That run has ended: each is in turn.
    fn take_token(&mut self) -> Result<(), RemoteError> {
        let Self { binding, buffers, .. } = self;
        buffers.take_awaited(|request| binding.caches.first()?.token_of(request))
    }

    /// Leaves the token that it gave to the next run.
    fn leave_token(&self) {
        let Some(cache) = self.binding.caches.first() else { return };
        let wanted = |output: &usize| *output < u64::BITS as usize && self.wanted >> *output & 1 == 1;
        let sampled = self.binding.program.sampled.filter(wanted);
        cache.gave(self.id, sampled.and_then(|output| self.buffers.token(output)));
        // Of the others this is the last run, too.
        self.binding.caches.iter().skip(1).for_each(|other| other.gave(self.id, None));
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
        let (mut inline, mut host) = (0_u64, 0_u64);
        for output in bits(self.wanted | self.keep) {
            let (wanted, keep) = (self.wanted >> output & 1 == 1, self.keep >> output & 1 == 1);
            let sizes = if self.buffers.kvs.is_empty() { self.sizes } else { Sizes { position: length, ..self.sizes } };
            let bytes = self.binding.output_bytes(output, &sizes)?;
            if wanted {
                host = host.saturating_add(bytes);
                inline = inline.saturating_add(bytes).saturating_add(64);
            }
            if keep {
                let spec = self.binding.output_spec(output, &sizes)?;
                if let Some(dim) = spec.dims().iter().find(|&&dim| i32::try_from(dim).is_err()) {
                    let message = format!("output {output} cannot stay: a dimension of {dim} has more than 31 bits");
                    return Err(fail(ErrorCode::OutOfRange, message));
                }
                let charge = self.session.account.charge(spec.bytes())?;
                let space = core.allocate_own(device, spec.bytes(), self.session.number)?;
                self.kept.push(KeptOutput { output, spec, space, charge });
            }
        }
        if inline > u64::from(limits::CONTROL_PAYLOAD_BYTES) {
            let message = format!("the outputs that are wanted take {inline} bytes: keep them, and get them in slices");
            return Err(fail(ErrorCode::OutOfRange, message));
        }
        Ok(self.host.add(&self.session.account, host)?)
    }

    /// Leaves all but the first tokens of a prompt to later runs. Whether there were more.
    pub(super) fn shorten(&mut self, most: usize) -> bool {
        let most = most.max(1);
        let longer = self.sizes.sequence > most as u64;
        let Some(at) = self.binding.program.tokens.filter(|_| longer && self.generation.is_some()) else {
            return false;
        };
        self.sizes.sequence = most as u64;
        self.buffers.keep_tokens(at, most);
        true
    }

    /// A prompt is prefill, whatever its program says of itself: it does not go before other sessions' steps.
    pub(crate) fn class(&self) -> Class {
        if self.sizes.sequence == 1 { self.binding.program.class } else { Class::Prefill }
    }

    /// What its session has in the queue that it goes to.
    pub(super) fn share(&self) -> Option<&Share> {
        self.session.share(self.binding.program.device, self.class())
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

    /// The device has run it. A token after which it goes on is left in `said`.
    pub(crate) fn ran(mut self, core: &Arc<Core>, said: &mut Vec<Said>) {
        self.buffers.let_go();
        self.changed |= !self.buffers.kvs.is_empty();
        if let Some(mut generation) = self.generation.take() {
            match generation.advance(core, &mut self) {
                Onward::Again(token) => {
                    self.generation = Some(generation);
                    match self.try_enqueue(core) {
                        Ok(()) => said.extend(token),
                        Err((job, error)) => {
                            // Before what ends the request.
                            token.into_iter().for_each(Said::send);
                            pass_on(core, &job.end(error));
                        }
                    }
                    return;
                }
                Onward::Ended => {}
                Onward::Failed(token, error) => {
                    token.into_iter().for_each(Said::send);
                    self.answer_failed(error);
                }
            }
        } else {
            self.leave_token();
            self.answer_ran();
        }
        pass_on(core, &self.give_back());
    }

    /// It did not work out.
    pub(crate) fn fail(self, core: &Arc<Core>, error: RemoteError) {
        pass_on(core, &self.end(error));
    }

    /// It did not work out; the caches of the binding that comes back are still to be passed on.
    fn end(mut self, error: RemoteError) -> Arc<Binding> {
        self.kept.clear();
        self.buffers.let_go();
        // What was reserved for the run goes back, and with it any reservation of the cache's own.
        self.buffers.kvs.iter_mut().for_each(|kv| kv.truncate(kv.len()));
        self.answer_failed(error);
        self.give_back()
    }

    fn answer_failed(&self, error: RemoteError) {
        let error = if self.changed { partly(error) } else { error };
        self.session.complete(self.id, Answer::Failed(error));
    }

    fn answer_ran(&mut self) {
        let (device, position) = (self.binding.program.device, self.length());
        let (wanted, keep) = (self.wanted, self.keep);
        let resident = |KeptOutput { output, spec, space, charge }| {
            (output, Tensor::new(device, spec, None, Content::new(space.freeze(), charge)))
        };
        let mut kept: Vec<(usize, Arc<Tensor>)> = self.kept.drain(..).map(resident).collect();
        let outputs = &self.buffers.outputs;
        self.session.complete_with(self.id, |state| {
            let mut bytes = state.window.buffer();
            let mut count = 0;
            for i in bits(wanted | keep) {
                if keep >> i & 1 == 1 {
                    let Some(at) = kept.iter().position(|(of, _)| *of == i) else { continue };
                    let (_, tensor) = kept.swap_remove(at);
                    let written = state.insert(Object::Tensor(tensor.clone())).and_then(|handle| {
                        write_resident(&mut bytes, i as u16, &tensor.spec, handle)
                            .map_err(|error| fail(ErrorCode::Internal, error.to_string()))
                    });
                    if let Err(error) = written {
                        return Answer::Failed(partly(error));
                    }
                    count += 1;
                }
                if wanted >> i & 1 == 1 {
                    let Some(output) = outputs.get(i) else { break };
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

    /// Gives caches and buffers back.
    fn give_back(self) -> Arc<Binding> {
        let Self { binding, mut buffers, .. } = self;
        for (cache, kv) in binding.caches.iter().zip(buffers.kvs.drain(..)) {
            cache.settle(&kv);
            cache.put_back(kv);
        }
        binding.recycle(buffers);
        binding
    }
}

/// Which bits are set, in order.
fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (next < u64::BITS).then_some(next as usize)
    })
}

/// Lets the next in line have the caches of a run that has ended.
pub(super) fn pass_on(core: &Arc<Core>, ended: &Binding) {
    for &turn in &ended.turns {
        ended.caches[turn].leave(core);
    }
}

/// What a request gets that the server's end cut off.
pub(crate) fn shutting_down() -> RemoteError {
    fail(ErrorCode::ShuttingDown, "the server is shutting down: try again when it is back, or on another server")
}
