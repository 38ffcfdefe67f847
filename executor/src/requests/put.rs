//! Puts: inline and in slices, of new residents, into residents, into caches.

use std::sync::Arc;
use std::time::Instant;

use genie_transport::memory::Region;
use genie_transport::wire::{
    ContentHash, ErrorCode, Handle, PutBody, PutRequest, PutTarget, RemoteError, ResidencyCode, TensorSpec, limits,
};

use super::{From, Outcome};
use crate::account::Charge;
use crate::caches::{Cache, Turn, tensor_spec};
use crate::core::Core;
use crate::device::{DeviceError, Memory, Space};
use crate::error::fail;
use crate::replies::Answer;
use crate::residents::{Content, Tensor};
use crate::rights::scoped;
use crate::session::{Object, State, Work};
use crate::stats::add;
use crate::uploads::{Target, Upload, Waiter, mismatch};
use crate::weights::Found;

/// How the bytes of a put come.
#[derive(Clone, Copy)]
enum Body<'a> {
    /// They are here, to be copied.
    Here(&'a [u8]),
    Sliced {
        slice_bytes: u32,
        announce: bool,
    },
}

impl Body<'_> {
    /// Whether the bytes come by the client's network card.
    fn is_one_sided(self, from: &From<'_>) -> bool {
        matches!(self, Self::Sliced { .. }) && from.peer.is_one_sided()
    }
}

/// Contents up to this size are hashed on the thread that received them.
const HASHED_HERE: u64 = 256 << 10;

impl Core {
    pub(super) fn put(self: &Arc<Self>, from: &From<'_>, put: &PutRequest<'_>) -> Outcome {
        let body = match put.body {
            PutBody::Inline(bytes) => Body::Here(bytes),
            PutBody::Sliced { slice_bytes, announce } => Body::Sliced { slice_bytes, announce },
            PutBody::Passed(place) => {
                let region = from.peer.passed(place, put.spec.bytes())?;
                return self.put_passed(from, put, region);
            }
        };
        self.put_bytes(from, put, body)
    }

    /// Bytes that lie in memory that the client shares. A private tensor is there to stay: nothing is copied. What others see,
    /// or what must not change once it was checked, is taken as a copy.
    fn put_passed(self: &Arc<Self>, from: &From<'_>, put: &PutRequest<'_>, region: Region) -> Outcome {
        match put.target {
            PutTarget::New { device, residency: ResidencyCode::Private, hash: None, name: None } => {
                let reads_it = self.device(device)?.reads_host_memory();
                from.session.lock().objects.has_room()?;
                let waiter = from.waiter(put, None)?;
                if reads_it {
                    self.install(waiter, device, None, region.into());
                    return Ok(None);
                }
                let mut space = self.allocate(device, put.spec.bytes())?;
                // The device reads the client's memory; nobody of ours touches a byte of it.
                self.spawn(move |core| match space.copy(0, &region.into()) {
                    Ok(()) => core.install(waiter, device, None, space.freeze()),
                    Err(error) => waiter.fail(error.into()),
                });
                Ok(None)
            }
            // It is copied here, on the connection's thread.
            _ if region.len() as u64 <= u64::from(limits::CONTROL_PAYLOAD_BYTES) => {
                self.put_bytes(from, put, Body::Here(&region))
            }
            _ => {
                let limit = limits::CONTROL_PAYLOAD_BYTES;
                let message = format!(
                    "over {limit} bytes only a new private tensor without name or hash is taken where it lies: send it in slices"
                );
                Err(fail(ErrorCode::BadArgument, message))
            }
        }
    }

    fn put_bytes(self: &Arc<Self>, from: &From<'_>, put: &PutRequest<'_>, body: Body<'_>) -> Outcome {
        match put.target {
            PutTarget::New { device, residency, hash, name } => {
                self.device(device)?;
                from.session.lock().objects.has_room()?;
                match (residency, hash) {
                    (ResidencyCode::Weight, Some(hash)) => self.put_weight(from, (put, body), device, hash, name),
                    _ => self.put_private(from, (put, body), device, hash, name),
                }
            }
            PutTarget::Range { handle, offset } => {
                let tensor = from.session.tensor(handle)?;
                tensor.may_replace(offset, put.spec.bytes())?;
                self.put_range(from, (put, body), handle, tensor, offset)
            }
            PutTarget::Cache { handle, length } => {
                let cache = from.session.cache(handle)?;
                self.put_cache(from, (put, body), handle, cache, length)
            }
        }
    }

    fn put_private(
        self: &Arc<Self>,
        from: &From<'_>,
        (put, body): (&PutRequest<'_>, Body<'_>),
        device: u16,
        hash: Option<ContentHash>,
        name: Option<&str>,
    ) -> Outcome {
        let waiter = from.waiter(put, name)?;
        // What must have a hash is hashed as it passes through the host.
        let direct = hash.is_none() && body.is_one_sided(from);
        let bytes = put.spec.bytes();
        let mut space = if direct {
            self.allocate_reachable(device, bytes)?
        } else if self.device(device)?.reads_host_memory() {
            // A session that puts and gets has the same memory again.
            self.allocate_own(device, bytes, from.session.number)?
        } else {
            self.allocate(device, bytes)?
        };
        match body {
            Body::Here(bytes) => {
                space.write(0, bytes)?;
                self.verify(hash, space.freeze(), move |core, memory| match memory {
                    Ok(memory) => core.install(waiter, device, None, memory),
                    Err(error) => waiter.fail(error),
                });
            }
            Body::Sliced { slice_bytes, announce } => {
                let upload = self.upload((device, Target::Private(hash)), vec![space], slice_bytes, from.now);
                self.begin_upload(from, &upload, waiter, announce);
            }
        }
        Ok(None)
    }

    fn put_weight(
        self: &Arc<Self>,
        from: &From<'_>,
        (put, body): (&PutRequest<'_>, Body<'_>),
        device: u16,
        hash: ContentHash,
        name: Option<&str>,
    ) -> Outcome {
        let mut waiter = from.waiter(put, name)?;
        loop {
            match self.find_weight(device, &hash, put.spec.bytes()) {
                Found::Evicted(copy) => {
                    waiter.no_more_slices();
                    self.spawn(move |core| match core.bring_weight(device, hash, copy) {
                        Ok(memory) => core.install(waiter, device, Some(hash), memory),
                        Err(error) => waiter.fail(error),
                    });
                    return Ok(None);
                }
                Found::Present(memory) => {
                    waiter.no_more_slices();
                    self.install(waiter, device, Some(hash), memory);
                    return Ok(None);
                }
                Found::Partial(upload) => {
                    let Body::Sliced { slice_bytes, announce } = body else { break };
                    if !announce && slice_bytes != upload.landing.slice_bytes() {
                        break;
                    }
                    match upload.wait(waiter, from.now) {
                        Ok(()) => {
                            add(&self.stats.uploads_adopted, 1);
                            from.awaits(&upload, announce);
                            // It may have become whole before this request was waiting for it.
                            self.landed_whole(&upload);
                            return Ok(None);
                        }
                        // It has just ended: what became of it is in the store.
                        Err(back) => waiter = back,
                    }
                }
                Found::Absent => break,
            }
        }
        let mut space = self.allocate(device, put.spec.bytes())?;
        match body {
            Body::Here(bytes) => {
                space.write(0, bytes)?;
                self.verify(Some(hash), space.freeze(), move |core, memory| match memory {
                    Ok(memory) => {
                        let memory = core.weights(device).insert(hash, memory);
                        core.install(waiter, device, Some(hash), memory);
                    }
                    Err(error) => waiter.fail(error),
                });
            }
            Body::Sliced { slice_bytes, announce } => {
                let upload = self.upload((device, Target::Weight(hash)), vec![space], slice_bytes, from.now);
                // Where somebody else was faster, this one is its own: whichever is whole first is kept.
                self.weights(device).announce(hash, &upload);
                self.begin_upload(from, &upload, waiter, announce);
            }
        }
        Ok(None)
    }

    fn put_range(
        self: &Arc<Self>,
        from: &From<'_>,
        (put, body): (&PutRequest<'_>, Body<'_>),
        handle: Handle,
        tensor: Arc<Tensor>,
        offset: u64,
    ) -> Outcome {
        let device = tensor.device;
        match body {
            Body::Here(bytes) => {
                let length = bytes.len() as u64;
                let write = |space: &mut Space| space.write(offset, bytes);
                tensor.write(from.session.number, (offset, length), write, |n| self.allocate(device, n))?;
                Ok(Some(Answer::Tensor { handle, device, spec: tensor.spec.clone() }))
            }
            Body::Sliced { slice_bytes, announce } => {
                let waiter = from.waiter(put, None)?;
                let space = self.allocate_for(body.is_one_sided(from), device, put.spec.bytes())?;
                let target = Target::Range { handle, tensor, offset };
                let upload = self.upload((device, target), vec![space], slice_bytes, from.now);
                self.begin_upload(from, &upload, waiter, announce);
                Ok(None)
            }
        }
    }

    fn put_cache(
        self: &Arc<Self>,
        from: &From<'_>,
        (put, body): (&PutRequest<'_>, Body<'_>),
        handle: Handle,
        cache: Arc<Cache>,
        length: u32,
    ) -> Outcome {
        let expected = tensor_spec(&cache.spec, u64::from(length))?;
        if length == 0 || put.spec != expected {
            let message = format!(
                "{length} tokens of this cache are {} {:?}, but {} {:?} was sent (no tokens: truncate it instead)",
                expected.dtype(),
                expected.dims(),
                put.spec.dtype(),
                put.spec.dims()
            );
            return Err(fail(ErrorCode::BadArgument, message));
        }
        let waiter = from.waiter(put, None)?;
        let block = cache.spec.block_bytes().ok_or_else(|| fail(ErrorCode::OutOfRange, "a block is too large"))?;
        let blocks = put.spec.bytes() / (block as u64).max(1);
        let mut spaces = Vec::new();
        for _ in 0..blocks {
            spaces.push(self.allocate_for(body.is_one_sided(from), cache.device, block as u64)?);
        }
        let device = cache.device;
        match body {
            Body::Here(bytes) => {
                for (space, bytes) in spaces.iter_mut().zip(bytes.chunks(block)) {
                    space.write(0, bytes)?;
                }
                self.import(waiter, handle, &cache, length, spaces);
            }
            Body::Sliced { slice_bytes, announce } => {
                let target = Target::Cache { handle, cache, length };
                let upload = self.upload((device, target), spaces, slice_bytes, from.now);
                self.begin_upload(from, &upload, waiter, announce);
            }
        }
        Ok(None)
    }

    /// Memory for bytes that come; `direct`: by a network card, which is to write them there itself if it can.
    fn allocate_for(&self, direct: bool, device: u16, bytes: u64) -> Result<Space, RemoteError> {
        if direct { self.allocate_reachable(device, bytes) } else { self.allocate(device, bytes) }
    }

    fn upload(self: &Arc<Self>, to: (u16, Target), spaces: Vec<Space>, slice_bytes: u32, now: Instant) -> Arc<Upload> {
        let core = Arc::downgrade(self);
        // A server that is gone has no use for hashes.
        let elsewhere = move |work: Box<dyn FnOnce() + Send>| {
            if let Some(core) = core.upgrade() {
                core.spawn(move |_| work());
            }
        };
        Upload::new(to, spaces, slice_bytes, Arc::new(elsewhere), now)
    }

    fn begin_upload(self: &Arc<Self>, from: &From<'_>, upload: &Arc<Upload>, waiter: Waiter, announce: bool) {
        add(&self.stats.uploads, 1);
        match upload.wait(waiter, from.now) {
            Ok(()) => from.awaits(upload, announce),
            Err(waiter) => waiter.fail(fail(ErrorCode::Internal, "the upload ended before it began: put again")),
        }
    }

    /// Every slice of a transfer has landed.
    pub(crate) fn landed(self: &Arc<Self>, from: &Arc<genie_transport::connection::Peer>, transfer: u64) {
        let upload = self.registry.of(from).and_then(|session| {
            session.lock().pending.iter().find(|p| p.id == transfer).and_then(|p| p.upload().cloned())
        });
        match upload {
            Some(upload) => self.landed_whole(&upload),
            None => self.landed_late(),
        }
    }

    /// The last slice of an upload came over a connection that its session has left, or for a request that was cancelled.
    /// Others may wait for the same upload: a resumed session, or one that puts the same weight.
    fn landed_late(self: &Arc<Self>) {
        for session in self.registry.all() {
            let uploads: Vec<_> = session.lock().pending.iter().filter_map(|p| p.upload().cloned()).collect();
            uploads.iter().for_each(|upload| self.landed_whole(upload));
        }
    }

    /// A transfer's slices make no sense, or were corrupted too often.
    pub(crate) fn refused(&self, from: &Arc<genie_transport::connection::Peer>, transfer: u64) {
        let Some(session) = self.registry.of(from) else { return };
        let upload = session.lock().pending.iter().find(|p| p.id == transfer).and_then(|p| p.upload().cloned());
        if let Some(waiter) = upload.and_then(|upload| upload.leave(&session, transfer)) {
            let message = "the transfer's slices do not belong to it, or were corrupted too often: put it again";
            waiter.fail(fail(ErrorCode::Corrupt, message));
        }
    }

    /// Where every slice of an upload has landed, and nobody else saw to it: checks the bytes and ends it.
    fn landed_whole(self: &Arc<Self>, upload: &Arc<Upload>) {
        let Some(slabs) = upload.landing.finish() else { return };
        let upload = upload.clone();
        match upload.staged.clone() {
            None => self.arrived(&upload, slabs.into_iter().map(Space::Host).collect(), None),
            // What the device's copies have not done yet is waited for elsewhere.
            Some(staged) => self.spawn(move |core| match staged.settle() {
                Ok((spaces, hash)) => core.arrived(&upload, spaces, hash),
                Err(error) => core.came_to_nothing(&upload, &error.into()),
            }),
        }
    }

    /// Every byte of an upload is where it goes: checks them and ends it. `hash`: what they are known to hash to.
    fn arrived(self: &Arc<Self>, upload: &Arc<Upload>, mut spaces: Vec<Space>, hash: Option<ContentHash>) {
        if let Target::Cache { handle, cache, length } = &upload.target {
            for waiter in upload.close() {
                waiter.no_more_slices();
                self.import(waiter, *handle, cache, *length, std::mem::take(&mut spaces));
            }
            return;
        }
        // All but caches land in one.
        let Some(space) = spaces.pop() else { return };
        let memory = space.freeze();
        if matches!(upload.target, Target::Range { .. }) && memory.len() > HASHED_HERE {
            // It may take a copy of all of it.
            let upload = upload.clone();
            return self.spawn(move |core| core.settle(&upload, &memory));
        }
        let of = upload.clone();
        let then = move |core: &Arc<Self>, memory: Result<Memory, RemoteError>| match memory {
            Ok(memory) => core.settle(&of, &memory),
            Err(error) => core.came_to_nothing(&of, &error),
        };
        match (upload.hash(), hash) {
            (Some(promised), Some(found)) if found == promised => then(self, Ok(memory)),
            (Some(promised), Some(found)) => then(self, Err(mismatch(&promised, &found))),
            (promised, _) => self.verify(promised, memory, then),
        }
    }

    /// The bytes of an upload are not what was promised, or could not be kept.
    fn came_to_nothing(self: &Arc<Self>, upload: &Arc<Upload>, error: &RemoteError) {
        if let Target::Weight(hash) = &upload.target {
            self.weights(upload.device).withdraw(hash, upload);
            if error.code == ErrorCode::HashMismatch && !upload.is_of_one() {
                return upload.close().into_iter().for_each(|waiter| self.start_over(waiter, upload, *hash));
            }
        }
        upload.close().into_iter().for_each(|waiter| waiter.fail(error.clone()));
    }

    /// Somebody sent wrong bytes of a weight that several were sending, and nobody knows who: each sends all of it again, to a
    /// place of its own that no other can join. Whoever sends wrong bytes then is alone in failing.
    fn start_over(self: &Arc<Self>, waiter: Waiter, shared: &Upload, hash: ContentHash) {
        let device = shared.device;
        let space = match self.allocate(device, waiter.spec.bytes()) {
            Ok(space) => space,
            Err(error) => return waiter.fail(error),
        };
        let (slice_bytes, now) = (shared.landing.slice_bytes(), shared.touched());
        let upload = self.upload((device, Target::Weight(hash)), vec![space], slice_bytes, now);
        let (session, id) = (waiter.session.clone(), waiter.id);
        // Nobody else knows the upload yet: it takes whoever waits.
        if let Err(waiter) = upload.wait(waiter, now) {
            return waiter.fail(fail(ErrorCode::Internal, "the upload ended before it began: put again"));
        }
        let goes_on = {
            let mut state = session.lock();
            let State { pending, peer, .. } = &mut *state;
            let pending = pending.iter_mut().find(|p| p.id == id && !p.cancelled);
            pending.is_some_and(|pending| {
                if let Some(peer) = peer.as_ref().filter(|_| pending.heard) {
                    upload.join(peer, id, true);
                }
                pending.work = Work::Upload { upload: upload.clone() };
                true
            })
        };
        if !goes_on && let Some(waiter) = upload.leave(&session, id) {
            waiter.fail(fail(ErrorCode::Cancelled, "the put was cancelled"));
        }
    }

    /// The bytes of an upload are what they should be: they become what they were meant for.
    fn settle(self: &Arc<Self>, upload: &Upload, memory: &Memory) {
        match &upload.target {
            Target::Private(_) => {
                for waiter in upload.close() {
                    waiter.no_more_slices();
                    self.install(waiter, upload.device, None, memory.clone());
                }
            }
            Target::Weight(hash) => {
                let memory = self.weights(upload.device).insert(*hash, memory.clone());
                for waiter in upload.close() {
                    waiter.no_more_slices();
                    self.install(waiter, upload.device, Some(*hash), memory.clone());
                }
            }
            Target::Range { handle, tensor, offset } => {
                for waiter in upload.close() {
                    waiter.no_more_slices();
                    self.replace(waiter, *handle, tensor, *offset, memory);
                }
            }
            // Went another way: it is several slabs.
            Target::Cache { .. } => {}
        }
    }

    /// Ends a put with a new resident of the session.
    pub(super) fn install(&self, waiter: Waiter, device: u16, weight: Option<ContentHash>, memory: Memory) {
        let Waiter { session, id, spec, name, charge } = waiter;
        let quota = session.owner.rights().quota;
        let named = match name.map(|name| self.names.charge(&name, spec.bytes(), quota).map(|charge| (name, charge))) {
            Some(Err(error)) => return session.complete(id, Answer::Failed(error)),
            Some(Ok(named)) => Some(named),
            None => None,
        };
        session.complete_with(id, |state| {
            let content = Content::new(memory.clone(), charge);
            match state.insert(Object::Tensor(Tensor::new(device, spec.clone(), weight, content))) {
                Ok(handle) => {
                    if let Some((name, charge)) = named {
                        self.names.insert(name, device, spec.clone(), weight, memory, charge);
                    }
                    Answer::Tensor { handle, device, spec }
                }
                Err(error) => Answer::Failed(error),
            }
        });
    }

    fn replace(&self, waiter: Waiter, handle: Handle, tensor: &Tensor, offset: u64, memory: &Memory) {
        let Waiter { session, id, charge, .. } = waiter;
        let (device, spec) = (tensor.device, tensor.spec.clone());
        let done = if memory.len() == spec.bytes() {
            tensor.replace(Content::new(memory.clone(), charge));
            Ok(())
        } else {
            let fill = |space: &mut Space| space.copy(offset, memory);
            tensor.write(session.number, (offset, memory.len()), fill, |n| self.allocate(device, n))
        };
        let answer = match done {
            Ok(()) => Answer::Tensor { handle, device, spec },
            Err(error) => Answer::Failed(error),
        };
        session.complete(id, answer);
    }

    /// Ends a put with new contents of a cache, when it is its turn.
    fn import(self: &Arc<Self>, waiter: Waiter, handle: Handle, cache: &Arc<Cache>, length: u32, blocks: Vec<Space>) {
        let quick = move |_: &Arc<Self>, cache: &Arc<Cache>| {
            let Waiter { session, id, spec, charge: paid, .. } = waiter;
            let done = cache.with(|kv, charge| {
                kv.import(u64::from(length), blocks)?;
                *charge = paid;
                Ok(())
            });
            let answer = match done {
                Ok(()) => Answer::Tensor { handle, device: cache.device, spec },
                Err(error) => Answer::Failed(error),
            };
            session.complete(id, answer);
        };
        cache.enter(self, Turn::Quick(Box::new(quick)));
    }

    /// Checks bytes against a hash, elsewhere if that takes long, and goes on with them.
    fn verify(
        self: &Arc<Self>,
        hash: Option<ContentHash>,
        memory: Memory,
        then: impl FnOnce(&Arc<Self>, Result<Memory, RemoteError>) + Send + 'static,
    ) {
        let Some(promised) = hash else { return then(self, Ok(memory)) };
        let large = memory.len() > HASHED_HERE;
        let work = move |core: &Arc<Self>| {
            let checked = match hash_of(&memory) {
                Ok(found) if found == promised => Ok(memory),
                Ok(found) => Err(mismatch(&promised, &found)),
                Err(error) => Err(error.into()),
            };
            then(core, checked);
        };
        if large { self.spawn(work) } else { work(self) }
    }
}

impl From<'_> {
    /// Charges what a put takes; gives who waits for it.
    pub(super) fn waiter(&self, put: &PutRequest<'_>, name: Option<&str>) -> Result<Waiter, RemoteError> {
        let charge = self.session.account.charge(put.spec.bytes())?;
        Ok(self.waiter_paid(put.spec.clone(), name, charge))
    }

    pub(super) fn waiter_paid(&self, spec: TensorSpec, name: Option<&str>, charge: Charge) -> Waiter {
        Waiter {
            session: self.session.clone(),
            id: self.id,
            spec,
            name: name.map(|name| scoped(&self.session.owner, name)),
            charge,
        }
    }

    /// The request waits for an upload from here on, and its connection may send.
    fn awaits(&self, upload: &Arc<Upload>, announce: bool) {
        let mut state = self.session.lock();
        let Some(pending) = state.pending.iter_mut().find(|p| p.id == self.id) else { return };
        pending.work = Work::Upload { upload: upload.clone() };
        upload.join(self.peer, self.id, announce);
    }
}

/// What bytes hash to, wherever they lie.
fn hash_of(memory: &Memory) -> Result<ContentHash, DeviceError> {
    if let Some(region) = memory.host() {
        return Ok(ContentHash::of(region));
    }
    let mut hasher = blake3::Hasher::new();
    memory.pieces(|_, piece| {
        hasher.update(piece);
        Ok::<_, DeviceError>(())
    })?;
    Ok(ContentHash(*hasher.finalize().as_bytes()))
}
