//! The devices that a command line names.

use std::collections::HashSet;
use std::str::FromStr;
use std::sync::Arc;
#[cfg(feature = "cuda")]
use std::sync::OnceLock;

use genie_cuda_kernels::gpu::Gpu;

use super::cuda::CudaDevice;
use super::{Device, DeviceError, cpu};

/// What was asked for.
///
/// ```
/// use genie_executor::device::select::Choice;
/// assert_eq!("cuda:0,cuda:2".parse(), Ok(Choice::These(vec![0, 2])));
/// assert!("gpu".parse::<Choice>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// `auto`: every GPU that works, else the CPU.
    Auto,
    /// `cpu` (one with all cores) or `cpu*8` (eight, sharing cores and memory; each has at least one thread).
    Cpu(u32),
    /// `cuda`: every GPU that works; none is an error.
    Gpus,
    /// `cuda:0,cuda:2`: these, in this order; one that does not work is an error.
    These(Vec<u32>),
}

/// What devices may take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Threads that CPU devices share; `None`: as many as the machine has.
    pub threads: Option<usize>,
    /// Bytes of tensors: of all CPU devices together, or of each GPU; `None`: what there is to spare.
    pub memory_bytes: Option<u64>,
    /// Bytes of pinned host memory for tensors on their way to and from each GPU; `None`: what its way takes, if that is measured, else
    /// what 25 GB/s take.
    pub staging_bytes: Option<u64>,
    /// Whether the way to each GPU is measured when it is opened.
    pub measure: bool,
}

/// GPUs by their numbers, the first being 0. `CUDA_VISIBLE_DEVICES` has hidden some and ordered the others.
pub trait Gpus {
    /// Each GPU's state: whether it can be used, or why not.
    ///
    /// # Errors
    /// Why there is no knowing.
    fn probe(&self) -> Result<Vec<Result<(), DeviceError>>, DeviceError>;

    /// Opens one.
    ///
    /// # Errors
    /// Why it cannot be used.
    fn open(&self, number: u32) -> Result<Arc<dyn Gpu>, DeviceError>;
}

/// The GPUs of NVIDIA's driver. A build without feature `cuda` has none, and says so.
#[derive(Clone, Copy, Debug)]
pub struct Driver;

#[cfg(feature = "cuda")]
impl Gpus for Driver {
    fn probe(&self) -> Result<Vec<Result<(), DeviceError>>, DeviceError> {
        let found = genie_cuda_kernels::gpu::cuda::probe()?;
        Ok(found.into_iter().map(|gpu| gpu.map(|_| ()).map_err(DeviceError::from)).collect())
    }

    fn open(&self, number: u32) -> Result<Arc<dyn Gpu>, DeviceError> {
        Ok(Arc::new(genie_cuda_kernels::gpu::cuda::open(number)?))
    }
}

#[cfg(not(feature = "cuda"))]
impl Gpus for Driver {
    fn probe(&self) -> Result<Vec<Result<(), DeviceError>>, DeviceError> {
        Err(without_cuda())
    }

    fn open(&self, _number: u32) -> Result<Arc<dyn Gpu>, DeviceError> {
        Err(without_cuda())
    }
}

#[cfg(not(feature = "cuda"))]
fn without_cuda() -> DeviceError {
    DeviceError::Gpu("this build has no CUDA: build it with feature `cuda`, or serve the CPU: --device cpu".to_owned())
}

/// What a process that has opened GPUs calls before it ends: no thread gets into the driver any more. Waits for kernels that are being
/// compiled, some seconds at the most, and for others up to a second. `false`: one is still in the driver, which must not be taken down
/// under it: the process flushes what it has written, and ends by [`exit_at_once`].
#[cfg(feature = "cuda")]
pub fn leave() -> bool {
    genie_cuda_kernels::gpu::cuda::leave()
}

/// This build opens no GPU.
#[cfg(not(feature = "cuda"))]
pub fn leave() -> bool {
    true
}

/// Ends the process with this status and nothing else: what libraries do at its end is left out.
#[cfg(feature = "cuda")]
pub fn exit_at_once(status: u8) -> ! {
    genie_cuda_kernels::gpu::cuda::exit_at_once(status)
}

/// Ends the process with this status. Without CUDA nothing of its end is dangerous.
#[cfg(not(feature = "cuda"))]
pub fn exit_at_once(status: u8) -> ! {
    std::process::exit(status.into())
}

/// GPUs of this machine, and how many of them CUDA shows to this process. `None` where NVIDIA's management library does not tell. It is
/// asked once a process, and takes tens of milliseconds to start.
#[cfg(feature = "cuda")]
pub fn gpus_here() -> Option<(usize, usize)> {
    static FOUND: OnceLock<Option<(usize, usize)>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = genie_cuda_kernels::gpu::inventory::inventory().ok()?.visibility;
        Some((found.installed, found.visible))
    })
}

/// This build has nobody to ask.
#[cfg(not(feature = "cuda"))]
pub fn gpus_here() -> Option<(usize, usize)> {
    None
}

/// What a choice came to.
pub struct Selected {
    /// At least one.
    pub devices: Vec<Arc<dyn Device>>,
    /// GPUs that would have been taken, and why they were not.
    pub left_out: Vec<(u32, DeviceError)>,
    /// Why [`Choice::Auto`] took the CPU.
    pub why_cpu: Option<DeviceError>,
}

/// Opens the devices that `text` names, and logs what is worth knowing of that.
///
/// # Errors
/// [`DeviceError::Name`] for a name that is none, [`DeviceError::NoGpu`] and [`DeviceError::Gpu`] where a GPU that was asked for
/// cannot be used, [`DeviceError::Threads`] if the system refuses a thread.
pub fn open(text: &str, limits: Limits) -> Result<Vec<Arc<dyn Device>>, DeviceError> {
    let Selected { devices, left_out, why_cpu } = text.parse::<Choice>()?.open(&Driver, limits)?;
    for (number, error) in left_out {
        tracing::warn!(%error, "cuda:{number} is left out");
    }
    if let Some(why) = why_cpu {
        tracing::info!("the CPU is taken: {why}");
    }
    // Now, and not as each is opened: what compiles takes the processor and the bus from those that are measured.
    devices.iter().for_each(|device| device.warm_up());
    Ok(devices)
}

impl FromStr for Choice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        /// The most CPU devices that make sense to anyone.
        const MOST: u32 = 256;
        let name = || DeviceError::Name { text: text.to_owned() };
        match text.trim() {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu(1)),
            "cuda" => return Ok(Self::Gpus),
            _ => {}
        }
        if let Some(count) = text.trim().strip_prefix("cpu*") {
            let count = count.parse().ok().filter(|count| (1..=MOST).contains(count));
            return count.map(Self::Cpu).ok_or_else(name);
        }
        let number = |part: &str| part.trim().strip_prefix("cuda:").and_then(|n| n.parse().ok());
        let numbers: Vec<u32> = text.split(',').map(number).collect::<Option<_>>().ok_or_else(name)?;
        let each_once = numbers.iter().collect::<HashSet<_>>().len() == numbers.len();
        if each_once { Ok(Self::These(numbers)) } else { Err(name()) }
    }
}

impl Choice {
    /// Opens the devices. Of several GPUs, one that does not work hides no other, unless it was named.
    ///
    /// # Errors
    /// As [`open`].
    pub fn open(&self, gpus: &dyn Gpus, limits: Limits) -> Result<Selected, DeviceError> {
        let only = |devices| Selected { devices, left_out: Vec::new(), why_cpu: None };
        match self {
            Self::Cpu(count) => Ok(only(cpu::devices(*count, limits.threads, limits.memory_bytes)?)),
            Self::These(numbers) => {
                let one = |&number: &u32| open_one(gpus, number, limits).map_err(|error| named(number, &error));
                Ok(only(numbers.iter().map(one).collect::<Result<_, _>>()?))
            }
            Self::Gpus => every(gpus, limits).map_err(|(why, left_out)| no_gpu(&why, &left_out)),
            Self::Auto => every(gpus, limits).or_else(|(why, left_out)| {
                let devices = cpu::devices(1, limits.threads, limits.memory_bytes)?;
                Ok(Selected { devices, left_out, why_cpu: Some(why) })
            }),
        }
    }
}

/// Why there is no GPU at all, and what is wrong with those that there are.
type NoneWorks = (DeviceError, Vec<(u32, DeviceError)>);

fn every(gpus: &dyn Gpus, limits: Limits) -> Result<Selected, NoneWorks> {
    let found = gpus.probe().map_err(|why| (why, Vec::new()))?;
    let (mut devices, mut left_out) = (Vec::new(), Vec::new());
    for (number, state) in (0..).zip(found) {
        match state.and_then(|()| open_one(gpus, number, limits)) {
            Ok(device) => devices.push(device),
            Err(error) => left_out.push((number, error)),
        }
    }
    if !devices.is_empty() {
        return Ok(Selected { devices, left_out, why_cpu: None });
    }
    let reason = if left_out.is_empty() {
        "the driver shows none; look at CUDA_VISIBLE_DEVICES, and at what `genie doctor` says".to_owned()
    } else {
        format!("{} there, none that works", left_out.len())
    };
    Err((DeviceError::NoGpu { reason }, left_out))
}

fn open_one(gpus: &dyn Gpus, number: u32, limits: Limits) -> Result<Arc<dyn Device>, DeviceError> {
    let gpu = gpus.open(number)?;
    let Limits { memory_bytes, staging_bytes, .. } = limits;
    let device = match (limits.measure, staging_bytes) {
        (true, _) => CudaDevice::measured(number, gpu, memory_bytes, staging_bytes)?,
        (false, Some(bytes)) => CudaDevice::with_staging(number, gpu, memory_bytes, bytes)?,
        (false, None) => CudaDevice::new(number, gpu, memory_bytes)?,
    };
    Ok(Arc::new(device))
}

fn named(number: u32, error: &DeviceError) -> DeviceError {
    DeviceError::Gpu(format!("cuda:{number} cannot be used: {error}"))
}

/// One error of all.
fn no_gpu(why: &DeviceError, left_out: &[(u32, DeviceError)]) -> DeviceError {
    let mut reason = match why {
        DeviceError::NoGpu { reason } => reason.clone(),
        other => other.to_string(),
    };
    for (number, error) in left_out {
        reason += &format!("; cuda:{number}: {error}");
    }
    if !reason.contains("--device cpu") {
        reason += "; --device cpu serves the CPU";
    }
    DeviceError::NoGpu { reason }
}
