//! What is on the server already: copied, freed, found.

use super::super::api;
use super::super::{ClientError, Tensor};
use super::{Pending, Session};
use crate::wire::{Handle, Request};

impl Session {
    /// Copies a tensor on the server.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn copy(&mut self, tensor: &Tensor, device: u16) -> Result<Tensor, ClientError> {
        let pending = self.start_copy(tensor, device);
        self.finish_put(pending)
    }

    /// Begins to copy a tensor on the server; [`Self::finish_put`] waits for it.
    pub fn start_copy(&mut self, tensor: &Tensor, device: u16) -> Pending {
        self.start(&Request::Copy { handle: tensor.handle, device }, None)
    }

    /// Frees a tensor, cache, program or binding.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn free(&mut self, handle: Handle) -> Result<(), ClientError> {
        let pending = self.start_free(handle);
        self.finish_free(pending)
    }

    /// Begins to free a tensor, cache, program or binding.
    pub fn start_free(&mut self, handle: Handle) -> Pending {
        self.start(&Request::Free(handle), None)
    }

    /// Waits for what [`Self::start_free`] began, or [`Self::start_truncate_cache`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn finish_free(&mut self, pending: Pending) -> Result<(), ClientError> {
        self.finish(pending.id, api::done)
    }

    /// Finds a tensor by name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn lookup(&mut self, name: &str) -> Result<Tensor, ClientError> {
        let pending = self.start_lookup(name);
        self.finish_put(pending)
    }

    /// Begins to find a tensor by name; [`Self::finish_put`] waits for it.
    pub fn start_lookup(&mut self, name: &str) -> Pending {
        self.start(&Request::LookupName(name), None)
    }

    /// Describes a tensor or cache.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn describe(&mut self, handle: Handle) -> Result<Tensor, ClientError> {
        self.call(&Request::LookupHandle(handle), api::tensor)
    }
}
