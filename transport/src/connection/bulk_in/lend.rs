//! Receiving by operations that own the memory they write.
//!
//! [`BulkIn::want`] lends a borrow: right for a call that is over when it returns. An operation that a kernel goes on with owns
//! its memory until it has ended, whatever becomes of the lane meanwhile: [`BulkIn::lend`] gives it away, and
//! [`BulkIn::give_back`] takes it in again.

use std::sync::Arc;

use super::{BulkIn, Landings, Place, State};
use crate::memory::{Landing, SliceLease};
use crate::wire::{DecodeError, SLICE_FRAME_BYTES, SliceHead};

/// Memory to receive into, owned by the operation that writes it. The bytes stay in place while it is moved. Dropped, the slice
/// counts as missing again: only when nobody writes it any more.
#[derive(Debug)]
pub struct Loan {
    lent: Lent,
}

#[derive(Debug)]
enum Lent {
    Head(Vec<u8>),
    Payload(SliceLease),
    /// A buffer, the bytes to drain, and of which slice.
    Drain(Vec<u8>, usize, Option<(Arc<Landing>, SliceHead)>),
}

impl Loan {
    /// Where the bytes go. Empty only if another lane has taken the slice over.
    pub fn space(&mut self) -> &mut [u8] {
        match &mut self.lent {
            Lent::Head(head) => head,
            Lent::Payload(lease) => lease.spare(),
            Lent::Drain(drain, left, _) => {
                let n = (*left).min(drain.len());
                &mut drain[..n]
            }
        }
    }

    /// Whether a slice's payload ends with this space: a head is next.
    pub fn is_last(&mut self) -> bool {
        match &mut self.lent {
            Lent::Payload(lease) => lease.spare().len() == lease.left(),
            Lent::Head(_) | Lent::Drain(..) => false,
        }
    }

    /// Whether all of the space will be filled, if the other side goes on: an operation can wait for the whole.
    pub fn is_announced(&self) -> bool {
        !matches!(self.lent, Lent::Head(_))
    }
}

impl BulkIn {
    /// The next memory to receive into. `None`: it is lent already, or a slice waits for its place.
    pub fn lend(&mut self) -> Option<Loan> {
        if let State::Payload(lease) = &mut self.state
            && !lease.hold()
        {
            self.state = State::lost(lease);
        }
        let lent = match std::mem::replace(&mut self.state, State::Lent(None)) {
            State::Payload(lease) => {
                self.state = State::Lent(Some(lease.head().transfer));
                Lent::Payload(lease)
            }
            State::Drain(left, lost) => {
                let mut drain = std::mem::take(&mut self.drain);
                drain.resize(64 << 10, 0);
                Lent::Drain(drain, left, lost)
            }
            State::Head => {
                self.state = State::Head;
                return self.lend_head();
            }
            other => {
                self.state = other;
                return None;
            }
        };
        Some(Loan { lent })
    }

    /// The memory for the next slice's head, to be filled after what is lent now. `None`: it is lent already.
    pub fn lend_head(&mut self) -> Option<Loan> {
        if std::mem::replace(&mut self.head_lent, true) {
            return None;
        }
        let mut head = std::mem::take(&mut self.next_head);
        head.resize(SLICE_FRAME_BYTES - self.have, 0);
        Some(Loan { lent: Lent::Head(head) })
    }

    /// The operation has ended: `n` bytes of the loan's space were filled.
    ///
    /// # Errors
    /// The lane cannot be trusted any further.
    pub fn give_back(&mut self, loan: Loan, n: usize) -> Result<(), DecodeError> {
        match loan.lent {
            Lent::Head(head) => {
                let n = n.min(head.len());
                self.begun += u64::from(self.have == 0 && n > 0);
                self.head[self.have..self.have + n].copy_from_slice(&head[..n]);
                self.have += n;
                self.head_lent = false;
                self.next_head = head;
            }
            Lent::Payload(lease) => {
                self.state = State::Payload(lease);
                self.payload_filled(n);
            }
            Lent::Drain(drain, left, lost) => {
                self.drain = drain;
                self.state = State::Drain(left, lost);
                self.drained(n);
            }
        }
        self.take_head()
    }

    /// Whether nobody wants any more what is lent: its operation should be cancelled, and the memory given back.
    pub fn is_recalled(&self, landings: &Landings) -> bool {
        matches!(self.state, State::Lent(Some(transfer)) if matches!(landings.find(transfer), Place::Ended))
    }
}
