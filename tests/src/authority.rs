//! Certificates made for a test.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// An authority, and what it has signed, as files.
pub struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A fresh one, with a folder of its own.
    ///
    /// # Panics
    /// If there is no place for it.
    #[expect(clippy::new_without_default, reason = "it draws a key and writes a file")]
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("certificates can be made");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("certificates can be made"))
            .expect("certificates can be made");
        let folder = tempfile::tempdir().expect("certificates can be made");
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("certificates can be made");
        Self { folder, issuer }
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file that says whom to trust.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for `host` that ends so many days from now, and its key.
    ///
    /// # Panics
    /// If no certificate can be for that host.
    pub fn sign(&self, host: &str, days: i64) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("certificates can be made");
        let today = time::OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (today - time::Duration::days(10), today + time::Duration::days(days));
        let key = KeyPair::generate().expect("certificates can be made");
        let cert = params.signed_by(&key, &self.issuer).expect("certificates can be made");
        let file = |end: &str| self.folder.path().join(format!("{host}{days}.{end}"));
        std::fs::write(file("pem"), cert.pem()).expect("certificates can be made");
        std::fs::write(file("key"), key.serialize_pem()).expect("certificates can be made");
        (file("pem"), file("key"))
    }
}
