//! One session for many threads.
//!
//! Any number of calls are in flight together. The thread that holds the session's lock moves the bytes for all of them; the others wait
//! until it tells them that something was answered, or until it leaves. Whoever begins another call rings a bell, upon which the lock is
//! let go.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use genie_transport::Uri;
use genie_transport::client::blocking::{Pending, Session};
use genie_transport::client::{Bell, ClientError, Value};
use genie_transport::memory::Region;
use genie_transport::wire::Handle;
use pyo3::prelude::*;

use crate::connect::{Target, close_aside};
use crate::errors;
use crate::memory::Block;

/// How long a call goes on without looking whether Python wants something: a signal, a progress bar.
const LOOK: Duration = Duration::from_millis(100);

/// A session that is not used says something this often: servers take one for gone that is silent for half a minute.
const KEEP: Duration = Duration::from_secs(5);

/// What is to be freed waits for the next call, but no longer than this.
const TIDY: Duration = Duration::from_millis(500);

/// Memory of gets that is kept for the next ones.
const SPARES: usize = 8;

/// How often this process is the child of a fork.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// Tells a process that it was forked off: the sessions that it has are its parent's.
#[pyfunction]
pub(crate) fn after_fork() {
    FORKS.fetch_add(1, Ordering::AcqRel);
}

/// How often this process was forked off so far.
pub(crate) fn forks() -> u64 {
    FORKS.load(Ordering::Acquire)
}

/// A session, and who waits for what.
pub(crate) struct Shared {
    /// [`FORKS`] when it was opened. In a child nothing of it is touched: its locks may have been held by threads that are not there, and
    /// its sockets are the parent's, too.
    forks: u64,
    /// How it was reached: a model's session is another one on the same server.
    pub(crate) target: Target,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Whether the session was closed on this side.
    closed: AtomicBool,
    /// Wakes the thread that moves the bytes.
    bell: Bell,
    /// Threads that want the lock.
    wanting: AtomicUsize,
    /// Sessions lost so far, as of the last call.
    life: AtomicU64,
    to_free: Mutex<Vec<(u64, Handle)>>,
    spares: Mutex<Vec<Region>>,
    /// What was sent, and is Python's to give back: that may run anything, and so happens when the session's lock is free.
    sent: Mutex<Vec<Arc<Block>>>,
    /// Where memory of gets is that Python has, from its first address to the one past its last, on links that may share memory.
    lent: Mutex<BTreeMap<usize, usize>>,
}

struct Inner {
    /// `None` once it is closed.
    session: Option<Session>,
    flights: Vec<Flight>,
    next: u64,
    /// Requests that nobody waits for any more, and what becomes of their answers.
    left: VecDeque<(Pending, Left)>,
    used: Instant,
}

/// A call in flight.
struct Flight {
    number: u64,
    pending: Pending,
    /// Whether its thread waits for it now. One that looks at what Python wants may do so for long, or make other calls: nobody waits for
    /// it to take its answer.
    awaited: bool,
}

/// What a call gave, and the life of the session in which it did: what it made belongs there.
pub(crate) struct Made<T> {
    pub(crate) what: T,
    pub(crate) life: u64,
}

/// Why a call has no result.
pub(crate) enum Stop {
    /// The session's reason.
    Client(ClientError),
    /// Python's: a signal, or what a callback raised.
    Python(PyErr),
    /// Something that it names went with an earlier session.
    Lost,
    /// The session was closed on this side.
    Closed,
    /// The session is that of the process that this one was forked off.
    Forked,
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<PyErr> for Stop {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<Stop> for PyErr {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Client(error) => errors::client(&error),
            Stop::Python(error) => error,
            Stop::Lost => {
                errors::lost("this went with an earlier session, which the server has lost: upload and define again")
            }
            Stop::Forked => errors::lost("a session does not outlive a fork: connect again in the new process"),
            Stop::Closed => errors::lost("this session was closed: connect again, and upload again what it held"),
        }
    }
}

/// What is done with the answer to a request that its caller has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// It is a free, or made nothing that stays.
    Nothing,
    /// It made a tensor, which is freed.
    Tensor,
    /// It made a program.
    Program,
    /// It made a binding.
    Binding,
    /// It may have kept outputs.
    Outputs,
    /// It made a cache.
    Cache,
    /// Bytes come.
    Bytes,
}

/// How a wait goes on.
enum Turn {
    Answered,
    Again,
}

/// What there is for a call to do.
enum State {
    /// It can be finished; or the session is closed, which finishing it says.
    Answered,
    /// Another one can, and is waited for.
    OthersAnswered,
    Waiting,
}

impl Inner {
    fn session(&mut self) -> Result<&mut Session, Stop> {
        self.session.as_mut().ok_or(Stop::Closed)
    }

    /// The session, if what is from that life is there still.
    fn session_of(&mut self, life: Option<u64>) -> Result<&mut Session, Stop> {
        let session = self.session()?;
        match life {
            Some(life) if life != session.sessions_lost() => Err(Stop::Lost),
            _ => Ok(session),
        }
    }

    fn begin(
        &mut self,
        life: Option<u64>,
        start: impl FnOnce(&mut Session) -> Result<Pending, ClientError>,
    ) -> Result<u64, Stop> {
        let pending = start(self.session_of(life)?)?;
        self.next += 1;
        self.flights.push(Flight { number: self.next, pending, awaited: true });
        Ok(self.next)
    }

    fn state(&mut self, number: u64) -> State {
        let Self { session: Some(session), flights, .. } = self else { return State::Answered };
        let mut others = false;
        for flight in flights.iter().filter(|flight| flight.awaited) {
            if session.is_done(&flight.pending) {
                if flight.number == number {
                    return State::Answered;
                }
                others = true;
            }
        }
        if others { State::OthersAnswered } else { State::Waiting }
    }

    fn wait_for(&mut self, number: u64, awaited: bool) {
        if let Some(flight) = self.flights.iter_mut().find(|flight| flight.number == number) {
            flight.awaited = awaited;
        }
    }

    fn take(&mut self, number: u64) -> Option<Pending> {
        let at = self.flights.iter().position(|flight| flight.number == number)?;
        Some(self.flights.swap_remove(at).pending)
    }

    /// Nobody waits for this any more.
    fn leave(&mut self, number: u64, left: Left) {
        if let (Some(pending), Some(session)) = (self.take(number), &mut self.session) {
            session.cancel(&pending);
            self.left.push_back((pending, left));
            // Nobody may use the session for a while: the server hears of it now.
            session.wait_any(std::iter::empty(), Some(Instant::now()));
        }
    }
}

impl Shared {
    /// For a session that was just opened.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub(crate) fn new(session: Session, target: Target) -> std::io::Result<Arc<Self>> {
        let inner =
            Inner { session: Some(session), flights: Vec::new(), next: 0, left: VecDeque::new(), used: Instant::now() };
        let shared = Arc::new(Self {
            forks: forks(),
            target,
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            closed: AtomicBool::new(false),
            bell: Bell::new()?,
            wanting: AtomicUsize::new(0),
            life: AtomicU64::new(0),
            to_free: Mutex::default(),
            spares: Mutex::default(),
            sent: Mutex::default(),
            lent: Mutex::default(),
        });
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new().name("genie-keeper".into()).spawn(move || keep(&weak))?;
        Ok(shared)
    }

    /// Counts how often what the session held was lost: what was made in another life is gone.
    pub(crate) fn life(&self) -> u64 {
        self.life.load(Ordering::Acquire)
    }

    /// Frees something with the next call, or soon.
    pub(crate) fn free_later(&self, life: u64, handle: Handle) {
        if self.check().is_err() {
            return;
        }
        locked(&self.to_free).push((life, handle));
    }

    /// Python gets memory of a get.
    pub(crate) fn lend(&self, memory: &[u8]) {
        if matches!(self.target.uri, Uri::Shm { .. } | Uri::Genie { .. }) {
            let Range { start, end } = memory.as_ptr_range();
            locked(&self.lent).insert(start.addr(), end.addr());
        }
    }

    /// Whether some of this is such memory.
    pub(crate) fn has_lent(&self, memory: &[u8]) -> bool {
        if self.check().is_err() {
            return false;
        }
        let Range { start, end } = memory.as_ptr_range();
        let lent = locked(&self.lent);
        lent.range(..end.addr()).next_back().is_some_and(|(_, &past)| past > start.addr())
    }

    /// Keeps memory of a get for another.
    pub(crate) fn take_back(&self, region: Region) {
        if self.check().is_err() {
            return;
        }
        locked(&self.lent).remove(&region.as_ptr().addr());
        let mut spares = locked(&self.spares);
        if spares.len() < SPARES {
            spares.push(region);
        }
    }

    /// Lets go of something that was sent once the session's lock is free.
    pub(crate) fn drop_later(&self, block: Arc<Block>) {
        locked(&self.sent).push(block);
    }

    /// Makes one request and waits for its answer; `life` is that of the handles in it. `look` is called ten times a second, without the
    /// lock, and may make other calls; where it fails, the request is cancelled and left to `left`. The caller is not attached to Python.
    pub(crate) fn call<T>(
        &self,
        life: Option<u64>,
        left: Left,
        start: impl FnOnce(&mut Session) -> Result<Pending, ClientError>,
        finish: impl FnOnce(&mut Session, Pending) -> Result<T, ClientError>,
        look: &mut dyn FnMut() -> PyResult<()>,
    ) -> Result<Made<T>, Stop> {
        self.check()?;
        let mut inner = self.lock();
        self.tidy(&mut inner);
        let number = match inner.begin(life, start) {
            Ok(number) => number,
            Err(stop) => {
                self.let_go(inner);
                return Err(stop);
            }
        };
        loop {
            let turn;
            (inner, turn) = self.turn(inner, number);
            if let Turn::Answered = turn {
                return self.end(inner, number, finish);
            }
            inner.wait_for(number, false);
            self.let_go(inner);
            let looked = look();
            inner = self.lock();
            inner.wait_for(number, true);
            if let Err(error) = looked {
                inner.leave(number, left);
                self.let_go(inner);
                return Err(error.into());
            }
        }
    }

    /// Does something quick with the session; `life` is that of the handles in it.
    pub(crate) fn with<T>(
        &self,
        life: Option<u64>,
        work: impl FnOnce(&mut Session) -> Result<T, ClientError>,
    ) -> Result<Made<T>, Stop> {
        self.check()?;
        let mut inner = self.lock();
        self.tidy(&mut inner);
        let done = inner.session_of(life).and_then(|session| Ok(work(session)?));
        let life = self.heard(&mut inner);
        self.let_go(inner);
        done.map(|what| Made { what, life })
    }

    /// Ends the session. Calls that other threads are in fail.
    pub(crate) fn close(&self) -> Result<(), Stop> {
        self.check()?;
        self.closed.store(true, Ordering::Release);
        let mut inner = self.lock();
        let session = inner.session.take();
        self.let_go(inner);
        Ok(session.map_or(Ok(()), Session::close)?)
    }

    /// Whether it was.
    pub(crate) fn is_closed(&self) -> bool {
        self.check().is_err() || self.closed.load(Ordering::Acquire)
    }

    fn check(&self) -> Result<(), Stop> {
        if self.forks == forks() { Ok(()) } else { Err(Stop::Forked) }
    }

    // ---- inside

    fn lock(&self) -> MutexGuard<'_, Inner> {
        match self.inner.try_lock() {
            Ok(inner) => return inner,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {}
        }
        self.wanting.fetch_add(1, Ordering::AcqRel);
        self.bell.ring();
        let inner = locked(&self.inner);
        if self.wanting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.bell.hush();
            // One that found it rung in between was hushed, too.
            if self.wanting.load(Ordering::Acquire) > 0 {
                self.bell.ring();
            }
        }
        inner
    }

    /// Moves bytes, or waits for who does, for as long as one may without a look.
    fn turn<'a>(&'a self, mut inner: MutexGuard<'a, Inner>, number: u64) -> (MutexGuard<'a, Inner>, Turn) {
        let until = Instant::now() + LOOK;
        loop {
            match inner.state(number) {
                State::Answered => return (inner, Turn::Answered),
                // Whose it is wakes the next when it has it.
                State::OthersAnswered => {}
                State::Waiting => {
                    let Inner { session, flights, .. } = &mut *inner;
                    let pending = flights.iter().filter(|flight| flight.awaited).map(|flight| &flight.pending);
                    if let Some(session) = session {
                        session.wait_any_or(pending, Some(until), &self.bell);
                    }
                    let wanted = self.wanting.load(Ordering::Acquire) > 0;
                    if !matches!(inner.state(number), State::Waiting) || (!wanted && Instant::now() < until) {
                        continue;
                    }
                }
            }
            if inner.flights.len() > 1 {
                self.changed.notify_all();
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return (inner, Turn::Again);
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn end<T>(
        &self,
        mut inner: MutexGuard<'_, Inner>,
        number: u64,
        finish: impl FnOnce(&mut Session, Pending) -> Result<T, ClientError>,
    ) -> Result<Made<T>, Stop> {
        let flight = inner.take(number);
        let done = inner.session().and_then(|session| match flight {
            Some(flight) => Ok(finish(session, flight)?),
            None => Err(ClientError::Interrupted.into()),
        });
        let life = self.heard(&mut inner);
        self.let_go(inner);
        done.map(|what| Made { what, life })
    }

    /// The life that the session is in, after a call.
    fn heard(&self, inner: &mut Inner) -> u64 {
        inner.used = Instant::now();
        let life = inner.session.as_mut().map_or_else(|| self.life(), Session::sessions_lost);
        self.life.store(life, Ordering::Release);
        life
    }

    /// Unlocks, and wakes those whose bytes this thread may have moved, or who move them from now on. Whoever has had the lock leaves it here.
    fn let_go(&self, inner: MutexGuard<'_, Inner>) {
        let others = !inner.flights.is_empty();
        drop(inner);
        if others {
            self.changed.notify_all();
        }
        let sent = std::mem::take(&mut *locked(&self.sent));
        drop(sent);
    }

    /// Frees what nobody refers to any more, and hears what became of requests that nobody waits for.
    fn tidy(&self, inner: &mut Inner) {
        let Inner { session: Some(session), left, .. } = inner else { return };
        let life = session.sessions_lost();
        // Taken out first: a request may end others, whose memory is Python's to give back, and whoever has Python may want these lists.
        let to_free = std::mem::take(&mut *locked(&self.to_free));
        for (of, handle) in to_free {
            // What was made in another life went with it.
            if of == life {
                left.push_back((session.start_free(handle), Left::Nothing));
            }
        }
        let spares = std::mem::take(&mut *locked(&self.spares));
        for spare in spares {
            session.recycle(spare);
        }
        while let Some((pending, _)) = left.front()
            && session.is_done(pending)
            && let Some((pending, kind)) = left.pop_front()
        {
            settle(session, pending, kind, left);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let forked = self.check().is_err();
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        if forked {
            // Closing it, or its sockets' goodbyes, would end the parent's.
            std::mem::forget(inner.session.take());
        } else if let Some(session) = inner.session.take() {
            close_aside(move || session.close());
        }
    }
}

/// Hears the answer to a request that was left, and frees what it made.
fn settle(session: &mut Session, pending: Pending, kind: Left, left: &mut VecDeque<(Pending, Left)>) {
    let mut made = Vec::new();
    let heard = match kind {
        Left::Nothing => session.finish_free(pending),
        Left::Tensor => session.finish_put(pending).map(|tensor| made.push(tensor.handle)),
        Left::Program => session.finish_define(pending).map(|program| made.push(program.handle)),
        Left::Binding => session.finish_bind(pending).map(|binding| made.push(binding.0)),
        Left::Cache => session.finish_cache(pending).map(|cache| made.push(cache.0)),
        Left::Bytes => session.finish_get(pending).map(|region| session.recycle(region)),
        Left::Outputs => session.finish_run(pending).map(|outputs| {
            made.extend(outputs.values.into_iter().filter_map(|value| match value {
                Value::Resident { tensor, .. } => Some(tensor.handle),
                Value::Inline { .. } => None,
            }));
        }),
    };
    // Whoever asked has gone, and what a failed request left goes with the session.
    drop(heard);
    left.extend(made.into_iter().map(|handle| (session.start_free(handle), Left::Nothing)));
}

/// Keeps a session alive that nobody uses for a while, and frees what was dropped meanwhile. Ends with it.
fn keep(shared: &Weak<Shared>) {
    loop {
        std::thread::sleep(TIDY);
        let Some(shared) = shared.upgrade() else { return };
        let mut inner = match shared.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Somebody uses it.
            Err(TryLockError::WouldBlock) => continue,
        };
        if inner.session.is_none() {
            return;
        }
        shared.tidy(&mut inner);
        let alone = inner.flights.is_empty();
        let idle = alone && inner.used.elapsed() >= KEEP;
        let Inner { session, left, .. } = &mut *inner;
        if let Some(session) = session.as_mut().filter(|_| alone && !left.is_empty()) {
            let left = left.iter().map(|(pending, _)| pending);
            session.wait_any_or(left, Some(Instant::now() + LOOK), &shared.bell);
        }
        shared.let_go(inner);
        if idle {
            let mut echo = Vec::new();
            let said = shared.call(
                None,
                Left::Nothing,
                |session| Ok(session.start_echo(&[])),
                |session, pending| session.finish_echo(pending, &mut echo),
                &mut || Ok(()),
            );
            // A server that is gone is the next call's to report.
            drop(said);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
