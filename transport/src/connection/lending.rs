//! A bulk lane that is moved by operations which own their memory.

use std::time::Instant;

use super::bulk_in::Loan;
use super::bulk_out::OutSlice;
use crate::wire::DecodeError;

/// What a driver by operations needs of a lane, in place of [`super::BulkIn::want`] and a [`super::Sink`]. What was lent comes back
/// when its operation has ended, however it did.
pub trait Lending {
    /// Finds places for what has come, and passes on what happened.
    fn poll(&mut self, now: Instant);

    /// The next memory to receive into. `None`: it is lent already, or a slice waits for its place.
    fn lend(&mut self) -> Option<Loan>;

    /// The memory for the next slice's head, to be filled after what is lent now. `None`: it is lent already.
    fn lend_head(&mut self) -> Option<Loan>;

    /// A receiving operation has ended: `n` bytes were filled.
    ///
    /// # Errors
    /// The lane cannot be trusted any further.
    fn give_back(&mut self, loan: Loan, n: usize, now: Instant) -> Result<(), DecodeError>;

    /// Whether nobody wants any more what is lent: its operation should be cancelled.
    fn is_recalled(&self) -> bool;

    /// The next slice to send. `None`: one is lent already, or nothing waits.
    fn lend_slice(&mut self, now: Instant) -> Option<OutSlice>;

    /// A sending operation has ended, and sent `n` more bytes of the slice.
    fn give_slice(&mut self, slice: OutSlice, n: usize, now: Instant);

    /// Whether more waits to be sent.
    fn has_more(&self) -> bool;
}

/// A server's lane for a driver by operations: as [`super::BulkMachine`].
pub trait ServedLane: Lending + Send {
    /// Whether the lane, or its connection, is to end.
    fn is_over(&self) -> bool;

    /// Why the lane must be ended, if it must.
    fn overdue(&mut self, now: Instant) -> Option<String>;

    /// When to look again even if nothing has come.
    fn deadline(&self, now: Instant) -> Instant;

    /// The lane is over, and why. What was lent must have come back.
    fn end(self: Box<Self>, reason: &str, now: Instant);
}
