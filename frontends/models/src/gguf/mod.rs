//! GGUF files: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3, little-endian.
//!
//! A file is not trusted: every count, length and offset is checked against the bytes that are there before it is used, and
//! nothing is allocated that is not proportional to bytes present in the file.

mod metadata;
mod reader;
mod types;

use std::collections::HashMap;

use genie_transport::memory::Region;

pub use metadata::{Array, Value};
pub use types::GgmlType;

use reader::Reader;

/// Default alignment of tensor data where `general.alignment` is absent.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Largest rank that GGUF has.
const MAX_RANK: u32 = 4;
/// Fewest bytes that describe a tensor: empty name, one dimension.
const MIN_TENSOR_INFO: u64 = 8 + 4 + 8 + 4 + 8;
/// Items for which memory is taken before they are read: a table of them takes more than the bytes that announce it.
const FIRST_ITEMS: usize = 1 << 12;
/// Fewest bytes of a metadata entry: empty key, one byte.
const MIN_ENTRY: u64 = 8 + 4 + 1;

/// Why a file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The first bytes are not GGUF's.
    #[error("not a GGUF file")]
    Magic,
    /// A version that is not read.
    #[error(
        "GGUF version {0} is not read: versions 2 and 3 (little-endian) are; convert the model again with a current tool"
    )]
    Version(u32),
    /// A length or count leads past the end.
    #[error("the file ends within {0}: it is cut short or damaged")]
    Truncated(&'static str),
    /// Text that is not UTF-8.
    #[error("{0} is not UTF-8: the file is damaged")]
    Utf8(&'static str),
    /// A metadata value of a type that GGUF does not have, or an array of arrays.
    #[error("the metadata entry '{key}' has type {code}, which is not read")]
    ValueType {
        /// The entry.
        key: String,
        /// The type's code in the file.
        code: u32,
    },
    /// A key or tensor name that occurs twice.
    #[error("'{0}' occurs twice: the file is damaged")]
    Duplicate(String),
    /// `general.alignment` is not a multiple of 8.
    #[error("the alignment {0} is not a power of two from 8 to 65536")]
    Alignment(u64),
    /// A rank of 0 or over 4, a zero dimension, or a product that overflows or does not fill blocks.
    #[error("the tensor '{0}' has impossible dimensions")]
    Dimensions(String),
    /// A tensor type that is not read.
    #[error(
        "the tensor '{name}' is stored as {type_name}, which is not read: F32, F16, BF16, Q8_0, Q4_0, Q4_1 and Q6_K are; \
         choose another quantisation of this model"
    )]
    TensorType {
        /// The tensor.
        name: String,
        /// ggml's name of the type.
        type_name: String,
    },
    /// Data outside the file, or misaligned.
    #[error("the data of the tensor '{0}' lies outside the file or is misaligned: the file is cut short or damaged")]
    Data(String),
}

/// A parsed file: metadata, and where each tensor's bytes are.
#[derive(Debug)]
pub struct Gguf {
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, Tensor>,
}

/// A tensor in the file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Element or block type.
    pub ty: GgmlType,
    /// Outermost first (GGUF itself stores innermost first).
    pub dims: Vec<u64>,
    /// The stored bytes: exactly as many as type and dimensions call for.
    pub data: Region,
}

impl Gguf {
    /// Parses a file's bytes.
    ///
    /// # Errors
    /// [`GgufError`], whatever the bytes are; it does not panic.
    pub fn parse(file: &Region) -> Result<Self, GgufError> {
        let mut r = Reader::new(file);
        if r.u32("the magic").ok() != Some(u32::from_le_bytes(*b"GGUF")) {
            return Err(GgufError::Magic);
        }
        match r.u32("the header")? {
            2 | 3 => {}
            other => return Err(GgufError::Version(other)),
        }
        let tensor_count = r.u64("the header")?;
        let entry_count = r.u64("the header")?;
        let metadata = parse_metadata(&mut r, entry_count)?;
        let infos = parse_infos(&mut r, tensor_count)?;
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(v) => v.as_u64().unwrap_or(0),
        };
        if !(8..=65536).contains(&alignment) || !alignment.is_power_of_two() {
            return Err(GgufError::Alignment(alignment));
        }
        let data_start = r.position().next_multiple_of(alignment);
        let mut tensors = HashMap::with_capacity(infos.len());
        for info in infos {
            let tensor = info.locate(file, data_start, alignment)?;
            if tensors.contains_key(&info.name) {
                return Err(GgufError::Duplicate(info.name));
            }
            tensors.insert(info.name, tensor);
        }
        Ok(Self { metadata, tensors })
    }

    /// A metadata entry.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// A tensor by its name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Every tensor, in no particular order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, t)| (name.as_str(), t))
    }
}

fn parse_metadata(r: &mut Reader<'_>, count: u64) -> Result<HashMap<String, Value>, GgufError> {
    let count = r.check_count(count, MIN_ENTRY, "the metadata")?;
    let mut metadata = HashMap::with_capacity(count.min(FIRST_ITEMS));
    for _ in 0..count {
        let key = r.string("a metadata key")?.to_owned();
        let value = Value::read(r, &key)?;
        if metadata.contains_key(&key) {
            return Err(GgufError::Duplicate(key));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// A tensor as the file's table describes it, its data not yet checked.
struct Info {
    name: String,
    dims: Vec<u64>,
    code: u32,
    offset: u64,
}

fn parse_infos(r: &mut Reader<'_>, count: u64) -> Result<Vec<Info>, GgufError> {
    const WHERE: &str = "the tensor table";
    let count = r.check_count(count, MIN_TENSOR_INFO, WHERE)?;
    let mut infos = Vec::with_capacity(count.min(FIRST_ITEMS));
    for _ in 0..count {
        let name = r.string("a tensor name")?.to_owned();
        let rank = r.u32(WHERE)?;
        if rank == 0 || rank > MAX_RANK {
            return Err(GgufError::Dimensions(name));
        }
        let mut dims = (0..rank).map(|_| r.u64(WHERE)).collect::<Result<Vec<_>, _>>()?;
        dims.reverse();
        infos.push(Info { name, dims, code: r.u32(WHERE)?, offset: r.u64(WHERE)? });
    }
    Ok(infos)
}

impl Info {
    fn locate(&self, file: &Region, data_start: u64, alignment: u64) -> Result<Tensor, GgufError> {
        let ty = GgmlType::from_code(self.code).ok_or_else(|| GgufError::TensorType {
            name: self.name.clone(),
            type_name: types::name_of_code(self.code),
        })?;
        let bytes = ty.bytes_of(&self.dims).ok_or_else(|| GgufError::Dimensions(self.name.clone()))?;
        let range = || {
            let start = data_start.checked_add(self.offset).filter(|_| self.offset.is_multiple_of(alignment))?;
            let end = start.checked_add(bytes)?;
            file.slice(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        };
        let data = range().ok_or_else(|| GgufError::Data(self.name.clone()))?;
        Ok(Tensor { ty, dims: self.dims.clone(), data })
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
