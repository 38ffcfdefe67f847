//! Memory by DLPack, both ways: <https://dmlc.github.io/dlpack/latest/>.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use genie_graph::DType;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::errors::bad_input;
use crate::memory::{self, Block, Owner};

/// `DLTensor`.
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    dtype: Type,
    shape: *mut i64,
    /// In elements; null: row-major without gaps.
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLDataType`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Type {
    code: u8,
    bits: u8,
    lanes: u16,
}

/// `DLManagedTensor`.
#[repr(C)]
struct Plain {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Self)>,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
struct Versioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Self)>,
    flags: u64,
    tensor: Tensor,
}

const READ_ONLY: u64 = 1;
const CPU: i32 = 1;
/// Host memory that a GPU can read: pinned.
const HOSTS: [i32; 3] = [CPU, 3, 11];

const PLAIN: &CStr = c"dltensor";
const USED_PLAIN: &CStr = c"used_dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";

const TYPES: [(DType, Type); 7] = [
    (DType::F32, Type { code: 2, bits: 32, lanes: 1 }),
    (DType::F16, Type { code: 2, bits: 16, lanes: 1 }),
    (DType::BF16, Type { code: 4, bits: 16, lanes: 1 }),
    (DType::I64, Type { code: 0, bits: 64, lanes: 1 }),
    (DType::I32, Type { code: 0, bits: 32, lanes: 1 }),
    (DType::U8, Type { code: 1, bits: 8, lanes: 1 }),
    (DType::Bool, Type { code: 6, bits: 8, lanes: 1 }),
];

// ---- in

/// A tensor of another library. Given back when it is dropped.
pub(crate) struct Managed(NonNull<Plain>);

impl Managed {
    /// The tensor of an object that has `__dlpack__`.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let capsule = object.call_method0("__dlpack__")?;
        // SAFETY: attached; the capsule lives. A capsule of this name holds a `DLManagedTensor`, whose consumer renames it and from then
        // on owns the tensor.
        let taken = unsafe {
            let at = ffi::PyCapsule_GetPointer(capsule.as_ptr(), PLAIN.as_ptr());
            NonNull::new(at.cast()).filter(|_| ffi::PyCapsule_SetName(capsule.as_ptr(), USED_PLAIN.as_ptr()) == 0)
        };
        taken.map(Self).ok_or_else(|| PyErr::fetch(object.py()))
    }

    pub(crate) fn into_block(self) -> PyResult<Block> {
        // SAFETY: this side owns the tensor; its maker has filled it in, with `ndim` sizes, and as many strides unless they are null.
        let tensor = unsafe { &self.0.as_ref().tensor };
        if !HOSTS.contains(&tensor.device_type) {
            return Err(bad_input("the tensor is on another device: bring it to the CPU first, x.cpu()"));
        }
        let found = TYPES.iter().find(|(_, ty)| *ty == tensor.dtype);
        let &(dtype, _) = found.ok_or_else(|| {
            let Type { code, bits, .. } = tensor.dtype;
            bad_input(format!(
                "elements of DLPack type {code} with {bits} bits cannot be sent: f32, f16, bf16, i64, i32, u8 and bool can; convert it"
            ))
        })?;
        let rank = usize::try_from(tensor.ndim).unwrap_or_default();
        let list = |at: *mut i64| {
            // SAFETY: as above; a list of none is not looked at.
            if rank == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(at.cast_const(), rank) } }
        };
        let dims: Vec<u64> = list(tensor.shape).iter().map(|&d| u64::try_from(d).unwrap_or_default()).collect();
        let spec = memory::spec(dtype, &dims)?;
        if !tensor.strides.is_null() && !is_row_major(&dims, list(tensor.strides)) {
            return Err(bad_input("the tensor has gaps, or its dimensions are out of order: give x.contiguous()"));
        }
        let offset = usize::try_from(tensor.byte_offset).map_err(|_| bad_input("the tensor's offset is too large"))?;
        let at = NonNull::new(tensor.data.cast::<u8>().wrapping_add(offset));
        let at = at.ok_or_else(|| bad_input("the tensor has no memory"))?;
        // A maker that says nothing of it may have memory that must not be written.
        let writable = false;
        // SAFETY: the tensor keeps its memory, row-major and without gaps, until the deleter is called.
        Ok(unsafe { Block::new(at, spec, writable, Owner::Tensor { _kept: self }) })
    }
}

fn is_row_major(dims: &[u64], strides: &[i64]) -> bool {
    let mut wanted = 1_u64;
    dims.iter().zip(strides).rev().all(|(&dim, &stride)| {
        let fits = dim == 1 || u64::try_from(stride) == Ok(wanted);
        // No more than the tensor's elements, which were counted.
        wanted *= dim;
        fits
    })
}

impl Drop for Managed {
    fn drop(&mut self) {
        // Deleters may touch Python's objects. While the interpreter ends, the memory stays.
        Python::try_attach(|_| {
            // SAFETY: this side owns the tensor, and calls its deleter once.
            unsafe {
                if let Some(deleter) = self.0.as_ref().deleter {
                    deleter(self.0.as_ptr());
                }
            }
        });
    }
}

// ---- out

/// What a tensor that goes out keeps.
struct Context {
    _block: Arc<Block>,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

/// A capsule with the memory of an array, which it keeps. With `versioned`, as consumers since DLPack 1.0 ask for it, it says whether it
/// may be written.
#[pyfunction]
pub(crate) fn to_dlpack<'py>(memory: &Bound<'py, PyAny>, versioned: bool) -> PyResult<Bound<'py, PyAny>> {
    let (py, block) = (memory.py(), memory::block_of(memory, None)?);
    let shape: Vec<i64> = block.spec().dims().iter().map(|&d| d.cast_signed()).collect();
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    let (data, read_only, dtype) = (block.at(), !block.is_writable(), block.spec().dtype());
    if read_only && !versioned {
        return Err(pyo3::exceptions::PyBufferError::new_err(
            "this memory is read-only, which the consumer's DLPack cannot say: copy it first",
        ));
    }
    let ty = TYPES.iter().find(|(known, _)| *known == dtype).map(|(_, ty)| *ty);
    let ty = ty.ok_or_else(|| bad_input(format!("DLPack has no {dtype}")))?;
    let mut context = Box::new(Context { _block: block, shape, strides });
    let tensor = Tensor {
        data: data.as_ptr().cast(),
        device_type: CPU,
        device_id: 0,
        ndim: context.shape.len() as i32,
        dtype: ty,
        shape: context.shape.as_mut_ptr(),
        strides: context.strides.as_mut_ptr(),
        byte_offset: 0,
    };
    let context = Box::into_raw(context).cast();
    let (at, name, destructor): (*mut c_void, _, ffi::PyCapsule_Destructor) = if versioned {
        let flags = if read_only { READ_ONLY } else { 0 };
        let whole = Versioned { major: 1, minor: 0, context, deleter: Some(delete_versioned), flags, tensor };
        (Box::into_raw(Box::new(whole)).cast(), VERSIONED, forget_versioned)
    } else {
        let whole = Plain { tensor, context, deleter: Some(delete_plain) };
        (Box::into_raw(Box::new(whole)).cast(), PLAIN, forget_plain)
    };
    // SAFETY: attached; the name is static; the capsule's destructor, or whoever renames it, calls the deleter.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyCapsule_New(at, name.as_ptr(), Some(destructor))) }
}

unsafe extern "C" fn delete_plain(tensor: *mut Plain) {
    // SAFETY: made by `to_dlpack` from two boxes; whoever owns it calls this once.
    unsafe { drop(Box::from_raw(Box::from_raw(tensor).context.cast::<Context>())) };
}

unsafe extern "C" fn delete_versioned(tensor: *mut Versioned) {
    // SAFETY: as above.
    unsafe { drop(Box::from_raw(Box::from_raw(tensor).context.cast::<Context>())) };
}

unsafe extern "C" fn forget_plain(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls this attached, with a capsule of `to_dlpack`; one that was not consumed has its first name.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, PLAIN.as_ptr()) == 1 {
            delete_plain(ffi::PyCapsule_GetPointer(capsule, PLAIN.as_ptr()).cast());
        }
    }
}

unsafe extern "C" fn forget_versioned(capsule: *mut ffi::PyObject) {
    // SAFETY: as above.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, VERSIONED.as_ptr()) == 1 {
            delete_versioned(ffi::PyCapsule_GetPointer(capsule, VERSIONED.as_ptr()).cast());
        }
    }
}
