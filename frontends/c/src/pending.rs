//! Requests in flight, and how their ends are noticed.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use genie_transport::client::blocking::{Pending as InFlight, Session};
use genie_transport::client::{ClientError, RunOptions};

use crate::arguments::{Place, slice};
use crate::caller::Loan;
use crate::core::{Core, Ticket};
use crate::handles::Table;
use crate::memory::{self, genie_memory};
use crate::program::{
    arguments, binding, genie_argument, genie_binding, genie_outputs, genie_run_options, run_options,
};
use crate::session::{genie_session, sessions};
use crate::status::{Failure, entry, genie_error, genie_status};
use crate::tensor::{self, begin_put, genie_put_options, genie_tensor};

/// A request in flight. Ended by the `genie_finish_` function of its kind, or by `genie_pending_free`.
pub struct genie_pending {
    _opaque: [u8; 0],
}

/// `genie_wait_any` without an end.
pub const GENIE_FOREVER: u32 = u32::MAX;

struct Pending {
    core: Arc<Core>,
    /// A put's memory. Whoever frees the request waits for it, even while another thread ends it.
    loan: Option<Loan>,
    /// `None` once somebody has ended it.
    rest: Mutex<Option<(Ticket, Kind)>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Put,
    Get,
    Run,
}

static PENDING: Table<Pending> = Table::new(3, "genie_pending");

impl Pending {
    fn ticket(&self) -> Result<Ticket, Failure> {
        let rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        rest.as_ref().map(|(ticket, _)| *ticket).ok_or_else(ended)
    }

    /// For whoever ends it, if it is of the kind.
    fn take(&self, wanted: Kind) -> Result<Ticket, Failure> {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        match *rest {
            None => Err(ended()),
            Some((_, kind)) if kind != wanted => {
                Err(Failure::argument("the request is of another kind: finish it as it was started"))
            }
            Some((ticket, _)) => {
                *rest = None;
                Ok(ticket)
            }
        }
    }

    fn take_any(&self) -> Option<(Ticket, Kind)> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits until a put's memory is the caller's again. What it was lent for is over, or another thread is about to hear that.
    fn settle(&self) {
        if let Some(loan) = &self.loan {
            self.core.settle(loan);
        }
    }
}

fn ended() -> Failure {
    Failure::new(genie_status::GENIE_ERROR_HANDLE, "the request was finished before: only genie_pending_free is left")
}

fn begin(
    core: &Arc<Core>,
    (ticket, kind): (Ticket, Kind),
    loan: Option<Loan>,
    place: Place<*mut genie_pending>,
) -> Result<(), Failure> {
    let rest = Mutex::new(Some((ticket, kind)));
    place.set(PENDING.add(Pending { core: core.clone(), loan, rest })?);
    Ok(())
}

/// Begins what `genie_put` does, and does not wait. `data` must stay in place and unchanged until `genie_finish_put` or
/// `genie_pending_free` has returned; `dims` and `options` are read before this returns. `*pending` is the caller's, to be freed by
/// `genie_pending_free` after it was finished. Small puts are sent before it returns; larger ones move while a thread waits in the session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_start_put(
    session: *const genie_session,
    dtype: i32,
    rank: usize,
    dims: *const u64,
    data: *const c_void,
    options: *const genie_put_options,
    pending: *mut *mut genie_pending,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(pending, "pending") }?;
        let core = sessions().get(session)?.core.clone();
        // SAFETY: the header's rules; what finishes or frees the request returns after the loan is back.
        let (ticket, loan) = unsafe { begin_put(&core, dtype, rank, dims, data, options) }?;
        begin(&core, (ticket, Kind::Put), Some(loan), place)
    })
}

/// Waits for a put: the tensor is there, visible to every request that is made from now on, and its memory is the caller's again, whatever
/// the result. `*tensor` is the caller's, to be freed by `genie_tensor_free`. `pending` is still to be freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_finish_put(
    pending: *const genie_pending,
    tensor: *mut *mut genie_tensor,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(tensor, "tensor") }?;
        let pending = PENDING.get(pending)?;
        let ticket = pending.take(Kind::Put)?;
        let put = pending.core.finish(ticket, |s, request| s.finish_put(request));
        pending.settle();
        place.set(tensor::add(&pending.core, put?)?);
        Ok(())
    })
}

/// Begins what `genie_get_memory` does, and does not wait. `*pending` is the caller's, to be freed by `genie_pending_free` after it was
/// finished.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_start_get(
    tensor: *const genie_tensor,
    offset: u64,
    size: u64,
    pending: *mut *mut genie_pending,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(pending, "pending") }?;
        let resident = tensor::get(tensor)?;
        let ticket = resident.core.start(|s| s.start_get(resident.tensor.handle, offset, size))?;
        begin(&resident.core, (ticket, Kind::Get), None, place)
    })
}

/// Waits for a get. `*memory` is the caller's, to be freed by `genie_memory_free`. `pending` is still to be freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_finish_get(
    pending: *const genie_pending,
    memory: *mut *mut genie_memory,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(memory, "memory") }?;
        let pending = PENDING.get(pending)?;
        let ticket = pending.take(Kind::Get)?;
        let region = pending.core.finish(ticket, |s, request| s.finish_get(request))?;
        place.set(memory::add(pending.core.clone(), region)?);
        Ok(())
    })
}

/// Begins what `genie_run` does, and does not wait: many runs can be in flight together. All arguments are read before this returns.
/// `*pending` is the caller's, to be freed by `genie_pending_free` after it was finished.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_start_run(
    binding: *const genie_binding,
    arguments: *const genie_argument,
    argument_count: usize,
    options: *const genie_run_options,
    pending: *mut *mut genie_pending,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results and for what is read.
        let (place, inputs, options): (_, _, RunOptions) = unsafe {
            (Place::new(pending, "pending")?, self::arguments(arguments, argument_count)?, run_options(options)?)
        };
        let bound = self::binding(binding)?;
        let ticket = bound.core.start(|s| s.start_run(bound.binding, &inputs, options))?;
        begin(&bound.core, (ticket, Kind::Run), None, place)
    })
}

/// Waits for a run. `*outputs` is the caller's, to be freed by `genie_outputs_free`. `pending` is still to be freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_finish_run(
    pending: *const genie_pending,
    outputs: *mut *mut genie_outputs,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(outputs, "outputs") }?;
        let pending = PENDING.get(pending)?;
        let ticket = pending.take(Kind::Run)?;
        let ran = pending.core.finish(ticket, |s, request| s.finish_run(request))?;
        place.set(crate::program::add_outputs(&pending.core, ran)?);
        Ok(())
    })
}

/// Waits until one of `count` requests of one session is answered, or `timeout_ms` have passed: `*index` says which (the first of
/// several), or is `count`. Finishing it then does not wait. Moves the bytes of everything in flight in the session meanwhile; with a time
/// of 0 it moves what can be moved at once. `GENIE_FOREVER`: without an end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_wait_any(
    pending: *const *mut genie_pending,
    count: usize,
    timeout_ms: u32,
    index: *mut usize,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results and for what is read.
        let (place, pending) = unsafe { (Place::new(index, "index")?, slice(pending, count, "pending")?) };
        let all = pending.iter().map(|p| PENDING.get(*p)).collect::<Result<Vec<_>, _>>()?;
        let first = all.first().ok_or_else(|| Failure::argument("there is no request to wait for"))?;
        if all.iter().any(|p| !Arc::ptr_eq(&p.core, &first.core)) {
            return Err(Failure::argument("the requests are of several sessions: wait for those of each in a thread"));
        }
        let tickets = all.iter().map(|p| p.ticket()).collect::<Result<Vec<_>, _>>()?;
        let until = (timeout_ms != GENIE_FOREVER).then(|| Instant::now() + Duration::from_millis(timeout_ms.into()));
        place.set(first.core.wait(&tickets, until)?.unwrap_or(count));
        Ok(())
    })
}

/// Asks the server to stop a request; what finishes it still waits, and gives what it did before that was noticed, or
/// GENIE_ERROR_CANCELLED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_pending_cancel(pending: *const genie_pending, error: *mut genie_error) -> genie_status {
    entry(error, || {
        let pending = PENDING.get(pending)?;
        pending.core.of(pending.ticket()?, Session::cancel)
    })
}

/// Frees a request. One that was not finished is cancelled and waited for, and what it made is freed on the server; the memory of a
/// put is the caller's again when this returns. NULL is nothing, and is GENIE_OK.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_pending_free(pending: *mut genie_pending, error: *mut genie_error) -> genie_status {
    entry(error, || {
        if pending.is_null() {
            return Ok(());
        }
        let pending = PENDING.remove(pending)?;
        let Some((ticket, kind)) = pending.take_any() else {
            pending.settle();
            return Ok(());
        };
        let core = &pending.core;
        let ended = core.of(ticket, Session::cancel).and_then(|()| abandon(core, ticket, kind));
        pending.settle();
        ended.or_else(|failure| match failure.status {
            // It did nothing, or went with its session.
            genie_status::GENIE_ERROR_CANCELLED
            | genie_status::GENIE_ERROR_CLOSED
            | genie_status::GENIE_ERROR_SESSION_LOST => Ok(()),
            _ => Err(failure),
        })
    })
}

/// Ends a request whose result nobody wants.
fn abandon(core: &Core, ticket: Ticket, kind: Kind) -> Result<(), Failure> {
    let kept = core.finish(ticket, |s: &mut Session, request: InFlight| {
        Ok::<_, ClientError>(match kind {
            Kind::Put => vec![s.finish_put(request)?.handle],
            Kind::Get => {
                s.finish_get(request)?;
                Vec::new()
            }
            Kind::Run => crate::program::kept(&s.finish_run(request)?).collect(),
        })
    })?;
    kept.into_iter().try_for_each(|handle| tensor::free(core, handle))
}
