//! Modules, functions, and launches of them.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use cudarc::driver::sys::{CUfunction, CUlaunchConfig, CUmodule, CUresult, CUstream};
use genie_cuda_kernels::{KERNELS, Kernel, Launch, MODULES};

use crate::device::most_shared;
use crate::state::{Answer, Driver, Id, give, handle, id, in_context, valid};
use crate::streams::{Op, capture};

/// Dynamic shared memory that a block may have without asking.
const USUAL_SHARED: i32 = 48 << 10;

/// A module that is loaded.
#[derive(Clone, Copy)]
pub(crate) struct Module {
    pub(crate) context: Id,
    index: usize,
    /// Of its PTX.
    capability: u32,
}

/// A kernel of a loaded module.
pub(crate) struct Function {
    pub(crate) context: Id,
    module: Id,
    kernel: &'static Kernel,
    /// Bytes of shared memory that each block has.
    fixed: i32,
    /// Bytes of it that a launch may ask for.
    dynamic: i32,
}

impl Driver {
    /// Runs a launch, unless it is to fault.
    pub(crate) fn run(&self, context: Id, launch: &Launch) -> Answer {
        if self.is_to_fault(context) {
            return Err(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        }
        // SAFETY: whoever launched it said that what its parameters point to is live until it is done, which is now.
        let ran = unsafe { genie_cuda_kernels::host::run(launch, self.settings.seed) };
        ran.map_err(|error| {
            eprintln!("stand-in driver: {error}");
            CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
        })
    }

    /// Whether the next kernel of this context is to fault; asked once for each.
    pub(crate) fn is_to_fault(&self, context: Id) -> bool {
        let Some(file) = &self.settings.fault else { return false };
        let Ok(gpu) = std::fs::read_to_string(file) else { return false };
        let meant = gpu.trim().parse::<usize>().ok();
        if meant.is_some_and(|meant| self.device_of(context) != Ok(meant)) {
            return false;
        }
        // Whoever removes it faults.
        std::fs::remove_file(file).is_ok()
    }

    fn function_of(&mut self, function: CUfunction) -> Answer<&mut Function> {
        self.functions.get_mut(&id(function)).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
    }

    /// # Safety
    /// `params` is null, or points to a pointer to the kernel's structure.
    unsafe fn launch(
        &mut self,
        context: Id,
        function: CUfunction,
        (grid, block): ([u32; 3], [u32; 3]),
        (shared, stream): (u32, CUstream),
        params: *mut *mut c_void,
    ) -> Answer {
        let stream = self.stream_of(context, stream)?;
        let function = self.functions.get(&id(function)).filter(|function| function.context == context);
        let function = function.ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        let threads: u64 = block.iter().map(|&n| u64::from(n)).product();
        let within = |sizes: [u32; 3], most: [u32; 3]| sizes.iter().zip(most).all(|(&n, most)| (1..=most).contains(&n));
        valid(within(grid, [i32::MAX as u32, 65535, 65535]) && within(block, [1024, 1024, 64]) && threads <= 1024)?;
        valid(i32::try_from(shared).is_ok_and(|shared| shared <= function.dynamic) && !params.is_null())?;
        // SAFETY: as the caller has it.
        let params = unsafe { params.read() };
        valid(!params.is_null())?;
        // SAFETY: as the caller has it: the structure has as many bytes.
        let bytes = unsafe { std::slice::from_raw_parts(params.cast::<u8>(), function.kernel.bytes) };
        let launch = Launch::of_bytes(function.kernel, grid, block, shared, bytes);
        let launch = launch.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        self.put(stream, Op::Launch(Box::new(launch)))
    }
}

/// Bytes of shared memory that a kernel's PTX declares.
fn fixed_shared(ptx: &str, kernel: &str) -> i32 {
    let entry = ptx.split(".visible .entry ").skip(1).find(|entry| entry.starts_with(&format!("{kernel}(")));
    let declared = entry.unwrap_or_default().lines().filter(|line| line.trim_start().starts_with(".shared "));
    let bytes = |line: &str| line.split_once('[')?.1.split_once(']')?.0.parse::<i32>().ok();
    declared.filter_map(bytes).sum()
}

/// # Safety
/// Here, and for every function below: what is written to can be written, and what is read can be read.
#[unsafe(export_name = "cuModuleLoadDataEx")]
unsafe extern "C" fn load(
    module: *mut CUmodule,
    image: *const c_void,
    count: c_uint,
    options: *mut c_uint,
    values: *mut *mut c_void,
) -> CUresult {
    in_context("cuModuleLoadDataEx", |driver, context| {
        capture::unsafe_call(driver)?;
        valid(!image.is_null() && (count == 0 || !(options.is_null() || values.is_null())))?;
        // SAFETY: as the caller has it: PTX ends with a zero.
        let image = unsafe { CStr::from_ptr(image.cast::<c_char>()) }.to_bytes();
        let all = MODULES.iter().enumerate().flat_map(|(i, module)| module.ptx.iter().map(move |ptx| (i, ptx)));
        let mut same = all.filter(|(_, (_, ptx))| ptx.as_bytes() == image);
        let (index, &(capability, _)) = same.next().ok_or(CUresult::CUDA_ERROR_INVALID_PTX)?;
        let has = driver.settings.gpus[driver.device_of(context)?].capability;
        if i64::from(capability) > i64::from(has) {
            return Err(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        }
        let new = driver.new_id();
        driver.modules.insert(new, Module { context, index, capability });
        // SAFETY: as the caller has it.
        unsafe { give(module, handle(new)) }
    })
}

#[unsafe(export_name = "cuModuleUnload")]
extern "C" fn unload(module: CUmodule) -> CUresult {
    in_context("cuModuleUnload", |driver, context| {
        capture::unsafe_call(driver)?;
        let module = id(module);
        driver.modules.remove(&module).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        driver.finish_all(context)?;
        driver.functions.retain(|_, function| function.module != module);
        Ok(())
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuModuleGetFunction")]
unsafe extern "C" fn function(function: *mut CUfunction, module: CUmodule, name: *const c_char) -> CUresult {
    in_context("cuModuleGetFunction", |driver, context| {
        let of = driver.modules.get(&id(module)).copied().filter(|module| module.context == context);
        let of = of.ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        valid(!name.is_null())?;
        // SAFETY: as the caller has it.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let found = KERNELS.iter().find(|kernel| kernel.module == of.index && kernel.name == name);
        let kernel = found.ok_or(CUresult::CUDA_ERROR_NOT_FOUND)?;
        let fixed = fixed_shared(MODULES[of.index].ptx_for(of.capability).unwrap_or_default(), &name);
        let new = driver.new_id();
        let dynamic = USUAL_SHARED - fixed;
        driver.functions.insert(new, Function { context, module: id(module), kernel, fixed, dynamic });
        // SAFETY: as the caller has it.
        unsafe { give(function, handle(new)) }
    })
}

#[unsafe(export_name = "cuFuncLoad")]
extern "C" fn function_load(function: CUfunction) -> CUresult {
    in_context("cuFuncLoad", |driver, _| {
        capture::unsafe_call(driver)?;
        driver.function_of(function).map(drop)
    })
}

/// `CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES`.
const FIXED: c_uint = 1;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const DYNAMIC: c_uint = 8;
/// `CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT`: a hint, in percent; -1: none.
const CARVEOUT: c_uint = 9;

/// # Safety
/// As above.
#[unsafe(export_name = "cuFuncGetAttribute")]
unsafe extern "C" fn attribute(value: *mut c_int, attribute: c_uint, function: CUfunction) -> CUresult {
    in_context("cuFuncGetAttribute", |driver, _| {
        let function = driver.function_of(function)?;
        let said = match attribute {
            0 => 1024,
            FIXED => function.fixed,
            DYNAMIC => function.dynamic,
            _ => return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
        };
        // SAFETY: as the caller has it.
        unsafe { give(value, said) }
    })
}

#[unsafe(export_name = "cuFuncSetAttribute")]
extern "C" fn set_attribute(function: CUfunction, attribute: c_uint, value: c_int) -> CUresult {
    in_context("cuFuncSetAttribute", |driver, context| {
        let most = most_shared(driver.settings.gpus[driver.device_of(context)?].capability);
        let function = driver.function_of(function)?;
        if attribute == CARVEOUT {
            return valid((-1..=100).contains(&value));
        }
        valid(attribute == DYNAMIC && value >= 0 && value <= most - function.fixed)?;
        function.dynamic = value;
        Ok(())
    })
}

/// # Safety
/// As above; `params` are the kernel's.
#[unsafe(export_name = "cuLaunchKernel")]
unsafe extern "C" fn launch(
    function: CUfunction,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: CUstream,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> CUresult {
    in_context("cuLaunchKernel", |driver, context| {
        valid(extra.is_null())?;
        let sizes = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        // SAFETY: as the caller has it.
        unsafe { driver.launch(context, function, sizes, (shared, stream), params) }
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuLaunchKernelEx")]
unsafe extern "C" fn launch_with(
    config: *const CUlaunchConfig,
    function: CUfunction,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> CUresult {
    use cudarc::driver::sys::CUlaunchAttributeID_enum as Attribute;

    in_context("cuLaunchKernelEx", |driver, context| {
        // SAFETY: as the caller has it.
        let config = unsafe { config.as_ref() }.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        valid(extra.is_null() && (config.numAttrs == 0 || !config.attrs.is_null()))?;
        let capability = driver.settings.gpus[driver.device_of(context)?].capability;
        for i in 0..config.numAttrs as usize {
            // SAFETY: as the caller has it: there are so many.
            match unsafe { (*config.attrs.add(i)).id } {
                Attribute::CU_LAUNCH_ATTRIBUTE_IGNORE => {}
                // Kernels that start early wait in themselves for those before: here each finds them done.
                Attribute::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION if capability >= 90 => {}
                _ => return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
            }
        }
        let grid = [config.gridDimX, config.gridDimY, config.gridDimZ];
        let block = [config.blockDimX, config.blockDimY, config.blockDimZ];
        let rest = (config.sharedMemBytes, config.hStream);
        // SAFETY: as the caller has it.
        unsafe { driver.launch(context, function, (grid, block), rest, params) }
    })
}

#[cfg(test)]
mod tests {
    use super::fixed_shared;

    #[test]
    fn shared_memory_is_counted_per_kernel() {
        let one = "one(\n)\n{\n\t.shared .align 4 .b8 a[128];\n\t.shared .align 4 .b8 b[64];\n}\n";
        let ptx = [".extern .shared .align 16 .b8 more[];\n", one, "other(\n)\n{\n}\n"].join(".visible .entry ");
        let ptx = ptx.as_str();
        assert_eq!([fixed_shared(ptx, "one"), fixed_shared(ptx, "other"), fixed_shared(ptx, "on")], [192, 0, 0]);
    }
}
