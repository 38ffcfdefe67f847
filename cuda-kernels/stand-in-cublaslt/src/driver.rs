//! The driver's stand-in, as this library has it: loaded by its name, which is one library with the program's.

use std::ffi::{CStr, c_int, c_void};
use std::mem::transmute_copy;
use std::sync::OnceLock;

use cudarc::cublaslt::sys::cublasStatus_t as Status;

use crate::state::Answer;

/// `CUDA_SUCCESS`.
const SUCCESS: c_int = 0;
/// `CUDA_ERROR_INVALID_VALUE`.
const INVALID: c_int = 1;

/// Memory of the GPU that a product touches; as `libraries.rs` of the driver's stand-in has it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Range {
    pub(crate) at: u64,
    pub(crate) bytes: u64,
}

impl Range {
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.at < other.at + other.bytes && other.at < self.at + self.bytes
    }
}

type Run = unsafe extern "C" fn(*const c_void);
type Release = unsafe extern "C" fn(*mut c_void);
type LaunchFn = unsafe extern "C" fn(*mut c_void, Run, Release, *mut c_void, *const Range, usize, bool) -> c_int;

/// Its functions.
struct Driver {
    launch: LaunchFn,
    context: unsafe extern "C" fn(*mut u64) -> c_int,
    synchronize: unsafe extern "C" fn() -> c_int,
}

impl Driver {
    /// None: the driver is none, or no stand-in.
    fn load() -> Option<Self> {
        // SAFETY: the name ends with a zero. What loading it runs asks nothing of this process.
        let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            return None;
        }
        // SAFETY: the library has them with these arguments, and stays loaded.
        unsafe {
            Some(Self {
                launch: function(library, c"genieStandInLaunch")?,
                context: function(library, c"genieStandInContext")?,
                synchronize: function(library, c"cuCtxSynchronize")?,
            })
        }
    }
}

/// # Safety
/// `F` is the type of this function's address.
unsafe fn function<F>(library: *mut c_void, name: &CStr) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: the library is loaded, and the name ends with a zero.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    // SAFETY: as the caller has it.
    (!address.is_null()).then(|| unsafe { transmute_copy(&address) })
}

fn driver() -> Answer<&'static Driver> {
    static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();
    DRIVER.get_or_init(Driver::load).as_ref().ok_or(Status::CUBLAS_STATUS_NOT_INITIALIZED)
}

/// The context of this thread.
pub(crate) fn context() -> Answer<u64> {
    let mut context = 0;
    // SAFETY: a number is written.
    match unsafe { (driver()?.context)(&mut context) } {
        SUCCESS => Ok(context),
        _ => Err(Status::CUBLAS_STATUS_NOT_INITIALIZED),
    }
}

/// Waits for all of this thread's context.
pub(crate) fn synchronize() -> Answer {
    // SAFETY: it takes nothing.
    match unsafe { (driver()?.synchronize)() } {
        SUCCESS => Ok(()),
        _ => Err(Status::CUBLAS_STATUS_INTERNAL_ERROR),
    }
}

/// Has the stream run a job, which touches these ranges alone. `loads`: for the first time.
///
/// # Safety
/// What `run` does is sound wherever the ranges can be touched.
pub(crate) unsafe fn launch<J: Send + Sync>(
    stream: *mut c_void,
    job: Box<J>,
    run: Run,
    ranges: &[Range],
    loads: bool,
) -> Answer {
    unsafe extern "C" fn release<J>(job: *mut c_void) {
        // SAFETY: it is the box from below, and comes here once.
        drop(unsafe { Box::from_raw(job.cast::<J>()) });
    }
    let driver = driver()?;
    let job = Box::into_raw(job).cast();
    // SAFETY: the ranges are as many; the rest is as the caller has it.
    match unsafe { (driver.launch)(stream, run, release::<J>, job, ranges.as_ptr(), ranges.len(), loads) } {
        SUCCESS => Ok(()),
        INVALID => Err(Status::CUBLAS_STATUS_INVALID_VALUE),
        _ => Err(Status::CUBLAS_STATUS_EXECUTION_FAILED),
    }
}
