//! What can go wrong between a path and a model.

use std::path::PathBuf;

use genie_graph::{DType, VerifyError};

use crate::gguf::GgufError;

/// Opening a model, producing a weight, tokenising or building a graph failed. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The operating system refused.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The path is none of the forms that are understood.
    #[error(
        "{0} is not a model: give a .gguf file, a .safetensors file beside its config.json, or a folder with config.json \
         and model.safetensors (or model.safetensors.index.json)"
    )]
    NotAModel(PathBuf),
    /// Pickled weights would run code of whoever wrote them.
    #[error("{0} is a pickle (.pt, .pth, .bin), which is never read here: convert it to safetensors or GGUF")]
    Pickle(PathBuf),
    /// One of the files that a GGUF model was split into.
    #[error(
        "{path} is part {part} of {parts} of a model: join them with `llama-gguf-split --merge FIRST-PART WHOLE.gguf`, and \
         give the whole"
    )]
    Split {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        part: u64,
        /// How many there are.
        parts: u64,
    },
    /// The GGUF file is damaged, hostile or of a kind that is not read.
    #[error("{path}: {source}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// A safetensors file is damaged or hostile.
    #[error("{path}: {reason}")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration lacks something, or says something impossible.
    #[error("the model's configuration is unusable: {0}")]
    Config(String),
    /// An architecture that no graph builder here covers.
    #[error("the architecture '{0}' is not supported: GPT-2, GPT-J, Llama, Mistral and Qwen2 are")]
    Architecture(String),
    /// No configuration is known by this name.
    #[error("no model with random weights is called '{0}': gpt2, gpt2-xl and gpt-j-6b are")]
    Preset(String),
    /// The files lack a tensor that the configuration calls for, by the files' name for it.
    #[error("the tensor '{0}' is missing: the download may be incomplete")]
    MissingTensor(String),
    /// A tensor has another shape than the configuration calls for.
    #[error("the tensor '{name}' has shape {found:?}, but the configuration calls for {expected:?}")]
    TensorShape {
        /// The tensor, as the file names it.
        name: String,
        /// From the configuration.
        expected: Vec<u64>,
        /// From the file.
        found: Vec<u64>,
    },
    /// A tensor is stored in a type that is not read.
    #[error("the tensor '{name}' is stored as {dtype}, which is not read here: {hint}")]
    TensorType {
        /// The tensor, as the file names it.
        name: String,
        /// The stored type.
        dtype: String,
        /// What is.
        hint: &'static str,
    },
    /// Weights can be converted to floating-point types only.
    #[error("weights cannot be converted to {0}: choose f32, f16 or bf16")]
    TargetType(DType),
    /// The model has no usable tokenizer.
    #[error("no usable tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template of the model failed.
    #[error("the model's chat template failed: {0}")]
    Template(String),
    /// The verifier refused the graph. A defect of the builder, or a configuration that passed all checks and should not.
    #[error("the graph of this model was refused: {0}")]
    Graph(#[from] VerifyError),
}

impl ModelError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
