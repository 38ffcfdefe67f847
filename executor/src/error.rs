//! From failures of the server's parts to what stands on the wire.

use genie_transport::wire::{Effect, ErrorCode, RemoteError};

use crate::account::OverQuota;
use crate::device::DeviceError;

/// A failure that changed nothing.
pub(crate) fn fail(code: ErrorCode, message: impl Into<String>) -> RemoteError {
    RemoteError::new(code, message)
}

/// The same failure, after something had changed.
pub(crate) fn partly(mut error: RemoteError) -> RemoteError {
    error.effect = Effect::Partial;
    error
}

/// A fault of the server's own, with its reason in the log.
pub(crate) fn internal(what: &str, reason: &dyn std::fmt::Display) -> RemoteError {
    tracing::error!(%reason, "{what}");
    fail(ErrorCode::Internal, format!("{what}: the server's log says why"))
}

impl From<OverQuota> for RemoteError {
    fn from(OverQuota { wanted, used, quota }: OverQuota) -> Self {
        let message = format!(
            "{wanted} bytes wanted, but {used} of a quota of {quota} are taken: free tensors or caches, or open the session \
             with a larger quota"
        );
        fail(ErrorCode::OverQuota, message)
    }
}

impl From<DeviceError> for RemoteError {
    fn from(error: DeviceError) -> Self {
        if matches!(error, DeviceError::Lost { .. }) {
            return partly(fail(ErrorCode::DeviceFailed, error.to_string()));
        }
        let code = match error {
            DeviceError::OutOfMemory(_) | DeviceError::NoHostMemory { .. } => ErrorCode::OutOfMemory,
            DeviceError::Unsupported { .. } | DeviceError::NoKernel { .. } => ErrorCode::UnsupportedOp,
            DeviceError::IndexOutOfRange { .. } => ErrorCode::OutOfRange,
            DeviceError::Gpu(_)
            | DeviceError::NoGpu { .. }
            | DeviceError::Internal(_)
            | DeviceError::Threads { .. }
            | DeviceError::Name { .. } => ErrorCode::DeviceFailed,
            _ => ErrorCode::BadArgument,
        };
        fail(code, error.to_string())
    }
}
