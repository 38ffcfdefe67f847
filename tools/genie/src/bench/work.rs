//! The requests of a measurement, over a session.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use clap::ValueEnum;
use genie_graph::DType;
use genie_transport::client::blocking::{Pending, Session};
use genie_transport::client::{PutOptions, Tensor};
use genie_transport::wire::TensorSpec;

use super::load::{self, Flying, Plan, Target, Until};

/// What is asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Op {
    /// Make a new tensor resident; it is freed when it is there.
    Put,
    /// Read a resident tensor.
    Get,
    /// Send bytes there and back.
    Echo,
    /// Puts and gets in turn.
    Mixed,
}

impl Op {
    /// As it is written.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Echo => "echo",
            Self::Mixed => "mixed",
        }
    }

    /// Whether tensors come back.
    pub(super) fn reads(self) -> bool {
        matches!(self, Self::Get | Self::Mixed)
    }
}

/// Requests of one kind and size, in a session.
pub(super) struct Work<'a> {
    session: &'a mut Session,
    op: Op,
    data: Bytes,
    spec: TensorSpec,
    device: u16,
    /// Tensors, or echoes, that one request is made of.
    batch: u32,
    /// What is read.
    resident: Option<Tensor>,
    /// Frees whose answers nobody has waited for.
    freeing: VecDeque<Pending>,
    back: Vec<u8>,
    began: Instant,
    started: u64,
}

/// A part of a request in flight.
#[derive(Debug)]
pub(super) enum Part {
    Put(Pending),
    Get(Pending),
    Echo(Pending),
}

/// A request in flight.
#[derive(Debug)]
pub(super) enum Ticket {
    One(Part),
    Batch(Vec<Part>),
}

/// Frees that may wait for their answers: fewer than requests may be in flight.
const FREEING: usize = 16;

impl<'a> Work<'a> {
    /// Readies what the requests need: what is read is put there.
    pub(super) fn new(session: &'a mut Session, op: Op, data: Bytes, device: u16, batch: u32) -> Result<Self> {
        let spec = TensorSpec::new(DType::U8, &[data.len() as u64])?;
        let resident = match op {
            Op::Get | Op::Mixed => {
                Some(session.put(&spec, data.clone(), PutOptions { device, ..PutOptions::default() })?)
            }
            Op::Put | Op::Echo => None,
        };
        let (freeing, back) = (VecDeque::new(), Vec::with_capacity(data.len()));
        let began = Instant::now();
        Ok(Self { session, op, data, spec, device, batch, resident, freeing, back, began, started: 0 })
    }

    /// The session, for what else happens on it.
    pub(super) fn session(&mut self) -> &mut Session {
        self.session
    }

    /// A request that counts for nothing: with it a session connects again that the server has taken for dead since its last one.
    pub(super) fn wake(&mut self) -> Result<()> {
        load::run(self, Plan { depth: 1, rate: None, until: Until::Count(1) })?;
        Ok(())
    }

    /// Checks what came back, frees what is left, and gives the session back.
    pub(super) fn end(mut self) -> Result<()> {
        while let Some(pending) = self.freeing.pop_front() {
            self.session.finish_free(pending)?;
        }
        if self.op == Op::Echo && self.started > 0 && self.back != self.data {
            bail!("the echo came back changed");
        }
        if let Some(tensor) = self.resident.take() {
            let read = self.session.get(&tensor)?;
            let same = *read == *self.data;
            self.session.recycle(read);
            self.session.free(tensor.handle)?;
            if !same {
                bail!("the tensor came back changed");
            }
        }
        Ok(())
    }

    fn start_part(&mut self) -> Result<Part> {
        let n = self.started;
        self.started += 1;
        let get = match self.op {
            Op::Echo => return Ok(Part::Echo(self.session.start_echo(&self.data))),
            Op::Put => false,
            Op::Get => true,
            Op::Mixed => n % 2 == 1,
        };
        if let (true, Some(tensor)) = (get, &self.resident) {
            return Ok(Part::Get(self.session.start_get(tensor.handle, 0, tensor.spec.bytes())?));
        }
        // Frees go on their way with the puts; they are heard of when that costs no waiting.
        while let Some(first) = self.freeing.front()
            && (self.freeing.len() > FREEING || self.session.is_done(first))
        {
            if let Some(pending) = self.freeing.pop_front() {
                self.session.finish_free(pending)?;
            }
        }
        let options = PutOptions { device: self.device, ..PutOptions::default() };
        Ok(Part::Put(self.session.start_put(&self.spec, self.data.clone(), options)?))
    }

    fn finish_part(&mut self, part: Part) -> Result<()> {
        match part {
            Part::Echo(pending) => self.session.finish_echo(pending, &mut self.back)?,
            Part::Get(pending) => {
                let read = self.session.finish_get(pending)?;
                self.session.recycle(read);
            }
            Part::Put(pending) => {
                let tensor = self.session.finish_put(pending)?;
                let freeing = self.session.start_free(tensor.handle);
                self.freeing.push_back(freeing);
            }
        }
        Ok(())
    }
}

impl Ticket {
    fn parts(&self) -> &[Part] {
        match self {
            Self::One(part) => std::slice::from_ref(part),
            Self::Batch(parts) => parts,
        }
    }

    /// The first part that is not answered, which has to be waited for.
    fn unanswered(&self, session: &mut Session) -> Option<&Pending> {
        self.parts().iter().map(Part::pending).find(|pending| !session.is_done(pending))
    }
}

impl Part {
    fn pending(&self) -> &Pending {
        match self {
            Self::Put(pending) | Self::Get(pending) | Self::Echo(pending) => pending,
        }
    }
}

impl Target for Work<'_> {
    type Ticket = Ticket;

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn start(&mut self) -> Result<Ticket> {
        if self.batch == 1 {
            return self.start_part().map(Ticket::One);
        }
        (0..self.batch).map(|_| self.start_part()).collect::<Result<_>>().map(Ticket::Batch)
    }

    fn wait(&mut self, flying: &VecDeque<Flying<Ticket>>, until: Option<Duration>) {
        let until = until.map(|time| self.began + time);
        if self.batch == 1 {
            let pending = flying.iter().flat_map(|f| f.ticket.parts()).map(Part::pending);
            self.session.wait_any(pending, until);
            return;
        }
        let mut awaited = Vec::with_capacity(flying.len());
        for request in flying {
            match request.ticket.unanswered(self.session) {
                Some(pending) => awaited.push(pending),
                None => return,
            }
        }
        self.session.wait_any(awaited.iter().copied(), until);
    }

    fn is_done(&mut self, ticket: &Ticket) -> bool {
        ticket.parts().iter().all(|part| self.session.is_done(part.pending()))
    }

    fn finish(&mut self, ticket: Ticket) -> Result<()> {
        match ticket {
            Ticket::One(part) => self.finish_part(part),
            Ticket::Batch(parts) => parts.into_iter().try_for_each(|part| self.finish_part(part)),
        }
    }
}
