//! What the library holds, and how its functions come to it.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char};
use std::ptr::without_provenance_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::CUresult;

use crate::MISTAKE;
use crate::contexts::{Context, Device};
use crate::host::HostRange;
use crate::kernels::{Function, Module};
use crate::memory::{Block, Pool};
use crate::settings::Settings;
use crate::streams::{Event, Executable, Op, Streams};

/// What a function answers: its code, where that is not success.
pub(crate) type Answer<T = ()> = Result<T, CUresult>;

/// What a handle stands for. None is used twice.
pub(crate) type Id = u64;

/// Everything.
pub(crate) struct Driver {
    pub(crate) settings: Settings,
    /// Whether `cuInit` was called.
    pub(crate) started: bool,
    next: Id,
    pub(crate) devices: Vec<Device>,
    pub(crate) contexts: HashMap<Id, Context>,
    pub(crate) streams: Streams,
    pub(crate) events: HashMap<Id, Event>,
    pub(crate) graphs: HashMap<Id, Vec<Op>>,
    pub(crate) executables: HashMap<Id, Executable>,
    pub(crate) modules: HashMap<Id, Module>,
    pub(crate) functions: HashMap<Id, Function>,
    pub(crate) pools: HashMap<Id, Pool>,
    /// The GPUs' memory, by where it begins.
    pub(crate) blocks: BTreeMap<u64, Block>,
    /// Whether it can be touched.
    pub(crate) open: bool,
    /// Host memory that is registered, by where it begins.
    pub(crate) host: BTreeMap<usize, HostRange>,
    /// How often each function was called.
    calls: HashMap<&'static str, u64>,
}

thread_local! {
    /// The context of this thread; 0: none.
    static CURRENT: Cell<Id> = const { Cell::new(0) };
}

/// The process ends.
static ENDED: AtomicBool = AtomicBool::new(false);

/// From the process's end on, when what libraries asked for is done, every call is a mistake.
pub(crate) extern "C" fn ended() {
    ENDED.store(true, Ordering::SeqCst);
    // A thread that is within the driver comes again soon.
    std::thread::sleep(std::time::Duration::from_millis(20));
}

/// How often a function of the driver's was called; for tests, which find it by its name.
///
/// # Safety
/// `name` is a text that ends with a zero.
#[unsafe(export_name = "genie_stand_in_calls")]
unsafe extern "C" fn calls(name: *const c_char) -> u64 {
    // SAFETY: as the caller has it.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let driver = driver().lock().unwrap_or_else(PoisonError::into_inner);
    driver.calls.get(&*name).copied().unwrap_or(0)
}

fn driver() -> &'static Mutex<Driver> {
    static DRIVER: OnceLock<Mutex<Driver>> = OnceLock::new();
    DRIVER.get_or_init(|| Mutex::new(Driver::new(Settings::of_this_process())))
}

/// Makes a context this thread's.
pub(crate) fn set_current(context: Id) {
    CURRENT.set(context);
}

/// Does something with the library's state, whether it was started or not.
pub(crate) fn anyhow(name: &'static str, body: impl FnOnce(&mut Driver) -> Answer) -> CUresult {
    let mut driver = driver().lock().unwrap_or_else(PoisonError::into_inner);
    *driver.calls.entry(name).or_insert(0) += 1;
    let answer = if ENDED.load(Ordering::SeqCst) {
        eprintln!("{MISTAKE} {name}: the process is ending, and the driver is taken down");
        Err(CUresult::CUDA_ERROR_DEINITIALIZED)
    } else if driver.settings.stub {
        Err(CUresult::CUDA_ERROR_STUB_LIBRARY)
    } else {
        body(&mut driver)
    };
    driver.close_memory();
    match answer {
        Ok(()) => CUresult::CUDA_SUCCESS,
        Err(code) => {
            if is_mistake(code) {
                eprintln!("{MISTAKE} {name}: {code:?}");
            }
            code
        }
    }
}

/// The same, where `cuInit` was called.
pub(crate) fn started(name: &'static str, body: impl FnOnce(&mut Driver) -> Answer) -> CUresult {
    anyhow(name, |driver| if driver.started { body(driver) } else { Err(CUresult::CUDA_ERROR_NOT_INITIALIZED) })
}

/// The same, in the context of this thread.
pub(crate) fn in_context(name: &'static str, body: impl FnOnce(&mut Driver, Id) -> Answer) -> CUresult {
    started(name, |driver| {
        let context = driver.current()?;
        body(driver, context)
    })
}

/// Whether no program that keeps the rules is given this code.
fn is_mistake(code: CUresult) -> bool {
    use CUresult as Code;
    matches!(
        code,
        Code::CUDA_ERROR_INVALID_VALUE
            | Code::CUDA_ERROR_NOT_INITIALIZED
            | Code::CUDA_ERROR_INVALID_CONTEXT
            | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | Code::CUDA_ERROR_INVALID_HANDLE
            | Code::CUDA_ERROR_ILLEGAL_STATE
            | Code::CUDA_ERROR_NOT_FOUND
            | Code::CUDA_ERROR_INVALID_PTX
            | Code::CUDA_ERROR_NOT_SUPPORTED
            | Code::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
            | Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
            | Code::CUDA_ERROR_STREAM_CAPTURE_ISOLATION
            | Code::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD
    )
}

impl Driver {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            devices: settings.gpus.iter().map(|_| Device::default()).collect(),
            settings,
            started: false,
            // No address that a program could have.
            next: 0x5D00_0000_0000_0000,
            contexts: HashMap::new(),
            streams: Streams::default(),
            events: HashMap::new(),
            graphs: HashMap::new(),
            executables: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            pools: HashMap::new(),
            blocks: BTreeMap::new(),
            open: false,
            host: BTreeMap::new(),
            calls: HashMap::new(),
        }
    }

    pub(crate) fn new_id(&mut self) -> Id {
        self.next += 16;
        self.next
    }

    /// The context of this thread, if calls in it can be answered.
    fn current(&self) -> Answer<Id> {
        let id = CURRENT.get();
        if id == 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
        }
        let context = self.contexts.get(&id).ok_or(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED)?;
        context.fault.map_or(Ok(id), Err)
    }

    /// The GPU of a context that is there.
    pub(crate) fn device_of(&self, context: Id) -> Answer<usize> {
        self.contexts.get(&context).map(|context| context.device).ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)
    }
}

/// Writes what a function gives.
///
/// # Safety
/// `to` is null, or can be written.
pub(crate) unsafe fn give<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: as the caller has it.
    unsafe { to.write(value) };
    Ok(())
}

/// An id as the handle that a program has.
pub(crate) fn handle<T>(id: Id) -> *mut T {
    without_provenance_mut(id as usize)
}

/// The id that a handle stands for.
pub(crate) fn id<T>(handle: *mut T) -> Id {
    handle.addr() as Id
}

/// A condition without which a call is refused.
pub(crate) fn valid(condition: bool) -> Answer {
    if condition { Ok(()) } else { Err(CUresult::CUDA_ERROR_INVALID_VALUE) }
}
