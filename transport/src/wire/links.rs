//! Which links a server offers: asked before anything else, by clients that are to choose one.

use zerocopy::IntoBytes;

use super::error::DecodeError;
use super::{layout, limits};

/// The question. It may be asked several times on a lane that has not greeted yet: how long answers take is how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskLinks {
    /// Drawn by the client; what the answer proves, it proves for this number.
    pub nonce: [u8; 16],
    /// Proves to a server on the same host that the client is on it, and tells any other nothing. Zeros: no proof.
    pub host: [u8; 16],
}

/// The answer. It names no host: whatever it says, a client goes nowhere but to the host that it asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    /// Proves that the server is on the client's host; zeros if it is not.
    pub host: [u8; 16],
    /// The server's life: the same from whichever link it is asked over.
    pub server: [u8; 16],
    /// Where else it listens.
    pub offers: Vec<LinkOffer>,
}

/// A place where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkOffer {
    /// Of the address.
    pub scheme: LinkScheme,
    /// Of the address; 0 where it has a path.
    pub port: u16,
    /// Of a socket, absolute; told on the same host alone.
    pub path: Option<String>,
}

/// The scheme of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum LinkScheme {
    /// `tcp://`
    Tcp = 1,
    /// `tcps://`
    Tcps = 2,
    /// `shm://`
    Shm = 3,
    /// `rdma://`
    Rdma = 4,
    /// `uring://`: the bytes of tcp, and a server whose bulk lanes are on rings.
    Uring = 5,
    /// `urings://`: the bytes of tcps, the server's bulk lanes on rings.
    Urings = 6,
}

impl LinkScheme {
    /// Every scheme.
    pub const ALL: &'static [Self] = &[Self::Tcp, Self::Tcps, Self::Shm, Self::Rdma, Self::Uring, Self::Urings];

    /// As it stands in an address.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tcps => "tcps",
            Self::Shm => "shm",
            Self::Rdma => "rdma",
            Self::Uring => "uring",
            Self::Urings => "urings",
        }
    }

    fn has_path(self) -> bool {
        self == Self::Shm
    }
}

impl std::str::FromStr for LinkScheme {
    type Err = UnknownScheme;

    fn from_str(text: &str) -> Result<Self, UnknownScheme> {
        Self::ALL.iter().copied().find(|s| s.name() == text).ok_or(UnknownScheme)
    }
}

/// A scheme that there is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such link: write tcp, tcps, shm, rdma, uring or urings")]
pub struct UnknownScheme;

impl AskLinks {
    pub(super) fn decode(meta: &[u8]) -> Result<Self, DecodeError> {
        let raw = layout::whole::<layout::AskLinks>(meta)?;
        Ok(Self { nonce: raw.nonce, host: raw.host })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(layout::AskLinks { nonce: self.nonce, host: self.host }.as_bytes());
    }
}

impl Links {
    pub(super) fn decode(meta: &[u8]) -> Result<Self, DecodeError> {
        let (raw, mut rest) = layout::take::<layout::Links>(meta)?;
        layout::zero(&raw.zero, "links")?;
        let count = raw.count.get() as usize;
        if count > limits::LINKS {
            let (length, limit) = (count as u64, limits::LINKS as u64);
            return Err(DecodeError::TooLong { what: "number of links", length, limit });
        }
        let mut offers = Vec::with_capacity(count);
        for _ in 0..count {
            let (offer, after) = LinkOffer::take(rest)?;
            offers.extend(offer);
            rest = after;
        }
        if !rest.is_empty() {
            return Err(DecodeError::Trailing(rest.len()));
        }
        Ok(Self { host: raw.host, server: raw.server, offers })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        // More than a peer would take is not said.
        let offers = &self.offers[..self.offers.len().min(limits::LINKS)];
        let count = offers.len() as u32;
        let raw = layout::Links { host: self.host, server: self.server, count: count.into(), zero: 0.into() };
        out.extend_from_slice(raw.as_bytes());
        offers.iter().for_each(|offer| offer.write(out));
    }
}

impl LinkOffer {
    /// `None` for a scheme that this version does not know: a newer server offers what an older client leaves alone.
    fn take(bytes: &[u8]) -> Result<(Option<Self>, &[u8]), DecodeError> {
        let (raw, rest) = layout::take::<layout::LinkField>(bytes)?;
        layout::zero(&raw.zero, "link")?;
        layout::zero(&raw.zero2, "link")?;
        let (path, rest) = rest.split_at_checked(raw.path_len.get().into()).ok_or(DecodeError::Truncated)?;
        let Some(&scheme) = LinkScheme::ALL.iter().find(|s| **s as u8 == raw.scheme) else { return Ok((None, rest)) };
        let (port, path) = (raw.port.get(), std::str::from_utf8(path).map_err(|_| DecodeError::Name)?);
        let offer = Self { scheme, port, path: (!path.is_empty()).then(|| path.to_owned()) };
        if offer.is_well_formed() {
            Ok((Some(offer), rest))
        } else {
            Err(DecodeError::Range("a link needs a port, or the absolute path of a socket"))
        }
    }

    fn is_well_formed(&self) -> bool {
        match &self.path {
            Some(path) => {
                let absolute = path.starts_with('/') && path.len() <= limits::SOCKET_PATH_BYTES && !path.contains('\0');
                self.scheme.has_path() && self.port == 0 && absolute
            }
            None => !self.scheme.has_path() && self.port != 0,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let path = self.path.as_deref().unwrap_or_default();
        // A path that is longer than a socket's can be does not fit a listener either.
        let path_len = u16::try_from(path.len()).unwrap_or(0);
        let raw = layout::LinkField {
            scheme: self.scheme as u8,
            zero: 0,
            port: self.port.into(),
            path_len: path_len.into(),
            zero2: 0.into(),
        };
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(&path.as_bytes()[..path_len.into()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(offers: &[LinkOffer]) -> Vec<u8> {
        let mut out = Vec::new();
        Links { host: [1; 16], server: [2; 16], offers: offers.to_vec() }.write(&mut out);
        out
    }

    fn offer(scheme: LinkScheme, port: u16, path: Option<&str>) -> LinkOffer {
        LinkOffer { scheme, port, path: path.map(str::to_owned) }
    }

    #[test]
    fn what_was_offered_is_read() {
        let offers = [
            offer(LinkScheme::Tcp, 7070, None),
            offer(LinkScheme::Shm, 0, Some("/run/genie.sock")),
            offer(LinkScheme::Rdma, 1, None),
        ];
        assert_eq!(Links::decode(&links(&offers)).unwrap().offers, offers);
        assert_eq!(Links::decode(&links(&[])).unwrap().offers, []);
    }

    #[test]
    fn a_scheme_of_later_versions_is_left_alone() {
        let mut bytes = links(&[offer(LinkScheme::Tcp, 1, None), offer(LinkScheme::Tcps, 2, None)]);
        bytes[size_of::<layout::Links>()] = 200;
        assert_eq!(Links::decode(&bytes).unwrap().offers, [offer(LinkScheme::Tcps, 2, None)]);
    }

    #[test]
    fn what_cannot_be_an_address_is_refused() {
        for bad in [
            offer(LinkScheme::Tcp, 0, None),
            offer(LinkScheme::Tcp, 1, Some("/a")),
            offer(LinkScheme::Tcp, 0, Some("/a")),
            offer(LinkScheme::Shm, 0, None),
            offer(LinkScheme::Shm, 1, Some("/a")),
            offer(LinkScheme::Shm, 0, Some("relative")),
            offer(LinkScheme::Shm, 0, Some("/nul\0")),
            offer(LinkScheme::Shm, 0, Some(&format!("/{}", "x".repeat(limits::SOCKET_PATH_BYTES)))),
        ] {
            assert!(matches!(Links::decode(&links(std::slice::from_ref(&bad))), Err(DecodeError::Range(_))), "{bad:?}");
        }
        let whole = links(&[offer(LinkScheme::Shm, 0, Some("/run/genie.sock"))]);
        for cut in 0..whole.len() {
            assert!(Links::decode(&whole[..cut]).is_err(), "{cut}");
        }
        let mut longer = whole;
        longer.push(0);
        assert_eq!(Links::decode(&longer), Err(DecodeError::Trailing(1)));
        let mut many = links(&[]);
        many[32..36].copy_from_slice(&(limits::LINKS as u32 + 1).to_le_bytes());
        assert!(matches!(Links::decode(&many), Err(DecodeError::TooLong { .. })));
    }
}
