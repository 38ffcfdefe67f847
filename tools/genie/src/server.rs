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
    uris: Vec<Uri>,
    http: Option<String>,
}

impl OwnServer {
    /// Starts it on a port that is free, and waits until it is ready.
    pub(crate) fn start(device: &str) -> Result<Self> {
        Self::start_at(&["tcp://127.0.0.1:0".parse()?], device, &[])
    }

    /// Starts it at these addresses, with further arguments.
    pub(crate) fn start_at(listen: &[Uri], device: &str, more: &[&str]) -> Result<Self> {
        let me = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(me);
        command.args(["serve", "--device", device, "--with-parent", "--json"]).args(more);
        for uri in listen {
            command.args(["--listen", &uri.to_string()]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting a server")?;
        let ready = child.stdout.take().map(ready);
        match ready {
            Some(Ok((uris, http))) => Ok(Self { child, uris, http }),
            Some(Err(error)) => {
                // It says on standard error why.
                let _ = child.wait();
                Err(error)
            }
            None => bail!("the server has no output to be read"),
        }
    }

    /// Where it listens: there is always a first address.
    pub(crate) fn uri(&self) -> &Uri {
        &self.uris[0]
    }

    /// Where its HTTP door is, if it was told to have one.
    pub(crate) fn http(&self) -> Option<&str> {
        self.http.as_deref()
    }

    /// All addresses where it listens.
    pub(crate) fn uris(&self) -> &[Uri] {
        &self.uris
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

/// Where it listens, and where its HTTP door is.
fn ready(out: impl Read) -> Result<(Vec<Uri>, Option<String>)> {
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    let ready: serde_json::Value = serde_json::from_str(&line).context("the server did not start")?;
    let uris = ready.get("uris").and_then(serde_json::Value::as_array).filter(|uris| !uris.is_empty());
    let uris = uris.context("the server did not say where it listens")?;
    let uris = uris.iter().map(|uri| Ok(uri.as_str().unwrap_or_default().parse()?)).collect::<Result<_>>()?;
    Ok((uris, ready.get("http").and_then(serde_json::Value::as_str).map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_read() {
        let line = b"{\"uri\": \"tcp://127.0.0.1:9\", \"uris\": [\"tcp://127.0.0.1:9\", \"tcp://[::1]:9\"], \"devices\": []}\n";
        let (uris, http) = ready(&line[..]).unwrap();
        assert_eq!(http, None);
        assert_eq!(uris.iter().map(Uri::to_string).collect::<Vec<_>>(), ["tcp://127.0.0.1:9", "tcp://[::1]:9"]);
        for bad in [&b""[..], b"{\"uris\": []}\n"] {
            assert!(ready(bad).is_err());
        }
    }
}
