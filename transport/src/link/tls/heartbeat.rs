//! Whether the other side has read what was sent: Heartbeat messages (RFC 6520), in records of TLS 1.3.
//!
//! The standard's own use is to keep a path alive. An answer comes from the other end of the channel, whatever stands in between, once
//! it has opened every record before the request, and that is what it is for here. A request carries a number, and the answer the
//! same one.

use std::io;

/// A message's bytes: kind, payload's length, payload, padding.
pub(super) const BYTES: usize = 1 + 2 + NUMBER + PADDING;

const NUMBER: usize = 8;
/// The least that the standard allows; its content is ignored.
const PADDING: usize = 16;

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heartbeat {
    /// Has this been read?
    Request(u64),
    /// It has.
    Response(u64),
}

impl Heartbeat {
    pub(super) fn encode(self) -> [u8; BYTES] {
        let (kind, number) = match self {
            Self::Request(number) => (REQUEST, number),
            Self::Response(number) => (RESPONSE, number),
        };
        let mut out = [0; BYTES];
        out[0] = kind;
        out[1..3].copy_from_slice(&(NUMBER as u16).to_be_bytes());
        out[3..3 + NUMBER].copy_from_slice(&number.to_be_bytes());
        out
    }

    /// Only messages with a number are known here: nobody who speaks to this end makes another.
    pub(super) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "a TLS heartbeat of an unknown form");
        let (&[kind, high, low], rest) = bytes.split_first_chunk::<3>().ok_or_else(bad)?;
        let (number, padding) = rest.split_first_chunk::<NUMBER>().ok_or_else(bad)?;
        if usize::from(u16::from_be_bytes([high, low])) != NUMBER || padding.len() != PADDING {
            return Err(bad());
        }
        let number = u64::from_be_bytes(*number);
        match kind {
            REQUEST => Ok(Self::Request(number)),
            RESPONSE => Ok(Self::Response(number)),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_and_nothing_else_is_one() {
        for message in [Heartbeat::Request(7), Heartbeat::Response(u64::MAX)] {
            let bytes = message.encode();
            assert_eq!(Heartbeat::decode(&bytes).unwrap(), message);
            for end in 0..bytes.len() {
                assert!(Heartbeat::decode(&bytes[..end]).is_err(), "{end} bytes");
            }
            assert!(Heartbeat::decode(&[&bytes[..], &[0]].concat()).is_err());
            // More said than there is: what lies behind it in memory is never answered with.
            for (at, value) in [(0, 0), (0, 3), (1, 1), (2, 9), (2, 255)] {
                let mut bytes = bytes;
                bytes[at] = value;
                assert!(Heartbeat::decode(&bytes).is_err(), "byte {at} as {value}");
            }
        }
    }
}
