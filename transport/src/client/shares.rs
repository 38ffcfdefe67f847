//! Memory that a session shares with its server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::link::Stream;
use crate::memory::SharedBytes;
use crate::wire::Shared;

/// What is shared, by number. Kept here for as long as a user or the server has any of it, so that no other memory can be taken
/// for it by its address.
#[derive(Debug, Default)]
pub(super) struct Shares {
    all: Mutex<All>,
    /// Counts changes: whoever holds a lane sees whether it must be told.
    version: AtomicU64,
}

/// A place with one use taken.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) place: Shared,
    pub(super) bytes: Arc<SharedBytes>,
    /// How often uses had been forgotten when it was taken: see [`crate::connection::Client::passes`].
    pub(super) uses_forgotten: u64,
}

#[derive(Debug, Default)]
struct All {
    /// How often, so far.
    uses_forgotten: u64,
    next: u64,
    pieces: Vec<(u64, Arc<SharedBytes>)>,
    /// Gone, and the server not told.
    gone: Vec<u64>,
}

/// What a lane has been told of.
#[derive(Debug, Default)]
pub(super) struct Told {
    version: u64,
    /// The first number that it does not know.
    next: u64,
}

impl Shares {
    /// One more.
    pub(super) fn add(&self, bytes: Arc<SharedBytes>) {
        let mut all = self.lock();
        all.drop_unused();
        all.next += 1;
        let number = all.next;
        all.pieces.push((number, bytes));
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Where these bytes lie, if all of them do in one shared piece.
    pub(super) fn find(&self, bytes: &[u8]) -> Option<Shared> {
        self.lock().find(bytes).map(|(place, _)| place)
    }

    /// The same, for a request that passes them: with one use taken.
    pub(super) fn pass(&self, bytes: &[u8]) -> Option<Passed> {
        let all = self.lock();
        let (place, piece) = all.find(bytes)?;
        piece.take_use();
        Some(Passed { place, bytes: piece.clone(), uses_forgotten: all.uses_forgotten })
    }

    /// Uses were forgotten so often by now: if that is news, there are none.
    pub(super) fn forget_uses(&self, uses_forgotten: u64) {
        let mut all = self.lock();
        if std::mem::replace(&mut all.uses_forgotten, uses_forgotten) != uses_forgotten {
            all.pieces.iter().for_each(|(_, piece)| piece.forget_uses());
        }
    }

    /// Tells a lane what it does not know yet; a fresh one all. Nothing where there is nothing to tell.
    ///
    /// # Errors
    /// The lane's.
    pub(super) fn tell(&self, lane: &dyn Stream, told: &mut Told) -> std::io::Result<()> {
        let version = self.version.load(Ordering::Acquire);
        if told.version == version || !lane.can_share() {
            return Ok(());
        }
        let mut all = self.lock();
        for (number, piece) in all.pieces.iter().filter(|(number, _)| *number > told.next) {
            lane.share(*number, piece)?;
        }
        for number in all.gone.drain(..) {
            lane.unshare(number)?;
        }
        *told = Told { version, next: all.next };
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl All {
    fn find(&self, bytes: &[u8]) -> Option<(Shared, &Arc<SharedBytes>)> {
        let from = bytes.as_ptr().addr();
        let to = from.checked_add(bytes.len())?;
        self.pieces.iter().find_map(|(number, piece)| {
            let start = piece.start().addr().get();
            let inside = start <= from && to <= start + piece.len();
            inside.then(|| (Shared { region: *number, offset: (from - start) as u64 }, piece))
        })
    }

    fn drop_unused(&mut self) {
        let Self { pieces, gone, .. } = self;
        // Only this list has it. The server keeps what it still reads mapped by itself.
        gone.extend(pieces.extract_if(.., |(_, piece)| Arc::strong_count(piece) == 1).map(|(number, _)| number));
    }
}
