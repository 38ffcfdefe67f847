//! The semantically rich graph (SRG): what a frontend hands to a Genie server to run.
//!
//! A [`Graph`] is a list of [`Node`]s in topological order; each has one [`Op`], the ids of the nodes it reads,
//! the [`TensorType`] it produces and an [`Annotation`] (phase, residency, modality). A graph becomes a
//! [`VerifiedGraph`] by passing [`verify`], and only a verified graph can be planned and run.

#![forbid(unsafe_code)]

mod builder;
mod codec;
mod cost;
mod dump;
mod graph;
mod infer;
pub mod limits;
mod op;
pub mod random;
mod sample;
mod size;
mod types;
mod verify;

pub use builder::GraphBuilder;
pub use codec::{DecodeError, decode, encode};
pub use graph::{Graph, Node, NodeId, Output};
pub use infer::{InferError, infer};
pub use op::{InputRole, LinearLayout, Op, ReduceKind, RopeStyle};
pub use sample::{Candidate, sample_row};
pub use size::{Sizes, TypeError, byte_len};
pub use types::{Annotation, Cost, DType, Dim, Modality, Phase, Residency, Shape, Symbol, TensorType};
pub use verify::{ContentHash, InputDecl, SizeError, VerifiedGraph, VerifyError, verify};
