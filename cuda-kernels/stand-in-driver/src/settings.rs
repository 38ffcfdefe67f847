//! What the GPUs are to be like: variables of the environment, read when the driver is first called.
//!
//! | variable | what it says |
//! |---|---|
//! | `GENIE_STAND_IN_GPUS` | GPUs of the machine; 1 |
//! | `CUDA_VISIBLE_DEVICES` | which of them are shown: numbers, or beginnings of UUIDs, up to the first that is none |
//! | `GENIE_STAND_IN_MEMORY` | bytes of each; 1 GiB |
//! | `GENIE_STAND_IN_VERSION` | of the driver's interface; 13000 |
//! | `GENIE_STAND_IN_CAPABILITY` | compute capabilities in the order of the machine's GPUs, the last for all others; `90` |
//! | `GENIE_STAND_IN_BROKEN` | numbers of the machine's GPUs that make no context |
//! | `GENIE_STAND_IN_FAULT` | a file: where it is, the next kernel faults and removes it; it is empty, or has the GPU's number |
//! | `GENIE_STAND_IN_DEAD` | `1`: resetting the context after a fault does not help, as the documentation warns |
//! | `GENIE_STAND_IN_POOLS` | `gone`: pools and what they had go with the primary context; `lost`: so they do, but their bytes do not come back; else they stay |
//! | `GENIE_STAND_IN_WRONG` | a file: where it is, kernels compute nothing |
//! | `GENIE_STAND_IN_HANG` | a file: where it is, no event passes; once one has been asked after, there is another beside it, of the same name with `.seen` |
//! | `GENIE_STAND_IN_PINNING` | `full`: no host memory can be registered any more; `refused`: the system refuses that for another reason |
//! | `GENIE_STAND_IN_STUB` | `1`: it is the toolkit's library, which programs are linked with and which does nothing |
//! | `GENIE_STAND_IN_PEERS` | `0`: no GPU reaches another's memory; else all do |
//! | `GENIE_STAND_IN_DMABUF` | `0`: no memory is exported to network cards; else all that may be is |
//! | `GENIE_STAND_IN_ORDERED` | `0`: what network cards write is seen after a flush; else at once |
//! | `GENIE_STAND_IN_SEED` | what the orders of threads and blocks come from; 0 |

use std::env;
use std::path::PathBuf;

use cudarc::driver::sys::CUresult;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The GPUs that are shown.
    pub(crate) gpus: Vec<GpuSettings>,
    pub(crate) version: i32,
    pub(crate) fault: Option<PathBuf>,
    pub(crate) dead: bool,
    pub(crate) pools: Pools,
    pub(crate) wrong: Option<PathBuf>,
    pub(crate) hang: Option<PathBuf>,
    /// What registering host memory comes to, where that is no success.
    pub(crate) pinning: Option<CUresult>,
    pub(crate) stub: bool,
    pub(crate) peers: bool,
    pub(crate) dmabuf: bool,
    pub(crate) ordered: bool,
    pub(crate) seed: u64,
}

/// What a reset of the primary context leaves of pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pools {
    Stay,
    Go,
    /// They go, and their bytes are nobody's.
    Lost,
}

/// One GPU.
#[derive(Clone, Debug)]
pub(crate) struct GpuSettings {
    /// Its number in the machine.
    pub(crate) installed: usize,
    /// 90 for 9.0.
    pub(crate) capability: i32,
    pub(crate) bytes: u64,
    /// It makes no context.
    pub(crate) broken: bool,
}

impl GpuSettings {
    /// Its UUID.
    pub(crate) fn uuid(&self) -> [u8; 16] {
        let mut uuid = [0x5D; 16];
        uuid[0] = self.installed as u8;
        uuid
    }
}

impl Settings {
    /// As the environment has it.
    pub(crate) fn of_this_process() -> Self {
        let text = |name: &str| env::var(name).ok();
        let number = |name: &str| text(name).and_then(|value| value.trim().parse::<u64>().ok());
        let numbers = |name: &str| -> Vec<usize> {
            text(name).map(|value| value.split(',').filter_map(|n| n.trim().parse().ok()).collect()).unwrap_or_default()
        };
        let capabilities = numbers("GENIE_STAND_IN_CAPABILITY");
        let broken = numbers("GENIE_STAND_IN_BROKEN");
        let gpu = |installed: usize| GpuSettings {
            installed,
            capability: capabilities.get(installed).or(capabilities.last()).map_or(90, |&capability| capability as i32),
            bytes: number("GENIE_STAND_IN_MEMORY").unwrap_or(1 << 30),
            broken: broken.contains(&installed),
        };
        let installed = (0..number("GENIE_STAND_IN_GPUS").unwrap_or(1) as usize).map(gpu).collect();
        Self {
            gpus: shown(installed, text("CUDA_VISIBLE_DEVICES").as_deref()),
            version: number("GENIE_STAND_IN_VERSION").map_or(13000, |version| version as i32),
            fault: env::var_os("GENIE_STAND_IN_FAULT").map(PathBuf::from),
            dead: text("GENIE_STAND_IN_DEAD").is_some_and(|value| value == "1"),
            pools: match text("GENIE_STAND_IN_POOLS").as_deref() {
                Some("gone") => Pools::Go,
                Some("lost") => Pools::Lost,
                _ => Pools::Stay,
            },
            wrong: env::var_os("GENIE_STAND_IN_WRONG").map(PathBuf::from),
            hang: env::var_os("GENIE_STAND_IN_HANG").map(PathBuf::from),
            pinning: match text("GENIE_STAND_IN_PINNING").as_deref() {
                Some("full") => Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY),
                Some("refused") => Some(CUresult::CUDA_ERROR_OPERATING_SYSTEM),
                _ => None,
            },
            stub: text("GENIE_STAND_IN_STUB").is_some_and(|value| value == "1"),
            peers: text("GENIE_STAND_IN_PEERS").is_none_or(|value| value != "0"),
            dmabuf: text("GENIE_STAND_IN_DMABUF").is_none_or(|value| value != "0"),
            ordered: text("GENIE_STAND_IN_ORDERED").is_none_or(|value| value != "0"),
            seed: number("GENIE_STAND_IN_SEED").unwrap_or(0),
        }
    }
}

/// Those that `CUDA_VISIBLE_DEVICES` lists, in its order; all where it is not set.
fn shown(installed: Vec<GpuSettings>, list: Option<&str>) -> Vec<GpuSettings> {
    let Some(list) = list else { return installed };
    let mut shown: Vec<GpuSettings> = Vec::new();
    for entry in list.split(',').map(str::trim) {
        let meant = |gpu: &&GpuSettings| match entry.strip_prefix("GPU-") {
            Some(uuid) => !uuid.is_empty() && hex(gpu.uuid()).starts_with(uuid),
            None => entry.parse() == Ok(gpu.installed),
        };
        let mut found = installed.iter().filter(meant);
        let (Some(gpu), None) = (found.next(), found.next()) else { break };
        if shown.iter().any(|other| other.installed == gpu.installed) {
            break;
        }
        shown.push(gpu.clone());
    }
    shown
}

fn hex(uuid: [u8; 16]) -> String {
    let digits: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(list: Option<&str>) -> Vec<usize> {
        let gpu = |installed| GpuSettings { installed, capability: 90, bytes: 1, broken: false };
        shown((0..4).map(gpu).collect(), list).iter().map(|gpu| gpu.installed).collect()
    }

    #[test]
    fn the_list_hides_and_orders() {
        assert_eq!(listed(None), [0, 1, 2, 3]);
        assert_eq!(listed(Some("3,1")), [3, 1]);
        assert_eq!(listed(Some("2,7,1")), [2]);
        assert_eq!(listed(Some("-1")), [0; 0]);
        assert_eq!(listed(Some("")), [0; 0]);
        assert_eq!(listed(Some("1,1,2")), [1]);
        assert_eq!(listed(Some("GPU-02,GPU-005d5d5d-5d5d")), [2, 0]);
        assert_eq!(listed(Some("GPU-0")), [0; 0], "four begin so");
    }
}
