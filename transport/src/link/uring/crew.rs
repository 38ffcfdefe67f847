//! The server's lanes: a few threads with a ring each, which share them.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use io_uring::types::Fixed;
use tokio::sync::oneshot;

use super::lane::{Broken, LaneIo, abort};
use super::ring::{Ended, Owner, Ring};
use super::zero_copy::ZeroCopy;
use crate::connection::{Driver, ServedLane};
use crate::link::Stream;
use crate::link::host::{BulkHost, BulkSeat};
use crate::link::wait::Alarm;

/// Lanes of one thread; those beyond are served as plain sockets.
const MOST_LANES: u32 = 1024;
/// Threads, however many cores there are.
const MOST_THREADS: usize = 8;
/// The longest sleep without a look at the clock.
const LONGEST: Duration = Duration::from_secs(1);

/// Threads that serve bulk lanes. They start with the first lanes, and end with this value.
#[derive(Debug)]
pub(crate) struct Crew {
    threads: Mutex<Vec<Arc<Mailbox>>>,
    most: usize,
}

/// What a thread is told by others.
#[derive(Debug)]
struct Mailbox {
    alarm: Alarm,
    letters: Mutex<Vec<Letter>>,
    /// Lanes that it has, or is about to have.
    lanes: AtomicUsize,
    next: AtomicU64,
    /// No letter is read any more.
    closed: AtomicBool,
}

enum Letter {
    Serve(Box<Served>),
    Look(u64),
    Quit,
}

impl std::fmt::Debug for Letter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Serve(_) => "Serve",
            Self::Look(_) => "Look",
            Self::Quit => "Quit",
        })
    }
}

impl Mailbox {
    fn post(&self, letter: Letter) {
        self.lock().push(letter);
        self.alarm.ring();
    }

    /// Drops what nobody will read: not under the lock, for a lane that ends wakes its siblings.
    fn clear(&self) {
        let letters = std::mem::take(&mut *self.lock());
        drop(letters);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Letter>> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Crew {
    /// A crew without threads yet.
    pub(crate) fn new() -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self { threads: Mutex::default(), most: cores.min(MOST_THREADS) })
    }

    /// The thread with the fewest lanes; a new one rather than one that has some.
    fn thread(&self) -> io::Result<Arc<Mailbox>> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|t| !t.closed.load(Ordering::Acquire));
        let least = threads.iter().min_by_key(|t| t.lanes.load(Ordering::Acquire)).cloned();
        match least {
            Some(least) if least.lanes.load(Ordering::Acquire) == 0 || threads.len() >= self.most => Ok(least),
            _ => {
                let mailbox = Arc::new(Mailbox {
                    alarm: Alarm::new()?,
                    letters: Mutex::default(),
                    lanes: AtomicUsize::new(0),
                    next: AtomicU64::new(0),
                    closed: AtomicBool::new(false),
                });
                let own = mailbox.clone();
                std::thread::Builder::new().name("genie-uring".into()).spawn(move || {
                    if let Err(error) = Thread::new(own.clone()).and_then(|mut thread| thread.run()) {
                        tracing::error!(%error, "a thread of io_uring lanes has ended: its clients connect again");
                    }
                    own.closed.store(true, Ordering::Release);
                    // Whoever waits for a lane that never began is told by the letter's end.
                    own.clear();
                })?;
                threads.push(mailbox.clone());
                Ok(mailbox)
            }
        }
    }
}

/// A crew, and what lies between its lane and the client.
pub(super) struct Host {
    pub(super) crew: Arc<Crew>,
    pub(super) same_host: bool,
}

impl BulkHost for Host {
    fn seat(&self) -> io::Result<Option<Box<dyn BulkSeat>>> {
        let mailbox = self.crew.thread()?;
        if mailbox.lanes.fetch_add(1, Ordering::AcqRel) >= MOST_LANES as usize {
            mailbox.lanes.fetch_sub(1, Ordering::AcqRel);
            return Ok(None);
        }
        let key = mailbox.next.fetch_add(1, Ordering::AcqRel);
        let bell = Arc::new(Bell { rung: AtomicBool::new(false), mailbox, key });
        Ok(Some(Box::new(Seat { bell, same_host: self.same_host })))
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
        threads.iter().for_each(|thread| thread.post(Letter::Quit));
    }
}

/// A place for a lane at a thread.
struct Seat {
    bell: Arc<Bell>,
    same_host: bool,
}

/// Makes a thread look at a lane.
struct Bell {
    mailbox: Arc<Mailbox>,
    key: u64,
    /// It has been told, and has not looked yet.
    rung: AtomicBool,
}

impl Driver for Bell {
    fn wake(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.mailbox.post(Letter::Look(self.key));
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.mailbox.lanes.fetch_sub(1, Ordering::AcqRel);
    }
}

impl BulkSeat for Seat {
    fn driver(&self) -> Arc<dyn Driver> {
        self.bell.clone()
    }

    fn serve(self: Box<Self>, stream: Arc<dyn Stream>, lane: Box<dyn ServedLane>) -> oneshot::Receiver<()> {
        let (done, ended) = oneshot::channel();
        let Self { bell, same_host } = *self;
        let mailbox = bell.mailbox.clone();
        mailbox.post(Letter::Serve(Box::new(Served { bell, stream, lane, same_host, done })));
        if mailbox.closed.load(Ordering::Acquire) {
            // Nobody reads it: the lane ends with its letter.
            mailbox.clear();
        }
        ended
    }
}

/// A lane that a thread serves.
struct Served {
    bell: Arc<Bell>,
    stream: Arc<dyn Stream>,
    lane: Box<dyn ServedLane>,
    same_host: bool,
    /// Closed: nobody waits for it any more. Dropped: it has ended.
    done: oneshot::Sender<()>,
}

/// A lane in its place, and its operations.
struct Seated {
    served: Box<Served>,
    io: LaneIo,
    /// Why it ends, once nothing is in flight.
    end: Option<String>,
}

impl Seated {
    /// Begins what is to be begun. `Some`: why the lane is over.
    fn turn(&mut self, ring: &mut Ring, now: Instant) -> Result<Option<String>, Broken> {
        let Served { bell, lane, done, .. } = &mut *self.served;
        bell.rung.store(false, Ordering::Release);
        if lane.is_over() || done.is_closed() {
            return Ok(Some("it was taken out".into()));
        }
        self.io.receive(ring, &mut **lane, now)?;
        self.io.send(ring, &mut **lane, now)?;
        Ok(lane.overdue(now))
    }

    /// Nothing is begun any more; the lane is over when the kernel has let go of everything.
    fn end(&mut self, ring: &mut Ring, why: String) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(why);
        if self.io.holds_sent() {
            abort(self.served.stream.interest(false, false).fd);
        }
        if let Err(error) = self.io.end(ring) {
            // The socket's end ends its operations, too.
            tracing::warn!(%error, "a lane's operations could not be cancelled");
            self.served.stream.finish();
        }
    }
}

/// A thread with its ring and its lanes.
struct Thread {
    mailbox: Arc<Mailbox>,
    bell: Fixed,
    // Dropped before the lanes: what is in flight is cancelled and waited for.
    ring: Ring,
    /// By their file's place in the ring.
    lanes: HashMap<u32, Seated>,
    /// Where a lane is.
    places: HashMap<u64, u32>,
    /// Places of lanes to look at.
    look: Vec<u32>,
    /// When to look at all of them.
    next: Instant,
}

impl Thread {
    fn new(mailbox: Arc<Mailbox>) -> io::Result<Self> {
        let mut files = MOST_LANES + 1;
        let mut ring = loop {
            match Ring::new(Owner::OneThread, files) {
                // A table of files is no larger than the process may have open.
                Err(e) if e.raw_os_error() == Some(libc::EMFILE) && files > 16 => files /= 2,
                other => break other?,
            }
        };
        let bell = ring.add_file(mailbox.alarm.interest().fd)?.ok_or(io::ErrorKind::OutOfMemory)?;
        let (lanes, places) = (HashMap::new(), HashMap::new());
        Ok(Self { mailbox, bell, ring, lanes, places, look: Vec::new(), next: Instant::now() + LONGEST })
    }

    fn run(&mut self) -> io::Result<()> {
        self.ring.listen(self.bell)?;
        let mut now = Instant::now();
        loop {
            self.ring.wait(self.next.saturating_duration_since(now).min(LONGEST))?;
            now = Instant::now();
            while let Some(ended) = self.ring.next() {
                self.ended(ended, now)?;
            }
            if now >= self.next {
                self.look.extend(self.lanes.keys());
                self.next = now + LONGEST;
            }
            let mut look = std::mem::take(&mut self.look);
            look.drain(..).for_each(|place| self.turn(place, now));
            self.look = look;
            if self.mailbox.closed.load(Ordering::Acquire) {
                return Ok(());
            }
        }
    }

    fn ended(&mut self, ended: Ended, now: Instant) -> io::Result<()> {
        let place = ended.file;
        if place == self.bell.0 {
            self.letters();
            return self.ring.listen(self.bell).map(|_| ());
        }
        let Some(seated) = self.lanes.get_mut(&place) else { return Ok(()) };
        if let Err(broken) = seated.io.ended(ended, &mut *seated.served.lane, now) {
            seated.end(&mut self.ring, broken.to_string());
        }
        if self.look.last() != Some(&place) {
            self.look.push(place);
        }
        Ok(())
    }

    fn letters(&mut self) {
        self.mailbox.alarm.hush();
        let letters = std::mem::take(&mut *self.mailbox.lock());
        for letter in letters {
            match letter {
                Letter::Serve(served) => self.add(served),
                Letter::Look(key) => self.look.extend(self.places.get(&key)),
                Letter::Quit => self.mailbox.closed.store(true, Ordering::Release),
            }
        }
    }

    fn add(&mut self, served: Box<Served>) {
        let error = match self.ring.add_file(served.stream.interest(false, false).fd) {
            Ok(Some(file)) => {
                let io = match served.same_host {
                    true => {
                        let socket = served.stream.interest(false, false).fd;
                        LaneIo::new(file, ZeroCopy::Chosen(false)).by_pages(socket)
                    }
                    false => LaneIo::new(file, ZeroCopy::measured()),
                };
                self.places.insert(served.bell.key, file.0);
                self.lanes.insert(file.0, Seated { served, io, end: None });
                return self.look.push(file.0);
            }
            Ok(None) => io::ErrorKind::QuotaExceeded.into(),
            Err(error) => error,
        };
        served.lane.end(&format!("it has no place in a ring: {error}"), Instant::now());
    }

    fn turn(&mut self, place: u32, now: Instant) {
        let Some(seated) = self.lanes.get_mut(&place) else { return };
        if seated.end.is_none() {
            match seated.turn(&mut self.ring, now) {
                Ok(None) => {}
                Ok(Some(why)) => seated.end(&mut self.ring, why),
                Err(broken) => seated.end(&mut self.ring, broken.to_string()),
            }
        }
        if seated.end.is_none() {
            self.next = self.next.min(seated.served.lane.deadline(now));
        }
        if seated.end.is_some()
            && seated.io.is_quiet()
            && let Some(Seated { served, io, end: Some(why) }) = self.lanes.remove(&place)
        {
            self.places.remove(&served.bell.key);
            self.ring.remove_file(io.file());
            served.lane.end(&why, now);
        }
    }
}
