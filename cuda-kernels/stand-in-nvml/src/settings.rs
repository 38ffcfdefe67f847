//! What the library is to be like: variables of the environment, read when it is asked.
//!
//! | variable | what it says |
//! |---|---|
//! | `GENIE_STAND_IN_GPUS` | GPUs of the machine; 1 |
//! | `GENIE_STAND_IN_MEMORY` | bytes of each; 1 GiB |
//! | `GENIE_STAND_IN_NVML` | the number of the error that it does not start with; 0: it starts |
//! | `GENIE_STAND_IN_LOST` | numbers of the machine's GPUs that have fallen off the bus |
//! | `GENIE_STAND_IN_BUSY` | a file: percent for each GPU, with commas between them; one that is no number does not tell. None: 0 |

use std::env;
use std::fs;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.trim().parse().ok()
}

/// GPUs of the machine.
pub(crate) fn gpus() -> u32 {
    number("GENIE_STAND_IN_GPUS").unwrap_or(1) as u32
}

/// Bytes of each.
pub(crate) fn memory() -> u64 {
    number("GENIE_STAND_IN_MEMORY").unwrap_or(1 << 30)
}

/// Why it does not start.
pub(crate) fn refusal() -> Option<u32> {
    number("GENIE_STAND_IN_NVML").map(|code| code as u32).filter(|&code| code > 0)
}

/// Whether a GPU has fallen off the bus.
pub(crate) fn is_lost(gpu: u32) -> bool {
    let list = env::var("GENIE_STAND_IN_LOST").unwrap_or_default();
    list.split(',').any(|entry| entry.trim().parse() == Ok(gpu))
}

/// How busy a GPU is, in percent; none: it does not tell.
pub(crate) fn busy(gpu: u32) -> Option<u32> {
    let Some(file) = env::var_os("GENIE_STAND_IN_BUSY") else { return Some(0) };
    // A file that is not there yet is one of idle GPUs.
    let Ok(text) = fs::read_to_string(file) else { return Some(0) };
    text.split(',').nth(gpu as usize).map_or(Some(0), |entry| entry.trim().parse().ok())
}
