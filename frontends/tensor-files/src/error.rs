//! What can be wrong.

use crate::Format;

/// Why a file is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// None of the three.
    #[error(
        "this is no .pt, .npy or .safetensors file: write one by torch.save(tensor, file), numpy.save or safetensors' save_file"
    )]
    Unknown,
    /// It ends too early.
    #[error("the {0} file is cut short")]
    Cut(Format),
    /// It is not what such a file is.
    #[error("the {format} file is damaged: {reason}")]
    Malformed {
        /// What it began as.
        format: Format,
        /// What is wrong.
        reason: String,
    },
    /// A pickle asks for something that no tensor needs. It was not done.
    #[error(
        "the .pt file asks for {what}, which is not done here: save a tensor, or a dict or list of tensors, and nothing else"
    )]
    Refused {
        /// What it asks for.
        what: String,
    },
    /// An element type that is not carried.
    #[error("elements are {dtype}, which is not carried: {hint}")]
    DType {
        /// As the file calls it.
        dtype: String,
        /// What to do.
        hint: &'static str,
    },
    /// A tensor of more dimensions than are carried.
    #[error("a tensor has {rank} dimensions, but at most {most} are carried: reshape it")]
    Rank {
        /// How many it has.
        rank: usize,
        /// How many it may have.
        most: usize,
    },
    /// Whoever reads has no memory for what the file makes: later, perhaps.
    #[error("there is no memory for what the {0} file holds")]
    NoMemory(Format),
    /// It takes more than [`crate::Limits`] allow.
    #[error("reading the {format} file takes {what} of {wanted}, over the limit of {limit}")]
    TooLarge {
        /// The file's kind.
        format: Format,
        /// What there is too much of.
        what: &'static str,
        /// How much it asks for, at the least.
        wanted: u64,
        /// The limit.
        limit: u64,
    },
}

impl ReadError {
    pub(crate) fn malformed(format: Format, reason: impl Into<String>) -> Self {
        Self::Malformed { format, reason: reason.into() }
    }

    pub(crate) fn refused(what: impl Into<String>) -> Self {
        Self::Refused { what: what.into() }
    }

    /// `dtype` in the words of the file, and what to do about it.
    pub(crate) fn dtype(dtype: impl Into<String>) -> Self {
        let dtype = dtype.into();
        let has = |words: &[&str]| words.iter().any(|word| dtype.contains(word));
        let hint = match () {
            () if has(&["64", "Double"]) && !has(&["int", "uint", "u8", "c8", "Complex"]) => "convert them to f32",
            () if has(&["omplex", "<c", ">c"]) => "send the real and the imaginary part as f32 each",
            () if has(&["float8", "F8", "Float8"]) => "convert them to bf16 or f32",
            () if has(&[
                "int", "Short", "Char", "<i", ">i", "<u", ">u", "|i", "I8", "I16", "U16", "U32", "U64", "Int",
            ]) =>
            {
                "convert them to i64, i32 or u8"
            }
            () => "f32, f16, bf16, i64, i32, u8 and bool are",
        };
        Self::DType { dtype, hint }
    }
}

/// Why a file cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// NumPy has no such elements.
    #[error("an .npy file cannot hold bf16: cast to f32, or take .pt or .safetensors")]
    NoSuchType,
    /// One tensor alone fits it.
    #[error("an .npy file holds one tensor, not {0}")]
    NotOne(usize),
    /// Two tensors of one name.
    #[error("two tensors have the name '{0}'")]
    Twice(String),
    /// A tensor's data has not the bytes that its dimensions say.
    #[error("a tensor's data has not the bytes that its shape says")]
    Length,
    /// The header of a .safetensors file cannot be made.
    #[error("cannot make the header: {0}")]
    Header(String),
}
