//! The library's start and end, and how its functions come to its state.

use std::ffi::{CStr, c_char, c_uint};
use std::sync::{Mutex, PoisonError};

use crate::{MISTAKE, settings};

/// What a function answers: its error's number, where it is one.
pub(crate) type Answer<T = ()> = Result<T, c_uint>;

/// `NVML_ERROR_UNINITIALIZED`
pub(crate) const UNINITIALIZED: c_uint = 1;
/// `NVML_ERROR_INVALID_ARGUMENT`
pub(crate) const INVALID: c_uint = 2;
/// `NVML_ERROR_NOT_SUPPORTED`
pub(crate) const NOT_SUPPORTED: c_uint = 3;
/// `NVML_ERROR_NOT_FOUND`
pub(crate) const NOT_FOUND: c_uint = 6;
/// `NVML_ERROR_INSUFFICIENT_SIZE`
pub(crate) const TOO_SMALL: c_uint = 7;
/// `NVML_ERROR_GPU_IS_LOST`
pub(crate) const LOST: c_uint = 15;
/// `NVML_ERROR_ARGUMENT_VERSION_MISMATCH`
pub(crate) const OTHER_VERSION: c_uint = 25;

/// How often it was started and not ended, and how often it was started from nothing.
pub(crate) struct Library {
    started: u32,
    pub(crate) life: u32,
}

static LIBRARY: Mutex<Library> = Mutex::new(Library { started: 0, life: 0 });

/// Does something with the library's state, whether it was started or not.
fn anyhow(name: &'static str, body: impl FnOnce(&mut Library) -> Answer) -> c_uint {
    let mut library = LIBRARY.lock().unwrap_or_else(PoisonError::into_inner);
    let code = body(&mut library).err().unwrap_or(0);
    if [UNINITIALIZED, INVALID, TOO_SMALL, OTHER_VERSION].contains(&code) {
        eprintln!("{MISTAKE} {name}: error {code}");
    }
    code
}

/// The same, where it was started.
pub(crate) fn started(name: &'static str, body: impl FnOnce(&Library) -> Answer) -> c_uint {
    anyhow(name, |library| if library.started > 0 { body(library) } else { Err(UNINITIALIZED) })
}

#[unsafe(export_name = "nvmlInit_v2")]
pub(crate) extern "C" fn init() -> c_uint {
    anyhow("nvmlInit_v2", |library| {
        settings::refusal().map_or(Ok(()), Err)?;
        library.life += u32::from(library.started == 0);
        library.started += 1;
        Ok(())
    })
}

#[unsafe(export_name = "nvmlShutdown")]
pub(crate) extern "C" fn shutdown() -> c_uint {
    anyhow("nvmlShutdown", |library| {
        library.started = library.started.checked_sub(1).ok_or(UNINITIALIZED)?;
        Ok(())
    })
}

#[unsafe(export_name = "nvmlErrorString")]
extern "C" fn text(code: c_uint) -> *const c_char {
    let text: &CStr = match code {
        0 => c"success",
        UNINITIALIZED => c"uninitialized",
        INVALID => c"invalid argument",
        NOT_SUPPORTED => c"not supported",
        NOT_FOUND => c"not found",
        LOST => c"GPU is lost",
        _ => c"unknown error",
    };
    text.as_ptr()
}

/// # Safety
/// Here, and in other modules: what is written to can be written, and has as many bytes as is said.
#[unsafe(export_name = "nvmlSystemGetDriverVersion")]
unsafe extern "C" fn driver_version(to: *mut c_char, bytes: c_uint) -> c_uint {
    // SAFETY: as the caller has it.
    started("nvmlSystemGetDriverVersion", |_| unsafe { give_text(to, bytes, "580.65.06") })
}

/// Writes what a function gives.
///
/// # Safety
/// `to` is null, or can be written.
pub(crate) unsafe fn give<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return Err(INVALID);
    }
    // SAFETY: as the caller has it.
    unsafe { to.write(value) };
    Ok(())
}

/// # Safety
/// `to` is null, or `bytes` of it can be written.
pub(crate) unsafe fn give_text(to: *mut c_char, bytes: c_uint, text: &str) -> Answer {
    if to.is_null() {
        return Err(INVALID);
    }
    if bytes as usize <= text.len() {
        return Err(TOO_SMALL);
    }
    // SAFETY: as the caller has it: there is room for the text and a zero.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}
