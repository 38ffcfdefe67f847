//! Memory that Python's objects, this side's transfers and other libraries share.

use std::ffi::{CStr, c_int, c_void};
use std::mem::offset_of;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use genie_graph::DType;
use genie_transport::memory::{Region, Slab};
use genie_transport::wire::TensorSpec;
use pyo3::exceptions::{PyBufferError, PyException};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};

use crate::errors::{bad_input, in_range};
use crate::protocol::{self, PyBuffer};
use crate::shared::Shared;
use crate::{buffer, dlpack, dtype};

/// Elements in memory that lies still as long as the block lives, without gaps, row-major.
pub(crate) struct Block {
    at: NonNull<u8>,
    spec: TensorSpec,
    shape: Vec<isize>,
    /// In bytes.
    strides: Vec<isize>,
    writable: bool,
    _owner: Owner,
}

/// What keeps a block's memory.
pub(crate) enum Owner {
    /// A get's. The slab goes back to the session, for its next get.
    Slab { slab: Option<Slab>, home: Weak<Shared> },
    /// A get's that cannot be written.
    Region { _kept: Region },
    /// A run's.
    Vec { _kept: Vec<u8> },
    /// An object's with the buffer protocol.
    Buffer { _kept: buffer::View },
    /// An object's that speaks DLPack.
    Tensor { _kept: dlpack::Managed },
    /// Another block's, seen with another type or shape.
    Other { _kept: Arc<Block> },
}

// SAFETY: the bytes lie still, and each owner may be dropped on any thread: `View` and `Managed` attach to Python for it, the others are
// plain memory. Nobody gets at an owner otherwise.
unsafe impl Send for Block {}
// SAFETY: a shared block gives out its bytes to be read only. Python code that writes to an array which is being sent changes what is
// sent, as it would with any library's arrays; no length or address lies among those bytes.
unsafe impl Sync for Block {}

impl Block {
    /// # Safety
    /// `at` leads to as many bytes as `spec` says, which `owner` keeps in place.
    pub(crate) unsafe fn new(at: NonNull<u8>, spec: TensorSpec, writable: bool, owner: Owner) -> Self {
        let size = spec.dtype().bytes();
        // Such a tensor's bytes lie in memory, or will be compared with what lies there: each number fits.
        let shape: Vec<isize> = spec.dims().iter().map(|&d| d as isize).collect();
        let mut strides = vec![size as isize; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        Self { at, spec, shape, strides, writable, _owner: owner }
    }

    /// What a get brought.
    pub(crate) fn of_region(region: Region, spec: TensorSpec, home: &Arc<Shared>) -> PyResult<Self> {
        check_length(region.len(), &spec)?;
        Ok(match region.try_thaw() {
            Ok(mut slab) => {
                let at = NonNull::from(&mut slab[..]).cast();
                home.lend(&slab);
                let home = Arc::downgrade(home);
                // SAFETY: a slab's memory lies still, and `check_length` has compared its bytes.
                unsafe { Self::new(at, spec, true, Owner::Slab { slab: Some(slab), home }) }
            }
            Err(region) => {
                let at = NonNull::from(&region[..]).cast();
                // SAFETY: as above.
                unsafe { Self::new(at, spec, false, Owner::Region { _kept: region }) }
            }
        })
    }

    /// What a run gave.
    pub(crate) fn of_vec(mut bytes: Vec<u8>, spec: TensorSpec) -> PyResult<Self> {
        check_length(bytes.len(), &spec)?;
        let at = NonNull::from(&mut bytes[..]).cast();
        // SAFETY: the vector is not touched until it is dropped with the block.
        Ok(unsafe { Self::new(at, spec, true, Owner::Vec { _kept: bytes }) })
    }

    /// The same bytes as elements of another type or shape.
    pub(crate) fn seen_as(self: Arc<Self>, spec: TensorSpec) -> PyResult<Self> {
        check_length(self.bytes().len(), &spec)?;
        let (at, writable) = (self.at, self.writable);
        // SAFETY: the other block keeps the bytes, of which there are as many.
        Ok(unsafe { Self::new(at, spec, writable, Owner::Other { _kept: self }) })
    }

    pub(crate) fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `new`'s caller saw to it; the length was checked when the block was made, and so fits.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.spec.bytes() as usize) }
    }

    /// As a payload: where it lies, but for memory that a get of this session brought, by whatever way it came here. Over a link that shares
    /// memory the server would keep the tensor in there, where Python may still write.
    pub(crate) fn payload(self: Arc<Self>, session: &Arc<Shared>) -> Bytes {
        if session.has_lent(self.bytes()) {
            Bytes::copy_from_slice(self.bytes())
        } else {
            Bytes::from_owner(Payload { block: Some(self), session: Arc::downgrade(session) })
        }
    }

    pub(crate) fn at(&self) -> NonNull<u8> {
        self.at
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }
}

/// A block on its way to a session, under whose lock it is dropped.
struct Payload {
    /// `None` once it is dropped.
    block: Option<Arc<Block>>,
    session: Weak<Shared>,
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.block.as_ref().map_or(&[], |block| block.bytes())
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        if let (Some(session), Some(block)) = (self.session.upgrade(), self.block.take()) {
            session.drop_later(block);
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Self::Slab { slab, home } = self
            && let (Some(slab), Some(home)) = (slab.take(), home.upgrade())
        {
            home.take_back(slab.freeze());
        }
    }
}

fn check_length(bytes: usize, spec: &TensorSpec) -> PyResult<()> {
    if bytes as u64 == spec.bytes() {
        return Ok(());
    }
    let (dtype, dims, wanted) = (spec.dtype(), spec.dims(), spec.bytes());
    Err(bad_input(format!("{dtype} {dims:?} takes {wanted} bytes, but there are {bytes}")))
}

/// A spec of numbers that a caller gave.
pub(crate) fn spec(dtype: DType, dims: &[u64]) -> PyResult<TensorSpec> {
    TensorSpec::new(dtype, dims).map_err(|error| bad_input(format!("no tensor can have the shape {dims:?}: {error}")))
}

/// The memory of an object: a `Memory`'s, or one that has the buffer protocol or speaks DLPack. Nothing is copied. Elements
/// that an object calls otherwise are taken for `wanted` ones, if they have their size.
pub(crate) fn block_of(object: &Bound<'_, PyAny>, wanted: Option<DType>) -> PyResult<Arc<Block>> {
    if let Some(block) = of_memory(object)? {
        return Ok(block);
    }
    let class = || object.get_type().to_string();
    let refused = |error: PyErr| match error.is_instance_of::<PyException>(object.py()) {
        true => bad_input(format!("{} does not give its memory: {error}", class())),
        false => error,
    };
    if let Some(view) = buffer::View::of(object).map_err(refused)? {
        return view.into_block(wanted).map(Arc::new);
    }
    if object.hasattr("__dlpack__")? {
        return dlpack::Managed::of(object).map_err(refused)?.into_block().map(Arc::new);
    }
    let class = class();
    Err(bad_input(format!(
        "{class} has no memory that could be sent: give something with the buffer protocol (a NumPy array, bytes, array.array) or \
         with DLPack (a PyTorch tensor on the CPU)"
    )))
}

// ---- the class `Memory`

/// An instance of `Memory`. `block` came from `Arc::into_raw`, or is null while the object is being made.
#[repr(C)]
struct Object {
    head: ffi::PyObject,
    block: *const Block,
}

static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// `_native.Memory`: what a block is to Python, with the buffer protocol. Made by hand: PyO3 has that protocol in the stable ABI from
/// 3.11 on only, but Python 3.10 takes these slots, too.
pub(crate) fn class(py: Python<'_>) -> PyResult<Py<PyType>> {
    CLASS.get_or_try_init(py, || make_class(py)).map(|class| class.clone_ref(py))
}

fn make_class(py: Python<'_>) -> PyResult<Py<PyType>> {
    const DOC: &CStr = c"Elements in memory, with the buffer protocol: the base of genie.Array.";
    let slot = |slot, pfunc| ffi::PyType_Slot { slot, pfunc };
    let mut slots = [
        slot(protocol::GET_BUFFER_SLOT, get_buffer as *mut c_void),
        slot(ffi::Py_tp_dealloc, dealloc as *mut c_void),
        slot(ffi::Py_tp_new, refuse_new as *mut c_void),
        slot(ffi::Py_tp_doc, DOC.as_ptr().cast_mut().cast()),
        slot(0, ptr::null_mut()),
    ];
    let mut spec = ffi::PyType_Spec {
        name: c"genie._native.Memory".as_ptr(),
        basicsize: size_of::<Object>() as c_int,
        itemsize: 0,
        flags: (ffi::Py_TPFLAGS_DEFAULT | ffi::Py_TPFLAGS_BASETYPE) as _,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: Python copies what it needs of `spec` and `slots`; the name and the documentation are static; the functions have the
    // types of their slots; attached.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyType_FromSpec(&raw mut spec)) }
        .and_then(|class| Ok(class.cast_into::<PyType>()?.unbind()))
}

/// Makes a `genie.Array`.
pub(crate) fn array<'py>(py: Python<'py>, block: Arc<Block>) -> PyResult<Bound<'py, PyAny>> {
    static ARRAY: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = ARRAY.import(py, "genie._array", "Array")?;
    if !class.is_subclass(class_ref(py)?)? {
        return Err(bad_input("genie._array.Array is not the class that it was"));
    }
    // SAFETY: the class is a subclass of `Memory` (checked), so that its instances begin with an `Object`; new ones are zeroed. The
    // reference that `into_raw` gives is the object's, and `dealloc` takes it.
    unsafe {
        let made = ffi::PyType_GenericAlloc(class.as_type_ptr(), 0);
        let made = Bound::from_owned_ptr_or_err(py, made)?;
        (*made.as_ptr().cast::<Object>()).block = Arc::into_raw(block);
        Ok(made)
    }
}

fn class_ref(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    CLASS.get_or_try_init(py, || make_class(py)).map(|class| class.bind(py))
}

/// The block of a `Memory`; `None` for another object.
fn of_memory(object: &Bound<'_, PyAny>) -> PyResult<Option<Arc<Block>>> {
    let class = class_ref(object.py())?;
    // Not `isinstance`, which believes an object's `__class__`: what lies in it is read.
    // SAFETY: attached, and both are there.
    if unsafe { ffi::PyObject_TypeCheck(object.as_ptr(), class.as_type_ptr()) } == 0 {
        return Ok(None);
    }
    // SAFETY: an instance of `Memory`; its block is null or from `into_raw`, and the object keeps it meanwhile.
    unsafe {
        let block = (*object.as_ptr().cast::<Object>()).block;
        if block.is_null() {
            return Err(bad_input("this array holds nothing"));
        }
        Arc::increment_strong_count(block);
        Ok(Some(Arc::from_raw(block)))
    }
}

unsafe extern "C" fn refuse_new(
    _: *mut ffi::PyTypeObject,
    _: *mut ffi::PyObject,
    _: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: Python calls this attached; an error is set, and null returned.
    unsafe { ffi::PyErr_SetString(ffi::PyExc_TypeError, c"arrays are made by genie.asarray".as_ptr()) };
    ptr::null_mut()
}

unsafe extern "C" fn dealloc(object: *mut ffi::PyObject) {
    // SAFETY: Python calls this once, with the last reference gone, on an instance of `Memory` or of a subclass, whose own part it has
    // taken down already. The memory is given back as the class has it, and then the reference that an instance has to its class.
    unsafe {
        let class = ffi::Py_TYPE(object);
        let block = offset_of!(Object, block);
        let block = object.cast::<u8>().add(block).cast::<*const Block>();
        let block = block.replace(ptr::null());
        if !block.is_null() {
            drop(Arc::from_raw(block));
        }
        let free: ffi::freefunc = std::mem::transmute(ffi::PyType_GetSlot(class, ffi::Py_tp_free));
        free(object.cast());
        ffi::Py_DECREF(class.cast());
    }
}

unsafe extern "C" fn get_buffer(object: *mut ffi::PyObject, view: *mut PyBuffer, flags: c_int) -> c_int {
    // SAFETY: Python calls this attached, with an instance of `Memory` and a view to fill in, which holds a reference to the object: the
    // block, and with it shape, strides and format, outlive the view. On a failure `obj` is null and an error is set.
    unsafe {
        (*view).obj = ptr::null_mut();
        let py = Python::assume_attached();
        let block = (*object.cast::<Object>()).block;
        let Some(block) = block.as_ref() else {
            PyBufferError::new_err("this array holds nothing").restore(py);
            return -1;
        };
        let has = |flag| flags & flag == flag;
        let format = buffer::format(block.spec.dtype());
        if has(protocol::WRITABLE) && !block.writable {
            PyBufferError::new_err("this array is read-only").restore(py);
            return -1;
        }
        if has(protocol::FORMAT) && format.is_none() {
            let message = "the buffer protocol has no bf16: use torch.from_dlpack(array), array.numpy() with ml_dtypes, or array.tobytes()";
            PyBufferError::new_err(message).restore(py);
            return -1;
        }
        let row_major = has(protocol::C_CONTIGUOUS) || has(protocol::ANY_CONTIGUOUS);
        if has(protocol::F_CONTIGUOUS) && !row_major && block.shape.iter().filter(|&&d| d > 1).count() > 1 {
            PyBufferError::new_err("this array is row-major: copy it, numpy.asfortranarray(array)").restore(py);
            return -1;
        }
        // A scalar has neither shape nor strides.
        let wants = |flag, list: &[isize]| match has(flag) && !list.is_empty() {
            true => list.as_ptr().cast_mut(),
            false => ptr::null_mut(),
        };
        (*view).buf = block.at.as_ptr().cast();
        (*view).len = block.spec.bytes() as isize;
        (*view).itemsize = block.spec.dtype().bytes() as isize;
        (*view).readonly = c_int::from(!block.writable);
        (*view).ndim = block.shape.len() as c_int;
        (*view).format = match format {
            Some(format) if has(protocol::FORMAT) => format.as_ptr().cast_mut(),
            _ => ptr::null_mut(),
        };
        (*view).shape = wants(protocol::ND, &block.shape);
        (*view).strides = wants(protocol::STRIDES, &block.strides);
        (*view).suboffsets = ptr::null_mut();
        (*view).internal = ptr::null_mut();
        ffi::Py_INCREF(object);
        (*view).obj = object;
    }
    0
}

// ---- functions

/// An array over the memory of an object, as it is or seen with another type or shape.
#[pyfunction]
#[pyo3(signature = (data, dtype=None, shape=None))]
pub(crate) fn memory<'py>(
    data: &Bound<'py, PyAny>,
    dtype: Option<&Bound<'py, PyAny>>,
    #[pyo3(from_py_with = in_range)] shape: Option<Vec<u64>>,
) -> PyResult<Bound<'py, PyAny>> {
    array(data.py(), seen(data, dtype, shape)?)
}

/// The memory of an object, with the type or shape that a caller asks for.
pub(crate) fn seen(
    data: &Bound<'_, PyAny>,
    dtype: Option<&Bound<'_, PyAny>>,
    shape: Option<Vec<u64>>,
) -> PyResult<Arc<Block>> {
    let wanted = dtype.map(dtype::dtype).transpose()?;
    let block = block_of(data, wanted)?;
    let old = block.spec.dtype();
    let dtype = wanted.unwrap_or(old);
    let shape = match shape {
        Some(shape) => shape,
        None if dtype == old => return Ok(block),
        // Elements of the same size keep their places; others are counted anew.
        None if dtype.bytes() == old.bytes() => block.spec.dims().to_vec(),
        None => vec![block.spec.bytes() / dtype.bytes()],
    };
    let spec = spec(dtype, &shape)?;
    Ok(Arc::new(block.seen_as(spec)?))
}

/// Element type, shape, bytes and whether it may be written.
#[pyfunction]
pub(crate) fn describe<'py>(memory: &Bound<'py, PyAny>) -> PyResult<(&'static str, Bound<'py, PyTuple>, u64, bool)> {
    let block = of_memory(memory)?.ok_or_else(|| bad_input("this is no genie.Array"))?;
    let spec = block.spec();
    Ok((spec.dtype().name(), PyTuple::new(memory.py(), spec.dims())?, spec.bytes(), block.writable))
}
