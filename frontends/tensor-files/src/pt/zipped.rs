//! What `torch.save` writes since version 1.6: a zip file with the pickle and each storage as an entry.

mod write;

use std::collections::HashMap;

use bytes::Bytes;

use super::{pickle, rebuild};
use crate::strided::Allowance;
use crate::zip::Archive;
use crate::{Contents, Format, Limits, ReadError};

pub(super) use write::write;

/// Bytes of the pickle. One of ten thousand tensors has two megabytes.
const MAX_PICKLE: usize = 16 << 20;
/// Entries that are no storages.
const OTHERS: u64 = 64;

pub(super) fn read(file: &Bytes, limits: &Limits, allowance: &mut Allowance<'_>) -> Result<Contents, ReadError> {
    let bad = |reason: &str| ReadError::malformed(Format::Pt, reason);
    let archive = Archive::open(file, (limits.tensors as u64).saturating_add(OTHERS))?;
    // All lie in one folder, whatever its name.
    let mut roots =
        archive.names().filter_map(|name| name.strip_suffix("/data.pkl")).filter(|root| !root.contains('/'));
    let root = roots.next().ok_or_else(|| bad("it is a zip file, but not one that torch.save wrote"))?;
    if roots.next().is_some() {
        return Err(bad("it has two pickles"));
    }
    if archive.names().any(|name| name.strip_prefix(root).is_some_and(|name| name == "/constants.pkl")) {
        return Err(ReadError::refused("a TorchScript program"));
    }
    let mut entry = |name: &str| archive.entry(&format!("{root}/{name}"), allowance);
    let code = entry("data.pkl")?.unwrap_or_default();
    let big_endian = match entry("byteorder")?.as_deref() {
        None | Some(b"little") => false,
        Some(b"big") => true,
        Some(_) => return Err(bad("it has a byte order that does not exist")),
    };
    if code.len() > MAX_PICKLE {
        let (wanted, limit) = (code.len() as u64, MAX_PICKLE as u64);
        return Err(ReadError::TooLarge { format: Format::Pt, what: "a pickle", wanted, limit });
    }
    let (value, heap, _) = pickle::run(&code, limits.tensors)?;
    let mut storages = Storages { archive: &archive, root, big_endian, read: HashMap::new() };
    rebuild::contents(value, &heap, &mut storages, limits, allowance)
}

struct Storages<'a> {
    archive: &'a Archive<'a>,
    root: &'a str,
    big_endian: bool,
    /// Tensors share storages.
    read: HashMap<String, Bytes>,
}

impl rebuild::Storages for Storages<'_> {
    fn storage(&mut self, key: &str, allowance: &mut Allowance<'_>) -> Result<Bytes, ReadError> {
        if let Some(bytes) = self.read.get(key) {
            return Ok(bytes.clone());
        }
        let name = format!("{}/data/{key}", self.root);
        let missing = || ReadError::malformed(Format::Pt, format!("the storage '{key}' is missing"));
        let bytes = self.archive.entry(&name, allowance)?.ok_or_else(missing)?;
        self.read.insert(key.to_owned(), bytes.clone());
        Ok(bytes)
    }

    fn is_big_endian(&self) -> bool {
        self.big_endian
    }
}
