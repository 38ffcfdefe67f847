//! A stand-in for NVIDIA's management library (NVML), as the library that programs load: `libnvidia-ml.so.1`.
//!
//! Genie asks NVML which GPUs a machine has and how busy they are. This library has the functions that it calls, for the GPUs of the
//! driver's stand-in (`stand-in-driver`): as many, with the same UUIDs and places on the bus, and those that `CUDA_VISIBLE_DEVICES` hides,
//! too.
//!
//! **It proves nothing about NVML.** It knows what that one's documentation says, as its writer read it. What it can show is that a
//! program keeps the rules below. A rule that is broken is an error, as the library's, and a line on stderr that begins with
//! `stand-in NVML: mistake:`.
//!
//! # Rules
//! - Nothing but texts of errors before `nvmlInit_v2`, or after as many `nvmlShutdown`. Handles of devices are from the init before.
//! - Buffers are as long as what is written into them; a structure says which version of it is wanted.
//!
//! # Settings
//! Variables of the environment: `src/settings.rs` has the list.

mod device;
mod settings;
mod state;

/// How a line about a broken rule begins.
const MISTAKE: &str = "stand-in NVML: mistake:";
