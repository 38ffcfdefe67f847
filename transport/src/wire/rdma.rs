//! What the RDMA link says beside frames: in a connection's private data, in immediates.
//!
//! Both come from the peer by way of the device, and are as little to be trusted as any frame.

use zerocopy::IntoBytes;

use super::error::DecodeError;
use super::layout;

/// Bytes of private data in either direction.
pub const PRIVATE_BYTES: usize = size_of::<layout::Private>();

/// What either side says of its queue pair while the connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Private {
    /// Messages that it has room for: as many may be sent before any is acknowledged.
    pub messages: u16,
    /// Bytes that a message may have.
    pub message_bytes: u32,
    /// From a client, the same for all lanes of a connection, and nobody else's to know: they share a protection domain.
    pub domain: [u8; 16],
}

const MAGIC: u16 = 0x4e47;

impl Private {
    /// Checks private data. What follows it is the connection manager's padding.
    ///
    /// # Errors
    /// [`DecodeError`]: the other side is no Genie, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let raw = layout::whole::<layout::Private>(bytes.get(..PRIVATE_BYTES).ok_or(DecodeError::Truncated)?)?;
        if raw.magic.get() != MAGIC {
            return Err(DecodeError::Range("the private data is not Genie's"));
        }
        if raw.version != super::VERSION {
            return Err(DecodeError::Version(raw.version));
        }
        layout::zero(&raw.zero, "private data")?;
        layout::zero(&raw.zero2, "private data")?;
        let (messages, message_bytes) = (raw.messages.get(), raw.message_bytes.get());
        // Fewer than these, and no credit could be given back.
        if !(4..=4096).contains(&messages) || !(256..=1 << 20).contains(&message_bytes) {
            return Err(DecodeError::Range("a receive ring outside its limits"));
        }
        Ok(Self { messages, message_bytes, domain: raw.domain })
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; PRIVATE_BYTES] {
        let raw = layout::Private {
            magic: MAGIC.into(),
            version: super::VERSION,
            zero: [0; 1],
            messages: self.messages.into(),
            zero2: [0; 2],
            message_bytes: self.message_bytes.into(),
            domain: self.domain,
        };
        let mut bytes = [0; PRIVATE_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }
}

/// The 32 bits that come with each message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Immediate {
    /// Messages that the sender has room for again.
    pub credits: u16,
    /// Nothing follows.
    pub end: bool,
    /// The slice of this window was written, and its head.
    pub window: Option<u8>,
}

const END: u32 = 1 << 16;
const WINDOW: u32 = 1 << 17;

impl Immediate {
    /// Checks an immediate. `written`: it came with a one-sided write, and must name a window; else it must not.
    ///
    /// # Errors
    /// [`DecodeError`]: the lane cannot be trusted any further.
    pub fn decode(raw: u32, written: bool) -> Result<Self, DecodeError> {
        let window = (raw & WINDOW != 0).then_some((raw >> 24) as u8);
        let spare = raw & 0x00fc_0000 | if window.is_none() { raw & 0xff00_0000 } else { 0 };
        if spare != 0 {
            return Err(DecodeError::Reserved("immediate"));
        }
        let end = raw & END != 0;
        if written != window.is_some() || (written && end) {
            return Err(DecodeError::Range("an immediate that does not fit its message"));
        }
        Ok(Self { credits: raw as u16, end, window })
    }

    /// The 32 bits.
    pub fn encode(self) -> u32 {
        let window = self.window.map_or(0, |w| WINDOW | u32::from(w) << 24);
        u32::from(self.credits) | if self.end { END } else { 0 } | window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_data_is_checked() {
        let good = Private { messages: 64, message_bytes: 4096, domain: [7; 16] };
        let mut padded = good.encode().to_vec();
        padded.resize(196, 0);
        assert_eq!(Private::decode(&padded), Ok(good));
        for (at, bad) in [(0, 0), (2, 9), (3, 1), (6, 1), (5, 0xff), (11, 0xff)] {
            let mut bytes = padded.clone();
            bytes[at] = bad;
            assert!(Private::decode(&bytes).is_err(), "byte {at}");
        }
        assert!(Private::decode(&padded[..PRIVATE_BYTES - 1]).is_err());
        let few = Private { messages: 3, ..good };
        assert!(Private::decode(&few.encode()).is_err());
    }

    #[test]
    fn every_immediate_is_one_or_is_refused() {
        for window in [None, Some(0), Some(255)] {
            for (credits, end) in [(0, false), (u16::MAX, false), (3, window.is_none())] {
                let immediate = Immediate { credits, end, window };
                assert_eq!(Immediate::decode(immediate.encode(), window.is_some()), Ok(immediate));
                assert!(Immediate::decode(immediate.encode(), window.is_none()).is_err());
            }
        }
        for bit in (18..24).chain(24..32) {
            assert!(Immediate::decode(1 << bit, false).is_err(), "bit {bit}");
        }
        assert!(Immediate::decode(WINDOW | END, true).is_err());
    }
}
