//! What `torch.save` wrote before version 1.6: pickles one after another, then the storages.

use std::collections::HashMap;

use bytes::Bytes;
use genie_graph::DType;

use super::object::Value;
use super::{pickle, rebuild};
use crate::cursor::Cursor;
use crate::strided::Allowance;
use crate::{Contents, Format, Limits, ReadError};

/// What the first pickle holds: 0x1950a86a20f9469cfc6c.
const MAGIC: &[u8] = &[0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The only version that there is.
const VERSION: i64 = 1001;
/// Bytes of one pickle.
const MAX_PICKLE: usize = 16 << 20;

/// Whether this begins as a pickle of a protocol that is read: whether it is one of PyTorch's is seen when it is read.
pub(super) fn is_pickle(bytes: &[u8]) -> bool {
    matches!(bytes, [0x80, 2..=5, ..])
}

pub(super) fn read(file: &Bytes, limits: &Limits, allowance: &mut Allowance<'_>) -> Result<Contents, ReadError> {
    let bad = |reason: &str| ReadError::malformed(Format::Pt, reason);
    let mut at = 0;
    let mut next = || {
        let rest = file.get(at..).unwrap_or_default();
        let (value, heap, taken) = pickle::run(rest.get(..MAX_PICKLE).unwrap_or(rest), limits.tensors)?;
        at += taken;
        Ok::<_, ReadError>((value, heap, at))
    };
    if next()?.0 != Value::Long(MAGIC) {
        return Err(bad("it is a pickle, but not one that torch.save wrote"));
    }
    if next()?.0 != Value::Int(VERSION) {
        return Err(bad("its version is unknown"));
    }
    // What machine wrote it says nothing of the storages: they are little-endian from all of them.
    next()?;
    let (value, heap, _) = next()?;
    let (keys, key_heap, end) = next()?;
    let keys = match keys {
        Value::List(index) => key_heap.lists.get(index),
        _ => None,
    };
    let types: HashMap<_, _> = heap.storages.iter().map(|storage| (storage.key, storage.dtype)).collect();
    let data = file.slice(end..);
    let mut cursor = Cursor::new(&data);
    let mut all = HashMap::new();
    for key in keys.ok_or_else(|| bad("it does not list its storages"))? {
        let &Value::Str(key) = key else { return Err(bad("the key of a storage is no str")) };
        let dtype = types.get(key).ok_or_else(|| bad("it lists a storage that no tensor has"))?;
        let count = cursor.u64().ok_or(ReadError::Cut(Format::Pt))?;
        let bytes = count.checked_mul(dtype.map_or(1, DType::bytes)).and_then(|bytes| cursor.take(bytes));
        let bytes = bytes.ok_or(ReadError::Cut(Format::Pt))?;
        if all.insert(key, data.slice_ref(bytes)).is_some() {
            return Err(bad("it lists a storage twice"));
        }
    }
    if cursor.len() != 0 {
        return Err(bad("more follows after its storages"));
    }
    rebuild::contents(value, &heap, &mut Storages { all }, limits, allowance)
}

struct Storages<'a> {
    all: HashMap<&'a str, Bytes>,
}

impl rebuild::Storages for Storages<'_> {
    fn storage(&mut self, key: &str, _: &mut Allowance<'_>) -> Result<Bytes, ReadError> {
        let missing = || ReadError::malformed(Format::Pt, format!("the storage '{key}' is missing"));
        self.all.get(key).cloned().ok_or_else(missing)
    }

    fn is_big_endian(&self) -> bool {
        false
    }
}
