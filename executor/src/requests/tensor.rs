//! Get, copy, look up.

use std::any::Any;
use std::sync::Arc;

use genie_transport::connection::Peer;
use genie_transport::memory::{PeerTarget, Region, extend_counted};
use genie_transport::wire::{ErrorCode, Handle, Kind, RemoteError, Reply, Shared, limits};

use super::{From, Outcome};
use crate::account::Account;
use crate::caches::{Cache, Turn, tensor_spec};
use crate::core::Core;
use crate::device::{DeviceError, Memory};
use crate::error::fail;
use crate::outflow::{Outflow, cut};
use crate::replies::Answer;
use crate::residents::{Content, Tensor, range_within};
use crate::rights::scoped;
use crate::session::Object;
use crate::weights::Found;

/// Up to this size bytes are copied for a client on the thread that received the request: 50 us of memory that is there, a few hundred of
/// memory that is touched for the first time. To hand them to another thread takes 70 us on two cores.
const COPIED_HERE: u64 = 2 << 20;

/// From this size on, and in slices of at least this, a get's pages are sent where a link takes them.
const BY_PAGES: u64 = 1 << 20;
const SLICE_BY_PAGES: u32 = 128 << 10;

impl Core {
    pub(super) fn get(
        self: &Arc<Self>,
        from: &From<'_>,
        handle: Handle,
        offset: u64,
        length: u64,
        sliced: Option<u32>,
    ) -> Result<(), RemoteError> {
        let range = Range { offset, length, sliced };
        match from.session.object(handle)? {
            Object::Tensor(tensor) => {
                let content = tensor.content();
                let parts = range.parts(std::slice::from_ref(&content.memory))?;
                if let Some(memory) = content.memory.host().cloned() {
                    let lent =
                        tensor.weight.is_none() && range.by_pages(from, &parts) && memory.lend(from.session.number);
                    return range.send(from.peer, from.id, parts, (&(content as Paid), lent.then_some(memory)));
                }
                let (peer, id) = (from.peer.clone(), from.id);
                self.spawn(move |core| range.send_from_device(core, (&peer, id), parts, content));
                Ok(())
            }
            Object::Cache(cache) => {
                let (peer, id, account) = (from.peer.clone(), from.id, from.session.account.clone());
                let quick = move |core: &Arc<Self>, cache: &Arc<Cache>| {
                    let parts = cache.with(|kv, _| {
                        let segments = kv.segments();
                        let parts = range.parts(&segments)?;
                        let paid = range.pay(&segments, parts.len(), &account)?;
                        Ok((parts, paid))
                    });
                    let sent = parts.and_then(|(parts, paid)| {
                        if parts.iter().all(|part| part.host().is_some()) {
                            return range.send(&peer, id, parts, (&paid, None));
                        }
                        let peer = peer.clone();
                        // The parts are held: others may have their turn with the cache meanwhile.
                        core.spawn(move |core| range.send_from_device(core, (&peer, id), parts, paid));
                        Ok(())
                    });
                    if let Err(error) = sent {
                        peer.reply(id, Kind::Get, &Reply::Failed(error));
                    }
                };
                cache.enter(self, Turn::Read(from.peer.clone(), Box::new(quick)));
                Ok(())
            }
            _ => Err(fail(ErrorCode::WrongType, "the handle names neither a tensor nor a KV cache")),
        }
    }

    /// Copies bytes into memory that the client shares: they are not sent.
    pub(super) fn get_into(
        self: &Arc<Self>,
        from: &From<'_>,
        handle: Handle,
        offset: u64,
        length: u64,
        into: Shared,
    ) -> Result<(), RemoteError> {
        let range = Range { offset, length, sliced: None };
        match from.session.object(handle)? {
            Object::Tensor(tensor) => {
                let content = tensor.content();
                let length = range.length_of(content.memory.len())?;
                let (peer, id) = (from.peer.clone(), from.id);
                let mut target = peer.target(into, length)?;
                let on_host = content.memory.host().is_some();
                let parts = range.parts(std::slice::from_ref(&content.memory))?;
                let work = move |_: &Arc<Self>| {
                    let copied = fill(&mut target, &parts);
                    drop(content);
                    done(&peer, id, copied);
                };
                if length > COPIED_HERE || !on_host {
                    self.spawn(work)
                } else {
                    work(self)
                }
                Ok(())
            }
            Object::Cache(cache) => {
                let (peer, id) = (from.peer.clone(), from.id);
                let quick = move |core: &Arc<Self>, cache: &Arc<Cache>| {
                    let place = cache.with(|kv, _| {
                        let parts = range.parts(&kv.segments())?;
                        let target = peer.target(into, parts.iter().map(Memory::len).sum())?;
                        Ok((parts, target))
                    });
                    match place {
                        Ok((parts, mut target)) if parts.iter().all(|part| part.host().is_some()) => {
                            done(&peer, id, fill(&mut target, &parts));
                        }
                        Ok((parts, mut target)) => {
                            let peer = peer.clone();
                            core.spawn(move |_| done(&peer, id, fill(&mut target, &parts)));
                        }
                        Err(error) => peer.reply(id, Kind::Get, &Reply::Failed(error)),
                    }
                };
                cache.enter(self, Turn::Read(from.peer.clone(), Box::new(quick)));
                Ok(())
            }
            _ => Err(fail(ErrorCode::WrongType, "the handle names neither a tensor nor a KV cache")),
        }
    }

    pub(super) fn copy(self: &Arc<Self>, from: &From<'_>, handle: Handle, device: u16) -> Outcome {
        let tensor = from.session.tensor(handle)?;
        self.device(device)?;
        from.session.lock().objects.has_room()?;
        let charge = from.session.account.charge(tensor.spec.bytes())?;
        let waiter = from.waiter_paid(tensor.spec.clone(), None, charge);
        let content = tensor.content();
        if device == tensor.device {
            // Nobody writes shared bytes in place: a copy shares them until one of the two changes.
            self.install(waiter, device, tensor.weight, content.memory.clone());
            return Ok(None);
        }
        if let Some(hash) = &tensor.weight
            && let Found::Present(memory) = self.weights(device).find(hash, tensor.spec.bytes())
        {
            self.install(waiter, device, tensor.weight, memory);
            return Ok(None);
        }
        let mut space = self.allocate(device, tensor.spec.bytes())?;
        let weight = tensor.weight;
        let task = move |core: &Arc<Self>| {
            if let Err(error) = space.copy(0, &content.memory) {
                return waiter.fail(error.into());
            }
            drop(content);
            let memory = space.freeze();
            let memory = match weight {
                Some(hash) => core.weights(device).insert(hash, memory),
                None => memory,
            };
            core.install(waiter, device, weight, memory);
        };
        self.submit(device, Box::new(task))?;
        Ok(None)
    }

    pub(super) fn lookup_name(&self, from: &From<'_>, name: &str) -> Outcome {
        let found = self
            .names
            .find(&scoped(&from.session.owner, name), |n| (n.device, n.spec.clone(), n.weight, n.memory.clone()));
        let Some((device, spec, weight, memory)) = found else {
            return Err(fail(
                ErrorCode::NoSuchName,
                format!("no tensor is named `{name}`: it was never put, or let go"),
            ));
        };
        self.permit_device(from.peer, device, from.now)?;
        let charge = from.session.account.charge(spec.bytes())?;
        let tensor = Tensor::new(device, spec.clone(), weight, Content::new(memory, charge));
        let handle = from.session.lock().insert(Object::Tensor(tensor))?;
        Ok(Some(Answer::Tensor { handle, device, spec }))
    }

    pub(super) fn lookup_handle(self: &Arc<Self>, from: &From<'_>, handle: Handle) -> Result<(), RemoteError> {
        match from.session.object(handle)? {
            Object::Tensor(tensor) => {
                let reply = Reply::Tensor { handle, device: tensor.device, spec: tensor.spec.clone() };
                from.peer.reply(from.id, Kind::Lookup, &reply);
                Ok(())
            }
            Object::Cache(cache) => {
                let (peer, id) = (from.peer.clone(), from.id);
                let quick = move |_: &Arc<Self>, cache: &Arc<Cache>| {
                    let spec = cache.with(|kv, _| tensor_spec(&kv.spec(), kv.len()));
                    match spec {
                        Ok(spec) => {
                            let reply = Reply::Tensor { handle, device: cache.device, spec };
                            peer.reply(id, Kind::Lookup, &reply);
                        }
                        Err(error) => peer.reply(id, Kind::Lookup, &Reply::Failed(error)),
                    }
                };
                cache.enter(self, Turn::Read(from.peer.clone(), Box::new(quick)));
                Ok(())
            }
            _ => Err(fail(ErrorCode::WrongType, "the handle names neither a tensor nor a KV cache")),
        }
    }
}

/// Bytes on their way to a client. They may leave long after the tensor or the cache was freed or got other bytes: until then the
/// session pays for them.
struct Sent {
    region: Region,
    _paid: Paid,
}

/// What the session pays for bytes that are sent: the content that they are of, or a charge of their own.
type Paid = Arc<dyn Any + Send + Sync>;

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.region
    }
}

/// Copies all parts into a client's memory: a device writes there itself.
fn fill(target: &mut PeerTarget, parts: &[Memory]) -> Result<(), DeviceError> {
    parts.iter().try_for_each(|part| part.fill(target))
}

/// Answers a get into a client's memory.
fn done(peer: &Peer, id: u64, copied: Result<(), DeviceError>) {
    match copied {
        Ok(()) => peer.reply(id, Kind::Get, &Reply::Got(&[])),
        Err(error) => peer.reply(id, Kind::Get, &Reply::Failed(error.into())),
    }
}

/// What a get asks for.
#[derive(Clone, Copy)]
struct Range {
    offset: u64,
    length: u64,
    sliced: Option<u32>,
}

impl Range {
    /// What it asks for of these segments, one after another.
    fn parts(self, segments: &[Memory]) -> Result<Vec<Memory>, RemoteError> {
        let length = self.length_of(segments.iter().map(Memory::len).sum())?;
        Ok(cut(segments, self.offset, length))
    }

    /// What a sliced get pays for `kept` of a cache's blocks until they are sent: the cache may be freed, or go on without them.
    fn pay(self, segments: &[Memory], kept: usize, account: &Arc<Account>) -> Result<Paid, RemoteError> {
        if self.sliced.is_none() {
            return Ok(Arc::new(()));
        }
        // All blocks are of one size, and those that are sent in part are kept whole.
        let block = segments.first().map_or(0, Memory::len);
        Ok(Arc::new(account.charge((kept as u64).saturating_mul(block))?))
    }

    /// Its bytes, of a whole of `total`.
    fn length_of(self, total: u64) -> Result<u64, RemoteError> {
        let rest = total.saturating_sub(self.offset);
        let length = if self.length == 0 { rest } else { self.length };
        range_within(self.offset, length, total)?;
        Ok(length)
    }

    /// The size of its slices, if it is to be sent in any.
    fn slices(self, parts: &[Memory]) -> Result<Option<u32>, RemoteError> {
        let length = parts.iter().map(Memory::len).sum::<u64>();
        match self.sliced.filter(|_| !parts.is_empty()) {
            Some(slice_bytes) if length.div_ceil(u64::from(slice_bytes.max(1))) > limits::SLICES => {
                let most = limits::SLICES;
                let message = format!(
                    "{length} bytes in slices of {slice_bytes} are more than {most} slices: ask for larger ones, or in ranges"
                );
                Err(fail(ErrorCode::OutOfRange, message))
            }
            None if length > u64::from(limits::CONTROL_PAYLOAD_BYTES) => {
                let limit = limits::CONTROL_PAYLOAD_BYTES;
                let message = format!("{length} bytes do not fit one reply of {limit}: ask for them in slices");
                Err(fail(ErrorCode::OutOfRange, message))
            }
            slices => Ok(slices),
        }
    }

    /// Whether the pages of these parts are better sent than copies of their bytes. A socket that is never read keeps whole pages of the
    /// system's, which may be large: so none are sent for little.
    fn by_pages(self, from: &From<'_>, parts: &[Memory]) -> bool {
        let large = parts.iter().map(Memory::len).sum::<u64>() >= BY_PAGES;
        large && self.sliced.is_some_and(|slice| slice >= SLICE_BY_PAGES) && from.peer.takes_pages()
    }

    /// Sends bytes that are in the host's memory, and the reply. Their pages, where that memory was lent to the session for it.
    fn send(
        self,
        peer: &Peer,
        id: u64,
        parts: Vec<Memory>,
        (paid, lent): (&Paid, Option<Region>),
    ) -> Result<(), RemoteError> {
        let slices = self.slices(&parts)?;
        let regions = parts.into_iter().map(|part| part.to_host()).collect::<Result<Vec<_>, _>>()?;
        if let Some(slice_bytes) = slices {
            let paid = |region| Region::from_owner(Sent { region, _paid: paid.clone() });
            let segments = regions.into_iter().map(paid).collect();
            match lent {
                Some(memory) => peer.lend_sliced(id, segments, vec![memory], slice_bytes),
                None => peer.send_sliced(id, segments, slice_bytes),
            }
            peer.reply(id, Kind::Get, &Reply::Got(&[]));
        } else if let [one] = &regions[..] {
            peer.reply(id, Kind::Get, &Reply::Got(one));
        } else {
            let mut bytes = Vec::new();
            regions.iter().for_each(|region| extend_counted(&mut bytes, region));
            peer.reply(id, Kind::Get, &Reply::Got(&bytes));
        }
        Ok(())
    }

    /// Sends bytes that are in a device's memory, and the reply; or the reply that they cannot be had.
    fn send_from_device(self, core: &Arc<Core>, (peer, id): (&Arc<Peer>, u64), parts: Vec<Memory>, paid: Paid) {
        let sent = self.slices(&parts).and_then(|slices| {
            let Some(slice_bytes) = slices else { return self.send(peer, id, parts, (&paid, None)) };
            let outflow = Outflow::new(core, (peer, id), (parts, slice_bytes), paid);
            let outflow = outflow.ok_or_else(|| fail(ErrorCode::Internal, "the tensor is in no device's memory"))?;
            outflow.probe()?;
            peer.send_staged(id, outflow, slice_bytes);
            peer.reply(id, Kind::Get, &Reply::Got(&[]));
            Ok(())
        });
        if let Err(error) = sent {
            peer.reply(id, Kind::Get, &Reply::Failed(error));
        }
    }
}
