//! Tokens that the server makes, as they come.

use super::super::api;
use super::super::{Binding, ClientError, GenerateOptions, Generated};
use super::{Pending, Session};
use crate::wire::{Arguments, Finish, Request};

impl Session {
    /// Makes tokens on the server; `each` sees them as they come, and stops it by returning `false`.
    ///
    /// # Errors
    /// [`ClientError`]; tokens that were seen stay in the cache.
    pub fn generate(
        &mut self,
        prefill: Binding,
        decode: Binding,
        prompt: &[i32],
        options: &GenerateOptions<'_>,
        mut each: impl FnMut(&Generated) -> bool,
    ) -> Result<Finish, ClientError> {
        let pending = self.start_generate(prefill, decode, prompt, options)?;
        loop {
            let generated = self.next_generated(&pending)?;
            let go_on = each(&generated);
            if let Some(finish) = generated.finish {
                return Ok(finish);
            }
            if !go_on {
                self.cancel(&pending);
            }
        }
    }

    /// Begins to make tokens on the server: [`Self::next_generated`] gives them until it says why there are no more, or fails.
    ///
    /// # Errors
    /// If an input's bytes do not match its shape.
    pub fn start_generate(
        &mut self,
        prefill: Binding,
        decode: Binding,
        prompt: &[i32],
        options: &GenerateOptions<'_>,
    ) -> Result<Pending, ClientError> {
        let mut encoded = std::mem::take(&mut self.scratch);
        let count = api::write_inputs(&mut encoded, &options.inputs)?;
        let bytes = |ids: &[i32]| ids.iter().map(|id| id.to_le_bytes()).collect::<Vec<_>>();
        let (prompt, stop) = (bytes(prompt), bytes(&options.stop));
        let request = Request::Generate {
            prefill: prefill.0,
            decode: decode.0,
            position: options.position,
            max_new: options.max_new,
            prompt: &prompt,
            stop: &stop,
            arguments: Arguments::new(count, &encoded)?,
        };
        let pending = self.start(&request, None);
        self.scratch = encoded;
        Ok(pending)
    }

    /// The next tokens of a generate. Those with a reason to end are the last, and so is an error: do not ask again after either.
    ///
    /// # Errors
    /// [`ClientError`]; tokens that were seen stay in the cache.
    pub fn next_generated(&mut self, pending: &Pending) -> Result<Generated, ClientError> {
        self.engine.wait(|c| c.has_answer(pending.id));
        let client = self.engine.client();
        let generated = match client.answer(pending.id) {
            Some(Ok(reply)) => api::generated(&reply),
            Some(Err(error)) => Err(error),
            None => Err(ClientError::Interrupted),
        };
        if generated.as_ref().map_or(true, |generated| generated.finish.is_some()) {
            client.end(pending.id);
        }
        generated
    }
}
