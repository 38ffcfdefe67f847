//! What C says, checked.

use std::ffi::{CStr, c_char, c_void};

use genie_graph::DType;
use genie_transport::wire::limits;

use crate::status::Failure;

/// The elements that a pointer leads to; none where there are none, whatever the pointer.
///
/// # Safety
/// Unless `count` is 0 or the pointer NULL, it leads to `count` initialised elements that nobody writes for as long as the result lives.
///
/// # Errors
/// NULL with a count, an address that is no multiple of the type's alignment, more bytes than there can be.
pub(crate) unsafe fn slice<'a, T>(start: *const T, count: usize, what: &str) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    if start.is_null() {
        return Err(Failure::argument(format!("{what} is NULL, and has a count of {count}")));
    }
    let fits = count.checked_mul(size_of::<T>()).is_some_and(|bytes| isize::try_from(bytes).is_ok());
    if !start.is_aligned() || !fits {
        return Err(Failure::argument(format!("{what} is no array of {count}: its address or its count is wrong")));
    }
    // SAFETY: not NULL, aligned and of a possible size, as was checked; the caller upholds the rest.
    Ok(unsafe { std::slice::from_raw_parts(start, count) })
}

/// The same of bytes.
///
/// # Safety
/// As [`slice`].
///
/// # Errors
/// As [`slice`].
pub(crate) unsafe fn bytes<'a>(start: *const c_void, count: usize, what: &str) -> Result<&'a [u8], Failure> {
    // SAFETY: the caller upholds it.
    unsafe { slice(start.cast(), count, what) }
}

/// A string that must be there.
///
/// # Safety
/// NULL, or bytes up to a 0, that nobody writes for as long as the result lives.
///
/// # Errors
/// NULL, or no UTF-8.
pub(crate) unsafe fn text<'a>(start: *const c_char, what: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller upholds it.
    let text = unsafe { optional_text(start, what) }?;
    text.ok_or_else(|| Failure::argument(format!("{what} is NULL")))
}

/// A string that may be NULL.
///
/// # Safety
/// As [`text`].
///
/// # Errors
/// No UTF-8.
pub(crate) unsafe fn optional_text<'a>(start: *const c_char, what: &str) -> Result<Option<&'a str>, Failure> {
    if start.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL; the caller upholds the rest.
    let text = unsafe { CStr::from_ptr(start) }.to_str();
    text.map(Some).map_err(|_| Failure::argument(format!("{what} is not UTF-8")))
}

/// A structure that must be there.
///
/// # Safety
/// NULL, or an initialised structure that nobody writes for as long as the result lives.
///
/// # Errors
/// NULL, or misaligned.
pub(crate) unsafe fn one<'a, T>(at: *const T, what: &str) -> Result<&'a T, Failure> {
    // SAFETY: the caller upholds it.
    let one = unsafe { slice(at, 1, what) }?;
    one.first().ok_or_else(|| Failure::argument(format!("{what} is missing")))
}

/// A structure that may be NULL.
///
/// # Safety
/// As [`one`].
///
/// # Errors
/// Misaligned.
pub(crate) unsafe fn optional<'a, T>(at: *const T, what: &str) -> Result<Option<&'a T>, Failure> {
    // SAFETY: the caller upholds it.
    if at.is_null() { Ok(None) } else { unsafe { one(at, what) }.map(Some) }
}

/// Where a result goes.
pub(crate) struct Place<T>(*mut T);

impl<T> Place<T> {
    /// A place that must be there. Nothing is written yet.
    ///
    /// # Safety
    /// NULL, or the caller's own memory for one value, initialised or not, which nobody else touches until the call returns.
    ///
    /// # Errors
    /// NULL, or misaligned.
    pub(crate) unsafe fn new(at: *mut T, what: &str) -> Result<Self, Failure> {
        if at.is_null() || !at.is_aligned() {
            return Err(Failure::argument(format!("{what} is NULL, or not aligned: pass the address of a variable")));
        }
        Ok(Self(at))
    }

    /// Writes it.
    pub(crate) fn set(self, value: T) {
        // SAFETY: whoever made it promised memory for one value; what was there is no Rust value, and is not dropped.
        unsafe { self.0.write(value) }
    }
}

/// A place that may be missing: what would go there is dropped then.
///
/// # Safety
/// As [`Place::new`].
///
/// # Errors
/// Misaligned.
pub(crate) unsafe fn optional_place<T>(at: *mut T, what: &str) -> Result<Option<Place<T>>, Failure> {
    // SAFETY: the caller upholds it.
    if at.is_null() { Ok(None) } else { unsafe { Place::new(at, what) }.map(Some) }
}

/// Where the first of several results go: as many as there is room for.
///
/// # Safety
/// Unless `room` is 0 or the pointer NULL, it leads to the caller's own memory for `room` values, initialised or not, which nobody else
/// touches until the call returns.
///
/// # Errors
/// NULL with room, or misaligned.
pub(crate) unsafe fn fill<T>(
    start: *mut T,
    room: usize,
    values: impl Iterator<Item = T>,
    what: &str,
) -> Result<(), Failure> {
    if room == 0 {
        return Ok(());
    }
    if start.is_null() || !start.is_aligned() {
        return Err(Failure::argument(format!("{what} is NULL or not aligned, and has room for {room}")));
    }
    for (i, value) in values.take(room).enumerate() {
        // SAFETY: within the room that the caller promises.
        unsafe { start.add(i).write(value) };
    }
    Ok(())
}

/// An element type.
///
/// # Errors
/// No such number.
pub(crate) fn dtype(number: i32) -> Result<DType, Failure> {
    let known = u8::try_from(number).ok().and_then(DType::from_code);
    known.ok_or_else(|| Failure::argument(format!("{number} is no genie_dtype")))
}

/// Dimensions.
///
/// # Safety
/// As [`slice`].
///
/// # Errors
/// As [`slice`]; or more than 8.
pub(crate) unsafe fn dims<'a>(start: *const u64, rank: usize) -> Result<&'a [u64], Failure> {
    if rank > limits::RANK {
        return Err(Failure::argument(format!("rank {rank} is over {}", limits::RANK)));
    }
    // SAFETY: the caller upholds it.
    unsafe { slice(start, rank, "dims") }
}

/// The number of a device.
///
/// # Errors
/// No server has so many.
pub(crate) fn device(number: u32) -> Result<u16, Failure> {
    u16::try_from(number).map_err(|_| Failure::argument(format!("there is no device {number}: see genie_devices")))
}

/// Text in an array that has room for it and a 0; cut where it has not.
pub(crate) fn chars<const N: usize>(text: &str) -> [c_char; N] {
    let mut end = text.len().min(N.saturating_sub(1));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut all = [0; N];
    for (to, from) in all.iter_mut().zip(text[..end].bytes()) {
        *to = from as c_char;
    }
    all
}
