//! Addresses that are not aligned to what is read or written there: a GPU faults on them, and most CPUs do not notice.
//!
//! The compiler puts a check before each access (`-fsanitize=alignment`), and calls this where it fails.

use std::ffi::{CStr, c_char};
use std::io::Write as _;

/// Where the access is, as the compiler describes it: the start of its `TypeMismatchData`.
#[repr(C)]
struct Place {
    file: *const c_char,
    line: u32,
    column: u32,
}

/// There is nobody to answer an error to inside of a kernel.
///
/// # Safety
/// The compiler calls it, with what it made itself.
#[unsafe(no_mangle)]
unsafe extern "C" fn __ubsan_handle_type_mismatch_v1_abort(place: *const Place, address: usize) -> ! {
    // SAFETY: the compiler gives a constant of the program, whose file name ends with a zero.
    let (file, line) = unsafe { (CStr::from_ptr((*place).file), (*place).line) };
    // Not by a macro: tests keep what those print to themselves, and this process ends.
    let said =
        format!("{}:{line}: a kernel's access to {address:#x} is not aligned, or is null\n", file.to_string_lossy());
    let _ = std::io::stderr().write_all(said.as_bytes());
    std::process::abort();
}
