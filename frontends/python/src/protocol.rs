//! Python's buffer protocol in C.
//!
//! It is part of the stable ABI since Python 3.11, as it stood in 3.10 and before: the struct, these functions and the numbers of the
//! flags have not changed. Bindings for an extension that is to load in 3.10 do not have it, and so it stands here.

use std::ffi::{c_char, c_int, c_void};

use pyo3::ffi::{Py_ssize_t, PyObject};

/// `Py_buffer`.
#[repr(C)]
pub(crate) struct PyBuffer {
    pub(crate) buf: *mut c_void,
    /// Owned.
    pub(crate) obj: *mut PyObject,
    pub(crate) len: Py_ssize_t,
    pub(crate) itemsize: Py_ssize_t,
    pub(crate) readonly: c_int,
    pub(crate) ndim: c_int,
    pub(crate) format: *mut c_char,
    pub(crate) shape: *mut Py_ssize_t,
    pub(crate) strides: *mut Py_ssize_t,
    pub(crate) suboffsets: *mut Py_ssize_t,
    pub(crate) internal: *mut c_void,
}

impl PyBuffer {
    /// To be filled in.
    pub(crate) const fn empty() -> Self {
        use std::ptr::null_mut;
        Self {
            buf: null_mut(),
            obj: null_mut(),
            len: 0,
            itemsize: 0,
            readonly: 0,
            ndim: 0,
            format: null_mut(),
            shape: null_mut(),
            strides: null_mut(),
            suboffsets: null_mut(),
            internal: null_mut(),
        }
    }
}

unsafe extern "C" {
    pub(crate) fn PyObject_CheckBuffer(object: *mut PyObject) -> c_int;
    pub(crate) fn PyObject_GetBuffer(object: *mut PyObject, view: *mut PyBuffer, flags: c_int) -> c_int;
    pub(crate) fn PyBuffer_IsContiguous(view: *const PyBuffer, order: c_char) -> c_int;
    pub(crate) fn PyBuffer_Release(view: *mut PyBuffer);
}

pub(crate) const WRITABLE: c_int = 0x1;
pub(crate) const FORMAT: c_int = 0x4;
pub(crate) const ND: c_int = 0x8;
pub(crate) const STRIDES: c_int = 0x10 | ND;
pub(crate) const C_CONTIGUOUS: c_int = 0x20 | STRIDES;
pub(crate) const F_CONTIGUOUS: c_int = 0x40 | STRIDES;
pub(crate) const ANY_CONTIGUOUS: c_int = 0x80 | STRIDES;

/// The slot of a class's `getbuffer`.
pub(crate) const GET_BUFFER_SLOT: c_int = 1;
