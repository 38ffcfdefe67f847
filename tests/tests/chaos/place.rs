//! Where a server of a link listens, and how clients are let in.

use std::path::Path;
use std::sync::Arc;

use genie_tests::authority::Authority;
use genie_transport::link::Access;
use genie_transport::link::tls::{TlsClient, TlsServer};
use tempfile::TempDir;

/// A place for a server, as long as this value lives.
pub(crate) struct Place {
    /// What to listen on.
    pub(crate) listen: String,
    /// Where the certificates are, for a link that has some; else empty.
    pub(crate) certificates: String,
    _folder: TempDir,
    _authority: Option<Authority>,
}

impl Place {
    /// A fresh one.
    pub(crate) fn of(scheme: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listen = match scheme {
            "shm" => format!("shm://{}/genie", folder.path().display()),
            // No device has a loopback address: whoever runs this says which it has.
            "rdma" => format!("rdma://{}:0", std::env::var("GENIE_RDMA_ADDRESS").expect("an RDMA device's address")),
            _ => format!("{scheme}://127.0.0.1:0"),
        };
        let authority = ["tcps", "urings"].contains(&scheme).then(|| {
            let authority = Authority::new();
            authority.sign(HOST, DAYS);
            authority
        });
        let certificates = authority.as_ref().map_or_else(String::new, |a| a.folder().display().to_string());
        Self { listen, certificates, _folder: folder, _authority: authority }
    }
}

const HOST: &str = "127.0.0.1";
const DAYS: i64 = 30;

/// Whom a client trusts, by the certificates of a place.
pub(crate) fn trust(certificates: &str) -> Option<TlsClient> {
    let load = || TlsClient::load(&Path::new(certificates).join("ca.pem"), None).expect("a CA");
    (!certificates.is_empty()).then(load)
}

/// Whom a server lets in, by the certificates of a place.
pub(crate) fn access(certificates: &str) -> Access {
    let file = |end: &str| Path::new(certificates).join(format!("{HOST}{DAYS}.{end}"));
    let load = || Arc::new(TlsServer::load(&file("pem"), &file("key"), None).expect("a certificate"));
    // RDMA has no loopback: its tests run on a network of their own.
    Access { tls: (!certificates.is_empty()).then(load), ..Access::anybody() }
}
