//! Values that several messages share.

use genie_graph::DType;

use zerocopy::IntoBytes;

use super::error::DecodeError;
use super::layout::{self, HandleField, SpecField};
use super::limits;

/// BLAKE3 of a tensor's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// Hashes in parallel on the caller's rayon pool.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::Hasher::new().update_rayon(bytes).finalize().as_bytes())
    }
}

impl std::fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex()[..16])
    }
}

/// The secret that resumes a session. Its `Debug` shows nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionToken(pub [u8; 32]);

impl std::fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionToken(..)")
    }
}

/// Names an object of a session: a resident, a KV cache, a program, a binding. 16 bytes on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    /// Slot in the session's table.
    pub index: u32,
    /// How often the slot was reused when this handle was given.
    pub generation: u32,
    /// The server's life that the handle belongs to.
    pub epoch: u64,
}

impl Handle {
    pub(super) fn from_field(field: &HandleField) -> Self {
        Self { index: field.index.get(), generation: field.generation.get(), epoch: field.epoch.get() }
    }

    pub(super) fn to_field(self) -> HandleField {
        HandleField { index: self.index.into(), generation: self.generation.into(), epoch: self.epoch.into() }
    }
}

/// How long a resident lives, and who may share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ResidencyCode {
    /// Private to its session, freed with it.
    Private = 0,
    /// Immutable, named by content, shared between sessions, evicted under pressure once no session holds it.
    Weight = 1,
}

/// Element type, dimensions, size in bytes (checked to agree).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    dtype: DType,
    dims: Vec<u64>,
    bytes: u64,
}

impl TensorSpec {
    /// A spec; at most rank 8, no dimension zero, and no more bytes than [`limits::TENSOR_BYTES`].
    ///
    /// # Errors
    /// [`DecodeError`] names the rule that was broken.
    pub fn new(dtype: DType, dims: &[u64]) -> Result<Self, DecodeError> {
        if dims.len() > limits::RANK {
            return Err(DecodeError::Rank(dims.len()));
        }
        if let Some(&bad) = dims.iter().find(|&&d| d == 0 || i64::try_from(d).is_err()) {
            return Err(DecodeError::Dimension(bad.cast_signed()));
        }
        let bytes = dims
            .iter()
            .try_fold(dtype.bytes(), |n, &d| n.checked_mul(d))
            .ok_or(DecodeError::Overflow("element count"))?;
        if bytes > limits::TENSOR_BYTES {
            return Err(DecodeError::TooLong { what: "tensor", length: bytes, limit: limits::TENSOR_BYTES });
        }
        Ok(Self { dtype, dims: dims.to_vec(), bytes })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[u64] {
        &self.dims
    }

    /// The size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The spec at the front of `bytes`, and what follows it.
    pub(super) fn take(bytes: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let (field, rest) = layout::take::<SpecField>(bytes)?;
        layout::zero(&field.zero, "tensor spec")?;
        let dtype = dtype_of(field.dtype)?;
        let rank = usize::from(field.rank);
        if rank > limits::RANK {
            return Err(DecodeError::Rank(rank));
        }
        let (dims, rest) = rest.split_at_checked(rank * 8).ok_or(DecodeError::Truncated)?;
        let mut values = [0; limits::RANK];
        for (value, bytes) in values.iter_mut().zip(dims.as_chunks::<8>().0) {
            *value = u64::from_le_bytes(*bytes);
        }
        Ok((Self::new(dtype, &values[..rank])?, rest))
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        // The rank is at most 8.
        let field = SpecField { dtype: self.dtype.code(), rank: self.dims.len() as u8, zero: [0; 6] };
        out.extend_from_slice(field.as_bytes());
        self.dims.iter().for_each(|dim| out.extend_from_slice(&dim.to_le_bytes()));
    }
}

pub(super) fn dtype_of(code: u8) -> Result<DType, DecodeError> {
    DType::from_code(code).ok_or(DecodeError::Enum { what: "dtype", value: u32::from(code) })
}
