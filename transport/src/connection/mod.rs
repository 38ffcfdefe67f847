//! The protocol as state machines without I/O.
//!
//! Nothing here owns a socket, reads a clock, sleeps or spawns. A link's driver moves bytes and says what time it is:
//!
//! | side | control lane | bulk lanes |
//! |---|---|---|
//! | server | [`ControlLane`] turns bytes into calls of a [`Service`]; a [`Peer`] takes the replies | [`BulkMachine`] |
//! | client | [`Client`] holds requests until they are answered, across reconnects | [`ClientLane`] |
//!
//! Both halves of a bulk lane are alike on both sides: [`BulkIn`] and [`BulkLane`], which takes slices from [`BulkOut`].
//!
//! Received bytes go into a buffer that the machine offers (`space`, `want`), then `filled` tells how many came. Bytes to send
//! go into a [`Sink`], which takes what it can. A transfer's payload is never in a buffer of the machine: [`BulkIn`] offers the
//! memory of a [`crate::memory::SliceLease`], and [`BulkOut`] hands the sender's own memory to the sink.

mod bulk_in;
mod bulk_machine;
mod bulk_out;
mod client;
mod client_lane;
mod control_lane;
mod framer;
mod lane_log;
mod lending;
mod links;
mod outbox;
mod peer;
mod requests;
mod seats;
mod service;
mod slots;
mod strangers;

pub use bulk_in::{BulkEvent, BulkIn, Landings, Loan, Place, Want};
pub use bulk_machine::{BulkMachine, Flushed};
pub use bulk_out::{BulkLane, BulkOut, OutSlice, Outgoing, Resent, Source, Taken, There};
pub use client::{Answer, Client, ClientError, ClientOptions, Counters, LaneCounts, LanePlan, SlicePlan};
pub use client_lane::ClientLane;
pub use control_lane::{ControlLane, LaneEnd, Step};
pub use framer::{Corrupted, Frame, Framer};
pub use lending::{Lending, ServedLane};
pub use links::{Offers, Side, same_host};
pub use outbox::{Outbox, Sink};
pub use peer::{Driver, Peer, Recorded, Recorder};
pub use requests::RequestId;
pub use seats::LaneSeat;
pub use service::{Directory, Noted, Service, Settings};
