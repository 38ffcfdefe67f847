//! What the library holds, and how its functions come to it.

use std::collections::{HashMap, HashSet};
use std::env;
use std::ffi::c_void;
use std::ptr::without_provenance_mut;
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::cublaslt::sys::{cublasLtHandle_t, cublasStatus_t as Status};

use crate::descriptors::{Description, Layout, Preference};
use crate::settings::{Refuses, Settings};
use crate::{MISTAKE, driver};

/// What a function answers: its status, where that is not success.
pub(crate) type Answer<T = ()> = Result<T, Status>;

/// What a handle or a descriptor stands for. None is used twice.
type Id = u64;

/// Everything.
pub(crate) struct Library {
    pub(crate) settings: Settings,
    next: Id,
    handles: HashMap<Id, Handle>,
    pub(crate) descriptions: HashMap<Id, Description>,
    pub(crate) layouts: HashMap<Id, Layout>,
    pub(crate) preferences: HashMap<Id, Preference>,
}

/// The library in a context.
pub(crate) struct Handle {
    context: u64,
    /// Products whose kernels are loaded.
    pub(crate) loaded: HashSet<u64>,
}

/// Does something with the library's state.
pub(crate) fn answer(name: &'static str, body: impl FnOnce(&mut Library) -> Answer) -> Status {
    static LIBRARY: OnceLock<Mutex<Library>> = OnceLock::new();
    let new = || Mutex::new(Library::new(Settings::of_this_process()));
    let mut library = LIBRARY.get_or_init(new).lock().unwrap_or_else(PoisonError::into_inner);
    match body(&mut library) {
        Ok(()) => Status::CUBLAS_STATUS_SUCCESS,
        Err(status) => {
            if status == Status::CUBLAS_STATUS_INVALID_VALUE && library.settings.refuses != Refuses::Unknown {
                eprintln!("{MISTAKE} {name}");
            }
            status
        }
    }
}

impl Library {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            // No address that a program could have, and no handle of the driver's.
            next: 0x1D00_0000_0000_0000,
            handles: HashMap::new(),
            descriptions: HashMap::new(),
            layouts: HashMap::new(),
            preferences: HashMap::new(),
        }
    }

    pub(crate) fn new_id(&mut self) -> Id {
        self.next += 16;
        self.next
    }

    /// The handle, which is of this thread's context.
    pub(crate) fn handle(&mut self, handle: *mut c_void) -> Answer<&mut Handle> {
        let handle = self.handles.get_mut(&id(handle)).ok_or_else(|| mistake("there is no such handle"))?;
        let current = driver::context()?;
        check(handle.context == current, "the handle is another context's")?;
        Ok(handle)
    }
}

/// # Safety
/// `handle` is null, or can be written.
#[unsafe(export_name = "cublasLtCreate")]
unsafe extern "C" fn create(handle: *mut cublasLtHandle_t) -> Status {
    answer("cublasLtCreate", |library| {
        if library.settings.refuses == Refuses::Start {
            return Err(Status::CUBLAS_STATUS_NOT_INITIALIZED);
        }
        let (context, new) = (driver::context()?, library.new_id());
        library.handles.insert(new, Handle { context, loaded: HashSet::new() });
        // SAFETY: as the caller has it.
        unsafe { give(handle, without_provenance_mut(new as usize)) }
    })
}

#[unsafe(export_name = "cublasLtDestroy")]
extern "C" fn destroy(handle: *mut c_void) -> Status {
    answer("cublasLtDestroy", |library| {
        // Also where its context is broken, or gone.
        library.handles.remove(&id(handle)).map(drop).ok_or_else(|| mistake("there is no such handle"))?;
        driver::synchronize()
    })
}

/// 13.0.0, unless the environment has another.
#[unsafe(export_name = "cublasLtGetVersion")]
extern "C" fn version() -> usize {
    env::var("GENIE_STAND_IN_PRODUCTS_VERSION").map_or(130_000, |version| version.parse().expect("a version"))
}

/// Writes what a function gives.
///
/// # Safety
/// `to` is null, or can be written.
pub(crate) unsafe fn give<T>(to: *mut T, value: T) -> Answer {
    check(!to.is_null(), "a null pointer")?;
    // SAFETY: as the caller has it.
    unsafe { to.write(value) };
    Ok(())
}

/// The id that a handle or a descriptor stands for.
pub(crate) fn id<T>(of: *mut T) -> Id {
    of.addr() as Id
}

/// A condition without which a call is refused.
pub(crate) fn check(condition: bool, otherwise: &str) -> Answer {
    if condition { Ok(()) } else { Err(mistake(otherwise)) }
}

/// There is no way to do it, which a program may ask for.
pub(crate) const NO_WAY: Status = Status::CUBLAS_STATUS_NOT_SUPPORTED;

/// A condition without which there is no way.
pub(crate) fn can(condition: bool) -> Answer {
    if condition { Ok(()) } else { Err(NO_WAY) }
}

/// Says what is wrong with a call.
pub(crate) fn mistake(what: &str) -> Status {
    eprintln!("{MISTAKE} {what}");
    Status::CUBLAS_STATUS_INVALID_VALUE
}
