//! A server of one's own: another process, for as long as a measurement takes.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use genie_transport::Uri;

/// `genie serve` in a process of its own; it is stopped with this value.
#[derive(Debug)]
pub(crate) struct OwnServer {
    child: Child,
    uri: Uri,
}

impl OwnServer {
    /// Starts it on a port that is free, and waits until it is ready.
    pub(crate) fn start(device: &str) -> Result<Self> {
        let me = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(me);
        command.args(["serve", "--listen", "tcp://127.0.0.1:0", "--device", device, "--with-parent", "--json"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting a server")?;
        let ready = child.stdout.take().map(ready_uri);
        match ready {
            Some(Ok(uri)) => Ok(Self { child, uri }),
            Some(Err(error)) => {
                // It says on standard error why.
                let _ = child.wait();
                Err(error)
            }
            None => bail!("the server has no output to be read"),
        }
    }

    /// Where it listens.
    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }
}

/// How long a server may take to stop.
const PATIENCE: Duration = Duration::from_secs(15);

impl Drop for OwnServer {
    fn drop(&mut self) {
        // The end of its input asks it to stop, cleanly.
        drop(self.child.stdin.take());
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                _ => return,
            }
        }
        tracing::warn!("the server did not stop: killing it");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ready_uri(out: impl Read) -> Result<Uri> {
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    let ready: serde_json::Value = serde_json::from_str(&line).context("the server did not start")?;
    let uri =
        ready.get("uri").and_then(serde_json::Value::as_str).context("the server did not say where it listens")?;
    Ok(uri.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_read() {
        let uri = ready_uri(&b"{\"uri\": \"tcp://127.0.0.1:9\", \"devices\": []}\n"[..]).unwrap();
        assert_eq!(uri.to_string(), "tcp://127.0.0.1:9");
        assert!(ready_uri(&b""[..]).is_err());
    }
}
