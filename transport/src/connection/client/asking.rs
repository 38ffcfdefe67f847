//! Requests of the user's: begun, answered, ended.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::super::outbox::Sink;
use super::super::requests::{Bulk, RequestId};
use super::{Abandoned, Answer, Client, ClientError, State};
use crate::memory::{Landing, SharedBytes};
use crate::wire::{
    Control, DecodeError, ErrorCode, Flags, HEADER_BYTES, Kind, PutBody, PutRequest, RemoteError, Request, body_crc,
    encode_header, limits,
};

impl Client {
    /// Starts a request. `payload` stands for the request's own payload where the caller has it in shared memory. `sink`: the
    /// control lane, so that the frame goes out at once and uncopied.
    ///
    /// # Errors
    /// The sink's: the control lane is gone ([`Self::lost`] must be called); the request is kept, and is sent again.
    pub fn start(
        &mut self,
        request: &Request<'_>,
        payload: Option<Bytes>,
        sink: Option<&mut dyn Sink>,
    ) -> (RequestId, io::Result<()>) {
        self.begin(request, payload, Bulk::None, sink)
    }

    /// Starts a put in slices. The request's body must be [`crate::wire::PutBody::Sliced`].
    pub fn start_put(&mut self, request: &Request<'_>, pieces: Vec<Bytes>, slice_bytes: u32) -> RequestId {
        self.bulk_begins();
        self.begin(request, None, Bulk::Out { pieces, slice_bytes }, None).0
    }

    /// Starts a get in slices, which land in `landing`.
    pub fn start_get(&mut self, request: &Request<'_>, landing: Arc<Landing>) -> RequestId {
        self.bulk_begins();
        self.begin(request, None, Bulk::In(landing), None).0
    }

    /// The request passes memory that both sides share, with a use that was taken when uses had been forgotten so often
    /// ([`Self::uses_forgotten`]). The server gives it back; where it never sees the request, this does.
    pub fn passes(&mut self, id: RequestId, bytes: Arc<SharedBytes>, uses_forgotten: u64) {
        if uses_forgotten != self.uses_forgotten {
            // It was forgotten with those before; and a client that has given up asks for nothing more.
            if self.dead().is_some() {
                return;
            }
            bytes.take_use();
        }
        if let Some(slot) = self.requests.get(id.0) {
            slot.used = Some(bytes);
        }
    }

    /// How often the session was lost, or the server given up: uses of shared memory that were taken before are forgotten, since nobody
    /// gives back those that the server never knew of, or took with it.
    pub fn uses_forgotten(&self) -> u64 {
        self.uses_forgotten
    }

    /// Whether no request moves anything over the bulk lanes.
    pub fn is_bulk_quiet(&self) -> bool {
        self.bulk_live == 0
    }

    fn bulk_begins(&mut self) {
        self.bulk_used = true;
        self.bulk_live += 1;
    }

    /// Whether [`Self::answer`] has something.
    pub fn has_answer(&mut self, id: RequestId) -> bool {
        self.requests.get(id.0).is_none_or(|slot| slot.has_reply())
    }

    /// The next reply to a request: one, or several for a streamed one. `None`: not yet. After the last, call [`Self::end`].
    pub fn answer(&mut self, id: RequestId) -> Option<Answer<'_>> {
        self.requests.get(id.0)?.next_reply()
    }

    /// Forgets a request. One that is not over is cancelled.
    pub fn end(&mut self, id: RequestId) {
        let Some(slot) = self.requests.get(id.0) else { return };
        let (wire, wanted, awaited) = (slot.wire, slot.sent && !slot.is_over(), slot.is_awaited());
        let orphaned = slot.ever_sent && !slot.sent && !slot.is_over();
        // The server keeps the bytes of a get until it hears that they are here.
        let kept = matches!(slot.bulk, Bulk::In(_)) && slot.sent && !slot.is_awaited();
        let bulk = std::mem::replace(&mut slot.bulk, Bulk::None);
        let (used, ever_sent) = (slot.used.take(), slot.ever_sent);
        self.requests.end(id.0);
        if let Some(used) = used.as_ref().filter(|_| !ever_sent) {
            // The server never heard of it.
            used.give_use_back();
        }
        if wanted || kept {
            self.push_control(wire, &Control::Cancel);
        }
        if !matches!(bulk, Bulk::None) {
            self.bulk_live = self.bulk_live.saturating_sub(1);
            self.bulk.end(wire);
            self.landings.end(wire);
        }
        if orphaned {
            self.orphans.push((wire, used.clone()));
        }
        if awaited {
            let pieces = if let Bulk::Out { pieces, .. } = bulk { pieces } else { Vec::new() };
            self.abandoned.push(Abandoned { wire, _pieces: pieces, used });
        }
    }

    /// Asks the server to stop a request; its terminal answer still comes.
    pub fn cancel(&mut self, id: RequestId) {
        let Some(slot) = self.requests.get(id.0).filter(|slot| !slot.is_over()) else { return };
        // Should it have to be sent (again), the wish goes with it.
        slot.cancelled = true;
        let (wire, sent) = (slot.wire, slot.sent);
        if let Bulk::In(_) = slot.bulk {
            // Its reply may have come, and then nothing but slices that the server now leaves out would end it.
            slot.fail(RemoteError::new(ErrorCode::Cancelled, "the get was cancelled").into());
        }
        if sent {
            self.push_control(wire, &Control::Cancel);
        }
    }

    fn begin(
        &mut self,
        request: &Request<'_>,
        payload: Option<Bytes>,
        bulk: Bulk,
        sink: Option<&mut dyn Sink>,
    ) -> (RequestId, io::Result<()>) {
        let mending = self.is_mending();
        let (id, slot) = self.requests.begin(Kind::Echo);
        let mut frame = std::mem::take(&mut slot.frame);
        slot.bulk = bulk;
        frame.clear();
        frame.extend_from_slice(&[0; HEADER_BYTES]);
        let mut small = std::mem::take(&mut slot.small);
        small.clear();
        let kind = request.encode(&mut frame, &mut small);
        slot.kind = kind;
        slot.asks = matches!(request, Request::Put(PutRequest { body: PutBody::Sliced { announce: true, .. }, .. }));
        let borrowed = request.payload().filter(|_| payload.is_none());
        slot.payload = payload.unwrap_or_default();
        let body: &[u8] = borrowed.unwrap_or(if slot.payload.is_empty() { &small } else { &slot.payload });
        let meta_len = frame.len() - HEADER_BYTES;
        // What the server could only refuse, and with it the connection, is not sent.
        let fits = meta_len <= limits::META_BYTES as usize && body.len() <= limits::CONTROL_PAYLOAD_BYTES as usize;
        if !fits || matches!(self.state, State::Dead(_)) {
            let error = match &self.state {
                State::Dead(error) => error.clone(),
                _ => too_long(meta_len, body.len()),
            };
            frame.clear();
            slot.frame = frame;
            slot.small = small;
            slot.fail(error);
            return (RequestId(id), Ok(()));
        }
        let crc = body_crc(&frame[HEADER_BYTES..], body);
        let head = encode_header(kind, Flags::default(), id, meta_len as u32, body.len() as u32, crc);
        frame[..HEADER_BYTES].copy_from_slice(&head);
        let credits = self.welcome.map_or(1, |w| w.credits);
        let flows = matches!(self.state, State::Ready) && self.in_flight < credits && !mending;
        let mut done = Ok(());
        if flows {
            slot.sent = true;
            slot.ever_sent = true;
            let before = self.outbox.waiting();
            match sink {
                Some(sink) => done = self.outbox.send(&frame, &[], body, sink),
                None => self.outbox.push(&frame, &[], body),
            }
            let sent = (frame.len() + body.len() + before).saturating_sub(self.outbox.waiting());
            self.counters.up.fetch_add(if done.is_ok() { sent as u64 } else { 0 }, Ordering::Relaxed);
            // What was asked over an earlier connection is owed from the beginning of this one, and is no news.
            self.asked |= self.in_flight == 0;
            self.in_flight += 1;
        }
        // A large echo that went out is not worth a copy: it fails with its connection.
        // Nor is what asks for bytes in shared memory: an answer to the first asking may still be on its way there.
        slot.once = matches!(request, Request::GetInto { .. });
        if !flows || !(slot.once || (kind == Kind::Echo && body.len() > 4096)) {
            match (slot.payload.is_empty(), kind) {
                (false, _) => {}
                (true, Kind::Echo | Kind::Put | Kind::Run) if borrowed.is_some() => {
                    crate::memory::extend_counted(&mut frame, body);
                }
                // Tables and graphs, not tensors.
                (true, _) => frame.extend_from_slice(body),
            }
        } else {
            frame.clear();
        }
        slot.frame = frame;
        slot.small = small;
        if flows && !slot.asks {
            self.begin_bulk(id, Vec::new());
        }
        (RequestId(id), done)
    }
}

/// Why a frame is not sent of which one part is too long.
#[cold]
fn too_long(meta: usize, payload: usize) -> ClientError {
    let (what, length, limit) = match u32::try_from(meta) {
        Ok(..=limits::META_BYTES) => ("payload", payload, limits::CONTROL_PAYLOAD_BYTES),
        _ => ("metadata", meta, limits::META_BYTES),
    };
    ClientError::Request(DecodeError::TooLong { what, length: length as u64, limit: limit.into() })
}
