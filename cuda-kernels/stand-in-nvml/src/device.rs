//! The GPUs.

use std::ffi::{CStr, c_char, c_uint, c_ulonglong, c_void};
use std::ptr::without_provenance_mut;

use crate::settings;
use crate::state::{Answer, INVALID, LOST, Library, NOT_FOUND, NOT_SUPPORTED, OTHER_VERSION, give, give_text, started};

/// `nvmlPciInfo_t`
#[repr(C)]
struct PciInfo {
    legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    id: c_uint,
    subsystem: c_uint,
    bus_id: [c_char; 32],
}

const _: () = assert!(size_of::<PciInfo>() == 68);

/// `nvmlMemory_v2_t`
#[repr(C)]
struct Memory {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

const _: () = assert!(size_of::<Memory>() == 40);

/// `nvmlUtilization_t`
#[repr(C)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// As the driver's stand-in has it.
fn uuid(gpu: u32) -> String {
    format!("GPU-{gpu:02x}5d5d5d-5d5d-5d5d-5d5d-5d5d5d5d5d5d")
}

/// What stands for a GPU until the library is ended.
fn handle(library: &Library, gpu: u32) -> *mut c_void {
    without_provenance_mut(((library.life as usize) << 16 | gpu as usize) + 1)
}

/// The GPU that a handle stands for, if it is still on the bus.
fn gpu_of(library: &Library, device: *mut c_void) -> Answer<u32> {
    let gpu = (0..settings::gpus()).find(|&gpu| handle(library, gpu) == device).ok_or(INVALID)?;
    if settings::is_lost(gpu) { Err(LOST) } else { Ok(gpu) }
}

/// # Safety
/// Here, and for every function below: what is written to can be written, and has as many bytes as is said.
#[unsafe(export_name = "nvmlDeviceGetCount_v2")]
unsafe extern "C" fn count(to: *mut c_uint) -> c_uint {
    // SAFETY: as the caller has it.
    started("nvmlDeviceGetCount_v2", |_| unsafe { give(to, settings::gpus()) })
}

/// # Safety
/// As above.
#[unsafe(export_name = "nvmlDeviceGetHandleByIndex_v2")]
unsafe extern "C" fn by_index(index: c_uint, to: *mut *mut c_void) -> c_uint {
    started("nvmlDeviceGetHandleByIndex_v2", |library| {
        let device = handle(library, index);
        gpu_of(library, device)?;
        // SAFETY: as the caller has it.
        unsafe { give(to, device) }
    })
}

/// # Safety
/// As above; the text ends with a zero.
#[unsafe(export_name = "nvmlDeviceGetHandleByUUID")]
unsafe extern "C" fn by_uuid(text: *const c_char, to: *mut *mut c_void) -> c_uint {
    started("nvmlDeviceGetHandleByUUID", |library| {
        if text.is_null() {
            return Err(INVALID);
        }
        // SAFETY: as the caller has it.
        let wanted = unsafe { CStr::from_ptr(text) }.to_bytes();
        let gpu = (0..settings::gpus()).find(|&gpu| uuid(gpu).as_bytes() == wanted).ok_or(NOT_FOUND)?;
        let device = handle(library, gpu);
        gpu_of(library, device)?;
        // SAFETY: as the caller has it.
        unsafe { give(to, device) }
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "nvmlDeviceGetName")]
unsafe extern "C" fn name(device: *mut c_void, to: *mut c_char, bytes: c_uint) -> c_uint {
    started("nvmlDeviceGetName", |library| {
        let text = format!("CPU as GPU {}", gpu_of(library, device)?);
        // SAFETY: as the caller has it.
        unsafe { give_text(to, bytes, &text) }
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "nvmlDeviceGetUUID")]
unsafe extern "C" fn device_uuid(device: *mut c_void, to: *mut c_char, bytes: c_uint) -> c_uint {
    started("nvmlDeviceGetUUID", |library| {
        let text = uuid(gpu_of(library, device)?);
        // SAFETY: as the caller has it.
        unsafe { give_text(to, bytes, &text) }
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "nvmlDeviceGetPciInfo_v3")]
unsafe extern "C" fn pci(device: *mut c_void, to: *mut PciInfo) -> c_uint {
    started("nvmlDeviceGetPciInfo_v3", |library| {
        let bus = gpu_of(library, device)? + 1;
        let info = PciInfo {
            legacy: padded(&format!("0000:{bus:02X}:00.0")),
            domain: 0,
            bus,
            device: 0,
            id: 0x2330_10DE,
            subsystem: 0x16C1_10DE,
            bus_id: padded(&format!("00000000:{bus:02X}:00.0")),
        };
        // SAFETY: as the caller has it.
        unsafe { give(to, info) }
    })
}

/// A text with zeros behind it.
fn padded<const N: usize>(text: &str) -> [c_char; N] {
    let mut all = [0; N];
    all.iter_mut().zip(text.bytes()).for_each(|(to, byte)| *to = byte as c_char);
    all
}

/// # Safety
/// As above.
#[unsafe(export_name = "nvmlDeviceGetMemoryInfo_v2")]
unsafe extern "C" fn memory(device: *mut c_void, to: *mut Memory) -> c_uint {
    /// Its size, and the number of the version above.
    const VERSION: c_uint = size_of::<Memory>() as c_uint | 2 << 24;
    started("nvmlDeviceGetMemoryInfo_v2", |library| {
        gpu_of(library, device)?;
        // SAFETY: as the caller has it.
        let wanted = unsafe { to.as_ref() }.ok_or(INVALID)?.version;
        if wanted != VERSION {
            return Err(OTHER_VERSION);
        }
        let (total, reserved) = (settings::memory(), settings::memory() / 64);
        let used = total / 4;
        let free = total - reserved - used;
        // SAFETY: as the caller has it.
        unsafe { give(to, Memory { version: VERSION, total, reserved, free, used }) }
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "nvmlDeviceGetUtilizationRates")]
unsafe extern "C" fn utilization(device: *mut c_void, to: *mut Utilization) -> c_uint {
    started("nvmlDeviceGetUtilizationRates", |library| {
        let gpu = settings::busy(gpu_of(library, device)?).ok_or(NOT_SUPPORTED)?;
        // SAFETY: as the caller has it.
        unsafe { give(to, Utilization { gpu, memory: gpu / 2 }) }
    })
}

#[cfg(test)]
mod tests {
    use std::ptr::null_mut;

    use super::*;
    use crate::state::{TOO_SMALL, UNINITIALIZED, init, shutdown};

    #[test]
    fn answers_are_given_between_start_and_end_to_who_has_room() {
        let (mut number, mut gpu, mut same, mut text) = (0, null_mut(), null_mut(), [1 as c_char; 96]);
        let to = text.as_mut_ptr();
        // SAFETY: what is written to is live, and as large as is said.
        unsafe {
            assert_eq!(count(&mut number), UNINITIALIZED);
            assert_eq!((init(), init(), shutdown()), (0, 0, 0));
            assert_eq!(count(&mut number), 0, "it was started twice, and ended once");
            assert_eq!((by_index(0, &mut gpu), by_index(number, &mut same)), (0, INVALID));
            assert_eq!(by_uuid(c"GPU-none".as_ptr(), &mut same), NOT_FOUND);
            assert_eq!((device_uuid(gpu, to, 40), device_uuid(gpu, to, 41)), (TOO_SMALL, 0));
            assert_eq!(by_uuid(to, &mut same), 0);
            assert_eq!(same, gpu);
            let mut room: Memory = std::mem::zeroed();
            assert_eq!(memory(gpu, &mut room), OTHER_VERSION, "it does not say which it wants");
            room.version = 40 | 2 << 24;
            assert_eq!(memory(gpu, &mut room), 0);
            assert_eq!(room.total, room.used + room.free + room.reserved);
            assert_eq!((shutdown(), shutdown()), (0, UNINITIALIZED));
            assert_eq!(init(), 0);
            assert_eq!(name(gpu, to, 96), INVALID, "a handle from before");
            assert_eq!(shutdown(), 0);
        }
    }
}
