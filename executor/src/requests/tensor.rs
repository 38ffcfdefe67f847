//! Get, copy, look up, offer.

use std::sync::Arc;

use genie_transport::connection::Peer;
use genie_transport::memory::{Region, copy_counted, extend_counted};
use genie_transport::wire::{
    ContentHash, ErrorCode, Handle, Kind, Offered, RemoteError, Reply, Shared, TensorSpec, limits,
};

use super::{From, Outcome};
use crate::account::{Account, Charge};
use crate::caches::{Cache, Turn, tensor_spec};
use crate::core::Core;
use crate::error::fail;
use crate::replies::Answer;
use crate::residents::{Content, Tensor, range_within};
use crate::rights::scoped;
use crate::session::Object;
use crate::weights::Found;

/// Up to this size bytes are copied for a client on the thread that received the request: 50 us of memory that is there, a few hundred of
/// memory that is touched for the first time. To hand them to another thread takes 70 us on two cores.
const COPIED_HERE: u64 = 2 << 20;

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
                let region = match sliced {
                    Some(_) => Region::from_owner(Sent(content)),
                    None => content.region.clone(),
                };
                range.send(from.peer, from.id, &[region])
            }
            Object::Cache(cache) => {
                let (peer, id, account) = (from.peer.clone(), from.id, from.session.account.clone());
                let quick = move |_: &Arc<Self>, cache: &Arc<Cache>| {
                    let segments = cache.with(|kv, _| Ok(kv.segments()));
                    let paid = segments.and_then(|segments| range.pay(segments, &account));
                    let sent = paid.and_then(|segments| range.send(&peer, id, &segments));
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
                let length = range.length_of(content.region.len() as u64)?;
                let (peer, id) = (from.peer.clone(), from.id);
                let mut target = peer.target(into, length)?;
                let mut work = move |_: &Arc<Self>| {
                    cut(std::slice::from_ref(&content.region), offset, length)
                        .iter()
                        .for_each(|piece| target.write(piece));
                    peer.reply(id, Kind::Get, &Reply::Got(&[]));
                };
                if length > COPIED_HERE {
                    self.spawn(work)
                } else {
                    work(self)
                }
                Ok(())
            }
            Object::Cache(cache) => {
                let (peer, id) = (from.peer.clone(), from.id);
                let quick = move |_: &Arc<Self>, cache: &Arc<Cache>| {
                    let copied = cache.with(|kv, _| Ok(kv.segments())).and_then(|segments| {
                        let length = range.length_of(segments.iter().map(|s| s.len() as u64).sum())?;
                        let mut target = peer.target(into, length)?;
                        cut(&segments, offset, length).iter().for_each(|piece| target.write(piece));
                        Ok(())
                    });
                    match copied {
                        Ok(()) => peer.reply(id, Kind::Get, &Reply::Got(&[])),
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
            self.install(waiter, device, tensor.weight, content.region.clone());
            return Ok(None);
        }
        if let Some(hash) = &tensor.weight
            && let Found::Present(region) = self.weights(device).find(hash, tensor.spec.bytes())
        {
            self.install(waiter, device, tensor.weight, region);
            return Ok(None);
        }
        let mut slab = self.allocate(device, tensor.spec.bytes())?;
        let weight = tensor.weight;
        let task = move |core: &Arc<Self>| {
            copy_counted(&mut slab, &content.region);
            drop(content);
            let region = slab.freeze();
            let region = match weight {
                Some(hash) => core.weights(device).insert(hash, region),
                None => region,
            };
            core.install(waiter, device, weight, region);
        };
        self.submit(device, Box::new(task))?;
        Ok(None)
    }

    pub(super) fn offer(&self, from: &From<'_>, device: u16, entries: &[(ContentHash, TensorSpec)]) -> Outcome {
        self.device(device)?;
        let mut found = Vec::with_capacity(entries.len());
        for (hash, spec) in entries {
            found.push(match self.weights(device).find(hash, spec.bytes()) {
                Found::Present(region) => {
                    let charge = from.session.account.charge(spec.bytes())?;
                    let content = Content::new(region, charge);
                    Ok(Tensor::new(device, spec.clone(), Some(*hash), content))
                }
                Found::Partial(upload) => Err(Offered::Partial(upload.landing.landed_bytes())),
                Found::Absent => Err(Offered::Absent),
            });
        }
        let mut state = from.session.lock();
        let wanted = found.iter().filter(|entry| entry.is_ok()).count();
        state.objects.has_room_for(wanted)?;
        let mut offered = Vec::with_capacity(found.len());
        for entry in found {
            offered.push(match entry {
                Ok(tensor) => Offered::Present(state.insert(Object::Tensor(tensor))?),
                Err(offered) => offered,
            });
        }
        Ok(Some(Answer::Offered(offered)))
    }

    pub(super) fn lookup_name(&self, from: &From<'_>, name: &str) -> Outcome {
        let found = self
            .names
            .find(&scoped(&from.session.owner, name), |n| (n.device, n.spec.clone(), n.weight, n.region.clone()));
        let Some((device, spec, weight, region)) = found else {
            return Err(fail(
                ErrorCode::NoSuchName,
                format!("no tensor is named `{name}`: it was never put, or let go"),
            ));
        };
        self.permit_device(from.peer, device, from.now)?;
        let charge = from.session.account.charge(spec.bytes())?;
        let tensor = Tensor::new(device, spec.clone(), weight, Content::new(region, charge));
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

/// The bytes of a tensor on their way to a client. They may leave long after the tensor was freed or got other bytes: until
/// then the session pays for them.
struct Sent(Arc<Content>);

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.0.region
    }
}

/// A block of a cache on its way to a client.
struct SentBlock {
    region: Region,
    /// For all blocks of the get.
    _charge: Arc<Charge>,
}

impl AsRef<[u8]> for SentBlock {
    fn as_ref(&self) -> &[u8] {
        &self.region
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
    /// What a sliced get keeps of a cache's blocks, with what the session pays for it until it is sent: the cache may be freed,
    /// or go on without these blocks.
    fn pay(self, segments: Vec<Region>, account: &Arc<Account>) -> Result<Vec<Region>, RemoteError> {
        if self.sliced.is_none() {
            return Ok(segments);
        }
        let total = segments.iter().map(|s| s.len() as u64).sum::<u64>();
        let length = self.length_of(total)?;
        let kept = cut(&segments, self.offset, length).len() as u64;
        // All blocks are of one size, and those that are sent in part are kept whole.
        let block = segments.first().map_or(0, |s| s.len() as u64);
        let charge = Arc::new(account.charge(kept.saturating_mul(block))?);
        let paid = |region| Region::from_owner(SentBlock { region, _charge: charge.clone() });
        Ok(segments.into_iter().map(paid).collect())
    }

    /// Its bytes, of a whole of `total`.
    fn length_of(self, total: u64) -> Result<u64, RemoteError> {
        let rest = total.saturating_sub(self.offset);
        let length = if self.length == 0 { rest } else { self.length };
        range_within(self.offset, length, total)?;
        Ok(length)
    }

    /// Sends this range of the bytes of `segments`, one after another, and the reply.
    fn send(self, peer: &Peer, id: u64, segments: &[Region]) -> Result<(), RemoteError> {
        let total = segments.iter().map(|s| s.len() as u64).sum::<u64>();
        let length = self.length_of(total)?;
        let pieces = cut(segments, self.offset, length);
        match (self.sliced, &pieces[..]) {
            (Some(slice_bytes), [_, ..]) if length.div_ceil(u64::from(slice_bytes.max(1))) > limits::SLICES => {
                let most = limits::SLICES;
                let message = format!(
                    "{length} bytes in slices of {slice_bytes} are more than {most} slices: ask for larger ones, or in ranges"
                );
                return Err(fail(ErrorCode::OutOfRange, message));
            }
            (Some(slice_bytes), [_, ..]) => {
                peer.send_sliced(id, pieces, slice_bytes);
                peer.reply(id, Kind::Get, &Reply::Got(&[]));
            }
            _ if length > u64::from(limits::CONTROL_PAYLOAD_BYTES) => {
                let limit = limits::CONTROL_PAYLOAD_BYTES;
                let message = format!("{length} bytes do not fit one reply of {limit}: ask for them in slices");
                return Err(fail(ErrorCode::OutOfRange, message));
            }
            (_, [one]) => peer.reply(id, Kind::Get, &Reply::Got(one)),
            _ => {
                let mut bytes = Vec::new();
                pieces.iter().for_each(|piece| extend_counted(&mut bytes, piece));
                peer.reply(id, Kind::Get, &Reply::Got(&bytes));
            }
        }
        Ok(())
    }
}

/// The parts of the segments that hold `length` bytes from `offset` on.
fn cut(segments: &[Region], offset: u64, length: u64) -> Vec<Region> {
    let mut start = 0_u64;
    let mut pieces = Vec::new();
    for segment in segments {
        let len = segment.len() as u64;
        let from = offset.saturating_sub(start).min(len);
        let to = (offset + length).saturating_sub(start).min(len);
        // Both are at most the segment's length.
        if from < to
            && let Some(piece) = segment.slice(from as usize..to as usize)
        {
            pieces.push(piece);
        }
        start += len;
    }
    pieces
}
