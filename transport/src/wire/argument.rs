//! Tensors as inputs of a run, and its outputs: inline, or by handle.

use genie_graph::DType;
use zerocopy::IntoBytes;

use super::error::DecodeError;
use super::layout::{self, ArgumentField, HandleField, TokenOfField};
use super::types::{Handle, dtype_of};
use super::{TensorSpec, limits};

/// Dimensions without an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    rank: u8,
    dims: [u64; limits::RANK],
}

impl Dims {
    /// The dimensions, outermost first.
    pub fn as_slice(&self) -> &[u64] {
        &self.dims[..usize::from(self.rank)]
    }
}

/// An inline tensor, the handle of one that is on the server, or a token that another run gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument<'a> {
    /// Elements, little-endian, row-major; exactly as many bytes as type and dimensions say.
    Inline {
        /// Which input or output of the graph.
        index: u16,
        /// Element type.
        dtype: DType,
        /// Dimensions.
        dims: Dims,
        /// The elements.
        data: &'a [u8],
    },
    /// A resident: what a run reads, or an output that stayed.
    Resident {
        /// Which input or output of the graph.
        index: u16,
        /// Element type.
        dtype: DType,
        /// Dimensions.
        dims: Dims,
        /// The resident.
        handle: Handle,
    },
    /// One `i32`: the token that an earlier run in the same KV cache gives, answered or not.
    TokenOf {
        /// Which input of the graph.
        index: u16,
        /// Dimensions: all 1.
        dims: Dims,
        /// The id of that run's request; not 0.
        request: u64,
    },
}

impl Argument<'_> {
    /// Which input or output of the graph.
    pub fn index(&self) -> u16 {
        match self {
            Self::Inline { index, .. } | Self::Resident { index, .. } | Self::TokenOf { index, .. } => *index,
        }
    }
}

/// Arguments one after another, all validated when decoded; iterating copies and allocates nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arguments<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl<'a> Arguments<'a> {
    /// No tensors.
    pub const EMPTY: Arguments<'static> = Arguments { count: 0, bytes: &[] };

    /// Validates `count` tensors that fill `bytes` exactly.
    pub(super) fn decode(count: u32, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if count as usize > limits::ARGUMENTS {
            let limit = limits::ARGUMENTS as u64;
            return Err(DecodeError::TooLong { what: "argument count", length: u64::from(count), limit });
        }
        let mut rest = bytes;
        for _ in 0..count {
            (_, rest) = take(rest)?;
        }
        if rest.is_empty() { Ok(Self { count, bytes }) } else { Err(DecodeError::Trailing(rest.len())) }
    }

    /// `count` tensors written by [`write_argument`], [`write_resident`] or [`write_token_of`] into `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] if they are not that.
    pub fn new(count: u32, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        Self::decode(count, bytes)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The tensors in order.
    pub fn iter(&self) -> impl Iterator<Item = Argument<'a>> + use<'a> {
        let mut rest = self.bytes;
        (0..self.count).map_while(move |_| {
            let (argument, after) = take(rest).ok()?;
            rest = after;
            Some(argument)
        })
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

fn take(bytes: &[u8]) -> Result<(Argument<'_>, &[u8]), DecodeError> {
    let (field, rest) = layout::take::<ArgumentField>(bytes)?;
    layout::zero(&field.zero, "argument")?;
    let dtype = dtype_of(field.dtype)?;
    let rank = usize::from(field.rank);
    if rank > limits::RANK {
        return Err(DecodeError::Rank(rank));
    }
    let (raw, rest) = rest.split_at_checked(rank * 4).ok_or(DecodeError::Truncated)?;
    let mut dims = Dims { rank: field.rank, dims: [0; limits::RANK] };
    let mut bytes = dtype.bytes();
    for (value, raw) in dims.dims.iter_mut().zip(raw.as_chunks::<4>().0) {
        let dim = u32::from_le_bytes(*raw);
        if dim == 0 || dim > i32::MAX as u32 {
            return Err(DecodeError::Dimension(i64::from(dim.cast_signed())));
        }
        *value = u64::from(dim);
        bytes = bytes.checked_mul(*value).ok_or(DecodeError::Overflow("element count"))?;
    }
    let index = field.index.get();
    match field.form {
        0 => {
            let n = usize::try_from(bytes).map_err(|_| DecodeError::Overflow("element count"))?;
            let (data, rest) = rest.split_at_checked(n).ok_or(DecodeError::Truncated)?;
            Ok((Argument::Inline { index, dtype, dims, data }, rest))
        }
        1 => {
            let (handle, rest) = layout::take::<HandleField>(rest)?;
            Ok((Argument::Resident { index, dtype, dims, handle: Handle::from_field(handle) }, rest))
        }
        2 => {
            if dtype != DType::I32 || bytes != dtype.bytes() {
                return Err(DecodeError::Range("the token of another request is one i32"));
            }
            let (field, rest) = layout::take::<TokenOfField>(rest)?;
            match field.request.get() {
                0 => Err(DecodeError::Range("the token of a request without an id")),
                request => Ok((Argument::TokenOf { index, dims, request }, rest)),
            }
        }
        other => Err(DecodeError::Enum { what: "argument form", value: u32::from(other) }),
    }
}

/// Appends an inline tensor. `data` must have the bytes that type and dimensions say.
///
/// # Errors
/// [`DecodeError`] names what the peer would refuse; nothing was appended.
pub fn write_argument(
    out: &mut Vec<u8>,
    index: u16,
    dtype: DType,
    dims: &[u64],
    data: &[u8],
) -> Result<(), DecodeError> {
    if bytes_of(dtype, dims)? != data.len() as u64 {
        return Err(DecodeError::Range("an inline tensor's bytes do not match its shape"));
    }
    write_field(out, index, dtype, dims, 0);
    out.extend_from_slice(data);
    Ok(())
}

/// Appends a tensor that is on the server: an input that a run reads there, or an output that stayed.
///
/// # Errors
/// [`DecodeError`] if the peer would refuse its dimensions, of which each has 31 bits; nothing was appended.
pub fn write_resident(out: &mut Vec<u8>, index: u16, spec: &TensorSpec, handle: Handle) -> Result<(), DecodeError> {
    bytes_of(spec.dtype(), spec.dims())?;
    write_field(out, index, spec.dtype(), spec.dims(), 1);
    out.extend_from_slice(handle.to_field().as_bytes());
    Ok(())
}

/// Appends the token that the run with this request id gives: an `i32 [1, 1]`.
pub fn write_token_of(out: &mut Vec<u8>, index: u16, request: u64) {
    write_field(out, index, DType::I32, &[1, 1], 2);
    out.extend_from_slice(TokenOfField { request: request.into() }.as_bytes());
}

/// The bytes of a tensor whose dimensions can be told.
fn bytes_of(dtype: DType, dims: &[u64]) -> Result<u64, DecodeError> {
    if dims.len() > limits::RANK {
        return Err(DecodeError::Rank(dims.len()));
    }
    dims.iter().try_fold(dtype.bytes(), |bytes, &dim| {
        if dim == 0 || i32::try_from(dim).is_err() {
            return Err(DecodeError::Dimension(dim.cast_signed()));
        }
        bytes.checked_mul(dim).ok_or(DecodeError::Overflow("element count"))
    })
}

fn write_field(out: &mut Vec<u8>, index: u16, dtype: DType, dims: &[u64], form: u8) {
    let field = ArgumentField { index: index.into(), dtype: dtype.code(), rank: dims.len() as u8, form, zero: [0; 3] };
    out.extend_from_slice(field.as_bytes());
    dims.iter().for_each(|&dim| out.extend_from_slice(&(dim as u32).to_le_bytes()));
}
