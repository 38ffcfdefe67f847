//! Memory by Python's buffer protocol.

use std::ffi::{CStr, c_int};
use std::ptr::NonNull;

use genie_graph::DType;
use pyo3::prelude::*;

use crate::errors::bad_input;
use crate::memory::{self, Block, Owner};
use crate::protocol::{self, PyBuffer};

const READ: c_int = protocol::FORMAT | protocol::STRIDES;

/// An object's memory, lent to this side. Given back when it is dropped.
pub(crate) struct View(Box<PyBuffer>);

impl View {
    /// `None` if the object has not the protocol, or has it for elements that DLPack alone has names for.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        // SAFETY: attached, and the object lives.
        if unsafe { protocol::PyObject_CheckBuffer(object.as_ptr()) } == 0 {
            return Ok(None);
        }
        // Boxed: views with one dimension may lead to their own fields.
        let mut view = Box::new(PyBuffer::empty());
        // SAFETY: attached; the view is fresh, and filled in on success.
        if unsafe { protocol::PyObject_GetBuffer(object.as_ptr(), &raw mut *view, READ) } == 0 {
            return Ok(Some(Self(view)));
        }
        let error = PyErr::fetch(object.py());
        if object.hasattr("__dlpack__")? { Ok(None) } else { Err(error) }
    }

    /// Elements of type `wanted` are taken for that, whatever the object calls them, if they have its size.
    pub(crate) fn into_block(self, wanted: Option<DType>) -> PyResult<Block> {
        let view = &self.0;
        // SAFETY: an exporter keeps its format, which ends with a zero, until the view is released.
        let format = (!view.format.is_null()).then(|| unsafe { CStr::from_ptr(view.format) });
        let dtype = match wanted.filter(|wanted| wanted.bytes() as isize == view.itemsize) {
            Some(wanted) => wanted,
            None => dtype(format, view.itemsize)?,
        };
        // SAFETY: attached by the caller's object, and the view is held.
        if unsafe { protocol::PyBuffer_IsContiguous(&raw const **view, b'C' as _) } == 0 {
            return Err(bad_input(
                "the array has gaps, or its dimensions are out of order: give numpy.ascontiguousarray(x)",
            ));
        }
        let dims = match usize::try_from(view.ndim) {
            Ok(0) | Err(_) => Vec::new(),
            // SAFETY: a view with dimensions that was asked for by `PyBUF_STRIDES` has the size of each.
            Ok(n) => unsafe { std::slice::from_raw_parts(view.shape, n) }.to_vec(),
        };
        let dims: Vec<u64> = dims.into_iter().map(|d| u64::try_from(d).unwrap_or_default()).collect();
        let spec = memory::spec(dtype, &dims)?;
        let (at, writable) = (NonNull::new(view.buf.cast()), view.readonly == 0);
        let at = at.filter(|_| view.len as u64 == spec.bytes());
        let at = at.ok_or_else(|| bad_input("the object says one length and another shape"))?;
        // SAFETY: the view holds the memory, of the length that was just compared.
        Ok(unsafe { Block::new(at, spec, writable, Owner::Buffer { _kept: self }) })
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // While the interpreter ends, nobody can take the view back: the memory stays.
        Python::try_attach(|_| {
            // SAFETY: attached; the view was filled in by `PyObject_GetBuffer`, and is released once.
            unsafe { protocol::PyBuffer_Release(&raw mut *self.0) };
        });
    }
}

/// The code of an element type in `struct`'s notation; bf16 has none.
pub(crate) fn format(dtype: DType) -> Option<&'static CStr> {
    Some(match dtype {
        DType::F32 => c"f",
        DType::F16 => c"e",
        DType::BF16 => return None,
        DType::I64 => c"q",
        DType::I32 => c"i",
        DType::U8 => c"B",
        DType::Bool => c"?",
    })
}

fn dtype(format: Option<&CStr>, size: isize) -> PyResult<DType> {
    let Some(format) = format else { return Ok(DType::U8) };
    let text = format.to_string_lossy();
    let code = text.strip_prefix(['@', '=', '<']).unwrap_or(&text);
    Ok(match (code, size) {
        ("f", 4) => DType::F32,
        ("e", 2) => DType::F16,
        ("l" | "q" | "n", 8) => DType::I64,
        ("i" | "l", 4) => DType::I32,
        ("B" | "c", 1) => DType::U8,
        ("?", 1) => DType::Bool,
        ("d", _) => return Err(bad_input("f64 is no element type here: convert it, x.astype('float32')")),
        _ => {
            return Err(bad_input(format!(
                "elements of format '{text}' cannot be sent: f32, f16, i64, i32, u8 and bool can, little-endian; bf16 by DLPack, \
                 or as genie.asarray(x.view('uint16'), dtype='bf16')"
            )));
        }
    })
}
