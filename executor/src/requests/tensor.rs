//! Get, copy, look up, offer.

use std::sync::Arc;

use genie_transport::connection::Peer;
use genie_transport::memory::{Region, extend_counted};
use genie_transport::wire::{ContentHash, ErrorCode, Handle, Kind, Offered, RemoteError, Reply, TensorSpec, limits};

use super::{From, Outcome};
use crate::caches::{Cache, Turn, tensor_spec};
use crate::core::Core;
use crate::error::fail;
use crate::replies::Answer;
use crate::residents::{Content, Tensor, range_within};
use crate::session::Object;
use crate::weights::Found;

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
            Object::Tensor(tensor) => range.send(from.peer, from.id, &[tensor.content().region.clone()]),
            Object::Cache(cache) => {
                let (peer, id) = (from.peer.clone(), from.id);
                let quick = move |_: &Arc<Self>, cache: &Arc<Cache>| {
                    let sent = cache.with(|kv, _| Ok(kv.segments())).and_then(|s| range.send(&peer, id, &s));
                    if let Err(error) = sent {
                        peer.reply(id, Kind::Get, &Reply::Failed(error));
                    }
                };
                cache.enter(self, Turn::Quick(Box::new(quick)));
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
        let region = tensor.content().region.clone();
        if device == tensor.device {
            // Nobody writes shared bytes in place: a copy shares them until one of the two changes.
            self.install(waiter, device, tensor.weight, region);
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
            slab.copy_from_slice(&region);
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

    pub(super) fn lookup_name(&self, from: &From<'_>, name: &str) -> Result<(), RemoteError> {
        let found = self.names.find(name, |n| (n.device, n.spec.clone(), n.weight, n.region.clone()));
        let Some((device, spec, weight, region)) = found else {
            return Err(fail(
                ErrorCode::NoSuchName,
                format!("no tensor is named `{name}`: it was never put, or let go"),
            ));
        };
        let charge = from.session.account.charge(spec.bytes())?;
        let tensor = Tensor::new(device, spec.clone(), weight, Content::new(region, charge));
        let handle = from.session.lock().insert(Object::Tensor(tensor))?;
        from.peer.reply(from.id, Kind::Lookup, &Reply::Tensor { handle, device, spec });
        Ok(())
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
                cache.enter(self, Turn::Quick(Box::new(quick)));
                Ok(())
            }
            _ => Err(fail(ErrorCode::WrongType, "the handle names neither a tensor nor a KV cache")),
        }
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
    /// Sends this range of the bytes of `segments`, one after another, and the reply.
    fn send(self, peer: &Peer, id: u64, segments: &[Region]) -> Result<(), RemoteError> {
        let total = segments.iter().map(|s| s.len() as u64).sum::<u64>();
        let rest = total.saturating_sub(self.offset);
        let length = if self.length == 0 { rest } else { self.length };
        range_within(self.offset, length, total)?;
        let pieces = cut(segments, self.offset, length);
        match (self.sliced, &pieces[..]) {
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
