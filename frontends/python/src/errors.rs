//! What Rust says, as `genie.errors` has it.

use genie_transport::client::ClientError;
use genie_transport::wire::{Effect, ErrorCode, RemoteError};
use pyo3::call::PyCallArgs;
use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;

/// An exception of `genie.errors`, or why it could not be made.
fn raise<'py>(py: Python<'py>, class: &str, arguments: impl PyCallArgs<'py>) -> PyErr {
    let made = py.import("genie.errors").and_then(|m| m.getattr(class)).and_then(|class| class.call1(arguments));
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// An argument that cannot be used: nothing was sent.
pub(crate) fn bad_input(message: impl Into<String>) -> PyErr {
    let message = message.into();
    Python::attach(|py| raise(py, "BadInput", (message,)))
}

/// A number, or what has numbers in it: one that is out of its type's range is an argument that cannot be used, too.
pub(crate) fn in_range<'py, T: FromPyObjectOwned<'py>>(given: &Bound<'py, PyAny>) -> PyResult<T> {
    given.extract().map_err(|error: T::Error| {
        let error: PyErr = error.into();
        match error.is_instance_of::<PyOverflowError>(given.py()) {
            true => bad_input(format!("{given} is out of range here: {error}")),
            false => error,
        }
    })
}

/// The server is not there, or the way to it is not.
pub(crate) fn unreachable(message: String) -> PyErr {
    Python::attach(|py| raise(py, "ConnectError", (message,)))
}

/// Who this is, or who the server is, is not proven.
pub(crate) fn unproven(message: String) -> PyErr {
    Python::attach(|py| raise(py, "AuthError", (message,)))
}

/// What the session held is gone.
pub(crate) fn lost(message: &str) -> PyErr {
    Python::attach(|py| raise(py, "SessionLost", (message,)))
}

/// What a call on a session ended in.
pub(crate) fn client(error: &ClientError) -> PyErr {
    Python::attach(|py| match error {
        ClientError::Remote(remote) => of_server(py, remote),
        ClientError::Unreachable { .. } | ClientError::Interrupted => raise(py, "ConnectError", (error.to_string(),)),
        ClientError::SessionLost(_) => raise(py, "SessionLost", (error.to_string(),)),
        ClientError::OutOfMemory { .. } => raise(py, "OutOfMemory", (error.to_string(),)),
        ClientError::Request(_) => raise(py, "BadInput", (error.to_string(),)),
        ClientError::ServerTooOld(_) => raise(py, "UnsupportedOp", (error.to_string(), "UnsupportedOp", false)),
        ClientError::TokenWanted => {
            let message =
                "the server asks for a token: give token_file=, token= or GENIE_TOKEN_FILE in the environment";
            raise(py, "AuthError", (message,))
        }
        ClientError::ServerUnproven { .. } | ClientError::Untrusted { .. } => {
            raise(py, "AuthError", (error.to_string(),))
        }
        _ => raise(py, "ProtocolError", (error.to_string(),)),
    })
}

fn of_server(py: Python<'_>, error: &RemoteError) -> PyErr {
    let class = match error.code {
        ErrorCode::OutOfMemory | ErrorCode::OverQuota => "RemoteOutOfMemory",
        ErrorCode::SessionGone | ErrorCode::EpochGone | ErrorCode::NoSession => {
            return raise(py, "SessionLost", (error.to_string(),));
        }
        ErrorCode::Unauthorized | ErrorCode::Forbidden => return raise(py, "AuthError", (error.to_string(),)),
        ErrorCode::NoSuchName => "NotFound",
        ErrorCode::UnsupportedOp => "UnsupportedOp",
        _ => "RemoteError",
    };
    let took_effect = match error.effect {
        Effect::None => Some(false),
        Effect::Partial => Some(true),
        Effect::Unknown => None,
    };
    raise(py, class, (error.message.clone(), format!("{:?}", error.code), took_effect))
}
