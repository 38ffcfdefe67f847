//! One session, many threads.
//!
//! Requests go over a blocking session, whose bytes are moved by the thread that waits: that is the fastest way for one thread, and
//! there is no other to be woken. Of several that wait, one moves the bytes of all; the others sleep until it has an answer of theirs, or
//! is done itself. Who wants to ask for something rings, gets the session from the one that moves, and gives it back.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use genie_transport::client::blocking::{Pending, Session};
use genie_transport::client::{Bell, ClientError};

use crate::caller::Loan;
use crate::status::{Failure, genie_status};

/// A session that threads share.
pub(crate) struct Core {
    state: Mutex<State>,
    /// Something has changed for those that sleep.
    turn: Condvar,
    bell: Bell,
}

struct State {
    /// `None` while somebody moves its bytes, and once it is closed.
    driven: Option<Box<Driven>>,
    closed: bool,
    /// Threads that want the session from the one that moves its bytes.
    wants: u32,
    /// Threads that wait for their turn.
    sleepers: u32,
    last_ticket: u64,
}

/// A session with its requests in flight.
struct Driven {
    session: Session,
    requests: Vec<InFlight>,
}

struct InFlight {
    ticket: Ticket,
    pending: Pending,
    /// Threads that wait for it.
    awaited: u32,
}

/// Names a request in flight. [`Core::finish`] ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// How long one look for memory on loan lasts.
const LOOK: Duration = Duration::from_millis(5);

impl Driven {
    fn any_done(&mut self, tickets: &[Ticket]) -> Option<usize> {
        let Self { session, requests } = self;
        // One that another thread has ended is not waited for.
        let done = |t: &Ticket| requests.iter().find(|r| r.ticket == *t).is_none_or(|r| session.is_done(&r.pending));
        tickets.iter().position(done)
    }

    /// Whether a thread that sleeps has its answer.
    fn any_awaited_done(&mut self) -> bool {
        let Self { session, requests } = self;
        requests.iter().any(|r| r.awaited > 0 && session.is_done(&r.pending))
    }

    fn await_all(&mut self, tickets: &[Ticket], more: bool) {
        for request in self.requests.iter_mut().filter(|r| tickets.contains(&r.ticket)) {
            request.awaited = if more { request.awaited + 1 } else { request.awaited.saturating_sub(1) };
        }
    }
}

impl Core {
    pub(crate) fn new(session: Session) -> Result<Self, Failure> {
        let no_bell = |e| {
            Failure::new(genie_status::GENIE_ERROR_NO_MEMORY, format!("this process cannot wait for a session: {e}"))
        };
        let bell = Bell::new().map_err(no_bell)?;
        let driven = Some(Box::new(Driven { session, requests: Vec::new() }));
        let state = State { driven, closed: false, wants: 0, sleepers: 0, last_ticket: 0 };
        Ok(Self { state: Mutex::new(state), turn: Condvar::new(), bell })
    }

    /// Does something with the session that hardly waits: everybody else does meanwhile.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Session) -> Result<T, ClientError>) -> Result<T, Failure> {
        let mut state = self.enter()?;
        let done = state.driven.as_mut().map(|driven| work(&mut driven.session));
        self.leave(state);
        Ok(done.ok_or_else(Failure::closed)??)
    }

    /// Begins a request.
    pub(crate) fn start(&self, begin: impl FnOnce(&mut Session) -> Begun) -> Result<Ticket, Failure> {
        let mut state = self.enter()?;
        let ticket = begun(&mut state, begin);
        self.leave(state);
        ticket
    }

    /// Waits until one of these requests is answered, or a time has come: which one is.
    pub(crate) fn wait(&self, tickets: &[Ticket], until: Option<Instant>) -> Result<Option<usize>, Failure> {
        let (state, done) = self.wait_on(self.enter()?, tickets, until)?;
        self.leave(state);
        Ok(done)
    }

    /// Waits for a request, and ends it.
    pub(crate) fn finish<T>(
        &self,
        ticket: Ticket,
        end: impl FnOnce(&mut Session, Pending) -> Result<T, ClientError>,
    ) -> Result<T, Failure> {
        let (mut state, _) = self.wait_on(self.enter()?, &[ticket], None)?;
        let ended = ended(&mut state, ticket, end);
        self.leave(state);
        ended
    }

    /// Begins a request, waits for it, and ends it.
    pub(crate) fn call<T>(
        &self,
        begin: impl FnOnce(&mut Session) -> Begun,
        end: impl FnOnce(&mut Session, Pending) -> Result<T, ClientError>,
    ) -> Result<T, Failure> {
        let mut state = self.enter()?;
        let done = match begun(&mut state, begin) {
            Ok(ticket) => {
                (state, _) = self.wait_on(state, &[ticket], None)?;
                ended(&mut state, ticket, end)
            }
            Err(failure) => Err(failure),
        };
        self.leave(state);
        done
    }

    /// Does something with a request in flight that does not wait.
    pub(crate) fn of<T>(&self, ticket: Ticket, work: impl FnOnce(&mut Session, &Pending) -> T) -> Result<T, Failure> {
        let mut state = self.enter()?;
        let done = state.driven.as_mut().and_then(|driven| {
            let Driven { session, requests } = &mut **driven;
            let request = requests.iter().find(|r| r.ticket == ticket)?;
            Some(work(session, &request.pending))
        });
        self.leave(state);
        done.ok_or_else(ended_elsewhere)
    }

    /// Forgets a request that was ended otherwise.
    pub(crate) fn forget(&self, ticket: Ticket) {
        if let Ok(mut state) = self.enter() {
            if let Some(driven) = &mut state.driven {
                driven.requests.retain(|r| r.ticket != ticket);
            }
            self.leave(state);
        }
    }

    /// Waits until memory that was lent to this session is back. The request that it was lent to is over: what is left is what lanes
    /// have half sent or received, and they let go of it as they go on.
    pub(crate) fn settle(&self, loan: &Loan) {
        while !loan.is_back() {
            if self.wait(&[], Some(Instant::now() + LOOK)).is_err() {
                // The session is gone; an operation of the kernel's may still be about to end.
                std::thread::sleep(LOOK);
            }
        }
    }

    /// Ends the session. Every call from here on, and every thread that waits, is told so.
    pub(crate) fn close(&self) -> Result<(), Failure> {
        let mut state = self.enter()?;
        let driven = state.driven.take();
        state.closed = true;
        self.turn.notify_all();
        drop(state);
        // Its requests are of no use to anybody: their memory is given back with the session.
        Ok(driven.map_or(Ok(()), |driven| driven.session.close())?)
    }

    // ---- inside

    /// The state with the session in it, or closed.
    fn enter(&self) -> Result<MutexGuard<'_, State>, Failure> {
        let mut state = self.lock();
        while state.driven.is_none() && !state.closed {
            state.wants += 1;
            self.bell.ring();
            state = self.sleep(state, None);
            state.wants -= 1;
        }
        if state.closed { Err(Failure::closed()) } else { Ok(state) }
    }

    fn leave(&self, state: MutexGuard<'_, State>) {
        if state.sleepers > 0 {
            self.turn.notify_all();
        }
    }

    fn wait_on<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        tickets: &[Ticket],
        until: Option<Instant>,
    ) -> Result<(MutexGuard<'a, State>, Option<usize>), Failure> {
        if let Some(driven) = &mut state.driven {
            driven.await_all(tickets, true);
        }
        // However short the time is, what can be moved at once is moved.
        let mut moved = false;
        loop {
            if state.closed {
                return Err(Failure::closed());
            }
            let over = until.is_some_and(|until| Instant::now() >= until);
            let Some(driven) = &mut state.driven else {
                if over {
                    // Only who has the session can say that this is no longer waited for.
                    drop(state);
                    state = self.enter()?;
                } else {
                    state = self.sleep(state, until);
                }
                continue;
            };
            let done = driven.any_done(tickets);
            if done.is_some() || (over && moved) {
                driven.await_all(tickets, false);
                return Ok((state, done));
            }
            moved = true;
            // Whoever wants it, or has an answer there, has been told that it is there, and tells when it is there again. To lead on
            // would take it from under them, again and again.
            let give_way = driven.any_awaited_done() || state.wants > 0;
            state = if give_way { self.sleep(state, until) } else { self.lead(state, until) };
        }
    }

    fn sleep<'a>(&self, mut state: MutexGuard<'a, State>, until: Option<Instant>) -> MutexGuard<'a, State> {
        state.sleepers += 1;
        let mut state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
            Some(left) => self.turn.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            None => self.turn.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
        state.sleepers -= 1;
        state
    }

    /// Moves bytes until something is answered that somebody waits for, somebody rings, or a time has come.
    fn lead<'a>(&'a self, mut state: MutexGuard<'a, State>, until: Option<Instant>) -> MutexGuard<'a, State> {
        let mut lead = Lead { core: self, driven: state.driven.take() };
        drop(state);
        if let Some(driven) = &mut lead.driven {
            let Driven { session, requests } = &mut **driven;
            let awaited = requests.iter().filter(|r| r.awaited > 0).map(|r| &r.pending);
            session.wait_any_or(awaited, until, &self.bell);
        }
        lead.back()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the beginning of a request gives.
type Begun = Result<Pending, ClientError>;

fn begun(state: &mut State, begin: impl FnOnce(&mut Session) -> Begun) -> Result<Ticket, Failure> {
    let ticket = Ticket(state.last_ticket + 1);
    state.last_ticket = ticket.0;
    let driven = state.driven.as_mut().ok_or_else(Failure::closed)?;
    let pending = begin(&mut driven.session)?;
    driven.requests.push(InFlight { ticket, pending, awaited: 0 });
    Ok(ticket)
}

fn ended<T>(
    state: &mut State,
    ticket: Ticket,
    end: impl FnOnce(&mut Session, Pending) -> Result<T, ClientError>,
) -> Result<T, Failure> {
    let driven = state.driven.as_mut().ok_or_else(Failure::closed)?;
    let at = driven.requests.iter().position(|r| r.ticket == ticket).ok_or_else(ended_elsewhere)?;
    let request = driven.requests.swap_remove(at);
    Ok(end(&mut driven.session, request.pending)?)
}

fn ended_elsewhere() -> Failure {
    Failure::new(genie_status::GENIE_ERROR_HANDLE, "another thread has ended this request")
}

/// A thread that moves the session's bytes.
struct Lead<'a> {
    core: &'a Core,
    driven: Option<Box<Driven>>,
}

impl<'a> Lead<'a> {
    fn back(mut self) -> MutexGuard<'a, State> {
        let driven = self.driven.take();
        let mut state = self.core.lock();
        state.driven = driven;
        self.core.bell.hush();
        if state.sleepers > 0 {
            self.core.turn.notify_all();
        }
        state
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        // Only a panic gets here with the session: it cannot be trusted any more, and nobody shall wait for it.
        if self.driven.take().is_some() {
            self.core.lock().closed = true;
            self.core.turn.notify_all();
        }
    }
}
