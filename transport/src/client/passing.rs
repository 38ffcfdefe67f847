//! What an async session passes to its server instead of sending it.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use super::shares::{Passed, Shares};
use super::staging::{JOINED, RECYCLED, Staging};
use crate::memory::{Region, SharedBytes, Slab};
use crate::wire::{Caps, Shared};

/// Shared memory of an async session.
#[derive(Debug)]
pub(super) struct Passing {
    shares: Arc<Shares>,
    news: Arc<News>,
    staging: Mutex<Staging>,
    /// Shared memory of earlier gets, to be filled again, and how many bytes of it there may be.
    spares: Mutex<Vec<Slab>>,
    limit: u64,
    /// Sessions lost when the staging memory was looked at last.
    staged_for: AtomicU64,
}

/// What the lanes' thread tells of the connection.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Sessions lost so far.
    lost: AtomicU64,
    /// Whether the lane that it has now shares memory.
    can_share: AtomicBool,
    /// What both sides can do, as the server last said.
    caps: AtomicU64,
}

/// Bytes that are copied before others get a turn on the caller's thread.
const STEP: usize = 1 << 20;

impl News {
    pub(super) fn tell(&self, lost: u64, can_share: bool, caps: Caps) {
        self.lost.store(lost, Ordering::Release);
        self.can_share.store(can_share, Ordering::Release);
        self.caps.store(caps.0, Ordering::Release);
    }

    pub(super) fn caps(&self) -> Caps {
        Caps(self.caps.load(Ordering::Acquire))
    }
}

impl Passing {
    /// Of a session with these shares, and so much staging memory.
    pub(super) fn new(shares: Arc<Shares>, news: Arc<News>, limit: u64) -> Self {
        let staging = Mutex::new(Staging::new(limit));
        Self { shares, news, staging, spares: Mutex::default(), limit, staged_for: AtomicU64::new(0) }
    }

    /// Memory that the server can use, too. `None`: the link shares none.
    pub(super) fn slab(&self, len: usize) -> Option<std::io::Result<Slab>> {
        if !self.news.can_share.load(Ordering::Acquire) {
            return None;
        }
        Some(SharedBytes::new(len).map(Arc::new).map(|bytes| {
            // The lanes' thread tells the server, before any request that is made later.
            self.shares.add(bytes.clone());
            Slab::shared(bytes)
        }))
    }

    /// Memory that a get is written to by the server, and where it is.
    pub(super) fn target(&self, len: usize) -> Option<(Slab, Shared)> {
        if self.lock().is_off() {
            return None;
        }
        if self.news.can_share.load(Ordering::Acquire) {
            let mut spares = self.spares();
            while let Some(at) = spares.iter().position(|spare| spare.len() == len) {
                let slab = spares.swap_remove(at);
                // One that is not shared any more is of no use.
                if let Some(place) = self.shares.find(&slab) {
                    return Some((slab, place));
                }
            }
        }
        let slab = self.slab(len)?.ok()?;
        let place = self.shares.find(&slab)?;
        Some((slab, place))
    }

    /// Keeps memory of a get for the next of its size, if it is shared, nobody else has it and there is room: what came first goes first.
    pub(super) fn recycle(&self, region: Region) {
        let Ok(slab) = region.try_thaw() else { return };
        if slab.len() as u64 > self.limit || self.shares.find(&slab).is_none() {
            return;
        }
        slab.join(JOINED);
        let mut spares = self.spares();
        spares.push(slab);
        let all = |spares: &Vec<Slab>| spares.iter().map(|spare| spare.len() as u64).sum::<u64>();
        while spares.len() > RECYCLED || all(&spares) > self.limit {
            spares.remove(0);
        }
    }

    fn spares(&self) -> MutexGuard<'_, Vec<Slab>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where bytes lie that the user shares already, with one use taken.
    pub(super) fn find(&self, data: &[u8]) -> Option<Passed> {
        if self.news.can_share.load(Ordering::Acquire) { self.shares.pass(data) } else { None }
    }

    /// Copies bytes to shared memory, a step at a time: where they are, with one use taken. `None`: send them.
    pub(super) async fn stage(&self, data: &[u8]) -> Option<Passed> {
        if !self.news.can_share.load(Ordering::Acquire) {
            return None;
        }
        let mut draft = {
            let mut staging = self.lock();
            let lost = self.news.lost.load(Ordering::Acquire);
            if self.staged_for.swap(lost, Ordering::AcqRel) != lost {
                staging.clear();
            }
            staging.begin(data.len(), &self.shares)?
        };
        for (i, part) in data.chunks(STEP).enumerate() {
            draft.fill(i * STEP, part);
            if data.len() > STEP {
                Turn::default().await;
            }
        }
        self.lock().finish(draft, data.len(), &self.shares)
    }

    fn lock(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets others run, under any runtime.
#[derive(Default)]
struct Turn {
    taken: bool,
}

impl Future for Turn {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.taken, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
