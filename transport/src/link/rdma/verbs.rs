//! Verbs objects that free themselves, in an order that `Arc`s and fields keep.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use rdma_sys as sys;

use super::events::{self, Cause};

/// What a device can do, as far as Genie chooses by it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The device's name: `mlx5_0`, `rxe0`.
    pub device: String,
    /// Memory windows of type 2: rights that are given and revoked by the queue pair itself.
    pub windows: bool,
    /// Reads that may be outstanding on a queue pair.
    pub reads: u8,
    /// Work requests that a queue may hold.
    pub queue: u32,
    /// Pieces of memory in one work request.
    pub pieces: u32,
    /// It raises no event when it refuses what a peer asks of it: soft-RoCE.
    pub silent: bool,
}

/// Soft-RoCE's `vendor_id`.
const SOFT_ROCE: u32 = 0xff_ffff;

/// A protection domain: what is registered in it can be reached by its own queue pairs alone.
pub(super) struct Domain {
    pd: NonNull<sys::ibv_pd>,
    context: NonNull<sys::ibv_context>,
    facts: Facts,
}

// SAFETY: verbs objects may be used from any thread; the library locks where it must.
unsafe impl Send for Domain {}
// SAFETY: as above; nothing here is changed after it was made.
unsafe impl Sync for Domain {}

impl Domain {
    /// A domain of its own on a device that `rdma_cm` has opened.
    ///
    /// # Safety
    /// The context stays open for as long as the domain lives: `rdma_cm` never closes one that [`super::cm::keep_devices`] holds.
    pub(super) unsafe fn new(context: NonNull<sys::ibv_context>) -> io::Result<Arc<Self>> {
        let facts = facts(context)?;
        // SAFETY: the context is open, by this function's contract.
        let pd = made(unsafe { sys::ibv_alloc_pd(context.as_ptr()) })?;
        Ok(Arc::new(Self { pd, context, facts }))
    }

    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(super) fn is_on(&self, context: NonNull<sys::ibv_context>) -> bool {
        self.context == context
    }

    pub(super) fn context(&self) -> *mut sys::ibv_context {
        self.context.as_ptr()
    }

    pub(super) fn pd(&self) -> *mut sys::ibv_pd {
        self.pd.as_ptr()
    }

    /// Registers memory. `access`: bits of [`access`].
    ///
    /// # Safety
    /// Whatever the access allows, the memory is there, and nobody else uses it otherwise, until the registration is dropped.
    pub(super) unsafe fn register(self: &Arc<Self>, at: *mut u8, len: usize, access: u32) -> io::Result<Registration> {
        // SAFETY: by this function's contract.
        let mr = made(unsafe { sys::ibv_reg_mr(self.pd(), at.cast(), len, access as i32) }).map_err(|e| {
            let hint = if e.raw_os_error() == Some(libc::ENOMEM) {
                ": raise the limit on locked memory (ulimit -l, LimitMEMLOCK=)"
            } else {
                ""
            };
            io::Error::new(e.kind(), format!("{len} bytes cannot be registered with {}: {e}{hint}", self.facts.device))
        })?;
        Ok(Registration { mr, _domain: self.clone() })
    }

    /// Registers a part of device memory that a dmabuf descriptor stands for. `at`: its address in requests; as far into a page as
    /// `offset` is.
    pub(super) fn register_dmabuf(
        self: &Arc<Self>,
        fd: RawFd,
        offset: u64,
        len: usize,
        at: u64,
        access: u32,
    ) -> io::Result<Registration> {
        // SAFETY: no pointer is passed; the kernel holds the buffer that the descriptor names for as long as it is registered.
        let mr = made(unsafe { sys::ibv_reg_dmabuf_mr(self.pd(), offset, len, at, fd, access as i32) })?;
        Ok(Registration { mr, _domain: self.clone() })
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: everything made in the domain holds an `Arc` of it, so nothing is left in it.
        let failed = unsafe { sys::ibv_dealloc_pd(self.pd()) };
        if failed != 0 {
            tracing::warn!(failed, "a protection domain could not be freed");
        }
    }
}

/// What a registration allows.
pub(super) mod access {
    pub(in crate::link::rdma) const LOCAL_WRITE: u32 = 1;
    pub(in crate::link::rdma) const REMOTE_WRITE: u32 = 2;
    pub(in crate::link::rdma) const REMOTE_READ: u32 = 4;
    pub(in crate::link::rdma) const WINDOWS: u32 = 16;
}

/// Registered memory.
pub(super) struct Registration {
    mr: NonNull<sys::ibv_mr>,
    _domain: Arc<Domain>,
}

// SAFETY: as for `Domain`.
unsafe impl Send for Registration {}
// SAFETY: as for `Domain`.
unsafe impl Sync for Registration {}

impl Registration {
    /// Names it in this process's own work requests.
    pub(super) fn local(&self) -> u32 {
        // SAFETY: the object lives until `drop`.
        unsafe { self.mr.as_ref() }.lkey
    }

    /// Names it to the peer.
    pub(super) fn remote(&self) -> u32 {
        // SAFETY: the object lives until `drop`.
        unsafe { self.mr.as_ref() }.rkey
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_mr {
        self.mr.as_ptr()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: made by `register`, and freed once. Windows over it are freed first: whoever binds one holds this.
        let failed = unsafe { sys::ibv_dereg_mr(self.mr.as_ptr()) };
        if failed != 0 {
            tracing::warn!(failed, "memory could not be deregistered");
        }
    }
}

/// A memory window of type 2.
pub(super) struct Window {
    mw: NonNull<sys::ibv_mw>,
    _domain: Arc<Domain>,
}

// SAFETY: as for `Domain`.
unsafe impl Send for Window {}

impl Window {
    pub(super) fn new(domain: &Arc<Domain>) -> io::Result<Self> {
        // SAFETY: the domain is there.
        let mw = unsafe { sys::ibv_alloc_mw(domain.pd(), sys::ibv_mw_type::IBV_MW_TYPE_2) };
        Ok(Self { mw: made(mw.unwrap_or(null_mut()))?, _domain: domain.clone() })
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_mw {
        self.mw.as_ptr()
    }

    /// A key for the next bind that differs from the last one: what the peer learnt of that one is worth nothing.
    pub(super) fn next_key(&self) -> u32 {
        // SAFETY: the object lives until `drop`; the function only computes.
        unsafe { sys::ibv_inc_rkey(self.mw.as_ref().rkey) }
    }

    /// A bind with this key was posted. Not before: drivers name the window by its last key until then.
    pub(super) fn bound(&mut self, key: u32) {
        // SAFETY: the object lives until `drop`, and `&mut self` is the only way to it.
        unsafe { self.mw.as_mut() }.rkey = key;
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and freed once.
        let failed = unsafe { sys::ibv_dealloc_mw(self.mw.as_ptr()) };
        if failed != 0 {
            tracing::warn!(failed, "a memory window could not be freed");
        }
    }
}

/// Completions, and the descriptor that tells of them.
pub(super) struct Completions {
    cq: NonNull<sys::ibv_cq>,
    channel: NonNull<sys::ibv_comp_channel>,
    _domain: Arc<Domain>,
}

// SAFETY: as for `Domain`.
unsafe impl Send for Completions {}

impl Completions {
    pub(super) fn new(domain: &Arc<Domain>, entries: u32) -> io::Result<Self> {
        // SAFETY: the context is open while the domain lives.
        let channel = made(unsafe { sys::ibv_create_comp_channel(domain.context()) })?;
        // SAFETY: the channel was just made; its descriptor is open.
        let cq = made(unsafe { sys::ibv_create_cq(domain.context(), entries as i32, null_mut(), channel.as_ptr(), 0) });
        let cq = match cq {
            Ok(cq) => cq,
            Err(error) => {
                // SAFETY: made above, and used by nobody.
                unsafe { sys::ibv_destroy_comp_channel(channel.as_ptr()) };
                return Err(error);
            }
        };
        let all = Self { cq, channel, _domain: domain.clone() };
        nonblocking(all.fd())?;
        Ok(all)
    }

    pub(super) fn fd(&self) -> RawFd {
        // SAFETY: the object lives until `drop`.
        unsafe { self.channel.as_ref() }.fd
    }

    /// Takes what has completed.
    pub(super) fn poll<'a>(&self, room: &'a mut [MaybeUninit<sys::ibv_wc>]) -> io::Result<&'a [sys::ibv_wc]> {
        let most = i32::try_from(room.len()).unwrap_or(i32::MAX);
        // SAFETY: `room` has space for `most` entries.
        let n = unsafe { sys::ibv_poll_cq(self.cq.as_ptr(), most, room.as_mut_ptr().cast()) };
        let n = usize::try_from(n).map_err(|_| io::Error::other("the completion queue failed"))?;
        // SAFETY: the library has written the first `n` entries, and says so.
        Ok(unsafe { std::slice::from_raw_parts(room.as_ptr().cast(), n.min(room.len())) })
    }

    /// The next completion makes the descriptor readable. What has completed already does not: poll once more.
    pub(super) fn notify(&self) -> io::Result<()> {
        // SAFETY: the queue lives until `drop`.
        checked(unsafe { sys::ibv_req_notify_cq(self.cq.as_ptr(), 0) })
    }

    /// Takes a notification, if one has come: the descriptor is quiet then, since each [`Self::notify`] brings one at the most.
    pub(super) fn hush(&self) -> bool {
        let (mut cq, mut context) = (null_mut(), null_mut());
        // SAFETY: the channel is there and does not block; both pointers lead to places of the right types.
        let took = unsafe { sys::ibv_get_cq_event(self.channel.as_ptr(), &raw mut cq, &raw mut context) } == 0;
        if took {
            // SAFETY: it is this queue's event, the only queue of the channel. Destroying the queue waits for this.
            unsafe { sys::ibv_ack_cq_events(self.cq.as_ptr(), 1) };
        }
        took
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        while self.hush() {}
        // SAFETY: the queue pair was destroyed first (it holds this), and every event was acknowledged.
        unsafe {
            sys::ibv_destroy_cq(self.cq.as_ptr());
            sys::ibv_destroy_comp_channel(self.channel.as_ptr());
        }
    }
}

/// How deep a queue pair is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Depth {
    pub(super) send: u32,
    pub(super) receive: u32,
    pub(super) pieces: u32,
    pub(super) inline: u32,
}

/// A reliable connected queue pair.
pub(super) struct QueuePair {
    qp: NonNull<sys::ibv_qp>,
    inline: u32,
    // Destroyed after the queue pair.
    pub(super) completions: Completions,
    pub(super) domain: Arc<Domain>,
}

// SAFETY: as for `Domain`.
unsafe impl Send for QueuePair {}

impl QueuePair {
    pub(super) fn new(domain: &Arc<Domain>, depth: Depth) -> io::Result<Self> {
        let completions = Completions::new(domain, depth.send + depth.receive)?;
        // Not every device takes as much inline as is asked for; each takes some amount, if only none.
        let mut last = io::Error::from(io::ErrorKind::InvalidInput);
        for inline in [depth.inline, 64, 0] {
            let mut attr = sys::ibv_qp_init_attr {
                qp_context: null_mut(),
                send_cq: completions.cq.as_ptr(),
                recv_cq: completions.cq.as_ptr(),
                srq: null_mut(),
                cap: sys::ibv_qp_cap {
                    max_send_wr: depth.send,
                    max_recv_wr: depth.receive,
                    max_send_sge: depth.pieces,
                    max_recv_sge: 1,
                    max_inline_data: inline,
                },
                qp_type: sys::ibv_qp_type::IBV_QPT_RC,
                sq_sig_all: 0,
            };
            // SAFETY: domain and queue are there, `attr` is filled.
            match made(unsafe { sys::ibv_create_qp(domain.pd(), &raw mut attr) }) {
                Ok(qp) => {
                    let inline = attr.cap.max_inline_data;
                    return Ok(Self { qp, inline, completions, domain: domain.clone() });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Bytes that a message may carry inline.
    pub(super) fn inline(&self) -> usize {
        self.inline as usize
    }

    pub(super) fn number(&self) -> u32 {
        // SAFETY: the object lives until `drop`.
        unsafe { self.qp.as_ref() }.qp_num
    }

    /// Why it has failed, as far as the device says of itself.
    pub(super) fn cause(&self) -> Cause {
        // SAFETY: the domain keeps the device open.
        unsafe { events::cause(self.domain.context, self.number(), self.domain.facts.silent) }
    }

    pub(super) fn modify(&self, attr: &mut sys::ibv_qp_attr, mask: i32) -> io::Result<()> {
        // SAFETY: the queue pair is there, and `attr` is whole.
        checked(unsafe { sys::ibv_modify_qp(self.qp.as_ptr(), attr, mask) })
    }

    /// Everything outstanding is flushed; nothing of the peer's reaches this queue pair's memory any more.
    pub(super) fn fail(&self) -> io::Result<()> {
        // SAFETY: all zeroes is a valid `ibv_qp_attr`.
        let mut attr: sys::ibv_qp_attr = unsafe { std::mem::zeroed() };
        attr.qp_state = sys::ibv_qp_state::IBV_QPS_ERR;
        self.modify(&mut attr, sys::ibv_qp_attr_mask::IBV_QP_STATE.0 as i32)
    }

    /// Hands a work request to the device.
    ///
    /// # Safety
    /// The memory that it names stays as the request needs it until its completion, or that of a later one, was polled.
    pub(super) unsafe fn post(&self, wr: &mut sys::ibv_send_wr) -> io::Result<()> {
        let mut bad = null_mut();
        // SAFETY: the queue pair is there; the rest is this function's contract.
        checked(unsafe { sys::ibv_post_send(self.qp.as_ptr(), wr, &raw mut bad) })
    }

    /// Lends memory to the next message that comes.
    ///
    /// # Safety
    /// Nobody reads or writes the memory until the completion with this id was polled.
    pub(super) unsafe fn post_receive(&self, id: u64, at: *mut u8, len: u32, key: u32) -> io::Result<()> {
        let mut sge = sys::ibv_sge { addr: at as u64, length: len, lkey: key };
        let mut wr = sys::ibv_recv_wr { wr_id: id, next: null_mut(), sg_list: &raw mut sge, num_sge: 1 };
        let mut bad = null_mut();
        // SAFETY: the queue pair is there; the rest is this function's contract.
        checked(unsafe { sys::ibv_post_recv(self.qp.as_ptr(), &raw mut wr, &raw mut bad) })
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        let number = self.number();
        // SAFETY: made by `new`, and destroyed once. After this the device touches none of its memory.
        let failed = unsafe { sys::ibv_destroy_qp(self.qp.as_ptr()) };
        events::forget(self.domain.context, number);
        if failed != 0 {
            tracing::warn!(failed, "a queue pair could not be destroyed");
        }
    }
}

/// What the library calls a completion's status.
pub(super) fn status(code: sys::ibv_wc_status::Type) -> String {
    // SAFETY: the library returns a string of its own, whatever the code.
    let text = unsafe { sys::ibv_wc_status_str(code) };
    if text.is_null() {
        return format!("status {code}");
    }
    // SAFETY: it is a string that ends with a zero and lives for ever.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn facts(context: NonNull<sys::ibv_context>) -> io::Result<Facts> {
    // SAFETY: all zeroes is a valid `ibv_device_attr`.
    let mut attr: sys::ibv_device_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the context is open, `attr` is of the type that is wanted.
    checked(unsafe { sys::ibv_query_device(context.as_ptr(), &raw mut attr) })?;
    // SAFETY: the context is open, and its device's name is a string that lives as long.
    let name = unsafe { CStr::from_ptr(sys::ibv_get_device_name((*context.as_ptr()).device)) };
    let cap = sys::ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2A.0
        | sys::ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2B.0;
    Ok(Facts {
        device: name.to_string_lossy().into_owned(),
        windows: attr.device_cap_flags & cap != 0,
        reads: u8::try_from(attr.max_qp_rd_atom.min(attr.max_qp_init_rd_atom).clamp(1, 16)).unwrap_or(1),
        queue: u32::try_from(attr.max_qp_wr).unwrap_or(64),
        pieces: u32::try_from(attr.max_sge).unwrap_or(1).max(1),
        silent: attr.vendor_id == SOFT_ROCE,
    })
}

/// The library's objects come as pointers, null with `errno` set where there is none.
fn made<T>(raw: *mut T) -> io::Result<NonNull<T>> {
    NonNull::new(raw).ok_or_else(io::Error::last_os_error)
}

/// The library's verdicts: 0, an error number, or -1 with `errno` set.
pub(super) fn checked(code: i32) -> io::Result<()> {
    match code {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        code => Err(io::Error::from_raw_os_error(code.abs())),
    }
}

pub(super) fn nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: as above.
    if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
