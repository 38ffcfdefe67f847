//! Reaching a server.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use genie_transport::Uri;
use genie_transport::auth::Token;
use genie_transport::client::{ClientError, ConnectOptions, blocking};
use genie_transport::link;
use genie_transport::link::tls::{TlsClient, TlsFileError};
use genie_transport::wire::LinkScheme;
use pyo3::prelude::*;

use crate::cancel;
use crate::errors::{self, bad_input, unproven, unreachable};

/// From one look for a server that is not there yet to the next.
const AGAIN: Duration = Duration::from_millis(50);

/// A server, and how sessions on it are opened.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) uri: Uri,
    options: ConnectOptions,
    /// How long to wait for a server that is not there yet.
    wait: Duration,
}

/// As Python gives it.
pub(crate) struct Given {
    pub(crate) uri: String,
    pub(crate) token: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) link: Option<String>,
    pub(crate) lease: f64,
    pub(crate) quota: u64,
    pub(crate) timeout: f64,
    pub(crate) reconnect: f64,
}

impl Target {
    pub(crate) fn new(given: Given) -> PyResult<Self> {
        let uri = given.uri.parse::<Uri>().map_err(|error| bad_input(error.to_string()))?;
        let uri = with_link(uri, given.link.as_deref())?;
        let mut options = ConnectOptions { tls: tls(&uri, &given)?, ..ConnectOptions::default() };
        options.client.quota = given.quota;
        options.client.lease_ms = u32::try_from(seconds("lease", given.lease)?.as_millis()).unwrap_or(u32::MAX);
        options.client.reconnect_for = seconds("reconnect", given.reconnect)?;
        options.client.token = match (&given.token, &given.token_file) {
            (Some(_), Some(_)) => return Err(bad_input("give token= or token_file=, not both")),
            (Some(line), None) => {
                let token = Token::parse(line).map_err(|what| bad_input(format!("token= is no token: {what}")))?;
                Some(Arc::new(token))
            }
            (None, Some(path)) => {
                let token = Token::load(path).map_err(|error| unproven(error.to_string()))?;
                Some(Arc::new(token))
            }
            (None, None) => None,
        };
        Ok(Self { uri, options, wait: seconds("timeout", given.timeout)? })
    }

    /// Opens a session, on a thread of its own: signals interrupt the wait.
    pub(crate) fn open(&self, py: Python<'_>) -> PyResult<blocking::Session> {
        let target = self.clone();
        let mut opened = aside(py, "genie-connect", move || target.connect().map(Opened::new), |_| Ok(()))??;
        opened.0.take().ok_or_else(|| errors::lost("this session was closed"))
    }

    /// The same on this thread, which is not attached to Python.
    pub(crate) fn connect(&self) -> PyResult<blocking::Session> {
        let until = Instant::now() + self.wait;
        // Which link it will be is chosen later: whether the server is there shows without.
        let there = match &self.uri {
            Uri::Genie { host, port, .. } => &Uri::Tcp { host: host.clone(), port: *port },
            uri => uri,
        };
        let tls = if there.is_encrypted() { self.options.tls.clone() } else { None };
        while let Err(error) = link::dialer_with(there, tls.clone()).control() {
            if Instant::now() >= until {
                let uri = &self.uri;
                return Err(unreachable(format!(
                    "cannot reach {uri}: {error}; is a server running there? Start one with: genie serve --listen {uri} --device auto"
                )));
            }
            std::thread::sleep(AGAIN);
        }
        // `reconnect` is for a server that goes away: until it was there once, `timeout` says how long it is waited for.
        loop {
            match blocking::Session::connect(&self.uri, self.options.clone()) {
                Err(ClientError::Unreachable { .. }) if Instant::now() < until => std::thread::sleep(AGAIN),
                done => return done.map_err(|error| errors::client(&error)),
            }
        }
    }
}

/// A session on its way to whoever waits for it. If that is nobody any more, it is closed.
struct Opened(Option<blocking::Session>);

impl Opened {
    fn new(session: blocking::Session) -> Self {
        Self(Some(session))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(session) = self.0.take() {
            close_aside(move || session.close());
        }
    }
}

/// Ends a session that nobody refers to any more. A server that is not there is waited for: not here. What cannot be closed ends with its
/// lease.
pub(crate) fn close_aside<T>(close: impl FnOnce() -> T + Send + 'static) {
    let closing = move || drop(close());
    drop(std::thread::Builder::new().name("genie-closing".into()).spawn(closing));
}

/// Does something long on another thread, while this one looks for signals, and at what `look` shows. One that was interrupted goes on
/// there; what it gives is dropped.
pub(crate) fn aside<T: Send + 'static>(
    py: Python<'_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
    mut look: impl FnMut(Python<'_>) -> PyResult<()>,
) -> PyResult<T> {
    let (tell, answer) = mpsc::sync_channel(1);
    let run = move || {
        // Whoever was interrupted hears nothing any more.
        let _ = tell.send(work());
    };
    std::thread::Builder::new().name(name.into()).spawn(run)?;
    let answer = std::sync::Mutex::new(answer);
    loop {
        let heard = py.detach(|| {
            let answer = answer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            answer.recv_timeout(Duration::from_millis(100))
        });
        match heard {
            Ok(done) => return Ok(done),
            Err(RecvTimeoutError::Timeout) => {
                cancel::check(py)?;
                look(py)?;
            }
            Err(RecvTimeoutError::Disconnected) => return Err(errors::lost("the thread that did this is gone")),
        }
    }
}

fn with_link(uri: Uri, link: Option<&str>) -> PyResult<Uri> {
    let Some(link) = link else { return Ok(uri) };
    let scheme: LinkScheme = link
        .parse()
        .map_err(|_| bad_input(format!("there is no link '{link}': write tcp, tcps, shm, rdma, uring or urings")))?;
    match uri {
        Uri::Genie { host, port, link: None } => Ok(Uri::Genie { host, port, link: Some(scheme) }),
        Uri::Genie { link: Some(named), .. } if named == scheme => Ok(uri),
        uri if uri.to_string().starts_with(&format!("{link}://")) => Ok(uri),
        uri => Err(bad_input(format!("link= is for genie://HOST:PORT, but {uri} names a link already: leave it out"))),
    }
}

/// Whom to trust, where the address asks for it.
fn tls(uri: &Uri, given: &Given) -> PyResult<Option<TlsClient>> {
    let own = match (&given.cert, &given.key) {
        (Some(cert), Some(key)) => Some((cert.as_path(), key.as_path())),
        (None, None) => None,
        _ => return Err(bad_input("cert= and key= belong together: give both")),
    };
    let ca = match (&given.ca, uri) {
        (Some(ca), uri) if uri.is_encrypted() || matches!(uri, Uri::Genie { .. }) => ca,
        (None, uri) if uri.is_encrypted() => return Err(unproven(TlsFileError::NoCa.to_string())),
        _ => return Ok(None),
    };
    TlsClient::load(ca, own).map(Some).map_err(|error| unproven(error.to_string()))
}

fn seconds(what: &str, given: f64) -> PyResult<Duration> {
    if !(0.0..=4_000_000.0).contains(&given) {
        return Err(bad_input(format!("{what}= takes seconds from 0 to 4000000, not {given}")));
    }
    Ok(Duration::from_secs_f64(given))
}
