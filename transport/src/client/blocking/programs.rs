//! Programs: registered, bound and run.

use super::super::api;
use super::super::{BindInputs, Binding, Cache, ClientError, Input, Outputs, Program, RunOptions, Tensor};
use super::{Pending, Session};
use crate::wire::{Caps, ContentHash, Request, write_token_of};

impl Session {
    /// Registers an encoded graph.
    ///
    /// # Errors
    /// [`ClientError`]; the verifier's words if it does not pass.
    pub fn define(&mut self, device: u16, graph: &[u8]) -> Result<Program, ClientError> {
        let pending = self.start_define(device, graph);
        self.finish_define(pending)
    }

    /// Begins to register an encoded graph.
    pub fn start_define(&mut self, device: u16, graph: &[u8]) -> Pending {
        self.start(&Request::Define { device, graph }, None)
    }

    /// Waits for what [`Self::start_define`] began.
    ///
    /// # Errors
    /// [`ClientError`]; the verifier's words if it does not pass.
    pub fn finish_define(&mut self, pending: Pending) -> Result<Program, ClientError> {
        self.finish(pending.id, api::program)
    }

    /// Registers a graph by its content hash; `None` if the server has no such graph: then [`Self::define`] it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn define_known(&mut self, device: u16, hash: ContentHash) -> Result<Option<Program>, ClientError> {
        let pending = self.start_define_known(device, hash);
        self.finish_define_known(pending)
    }

    /// Begins to register a graph by its content hash.
    pub fn start_define_known(&mut self, device: u16, hash: ContentHash) -> Pending {
        self.start(&Request::DefineKnown { device, hash }, None)
    }

    /// Waits for what [`Self::start_define_known`] began; `None` if the server has no such graph.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn finish_define_known(&mut self, pending: Pending) -> Result<Option<Program>, ClientError> {
        api::known(self.finish(pending.id, api::program))
    }

    /// Joins a program with residents, caches and fixed inputs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn bind(&mut self, program: &Program, inputs: &BindInputs<'_>) -> Result<Binding, ClientError> {
        let pending = self.start_bind(program, inputs)?;
        self.finish_bind(pending)
    }

    /// Begins to join a program with residents, caches and fixed inputs.
    ///
    /// # Errors
    /// If an input's bytes do not match its shape, or a handle is from before the server's last start.
    pub fn start_bind(&mut self, program: &Program, inputs: &BindInputs<'_>) -> Result<Pending, ClientError> {
        let spans = api::takes_sets(self.engine.client().welcome());
        let mut fixed = std::mem::take(&mut self.scratch);
        let pending = api::write_inputs(&mut fixed, &inputs.fixed)
            .and_then(|_| api::bind_request(program, inputs, spans, &fixed))
            .map(|request| self.start(&request, None));
        self.scratch = fixed;
        pending
    }

    /// Waits for a binding.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn finish_bind(&mut self, pending: Pending) -> Result<Binding, ClientError> {
        self.finish(pending.id, api::bound)
    }

    /// Makes an empty KV cache that fits an input of a program.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn create_cache(&mut self, program: &Program, input: u32, reserve: u32) -> Result<Cache, ClientError> {
        let pending = self.start_create_cache(program, input, reserve);
        self.finish_cache(pending)
    }

    /// Begins to make an empty KV cache.
    pub fn start_create_cache(&mut self, program: &Program, input: u32, reserve: u32) -> Pending {
        self.start(&Request::CacheCreate { program: program.handle, input, reserve }, None)
    }

    /// A second cache with the same tokens.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn fork_cache(&mut self, cache: Cache) -> Result<Cache, ClientError> {
        let pending = self.start_fork_cache(cache);
        self.finish_cache(pending)
    }

    /// Begins to make a second cache with the same tokens.
    pub fn start_fork_cache(&mut self, cache: Cache) -> Pending {
        self.start(&Request::CacheFork(cache.0), None)
    }

    /// Waits for a cache.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn finish_cache(&mut self, pending: Pending) -> Result<Cache, ClientError> {
        self.finish(pending.id, |reply| api::tensor(reply).map(|t| Cache(t.handle)))
    }

    /// Forgets a cache's tokens from `length` on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn truncate_cache(&mut self, cache: Cache, length: u32) -> Result<(), ClientError> {
        let pending = self.start_truncate_cache(cache, length);
        self.finish_free(pending)
    }

    /// Begins to forget a cache's tokens from `length` on; [`Self::finish_free`] waits for it.
    pub fn start_truncate_cache(&mut self, cache: Cache, length: u32) -> Pending {
        self.start(&Request::CacheTruncate { cache: cache.0, length }, None)
    }

    /// Runs a binding once.
    ///
    /// # Errors
    /// [`ClientError`]; on a server error no cache has grown.
    pub fn run(&mut self, binding: Binding, inputs: &[Input<'_>], options: RunOptions) -> Result<Outputs, ClientError> {
        let pending = self.start_run(binding, inputs, options)?;
        self.finish_run(pending)
    }

    /// As [`Self::run`], with tensors of this session for some inputs: see [`Self::start_run_with`].
    ///
    /// # Errors
    /// [`ClientError`]; on a server error no cache has grown.
    pub fn run_with(
        &mut self,
        binding: Binding,
        inputs: &[Input<'_>],
        residents: &[(u16, &Tensor)],
        options: RunOptions,
    ) -> Result<Outputs, ClientError> {
        let pending = self.start_run_with(binding, inputs, residents, options)?;
        self.finish_run(pending)
    }

    /// Runs a binding once for the one i32 that its first wanted output is: a decode step. Allocates nothing.
    ///
    /// # Errors
    /// [`ClientError`]; on a server error no cache has grown.
    pub fn step(&mut self, binding: Binding, inputs: &[Input<'_>], options: RunOptions) -> Result<i32, ClientError> {
        let pending = self.start_run(binding, inputs, options)?;
        self.finish_step(pending)
    }

    /// Waits for a run that [`Self::start_run`] or [`Self::start_run_on`] began, for the one i32 that its first wanted output is.
    /// Allocates nothing.
    ///
    /// # Errors
    /// [`ClientError`]; on a server error no cache has grown.
    pub fn finish_step(&mut self, pending: Pending) -> Result<i32, ClientError> {
        self.finish(pending.id, api::token)
    }

    /// Whether the server knows [`Self::start_run_on`]: older ones do not.
    pub fn can_run_ahead(&mut self) -> bool {
        self.caps().has(Caps::AHEAD)
    }

    /// Whether the server knows [`Self::start_run_with`], and outputs from 32 on: older ones do not.
    pub fn can_name_residents(&mut self) -> bool {
        self.caps().has(Caps::NAMED)
    }

    fn caps(&mut self) -> Caps {
        self.engine.client().welcome().map_or(Caps::default(), |welcome| welcome.caps)
    }

    /// Begins to run a binding on the token that an earlier run in the same cache gives: input `tokens`, `i32 [1, 1]`. That run needs
    /// not be answered; its token must be among its wanted outputs, and no other run in the cache may come between the two.
    /// Where it fails or is cancelled, this run fails with [`crate::wire::ErrorCode::BadArgument`] and changes nothing. For a server
    /// of which [`Self::can_run_ahead`] holds.
    ///
    /// # Errors
    /// [`ClientError::ServerTooOld`] for outputs from 32 on; what else there is the server says later.
    pub fn start_run_on(
        &mut self,
        earlier: &Pending,
        binding: Binding,
        tokens: u16,
        options: RunOptions,
    ) -> Result<Pending, ClientError> {
        api::can_run(self.caps(), &[], &options)?;
        let mut encoded = std::mem::take(&mut self.scratch);
        encoded.clear();
        write_token_of(&mut encoded, tokens, earlier.id.0);
        let pending = api::run_request(binding, options, 1, &encoded).map(|request| self.start(&request, None));
        self.scratch = encoded;
        pending
    }

    /// Asks the server to stop a request; its `finish_` call still waits for the answer, which is what the request did before that was
    /// noticed, or [`crate::wire::ErrorCode::Cancelled`].
    pub fn cancel(&mut self, pending: &Pending) {
        self.engine.client().cancel(pending.id);
    }

    /// Begins to run a binding.
    ///
    /// # Errors
    /// If an input's bytes do not match its shape.
    pub fn start_run(
        &mut self,
        binding: Binding,
        inputs: &[Input<'_>],
        options: RunOptions,
    ) -> Result<Pending, ClientError> {
        self.start_run_with(binding, inputs, &[], options)
    }

    /// Begins to run a binding, with tensors of this session for inputs that were not bound and are no weights, by node id. A tensor, a
    /// weight among them, is read where it lies on the server, and as it is when the request gets there: what becomes of it later, the
    /// run does not see. It must be on the program's device, and type and shape must be as `tensor.spec` says. Allocates nothing.
    ///
    /// # Errors
    /// If an input's bytes do not match its shape; [`ClientError::ServerTooOld`], see [`Self::can_name_residents`].
    pub fn start_run_with(
        &mut self,
        binding: Binding,
        inputs: &[Input<'_>],
        residents: &[(u16, &Tensor)],
        options: RunOptions,
    ) -> Result<Pending, ClientError> {
        api::can_run(self.caps(), residents, &options)?;
        let mut encoded = std::mem::take(&mut self.scratch);
        let pending = api::write_run_inputs(&mut encoded, inputs, residents)
            .and_then(|count| api::run_request(binding, options, count, &encoded))
            .map(|request| self.start(&request, None));
        self.scratch = encoded;
        pending
    }

    /// Waits for a run.
    ///
    /// # Errors
    /// [`ClientError`]; on a server error no cache has grown.
    pub fn finish_run(&mut self, pending: Pending) -> Result<Outputs, ClientError> {
        self.finish(pending.id, api::outputs)
    }
}
