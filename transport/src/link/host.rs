//! Bulk lanes that a link serves on threads of its own.

use std::io;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::Stream;
use crate::connection::{Driver, ServedLane};

/// Serves bulk lanes, in place of their tasks.
pub trait BulkHost: Send + Sync {
    /// A place for one lane. `None`: there is none; the lane is served as a stream.
    ///
    /// # Errors
    /// The system's.
    fn seat(&self) -> io::Result<Option<Box<dyn BulkSeat>>>;
}

/// A place for one lane.
pub trait BulkSeat: Send {
    /// Makes the host look at the lane: something is to be sent, or the lane is to end.
    fn driver(&self) -> Arc<dyn Driver>;

    /// Serves a lane that was welcomed, and ends it. The answer comes, or its sender goes, when nothing of it is in flight any more;
    /// who stops waiting for that, and wakes the driver, ends the lane.
    fn serve(self: Box<Self>, stream: Arc<dyn Stream>, lane: Box<dyn ServedLane>) -> oneshot::Receiver<()>;
}

/// Wakes a driver when who waits for a hosted lane stops waiting.
pub(super) struct Waiting(pub(super) Arc<dyn Driver>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.wake();
    }
}
