//! Values that several messages share.

use genie_graph::DType;

use zerocopy::IntoBytes;

use super::error::DecodeError;
use super::layout::{self, HandleField, SpanField, SpecField};
use super::limits;

/// BLAKE3 of a tensor's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// Hashes in parallel on the caller's rayon pool.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::Hasher::new().update_rayon(bytes).finalize().as_bytes())
    }

    /// Names a set of weights: whoever can say it knows the hash of each, or was told by somebody who does. The order counts, and it is
    /// never a hash of contents.
    pub fn of_set(entries: &[(Self, TensorSpec)]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("genie set of weights");
        let mut entry = Vec::with_capacity(128);
        for (hash, spec) in entries {
            entry.clear();
            entry.extend_from_slice(&hash.0);
            spec.write(&mut entry);
            hasher.update(&entry);
        }
        Self(*hasher.finalize().as_bytes())
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

/// Handles of consecutive slots that were reused equally often: those of a model's weights, as a rule. 12 bytes on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandleSpan {
    /// Slot of the first.
    pub index: u32,
    /// Of all of them.
    pub generation: u32,
    /// How many: at least 1, and not so many that a slot would need more than 32 bits.
    pub count: u32,
}

impl HandleSpan {
    /// As few spans as name these handles, in their order. All must be of one epoch, which does not travel with them.
    pub fn of(handles: impl IntoIterator<Item = Handle>) -> Vec<Self> {
        let mut spans: Vec<Self> = Vec::new();
        for Handle { index, generation, .. } in handles {
            match spans.last_mut() {
                Some(last) if last.generation == generation && last.index.checked_add(last.count) == Some(index) => {
                    last.count += 1;
                }
                _ => spans.push(Self { index, generation, count: 1 }),
            }
        }
        spans
    }

    /// The handles that it stands for.
    pub fn handles(self, epoch: u64) -> impl Iterator<Item = Handle> {
        let Self { index, generation, count } = self;
        (0..count).map(move |i| Handle { index: index.wrapping_add(i), generation, epoch })
    }

    /// `count` spans of together at most `most` handles at the front of `bytes`, and what follows them.
    pub(super) fn take_all(bytes: &[u8], count: u32, most: usize) -> Result<(Vec<Self>, &[u8]), DecodeError> {
        let mut rest = bytes;
        let mut spans = Vec::with_capacity((count as usize).min(bytes.len() / size_of::<SpanField>()));
        let mut total = 0_u64;
        for _ in 0..count {
            let (field, after) = layout::take::<SpanField>(rest)?;
            let span = Self { index: field.index.get(), generation: field.generation.get(), count: field.count.get() };
            if span.count == 0 {
                return Err(DecodeError::Range("a span of handles has at least one"));
            }
            span.index.checked_add(span.count - 1).ok_or(DecodeError::Overflow("span of handles"))?;
            total += u64::from(span.count);
            if total > most as u64 {
                return Err(DecodeError::TooLong { what: "spans of handles", length: total, limit: most as u64 });
            }
            spans.push(span);
            rest = after;
        }
        Ok((spans, rest))
    }

    pub(super) fn write_all(spans: &[Self], out: &mut Vec<u8>) {
        for span in spans {
            let field =
                SpanField { index: span.index.into(), generation: span.generation.into(), count: span.count.into() };
            out.extend_from_slice(field.as_bytes());
        }
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
