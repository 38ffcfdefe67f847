//! The caller's own memory, lent to the transport.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use genie_transport::memory::Slab;

use crate::status::Failure;

/// Whether lent memory is back: nothing of the transport has it any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loan(Arc<AtomicBool>);

impl Loan {
    pub(crate) fn is_back(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Memory on loan. The transport keeps it for as long as it, the kernel or a network card may look there.
struct Lent {
    at: NonNull<u8>,
    len: usize,
    loan: Loan,
}

// SAFETY: it is bytes and nothing else; the caller keeps them in place, and to itself, until the loan is back.
unsafe impl Send for Lent {}
// SAFETY: as above: shared, they are only read.
unsafe impl Sync for Lent {}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: whoever lent it promised `len` readable bytes until the loan is back, which this keeps from happening.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.loan.0.store(true, Ordering::Release);
    }
}

/// Lends memory to be sent from.
///
/// # Safety
/// `bytes` stays readable, and unchanged, until the loan is back, however long that is after the lifetime in its type has ended.
pub(crate) unsafe fn lend(bytes: &[u8]) -> (Bytes, Loan) {
    let loan = Loan::default();
    let lent = Lent { at: NonNull::from(bytes).cast(), len: bytes.len(), loan: loan.clone() };
    (Bytes::from_owner(lent), loan)
}

/// Lends memory to be filled.
///
/// # Safety
/// Unless NULL, `at` leads to `len` bytes that stay the caller's, and that nobody else touches, until the loan is back.
///
/// # Errors
/// NULL, or a length of 0 or beyond what there can be.
pub(crate) unsafe fn lend_to_fill(at: *mut u8, len: usize) -> Result<(Slab, Loan), Failure> {
    let bad = || Failure::argument(format!("there is no room for {len} bytes where the tensor is to go"));
    let at = NonNull::new(at).filter(|_| len > 0 && isize::try_from(len).is_ok()).ok_or_else(bad)?;
    let loan = Loan::default();
    let lent = Lent { at, len, loan: loan.clone() };
    // SAFETY: the caller upholds it. Bytes that C has not written yet count as initialised once their address came from C.
    Ok((unsafe { Slab::of_owner(at, len, Box::new(lent)) }, loan))
}
