//! Puts: inline and in slices, of new residents, into residents, into caches.

use std::sync::Arc;

use genie_transport::memory::{Region, Slab, copy_counted};
use genie_transport::wire::{
    ContentHash, ErrorCode, Handle, PutBody, PutRequest, PutTarget, RemoteError, ResidencyCode, TensorSpec, limits,
};

use super::{From, Outcome};
use crate::account::Charge;
use crate::caches::{Cache, Turn, tensor_spec};
use crate::core::Core;
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
                self.device(device)?;
                from.session.lock().objects.has_room()?;
                let waiter = from.waiter(put, None)?;
                self.install(waiter, device, None, region);
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
        let mut slab = self.allocate(device, put.spec.bytes())?;
        match body {
            Body::Here(bytes) => {
                copy_counted(&mut slab, bytes);
                self.verify(hash, slab.freeze(), move |core, region| match region {
                    Ok(region) => core.install(waiter, device, None, region),
                    Err(error) => waiter.fail(error),
                });
            }
            Body::Sliced { slice_bytes, announce } => {
                let upload = Upload::new(device, Target::Private(hash), vec![slab], slice_bytes, from.now);
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
            match self.weights(device).find(&hash, put.spec.bytes()) {
                Found::Present(region) => {
                    waiter.no_more_slices();
                    self.install(waiter, device, Some(hash), region);
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
        let mut slab = self.allocate(device, put.spec.bytes())?;
        match body {
            Body::Here(bytes) => {
                copy_counted(&mut slab, bytes);
                self.verify(Some(hash), slab.freeze(), move |core, region| match region {
                    Ok(region) => {
                        let region = core.weights(device).insert(hash, region);
                        core.install(waiter, device, Some(hash), region);
                    }
                    Err(error) => waiter.fail(error),
                });
            }
            Body::Sliced { slice_bytes, announce } => {
                let upload = Upload::new(device, Target::Weight(hash), vec![slab], slice_bytes, from.now);
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
                tensor.write(offset, bytes, |n| self.allocate(device, n))?;
                Ok(Some(Answer::Tensor { handle, device, spec: tensor.spec.clone() }))
            }
            Body::Sliced { slice_bytes, announce } => {
                let waiter = from.waiter(put, None)?;
                let slab = self.allocate(device, put.spec.bytes())?;
                let target = Target::Range { handle, tensor, offset };
                let upload = Upload::new(device, target, vec![slab], slice_bytes, from.now);
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
        let mut slabs = Vec::new();
        for _ in 0..blocks {
            slabs.push(self.allocate(cache.device, block as u64)?);
        }
        let device = cache.device;
        match body {
            Body::Here(bytes) => {
                for (slab, bytes) in slabs.iter_mut().zip(bytes.chunks(block)) {
                    copy_counted(slab, bytes);
                }
                self.import(waiter, handle, &cache, length, slabs);
            }
            Body::Sliced { slice_bytes, announce } => {
                let target = Target::Cache { handle, cache, length };
                let upload = Upload::new(device, target, slabs, slice_bytes, from.now);
                self.begin_upload(from, &upload, waiter, announce);
            }
        }
        Ok(None)
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
        let Some(mut slabs) = upload.landing.finish() else { return };
        let upload = upload.clone();
        if let Target::Cache { handle, cache, length } = &upload.target {
            for waiter in upload.close() {
                waiter.no_more_slices();
                self.import(waiter, *handle, cache, *length, std::mem::take(&mut slabs));
            }
            return;
        }
        // All but caches land in one slab.
        let Some(slab) = slabs.pop() else { return };
        let region = slab.freeze();
        if matches!(upload.target, Target::Range { .. }) && region.len() as u64 > HASHED_HERE {
            // It may take a copy of all of it.
            return self.spawn(move |core| core.settle(&upload, region));
        }
        self.verify(upload.hash(), region, move |core, region| match region {
            Ok(region) => core.settle(&upload, region),
            Err(error) => {
                if let Target::Weight(hash) = &upload.target {
                    core.weights(upload.device).withdraw(hash, &upload);
                    if !upload.is_of_one() {
                        return upload.close().into_iter().for_each(|waiter| core.start_over(waiter, &upload, *hash));
                    }
                }
                upload.close().into_iter().for_each(|waiter| waiter.fail(error.clone()));
            }
        });
    }

    /// Somebody sent wrong bytes of a weight that several were sending, and nobody knows who: each sends all of it again, to a
    /// place of its own that no other can join. Whoever sends wrong bytes then is alone in failing.
    fn start_over(self: &Arc<Self>, waiter: Waiter, shared: &Upload, hash: ContentHash) {
        let device = shared.device;
        let slab = match self.allocate(device, waiter.spec.bytes()) {
            Ok(slab) => slab,
            Err(error) => return waiter.fail(error),
        };
        let (slice_bytes, now) = (shared.landing.slice_bytes(), shared.touched());
        let upload = Upload::new(device, Target::Weight(hash), vec![slab], slice_bytes, now);
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
    fn settle(self: &Arc<Self>, upload: &Upload, region: Region) {
        match &upload.target {
            Target::Private(_) => {
                for waiter in upload.close() {
                    waiter.no_more_slices();
                    self.install(waiter, upload.device, None, region.clone());
                }
            }
            Target::Weight(hash) => {
                let region = self.weights(upload.device).insert(*hash, region);
                for waiter in upload.close() {
                    waiter.no_more_slices();
                    self.install(waiter, upload.device, Some(*hash), region.clone());
                }
            }
            Target::Range { handle, tensor, offset } => {
                for waiter in upload.close() {
                    waiter.no_more_slices();
                    self.replace(waiter, *handle, tensor, *offset, region.clone());
                }
            }
            // Went another way: it is several slabs.
            Target::Cache { .. } => {}
        }
    }

    /// Ends a put with a new resident of the session.
    pub(super) fn install(&self, waiter: Waiter, device: u16, weight: Option<ContentHash>, region: Region) {
        let Waiter { session, id, spec, name, charge } = waiter;
        let quota = session.owner.rights().quota;
        let named = match name.map(|name| self.names.charge(&name, spec.bytes(), quota).map(|charge| (name, charge))) {
            Some(Err(error)) => return session.complete(id, Answer::Failed(error)),
            Some(Ok(named)) => Some(named),
            None => None,
        };
        session.complete_with(id, |state| {
            let content = Content::new(region.clone(), charge);
            match state.insert(Object::Tensor(Tensor::new(device, spec.clone(), weight, content))) {
                Ok(handle) => {
                    if let Some((name, charge)) = named {
                        self.names.insert(name, device, spec.clone(), weight, region, charge);
                    }
                    Answer::Tensor { handle, device, spec }
                }
                Err(error) => Answer::Failed(error),
            }
        });
    }

    fn replace(&self, waiter: Waiter, handle: Handle, tensor: &Tensor, offset: u64, region: Region) {
        let Waiter { session, id, charge, .. } = waiter;
        let (device, spec) = (tensor.device, tensor.spec.clone());
        let done = if region.len() as u64 == spec.bytes() {
            tensor.replace(Content::new(region, charge));
            Ok(())
        } else {
            tensor.write(offset, &region, |n| self.allocate(device, n))
        };
        let answer = match done {
            Ok(()) => Answer::Tensor { handle, device, spec },
            Err(error) => Answer::Failed(error),
        };
        session.complete(id, answer);
    }

    /// Ends a put with new contents of a cache, when it is its turn.
    fn import(self: &Arc<Self>, waiter: Waiter, handle: Handle, cache: &Arc<Cache>, length: u32, blocks: Vec<Slab>) {
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
        region: Region,
        then: impl FnOnce(&Arc<Self>, Result<Region, RemoteError>) + Send + 'static,
    ) {
        let Some(promised) = hash else { return then(self, Ok(region)) };
        let large = region.len() as u64 > HASHED_HERE;
        let work = move |core: &Arc<Self>| {
            let found = ContentHash::of(&region);
            let checked = if found == promised { Ok(region) } else { Err(mismatch(&promised, &found)) };
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
