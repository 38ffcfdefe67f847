//! Shared memory that ordinary memory is copied to, so that it is passed instead of sent.

use std::sync::Arc;

use super::shares::Shares;
use crate::memory::{SharedBytes, Slab, copy_counted};
use crate::wire::Shared;

/// Pieces of shared memory, used again when the resident that one became is gone.
#[derive(Debug)]
pub(super) struct Staging {
    pieces: Vec<Piece>,
    /// Bytes that all pieces may have together.
    limit: u64,
}

#[derive(Debug)]
struct Piece {
    bytes: Arc<SharedBytes>,
    slab: Slab,
    /// How far its pages were joined to large ones.
    joined: usize,
}

/// Pages of a piece that is used again are joined to large ones, so many bytes a time: it takes longer than a copy, and is worth
/// it only for pieces that are written often.
const JOINED: usize = 16 << 20;

/// Bytes of a piece, at the least: those that are not written take no memory, and what fits one fits any.
const LEAST: usize = 1 << 20;

/// Pieces at the most: each has a descriptor.
const MOST: usize = 128;

impl Staging {
    /// Nothing yet, and at most `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self { pieces: Vec::new(), limit }
    }

    /// Whether there is to be none: what is not shared by its user travels in slices, both ways.
    pub(super) fn is_off(&self) -> bool {
        self.limit == 0
    }

    /// Copies bytes to a shared piece: where they are, with one use taken. `None`: there is no room; send them.
    pub(super) fn copy(&mut self, data: &[u8], shares: &Shares) -> Option<Shared> {
        let piece = self.piece(data.len(), shares)?;
        copy_counted(&mut piece.slab[..data.len()], data);
        let (place, _) = shares.find(&piece.slab[..data.len()])?;
        piece.bytes.take_use();
        Some(place)
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
            let piece = &mut self.pieces[i];
            let to = piece.joined.saturating_add(JOINED).min(piece.bytes.len());
            piece.bytes.memory().join(piece.joined, to);
            piece.joined = to;
            return self.pieces.get_mut(i);
        }
        // Rounded up by an eighth at most, so that the next of about its size fits.
        let step = (len.checked_next_power_of_two()? / 16).max(4096);
        let size = len.checked_next_multiple_of(step)?.max(LEAST);
        self.make_room(size as u64)?;
        let bytes = Arc::new(SharedBytes::new(size).ok()?);
        shares.add(bytes.clone());
        let slab = Slab::shared(bytes.clone());
        self.pieces.push(Piece { bytes, slab, joined: 0 });
        self.pieces.last_mut()
    }

    /// Lets go of unused pieces until `wanted` more bytes fit.
    fn make_room(&mut self, wanted: u64) -> Option<()> {
        let total = |pieces: &[Piece]| pieces.iter().map(|p| p.slab.len() as u64).sum::<u64>();
        while self.pieces.len() >= MOST || total(&self.pieces).checked_add(wanted)? > self.limit {
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
        let first = staging.copy(&[1; 100_000], &shares).unwrap();
        let second = staging.copy(&[2; 100_000], &shares).unwrap();
        assert_ne!(first.region, second.region, "the first is used");
        staging.pieces[0].bytes.give_use_back();
        assert_eq!(staging.copy(&[3; 99_000], &shares).unwrap().region, first.region);
        assert_eq!(staging.pieces[0].slab[..3], [3; 3]);
        assert_ne!(staging.copy(&[4; 100_000], &shares).unwrap().region, first.region);
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
        let mut staging = Staging::new(1 << 30);
        assert!((0..MOST).all(|_| put(&mut staging, 1)));
        assert!(!put(&mut staging, 1), "each has a descriptor");
    }
}
