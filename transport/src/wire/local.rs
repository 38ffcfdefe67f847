//! Messages on the Unix socket beside shared memory.

use zerocopy::IntoBytes;

use super::error::DecodeError;
use super::layout;

/// Bytes of a message.
pub const LOCAL_BYTES: usize = size_of::<layout::Local>();

/// `GNSM`, as the bytes stand on the wire.
const MAGIC: u32 = u32::from_le_bytes(*b"GNSM");

/// Version of shared memory's layout and of these messages. 1 had rings of bytes, 2 has rings of records, 3 an era beside the count of
/// uses.
const VERSION: u64 = 3;

/// A message on the Unix socket of a lane in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// The client's first: a control lane, over rings in shared memory.
    Control,
    /// The client's first: a bulk lane, over this very socket; what follows are its bytes.
    Bulk,
    /// The server's answer to [`Self::Control`]; with it comes the rings' memory.
    Rings {
        /// Its bytes.
        bytes: u64,
    },
    /// The server's answer to a process of another user.
    Refused {
        /// Who the server runs as.
        server: u32,
        /// Who it takes the client for.
        client: u32,
    },
    /// The server's answer to a client of another version.
    Version {
        /// The one that the server speaks.
        spoken: u64,
    },
    /// There is something in a ring, or room.
    Wake,
    /// The client shares memory for tensors; it comes with the message.
    Share {
        /// Chosen by the client; never used twice on a connection.
        region: u64,
        /// Bytes of the file.
        bytes: u64,
        /// Of its uses: those that the server gives back are of this one.
        era: u32,
    },
    /// The client shares it no more. Residents that lie in it stay.
    Unshare {
        /// Which.
        region: u64,
    },
}

impl Local {
    /// What a client of another version is told.
    pub const OUR_VERSION: Self = Self::Version { spoken: VERSION };

    /// Checks a message.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong; the lane ends.
    pub fn decode(bytes: &[u8; LOCAL_BYTES]) -> Result<Self, DecodeError> {
        let raw = layout::whole::<layout::Local>(bytes)?;
        if raw.magic.get() != MAGIC {
            return Err(DecodeError::Range("a message on the socket beside shared memory does not begin with GNSM"));
        }
        layout::zero(&raw.zero, "local")?;
        let (first, second, third) = (raw.first.get(), raw.second.get(), raw.third.get());
        let user = |id: u64| u32::try_from(id).map_err(|_| DecodeError::Range("a user's number has 32 bits"));
        let (message, rest): (Self, &[u64]) = match raw.kind {
            1 | 2 if first != VERSION => return Err(DecodeError::Version(u8::try_from(first).unwrap_or(u8::MAX))),
            1 => (Self::Control, &[second, third]),
            2 => (Self::Bulk, &[second, third]),
            3 => (Self::Rings { bytes: first }, &[second, third]),
            4 => (Self::Refused { server: user(first)?, client: user(second)? }, &[third]),
            5 => (Self::Wake, &[first, second, third]),
            6 => match u32::try_from(third) {
                Ok(era) => (Self::Share { region: first, bytes: second, era }, &[]),
                Err(_) => return Err(DecodeError::Range("an era of uses has 32 bits")),
            },
            7 => (Self::Unshare { region: first }, &[second, third]),
            8 => (Self::Version { spoken: first }, &[second, third]),
            other => return Err(DecodeError::Enum { what: "local message", value: u32::from(other) }),
        };
        if rest.iter().any(|&field| field != 0) {
            return Err(DecodeError::Reserved("fields of a local message"));
        }
        Ok(message)
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; LOCAL_BYTES] {
        let (kind, first, second) = match *self {
            Self::Share { region, bytes, .. } => (6, region, bytes),
            Self::Control => (1, VERSION, 0),
            Self::Bulk => (2, VERSION, 0),
            Self::Rings { bytes } => (3, bytes, 0),
            Self::Refused { server, client } => (4, u64::from(server), u64::from(client)),
            Self::Wake => (5, 0, 0),
            Self::Unshare { region } => (7, region, 0),
            Self::Version { spoken } => (8, spoken, 0),
        };
        let third = if let Self::Share { era, .. } = *self { u64::from(era) } else { 0 };
        let raw = layout::Local {
            magic: MAGIC.into(),
            kind,
            zero: [0; 3],
            first: first.into(),
            second: second.into(),
            third: third.into(),
        };
        let mut bytes = [0; LOCAL_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_come_back() {
        for message in [
            Local::Control,
            Local::Bulk,
            Local::Rings { bytes: 4096 },
            Local::Refused { server: 0, client: u32::MAX },
            Local::Wake,
            Local::Share { region: 7, bytes: u64::MAX, era: u32::MAX },
            Local::Unshare { region: 1 },
            Local::Version { spoken: 4 },
        ] {
            assert_eq!(Local::decode(&message.encode()), Ok(message));
        }
    }

    /// Rings were of bytes once. Either end would take the other's for nothing at all, and wait.
    #[test]
    fn another_version_is_told_from_nonsense() {
        for lane in [Local::Control, Local::Bulk] {
            for version in [0, 2, 4_u8] {
                let mut bytes = lane.encode();
                bytes[8] = version;
                assert_eq!(Local::decode(&bytes), Err(DecodeError::Version(version)));
            }
        }
    }

    proptest! {
        #[test]
        fn other_bytes_are_refused(at in 0..LOCAL_BYTES, flip in 1..=255_u8) {
            let mut bytes = Local::Wake.encode();
            bytes[at] ^= flip;
            prop_assert!(Local::decode(&bytes) != Ok(Local::Wake));
            let _ = Local::decode(&[flip; LOCAL_BYTES]);
        }
    }
}
