//! Language models as SRGs: reads GPT-2, GPT-J and Llama family models from GGUF files and safetensors folders, and builds
//! the graphs that a Genie server runs.
//!
//! [`Model::open`] reads configuration, tokenizer and the *list* of weights; the bytes of a weight are produced when
//! [`Weight::bytes`] is called (a view of the mapped file where the file holds them as they are wanted, else converted).
//! [`Model::graph`] builds the program for a phase. Nothing here runs a model or talks to a server.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::panic))]

#[cfg(target_endian = "big")]
compile_error!(
    "model files are little-endian, and their bytes are used as they are: big-endian hosts are not supported"
);

mod checkpoint;
mod config;
pub mod dequant;
mod error;
pub mod gguf;
pub mod gpt2;
pub mod gptj;
mod graphs;
mod hash;
pub mod llama;
mod mapping;
mod model;
mod paths;
pub mod remote;
pub mod synthetic;
pub mod tokenizer;
mod weights;

pub use config::{Config, Gpt2Config, GptJConfig, LlamaConfig};
pub use error::ModelError;
pub use genie_transport::wire::ContentHash;
pub use graphs::{GraphOptions, inputs, outputs};
pub use hash::HashCache;
pub use mapping::map_file;
pub use model::{Model, OpenOptions};
pub use paths::{cache_dir, smollm2_path};
pub use tokenizer::{TokenStream, Tokenizer};
pub use weights::{Kind, Weight, WeightSpec};
