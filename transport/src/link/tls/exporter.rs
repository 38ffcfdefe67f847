//! The channel's exporter value (RFC 8446, section 7.5).
//!
//! rustls computes it for connections whose records it keeps to itself, not for those that hand over their keys; but it tells
//! a key log the exporter's secret.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::hkdf::{HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use rustls::{CipherSuite, KeyLog};
use zeroize::Zeroizing;

/// The label of the value that binds tokens' proofs to a channel.
pub(super) const LABEL: &[u8] = b"EXPORTER-genie-channel-1";

/// Keeps one connection's exporter secret until its handshake is over, and nothing else.
#[derive(Clone, Default)]
pub(super) struct ExporterSecret(Arc<Mutex<Zeroizing<Vec<u8>>>>);

impl KeyLog for ExporterSecret {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if self.will_log(label) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Zeroizing::new(secret.to_vec());
        }
    }

    fn will_log(&self, label: &str) -> bool {
        label == "EXPORTER_SECRET"
    }
}

impl std::fmt::Debug for ExporterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExporterSecret(..)")
    }
}

impl ExporterSecret {
    /// The exporter's value for [`LABEL`] and an empty context.
    pub(super) fn value(&self, suite: CipherSuite) -> Option<[u8; 32]> {
        let (hash, algorithm) = match suite {
            CipherSuite::TLS13_AES_256_GCM_SHA384 => (&aws_lc_rs::digest::SHA384, HKDF_SHA384),
            _ => (&aws_lc_rs::digest::SHA256, HKDF_SHA256),
        };
        let empty = aws_lc_rs::digest::digest(hash, &[]);
        let secret = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if secret.is_empty() {
            return None;
        }
        let mut derived = Zeroizing::new(vec![0; hash.output_len()]);
        expand(&Prk::new_less_safe(algorithm, &secret), LABEL, empty.as_ref(), &mut derived)?;
        let mut value = [0; 32];
        expand(&Prk::new_less_safe(algorithm, &derived), b"exporter", empty.as_ref(), &mut value)?;
        Some(value)
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand-Label.
fn expand(secret: &Prk, label: &[u8], context: &[u8], out: &mut [u8]) -> Option<()> {
    let length = u16::try_from(out.len()).ok()?.to_be_bytes();
    let label_len = [u8::try_from(6 + label.len()).ok()?];
    let context_len = [u8::try_from(context.len()).ok()?];
    let info: [&[u8]; 6] = [&length, &label_len, b"tls13 ", label, &context_len, context];
    secret.expand(&info, Length(out.len())).ok()?.fill(out).ok()
}
