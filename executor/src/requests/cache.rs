//! KV caches: create, fork, truncate.

use std::sync::Arc;

use genie_transport::wire::{ErrorCode, Handle, RemoteError};

use super::{From, Outcome};
use crate::caches::{Cache, Turn, blocks_bytes, tensor_spec};
use crate::core::Core;
use crate::error::fail;
use crate::replies::Answer;
use crate::session::{Object, Session};

impl Core {
    pub(super) fn cache_create(&self, from: &From<'_>, program: Handle, input: u32, reserve: u32) -> Outcome {
        let program = from.session.program(program)?;
        let spec = program.cache_spec(input)?;
        let device = program.device;
        let bytes = blocks_bytes(&spec, u64::from(reserve));
        let charge = from.session.account.charge(bytes)?;
        let mut kv = self.device(device)?.cache(spec)?;
        self.with_room(device, bytes, || kv.reserve(u64::from(reserve)))?;
        let spec = tensor_spec(&spec, 0)?;
        let cache = Cache::new(self.number(), device, kv, charge);
        let handle = from.session.lock().insert(Object::Cache(cache))?;
        Ok(Some(Answer::Tensor { handle, device, spec }))
    }

    pub(super) fn cache_fork(self: &Arc<Self>, from: &From<'_>, handle: Handle) -> Outcome {
        let cache = from.session.cache(handle)?;
        let (session, id) = (from.session.clone(), from.id);
        let quick = move |core: &Arc<Self>, cache: &Arc<Cache>| {
            let answer = core.fork(&session, cache).unwrap_or_else(Answer::Failed);
            session.complete(id, answer);
        };
        cache.enter(self, Turn::Quick(Box::new(quick)));
        Ok(None)
    }

    fn fork(&self, session: &Session, cache: &Cache) -> Result<Answer, RemoteError> {
        let device = cache.device;
        let (kv, charge) = cache.with(|kv, _| {
            let fork = kv.fork();
            let charge = session.account.charge(fork.bytes())?;
            Ok((fork, charge))
        })?;
        let spec = tensor_spec(&cache.spec, kv.len())?;
        let fork = Cache::new(self.number(), device, kv, charge);
        let handle = session.lock().insert(Object::Cache(fork))?;
        Ok(Answer::Tensor { handle, device, spec })
    }

    pub(super) fn cache_truncate(self: &Arc<Self>, from: &From<'_>, handle: Handle, length: u32) -> Outcome {
        let cache = from.session.cache(handle)?;
        let (session, id) = (from.session.clone(), from.id);
        let quick = move |_: &Arc<Self>, cache: &Arc<Cache>| {
            let done = cache.with(|kv, charge| {
                if u64::from(length) > kv.len() {
                    let message = format!("the cache holds {} tokens: it cannot be cut to {length}", kv.len());
                    return Err(fail(ErrorCode::OutOfRange, message));
                }
                kv.truncate(u64::from(length));
                Ok(charge.resize(kv.bytes())?)
            });
            session.complete(id, done.map_or_else(Answer::Failed, |()| Answer::Done));
        };
        cache.enter(self, Turn::Quick(Box::new(quick)));
        Ok(None)
    }
}
