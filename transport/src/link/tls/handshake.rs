//! The handshake: rustls's, fed one record at a time, so that what follows it is left for [`super::record`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{CipherSuite, CommonState, ConnectionTrafficSecrets, Error};

use super::config::{TlsClient, TlsServer};
use super::exporter::ExporterSecret;
use super::record::{HEAD, RECORD};
use crate::auth::Channel;
use crate::link::Stream;

/// A handshake under way.
pub(super) struct Handshake {
    side: Side,
    exporter: ExporterSecret,
    /// Received; the first `fed` bytes were shown to rustls, which is not done with them.
    input: Vec<u8>,
    fed: usize,
    /// To be sent, from `sent` on.
    output: Vec<u8>,
    sent: usize,
    /// What is told once `output` is out.
    failed: Option<Error>,
    /// To be sent once it is over.
    early: Vec<u8>,
}

enum Side {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// Makes new keys for records.
pub(super) enum Keys {
    Client(Box<KernelConnection<ClientConnectionData>>),
    Server(Box<KernelConnection<ServerConnectionData>>),
}

/// What a handshake that is over leaves.
pub(super) struct Established {
    pub(super) keys: Keys,
    /// Sequence number and secrets of what is sent, and of what is received.
    pub(super) send: (u64, ConnectionTrafficSecrets),
    pub(super) receive: (u64, ConnectionTrafficSecrets),
    /// Received after the handshake's last record.
    pub(super) rest: Vec<u8>,
    /// See [`Handshake::hold`].
    pub(super) early: Vec<u8>,
    pub(super) channel: Channel,
}

/// How far a handshake is.
pub(super) enum Progress {
    /// The other side is to speak, or to take what was said.
    Blocked,
    /// It is over.
    Done(Box<Established>),
}

/// Records of a handshake that may be held at a time: certificates have kilobytes, and thousands of strangers may come at once.
const MOST_INPUT: usize = 64 << 10;
/// Bytes that wait for the end of a handshake, at the most.
const MOST_EARLY: usize = 4 << 10;

impl Handshake {
    pub(super) fn client(tls: &TlsClient, server: ServerName<'static>) -> Result<Self, Error> {
        let exporter = ExporterSecret::default();
        let mut config = (**tls.config()).clone();
        config.key_log = Arc::new(exporter.clone());
        let connection = UnbufferedClientConnection::new(Arc::new(config), server)?;
        Ok(Self::new(Side::Client(Box::new(connection)), exporter))
    }

    pub(super) fn server(tls: &TlsServer) -> Result<Self, Error> {
        let exporter = ExporterSecret::default();
        let mut config = (*tls.config()).clone();
        config.key_log = Arc::new(exporter.clone());
        let connection = UnbufferedServerConnection::new(Arc::new(config))?;
        Ok(Self::new(Side::Server(Box::new(connection)), exporter))
    }

    fn new(side: Side, exporter: ExporterSecret) -> Self {
        Self { side, exporter, input: Vec::new(), fed: 0, output: Vec::new(), sent: 0, failed: None, early: Vec::new() }
    }

    pub(super) fn has_output(&self) -> bool {
        self.sent < self.output.len()
    }

    /// Whether it has failed, and nothing but its last words is left.
    pub(super) fn failure(&self) -> Option<&Error> {
        self.failed.as_ref()
    }

    /// Keeps bytes that are to be sent once it is over: a fresh lane takes a greeting whole. Whether there was room.
    pub(super) fn hold(&mut self, bufs: &[io::IoSlice<'_>]) -> bool {
        let length: usize = bufs.iter().map(|b| b.len()).sum();
        let room = self.failed.is_none() && self.early.len() + length <= MOST_EARLY;
        if room {
            bufs.iter().for_each(|b| self.early.extend_from_slice(b));
        }
        room
    }

    /// Goes as far as it can without waiting. `heard` is set once anything has come.
    ///
    /// # Errors
    /// The lane's.
    pub(super) fn drive(
        mut self: Box<Self>,
        lane: &dyn Stream,
        heard: &AtomicBool,
    ) -> io::Result<(Option<Box<Self>>, Progress)> {
        loop {
            self.flush(lane)?;
            if self.failed.is_some() {
                return Ok((Some(self), Progress::Blocked));
            }
            match self.step() {
                Ok(Step::Moved) => {}
                Ok(Step::Over) if self.has_output() => return Ok((Some(self), Progress::Blocked)),
                Ok(Step::Over) => match (*self).established() {
                    Ok(done) => return Ok((None, Progress::Done(Box::new(done)))),
                    Err(error) => return Err(io::Error::other(error)),
                },
                Ok(Step::Starved) => {
                    if !self.feed() && !self.receive(lane, heard)? {
                        return Ok((Some(self), Progress::Blocked));
                    }
                }
                Err(error) => {
                    // What the other side is told of it comes first; nothing after it is asked for.
                    if self.step().is_err() {
                        tracing::debug!("a handshake ends without a word");
                    }
                    self.failed = Some(error);
                }
            }
        }
    }

    /// Sends what waits, as far as the lane takes it.
    ///
    /// # Errors
    /// The lane's.
    pub(super) fn flush(&mut self, lane: &dyn Stream) -> io::Result<()> {
        while self.has_output() {
            match lane.send(&[io::IoSlice::new(&self.output[self.sent..])]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }

    fn step(&mut self) -> Result<Step, Error> {
        let fed = &mut self.input[..self.fed];
        let (step, discard) = match &mut self.side {
            Side::Client(c) => one(c.process_tls_records(fed), &mut self.output),
            Side::Server(s) => one(s.process_tls_records(fed), &mut self.output),
        };
        self.input.drain(..discard);
        self.fed -= discard;
        step
    }

    /// Shows rustls one more record, if a whole one is there.
    fn feed(&mut self) -> bool {
        let rest = &self.input[self.fed..];
        let Some(&[kind, version, _, high, low]) = rest.first_chunk::<HEAD>() else { return false };
        let whole = HEAD + usize::from(u16::from_be_bytes([high, low]));
        // What is no record, as of a client that speaks no TLS, is shown at once, and one that is longer than any may be as far as
        // it goes: rustls says what is wrong with it.
        let is_record = (20..=24).contains(&kind) && version == 3;
        let shown = if is_record { whole.min(HEAD + RECORD) } else { rest.len() };
        if rest.len() < shown {
            return false;
        }
        self.fed += shown;
        true
    }

    /// Reads more. Whether anything came.
    fn receive(&mut self, lane: &dyn Stream, heard: &AtomicBool) -> io::Result<bool> {
        let had = self.input.len();
        if had >= MOST_INPUT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a TLS handshake of more than 64 KiB"));
        }
        self.input.resize(had + 4096, 0);
        let got = lane.recv(&mut self.input[had..], &mut []);
        self.input.truncate(had + got.as_ref().map_or(0, |&n| n));
        match got {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {
                heard.store(true, Ordering::Release);
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn established(self) -> Result<Established, Error> {
        let Self { side, exporter, input, fed, early, .. } = self;
        let common: &CommonState = match &side {
            Side::Client(c) => c,
            Side::Server(s) => s,
        };
        let suite = common.negotiated_cipher_suite().map_or(CipherSuite::TLS13_AES_128_GCM_SHA256, |s| s.suite());
        let binding = exporter.value(suite).ok_or_else(|| Error::General("no exporter secret".into()))?;
        let certificates: Option<Vec<Vec<u8>>> = match &side {
            Side::Server(s) => s.peer_certificates().map(|all| all.iter().map(|c| c.as_ref().to_vec()).collect()),
            Side::Client(_) => None,
        };
        let peer = certificates.as_ref().and_then(|all| all.first()).map(|certificate| {
            let hash = blake3::hash(certificate).to_hex();
            Arc::from(format!("certificate {}", &hash[..32]))
        });
        let (secrets, keys) = match side {
            Side::Client(c) => {
                let (secrets, keys) = c.dangerous_into_kernel_connection()?;
                (secrets, Keys::Client(Box::new(keys)))
            }
            Side::Server(s) => {
                let (secrets, keys) = s.dangerous_into_kernel_connection()?;
                (secrets, Keys::Server(Box::new(keys)))
            }
        };
        let certificates = certificates.map(Arc::new);
        let channel = Channel { binding: Some(binding), peer, certificates, from: None };
        Ok(Established { keys, send: secrets.tx, receive: secrets.rx, rest: input[fed..].to_vec(), early, channel })
    }
}

impl Keys {
    /// The next keys for what is sent.
    pub(super) fn next_send(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(c) => c.update_tx_secret(),
            Self::Server(s) => s.update_tx_secret(),
        }
    }

    /// The next keys for what is received.
    pub(super) fn next_receive(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(c) => c.update_rx_secret(),
            Self::Server(s) => s.update_rx_secret(),
        }
    }
}

enum Step {
    Moved,
    /// More records are needed.
    Starved,
    Over,
}

fn one<Data>(status: UnbufferedStatus<'_, '_, Data>, output: &mut Vec<u8>) -> (Result<Step, Error>, usize) {
    let step = status.state.and_then(|state| match state {
        ConnectionState::EncodeTlsData(mut data) => {
            let at = output.len();
            // Asked for its size first.
            if let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) {
                output.resize(at + needed.required_size, 0);
                data.encode(&mut output[at..]).map_err(|e| Error::General(e.to_string()))?;
            }
            Ok(Step::Moved)
        }
        ConnectionState::TransmitTlsData(data) => {
            // It is: `flush` comes before the next step.
            data.done();
            Ok(Step::Moved)
        }
        ConnectionState::WriteTraffic(_) => Ok(Step::Over),
        ConnectionState::BlockedHandshake => Ok(Step::Starved),
        _ => Err(Error::General("application data within the handshake".into())),
    });
    (step, status.discard)
}
