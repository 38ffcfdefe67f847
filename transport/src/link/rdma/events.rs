//! What a device says unasked of its queue pairs and of itself.
//!
//! A device has one queue of events for the whole process. Nobody waits for them: they are looked at when a queue pair has failed and
//! its completions do not tell why.

use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdma_sys as sys;
use sys::{ibv_event_type as event, ibv_wc_status as status};

use super::verbs::nonblocking;

const DEVICE_FATAL: u32 = event::IBV_EVENT_DEVICE_FATAL as u32;
const QP_ACCESS_ERR: u32 = event::IBV_EVENT_QP_ACCESS_ERR as u32;
const QP_FATAL: u32 = event::IBV_EVENT_QP_FATAL as u32;
const QP_REQ_ERR: u32 = event::IBV_EVENT_QP_REQ_ERR as u32;

/// How long after a queue's flushes the event that explains them may come.
const LATE: Duration = Duration::from_millis(10);

/// What is known of why a queue pair has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Nothing: what was posted comes back.
    Unknown,
    /// Its device has refused a request of the peer's, which had no right to what it named.
    Refusal,
    /// Something else: a request of this side's own, a message that does not fit, the device itself.
    Other,
}

impl Cause {
    /// What a completion that failed tells; `received`: of a buffer that was lent to a message, not of a request.
    pub(super) fn of(code: status::Type, received: bool) -> Self {
        match code {
            status::IBV_WC_WR_FLUSH_ERR => Self::Unknown,
            // A write with an immediate that may not be: the one that takes a buffer. Devices call it the one or the other.
            status::IBV_WC_REM_ACCESS_ERR | status::IBV_WC_LOC_ACCESS_ERR if received => Self::Refusal,
            _ => Self::Other,
        }
    }

    /// The first that tells something counts: what follows a failure are its consequences.
    pub(super) fn or(self, later: Self) -> Self {
        if self == Self::Unknown { later } else { self }
    }

    /// Whether the peer is to blame. `silent`: the device raises no event when it refuses a request, so that buffers which come back
    /// for no other reason mean just that.
    pub(super) fn is_trespass(self, silent: bool) -> bool {
        match self {
            Self::Refusal => true,
            Self::Other => false,
            Self::Unknown => silent,
        }
    }
}

/// What the events of one device have said so far.
#[derive(Debug, Default)]
struct Heard {
    /// It works no more.
    fatal: bool,
    /// Queue pairs that are there, by number: those that have refused a request, and those that failed otherwise.
    refused: HashSet<u32>,
    failed: HashSet<u32>,
}

impl Heard {
    fn note(&mut self, said: Said) {
        match said {
            Said::Fatal => self.fatal = true,
            Said::Refused(qp) => _ = self.refused.insert(qp),
            Said::Failed(qp) => _ = self.failed.insert(qp),
        }
    }

    fn cause(&self, qp: u32) -> Cause {
        if self.fatal || self.failed.contains(&qp) {
            Cause::Other
        } else if self.refused.contains(&qp) {
            Cause::Refusal
        } else {
            Cause::Unknown
        }
    }
}

/// What one event says.
enum Said {
    Fatal,
    Refused(u32),
    Failed(u32),
}

/// By device.
static HEARD: LazyLock<Mutex<HashMap<usize, Heard>>> = LazyLock::new(Mutex::default);

/// Why this queue pair has failed, as far as its device says. `silent`: nothing is to be expected of it; otherwise it is given a moment.
///
/// # Safety
/// The device is open.
pub(super) unsafe fn cause(context: NonNull<sys::ibv_context>, qp: u32, silent: bool) -> Cause {
    // SAFETY: this function's contract.
    let look = || unsafe { listen(context, qp) };
    let at_once = look();
    if at_once != Cause::Unknown || silent {
        return at_once;
    }
    // SAFETY: the device is open.
    let fd = unsafe { context.as_ref() }.async_fd;
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one valid entry.
    unsafe { libc::poll(&raw mut poll, 1, LATE.as_millis() as i32) };
    look()
}

/// A queue pair is gone: its number may be another's next.
pub(super) fn forget(context: NonNull<sys::ibv_context>, qp: u32) {
    if let Some(heard) = all().get_mut(&(context.as_ptr() as usize)) {
        heard.refused.remove(&qp);
        heard.failed.remove(&qp);
    }
}

/// # Safety
/// The device is open.
unsafe fn listen(context: NonNull<sys::ibv_context>, qp: u32) -> Cause {
    let mut all = all();
    let heard = all.entry(context.as_ptr() as usize).or_default();
    // SAFETY: the device is open, by this function's contract.
    let quiet = nonblocking(unsafe { context.as_ref() }.async_fd);
    // One that blocks is not read: it would be waited for here.
    while quiet.is_ok() {
        let mut told = MaybeUninit::<sys::ibv_async_event>::uninit();
        // SAFETY: the device is open, and `told` is a place for an event.
        if unsafe { sys::ibv_get_async_event(context.as_ptr(), told.as_mut_ptr()) } != 0 {
            break;
        }
        // SAFETY: the event was just written. Read as a number: a newer library may know sorts that this code has no name for.
        let sort = unsafe { (&raw const (*told.as_ptr()).event_type).cast::<u32>().read() };
        // SAFETY: asked of a queue pair's event alone, and that is there until the event is acknowledged.
        let number = || unsafe { (*(*told.as_ptr()).element.qp).qp_num };
        match sort {
            DEVICE_FATAL => heard.note(Said::Fatal),
            QP_ACCESS_ERR => heard.note(Said::Refused(number())),
            QP_FATAL | QP_REQ_ERR => heard.note(Said::Failed(number())),
            _ => {}
        }
        // SAFETY: the event was just taken, and is acknowledged once.
        unsafe { sys::ibv_ack_async_event(told.as_mut_ptr()) };
    }
    heard.cause(qp)
}

fn all() -> MutexGuard<'static, HashMap<usize, Heard>> {
    HEARD.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once, every failure that this side had no request of its own to blame for was the peer's: a network card that died ended its
    /// sessions as if their clients had reached for what is not theirs, and counted them so.
    #[test]
    fn only_what_was_refused_is_a_trespass() {
        let (silent, tells) = (true, false);
        let flushed = Cause::of(status::IBV_WC_WR_FLUSH_ERR, true);
        assert!(flushed.is_trespass(silent) && !flushed.is_trespass(tells));
        for code in [status::IBV_WC_REM_ACCESS_ERR, status::IBV_WC_LOC_ACCESS_ERR] {
            assert!(Cause::of(code, true).is_trespass(tells));
            assert!(!Cause::of(code, false).is_trespass(silent), "this side's own request");
        }
        for code in [status::IBV_WC_LOC_LEN_ERR, status::IBV_WC_LOC_PROT_ERR, status::IBV_WC_FATAL_ERR] {
            assert!(!Cause::of(code, true).or(flushed).is_trespass(silent), "{code}");
            assert!(!flushed.or(Cause::of(code, true)).is_trespass(silent), "{code}");
        }
    }

    #[test]
    fn events_are_of_one_queue_pair_or_of_the_device() {
        let mut heard = Heard::default();
        heard.note(Said::Refused(7));
        heard.note(Said::Failed(8));
        assert_eq!([7, 8, 9].map(|qp| heard.cause(qp)), [Cause::Refusal, Cause::Other, Cause::Unknown]);
        heard.note(Said::Fatal);
        assert_eq!([7, 8, 9].map(|qp| heard.cause(qp)), [Cause::Other; 3]);
    }
}
