//! Kernels as the driver has them: compiled from PTX ahead of their use or when one of their module is first launched, and kept.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr::{null_mut, without_provenance_mut};
use std::sync::{Mutex, PoisonError, RwLock};

use cudarc::driver::sys;

use super::super::{GpuError, Properties};
use super::live::lock;
use super::recording::Unrestricted;
use super::status::{During, explain};
use crate::kernel::{KERNELS, Kernel, MODULES};

/// Functions and modules of one context.
pub(super) struct Functions {
    capability: u32,
    /// Bytes of shared memory that a block may have.
    shared: u32,
    /// By the address of the [`Kernel`], which is a static.
    known: RwLock<HashMap<usize, Function>>,
    /// Those of [`MODULES`]. Each has a lock, held while it is compiled: others are compiled at the same time.
    modules: Vec<Mutex<Option<Module>>>,
}

#[derive(Clone, Copy)]
struct Function(sys::CUfunction);
struct Module(sys::CUmodule);

// SAFETY: handles of the driver's, which any thread may use; they live as long as `Functions` is not unloaded.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}
// SAFETY: as above.
unsafe impl Send for Module {}

/// What the names of sources begin with whose kernels decode steps are made of. They all ask for as much shared memory as a
/// multiprocessor has, whatever they take of it: how much of its bytes are L1 cache changes only when no block is on it, so that
/// kernels which differ in it could not follow each other without a gap.
const OF_DECODE_STEPS: [&str; 6] = ["matvec", "attention", "gather", "binary", "norm", "sample"];

/// Bytes of the compiler's messages that are kept.
const LOG_BYTES: usize = 8 << 10;

impl Functions {
    pub(super) fn new(properties: &Properties) -> Self {
        Self {
            capability: properties.capability,
            shared: properties.shared_bytes,
            known: RwLock::new(HashMap::new()),
            modules: MODULES.iter().map(|_| Mutex::new(None)).collect(),
        }
    }

    /// The function of a kernel. The first of a module takes as long as compiling it does, unless the driver kept it from before.
    pub(super) fn get(&self, kernel: &'static Kernel) -> Result<sys::CUfunction, GpuError> {
        let key = std::ptr::from_ref(kernel).addr();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some(function) = known {
            return Ok(function.0);
        }
        // One thread compiles; others that want the same wait for it here.
        let mut slot = lock(&self.modules[kernel.module]);
        let _unrestricted = Unrestricted::new();
        let module = match &*slot {
            Some(module) => module.0,
            None => slot.insert(Module(self.compile(kernel.module)?)).0,
        };
        let function = self.resolve(module, kernel)?;
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(key, Function(function));
        Ok(function)
    }

    /// Makes all kernels of a module, by its place in [`MODULES`], ready to be launched.
    pub(super) fn get_all(&self, module: usize) -> Result<(), GpuError> {
        KERNELS.iter().filter(|kernel| kernel.module == module).try_for_each(|kernel| self.get(kernel).map(|_| ()))
    }

    fn resolve(&self, module: sys::CUmodule, kernel: &Kernel) -> Result<sys::CUfunction, GpuError> {
        use sys::CUfunction_attribute_enum as Attribute;

        let name = CString::new(kernel.name).map_err(|_| refused("a kernel's name has a zero in it".to_owned()))?;
        let mut function = null_mut();
        // SAFETY: the module is loaded, and the name ends with a zero.
        unsafe { sys::cuModuleGetFunction(&mut function, module, name.as_ptr()) }.during("looking up a kernel")?;
        // Loaded now, not by the first launch: that may be one that is recorded.
        // SAFETY: the function is of a loaded module.
        unsafe { sys::cuFuncLoad(function) }.during("loading a kernel")?;
        let mut fixed = 0;
        // SAFETY: as above; an integer is written.
        unsafe { sys::cuFuncGetAttribute(&mut fixed, Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function) }
            .during("asking what a kernel takes")?;
        // More than 48 KiB of dynamic shared memory must be allowed first. That alone changes nothing for launches that take less.
        let most = self.shared.saturating_sub(u32::try_from(fixed).unwrap_or(0));
        let dynamic = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: as above.
        unsafe { sys::cuFuncSetAttribute(function, dynamic, most as i32) }.during("allowing shared memory")?;
        if OF_DECODE_STEPS.iter().any(|source| MODULES[kernel.module].name.starts_with(source)) {
            let carveout = Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            // A hint: what the driver says to it changes nothing.
            // SAFETY: as above.
            let _ = unsafe { sys::cuFuncSetAttribute(function, carveout, 100) };
        }
        Ok(function)
    }

    fn compile(&self, index: usize) -> Result<sys::CUmodule, GpuError> {
        use sys::CUjit_option_enum as Option;

        let source = &MODULES[index];
        let Some(ptx) = source.ptx_for(self.capability) else {
            return Err(refused(format!("there is no PTX of `{}` for this GPU", source.name)));
        };
        let image = CString::new(ptx).map_err(|_| refused(format!("the PTX of `{}` has a zero in it", source.name)))?;
        let mut log = vec![0_u8; LOG_BYTES];
        let mut options = [Option::CU_JIT_ERROR_LOG_BUFFER, Option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The size is passed as if it were a pointer.
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), without_provenance_mut(LOG_BYTES)];
        let started = std::time::Instant::now();
        let mut module = null_mut();
        // SAFETY: the image ends with a zero; both arrays have as many entries as it says; the log has as many bytes as it says.
        let status = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                image.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        if status == sys::CUresult::CUDA_SUCCESS {
            let (module, took) = (source.name, started.elapsed());
            tracing::debug!(module, ?took, "kernels compiled");
        } else if compiler_said_no(status) {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
            let said = String::from_utf8_lossy(&log[..end]);
            return Err(refused(format!("`{}`: {}: {}", source.name, explain(status), said.trim())));
        }
        status.during("compiling kernels")?;
        Ok(module)
    }

    /// Unloads everything.
    ///
    /// # Safety
    /// The context is current, and no function is used any more.
    pub(super) unsafe fn unload(&self) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).clear();
        for module in self.modules.iter().filter_map(|slot| lock(slot).take()) {
            // SAFETY: it is loaded, and the caller says that nobody uses it.
            let _ = unsafe { sys::cuModuleUnload(module.0) };
        }
    }
}

/// Whether the log tells more than the status.
fn compiler_said_no(status: sys::CUresult) -> bool {
    use sys::CUresult as Code;
    matches!(
        status,
        Code::CUDA_ERROR_INVALID_PTX
            | Code::CUDA_ERROR_INVALID_IMAGE
            | Code::CUDA_ERROR_INVALID_SOURCE
            | Code::CUDA_ERROR_NO_BINARY_FOR_GPU
            | Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | Code::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | Code::CUDA_ERROR_JIT_COMPILATION_DISABLED
    )
}

fn refused(reason: String) -> GpuError {
    GpuError::Refused { during: "compiling kernels", reason }
}
