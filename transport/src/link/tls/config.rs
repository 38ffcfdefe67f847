//! Certificates and keys, from files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::auth::Trust;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFileError {
    /// A file cannot be read, or holds nothing of the kind.
    #[error("cannot use {what} {}: {source}", path.display())]
    File {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// What the files hold does not fit together.
    #[error("cannot use {what} {}: {reason}", path.display())]
    Unfit {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A certificate without its key, or the other way round.
    #[error("a certificate and its key come together: give --tls-cert and --tls-key")]
    Half,
    /// Nothing says whom to trust.
    #[error("tcps:// needs to know whom to trust: give --ca FILE, the certificate of who signed the server's")]
    NoCa,
}

/// A server's side.
#[derive(Debug)]
pub struct TlsServer {
    loaded: RwLock<Loaded>,
    asks_for_certificates: bool,
    files: Files,
}

/// What the files held.
#[derive(Clone, Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// Checks the certificates of clients, where they must show one.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

#[derive(Clone, Debug)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

/// A client's side.
#[derive(Clone, Debug)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
}

impl TlsServer {
    /// From PEM files: the certificate (with those between it and the authority), its key, and the authority that clients'
    /// certificates must come from; without that, clients need none.
    ///
    /// # Errors
    /// [`TlsFileError`].
    pub fn load(cert: &Path, key: &Path, client_ca: Option<&Path>) -> Result<Self, TlsFileError> {
        let files = Files { cert: cert.into(), key: key.into(), client_ca: client_ca.map(Path::to_path_buf) };
        let loaded = RwLock::new(files.server()?);
        Ok(Self { loaded, asks_for_certificates: client_ca.is_some(), files })
    }

    /// Reads the files again; new lanes use what stands there now.
    ///
    /// # Errors
    /// [`TlsFileError`]; what was there before goes on being used.
    pub fn reload(&self) -> Result<(), TlsFileError> {
        let loaded = self.files.server()?;
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// Whether clients must show a certificate.
    pub fn asks_for_certificates(&self) -> bool {
        self.asks_for_certificates
    }

    /// What it is now, for a door that speaks something else than Genie's protocol.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.loaded().config
    }

    fn loaded(&self) -> Loaded {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Trust for TlsServer {
    fn trusts(&self, certificates: &[Vec<u8>]) -> bool {
        let Some(verifier) = self.loaded().verifier else { return true };
        let mut shown = certificates.iter().map(|der| CertificateDer::from(der.as_slice()));
        let Some(own) = shown.next() else { return false };
        verifier.verify_client_cert(&own, &shown.collect::<Vec<_>>(), UnixTime::now()).is_ok()
    }
}

impl TlsClient {
    /// From PEM files: the authority to trust, and the client's own certificate and key where servers ask for one.
    ///
    /// # Errors
    /// [`TlsFileError`].
    pub fn load(ca: &Path, own: Option<(&Path, &Path)>) -> Result<Self, TlsFileError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| unfit("the authority", ca, &e))?
            .with_root_certificates(roots(ca)?);
        let mut config = match own {
            Some((cert, key)) => builder
                .with_client_auth_cert(chain(cert)?, private_key(key)?)
                .map_err(|e| unfit("the client's certificate", cert, &e))?,
            None => builder.with_no_client_auth(),
        };
        config.enable_secret_extraction = true;
        // Sessions outlive connections by their own means.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self { config: Arc::new(config) })
    }

    pub(super) fn config(&self) -> &Arc<ClientConfig> {
        &self.config
    }
}

impl Files {
    fn server(&self) -> Result<Loaded, TlsFileError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| unfit("the certificate", &self.cert, &e))?;
        let verifier = match &self.client_ca {
            Some(ca) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider());
                Some(verifier.build().map_err(|e| unfit("the clients' authority", ca, &e))?)
            }
            None => None,
        };
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain(&self.cert)?, private_key(&self.key)?)
            .map_err(|e| unfit("the certificate", &self.cert, &e))?;
        config.enable_secret_extraction = true;
        config.send_tls13_tickets = 0;
        Ok(Loaded { config: Arc::new(config), verifier })
    }
}

/// AES-128 in front: as safe as the rest of the channel, and the fastest where the processor has AES.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

fn roots(path: &Path) -> Result<RootCertStore, TlsFileError> {
    let what = "the authority's certificate";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(what, path)? {
        roots.add(certificate).map_err(|e| unfit(what, path, &e))?;
    }
    Ok(roots)
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    certificates("the certificate", path)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let file = |source| TlsFileError::File { what, path: path.into(), source };
    let all: Vec<_> = CertificateDer::pem_file_iter(path).map_err(file)?.collect::<Result<_, _>>().map_err(file)?;
    if all.is_empty() { Err(file(pem::Error::NoItemsFound)) } else { Ok(all) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsFileError::File {
        what: "the key",
        path: path.into(),
        source,
    })
}

fn unfit(what: &'static str, path: &Path, reason: &impl std::fmt::Display) -> TlsFileError {
    TlsFileError::Unfit { what, path: path.into(), reason: reason.to_string() }
}
