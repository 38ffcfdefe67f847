//! The records of a zip file that `torch.save` writes, and their reading.
//!
//! Ours, and not a library's: what is stored stays a part of the file, and entries that lie over one another are seen.

use std::collections::HashMap;
use std::io::Read;

use bytes::Bytes;
use crc_fast::CrcAlgorithm::Crc32IsoHdlc;

use crate::cursor::Cursor;
use crate::strided::Allowance;
use crate::{Format, ReadError};

/// What the first entry begins with.
pub(crate) const MAGIC: &[u8] = b"PK\x03\x04";

pub(crate) const LOCAL: u32 = 0x0403_4b50;
pub(crate) const CENTRAL: u32 = 0x0201_4b50;
pub(crate) const END: u32 = 0x0605_4b50;
pub(crate) const END64: u32 = 0x0606_4b50;
pub(crate) const END64_AT: u32 = 0x0706_4b50;
/// Bytes of the records that have a fixed length, without what follows them.
pub(crate) const LOCAL_BYTES: u64 = 30;
const END_BYTES: usize = 22;
const END64_AT_BYTES: u64 = 20;
/// A field that is too short for its value holds this, and the value stands in a field of zip64.
pub(crate) const ELSEWHERE: u32 = u32::MAX;
/// The extra field with the values of zip64.
pub(crate) const ZIP64: u16 = 1;

const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// The entries of a file, none of which shares a byte with another.
#[derive(Debug)]
pub(crate) struct Archive<'a> {
    file: &'a Bytes,
    entries: HashMap<&'a str, Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    method: u16,
    crc: u32,
    /// First byte of what is stored.
    at: u64,
    stored: u64,
    /// Bytes of what it is when it is not compressed.
    size: u64,
}

fn bad(reason: impl Into<String>) -> ReadError {
    ReadError::malformed(Format::Pt, reason)
}

fn cut() -> ReadError {
    ReadError::Cut(Format::Pt)
}

impl<'a> Archive<'a> {
    /// Reads the directory. `most`: entries that there may be.
    pub(crate) fn open(file: &'a Bytes, most: u64) -> Result<Self, ReadError> {
        let (count, start, length) = directory(file)?;
        if count > most {
            return Err(ReadError::TooLarge { format: Format::Pt, what: "entries", wanted: count, limit: most });
        }
        let end = start.checked_add(length).filter(|end| *end <= file.len() as u64).ok_or_else(cut)?;
        let records = file.get(start as usize..end as usize).ok_or_else(cut)?;
        let mut cursor = Cursor::new(records);
        let mut entries = HashMap::new();
        let mut extents = Vec::new();
        for _ in 0..count {
            let (name, entry, begin) = central(&mut cursor, file)?;
            extents.push((begin, entry.at.checked_add(entry.stored).filter(|end| *end <= start).ok_or_else(cut)?));
            if entries.insert(name, entry).is_some() {
                return Err(bad(format!("two entries have the name '{name}'")));
            }
        }
        extents.sort_unstable();
        // One byte that is in many entries makes much of little.
        if extents.windows(2).any(|two| matches!(two, [a, b] if a.1 > b.0)) {
            return Err(bad("entries lie over one another"));
        }
        Ok(Self { file, entries })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.entries.keys().copied()
    }

    /// The bytes of an entry: a part of the file if it is stored. `None`: there is no such entry.
    pub(crate) fn entry(&self, name: &str, allowance: &mut Allowance<'_>) -> Result<Option<Bytes>, ReadError> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        // `open` has seen that it lies within the file.
        let stored = self.file.slice(entry.at as usize..(entry.at + entry.stored) as usize);
        let bytes = match entry.method {
            STORED if entry.stored == entry.size => stored,
            STORED => return Err(bad(format!("'{name}' is stored in {} bytes but has {}", entry.stored, entry.size))),
            DEFLATED => inflate(&stored, entry.size, allowance).and_then(|bytes| {
                bytes.ok_or_else(|| bad(format!("'{name}' does not inflate to its {} bytes", entry.size)))
            })?,
            method => return Err(bad(format!("'{name}' is compressed by method {method}, but only deflate is known"))),
        };
        // PyTorch writes 0 where it is told to spare itself the sums.
        if entry.crc != 0 && crc_fast::checksum(Crc32IsoHdlc, &bytes) != u64::from(entry.crc) {
            return Err(bad(format!("the checksum of '{name}' is wrong")));
        }
        Ok(Some(bytes))
    }
}

/// `None`: it does not inflate to so many bytes.
fn inflate(stored: &Bytes, size: u64, allowance: &mut Allowance<'_>) -> Result<Option<Bytes>, ReadError> {
    // Before anything is made of it: a bomb claims what it is, or is caught when it passes what it claims.
    allowance.take(size, Format::Pt)?;
    let mut bytes = Vec::new();
    let read = flate2::read::DeflateDecoder::new(&stored[..]).take(size.saturating_add(1)).read_to_end(&mut bytes);
    Ok((read.is_ok() && bytes.len() as u64 == size).then(|| bytes.into()))
}

/// Entries, first byte and length of the directory.
fn directory(file: &[u8]) -> Result<(u64, u64, u64), ReadError> {
    let none = || bad("it is a zip file without a directory: it may be cut short");
    // Behind it may stand a comment of up to 64 KiB.
    let earliest = file.len().saturating_sub(END_BYTES + usize::from(u16::MAX));
    let last = file.len().checked_sub(END_BYTES).ok_or_else(none)?;
    let whole = |at: usize| {
        let mut cursor = Cursor::new(file.get(at..)?);
        (cursor.u32()? == END).then_some(())?;
        let [disk, first, here, all] = [cursor.u16()?, cursor.u16()?, cursor.u16()?, cursor.u16()?];
        let (length, start, comment) = (cursor.u32()?, cursor.u32()?, cursor.u16()?);
        let plain = disk == first && here == all && cursor.len() == usize::from(comment);
        plain.then_some((at, u64::from(all), start, length))
    };
    let (at, count, start, length) = (earliest..=last).rev().find_map(whole).ok_or_else(none)?;
    // PyTorch writes the larger record always, and the values here where they fit.
    if count < u64::from(u16::MAX) && start != ELSEWHERE && length != ELSEWHERE {
        return Ok((count, u64::from(start), u64::from(length)));
    }
    let large = || {
        let locator = (at as u64).checked_sub(END64_AT_BYTES)?;
        let mut cursor = Cursor::new(file.get(locator as usize..)?);
        (cursor.u32()? == END64_AT && cursor.u32()? == 0).then_some(())?;
        let mut cursor = Cursor::new(file.get(usize::try_from(cursor.u64()?).ok()?..)?);
        (cursor.u32()? == END64).then_some(())?;
        cursor.take(8 + 2 + 2 + 4 + 4 + 8)?;
        Some((cursor.u64()?, cursor.u64()?, cursor.u64()?))
    };
    let (count, length, start) = large().ok_or_else(|| bad("its zip64 directory is not where it should be"))?;
    Ok((count, start, length))
}

/// The next record of the directory, and the first byte of its entry.
fn central<'a>(cursor: &mut Cursor<'a>, file: &[u8]) -> Result<(&'a str, Entry, u64), ReadError> {
    let record = |cursor: &mut Cursor<'a>| {
        (cursor.u32()? == CENTRAL).then_some(())?;
        cursor.take(4)?;
        let [flags, method, _time, _date] = [cursor.u16()?, cursor.u16()?, cursor.u16()?, cursor.u16()?];
        let (crc, stored, size) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
        let [name, extra, comment] = [cursor.u16()?, cursor.u16()?, cursor.u16()?];
        cursor.take(2 + 2 + 4)?;
        let at = cursor.u32()?;
        let name = cursor.take(name.into())?;
        let mut large = zip64(cursor.take(extra.into())?);
        cursor.take(comment.into())?;
        // In this order, each only if it is not here.
        let mut value = |short: u32| if short == ELSEWHERE { large.u64() } else { Some(u64::from(short)) };
        let (size, stored, begin) = (value(size)?, value(stored)?, value(at)?);
        Some((name, flags, Entry { method, crc, at: begin, stored, size }))
    };
    let (name, flags, mut entry) = record(cursor).ok_or_else(|| bad("a record of its directory is not whole"))?;
    let name = std::str::from_utf8(name).map_err(|_| bad("the name of an entry is not text"))?;
    if flags & 1 != 0 {
        return Err(bad(format!("'{name}' is encrypted")));
    }
    // The entry's own record says where its bytes begin. What else it says is not looked at: the directory counts.
    let begin = entry.at;
    let local = || {
        let mut cursor = Cursor::new(file.get(usize::try_from(begin).ok()?..)?);
        (cursor.u32()? == LOCAL).then_some(())?;
        cursor.take(22)?;
        let (name, extra) = (u64::from(cursor.u16()?), u64::from(cursor.u16()?));
        begin.checked_add(LOCAL_BYTES + name + extra)
    };
    entry.at = local().ok_or_else(|| bad(format!("'{name}' is not where the directory says")))?;
    Ok((name, entry, begin))
}

/// The values of the zip64 field among extra fields; empty if there is none.
fn zip64(extra: &[u8]) -> Cursor<'_> {
    let mut cursor = Cursor::new(extra);
    let mut next = || Some((cursor.u16()?, cursor.u16().and_then(|length| cursor.take(length.into()))?));
    while let Some((tag, value)) = next() {
        if tag == ZIP64 {
            return Cursor::new(value);
        }
    }
    Cursor::new(&[])
}

#[cfg(test)]
#[path = "zip_tests.rs"]
mod tests;
