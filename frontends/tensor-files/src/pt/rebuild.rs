//! From what a pickle describes to tensors.

use std::collections::HashSet;

use bytes::Bytes;

use super::object::{Heap, TensorRef, Value};
use crate::strided::{Allowance, View};
use crate::{Contents, Format, Limits, ReadError, Tensor};

/// Where storages lie.
pub(super) trait Storages {
    /// All bytes of a storage.
    fn storage(&mut self, key: &str, allowance: &mut Allowance<'_>) -> Result<Bytes, ReadError>;

    /// Whether the most significant byte of an element comes first.
    fn is_big_endian(&self) -> bool;
}

/// The tensors that a pickle's value holds.
pub(super) fn contents(
    value: Value<'_>,
    heap: &Heap<'_>,
    storages: &mut dyn Storages,
    limits: &Limits,
    allowance: &mut Allowance<'_>,
) -> Result<Contents, ReadError> {
    let mut tensor = |value: Value<'_>, place: &dyn Fn() -> String| match value {
        Value::Tensor(index) => {
            let described = heap.tensors.get(index).ok_or_else(|| bad("a tensor is missing"))?;
            tensor(described, storages, allowance)
        }
        other => Err(bad(format!("{} is {}, but must be a tensor", place(), other.kind()))),
    };
    let bounded = |count: usize| {
        let (wanted, limit) = (count as u64, limits.tensors as u64);
        let over = ReadError::TooLarge { format: Format::Pt, what: "tensors", wanted, limit };
        if count > limits.tensors { Err(over) } else { Ok(()) }
    };
    match value {
        Value::Dict(index) => {
            let entries = heap.dicts.get(index).map_or(&[][..], Vec::as_slice);
            bounded(entries.len())?;
            let (mut seen, mut tensors) = (HashSet::new(), Vec::with_capacity(entries.len()));
            for (key, value) in entries {
                let key = match key {
                    Value::Str(key) => (*key).to_owned(),
                    Value::Int(key) => key.to_string(),
                    other => {
                        return Err(bad(format!("a dict has {} as a key, but must have str or int", other.kind())));
                    }
                };
                if !seen.insert(key.clone()) {
                    return Err(bad(format!("the key '{key}' stands in the dict twice")));
                }
                let tensor = tensor(*value, &|| format!("'{key}'"))?;
                tensors.push((key, tensor));
            }
            Ok(Contents::Dict(tensors))
        }
        Value::List(index) | Value::Tuple(index) => {
            let place = if matches!(value, Value::List(_)) { &heap.lists } else { &heap.tuples };
            let items = place.get(index).map_or(&[][..], Vec::as_slice);
            bounded(items.len())?;
            let all = items.iter().enumerate().map(|(i, item)| tensor(*item, &|| format!("item {i}")));
            Ok(Contents::List(all.collect::<Result<_, _>>()?))
        }
        value => tensor(value, &|| "what it holds".to_owned()).map(Contents::One),
    }
}

fn bad(reason: impl Into<String>) -> ReadError {
    ReadError::malformed(Format::Pt, reason)
}

fn tensor(
    described: &TensorRef<'_>,
    storages: &mut dyn Storages,
    allowance: &mut Allowance<'_>,
) -> Result<Tensor, ReadError> {
    let &TensorRef { storage, dtype, offset, ref dims, ref strides } = described;
    let bytes = storages.storage(storage.key, allowance)?;
    let counted = storage.dtype.map_or(1, genie_graph::DType::bytes);
    let wrong = || bad(format!("the storage '{}' has not as many bytes as the pickle says", storage.key));
    if storage.count.checked_mul(counted) != Some(bytes.len() as u64) {
        return Err(wrong());
    }
    let offset = if storage.dtype.is_some() { offset.checked_add(storage.first) } else { Some(offset) };
    let offset = offset.ok_or_else(wrong)?;
    let view = View { format: Format::Pt, dtype, dims, strides, offset, big_endian: storages.is_big_endian() };
    Ok(Tensor { dtype, dims: dims.clone(), data: view.of(&bytes, allowance)? })
}
