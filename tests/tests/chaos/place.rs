//! Where a server of a link listens.

use tempfile::TempDir;

/// A place for a server, as long as this value lives.
pub(crate) struct Place {
    /// What to listen on.
    pub(crate) listen: String,
    _folder: TempDir,
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
        Self { listen, _folder: folder }
    }
}
