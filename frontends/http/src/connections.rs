//! Who is connected.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The connections of a door: as many as it may have. For one more the oldest goes that waits for its client.
#[derive(Debug)]
pub(crate) struct Connections {
    most: usize,
    all: Mutex<BTreeMap<u64, Arc<Connection>>>,
    next: AtomicU64,
}

/// One of them.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    number: u64,
    /// Requests of it that came whole, and are not answered.
    working: AtomicU32,
    leave: Notify,
}

/// A place among the connections, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    connections: Arc<Connections>,
    pub(crate) connection: Arc<Connection>,
}

/// A request came whole: its connection is not one to be closed for another.
#[derive(Debug)]
pub(crate) struct Working(Arc<Connection>);

impl Connections {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, all: Mutex::default(), next: AtomicU64::new(0) })
    }

    /// A place for one more. `None`: there are as many as there may be, and the server works for each of them.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut all = self.lock();
        if all.len() >= self.most {
            let waits = |connection: &&Arc<Connection>| connection.working.load(Ordering::Acquire) == 0;
            let oldest = all.values().find(waits).map(|oldest| oldest.number)?;
            if let Some(oldest) = all.remove(&oldest) {
                oldest.leave.notify_one();
            }
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection { number, ..Connection::default() });
        all.insert(number, connection.clone());
        Some(Place { connections: self.clone(), connection })
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Connection>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// A request of it came whole.
    pub(crate) fn work(self: &Arc<Self>) -> Working {
        self.working.fetch_add(1, Ordering::AcqRel);
        Working(self.clone())
    }

    /// Another has its place.
    pub(crate) async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.working.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.connection.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn the_oldest_that_waits_makes_room() {
        let connections = Connections::new(3);
        let places: Vec<_> = (0..3).map(|_| connections.enter().unwrap()).collect();
        let working = places[0].connection.work();
        let newest = connections.enter().unwrap();
        let left = |place: &Place| place.connection.asked_to_leave().now_or_never().is_some();
        assert_eq!(places.iter().map(left).collect::<Vec<_>>(), [false, true, false]);
        let all: Vec<_> = [&places[2], &newest].map(|place| place.connection.work()).into();
        assert!(connections.enter().is_none(), "the server works for all of them");
        drop(working);
        assert!(connections.enter().is_some());
        drop((all, places, newest));
        assert_eq!(connections.count(), 0);
    }
}
