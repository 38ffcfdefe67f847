//! The driver: whether there is one, whether it is new enough, and the GPUs that it shows.
//!
//! cudarc loads the driver's library when one of its functions is first called, and panics if there is none. So nothing here, or
//! anywhere in this module's siblings, calls one before [`driver`] has said that it is there.

use std::sync::OnceLock;

use cudarc::driver::{result, sys};

use super::super::{GpuError, Properties};
use super::status::{During, explain};

/// The oldest driver interface that compiles the PTX of the compiler that `tools/build-kernels` pins.
const OLDEST_DRIVER: u32 = 13000;
/// The driver branch that brought it.
const OLDEST_BRANCH: u32 = 580;
/// The oldest compute capability that there is PTX for.
const OLDEST_CAPABILITY: u32 = 75;

/// What was found where it was not the driver.
const STUB: &str = "the libcuda.so that was found is the CUDA toolkit's stub (CUDA_ERROR_STUB_LIBRARY), which programs are only linked \
                    with: take the toolkit's folder `stubs` out of LD_LIBRARY_PATH, so that the driver's own is found";

/// A driver that is loaded and started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Driver {
    /// Version of its interface.
    pub(super) version: u32,
    /// GPUs that it shows to this process.
    pub(super) gpus: u32,
}

/// The GPUs that CUDA shows to this process, each with what it is or why it cannot be used: one that is broken or too old hides no
/// other.
///
/// # Errors
/// [`GpuError::NoDriver`], [`GpuError::OldDriver`].
pub fn probe() -> Result<Vec<Result<Properties, GpuError>>, GpuError> {
    let driver = driver()?;
    Ok((0..driver.gpus).map(|ordinal| properties(driver, ordinal)).collect())
}

/// Loads and starts the driver, once a process.
pub(super) fn driver() -> Result<Driver, GpuError> {
    static DRIVER: OnceLock<Result<Driver, GpuError>> = OnceLock::new();
    DRIVER.get_or_init(start).clone()
}

fn start() -> Result<Driver, GpuError> {
    // SAFETY: opening the driver's library runs what it does when it is loaded, which asks nothing of this process.
    if !unsafe { sys::is_culib_present() } {
        return Err(GpuError::NoDriver { reason: "libcuda.so.1 was not found".to_owned() });
    }
    let said_no = |code: sys::CUresult| {
        let reason = match code {
            // It is found where a path for linking is one for running, too, as the name without a version is tried first.
            sys::CUresult::CUDA_ERROR_STUB_LIBRARY => STUB.to_owned(),
            code => format!("it does not start: {}", explain(code)),
        };
        Err(GpuError::NoDriver { reason })
    };
    let mut version = 0;
    // SAFETY: the library is there, and writes one integer. It may be asked before it is started.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    if status != sys::CUresult::CUDA_SUCCESS {
        return said_no(status);
    }
    let version = new_enough(u32::try_from(version).unwrap_or(0))?;
    // SAFETY: the library is there; its flags must be 0.
    match unsafe { sys::cuInit(0) } {
        sys::CUresult::CUDA_SUCCESS => {}
        sys::CUresult::CUDA_ERROR_NO_DEVICE => return Ok(Driver { version, gpus: 0 }),
        status => return said_no(status),
    }
    let gpus = result::device::get_count().during("counting GPUs")?;
    Ok(Driver { version, gpus: u32::try_from(gpus).unwrap_or(0) })
}

fn new_enough(has: u32) -> Result<u32, GpuError> {
    if has < OLDEST_DRIVER {
        return Err(GpuError::OldDriver { has, needs: OLDEST_DRIVER, branch: OLDEST_BRANCH });
    }
    Ok(has)
}

/// The driver's handle of a GPU.
pub(super) fn device(driver: Driver, ordinal: u32) -> Result<sys::CUdevice, GpuError> {
    let there = i32::try_from(ordinal).ok().filter(|_| ordinal < driver.gpus);
    let Some(there) = there else { return Err(GpuError::NoDevice { ordinal, visible: driver.gpus }) };
    result::device::get(there).during("looking for a GPU")
}

/// What a GPU is, if kernels run on it.
pub(super) fn properties(driver: Driver, ordinal: u32) -> Result<Properties, GpuError> {
    use sys::CUdevice_attribute_enum as Attribute;

    let device = device(driver, ordinal)?;
    let get = |attribute| {
        // SAFETY: the device is the driver's own.
        let value = unsafe { result::device::get_attribute(device, attribute) }.during("asking what a GPU is")?;
        Ok::<u32, GpuError>(u32::try_from(value).unwrap_or(0))
    };
    let name = result::device::get_name(device).during("asking for a GPU's name")?;
    let capability = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? * 10
        + get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    if capability < OLDEST_CAPABILITY {
        return Err(GpuError::OldDevice { name, capability });
    }
    if get(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 0 {
        let reason = "it has no memory pools (a virtual GPU without unified memory?)".to_owned();
        return Err(GpuError::Refused { during: "looking at a GPU", reason });
    }
    let uuid = result::device::get_uuid(device).during("asking for a GPU's UUID")?;
    // SAFETY: the device is the driver's own.
    let total = unsafe { result::device::total_mem(device) }.during("asking for a GPU's memory")?;
    Ok(Properties {
        ordinal,
        uuid: uuid_text(name.contains(" MIG "), uuid.bytes.map(|byte| byte as u8)),
        name,
        capability,
        multiprocessors: get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: get(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        total_bytes: total as u64,
        bus: bus(device)?,
        driver: driver.version,
    })
}

fn bus(device: sys::CUdevice) -> Result<String, GpuError> {
    let mut text = [0_u8; 32];
    // SAFETY: the driver writes at most as many bytes as it is told that there are.
    let status = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as i32, device) };
    status.during("asking for a GPU's place on the bus")?;
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    Ok(String::from_utf8_lossy(&text[..end]).to_lowercase())
}

/// As management tools print it. A slice of a GPU has one of its own.
fn uuid_text(slice: bool, bytes: [u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let kind = if slice { "MIG" } else { "GPU" };
    format!("{kind}-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_from_before_thirteen_is_told_to_go() {
        assert_eq!(new_enough(13010), Ok(13010));
        let error = new_enough(12080).expect_err("12.8 compiles no PTX of 13.0");
        assert_eq!(
            error.to_string(),
            "the CUDA driver is too old: it has 12.8, and 13.0 is needed; update NVIDIA's driver to branch 580 or newer"
        );
    }

    #[test]
    fn uuids_look_as_in_management_tools() {
        let bytes = std::array::from_fn(|i| i as u8 * 17);
        assert_eq!(uuid_text(false, bytes), "GPU-00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(uuid_text(true, bytes), "MIG-00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn a_machine_without_a_driver_is_told_so_and_nothing_panics() {
        // SAFETY: see `start`.
        let there = unsafe { sys::is_culib_present() };
        match probe() {
            Ok(gpus) => assert!(there && gpus.len() < 1024),
            Err(GpuError::NoDriver { reason }) if !there => assert!(reason.contains("libcuda")),
            Err(error) => assert!(there, "{error}"),
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_told_so() {
        let error = device(Driver { version: 13000, gpus: 2 }, 2).expect_err("there are 0 and 1");
        assert_eq!(error, GpuError::NoDevice { ordinal: 2, visible: 2 });
        assert!(error.to_string().contains("no GPU 2"), "{error}");
    }
}
