//! How a command ends when something is wrong.

use std::io::ErrorKind;
use std::process::ExitCode;

use genie_models::remote::RemoteModelError;
use genie_transport::client::ClientError;

/// The server does not answer: exit status 3.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot reach {uri}: {reason}; is a server running there? Start one with: genie serve --listen {uri} --device auto"
)]
pub(crate) struct Unreachable {
    pub(crate) uri: String,
    pub(crate) reason: String,
}

/// Results that must be equal are not: exit status 4.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Differ(pub(crate) String);

/// Says what went wrong, and gives the exit status for it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let broken_pipe = |e: &std::io::Error| e.kind() == ErrorKind::BrokenPipe;
    if error.downcast_ref::<std::io::Error>().is_some_and(broken_pipe) {
        // Whoever read the output has seen enough.
        return ExitCode::SUCCESS;
    }
    eprintln!("genie: {}", sentence(error));
    if error.chain().any(|e| e.is::<Differ>()) {
        return ExitCode::from(4);
    }
    let gone = |e: &ClientError| matches!(e, ClientError::Unreachable { .. });
    let unreachable = error.chain().any(|e| {
        let of_model = matches!(e.downcast_ref(), Some(RemoteModelError::Client(e)) if gone(e));
        e.is::<Unreachable>() || e.downcast_ref().is_some_and(gone) || of_model
    });
    ExitCode::from(if unreachable { 3 } else { 1 })
}

/// The chain of causes in a line; a cause that an effect's text holds already is not said twice.
fn sentence(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.contains(&cause) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&cause);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn causes_are_said_once() {
        let error = Err::<(), _>(Differ("b".into())).context("a: b").context("while c").unwrap_err();
        assert_eq!(sentence(&error), "while c: a: b");
        let error = Err::<(), _>(Differ("b".into())).context("a").unwrap_err();
        assert_eq!(sentence(&error), "a: b");
    }
}
