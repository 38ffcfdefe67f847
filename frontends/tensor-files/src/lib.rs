//! Files of tensors: `.pt` as `torch.save` writes it, `.npy`, `.safetensors`.
//!
//! [`read`] takes the bytes of a file that may come from anybody, finds out which of the three it is, and gives the tensors in it.
//! Where a tensor lies in the file as it is wanted (little-endian, row-major), its [`Tensor::data`] is a part of the file: nothing is
//! copied. [`write()`] gives a file as pieces, the tensors' own bytes among them.
//!
//! Nothing in a file is ever executed. A `.pt` file is a pickle, which is a program: what runs it here knows the few instructions and
//! the few names that a tensor needs, and refuses all others by name. What a reader allocates is bounded by the file's length and by
//! [`Limits`]; nothing recurses.
//!
//! ```
//! use bytes::Bytes;
//! use genie_graph::DType;
//! use genie_tensor_files::{Contents, Format, Limits, Tensor, read, write};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let tensor = Tensor { dtype: DType::I32, dims: vec![2, 1], data: Bytes::from_static(&[1, 0, 0, 0, 2, 0, 0, 0]) };
//! let file = write(Format::Pt, &Contents::One(tensor.clone()))?.concat();
//! let (format, contents) = read(&file.into(), &Limits::default())?;
//! assert_eq!((format, contents), (Format::Pt, Contents::One(tensor)));
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing))]

mod cursor;
mod error;
mod npy;
mod pt;
mod safetensors;
mod strided;
mod zip;

use bytes::Bytes;
use genie_graph::DType;

pub use error::{ReadError, WriteError};
pub use strided::Allowance;

/// What kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// PyTorch: `torch.save`.
    Pt,
    /// NumPy: `numpy.save`.
    Npy,
    /// Hugging Face's.
    Safetensors,
}

impl Format {
    /// The end of such a file's name, without the dot.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Pt => "pt",
            Self::Npy => "npy",
            Self::Safetensors => "safetensors",
        }
    }

    /// What a file that begins like this is, if it is one of the three.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(npy::MAGIC) {
            Some(Self::Npy)
        } else if safetensors::is(bytes) {
            // Before pickles: the length of a header may begin like one, but no pickle goes on like it.
            Some(Self::Safetensors)
        } else if pt::is(bytes) {
            Some(Self::Pt)
        } else {
            None
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, ".{}", self.extension())
    }
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first. A dimension may be 0.
    pub dims: Vec<u64>,
    /// The elements: little-endian, row-major. A bool is a byte, 0 or 1.
    pub data: Bytes,
}

impl Tensor {
    /// The bytes that its type and dimensions say; `None`: more than can be counted.
    pub fn byte_len(&self) -> Option<u64> {
        genie_graph::byte_len(self.dtype, &self.dims)
    }
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// One tensor.
    One(Tensor),
    /// Several, in order: a Python list or tuple.
    List(Vec<Tensor>),
    /// Several, by name, in the file's order; no name stands there twice.
    Dict(Vec<(String, Tensor)>),
}

/// What reading a file may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all that cannot stay a part of the file (tensors whose elements lie in another order, what was compressed), and of bools,
    /// which are looked at one by one.
    pub expanded_bytes: u64,
    /// Tensors in one file.
    pub tensors: usize,
}

impl Default for Limits {
    /// 4 GiB, 4096 tensors.
    fn default() -> Self {
        Self { expanded_bytes: 4 << 30, tensors: 4096 }
    }
}

/// Reads a file.
///
/// # Errors
/// [`ReadError`]: what is wrong with it, or what in it is not taken.
pub fn read(file: &Bytes, limits: &Limits) -> Result<(Format, Contents), ReadError> {
    read_with(file, limits, &mut Allowance::new(limits.expanded_bytes))
}

/// Reads a file, which may allocate what is left of `allowance` and not `limits.expanded_bytes`: for files that come together.
///
/// # Errors
/// [`ReadError`]: what is wrong with it, or what in it is not taken.
pub fn read_with(
    file: &Bytes,
    limits: &Limits,
    allowance: &mut Allowance<'_>,
) -> Result<(Format, Contents), ReadError> {
    let format = Format::of(file).ok_or(ReadError::Unknown)?;
    let contents = match format {
        Format::Pt => pt::read(file, limits, allowance),
        Format::Npy => npy::read(file, allowance).map(Contents::One),
        Format::Safetensors => safetensors::read(file, limits),
    }?;
    Ok((format, contents))
}

/// Makes a file: the pieces, one after another, are it. A `.safetensors` file of one tensor calls it `tensor`.
///
/// # Errors
/// [`WriteError`]: something that such a file cannot hold.
pub fn write(format: Format, contents: &Contents) -> Result<Vec<Bytes>, WriteError> {
    let mut all: Vec<&Tensor> = Vec::new();
    match contents {
        Contents::One(tensor) => all.push(tensor),
        Contents::List(tensors) => all.extend(tensors),
        Contents::Dict(entries) => all.extend(entries.iter().map(|(_, tensor)| tensor)),
    }
    if all.iter().any(|tensor| tensor.byte_len() != Some(tensor.data.len() as u64)) {
        return Err(WriteError::Length);
    }
    match format {
        Format::Pt => pt::write(contents),
        Format::Npy => npy::write(contents),
        Format::Safetensors => safetensors::write(contents),
    }
}
