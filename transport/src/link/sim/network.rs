//! What a network does to its lanes, and what it did.

use std::time::Duration;

/// What a network does. Chances are in millionths.
#[derive(Clone, Debug)]
pub struct Network {
    /// The least and the most that bytes are on the way.
    pub delay: (Duration, Duration),
    /// That bytes are under way a hundred times longer.
    pub stall: u32,
    /// Bytes that a lane holds in each direction before it takes no more.
    pub window: usize,
    /// That a send or a receive moves only a part.
    pub split: u32,
    /// That a send flips a bit.
    pub corrupt: u32,
    /// That a send cuts its lane.
    pub cut: u32,
    /// That a send is the last that its lane carries in either direction, without either end being told.
    pub stand: u32,
    /// That a lane is refused when it is opened.
    pub refuse: u32,
}

impl Network {
    /// Quick, and without faults.
    pub fn calm() -> Self {
        let delay = (Duration::from_micros(5), Duration::from_micros(50));
        Self { delay, stall: 0, window: 1 << 20, split: 0, corrupt: 0, cut: 0, stand: 0, refuse: 0 }
    }
}

/// What was done to the lanes of a [`super::Sim`] so far: a test that means to meet a fault can see that it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Bytes that servers received.
    pub arrived: u64,
    /// Bytes that clients received.
    pub returned: u64,
    /// Control lanes that came up.
    pub connections: u64,
    /// Lanes that were refused.
    pub refused: u64,
    /// Lanes that were cut.
    pub cuts: u64,
    /// Lanes that carried nothing more from some time on, though nobody closed them.
    pub stands: u64,
    /// Bulk lanes that were lost, or could not be opened, while their connection went on.
    pub lanes_lost: u64,
    /// Bulk lanes that were opened in place of lost ones.
    pub lanes_reopened: u64,
    /// Bytes that were on their way over the lanes that were cut.
    pub lost_bytes: u64,
    /// Sends that took less than they could have.
    pub partial_sends: u64,
    /// Receives that took less than there was room for.
    pub partial_receives: u64,
    /// Sends that were under way a hundred times longer.
    pub stalls: u64,
    /// Sends in which a bit was flipped.
    pub flipped_bits: u64,
    /// Turns in which a slice waited for the request that it had overtaken on another lane.
    pub overtakings: u64,
    /// Servers that were lost or replaced.
    pub servers_lost: u64,
}
