//! The semantically rich graph (SRG): what a frontend hands to a Genie server to run.
//!
//! A [`Graph`] is a list of [`Node`]s in topological order; each has one [`Op`], the ids of the nodes it reads,
//! the [`TensorType`] it produces and an [`Annotation`] (phase, residency, modality). A graph becomes a
//! [`VerifiedGraph`] by passing [`verify`], and only a verified graph can be planned and run. This crate does no I/O,
//! and has no kernels: it says what an op means, not how a device computes it. Where devices must agree to the bit, in
//! random numbers and sampling, the reference is here ([`random`], [`sample_row`]).
//!
//! | to | use |
//! |---|---|
//! | write a graph | [`GraphBuilder`]: infers each node's type as it is pushed ([`infer`]) |
//! | send it | [`VerifiedGraph::encode`], named by [`VerifiedGraph::hash`] |
//! | receive it | [`decode`], which bounds what it allocates, then [`verify`], which trusts nothing |
//! | plan it | [`VerifiedGraph::inputs`], [`VerifiedGraph::concrete`], [`VerifiedGraph::check_sizes`] |
//! | schedule it | [`VerifiedGraph::phase`], [`VerifiedGraph::cost`] |
//! | look at it | [`Graph::dump`] |
//!
//! # Example
//!
//! A linear layer over any number of rows, as a client writes it and a server reads it.
//!
//! ```
//! use genie_graph::{DType, GraphBuilder, InputRole, LinearLayout, Op, Sizes, Symbol, TensorType, decode, verify};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut g = GraphBuilder::new("layer");
//! let x = g.input("x", InputRole::Argument, TensorType::new(DType::F32, [Symbol::Batch.into(), 64.into()]))?;
//! let w = g.input("w", InputRole::Weight, TensorType::new(DType::BF16, [10.into(), 64.into()]))?;
//! let y = g.push(Op::Linear { layout: LinearLayout::OutIn }, &[x, w])?;
//! let y = g.push(Op::Softmax { axis: -1 }, &[y])?;
//! g.output("y", y);
//! let sent = g.finish()?;
//!
//! let received = verify(decode(&sent.encode())?)?;
//! assert_eq!(received.hash(), sent.hash());
//! let sizes = Sizes { batch: 3, ..Sizes::default() };
//! assert_eq!(received.concrete(y, &sizes), Some(vec![3, 10]));
//! assert_eq!(received.total_cost(&sizes).flops, 3 * 10 * (2 * 64 + 5));
//! assert_eq!(received.dump(), "graph \"layer\" {
//!   %0 = input() name=\"x\" role=argument: f32 [batch, 64]
//!   %1 = input() name=\"w\" role=weight: bf16 [10, 64]  # residency=weight
//!   %2 = linear(%0, %1) layout=OutIn: f32 [batch, 10]
//!   %3 = softmax(%2) axis=-1: f32 [batch, 10]
//!   return \"y\": %3
//! }
//! ");
//! # Ok(())
//! # }
//! ```
//!
//! # What a verified graph promises
//!
//! Every node reads only earlier ones; arity, element types, shapes and attributes fit its op, and its type is the one
//! inference gives; ranks, sizes, counts and names are within [`limits`]; no fixed dimension is 0; names and the roles
//! that the server fills are unique; a KV cache is read by attentions alone, each with a layer of its own. What depends
//! on the sizes of the symbols (that no dimension at all is 0, for one) is checked per run by
//! [`VerifiedGraph::check_sizes`], and what depends on values (ids out of range, integers divided by 0) by the device.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::panic))]

mod builder;
mod codec;
mod cost;
mod dump;
#[cfg(test)]
mod example;
mod graph;
mod infer;
mod kinds;
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
pub use kinds::{ArgReduceKind, BinaryKind, CompareKind, CumulativeKind, RandomKind, ScatterKind, UnaryKind};
pub use op::{InputRole, LinearLayout, Op, PoolKind, QuantFormat, ReduceKind, RopeStyle};
pub use sample::{Candidate, sample_row};
pub use size::{Sizes, TypeError, byte_len};
pub use types::{Annotation, Cost, DType, Dim, Modality, Phase, Residency, Shape, Symbol, TensorType};
pub use verify::{ContentHash, InputDecl, SizeError, VerifiedGraph, VerifyError, verify};
