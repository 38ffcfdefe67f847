//! Tensors that are resident on a server.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use genie_transport::client::{PutOptions, Tensor};
use genie_transport::memory::copy_counted;
use genie_transport::wire::{ContentHash, TensorSpec};

use crate::arguments::{Place, device, dims, dtype, optional, optional_text, text};
use crate::caller::{Loan, lend, lend_to_fill};
use crate::core::{Core, Ticket};
use crate::handles::Table;
use crate::memory::{self, genie_memory};
use crate::session::{genie_session, sessions};
use crate::status::{Failure, entry, genie_error, genie_status};

/// A tensor that is resident on the server. Freed by `genie_tensor_free`.
pub struct genie_tensor {
    _opaque: [u8; 0],
}

/// The most dimensions that a tensor has.
pub const GENIE_MAX_RANK: usize = 8;

/// The type of a tensor's elements, which are little-endian. Functions take it as an `int32_t`.
#[repr(C)]
pub enum genie_dtype {
    /// IEEE 754 binary32.
    GENIE_F32 = 0,
    /// IEEE 754 binary16.
    GENIE_F16 = 1,
    /// The upper half of a binary32 (bfloat16).
    GENIE_BF16 = 2,
    /// 64-bit two's complement.
    GENIE_I64 = 3,
    /// 32-bit two's complement.
    GENIE_I32 = 4,
    /// Unsigned byte.
    GENIE_U8 = 5,
    /// One byte an element, 0 or 1.
    GENIE_BOOL = 6,
}

/// What becomes of a tensor that is put. All zeros, or NULL instead of it: private to the session, on device 0.
#[repr(C)]
pub struct genie_put_options {
    /// A name by which others find it: it is then a snapshot that outlives the session. NULL: none.
    pub name: *const c_char,
    /// Which device.
    pub device: u32,
    /// Not 0: it is a weight, named by the hash of its bytes (which is taken first): immutable, shared by all sessions that put the same,
    /// and checked by the server.
    pub weight: u32,
    /// Zeros.
    pub reserved: [u64; 4],
}

/// What a tensor is.
#[repr(C)]
pub struct genie_tensor_info {
    /// Its elements: a `genie_dtype`.
    pub dtype: i32,
    /// How many of `dims` count.
    pub rank: u32,
    /// Outermost first; the elements are row-major.
    pub dims: [u64; GENIE_MAX_RANK],
    /// Its size in bytes.
    pub bytes: u64,
    /// Its device.
    pub device: u32,
    /// Zero.
    pub reserved: u32,
}

pub(crate) struct Resident {
    pub(crate) core: Arc<Core>,
    pub(crate) tensor: Tensor,
}

static TENSORS: Table<Resident> = Table::new(2, "genie_tensor");

/// A tensor, as C's.
pub(crate) fn add(core: &Arc<Core>, tensor: Tensor) -> Result<*mut genie_tensor, Failure> {
    TENSORS.add(Resident { core: core.clone(), tensor })
}

pub(crate) fn get(tensor: *const genie_tensor) -> Result<Arc<Resident>, Failure> {
    TENSORS.get(tensor)
}

pub(crate) fn info(spec: &TensorSpec, device: u16) -> genie_tensor_info {
    let mut dims = [0; GENIE_MAX_RANK];
    dims.iter_mut().zip(spec.dims()).for_each(|(to, from)| *to = *from);
    genie_tensor_info {
        dtype: spec.dtype().code().into(),
        rank: spec.dims().len() as u32,
        dims,
        bytes: spec.bytes(),
        device: device.into(),
        reserved: 0,
    }
}

/// Begins a put of the caller's memory.
///
/// # Safety
/// What the pointers lead to is as the header says of `genie_put`; `data` stays so until the loan is back.
pub(crate) unsafe fn begin_put(
    core: &Core,
    element: i32,
    rank: usize,
    at: *const u64,
    data: *const c_void,
    options: *const genie_put_options,
) -> Result<(Ticket, Loan), Failure> {
    // SAFETY: the caller upholds it.
    let spec = TensorSpec::new(dtype(element)?, unsafe { dims(at, rank) }?)?;
    let size = usize::try_from(spec.bytes()).map_err(|_| Failure::argument("the tensor is larger than any memory"))?;
    // SAFETY: the caller upholds it.
    let (data, options) = unsafe { (crate::arguments::bytes(data, size, "data")?, optional(options, "options")?) };
    let mut put = PutOptions::default();
    if let Some(options) = options {
        if options.reserved.iter().any(|&r| r != 0) {
            return Err(Failure::argument("genie_put_options.reserved is not zero: begin with `= {0}`"));
        }
        put.device = device(options.device)?;
        // SAFETY: the caller upholds it.
        put.name = unsafe { optional_text(options.name, "name") }?;
        put.weight = (options.weight != 0).then(|| ContentHash::of(data));
    }
    // SAFETY: the caller keeps it as it is until the loan is back.
    let (data, loan) = unsafe { lend(data) };
    match core.start(|s| s.start_put(&spec, data, put)) {
        Ok(ticket) => Ok((ticket, loan)),
        Err(failure) => {
            core.settle(&loan);
            Err(failure)
        }
    }
}

/// Makes a tensor of `dims[0] * ... * dims[rank - 1]` elements resident, and waits for it. `rank` may be 0: one element.
///
/// `data` is sent from where it lies (over shared memory copied once, unless it lies in memory of `genie_memory_alloc`), and is the
/// caller's again when it returns, whatever the result. `dims` and `options` (which may be NULL) are read before it returns. `*tensor`
/// is the caller's, to be freed by `genie_tensor_free`. On an error of the server's nothing changed there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_put(
    session: *const genie_session,
    dtype: i32,
    rank: usize,
    dims: *const u64,
    data: *const c_void,
    options: *const genie_put_options,
    tensor: *mut *mut genie_tensor,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(tensor, "tensor") }?;
        let core = sessions().get(session)?.core.clone();
        // SAFETY: the header's rules; this returns after the loan is back.
        let (ticket, loan) = unsafe { begin_put(&core, dtype, rank, dims, data, options) }?;
        let put = core.finish(ticket, |s, pending| s.finish_put(pending));
        core.settle(&loan);
        place.set(add(&core, put?)?);
        Ok(())
    })
}

/// Replaces `size` bytes of a private tensor from byte `offset` on, all at once: whoever reads it meanwhile reads the old bytes or the
/// new. `data` is the caller's again when it returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_put_range(
    tensor: *const genie_tensor,
    offset: u64,
    size: usize,
    data: *const c_void,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        let resident = get(tensor)?;
        // SAFETY: the header's rules; this returns after the loan is back.
        let (data, loan) = unsafe { lend(crate::arguments::bytes(data, size, "data")?) };
        let core = &resident.core;
        let put = core.call(|s| s.start_put_range(&resident.tensor, offset, data), |s, p| s.finish_put(p));
        core.settle(&loan);
        put.map(|_| ())
    })
}

/// Reads a whole tensor into the caller's memory, which has `room` bytes; GENIE_ERROR_ARGUMENT if that is less than the tensor has.
///
/// Bytes arrive there directly (over shared memory they are copied once, unless `data` lies in memory of `genie_memory_alloc`). After
/// an error what is there is undefined. `data` is the caller's again when it returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_get(
    tensor: *const genie_tensor,
    data: *mut c_void,
    room: usize,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        let resident = get(tensor)?;
        let size = resident.tensor.spec.bytes();
        let fits = usize::try_from(size).ok().filter(|&size| size <= room);
        let size = fits
            .ok_or_else(|| Failure::argument(format!("the tensor has {size} bytes, and there is room for {room}")))?;
        // SAFETY: the header's rules; this returns after the loan is back.
        unsafe { read(&resident, 0, size, data.cast()) }
    })
}

/// Reads `size` bytes of a tensor from byte `offset` on into the caller's memory, as `genie_get`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_get_range(
    tensor: *const genie_tensor,
    offset: u64,
    size: usize,
    data: *mut c_void,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules; this returns after the loan is back.
        unsafe { read(&*get(tensor)?, offset, size, data.cast()) }
    })
}

/// Reads into the caller's memory.
///
/// # Safety
/// `data` leads to `size` bytes of the caller's, which nobody else touches until this returns.
unsafe fn read(resident: &Resident, offset: u64, size: usize, data: *mut u8) -> Result<(), Failure> {
    let (core, handle) = (&resident.core, resident.tensor.handle);
    // SAFETY: the caller upholds it; this neither returns nor touches it before the loan is back.
    let (slab, loan) = unsafe { lend_to_fill(data, size) }?;
    let got = core.call(|s| s.start_get_into(handle, offset, slab), |s, pending| s.finish_get(pending));
    // What came there directly holds the loan.
    let elsewhere = got.map(|region| (region.as_ptr() != data.cast_const()).then_some(region));
    core.settle(&loan);
    if let Some(region) = elsewhere? {
        // SAFETY: `data` has room for what was asked for, which is what came, and its loan is back.
        let to = unsafe { std::slice::from_raw_parts_mut(data, region.len()) };
        copy_counted(to, &region);
    }
    Ok(())
}

/// Reads `size` bytes of a tensor from byte `offset` on into memory of Genie's: over shared memory the server writes there itself, and
/// nothing is copied. `*memory` is the caller's, to be freed by `genie_memory_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_get_memory(
    tensor: *const genie_tensor,
    offset: u64,
    size: u64,
    memory: *mut *mut genie_memory,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(memory, "memory") }?;
        let resident = get(tensor)?;
        let handle = resident.tensor.handle;
        let core = &resident.core;
        let got = core.call(|s| s.start_get(handle, offset, size), |s, pending| s.finish_get(pending))?;
        place.set(memory::add(core.clone(), got)?);
        Ok(())
    })
}

/// What a tensor is: known on this side, nothing is sent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_tensor_describe(
    tensor: *const genie_tensor,
    info: *mut genie_tensor_info,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(info, "info") }?;
        let resident = get(tensor)?;
        place.set(self::info(&resident.tensor.spec, resident.tensor.device));
        Ok(())
    })
}

/// Finds a tensor by the name under which somebody of the same token put it; GENIE_ERROR_NOT_FOUND if nothing has it. `*tensor` is the
/// caller's, to be freed by `genie_tensor_free`: that frees this session's hold, not the named tensor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_lookup(
    session: *const genie_session,
    name: *const c_char,
    tensor: *mut *mut genie_tensor,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results and for what is read.
        let (place, name) = unsafe { (Place::new(tensor, "tensor")?, text(name, "name")?) };
        let core = &sessions().get(session)?.core;
        place.set(add(core, core.call(|s| Ok(s.start_lookup(name)), |s, pending| s.finish_put(pending))?)?);
        Ok(())
    })
}

/// Copies a tensor on the server, to this device. `*copy` is the caller's, to be freed by `genie_tensor_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_tensor_copy(
    tensor: *const genie_tensor,
    device: u32,
    copy: *mut *mut genie_tensor,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(copy, "copy") }?;
        let device = crate::arguments::device(device)?;
        let resident = get(tensor)?;
        let core = &resident.core;
        let copy = core.call(|s| Ok(s.start_copy(&resident.tensor, device)), |s, pending| s.finish_put(pending))?;
        place.set(add(core, copy)?);
        Ok(())
    })
}

/// Frees a tensor, here and on the server, and waits for it. `tensor` is freed whatever the result, and must not be used again. NULL is
/// nothing, and so is a tensor whose session was closed or lost: GENIE_OK.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_tensor_free(tensor: *mut genie_tensor, error: *mut genie_error) -> genie_status {
    entry(error, || {
        if tensor.is_null() {
            return Ok(());
        }
        let resident = TENSORS.remove(tensor)?;
        free(&resident.core, resident.tensor.handle)
    })
}

/// Frees what a handle names. What went with its session is freed.
pub(crate) fn free(core: &Core, handle: genie_transport::wire::Handle) -> Result<(), Failure> {
    let freed = core.call(|s| Ok(s.start_free(handle)), |s, pending| s.finish_free(pending));
    freed.or_else(|failure| match failure.status {
        genie_status::GENIE_ERROR_CLOSED | genie_status::GENIE_ERROR_SESSION_LOST => Ok(()),
        _ => Err(failure),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use genie_graph::DType;
    use genie_transport::wire::DecodeError;

    #[test]
    fn the_header_has_the_wires_types() {
        use genie_dtype::*;
        let all = [GENIE_F32, GENIE_F16, GENIE_BF16, GENIE_I64, GENIE_I32, GENIE_U8, GENIE_BOOL];
        let codes: Vec<i32> = all.into_iter().map(|d| d as i32).collect();
        assert_eq!(codes, DType::ALL.map(|d| i32::from(d.code())));
        assert_eq!(GENIE_MAX_RANK, genie_transport::wire::limits::RANK);
    }

    #[test]
    fn a_tensor_is_described() -> Result<(), DecodeError> {
        let info = info(&TensorSpec::new(DType::F16, &[2, 3])?, 7);
        assert_eq!((info.dtype, info.rank, info.bytes, info.device), (1, 2, 12, 7));
        assert_eq!(info.dims, [2, 3, 0, 0, 0, 0, 0, 0]);
        Ok(())
    }
}
