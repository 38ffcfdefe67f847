//! Who may reach a server, whatever the link.

use std::net::IpAddr;
use std::sync::Arc;

use super::tls::TlsServer;
use crate::auth::Guard;
use crate::uri::Uri;

/// What a server's addresses are held to. The default asks nobody and is for this machine alone.
#[derive(Clone, Debug)]
pub struct Access {
    /// Asks for tokens, and takes note of who was refused: the same as in the service's [`crate::connection::Settings`].
    pub guard: Arc<Guard>,
    /// For `tcps://` and `urings://`.
    pub tls: Option<Arc<TlsServer>>,
    /// Links that do not encrypt may be reached from other machines, if tokens say who comes.
    pub plaintext_off_host: bool,
    /// Anybody may come from anywhere: for tests on networks of their own, and never for a server that has anything to lose.
    pub anybody: bool,
}

impl Default for Access {
    fn default() -> Self {
        Self { guard: Arc::new(Guard::open()), tls: None, plaintext_off_host: false, anybody: false }
    }
}

/// Why a server does not listen at an address that other machines can reach.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Exposed {
    /// Nobody would be asked who they are.
    #[error(
        "refusing to listen on {0}: other machines can reach it, and nobody would be asked who they are. Make a token (genie token \
         new NAME --tokens FILE) and give --tokens FILE, or give --tls-cert, --tls-key and --client-ca with tcps://; or listen on \
         127.0.0.1 or [::1], or through an SSH tunnel"
    )]
    Unauthenticated(Uri),
    /// Whoever is on the way could read and change everything.
    #[error(
        "refusing to listen on {0}: other machines can reach it, and nothing would be encrypted. Use tcps:// with --tls-cert and \
         --tls-key; or, where the network itself is trusted, say so by --plaintext-off-host"
    )]
    Plaintext(Uri),
    /// RDMA has no encryption of its own.
    #[error(
        "refusing to listen on {0}: RDMA payloads are never encrypted, and neither is what is said about them. Where the network \
         itself is trusted, say so by --plaintext-off-host; else use tcps://"
    )]
    Rdma(Uri),
    /// A `tcps://` address without a certificate.
    #[error("cannot listen on {0} without a certificate: give --tls-cert FILE and --tls-key FILE")]
    NoCertificate(Uri),
}

impl Access {
    /// Anybody, from anywhere; see [`Self::anybody`].
    pub fn anybody() -> Self {
        Self { anybody: true, ..Self::default() }
    }

    /// Whether a server may listen at `uri`, which is at this address; `None`: only this machine has it.
    ///
    /// # Errors
    /// [`Exposed`] says what is missing.
    pub fn check(&self, uri: &Uri, address: Option<IpAddr>) -> Result<(), Exposed> {
        let encrypted = uri.is_encrypted();
        if encrypted && self.tls.is_none() {
            return Err(Exposed::NoCertificate(uri.clone()));
        }
        if self.anybody || address.is_none_or(|address| address.is_loopback()) {
            return Ok(());
        }
        let certificates = encrypted && self.tls.as_ref().is_some_and(|tls| tls.asks_for_certificates());
        if !certificates && !self.guard.asks_for_tokens() {
            return Err(Exposed::Unauthenticated(uri.clone()));
        }
        match uri {
            _ if encrypted || self.plaintext_off_host => Ok(()),
            #[cfg(feature = "rdma")]
            Uri::Rdma { .. } => Err(Exposed::Rdma(uri.clone())),
            _ => Err(Exposed::Plaintext(uri.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Token, Tokens};

    #[test]
    fn off_host_takes_authentication_and_encryption_or_a_word() {
        let tcp: Uri = "tcp://192.0.2.1:7070".parse().unwrap();
        let tls: Uri = "tcps://192.0.2.1:7070".parse().unwrap();
        let (here, there) = (Some("127.0.0.1".parse().unwrap()), Some("192.0.2.1".parse().unwrap()));
        let open = Access::default();
        assert_eq!(open.check(&tcp, here), Ok(()));
        assert_eq!(open.check(&tcp, None), Ok(()));
        assert_eq!(open.check(&tcp, there), Err(Exposed::Unauthenticated(tcp.clone())));
        assert_eq!(open.check(&tls, here), Err(Exposed::NoCertificate(tls.clone())));
        // The flag alone lets nobody in unasked.
        let bold = Access { plaintext_off_host: true, ..Access::default() };
        assert_eq!(bold.check(&tcp, there), Err(Exposed::Unauthenticated(tcp.clone())));
        let guard = Arc::new(Guard::with_tokens(Tokens::new([Token::draw("a").unwrap()])));
        let trusting = Access { guard: guard.clone(), plaintext_off_host: true, ..Access::default() };
        let asks = Access { guard, ..Access::default() };
        assert_eq!(asks.check(&tcp, there), Err(Exposed::Plaintext(tcp.clone())));
        assert_eq!(trusting.check(&tcp, there), Ok(()));
        #[cfg(feature = "rdma")]
        {
            let rdma: Uri = "rdma://192.0.2.1:7070".parse().unwrap();
            assert_eq!(open.check(&rdma, there), Err(Exposed::Unauthenticated(rdma.clone())));
            assert_eq!(asks.check(&rdma, there), Err(Exposed::Rdma(rdma.clone())));
            assert_eq!(trusting.check(&rdma, there), Ok(()));
        }
        assert_eq!(Access::anybody().check(&tcp, there), Ok(()));
    }
}
