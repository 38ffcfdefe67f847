//! Sessions, devices, counters.

use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_transport::auth::{Channel, Refused};
use genie_transport::connection::Peer;
use genie_transport::memory::copied_bytes;
use genie_transport::wire::{DeviceEntry, ErrorCode, Kind, OpenedSession, RemoteError, Reply, SessionToken, StatEntry};

use crate::core::Core;
use crate::device::select::gpus_here;
use crate::error::fail;
use crate::handles::HandleTable;
use crate::process;
use crate::replies::Window;
use crate::scheduler::shutting_down;
use crate::session::{Session, Work};
use crate::stats::{add, read};

impl Core {
    pub(super) fn open(self: &Arc<Self>, peer: &Arc<Peer>, id: u64, quota: u64, lease_ms: u32) {
        match self.new_session(peer, quota, lease_ms) {
            Ok(opened) => peer.reply(id, Kind::Open, &Reply::Opened(opened)),
            Err(error) => peer.reply(id, Kind::Open, &Reply::Failed(error)),
        }
    }

    fn new_session(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        quota: u64,
        lease_ms: u32,
    ) -> Result<OpenedSession, RemoteError> {
        if self.is_closing() {
            return Err(shutting_down());
        }
        if self.registry.of(peer).is_some() {
            return Err(fail(ErrorCode::Malformed, "this connection has a session: close it before opening another"));
        }
        let config = &self.config;
        let epoch = config.settings.epoch;
        let quota = if quota == 0 { config.default_quota } else { quota }.min(config.max_quota);
        let owner = peer.identity().clone();
        let quota = quota.min(owner.rights().quota.unwrap_or(u64::MAX));
        let lease = if lease_ms == 0 { config.default_lease } else { Duration::from_millis(u64::from(lease_ms)) };
        let lease = lease.min(config.max_lease);
        // Twice the credits: whatever a client can still ask again is kept, with room to spare.
        let window = Window::new(2 * config.settings.credits as usize, config.window_bytes, self.replies.clone());
        let number = self.number();
        let objects = HandleTable::new(epoch, number, config.max_handles);
        let session = Session::new(number, owner, quota, lease, self.device_count(), objects, window);
        let token = match self.registry.add(session.clone()) {
            Err(full) if full.code == ErrorCode::Busy => {
                let Some(idle) = self.registry.give_up_idle() else { return Err(full) };
                tracing::info!(
                    session = idle.number,
                    "session given up for another: it held nothing, and its client had gone"
                );
                self.end_session(&idle);
                self.registry.add(session.clone())?
            }
            added => added?,
        };
        self.registry.attach(&session, peer);
        add(&self.stats.sessions_opened, 1);
        tracing::debug!(session = session.number, peer = peer.id(), quota, ?lease, "session opened");
        Ok(self.describe(&session, token))
    }

    pub(super) fn resume(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        (id, now): (u64, Instant),
        token: &SessionToken,
        epoch: u64,
        unanswered: u64,
    ) {
        match self.find_session(token, epoch).and_then(|session| self.take_up(peer, session, now)) {
            Ok(session) => {
                if let Some(other) = self.registry.of(peer).filter(|other| !Arc::ptr_eq(other, &session)) {
                    let message = format!("this connection has session {}: close it first", other.number);
                    return peer.reply(id, Kind::Resume, &Reply::Failed(fail(ErrorCode::Malformed, message)));
                }
                let before = self.registry.attach(&session, peer);
                let ended = {
                    let mut state = session.lock();
                    state.window.acknowledge(unanswered);
                    state.ended
                };
                if ended {
                    self.registry.remove(&session);
                    return peer.reply(id, Kind::Resume, &Reply::Failed(session_gone()));
                }
                if let Some(before) = before {
                    before.goodbye(fail(ErrorCode::SessionGone, "the session was taken up by another connection"));
                }
                tracing::debug!(session = session.number, peer = peer.id(), "session resumed");
                peer.reply(id, Kind::Resume, &Reply::Opened(self.describe(&session, *token)));
            }
            Err(error) => peer.reply(id, Kind::Resume, &Reply::Failed(error)),
        }
    }

    fn find_session(&self, token: &SessionToken, epoch: u64) -> Result<Arc<Session>, RemoteError> {
        if self.is_closing() {
            return Err(shutting_down());
        }
        let here = self.config.settings.epoch;
        if epoch != here {
            let message = format!(
                "the server was restarted: its life {epoch} is over, this is {here}; open a session and offer what you had"
            );
            return Err(fail(ErrorCode::EpochGone, message));
        }
        self.registry.find(token).ok_or_else(session_gone)
    }

    /// Whether `peer` may take a session up that it has the token of.
    fn take_up(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        session: Arc<Session>,
        now: Instant,
    ) -> Result<Arc<Session>, RemoteError> {
        let (owner, identity) = (&session.owner, peer.identity());
        if !owner.is_same(identity) {
            let message = "the session belongs to somebody else: open one of your own";
            let guard = &self.config.settings.guard;
            return Err(guard.refuse(Refused::Session, &Channel::default(), identity.name(), message, now));
        }
        if owner.rights() != identity.rights() {
            // What it holds was allowed by the old ones.
            self.end_session(&session);
            return Err(fail(ErrorCode::SessionGone, "the token's rights have changed: open another session"));
        }
        Ok(session)
    }

    fn describe(&self, session: &Session, token: SessionToken) -> OpenedSession {
        OpenedSession {
            token,
            epoch: self.config.settings.epoch,
            session: session.number,
            quota: session.account.quota(),
            lease_ms: u32::try_from(session.lease.as_millis()).unwrap_or(u32::MAX),
            next_request: session.lock().window.next(),
        }
    }

    /// Frees what a session has. Requests in progress end: uploads now, generates at their next step, runs when they are done.
    pub(crate) fn end_session(self: &Arc<Self>, session: &Arc<Session>) {
        let (objects, uploads) = {
            let mut state = session.lock();
            state.ended = true;
            let uploads: Vec<_> = state
                .pending
                .iter_mut()
                .filter_map(|pending| {
                    pending.cancelled = !matches!(pending.kind, Kind::Close);
                    match &pending.work {
                        Work::Upload { upload } => Some((pending.id, upload.clone())),
                        _ => None,
                    }
                })
                .collect();
            (state.objects.drain(), uploads)
        };
        // After it was said that the session has ended: a connection that takes it up meanwhile either hears so, or goes here.
        self.registry.remove(session);
        for (id, upload) in uploads {
            if let Some(waiter) = upload.leave(session, id) {
                waiter.fail(fail(ErrorCode::Cancelled, "the session has ended"));
            }
        }
        drop(objects);
        self.forget_session(session.number);
        tracing::debug!(session = session.number, "session ended");
    }

    /// A connection is gone: the lease of its session begins.
    pub(crate) fn closed(&self, peer: &Arc<Peer>, now: Instant) {
        if let Some(session) = self.registry.detach(peer, now) {
            tracing::debug!(session = session.number, peer = peer.id(), lease = ?session.lease, "session detached");
        }
    }

    /// A request is no longer wanted. It still gets its one reply: that it was cancelled, or what it did before that was
    /// noticed.
    pub(crate) fn cancel(&self, peer: &Arc<Peer>, id: u64) {
        peer.cancel_sliced(id);
        let Some(session) = self.registry.of(peer) else { return };
        let upload = {
            let mut state = session.lock();
            let Some(pending) = state.pending.iter_mut().find(|p| p.id == id) else { return };
            pending.cancelled = true;
            match &pending.work {
                Work::Upload { upload } => upload.clone(),
                _ => return,
            }
        };
        if let Some(waiter) = upload.leave(&session, id) {
            waiter.fail(fail(ErrorCode::Cancelled, "the put was cancelled"));
        }
    }

    pub(super) fn list_devices(&self, peer: &Peer, id: u64) {
        let rights = peer.identity().rights();
        let infos: Vec<_> = self.config.devices.iter().map(|device| device.info()).collect();
        let may = infos.iter().enumerate().filter(|(_, info)| rights.has_device(&info.name));
        let entries = may.map(|(index, info)| DeviceEntry {
            index: index as u32,
            name: &info.name,
            model: &info.model,
            capability: &info.capability,
            total_bytes: info.total_bytes,
            free_bytes: info.free_bytes,
        });
        peer.reply(id, Kind::Devices, &Reply::Devices(entries.collect()));
    }

    pub(super) fn list_counters(&self, peer: &Peer, id: u64) {
        let mut handles = 0;
        let mut held = 0;
        let sessions = self.registry.all();
        for session in &sessions {
            handles += session.lock().objects.len() as u64;
            held += session.account.used();
        }
        let (mut weights, mut weight_bytes) = (0, 0);
        for device in 0..self.device_count() {
            let (count, bytes) = self.weights(device).totals();
            weights += count;
            weight_bytes += bytes;
        }
        let unstaged = self.config.devices.iter().map(|device| device.staging_misses()).sum();
        let (host_weights, host_weight_bytes) = self.evicted.totals();
        let stats = &self.stats;
        let entries = [
            ("genie_sessions", sessions.len() as u64),
            ("genie_sessions_opened_total", read(&stats.sessions_opened)),
            ("genie_sessions_expired_total", read(&stats.sessions_expired)),
            ("genie_handles", handles),
            ("genie_session_bytes", held),
            ("genie_weights", weights),
            ("genie_weight_bytes", weight_bytes),
            ("genie_named_bytes", self.names.used()),
            ("genie_programs", self.programs.count() as u64),
            ("genie_requests_total", read(&stats.requests)),
            ("genie_uploads_total", read(&stats.uploads)),
            ("genie_uploads_adopted_total", read(&stats.uploads_adopted)),
            ("genie_slices_corrupted_total", read(&stats.slices_corrupted)),
            ("genie_lanes_lost_total", read(&stats.lanes_lost)),
            ("genie_runs_total", read(&stats.runs)),
            ("genie_rows_total", read(&stats.rows)),
            ("genie_batched_rows_total", read(&stats.batched_rows)),
            ("genie_tokens_total", read(&stats.tokens)),
            ("genie_evictions_total", read(&stats.evictions)),
            ("genie_unpinned_slices_total", unstaged),
            ("genie_evicted_bytes_total", read(&stats.evicted_bytes)),
            ("genie_weights_brought_back_total", read(&stats.weights_brought_back)),
            ("genie_host_weights", host_weights),
            ("genie_host_weight_bytes", host_weight_bytes),
            ("genie_weight_sets", self.sets.count()),
            ("genie_weight_sets_found_total", read(&stats.sets_found)),
            ("genie_devices_lost_total", read(&stats.devices_lost)),
            ("genie_copied_bytes_total", copied_bytes()),
            ("genie_process_cpu_microseconds_total", micros(process::cpu_time())),
            ("genie_process_resident_bytes", process::resident_bytes().unwrap_or(0)),
        ];
        let refusals = self.config.settings.guard.refusals();
        let own = entries.into_iter().chain(refusals).map(|(name, value)| StatEntry { name, value });
        let gpus = self.gpu_counters(peer);
        let of_gpus = gpus.iter().map(|(name, value)| StatEntry { name, value: *value });
        let entries = own.chain(of_gpus).collect();
        peer.reply(id, Kind::Stats, &Reply::Stats(entries));
    }

    /// What is known of the GPUs that the peer may use, beyond what a list of devices has room for.
    fn gpu_counters(&self, peer: &Peer) -> Vec<(String, u64)> {
        let rights = peer.identity().rights();
        let gpus = self.config.devices.iter().filter_map(|device| Some((device.info().name, device.gpu()?)));
        let mut entries = Vec::new();
        for (name, gpu) in gpus.filter(|(name, _)| rights.has_device(name)) {
            entries.push((format!("genie_device_info{{device=\"{name}\",uuid=\"{}\"}}", gpu.uuid), 1));
            let mut add =
                |what: &str, value| entries.push((format!("genie_device_{what}{{device=\"{name}\"}}"), value));
            if let Some(percent) = gpu.utilisation {
                add("utilisation_percent", u64::from(percent));
            }
            add("uncompiled_kernel_modules", gpu.uncompiled as u64);
            if let Some((to, from)) = gpu.pcie {
                add("pcie_to_device_bytes_per_second", to);
                add("pcie_from_device_bytes_per_second", from);
            }
            add("slices_written_by_rdma_total", gpu.slices.written);
            add("slices_read_by_rdma_total", gpu.slices.read);
            add("slices_staged_total", gpu.slices.staged);
            if let Some(copies) = gpu.copies {
                let ways = [("to_device", copies.to_device), ("from_device", copies.from_device)];
                for (way, (took, overlapped)) in ways {
                    add(&format!("copy_{way}_microseconds_total"), micros(took));
                    add(&format!("copy_{way}_overlapped_microseconds_total"), micros(overlapped));
                }
            }
        }
        if !entries.is_empty()
            && let Some((installed, visible)) = gpus_here()
        {
            entries.push(("genie_gpus_installed".to_owned(), installed as u64));
            entries.push(("genie_gpus_visible".to_owned(), visible as u64));
        }
        entries
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn session_gone() -> RemoteError {
    fail(ErrorCode::SessionGone, "no session has this token: its lease ran out, or it was closed; open another")
}
