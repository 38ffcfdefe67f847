//! A model's programs as a client handles them: encoded, with the places of their inputs.

use genie_graph::{DType, InputRole, VerifiedGraph};
use genie_transport::client::blocking::Session;
use genie_transport::client::{ClientError, Input, Program};
use genie_transport::wire::Handle;

use super::RemoteModelError;
use crate::{ContentHash, GraphOptions, Model};

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0: always the likeliest token; above, the larger the more even the choice.
    pub temperature: f32,
    /// Choose among this many of the likeliest tokens; 0: among all.
    pub top_k: i64,
    /// Choose among the likeliest tokens that together have this probability; 1: among all.
    pub top_p: f32,
    /// The same seed gives the same tokens.
    pub seed: i64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// The values of the graph's sampling inputs for one row: `f32 [1, 2]`, `i64 [1, 2]`, little-endian.
    pub fn values(&self) -> SamplingValues {
        let pair = |a: [u8; 8], b: [u8; 8]| {
            let mut both = [0; 16];
            both[..8].copy_from_slice(&a);
            both[8..].copy_from_slice(&b);
            both
        };
        let mut real = [0; 8];
        real[..4].copy_from_slice(&self.temperature.to_le_bytes());
        real[4..].copy_from_slice(&self.top_p.to_le_bytes());
        SamplingValues { real, int: pair(self.top_k.to_le_bytes(), self.seed.to_le_bytes()) }
    }
}

/// See [`Sampling::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplingValues {
    /// Temperature and top-p, `f32 [1, 2]`.
    pub real: [u8; 8],
    /// Top-k and seed, `i64 [1, 2]`.
    pub int: [u8; 16],
}

/// A program of a model, encoded, with the node ids of its inputs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is sent to a server that has not got it.
    pub encoded: Vec<u8>,
    /// What it is called on a server that has.
    pub hash: ContentHash,
    /// Takes the token ids, `i32 [1, n]`.
    pub tokens: u16,
    /// Takes temperature and top-p.
    pub real: u16,
    /// Takes top-k and seed.
    pub int: u16,
    /// Takes the KV cache.
    pub kv: u32,
    /// Takes the weights, in the order of [`Model::weights`].
    pub weights: Vec<u32>,
}

impl Plan {
    /// The program that the options ask for.
    ///
    /// # Errors
    /// [`RemoteModelError::Model`] if the graph cannot be built, [`RemoteModelError::Inputs`] if it has not the inputs of a
    /// language model.
    pub fn new(model: &Model, options: GraphOptions) -> Result<Self, RemoteModelError> {
        let graph = model.graph(options)?;
        let weights = model.weights().iter().map(|w| node_named(&graph, w.name())).collect::<Result<_, _>>()?;
        Ok(Self {
            tokens: small(node_for(&graph, InputRole::Tokens)?)?,
            real: small(node_for(&graph, InputRole::SamplingReal)?)?,
            int: small(node_for(&graph, InputRole::SamplingInt)?)?,
            kv: node_for(&graph, InputRole::KvCache)?,
            weights,
            encoded: graph.encode(),
            hash: ContentHash(graph.hash().0),
        })
    }

    /// Registers it: by its hash where the server knows it, else whole.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn define(&self, session: &mut Session, device: u16) -> Result<Program, ClientError> {
        let known = session.define_known(device, self.hash)?;
        self.define_unless(session, device, known)
    }

    /// Registers it whole where the server did not know its hash.
    pub(super) fn define_unless(
        &self,
        session: &mut Session,
        device: u16,
        known: Option<Program>,
    ) -> Result<Program, ClientError> {
        match known {
            Some(program) => Ok(program),
            None => session.define(device, &self.encoded),
        }
    }

    /// The weights by node id; `handles` are in the order of [`Model::weights`].
    pub fn bound(&self, handles: &[Handle]) -> Vec<(u32, Handle)> {
        self.weights.iter().copied().zip(handles.iter().copied()).collect()
    }

    /// The token ids as an inline input; `dims` are `[1, n]`, `ids` are i32, little-endian.
    pub fn tokens<'a>(&self, dims: &'a [u64; 2], ids: &'a [u8]) -> Input<'a> {
        Input { index: self.tokens, dtype: DType::I32, dims, data: ids }
    }

    /// The sampling as inline inputs.
    pub fn sampling<'a>(&self, values: &'a SamplingValues) -> [Input<'a>; 2] {
        [
            Input { index: self.real, dtype: DType::F32, dims: &[1, 2], data: &values.real },
            Input { index: self.int, dtype: DType::I64, dims: &[1, 2], data: &values.int },
        ]
    }
}

fn node_for(graph: &VerifiedGraph, role: InputRole) -> Result<u32, RemoteModelError> {
    let input = graph.inputs().iter().find(|i| i.role == role);
    input.map(|i| i.node.0).ok_or_else(|| RemoteModelError::Inputs(format!("it has no input for {role:?}")))
}

fn node_named(graph: &VerifiedGraph, name: &str) -> Result<u32, RemoteModelError> {
    let input = graph.inputs().iter().find(|i| i.name == name);
    input.map(|i| i.node.0).ok_or_else(|| RemoteModelError::Inputs(format!("it does not use the weight `{name}`")))
}

/// Inline inputs are named by 16 bits.
fn small(node: u32) -> Result<u16, RemoteModelError> {
    u16::try_from(node).map_err(|_| RemoteModelError::Inputs(format!("input {node} is beyond the first 65536 nodes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_is_laid_out_as_the_graph_reads_it() {
        let values = Sampling { temperature: 0.5, top_k: 40, top_p: 0.9, seed: -2 }.values();
        assert_eq!(values.real[..4], 0.5f32.to_le_bytes());
        assert_eq!(values.real[4..], 0.9f32.to_le_bytes());
        assert_eq!(values.int[..8], 40i64.to_le_bytes());
        assert_eq!(values.int[8..], (-2i64).to_le_bytes());
    }
}
