//! Shared memory that ordinary memory is copied to, so that it is passed instead of sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::shares::{Passed, Shares};
use crate::memory::{SharedBytes, Slab, copy_counted};

/// Pieces of shared memory, used again when the resident that one became is gone.
#[derive(Debug)]
pub(super) struct Staging {
    pieces: Vec<Piece>,
    /// Bytes that all pieces may have together.
    limit: u64,
    /// Bytes of the pieces that are being filled.
    drafted: Arc<AtomicU64>,
}

/// A piece that is being filled. Dropped, its memory is given up.
#[derive(Debug)]
pub(super) struct Draft {
    piece: Option<Piece>,
    bytes: u64,
    drafted: Arc<AtomicU64>,
}

impl Draft {
    /// Writes bytes from `at` on; what does not fit is not written.
    pub(super) fn fill(&mut self, at: usize, bytes: &[u8]) {
        let Some(piece) = &mut self.piece else { return };
        // Little by little: joining takes longer than the copy.
        piece.join(bytes.len());
        if let Some(to) = piece.slab.get_mut(at..).and_then(|slab| slab.get_mut(..bytes.len())) {
            copy_counted(to, bytes);
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.drafted.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[derive(Debug)]
struct Piece {
    bytes: Arc<SharedBytes>,
    slab: Slab,
    /// It was written before, and its pages are worth joining.
    again: bool,
}

impl Piece {
    fn join(&self, step: usize) {
        if self.again {
            self.bytes.memory().join(step);
        }
    }
}

/// Pages of a piece that is used again are joined to large ones, so many bytes a time: it takes longer than a copy, and is worth
/// it only for pieces that are written often.
pub(super) const JOINED: usize = 16 << 20;

/// Slabs of earlier gets that are kept for the next ones, at the most.
pub(super) const RECYCLED: usize = 8;

/// Bytes of a piece, at the least: those that are not written take no memory, and what fits one fits any.
const LEAST: usize = 1 << 20;

/// Pieces at the most: each has a descriptor.
const MOST: usize = 128;

impl Staging {
    /// Nothing yet, and at most `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self { pieces: Vec::new(), limit, drafted: Arc::default() }
    }

    /// Whether there is to be none: what is not shared by its user travels in slices, both ways.
    pub(super) fn is_off(&self) -> bool {
        self.limit == 0
    }

    /// Copies bytes to a shared piece: where they are, with one use taken. `None`: there is no room; send them.
    pub(super) fn copy(&mut self, data: &[u8], shares: &Shares) -> Option<Passed> {
        let piece = self.piece(data.len(), shares)?;
        piece.join(JOINED);
        copy_counted(&mut piece.slab[..data.len()], data);
        shares.pass(&piece.slab[..data.len()])
    }

    /// A piece of at least `len` bytes, to be filled without this being held. `None`: there is no room.
    pub(super) fn begin(&mut self, len: usize, shares: &Shares) -> Option<Draft> {
        let found = self.piece(len, shares)?.bytes.start();
        let at = self.pieces.iter().position(|piece| piece.bytes.start() == found)?;
        let piece = self.pieces.swap_remove(at);
        let bytes = piece.slab.len() as u64;
        self.drafted.fetch_add(bytes, Ordering::AcqRel);
        Some(Draft { piece: Some(piece), bytes, drafted: self.drafted.clone() })
    }

    /// Takes a piece back of which the first `len` bytes are filled: where they are, with one use taken.
    pub(super) fn finish(&mut self, mut draft: Draft, len: usize, shares: &Shares) -> Option<Passed> {
        let piece = draft.piece.take()?;
        let passed = shares.pass(piece.slab.get(..len)?)?;
        self.pieces.push(piece);
        Some(passed)
    }

    /// Forgets all: what the server used of it, it will not give back.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
    }

    fn piece(&mut self, len: usize, shares: &Shares) -> Option<&mut Piece> {
        let fits = |piece: &Piece| {
            (len..=LEAST.max(len.saturating_mul(2))).contains(&piece.slab.len()) && !piece.bytes.is_used()
        };
        let mut found = None;
        for (i, piece) in self.pieces.iter().enumerate().filter(|(_, piece)| fits(piece)) {
            // The smallest that fits.
            if found.is_none_or(|(_, least)| piece.slab.len() < least) {
                found = Some((i, piece.slab.len()));
            }
        }
        if let Some((i, _)) = found {
            let piece = self.pieces.get_mut(i)?;
            piece.again = true;
            return Some(piece);
        }
        // Rounded up by an eighth at most, so that the next of about its size fits.
        let step = (len.checked_next_power_of_two()? / 16).max(4096);
        let size = len.checked_next_multiple_of(step)?.max(LEAST);
        self.make_room(size as u64)?;
        let bytes = Arc::new(SharedBytes::new(size).ok()?);
        shares.add(bytes.clone());
        let slab = Slab::shared(bytes.clone());
        self.pieces.push(Piece { bytes, slab, again: false });
        self.pieces.last_mut()
    }

    /// Lets go of unused pieces until `wanted` more bytes fit.
    fn make_room(&mut self, wanted: u64) -> Option<()> {
        let wanted = wanted.checked_add(self.drafted.load(Ordering::Acquire))?;
        let drafts = Arc::strong_count(&self.drafted) - 1;
        let total = |pieces: &[Piece]| pieces.iter().map(|p| p.slab.len() as u64).sum::<u64>();
        while self.pieces.len() + drafts >= MOST || total(&self.pieces).checked_add(wanted)? > self.limit {
            let unused = self.pieces.iter().position(|piece| !piece.bytes.is_used())?;
            self.pieces.remove(unused);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_used_again_once_the_server_has_given_it_back() {
        let (mut staging, shares) = (Staging::new(64 << 20), Shares::default());
        let first = staging.copy(&[1; 100_000], &shares).unwrap().place;
        let second = staging.copy(&[2; 100_000], &shares).unwrap().place;
        assert_ne!(first.region, second.region, "the first is used");
        staging.pieces[0].bytes.give_use_back();
        assert_eq!(staging.copy(&[3; 99_000], &shares).unwrap().place.region, first.region);
        assert_eq!(staging.pieces[0].slab[..3], [3; 3]);
        assert_ne!(staging.copy(&[4; 100_000], &shares).unwrap().place.region, first.region);
    }

    #[test]
    fn no_more_is_shared_than_may_be() {
        let (mut staging, shares) = (Staging::new(4 << 20), Shares::default());
        let put = |staging: &mut Staging, kib: usize| staging.copy(&vec![1; kib << 10], &shares).is_some();
        assert!(!put(&mut staging, 5000));
        assert!(put(&mut staging, 2500));
        assert!(!put(&mut staging, 2500), "all of it is used");
        staging.pieces[0].bytes.give_use_back();
        assert!(put(&mut staging, 4000), "the unused piece made room");
        assert_eq!(staging.pieces.len(), 1);
        let mut staging = Staging::new(4 << 20);
        let mut draft = staging.begin(2500 << 10, &shares).unwrap();
        assert!(staging.begin(2500 << 10, &shares).is_none(), "what is being filled counts");
        draft.fill(1 << 20, &[7; 100]);
        let place = staging.finish(draft, 2500 << 10, &shares).unwrap().place;
        assert_eq!(staging.pieces[0].slab[1 << 20], 7);
        staging.pieces[0].bytes.give_use_back();
        drop(staging.begin(2500 << 10, &shares).unwrap());
        assert_ne!(staging.copy(&vec![1; 2500 << 10], &shares).unwrap().place.region, place.region, "it was given up");
        let mut staging = Staging::new(1 << 30);
        assert!((0..MOST).all(|_| put(&mut staging, 1)));
        assert!(!put(&mut staging, 1), "each has a descriptor");
    }

    /// A server was killed: what it used nobody gave back, and memory that its user shared could never be written again.
    #[test]
    fn the_uses_of_a_server_that_is_gone_end_with_it() {
        let (mut staging, shares) = (Staging::new(64 << 20), Shares::default());
        let passed = staging.copy(&[1; 100_000], &shares).unwrap();
        assert!(passed.bytes.is_used() && passed.uses_forgotten == 0);
        shares.forget_uses(0);
        assert!(passed.bytes.is_used());
        shares.forget_uses(1);
        assert!(!passed.bytes.is_used());
        assert_eq!(shares.pass(&staging.pieces[0].slab[..10]).unwrap().uses_forgotten, 1);
        shares.forget_uses(1);
        assert!(passed.bytes.is_used(), "of the next server");
    }
}
