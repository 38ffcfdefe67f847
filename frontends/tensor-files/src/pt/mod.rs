//! `.pt`: a pickle, and the storages of the tensors that it names.

mod global;
mod legacy;
mod object;
mod pickle;
mod rebuild;
mod zipped;

use bytes::Bytes;

use crate::strided::Allowance;
use crate::{Contents, Limits, ReadError, WriteError, zip};

/// Whether this begins as one of the two forms.
pub(crate) fn is(bytes: &[u8]) -> bool {
    bytes.starts_with(zip::MAGIC) || legacy::is_pickle(bytes)
}

pub(crate) fn read(file: &Bytes, limits: &Limits, allowance: &mut Allowance<'_>) -> Result<Contents, ReadError> {
    if file.starts_with(zip::MAGIC) {
        zipped::read(file, limits, allowance)
    } else {
        legacy::read(file, limits, allowance)
    }
}

pub(crate) fn write(contents: &Contents) -> Result<Vec<Bytes>, WriteError> {
    zipped::write(contents)
}
