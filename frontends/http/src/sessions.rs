//! The door's own sessions on the server: one for each token, so that quotas and rights are those that every client has. One that is not
//! used for a while is closed: it counts among those that the token may have.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use genie_transport::Uri;
use genie_transport::auth::Token;
use genie_transport::client::{ClientError, ConnectOptions, DeviceInfo, Session};
use tokio::sync::OnceCell;

use crate::error::{Failure, ends_session};
use crate::programs::Programs;

/// Sessions at a time: of more tokens, the one that was used least recently is closed.
const MOST: usize = 64;
/// Shared memory of a session that tensors are copied to on their way: a larger tensor goes in slices.
const STAGING: u64 = 256 << 20;
/// A session outlives the door by this.
const LEASE_MS: u32 = 10_000;
/// The server is this very process: it answers at once or never.
const PATIENCE: Duration = Duration::from_secs(5);

/// All of them.
#[derive(Debug)]
pub(crate) struct Sessions {
    server: Uri,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// By the token's name; none: of everybody.
    by_name: HashMap<Option<String>, Slot>,
    uses: u64,
}

#[derive(Debug)]
struct Slot {
    token: Option<Arc<Token>>,
    cell: Arc<OnceCell<Arc<Opened>>>,
    used: u64,
    last: Instant,
}

/// An open session.
pub(crate) struct Opened {
    pub(crate) session: Session,
    /// The devices that it may use: at least one.
    pub(crate) devices: Vec<DeviceInfo>,
    pub(crate) programs: Programs,
}

impl Sessions {
    pub(crate) fn new(server: Uri) -> Self {
        Self { server, open: Mutex::default() }
    }

    /// The session of a token; opened if it is not.
    pub(crate) async fn of(&self, token: Option<Arc<Token>>) -> Result<Arc<Opened>, Failure> {
        let cell = self.slot(token.clone());
        Ok(cell.get_or_try_init(|| self.open(token, STAGING)).await?.clone())
    }

    /// The session of a token for a question: if none is open, one that is closed after it.
    pub(crate) async fn brief(&self, token: Option<Arc<Token>>) -> Result<Arc<Opened>, Failure> {
        let name = token.as_ref().map(|token| token.name.clone());
        let open =
            self.lock().by_name.get(&name).filter(|slot| slot.token == token).and_then(|s| s.cell.get().cloned());
        match open {
            Some(open) => Ok(open),
            None => self.open(token, 0).await,
        }
    }

    /// Closes those that nobody uses, and has not for so long.
    pub(crate) fn close_idle(&self, most: Duration) {
        let now = Instant::now();
        self.lock().by_name.retain(|_, slot| {
            let in_use = slot.cell.get().is_none_or(|opened| Arc::strong_count(opened) > 1);
            if in_use {
                slot.last = now;
            }
            now.saturating_duration_since(slot.last) < most
        });
    }

    /// What became of a request. A session that is of no use any more is forgotten: the next request opens another.
    pub(crate) fn seen<T>(&self, opened: &Arc<Opened>, result: Result<T, ClientError>) -> Result<T, Failure> {
        if result.as_ref().is_err_and(ends_session) {
            self.lock().by_name.retain(|_, slot| !slot.cell.get().is_some_and(|other| Arc::ptr_eq(other, opened)));
        }
        Ok(result?)
    }

    fn slot(&self, token: Option<Arc<Token>>) -> Arc<OnceCell<Arc<Opened>>> {
        let mut open = self.lock();
        open.uses += 1;
        let used = open.uses;
        let name = token.as_ref().map(|token| token.name.clone());
        if let Some(slot) = open.by_name.get_mut(&name).filter(|slot| slot.token == token) {
            (slot.used, slot.last) = (used, Instant::now());
            return slot.cell.clone();
        }
        if open.by_name.len() >= MOST
            && let Some(oldest) = open.by_name.iter().min_by_key(|(_, slot)| slot.used).map(|(name, _)| name.clone())
        {
            // Those who use it go on; it ends with the last of them.
            open.by_name.remove(&oldest);
        }
        let cell = Arc::new(OnceCell::new());
        open.by_name.insert(name, Slot { token, cell: cell.clone(), used, last: Instant::now() });
        cell
    }

    async fn open(&self, token: Option<Arc<Token>>, staging: u64) -> Result<Arc<Opened>, Failure> {
        let mut options = ConnectOptions { staging, ..ConnectOptions::default() };
        options.client.token = token;
        options.client.lease_ms = LEASE_MS;
        options.client.reconnect_for = PATIENCE;
        let session = Session::connect(&self.server, options).await?;
        let devices = session.devices().await?;
        if devices.is_empty() {
            return Err(Failure::new(
                axum::http::StatusCode::FORBIDDEN,
                "this token may use none of the server's devices",
            ));
        }
        let programs = Programs::new(session.clone(), tokio::runtime::Handle::current());
        Ok(Arc::new(Opened { session, devices, programs }))
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("devices", &self.devices).finish_non_exhaustive()
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // Nobody waits for it: should it fail, the session ends with its lease.
        let session = self.session.clone();
        self.programs.runtime().spawn(async move {
            if let Err(error) = session.close().await {
                tracing::debug!(%error, "a session of the HTTP door ends with its lease");
            }
        });
    }
}
