//! What the two sides of a connection prove to each other.

use std::sync::Arc;

use super::secret::Secret;
use crate::wire::Mac;

/// What a link knows of a lane besides its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    /// A value that only the two ends of this very channel share (TLS: the exporter's); `None`: the lane has none.
    pub binding: Option<[u8; 32]>,
    /// Who the link itself knows the other side to be (TLS: the client certificate's fingerprint).
    pub peer: Option<Arc<str>>,
    /// The certificates that it showed, its own first, as they came (DER).
    pub certificates: Option<Arc<Vec<Vec<u8>>>>,
    /// Where the other side is, for logs.
    pub from: Option<Arc<str>>,
}

/// One connection's proofs: every value that goes into them.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// Drawn by the server for this connection.
    pub server_nonce: &'a [u8; 32],
    /// Drawn by the client for this connection.
    pub client_nonce: &'a [u8; 32],
    /// The token's name.
    pub name: &'a str,
    /// See [`Channel::binding`].
    pub binding: Option<[u8; 32]>,
}

impl Exchange<'_> {
    /// That the client knows the secret.
    pub fn client_proof(&self, secret: &Secret) -> Mac {
        self.mac(secret, b"client.1")
    }

    /// That the server knows it.
    pub fn server_proof(&self, secret: &Secret) -> Mac {
        self.mac(secret, b"server.1")
    }

    /// What only those who know it can derive the connection's lane key from.
    pub fn lane_secret(&self, secret: &Secret) -> Secret {
        Secret::from_bytes(self.mac(secret, b"lanes..1").0)
    }

    /// The role comes first, and every part has a length of its own: no two exchanges make the same bytes.
    fn mac(&self, secret: &Secret, role: &[u8; 8]) -> Mac {
        secret.mac(&[
            role,
            self.server_nonce,
            self.client_nonce,
            &[u8::from(self.binding.is_some())],
            &self.binding.unwrap_or_default(),
            // Names have at most 64 bytes.
            &[self.name.len() as u8],
            self.name.as_bytes(),
        ])
    }
}

/// A connection's lane key, from the salt in its welcome. Without tokens there is no lane secret: zeros stand for it.
pub fn lane_key(lane_secret: Option<&Secret>, salt: &[u8; 16]) -> Secret {
    let none = Secret::from_bytes([0; 32]);
    Secret::from_bytes(lane_secret.unwrap_or(&none).mac(&[b"lanekey1", salt]).0)
}

/// That whoever opens a bulk lane knows the lane key.
pub fn lane_proof(lane_key: &Secret, connection: u64, lane: u32, attempt: u32) -> Mac {
    lane_key.mac(&[b"lane...1", &connection.to_le_bytes(), &lane.to_le_bytes(), &attempt.to_le_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every value that goes in changes what comes out: a proof is for one token, one connection, one channel, one side.
    #[test]
    fn a_proof_is_for_one_exchange_alone() {
        let (secret, other) = (Secret::from_bytes([1; 32]), Secret::from_bytes([2; 32]));
        let base = Exchange { server_nonce: &[3; 32], client_nonce: &[4; 32], name: "a", binding: None };
        let macs = [
            base.client_proof(&secret),
            base.server_proof(&secret),
            Mac(base.mac(&secret, b"lanes..1").0),
            base.client_proof(&other),
            Exchange { server_nonce: &[4; 32], ..base }.client_proof(&secret),
            Exchange { client_nonce: &[3; 32], ..base }.client_proof(&secret),
            Exchange { name: "b", ..base }.client_proof(&secret),
            Exchange { binding: Some([0; 32]), ..base }.client_proof(&secret),
            Exchange { binding: Some([1; 32]), ..base }.client_proof(&secret),
        ];
        for (i, a) in macs.iter().enumerate() {
            assert!(macs[i + 1..].iter().all(|b| a != b), "{i}");
        }
        assert!(base.client_proof(&secret) == macs[0]);
    }

    #[test]
    fn a_lane_proof_opens_one_lane_once() {
        let key = lane_key(None, &[1; 16]);
        let proof = lane_proof(&key, 1, 2, 3);
        assert!(proof == lane_proof(&key, 1, 2, 3));
        for other in [
            lane_proof(&lane_key(None, &[2; 16]), 1, 2, 3),
            lane_proof(&lane_key(Some(&Secret::from_bytes([1; 32])), &[1; 16]), 1, 2, 3),
            lane_proof(&key, 2, 2, 3),
            lane_proof(&key, 1, 1, 3),
            lane_proof(&key, 1, 2, 4),
        ] {
            assert!(proof != other);
        }
    }
}
