//! What a call says of itself.

use std::any::Any;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

use genie_graph::VerifyError;
use genie_models::ModelError;
use genie_models::remote::RemoteModelError;
use genie_transport::UriError;
use genie_transport::auth::TokenFileError;
use genie_transport::client::ClientError;
use genie_transport::link::tls::TlsFileError;
use genie_transport::wire::{DecodeError, Effect, ErrorCode};

/// How a call ended. What is not listed is a failure, too: later versions may add some.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum genie_status {
    /// It did what it was asked.
    GENIE_OK = 0,
    /// An argument is NULL, out of range, or does not fit another. Nothing was sent.
    GENIE_ERROR_ARGUMENT = 1,
    /// A pointer is to no object of this kind: it was freed, is of another kind, or never was one. Nothing was sent.
    GENIE_ERROR_HANDLE = 2,
    /// A fault of this library. The objects that were passed should be freed and not used otherwise.
    GENIE_ERROR_INTERNAL = 3,
    /// The server could not be reached for as long as the session's options say.
    GENIE_ERROR_UNREACHABLE = 4,
    /// The server restarted, or the session's lease ran out: what the session held is gone. It goes on as an empty one.
    GENIE_ERROR_SESSION_LOST = 5,
    /// The server sent something that is not the protocol.
    GENIE_ERROR_PROTOCOL = 6,
    /// Bytes were corrupted on the way, again and again.
    GENIE_ERROR_CORRUPT = 7,
    /// There is no memory, thread or descriptor left on this side.
    GENIE_ERROR_NO_MEMORY = 8,
    /// A token or certificate is missing, wrong, or does not allow this.
    GENIE_ERROR_ACCESS = 9,
    /// The connection was lost, and the request is of a kind that is not sent again.
    GENIE_ERROR_INTERRUPTED = 10,
    /// The session was closed.
    GENIE_ERROR_CLOSED = 11,
    /// Nothing has this name or hash.
    GENIE_ERROR_NOT_FOUND = 12,
    /// The graph does not pass the verifier, or the device lacks one of its ops.
    GENIE_ERROR_GRAPH = 13,
    /// The model's files cannot be used, or the prompt does not fit the model.
    GENIE_ERROR_MODEL = 14,
    /// A quota does not allow it, or the server's device has no memory left.
    GENIE_ERROR_SERVER_MEMORY = 15,
    /// The request was cancelled.
    GENIE_ERROR_CANCELLED = 16,
    /// The server refused or failed it for another reason: `genie_error.server_code` has the number of docs/protocol.md, or 0 where the server
    /// is too old to be asked.
    GENIE_ERROR_SERVER = 17,
}

/// Whether a call that failed changed anything on the server.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum genie_effect {
    /// Nothing changed.
    GENIE_EFFECT_NONE = 0,
    /// It took effect in part: a generate that was cut short.
    GENIE_EFFECT_PARTIAL = 1,
    /// Not known: the connection or the server was lost before the reply.
    GENIE_EFFECT_UNKNOWN = 2,
}

/// Bytes of an error's message, the 0 at its end among them.
pub const GENIE_MESSAGE_BYTES: usize = 1012;

/// What went wrong. The caller's own memory, which need not be initialised, holds nothing to be freed, and is written by each call that it
/// is passed to: after GENIE_OK its message is empty.
#[repr(C)]
pub struct genie_error {
    /// What the call returned.
    pub status: genie_status,
    /// Whether anything changed.
    pub effect: genie_effect,
    /// The server's own number for it (docs/protocol.md), 0 if the server did not refuse it.
    pub server_code: u32,
    /// What happened and what to do: UTF-8, one sentence or a few, cut if it is longer.
    pub message: [c_char; GENIE_MESSAGE_BYTES],
}

/// Why a call fails.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) status: genie_status,
    effect: genie_effect,
    server_code: u32,
    message: String,
}

impl Failure {
    pub(crate) fn new(status: genie_status, message: impl Into<String>) -> Self {
        Self { status, effect: genie_effect::GENIE_EFFECT_NONE, server_code: 0, message: message.into() }
    }

    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::new(genie_status::GENIE_ERROR_ARGUMENT, message)
    }

    pub(crate) fn closed() -> Self {
        Self::new(genie_status::GENIE_ERROR_CLOSED, "the session was closed: connect again")
    }

    fn panicked(payload: &(dyn Any + Send)) -> Self {
        let said = payload.downcast_ref::<&str>().copied();
        let said = said.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words");
        let message = format!("a fault in Genie ({said}): free the objects that were passed, and report it");
        Self { effect: genie_effect::GENIE_EFFECT_UNKNOWN, ..Self::new(genie_status::GENIE_ERROR_INTERNAL, message) }
    }
}

/// Runs the body of a function of the header: no panic leaves it, and `error`, if it is not NULL, says how it ended.
pub(crate) fn entry(error: *mut genie_error, body: impl FnOnce() -> Result<(), Failure>) -> genie_status {
    // What a panic may have left half done is behind locks, and is looked at before it is used again.
    let done = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| Err(Failure::panicked(&*payload)));
    tell(error, done.as_ref().err());
    done.map_or_else(|failure| failure.status, |()| genie_status::GENIE_OK)
}

fn tell(error: *mut genie_error, failure: Option<&Failure>) {
    if error.is_null() {
        return;
    }
    let text = failure.map_or("", |f| &f.message);
    let mut end = text.len().min(GENIE_MESSAGE_BYTES - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    // A 0 in the middle would end it for whoever reads it.
    let text: Vec<u8> = text.bytes().take(end).map(|byte| if byte == 0 { b' ' } else { byte }).collect();
    // SAFETY: the header says that `error` is NULL or the caller's own, for this call alone. It may not be initialised: nothing of it is
    // read, and it is written through raw pointers. The message has room for `end` bytes and the 0.
    unsafe {
        (&raw mut (*error).status).write(failure.map_or(genie_status::GENIE_OK, |f| f.status));
        (&raw mut (*error).effect).write(failure.map_or(genie_effect::GENIE_EFFECT_NONE, |f| f.effect));
        (&raw mut (*error).server_code).write(failure.map_or(0, |f| f.server_code));
        let message: *mut u8 = (&raw mut (*error).message).cast();
        message.copy_from_nonoverlapping(text.as_ptr(), text.len());
        message.add(text.len()).write(0);
    }
}

fn effect_of(effect: Effect) -> genie_effect {
    match effect {
        Effect::None => genie_effect::GENIE_EFFECT_NONE,
        Effect::Partial => genie_effect::GENIE_EFFECT_PARTIAL,
        Effect::Unknown => genie_effect::GENIE_EFFECT_UNKNOWN,
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        use genie_status::*;
        let (status, effect) = match &error {
            ClientError::Remote(remote) => (of_code(remote.code), remote.effect),
            ClientError::Unreachable { effect, .. } => (GENIE_ERROR_UNREACHABLE, *effect),
            ClientError::SessionLost(_) => (GENIE_ERROR_SESSION_LOST, Effect::Unknown),
            ClientError::Protocol(_) => (GENIE_ERROR_PROTOCOL, Effect::Unknown),
            ClientError::Request(_) => (GENIE_ERROR_ARGUMENT, Effect::None),
            ClientError::ServerTooOld(_) => (GENIE_ERROR_SERVER, Effect::None),
            ClientError::Corrupt(_) => (GENIE_ERROR_CORRUPT, Effect::Unknown),
            ClientError::OutOfMemory { .. } => (GENIE_ERROR_NO_MEMORY, Effect::None),
            ClientError::TokenWanted | ClientError::ServerUnproven { .. } | ClientError::Untrusted { .. } => {
                (GENIE_ERROR_ACCESS, Effect::None)
            }
            ClientError::Interrupted => (GENIE_ERROR_INTERRUPTED, Effect::Unknown),
            _ => (GENIE_ERROR_INTERNAL, Effect::Unknown),
        };
        let server_code = if let ClientError::Remote(remote) = &error { remote.code as u32 } else { 0 };
        // The command line's words for what an option of the session says here.
        let message = match &error {
            ClientError::TokenWanted => {
                "the server asks for a token: name its file in genie_connect_options.token_file".into()
            }
            other => other.to_string(),
        };
        Self { status, effect: effect_of(effect), server_code, message }
    }
}

fn of_code(code: ErrorCode) -> genie_status {
    use genie_status::*;
    match code {
        ErrorCode::NoSuchName => GENIE_ERROR_NOT_FOUND,
        ErrorCode::BadGraph | ErrorCode::UnsupportedOp => GENIE_ERROR_GRAPH,
        ErrorCode::OverQuota | ErrorCode::OutOfMemory => GENIE_ERROR_SERVER_MEMORY,
        ErrorCode::Unauthorized | ErrorCode::Forbidden => GENIE_ERROR_ACCESS,
        ErrorCode::Cancelled => GENIE_ERROR_CANCELLED,
        ErrorCode::EpochGone | ErrorCode::SessionGone | ErrorCode::NoSession => GENIE_ERROR_SESSION_LOST,
        _ => GENIE_ERROR_SERVER,
    }
}

impl From<RemoteModelError> for Failure {
    fn from(error: RemoteModelError) -> Self {
        match error {
            RemoteModelError::Client(error) => error.into(),
            RemoteModelError::LostAgain(_) => Self::new(genie_status::GENIE_ERROR_SESSION_LOST, error.to_string()),
            other => Self::new(genie_status::GENIE_ERROR_MODEL, other.to_string()),
        }
    }
}

macro_rules! failures {
    ($($error:ty => $status:ident),+ $(,)?) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(genie_status::$status, error.to_string())
            }
        })+
    };
}

failures! {
    ModelError => GENIE_ERROR_MODEL,
    VerifyError => GENIE_ERROR_GRAPH,
    genie_graph::DecodeError => GENIE_ERROR_GRAPH,
    UriError => GENIE_ERROR_ARGUMENT,
    TokenFileError => GENIE_ERROR_ACCESS,
    TlsFileError => GENIE_ERROR_ACCESS,
    // Of what the caller said, checked as the wire's own types are.
    DecodeError => GENIE_ERROR_ARGUMENT,
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::mem::MaybeUninit;

    use super::*;

    fn said(body: impl FnOnce() -> Result<(), Failure>) -> (genie_status, genie_effect, String) {
        let mut error = MaybeUninit::uninit();
        let status = entry(error.as_mut_ptr(), body);
        // SAFETY: `entry` has written all of it that is read: the numbers, and the message up to its 0.
        let (error, text) = unsafe {
            let error: &genie_error = &*error.as_ptr();
            (error, CStr::from_ptr(error.message.as_ptr()))
        };
        assert_eq!(error.status, status);
        (status, error.effect, text.to_str().unwrap().to_owned())
    }

    #[test]
    fn no_panic_gets_out() {
        let (status, effect, text) = said(|| panic!("told you {}", 7));
        assert_eq!((status, effect), (genie_status::GENIE_ERROR_INTERNAL, genie_effect::GENIE_EFFECT_UNKNOWN));
        assert!(text.contains("told you 7"), "{text}");
        assert_eq!(entry(std::ptr::null_mut(), || panic!("nobody listens")), genie_status::GENIE_ERROR_INTERNAL);
    }

    #[test]
    fn words_fit_their_place() {
        assert_eq!(said(|| Ok(())), (genie_status::GENIE_OK, genie_effect::GENIE_EFFECT_NONE, String::new()));
        let (_, _, text) = said(|| Err(Failure::argument("\u{e4}".repeat(600))));
        assert_eq!(text, "\u{e4}".repeat((GENIE_MESSAGE_BYTES - 1) / 2), "cut where a character ends");
        assert_eq!(said(|| Err(Failure::argument("a\0b"))).2, "a b");
    }
}
