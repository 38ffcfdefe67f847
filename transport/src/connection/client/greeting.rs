//! Who is who: the client proves its token, and the server that it knows it.

use super::{Client, ClientError};
use crate::auth::{Exchange, lane_key};
use crate::wire::{Control, Proof, Welcome};

impl Client {
    /// Answers a challenge.
    pub(super) fn prove(&mut self, server_nonce: &[u8; 32]) -> Result<(), ClientError> {
        let Some(token) = self.options.token.clone() else { return self.fail(ClientError::TokenWanted) };
        // A second challenge would let a server in the middle have proofs made for as many nonces as it likes.
        if self.proving.is_some() {
            return self.fail(ClientError::ServerUnproven { name: token.name.clone() });
        }
        let mut nonce = [0; 32];
        if let Err(error) = getrandom::fill(&mut nonce) {
            return self.fail(ClientError::Untrusted { reason: format!("no random bytes for a proof: {error}") });
        }
        let exchange =
            Exchange { server_nonce, client_nonce: &nonce, name: &token.name, binding: self.channel.binding };
        let proof = Proof { nonce, proof: exchange.client_proof(&token.secret), name: token.name.clone() };
        self.proving = Some((exchange.server_proof(&token.secret), exchange.lane_secret(&token.secret)));
        self.push_control(0, &Control::Proof(proof));
        Ok(())
    }

    /// The server lets the connection in: is it who it should be?
    pub(super) fn welcomed(&mut self, welcome: Welcome) -> Result<(), ClientError> {
        if let Some(token) = &self.options.token
            && self.proving.as_ref().is_none_or(|(expected, _)| *expected != welcome.proof)
        {
            let name = token.name.clone();
            return self.fail(ClientError::ServerUnproven { name });
        }
        let lane_secret = self.proving.take().map(|(_, secret)| secret);
        self.lane_key = Some(lane_key(lane_secret.as_ref(), &welcome.lane_key));
        self.welcome = Some(welcome);
        Ok(())
    }

    fn fail(&mut self, error: ClientError) -> Result<(), ClientError> {
        self.die(error.clone());
        Err(error)
    }
}
