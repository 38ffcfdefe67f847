//! The GPUs that a machine has, and how busy they are: what NVIDIA's management library (NVML) says, which sees also those that
//! `CUDA_VISIBLE_DEVICES` hides from CUDA.

mod sampler;
mod visible;

use std::sync::OnceLock;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

pub use sampler::{Sample, Utilisation, UtilisationSampler};
pub use visible::{Entry, Visibility, Visible};

/// Why nothing is known of the machine's GPUs, or of one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InventoryError {
    /// The library is not there, or does not start.
    #[error("NVIDIA's management library cannot be used ({reason}); it comes with NVIDIA's driver")]
    NoLibrary {
        /// What it, or the system, says.
        reason: String,
    },
    /// It refused to say something.
    #[error("{during}: NVIDIA's management library says: {reason}")]
    Refused {
        /// What was asked for.
        during: &'static str,
        /// What it says.
        reason: String,
    },
    /// No thread could be started to take samples.
    #[error("no thread to take samples: {reason}")]
    NoThread {
        /// What the system says.
        reason: String,
    },
}

/// A GPU of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledGpu {
    /// What it calls itself.
    pub name: String,
    /// `GPU-...`; as [`super::Properties::uuid`].
    pub uuid: String,
    /// `0000:3b:00.0`; as [`super::Properties::bus`].
    pub bus: String,
    /// Bytes of its memory.
    pub total_bytes: u64,
    /// Bytes that nobody has.
    pub free_bytes: u64,
    /// Percent of the last moments (up to a second) in which a kernel ran; none where it does not tell, as when it is cut in slices.
    pub utilisation: Option<u32>,
}

/// All that a machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// Version of NVIDIA's driver: `580.65.06`.
    pub driver: String,
    /// Every GPU, in the order of the bus, or why it does not tell what it is.
    pub gpus: Vec<Result<InstalledGpu, InventoryError>>,
    /// How many of them CUDA shows to this process.
    pub visibility: Visibility,
}

/// What the machine has now.
///
/// # Errors
/// [`InventoryError`]. One GPU that does not answer is an error of its own, in [`Inventory::gpus`].
pub fn inventory() -> Result<Inventory, InventoryError> {
    let nvml = start()?;
    let driver = nvml.sys_driver_version().map_err(refused("asking for the driver's version"))?;
    let count = nvml.device_count().map_err(refused("counting GPUs"))?;
    let gpus: Vec<_> = (0..count).map(|index| look_at(&nvml, index)).collect();
    let uuids: Vec<&str> = gpus.iter().map(|gpu| gpu.as_ref().map_or("", |gpu| gpu.uuid.as_str())).collect();
    let visibility = Visibility::of_this_process(&uuids);
    Ok(Inventory { driver, gpus, visibility })
}

/// How busy the GPU of this UUID is now, in percent; none where nobody tells. The library is started once a process, so that a call
/// takes well below a millisecond.
pub fn utilisation(uuid: &str) -> Option<u32> {
    static NVML: OnceLock<Option<Nvml>> = OnceLock::new();
    let nvml = NVML.get_or_init(|| start().ok()).as_ref()?;
    Some(nvml.device_by_uuid(uuid).ok()?.utilization_rates().ok()?.gpu.min(100))
}

fn start() -> Result<Nvml, InventoryError> {
    Nvml::init().map_err(|error| InventoryError::NoLibrary { reason: error.to_string() })
}

fn look_at(nvml: &Nvml, index: u32) -> Result<InstalledGpu, InventoryError> {
    let device = nvml.device_by_index(index).map_err(refused("looking at a GPU"))?;
    let memory = device.memory_info().map_err(refused("asking for a GPU's memory"))?;
    Ok(InstalledGpu {
        name: device.name().map_err(refused("asking for a GPU's name"))?,
        uuid: device.uuid().map_err(refused("asking for a GPU's UUID"))?,
        bus: bus(&device.pci_info().map_err(refused("asking for a GPU's place on the bus"))?.bus_id),
        total_bytes: memory.total,
        free_bytes: memory.free,
        utilisation: device.utilization_rates().ok().map(|rates| rates.gpu),
    })
}

fn refused(during: &'static str) -> impl Fn(NvmlError) -> InventoryError {
    move |error| InventoryError::Refused { during, reason: error.to_string() }
}

/// The library writes eight digits of the domain, CUDA and the system write four.
fn bus(id: &str) -> String {
    let id = id.to_lowercase();
    match id.split_once(':') {
        Some((domain, rest)) if domain.len() == 8 && domain.starts_with("0000") => format!("{}:{rest}", &domain[4..]),
        _ => id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_on_the_bus_are_written_as_cuda_does() {
        assert_eq!(bus("00000000:3B:00.0"), "0000:3b:00.0");
        assert_eq!(bus("0001ABCD:3B:00.0"), "0001abcd:3b:00.0");
        assert_eq!(bus(""), "");
    }

    #[test]
    fn without_the_library_there_is_an_error_and_no_panic() {
        match inventory() {
            Ok(inventory) => assert_eq!(inventory.visibility.installed, inventory.gpus.len()),
            Err(InventoryError::NoLibrary { reason }) => assert!(!reason.is_empty()),
            Err(error) => panic!("{error}"),
        }
        let sampler = UtilisationSampler::start("GPU-none", std::time::Duration::from_millis(1));
        let error = sampler.expect_err("there is no such GPU anywhere");
        assert!(error.to_string().contains("NVIDIA's management library"), "{error}");
        assert_eq!(utilisation("GPU-none"), None);
    }
}
