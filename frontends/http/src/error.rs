//! What a client is told.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use genie_tensor_files::{ReadError, WriteError};
use genie_transport::client::ClientError;
use genie_transport::wire::{ErrorCode, RemoteError};
use serde_json::json;

/// A request that fails: a status, and a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) detail: String,
    /// What is known besides, as JSON: the ops that there are.
    pub(crate) more: Option<(&'static str, serde_json::Value)>,
    /// The method that is taken here, where another is not.
    pub(crate) allow: Option<Method>,
}

/// Characters of a sentence: files and requests are quoted in some, and may be large.
const MAX_DETAIL: usize = 1000;

impl Failure {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), more: None, allow: None }
    }

    /// The fields are not those that are wanted, or hold something else.
    pub(crate) fn fields(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }

    /// What was sent is not what it should be.
    pub(crate) fn bad(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(crate) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    /// Not now; later perhaps.
    pub(crate) fn busy(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    pub(crate) fn internal(detail: impl std::fmt::Display) -> Self {
        tracing::error!(%detail, "the HTTP door fails");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "a fault of the server's own; its log says more")
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut detail = self.detail;
        if let Some((end, _)) = detail.char_indices().nth(MAX_DETAIL) {
            detail.truncate(end);
            detail.push_str(" ...");
        }
        let mut body = json!({ "detail": detail });
        if let (Some((name, value)), Some(object)) = (self.more, body.as_object_mut()) {
            object.insert(name.to_owned(), value);
        }
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"genie\""));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        if let Some(Ok(allow)) = self.allow.map(|method| HeaderValue::from_str(method.as_str())) {
            headers.insert(header::ALLOW, allow);
        }
        response
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let status = match error {
            ReadError::NoMemory(_) => return Self::busy(format!("{error} now: try again later")),
            ReadError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ReadError::DType { .. } | ReadError::Rank { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NoSuchType => Self::fields(error.to_string()),
            other => Self::internal(other),
        }
    }
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        let status = match error.code {
            ErrorCode::BadGraph | ErrorCode::BadArgument | ErrorCode::OutOfRange | ErrorCode::UnsupportedOp => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::OverQuota => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::OutOfMemory | ErrorCode::Busy | ErrorCode::ShuttingDown | ErrorCode::DeviceFailed => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => return Self::internal(error),
        };
        Self::new(status, error.message)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Remote(error) => error.into(),
            ClientError::OutOfMemory { .. } => Self::busy("no memory for the result now: try again later"),
            lost @ (ClientError::Unreachable { .. } | ClientError::SessionLost(_) | ClientError::Interrupted) => {
                tracing::warn!(error = %lost, "the HTTP door has lost its session");
                Self::busy("the session with the server was lost: try again")
            }
            other => Self::internal(other),
        }
    }
}

/// Whether a session is of no use after this.
pub(crate) fn ends_session(error: &ClientError) -> bool {
    use ErrorCode::{EpochGone, NoSession, NoSuchHandle, SessionGone, ShuttingDown, StaleHandle, Unauthorized};
    match error {
        ClientError::Remote(error) => {
            let gone = [NoSession, SessionGone, EpochGone, ShuttingDown, Unauthorized, NoSuchHandle, StaleHandle];
            gone.contains(&error.code)
        }
        ClientError::OutOfMemory { .. } => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name in a file of 700 bytes came back as two megabytes.
    #[tokio::test]
    async fn what_is_quoted_is_cut() {
        for (detail, told) in [("é".repeat(999), 999), ("é".repeat(1_000_000), 1004)] {
            let response = Failure::bad(detail).into_response();
            let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(json["detail"].as_str().unwrap().chars().count(), told);
        }
    }
}
