//! What the server says, frame by frame.

use super::super::requests::Bulk;
use super::{Client, ClientError, State};
use crate::wire::{Control, DecodeError, ErrorCode, Flags, Header, Kind, Reply, Request, body_crc, encode_header};

impl Client {
    pub(super) fn frame(&mut self, header: &Header, meta: &[u8], payload: &[u8]) -> Result<(), ClientError> {
        let kind = header.kind.map_err(DecodeError::Kind)?;
        if Control::is(kind) {
            let message = Control::decode(header, meta)?;
            return self.control(header.id, message);
        }
        if matches!(self.state, State::Opening(id) if id == header.id) {
            return self.opened(header, meta, payload);
        }
        let (terminal, error) = (!header.flags.has(Flags::MORE), header.flags.has(Flags::ERROR));
        if let Some(at) = self.abandoned.iter().position(|a| a.wire == header.id) {
            if terminal {
                self.abandoned.swap_remove(at);
                self.credit_back();
            }
            return Ok(());
        }
        let id = self.requests.of_wire(header.id);
        let Some(slot) = self.requests.get(id).filter(|slot| slot.is_awaited()) else { return Ok(()) };
        // A part of an answer will do: an upload over a connection that breaks again and again has no other for long.
        self.progressed = true;
        if kind == Kind::Put && !terminal {
            let Reply::Landed { bits, slice_bytes: theirs, .. } = Reply::decode(header, meta, payload)? else {
                return Ok(());
            };
            if let Bulk::Out { slice_bytes, .. } = &mut slot.bulk {
                // Who began the upload chose the grid.
                *slice_bytes = theirs;
            }
            self.begin_bulk(id, bits.to_vec());
            return Ok(());
        }
        slot.add_reply(header, meta, payload);
        if terminal {
            if error && slot.came_corrupted() {
                slot.again += 1;
                slot.send_again();
                self.bulk.end(header.id);
                // It is sent again under its id, since an attempt over an earlier connection may have taken effect all the
                // same. If none did, the server has never seen the id, and would take it for one that it has forgotten once
                // enough later ones have ended: those wait.
                self.mending = true;
                self.in_flight = self.in_flight.saturating_sub(1);
                self.resume_flow();
                return Ok(());
            }
            if error || kind == Kind::Put {
                self.bulk.end(header.id);
            }
            self.credit_back();
        }
        Ok(())
    }

    fn control(&mut self, id: u64, message: Control) -> Result<(), ClientError> {
        match message {
            Control::Challenge(nonce) if self.is_greeting() => return self.prove(&nonce),
            Control::Welcome(welcome) if self.is_greeting() => {
                self.welcomed(welcome)?;
                self.bulk.set_checked(self.is_checked());
                self.open();
            }
            Control::Ping => self.push_control(id, &Control::Pong),
            Control::Pong => self.progressed = true,
            Control::SliceAgain { offset, late } => self.slice_again(id, offset, late),
            Control::LaneEnded { lane, slices } => self.lane_ended_there(lane, slices),
            // The server does not keep what a get lacks: all of it is asked for again.
            Control::Cancel => self.begin_again(id),
            Control::Goodbye(error) => {
                // Another connection has taken the session up: taking it back would only end that one in turn, for ever.
                let unwelcome = matches!(error.code, ErrorCode::Unauthorized | ErrorCode::Forbidden);
                if error.code == ErrorCode::SessionGone || (unwelcome && self.is_greeting()) {
                    self.die(error.clone().into());
                }
                return Err(error.into());
            }
            _ => return Err(DecodeError::Range("a message that only a client sends").into()),
        }
        Ok(())
    }

    /// Opens a session, or takes up the one that was open.
    fn open(&mut self) {
        let unanswered = self.requests.lowest();
        let request = match &self.session {
            Some(s) => Request::Resume { token: s.token, epoch: s.epoch, unanswered },
            None => Request::Open { quota: self.options.quota, lease_ms: self.options.lease_ms },
        };
        let mut meta = Vec::new();
        let kind = request.encode(&mut meta, &mut Vec::new());
        // The id is taken from the requests' row, and given back: nobody picks up its answer.
        let (id, _) = self.requests.begin(kind);
        self.requests.end(id);
        let head = encode_header(kind, Flags::default(), id, meta.len() as u32, 0, body_crc(&meta, &[]));
        self.outbox.push(&head, &meta, &[]);
        self.state = State::Opening(id);
        self.opening = self.heard;
    }

    fn opened(&mut self, header: &Header, meta: &[u8], payload: &[u8]) -> Result<(), ClientError> {
        match Reply::decode(header, meta, payload)? {
            Reply::Opened(session) => {
                // Ids that another process of the session used are not used again: the server would take what carries them for
                // retries of what that process asked.
                self.requests.skip_to(session.next_request);
                self.session = Some(session);
                self.state = State::Ready;
                // One exchange and no more: a handshake, or a proof of who is who, says nothing of how far the server is.
                self.rtt = self.heard.saturating_duration_since(self.opening);
                self.lane_count = self.lane_plan().lanes.max(1);
                for (id, used) in std::mem::take(&mut self.orphans) {
                    self.push_control(id, &Control::Cancel);
                    if let Some(used) = used.filter(|_| id >= session.next_request) {
                        // It went down with its connection before the server had seen it.
                        used.give_use_back();
                    }
                }
                self.resume_flow();
                Ok(())
            }
            Reply::Failed(error)
                if self.session.is_some() && matches!(error.code, ErrorCode::EpochGone | ErrorCode::SessionGone) =>
            {
                self.session = None;
                self.sessions_lost += 1;
                // The server has given those back that it knew of; of those that went down with a connection nobody knows.
                self.forget_uses();
                tracing::debug!(?error, "the session is gone: opening another");
                self.requests.fail_all(&ClientError::SessionLost(error.code));
                self.open();
                Ok(())
            }
            // Another attempt may fare better.
            Reply::Failed(error) if matches!(error.code, ErrorCode::Corrupt | ErrorCode::ShuttingDown) => {
                Err(error.into())
            }
            Reply::Failed(error) => {
                self.die(error.clone().into());
                Err(error.into())
            }
            _ => Err(DecodeError::Misplaced(header.kind.map_or_else(|k| k, |k| k as u8)).into()),
        }
    }
}
