//! What the suite needs of a link.

use bytes::Bytes;
use genie_tests::proxy::{LaneFault, Proxy};
use genie_transport::client::{ClientError, Tensor};
use genie_transport::wire::{ContentHash, Handle, Offered, OpenedSession, TensorSpec};

/// A server, and what lies between it and its clients.
pub(crate) trait Link {
    /// One client.
    type Client: Client;

    /// Whether this machine has it.
    fn is_here() -> bool {
        true
    }

    /// A server with the usual settings: [`EAGER`], [`SLICE`].
    fn start() -> Self;

    /// A client; with a session to take up, if one is given.
    fn connect(&self, resume: Option<OpenedSession>) -> Self::Client;

    /// Bytes that came to the server, of all clients.
    fn arrived(&self) -> u64;

    /// Breaks every connection after about `first` more bytes, and then again after each `each`. `u64::MAX`: never.
    fn cut_after(&self, first: u64, each: u64);

    /// How often that has happened.
    fn cuts(&self) -> u64;

    /// Holds bulk back, so that whatever waits behind it waits for ever; or lets it go on.
    fn hold_bulk(&self, held: bool);

    /// From here on bits are flipped on the way, now and then. For clients that connect later.
    fn corrupt(&self);

    /// How many were.
    fn flipped(&self) -> u64;
}

/// A link whose bulk lanes can break one by one.
pub(crate) trait Lanes: Link {
    /// A client with so many bulk lanes.
    fn connect_lanes(&self, lanes: u32) -> Self::Client;

    /// After about so many more bytes, up and down together, this happens to one of the bulk lanes: once.
    fn lane_fault_after(&self, bytes: u64, fault: LaneFault);

    /// How often that has happened.
    fn lane_faults(&self) -> u64;

    /// Connections, and bulk lanes, that were opened so far.
    fn opened_lanes(&self) -> (u64, u64);
}

/// A link whose lanes pass a relay, which can slow one of them down.
pub(crate) trait Relayed: Lanes {
    /// The relay.
    fn relay(&self) -> &Proxy;
}

/// A client. Requests that are started are under way together.
pub(crate) trait Client {
    /// A request under way.
    type Ticket;

    fn opened(&mut self) -> OpenedSession;
    fn echo(&mut self, bytes: &[u8]) -> Result<Vec<u8>, ClientError>;
    fn start_put(&mut self, spec: &TensorSpec, data: Bytes) -> Self::Ticket;
    fn finish_put(&mut self, ticket: Self::Ticket) -> Result<Tensor, ClientError>;
    fn put_range(&mut self, tensor: &Tensor, offset: u64, data: Bytes) -> Result<Tensor, ClientError>;
    fn start_get(&mut self, handle: Handle, offset: u64, length: u64) -> Self::Ticket;
    fn finish_get(&mut self, ticket: Self::Ticket) -> Result<Vec<u8>, ClientError>;
    fn put_weight(&mut self, spec: &TensorSpec, data: Bytes) -> Result<Tensor, ClientError>;
    /// By the hash of all where the server knows that, else one by one.
    fn offer(&mut self, entries: &[(ContentHash, TensorSpec)]) -> Result<Vec<Offered>, ClientError>;
    fn free(&mut self, handle: Handle) -> Result<(), ClientError>;
    fn stats(&mut self) -> Result<Vec<(String, u64)>, ClientError>;
    /// Makes so many tokens with the tiny model, but cancels after the first `wanted`: how many came, and how it ended.
    fn generate(&mut self, max_new: u32, wanted: usize) -> (usize, Result<(), ClientError>);

    /// So many greedy steps of the tiny model from token 1 on, each on the token of the one before: that many beside the one
    /// that is waited for are under way.
    fn steps(&mut self, count: u32, ahead: usize) -> Result<Vec<i32>, ClientError>;

    /// Relu of each of these `f32 [4]`: they are named by runs of one binding, which are under way together.
    fn relu(&mut self, tensors: &[Tensor]) -> Result<Vec<Vec<u8>>, ClientError>;

    fn put(&mut self, spec: &TensorSpec, data: Bytes) -> Result<Tensor, ClientError> {
        let ticket = self.start_put(spec, data);
        self.finish_put(ticket)
    }

    fn get(&mut self, tensor: &Tensor) -> Result<Vec<u8>, ClientError> {
        let ticket = self.start_get(tensor.handle, 0, tensor.spec.bytes());
        self.finish_get(ticket)
    }
}

/// Payloads up to this many bytes travel inline.
pub(crate) const EAGER: usize = 16 << 10;
/// Bytes of a slice.
pub(crate) const SLICE: usize = 64 << 10;
