//! What a pickle makes.

use genie_graph::DType;

use super::global::Global;

/// A value on the stack. What is large lies in [`Heap`], so that no value owns another: a list may hold itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// Larger than an `i64`, little-endian two's complement.
    Long(&'a [u8]),
    Float,
    Str(&'a str),
    Global(Global),
    /// Each an index into the heap.
    Tuple(usize),
    List(usize),
    Dict(usize),
    Storage(usize),
    Tensor(usize),
}

impl Value<'_> {
    /// In words, for errors.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) | Self::Long(_) => "an int",
            Self::Float => "a float",
            Self::Str(_) => "a str",
            Self::Global(_) => "a name",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// A storage as a pickle names it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct StorageRef<'a> {
    /// `None`: bytes.
    pub(super) dtype: Option<DType>,
    pub(super) key: &'a str,
    /// Elements that it has.
    pub(super) count: u64,
    /// Where the part begins that is meant, in elements: old files name parts of storages.
    pub(super) first: u64,
}

/// A tensor as a pickle describes it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorRef<'a> {
    pub(super) storage: StorageRef<'a>,
    pub(super) dtype: DType,
    pub(super) offset: u64,
    pub(super) dims: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// A pickle's objects.
#[derive(Debug, Default)]
pub(super) struct Heap<'a> {
    pub(super) tuples: Vec<Vec<Value<'a>>>,
    pub(super) lists: Vec<Vec<Value<'a>>>,
    pub(super) dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    pub(super) storages: Vec<StorageRef<'a>>,
    pub(super) tensors: Vec<TensorRef<'a>>,
}

/// Puts an object into its place, and gives its index.
pub(super) fn keep<T>(place: &mut Vec<T>, object: T) -> usize {
    place.push(object);
    place.len() - 1
}
