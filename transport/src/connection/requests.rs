//! A client's requests, from their start until their answers were picked up.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::client::ClientError;
use super::slots::{IdHasher, Slots};
use crate::memory::{Landing, SharedBytes, extend_counted};
use crate::wire::{Effect, ErrorCode, Header, Kind, Reply, set_announce, set_id};

/// How often a request is sent again because it, or a slice of its answer, came corrupted.
pub(super) const SECOND_CHANCES: u32 = 8;

/// Names a request of one client. Never used twice in a session, so that the server can tell a retry from a new request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One request. Slots are reused with their buffers, so that steady state allocates nothing.
#[derive(Debug)]
pub(super) struct Slot {
    /// The id that its frame carries: its own, unless a get was begun again.
    pub(super) wire: u64,
    pub(super) kind: Kind,
    /// Header, metadata and small payload as sent, to be sent again after a reconnect; empty: is not sent again.
    pub(super) frame: Vec<u8>,
    /// It is not sent again: once it went out, its frame is gone.
    pub(super) once: bool,
    /// The rest of the payload, in the caller's memory.
    pub(super) payload: Bytes,
    /// A buffer for payloads that are encoded.
    pub(super) small: Vec<u8>,
    pub(super) bulk: Bulk,
    /// Shared memory that it passes, with a use that the server gives back once it has seen the request.
    pub(super) used: Option<Arc<SharedBytes>>,
    /// Whether it was sent on this connection.
    pub(super) sent: bool,
    /// Whether it was sent on any.
    pub(super) ever_sent: bool,
    /// How often it was begun again because of corruption.
    pub(super) again: u32,
    /// A sliced put that sends nothing before it has heard which slices the server has.
    pub(super) asks: bool,
    /// The caller no longer wants it.
    pub(super) cancelled: bool,
    /// Slices of a get that came corrupted while so many had landed.
    pub(super) chances: (u32, u32),
    /// Since when nothing more of its slices was seen.
    pub(super) quiet: Option<Quiet>,
    answers: Vec<u8>,
    heads: VecDeque<(Header, usize)>,
    /// The terminal reply has come.
    replied: bool,
    failed: Option<ClientError>,
    /// Tokens of a generate that the caller has.
    given: usize,
    /// Of those, the ones that come once more: a generate that is asked for again is answered from its first token on.
    repeated: usize,
}

/// A transfer that does not go on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quiet {
    /// What was seen of it.
    pub(super) seen: u64,
    /// When it counts as late, and how long that takes from then on.
    pub(super) until: Instant,
    pub(super) wait: Duration,
}

/// What a request moves over the bulk lanes.
#[derive(Debug)]
pub(super) enum Bulk {
    None,
    Out { pieces: Vec<Bytes>, slice_bytes: u32 },
    In(Arc<Landing>),
}

impl Slot {
    /// Whether nothing more will come for it.
    pub(super) fn is_over(&self) -> bool {
        let landed = match &self.bulk {
            Bulk::In(landing) => landing.is_complete(),
            _ => true,
        };
        self.failed.is_some() || (self.replied && (landed || self.has_error()))
    }

    /// Whether it was sent on this connection, and its terminal reply has not come.
    pub(super) fn is_awaited(&self) -> bool {
        self.sent && !self.replied
    }

    pub(super) fn fail(&mut self, error: ClientError) {
        if !self.is_over() {
            self.failed = Some(error);
            if self.replied {
                // A get whose bytes will not come after all.
                self.heads.pop_back();
            }
        }
    }

    pub(super) fn add_reply(&mut self, header: &Header, meta: &[u8], payload: &[u8]) {
        self.replied = !header.flags.has(crate::wire::Flags::MORE);
        if self.failed.is_some() {
            return;
        }
        if self.heads.is_empty() {
            // All that came before was picked up.
            self.answers.clear();
        }
        let start = self.answers.len();
        self.answers.extend_from_slice(meta);
        if matches!(self.kind, Kind::Echo | Kind::Get | Kind::Run) {
            extend_counted(&mut self.answers, payload);
        } else {
            // Tables and tokens, not tensors.
            self.answers.extend_from_slice(payload);
        }
        self.heads.push_back((*header, start));
    }

    /// Whether the last reply says that the request was corrupted on its way, and it can be sent once more.
    pub(super) fn came_corrupted(&self) -> bool {
        let Some((header, start)) = self.heads.back().filter(|_| self.again < SECOND_CHANCES && !self.frame.is_empty())
        else {
            return false;
        };
        let (meta, payload) = self.answers[*start..start + header.body_len()].split_at(header.meta_len as usize);
        matches!(Reply::decode(header, meta, payload), Ok(Reply::Failed(error)) if error.code == ErrorCode::Corrupt)
    }

    /// It is to be sent once more, under its own id.
    pub(super) fn send_again(&mut self) {
        self.sent = false;
        self.quiet = None;
        match &self.bulk {
            Bulk::None => {}
            // Some slices may have landed: it asks which before it sends any.
            Bulk::Out { .. } => {
                self.asks = true;
                set_announce(&mut self.frame);
            }
            // The tensor may change before it is asked for again: slices of then and now do not belong together.
            Bulk::In(landing) => landing.reset(),
        }
        self.forget_replies();
    }

    pub(super) fn forget_replies(&mut self) {
        self.answers.clear();
        self.heads.clear();
        self.replied = false;
        self.repeated = self.given;
    }

    /// Whether [`Self::next_reply`] has something.
    pub(super) fn has_reply(&self) -> bool {
        let last = self.heads.len() == 1 && self.replied;
        if self.heads.is_empty() { self.failed.is_some() } else { !last || self.is_over() }
    }

    /// The next reply that may be picked up.
    pub(super) fn next_reply(&mut self) -> Option<Result<Reply<'_>, ClientError>> {
        if self.has_reply()
            && let Some((header, start)) = self.heads.pop_front()
        {
            let (meta, payload) = self.answers[start..start + header.body_len()].split_at(header.meta_len as usize);
            return Some(match Reply::decode(&header, meta, payload) {
                Ok(Reply::Failed(error)) => Err(ClientError::Remote(error)),
                Ok(Reply::Generated { device, position, tokens, finish }) => {
                    let fresh = tokens.get(self.repeated..).unwrap_or_default();
                    self.repeated = self.repeated.saturating_sub(tokens.len());
                    self.given += fresh.len();
                    Ok(Reply::Generated { device, position, tokens: fresh, finish })
                }
                Ok(reply) => Ok(reply),
                Err(error) => Err(ClientError::Protocol(error)),
            });
        }
        if self.heads.is_empty() { self.failed.clone().map(Err) } else { None }
    }

    fn has_error(&self) -> bool {
        self.heads.back().is_some_and(|(header, _)| header.flags.has(crate::wire::Flags::ERROR))
    }
}

/// All requests of a client that were not picked up.
#[derive(Debug, Default)]
pub(super) struct Requests {
    slots: Slots,
    /// Requests whose frames carry another id than their own, by that id.
    renamed: HashMap<u64, u64, BuildHasherDefault<IdHasher>>,
    #[expect(clippy::vec_box, reason = "a slot is large, and comes boxed from the list and goes boxed to it")]
    spare: Vec<Box<Slot>>,
    last: u64,
}

impl Requests {
    /// A fresh slot.
    pub(super) fn begin(&mut self, kind: Kind) -> (u64, &mut Slot) {
        self.last += 1;
        let mut slot = self.spare.pop().unwrap_or_else(|| {
            Box::new(Slot {
                wire: 0,
                kind,
                frame: Vec::new(),
                payload: Bytes::new(),
                small: Vec::new(),
                bulk: Bulk::None,
                used: None,
                sent: false,
                ever_sent: false,
                once: false,
                again: 0,
                asks: false,
                cancelled: false,
                chances: (0, 0),
                quiet: None,
                answers: Vec::new(),
                heads: VecDeque::new(),
                replied: false,
                failed: None,
                given: 0,
                repeated: 0,
            })
        });
        slot.kind = kind;
        slot.wire = self.last;
        (self.last, self.slots.insert(self.last, slot))
    }

    pub(super) fn get(&mut self, id: u64) -> Option<&mut Slot> {
        self.slots.get_mut(id)
    }

    /// The request whose frame carries this id.
    pub(super) fn of_wire(&self, wire: u64) -> u64 {
        if self.renamed.is_empty() { wire } else { self.renamed.get(&wire).copied().unwrap_or(wire) }
    }

    /// Gives a request's frame a fresh id; it is to be sent again.
    pub(super) fn rename(&mut self, id: u64) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        self.last += 1;
        self.renamed.remove(&slot.wire);
        self.renamed.insert(self.last, id);
        slot.wire = self.last;
        set_id(&mut slot.frame, self.last);
        slot.forget_replies();
        slot.sent = false;
    }

    /// The session has seen ids below `next`. This client did not make them all if it has not come that far; then those of its
    /// requests that were never sent begin there. One that was sent cannot get another id: it might take effect twice.
    pub(super) fn skip_to(&mut self, next: u64) {
        if next <= self.last + 1 || next > u64::MAX / 2 {
            return;
        }
        self.last = next - 1;
        for id in self.waiting() {
            match self.slots.get_mut(id) {
                Some(slot) if slot.ever_sent => slot.fail(ClientError::Unreachable {
                    reason: "another client has used the session meanwhile".into(),
                    effect: Effect::Unknown,
                }),
                _ => self.rename(id),
            }
        }
    }

    /// Forgets a request; its buffers are kept for another.
    pub(super) fn end(&mut self, id: u64) -> Option<()> {
        let mut slot = self.slots.remove(id)?;
        slot.frame.clear();
        slot.payload = Bytes::new();
        slot.bulk = Bulk::None;
        slot.used = None;
        slot.sent = false;
        slot.ever_sent = false;
        slot.once = false;
        slot.again = 0;
        slot.asks = false;
        slot.cancelled = false;
        (slot.chances, slot.quiet) = ((0, 0), None);
        slot.forget_replies();
        slot.failed = None;
        (slot.given, slot.repeated) = (0, 0);
        self.renamed.remove(&slot.wire);
        if self.spare.len() < 64 && slot.answers.capacity() <= 1 << 20 {
            self.spare.push(slot);
        }
        Some(())
    }

    /// Ids of the requests that wait for their answer, oldest first.
    pub(super) fn waiting(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.slots.iter().filter(|(_, s)| !s.is_over()).map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    /// Whether a request that came corrupted, and that the server would keep the reply of, has not ended.
    pub(super) fn is_mending(&self) -> bool {
        let kept = |kind: Kind| !matches!(kind, Kind::Echo | Kind::Get | Kind::Devices | Kind::Stats);
        self.slots.iter().any(|(_, slot)| slot.again > 0 && kept(slot.kind) && !slot.is_over())
    }

    /// The server that would give uses of shared memory back is gone.
    pub(super) fn forget_uses(&mut self) {
        self.slots.values_mut().for_each(|slot| slot.used = None);
    }

    pub(super) fn fail_all(&mut self, error: &ClientError) {
        self.fail_where(|_| true, error);
    }

    pub(super) fn fail_where(&mut self, which: impl Fn(&Slot) -> bool, error: &ClientError) {
        self.slots.values_mut().filter(|slot| which(slot)).for_each(|slot| slot.fail(error.clone()));
    }

    /// The lowest id that was not picked up, or the next one. A renamed request counts by its own id, which is lower.
    pub(super) fn lowest(&self) -> u64 {
        self.slots.iter().map(|(id, _)| id).min().unwrap_or(self.last + 1)
    }
}
