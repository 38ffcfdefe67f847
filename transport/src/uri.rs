//! Where a server is: `tcp://host:port`, `tcps://host:port`, `rdma://host:port`, `shm:///path/to/socket`, or
//! `genie://host:port` for whichever link is best.

use std::str::FromStr;

use crate::wire::LinkScheme;

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Uri {
    /// `tcp://host:port`; an IPv6 address stands in brackets.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// `tcps://host:port`: TLS 1.3 over TCP.
    Tls {
        /// Name or address; the server's certificate is for it.
        host: String,
        /// Port.
        port: u16,
    },
    /// `rdma://host:port`: the address of an RDMA device. What it carries is not encrypted.
    #[cfg(feature = "rdma")]
    Rdma {
        /// Name or address.
        host: String,
        /// Port, of the connection manager's TCP port space.
        port: u16,
    },
    /// `uring://host:port`: as tcp, and the same bytes, with io_uring on this side.
    #[cfg(all(feature = "uring", target_os = "linux"))]
    Uring {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// `urings://host:port`: as tcps, and the same bytes, with io_uring under the bulk lanes of this side.
    #[cfg(all(feature = "uring", target_os = "linux"))]
    UringTls {
        /// Name or address; the server's certificate is for it.
        host: String,
        /// Port.
        port: u16,
    },
    /// `shm:///path/to/socket`: shared memory on this host.
    Shm {
        /// Of the socket; absolute.
        path: String,
    },
    /// `genie://host:port`, or `genie://host:port?link=shm`: a server that listens there over TCP or TLS, reached over the best
    /// of the links that both ends have, or over that one.
    Genie {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
        /// This link or none.
        link: Option<LinkScheme>,
    },
}

/// Why an address is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// No `scheme://`.
    #[error("'{0}' is no address: write tcp://HOST:PORT, for example tcp://127.0.0.1:7070, or shm:///PATH")]
    NoScheme(String),
    /// A scheme that this build does not have.
    #[error("this build has no link for '{0}://': use tcp://HOST:PORT or shm:///PATH")]
    Scheme(String),
    /// Host or port is missing or wrong.
    #[error("'{0}' needs a host and a port from 0 to 65535: tcp://HOST:PORT, an IPv6 address in brackets")]
    HostPort(String),
    /// The path is missing, relative, or longer than a socket's may be.
    #[error("'{0}' needs the absolute path of a socket, of at most 107 bytes: shm:///tmp/genie.sock")]
    Path(String),
    /// After `?link=` stands something else.
    #[error(
        "'{0}' asks for a link that there is not: write genie://HOST:PORT, or add ?link= and one of tcp, tcps, shm, rdma, uring, urings"
    )]
    Link(String),
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| UriError::NoScheme(text.into()))?;
        if scheme == "shm" {
            // The system keeps a socket's path in 108 bytes, the last of them 0.
            let good = rest.starts_with('/') && rest.len() < 108 && !rest.ends_with('/') && !rest.contains('\0');
            return if good { Ok(Self::Shm { path: rest.into() }) } else { Err(UriError::Path(text.into())) };
        }
        if !SCHEMES.contains(&scheme) {
            return Err(UriError::Scheme(scheme.into()));
        }
        let (rest, link) = match rest.split_once("?link=").filter(|_| scheme == "genie") {
            Some((rest, link)) => (rest, Some(link.parse().map_err(|_| UriError::Link(text.into()))?)),
            None => (rest, None),
        };
        let bad = || UriError::HostPort(text.into());
        let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
        // Without brackets nobody could tell an IPv6 address's last group from a port.
        let host = match host.strip_prefix('[') {
            Some(address) => address.strip_suffix(']').filter(|a| a.contains(':')).ok_or_else(bad)?,
            None if host.contains(':') => return Err(bad()),
            None => host,
        };
        let port = port.parse().map_err(|_| bad())?;
        if host.is_empty() || host.contains(['/', '@', '?', '[', ']']) {
            return Err(bad());
        }
        let host = host.into();
        Ok(match scheme {
            #[cfg(all(feature = "uring", target_os = "linux"))]
            "uring" => Self::Uring { host, port },
            #[cfg(all(feature = "uring", target_os = "linux"))]
            "urings" => Self::UringTls { host, port },
            "tcps" => Self::Tls { host, port },
            #[cfg(feature = "rdma")]
            "rdma" => Self::Rdma { host, port },
            "genie" => Self::Genie { host, port, link },
            _ => Self::Tcp { host, port },
        })
    }
}

impl std::fmt::Display for Uri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } => at(f, "tcp", host, *port),
            #[cfg(all(feature = "uring", target_os = "linux"))]
            Self::Uring { host, port } => at(f, "uring", host, *port),
            #[cfg(all(feature = "uring", target_os = "linux"))]
            Self::UringTls { host, port } => at(f, "urings", host, *port),
            Self::Tls { host, port } => at(f, "tcps", host, *port),
            #[cfg(feature = "rdma")]
            Self::Rdma { host, port } => at(f, "rdma", host, *port),
            Self::Shm { path } => write!(f, "shm://{path}"),
            Self::Genie { host, port, link } => {
                at(f, "genie", host, *port)?;
                link.map_or(Ok(()), |link| write!(f, "?link={}", link.name()))
            }
        }
    }
}

/// The schemes that this build has.
const SCHEMES: &[&str] = &[
    #[cfg(all(feature = "uring", target_os = "linux"))]
    "uring",
    #[cfg(all(feature = "uring", target_os = "linux"))]
    "urings",
    "tcp",
    "genie",
    "tcps",
    #[cfg(feature = "rdma")]
    "rdma",
];

impl Uri {
    /// Whether what goes there is encrypted by TLS.
    pub fn is_encrypted(&self) -> bool {
        match self {
            Self::Tls { .. } => true,
            #[cfg(all(feature = "uring", target_os = "linux"))]
            Self::UringTls { .. } => true,
            _ => false,
        }
    }
}

fn at(f: &mut std::fmt::Formatter<'_>, scheme: &str, host: &str, port: u16) -> std::fmt::Result {
    if host.contains(':') { write!(f, "{scheme}://[{host}]:{port}") } else { write!(f, "{scheme}://{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were_written() {
        for good in [
            "tcp://127.0.0.1:7070",
            "tcp://[::1]:1",
            "tcps://gpu-host:7070",
            "tcp://gpu-host.lan:65535",
            "shm:///tmp/genie.sock",
            "genie://[::1]:7070",
            "genie://a:1?link=shm",
        ] {
            assert_eq!(good.parse::<Uri>().unwrap().to_string(), good);
        }
        for bad in [
            "127.0.0.1:1",
            "udp://a:1",
            "tcp://:1",
            "tcp://a",
            "tcp://a:65536",
            "tcp://a/b:1",
            "",
            "tcp://::1:1",
            "tcp://[::1",
            "tcp://[a]:1",
            "tcp://::1",
            "shm://tmp/genie.sock",
            "shm:///",
            "shm://",
            "tcp://a:1?link=shm",
            "genie://a",
            "genie://a:1?link=",
            "genie://a:1?link=pigeon",
            "genie://a:1?lane=shm",
        ] {
            assert!(bad.parse::<Uri>().is_err(), "{bad}");
        }
    }
}
