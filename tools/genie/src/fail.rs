//! How a command ends when something is wrong.

use std::process::ExitCode;

use genie_models::remote::RemoteModelError;
use genie_transport::client::ClientError;

use crate::say::{self, Say};

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

/// Standard output is a pipe that nobody reads any more. Made where standard output is written and nowhere else: a socket that
/// breaks is a failure.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub(crate) struct OutputClosed;

/// What is wrong with the way in which the command was called: exit status 2.
pub(crate) fn usage(error: &clap::Error, json: bool) -> ExitCode {
    if !json || !error.use_stderr() {
        error.exit();
    }
    let text = error.to_string();
    say::note(&as_json(text.strip_prefix("error: ").unwrap_or(&text).trim_end(), 2));
    ExitCode::from(2)
}

/// Says what went wrong, and gives the exit status for it.
pub(crate) fn report(error: &anyhow::Error, say: Say) -> u8 {
    if error.is::<OutputClosed>() {
        // Whoever read the output has seen enough.
        return 0;
    }
    let status = status(error);
    let sentence = sentence(error);
    say::note(&if say.json { as_json(&sentence, status) } else { format!("genie: {sentence}") });
    status
}

/// An error for programs, in one line.
fn as_json(sentence: &str, status: u8) -> String {
    serde_json::json!({ "error": sentence, "exit": status }).to_string()
}

fn status(error: &anyhow::Error) -> u8 {
    if error.chain().any(|e| e.is::<Differ>()) {
        return 4;
    }
    let gone = |e: &ClientError| matches!(e, ClientError::Unreachable { .. });
    let unreachable = error.chain().any(|e| {
        let of_model = matches!(e.downcast_ref(), Some(RemoteModelError::Client(e)) if gone(e));
        e.is::<Unreachable>() || e.downcast_ref().is_some_and(gone) || of_model
    });
    if unreachable { 3 } else { 1 }
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

    #[test]
    fn statuses_tell_failures_apart() {
        let unreachable = || Unreachable { uri: "tcp://a:1".into(), reason: "refused".into() };
        assert_eq!(status(&anyhow::Error::new(unreachable()).context("a")), 3);
        assert_eq!(status(&anyhow::Error::new(Differ("b".into())).context("a")), 4);
        assert_eq!(status(&anyhow::anyhow!("c")), 1);
    }

    #[test]
    fn only_the_reader_of_the_output_may_leave() {
        let socket = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(report(&socket.into(), Say { json: false }), 1);
        assert_eq!(report(&anyhow::Error::new(OutputClosed).context("a"), Say { json: false }), 0);
    }

    #[test]
    fn an_error_for_programs_is_one_line() {
        let line = as_json("a \"b\"\nc", 3);
        assert_eq!(line.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((value["error"].as_str(), value["exit"].as_u64()), (Some("a \"b\"\nc"), Some(3)));
    }
}
