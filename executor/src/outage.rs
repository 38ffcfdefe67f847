//! Devices that fail and lose what was on them: taken out, emptied, brought back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use genie_transport::wire::{ErrorCode, RemoteError};

use crate::core::Core;
use crate::device::Device;
use crate::error::{fail, partly};
use crate::replies::Answer;
use crate::session::{Session, Work};
use crate::stats::add;

/// How long after an attempt to bring a device back failed there is another.
const AGAIN: Duration = Duration::from_secs(5);

/// Whether a device is out.
///
/// Sessions that had anything on a device that failed are ended, since what they hold is gone: each of their requests in progress gets
/// the error, and so does whoever is connected. Others go on.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    /// From the loss until the device is back.
    out: AtomicBool,
    attempt: Mutex<Attempt>,
}

/// What becomes of bringing a device back.
#[derive(Debug, Default)]
struct Attempt {
    /// Why the last one failed, if none is under way.
    failed: Option<String>,
    /// When there is another.
    next: Option<Instant>,
}

impl Outage {
    /// Whether requests may mean the device.
    pub(crate) fn permit(&self, device: &dyn Device) -> Result<(), RemoteError> {
        if !self.out.load(Ordering::Acquire) {
            return Ok(());
        }
        let device = device.info().name;
        let message = match &self.attempt().failed {
            None => format!("{device} has failed and is being brought back: try again in a moment"),
            Some(reason) => {
                let seconds = AGAIN.as_secs();
                format!(
                    "{device} has failed and could not be brought back ({reason}): use another device, or start the server \
                     anew; it is tried again every {seconds} s"
                )
            }
        };
        Err(fail(ErrorCode::DeviceFailed, message))
    }

    fn attempt(&self) -> MutexGuard<'_, Attempt> {
        self.attempt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Sees to devices that have failed since. Cheap where none has.
    pub(crate) fn check_devices(self: &Arc<Self>) {
        (0..self.device_count()).for_each(|device| self.check_device(device));
    }

    /// As [`Self::check_devices`], for one.
    pub(crate) fn check_device(self: &Arc<Self>, device: u16) {
        if let Some(reason) = self.hardware(device).loss()
            && !self.outage(device).out.swap(true, Ordering::AcqRel)
        {
            self.lost(device, &reason);
        }
    }

    /// Everything on the device is lost.
    fn lost(self: &Arc<Self>, device: u16, reason: &str) {
        let name = self.hardware(device).info().name;
        tracing::error!(device = name, reason, "the device failed: sessions that have anything on it end");
        add(&self.stats.devices_lost, 1);
        let message = format!(
            "{name} failed ({reason}): all that was on it is lost, and the session ends with it: open another, and upload again"
        );
        let error = partly(fail(ErrorCode::DeviceFailed, message));
        let waiting = self.queue(device).drain();
        for session in self.registry.all().iter().filter(|session| session.has_part_on(device)) {
            self.end_lost(session, &error);
        }
        waiting.into_iter().for_each(|job| job.fail(self, error.clone()));
        self.forget_all_on(device);
        self.bring_back(device);
    }

    /// Ends a session whose residents are lost; its requests in progress get the error.
    pub(crate) fn end_lost(self: &Arc<Self>, session: &Arc<Session>, error: &RemoteError) {
        let (objects, pending, peer) = {
            let mut state = session.lock();
            state.ended = true;
            let pending: Vec<_> = state
                .pending
                .iter_mut()
                .map(|pending| {
                    pending.cancelled = true;
                    (pending.id, pending.upload().cloned())
                })
                .collect();
            (state.objects.drain(), pending, state.peer.clone())
        };
        // First of all: who has been told and asks again must not find it.
        self.registry.remove(session);
        for (id, upload) in pending {
            match upload.and_then(|upload| upload.leave(session, id)) {
                Some(waiter) => waiter.fail(error.clone()),
                None => session.complete(id, Answer::Failed(error.clone())),
            }
        }
        drop(objects);
        self.forget_session(session.number);
        tracing::info!(session = session.number, "session ended: its device failed");
        if let Some(peer) = peer {
            peer.goodbye(error.clone());
        }
    }

    /// Empties what the server keeps for a device.
    fn forget_all_on(&self, device: u16) {
        self.weights(device).clear();
        self.names.forget(device);
        self.programs.forget(device);
    }

    /// Tries to make the device usable again, elsewhere: it may take seconds.
    fn bring_back(self: &Arc<Self>, device: u16) {
        self.spawn(move |core| {
            if core.is_closing() {
                return;
            }
            let hardware = core.hardware(device);
            let name = hardware.info().name;
            match hardware.revive() {
                Ok(()) => {
                    // What requests that were under way have left since.
                    core.forget_all_on(device);
                    core.outage(device).out.store(false, Ordering::Release);
                    tracing::info!(device = name, "the device is back, and empty");
                }
                Err(error) => {
                    tracing::error!(device = name, %error, "the device could not be brought back: it is tried again");
                    core.outage(device).attempt().failed = Some(error.to_string());
                }
            }
        });
    }

    /// Tries again to bring devices back, every few seconds.
    pub(crate) fn retry_devices(self: &Arc<Self>, now: Instant) {
        for device in 0..self.device_count() {
            if !self.outage(device).out.load(Ordering::Acquire) {
                continue;
            }
            let due = {
                let mut attempt = self.outage(device).attempt();
                let due = attempt.failed.is_some() && now >= *attempt.next.get_or_insert(now + AGAIN);
                if due {
                    *attempt = Attempt::default();
                }
                due
            };
            if due {
                self.bring_back(device);
            }
        }
    }
}

impl Session {
    /// Whether any of what it holds, or waits for, is on this device.
    fn has_part_on(&self, device: u16) -> bool {
        let state = self.lock();
        let awaited = |work: &Work| match work {
            Work::Busy => false,
            Work::Upload { upload } => upload.device == device,
            Work::Generate { device: of, .. } => *of == device,
        };
        state.objects.iter().any(|object| object.device() == device) || state.pending.iter().any(|p| awaited(&p.work))
    }
}
