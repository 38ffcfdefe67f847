//! What can go wrong on a GPU.

use crate::view::LaunchError;

/// An error of a GPU, its driver or its libraries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// No memory left: the GPU's, or the host's where that is asked for.
    #[error("no memory left{}", if *wanted == 0 { String::new() } else { format!(" for {wanted} bytes") })]
    OutOfMemory {
        /// Bytes asked for; 0 where only the driver knows.
        wanted: u64,
    },
    /// A kernel or a copy went wrong: everything on the GPU is lost.
    #[error("the GPU failed in {during}: {reason}; everything on it is lost")]
    Fault {
        /// What was being done or waited for.
        during: &'static str,
        /// What the driver says.
        reason: String,
    },
    /// The driver refused something; nothing was done.
    #[error("{during}: {reason}")]
    Refused {
        /// What was asked for.
        during: &'static str,
        /// What the driver says.
        reason: String,
    },
    /// No CUDA driver on this machine.
    #[error("no CUDA driver here ({reason}); install NVIDIA's driver, or serve the CPU: --device cpu")]
    NoDriver {
        /// What was looked for, and what came of it.
        reason: String,
    },
    /// A driver that is older than the kernels.
    #[error(
        "the CUDA driver is too old: it has {}.{}, and {}.{} is needed; update NVIDIA's driver to branch {branch} or newer",
        has / 1000, has % 1000 / 10, needs / 1000, needs % 1000 / 10
    )]
    OldDriver {
        /// Version of its interface: 12040 for 12.4.
        has: u32,
        /// The oldest that will do.
        needs: u32,
        /// The driver branch that has it.
        branch: u32,
    },
    /// A GPU that is not there.
    #[error("there is no GPU {ordinal}: CUDA shows {visible} (numbers begin at 0; CUDA_VISIBLE_DEVICES hides some)")]
    NoDevice {
        /// The number that was asked for.
        ordinal: u32,
        /// How many there are.
        visible: u32,
    },
    /// A GPU that the kernels do not run on.
    #[error("{name} has compute capability {}.{}; 7.5 is the oldest that is supported", capability / 10, capability % 10)]
    OldDevice {
        /// What it calls itself.
        name: String,
        /// 70 for 7.0.
        capability: u32,
    },
}

impl GpuError {
    /// Whether everything on the GPU is lost, and every later call fails until it is revived.
    pub fn is_sticky(&self) -> bool {
        matches!(self, Self::Fault { .. })
    }
}

impl From<LaunchError> for GpuError {
    fn from(error: LaunchError) -> Self {
        Self::Refused { during: "checking a launch", reason: error.to_string() }
    }
}
