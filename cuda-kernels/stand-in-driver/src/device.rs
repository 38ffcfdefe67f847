//! The driver's start, and what its GPUs are.

use std::ffi::{c_char, c_int, c_uint};

use cudarc::driver::sys::{CUdevice, CUresult, CUuuid};

use crate::settings::GpuSettings;
use crate::state::{self, Answer, Driver, anyhow, give, started, valid};

/// Bytes of shared memory that a block may have on a GPU of this compute capability.
pub(crate) fn most_shared(capability: i32) -> i32 {
    match capability {
        ..80 => 64 << 10,
        80..90 => 163 << 10,
        _ => 227 << 10,
    }
}

impl Driver {
    /// The GPU of this number.
    pub(crate) fn gpu(&self, device: CUdevice) -> Answer<(usize, &GpuSettings)> {
        let index = usize::try_from(device).map_err(|_| CUresult::CUDA_ERROR_INVALID_DEVICE)?;
        let gpu = self.settings.gpus.get(index).ok_or(CUresult::CUDA_ERROR_INVALID_DEVICE)?;
        Ok((index, gpu))
    }
}

#[unsafe(export_name = "cuInit")]
extern "C" fn init(flags: c_uint) -> CUresult {
    anyhow("cuInit", |driver| {
        valid(flags == 0)?;
        if driver.settings.gpus.is_empty() {
            return Err(CUresult::CUDA_ERROR_NO_DEVICE);
        }
        if !std::mem::replace(&mut driver.started, true) {
            // SAFETY: the function is there as long as the process: libraries that cudarc opens are not closed.
            let refused = unsafe { libc::atexit(state::ended) };
            assert_eq!(refused, 0, "there is room for one more");
        }
        Ok(())
    })
}

/// # Safety
/// Here, and for every function below: what is written to can be written, and has as many bytes as is said.
#[unsafe(export_name = "cuDriverGetVersion")]
unsafe extern "C" fn driver_version(version: *mut c_int) -> CUresult {
    // SAFETY: as the caller has it.
    anyhow("cuDriverGetVersion", |driver| unsafe { give(version, driver.settings.version) })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuDeviceGetCount")]
unsafe extern "C" fn device_count(count: *mut c_int) -> CUresult {
    // SAFETY: as the caller has it.
    started("cuDeviceGetCount", |driver| unsafe { give(count, driver.settings.gpus.len() as c_int) })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuDeviceGet")]
unsafe extern "C" fn device(device: *mut CUdevice, ordinal: c_int) -> CUresult {
    started("cuDeviceGet", |driver| {
        driver.gpu(ordinal)?;
        // SAFETY: as the caller has it.
        unsafe { give(device, ordinal) }
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuDeviceGetName")]
unsafe extern "C" fn device_name(name: *mut c_char, bytes: c_int, device: CUdevice) -> CUresult {
    started("cuDeviceGetName", |driver| {
        let text = format!("CPU as GPU {}", driver.gpu(device)?.1.installed);
        // SAFETY: as the caller has it.
        unsafe { give_text(name, bytes, &text) }
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuDeviceGetPCIBusId")]
unsafe extern "C" fn device_bus(bus: *mut c_char, bytes: c_int, device: CUdevice) -> CUresult {
    started("cuDeviceGetPCIBusId", |driver| {
        let text = format!("0000:{:02X}:00.0", driver.gpu(device)?.1.installed + 1);
        // SAFETY: as the caller has it.
        unsafe { give_text(bus, bytes, &text) }
    })
}

/// # Safety
/// `to` can be written, `bytes` of it.
unsafe fn give_text(to: *mut c_char, bytes: c_int, text: &str) -> Answer {
    let room = usize::try_from(bytes).unwrap_or(0);
    valid(!to.is_null() && room > text.len())?;
    // SAFETY: as the caller has it: there is room for the text and a zero.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuDeviceGetUuid_v2")]
unsafe extern "C" fn device_uuid(uuid: *mut CUuuid, device: CUdevice) -> CUresult {
    started("cuDeviceGetUuid_v2", |driver| {
        let bytes = driver.gpu(device)?.1.uuid().map(|byte| byte as c_char);
        // SAFETY: as the caller has it.
        unsafe { give(uuid, CUuuid { bytes }) }
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuDeviceTotalMem_v2")]
unsafe extern "C" fn device_memory(bytes: *mut usize, device: CUdevice) -> CUresult {
    started("cuDeviceTotalMem_v2", |driver| {
        let total = driver.gpu(device)?.1.bytes as usize;
        // SAFETY: as the caller has it.
        unsafe { give(bytes, total) }
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuDeviceGetAttribute")]
unsafe extern "C" fn device_attribute(value: *mut c_int, attribute: c_uint, device: CUdevice) -> CUresult {
    use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;

    const THREADS: u32 = Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK as u32;
    const MULTIPROCESSORS: u32 = Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as u32;
    const MAJOR: u32 = Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as u32;
    const MINOR: u32 = Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as u32;
    const SHARED: u32 = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as u32;
    const RDMA: u32 = Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED as u32;
    const FLUSHES: u32 = Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS as u32;
    const ORDERING: u32 = Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING as u32;
    const DMABUF: u32 = Attribute::CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED as u32;
    const POOLS: u32 = Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED as u32;
    started("cuDeviceGetAttribute", |driver| {
        let capability = driver.gpu(device)?.1.capability;
        let said = match attribute {
            THREADS => 1024,
            MULTIPROCESSORS => 4,
            MAJOR => capability / 10,
            MINOR => capability % 10,
            SHARED => most_shared(capability),
            POOLS | RDMA | FLUSHES => 1,
            DMABUF => driver.settings.dmabuf.into(),
            ORDERING => 100 * c_int::from(driver.settings.ordered),
            _ => {
                eprintln!("stand-in driver: nothing is known of attribute {attribute}");
                return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
            }
        };
        // SAFETY: as the caller has it.
        unsafe { give(value, said) }
    })
}
