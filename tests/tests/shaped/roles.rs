//! The two ends of a path: a server with a raw echo beside it, and a client that measures.

use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path as StdPath;
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_graph::DType;
use genie_tests::authority::Authority;
use genie_tests::child::{Role, is_role, say};
use genie_tests::churn::{content, is_whole};
use genie_tests::serve::{Live, config};
use genie_transport::Uri;
use genie_transport::client::{ClientError, ConnectOptions, PutOptions, blocking};
use genie_transport::link::tls::{TlsClient, TlsServer};
use genie_transport::link::{Access, tcp};
use genie_transport::wire::{Effect, TensorSpec};

use crate::path::{Path, SERVER};

/// Nothing takes longer, whatever the path.
const LONGEST: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(10);
/// Of a server's certificate.
const DAYS: i64 = 30;
const PLACES: &str = "GENIE_SHAPED_PLACES";
const SCHEME: &str = "GENIE_SHAPED_SCHEME";
const CERTIFICATES: &str = "GENIE_SHAPED_CERTIFICATES";
const KEEPALIVE: &str = "GENIE_SHAPED_KEEPALIVE_MS";

/// Both processes.
pub(crate) struct Ends {
    server: Role,
    client: Role,
    _authority: Option<Authority>,
}

/// How long transfers took.
#[derive(Clone, Copy)]
pub(crate) struct Took {
    pub(crate) put: Duration,
    pub(crate) get: Duration,
}

impl Ends {
    pub(crate) fn start(path: &Path, scheme: &str) -> Self {
        Self::with_keepalive(path, scheme, None)
    }

    pub(crate) fn with_keepalive(path: &Path, scheme: &str, keepalive: Option<Duration>) -> Self {
        let [server, client] = &path.names;
        let keepalive = keepalive.map_or(String::new(), |k| k.as_millis().to_string());
        let authority = ["tcps", "urings"].contains(&scheme).then(|| {
            let authority = Authority::new();
            authority.sign(SERVER, DAYS);
            authority
        });
        let folder = authority.as_ref().map_or_else(String::new, |a| a.folder().display().to_string());
        let variables = [(SCHEME, scheme), (KEEPALIVE, &*keepalive), (CERTIFICATES, &*folder)];
        let mut server = Role::start_in(server, "roles::a_server", &variables);
        let places = server.hear("listening", LONGEST);
        let mut client = Role::start_in(client, "roles::a_client", &[(PLACES, &*places), (CERTIFICATES, &*folder)]);
        client.hear("ready", LONGEST);
        Self { server, client, _authority: authority }
    }

    /// A put, and then so many gets, together.
    pub(crate) fn both(&mut self, bytes: u64, gets: u32) -> Took {
        self.begin(&format!("both-{gets}"), bytes);
        let took = self.client.hear("both", LONGEST);
        let seconds = |text: &str| Duration::from_secs_f64(text.parse().expect("a number of seconds"));
        let (put, get) = took.split_once(' ').expect("two times");
        Took { put: seconds(put), get: seconds(get) }
    }

    /// How long one transfer takes.
    pub(crate) fn time(&mut self, what: &str, bytes: u64) -> Duration {
        self.begin(what, bytes);
        self.end(what)
    }

    /// Sessions that the server holds for clients.
    pub(crate) fn sessions(&mut self) -> u64 {
        self.server.tell("sessions");
        self.server.hear("sessions", LONGEST).parse().expect("a number")
    }

    pub(crate) fn begin(&mut self, what: &str, bytes: u64) {
        self.client.tell(&format!("{what} {bytes}"));
        self.client.hear("moving", LONGEST);
    }

    pub(crate) fn end(&mut self, what: &str) -> Duration {
        self.end_within(what, LONGEST)
    }

    pub(crate) fn end_within(&mut self, what: &str, longest: Duration) -> Duration {
        let took = self.client.hear(what, longest);
        Duration::from_secs_f64(took.parse().expect("a number of seconds"))
    }
}

#[test]
#[ignore = "only as a process of other tests"]
fn a_server() {
    if !is_role() {
        return;
    }
    let raw = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
    let raw_port = raw.local_addr().expect("an address").port();
    let mut config = config(1);
    if let Ok(ms) = said(KEEPALIVE).parse() {
        config.settings.keepalive = Duration::from_millis(ms);
    }
    let listen = format!("{}://{SERVER}:0", said(SCHEME)).parse().expect("an address");
    let file = |end: &str| StdPath::new(&said(CERTIFICATES)).join(format!("{SERVER}{DAYS}.{end}"));
    let load = || Arc::new(TlsServer::load(&file("pem"), &file("key"), None).expect("a certificate"));
    let tls = (!said(CERTIFICATES).is_empty()).then(load);
    let server = Live::start_for(config, &listen, &Access { tls, ..Access::anybody() });
    std::thread::spawn(move || {
        raw.incoming().flatten().for_each(|stream| {
            // It ends as it likes: whoever measures waits in vain then.
            let _ = serve_raw(stream);
        });
    });
    say(&format!("listening {} {SERVER}:{raw_port}", server.uri));
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        assert_eq!(line, "sessions");
        let mut session = blocking::Session::connect(&server.uri, options(LEASE)).expect("a session");
        let stats = session.stats().expect("the server answers");
        let all = stats.iter().find(|(name, _)| name == "genie_sessions").map_or(0, |(_, count)| *count);
        session.close().expect("the server answers");
        say(&format!("sessions {}", all - 1));
    }
    std::process::exit(0);
}

/// What this process was told to be.
fn said(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// A client says nothing on its connection while a raw stream is measured, and may be taken for dead: it finds its session again.
const LEASE: Duration = Duration::from_secs(600);
/// Of a client that does not come back.
const CUT_LEASE: Duration = Duration::from_secs(1);

/// How a client connects that may be away for so long.
fn options(lease: Duration) -> ConnectOptions {
    let load = || TlsClient::load(&StdPath::new(&said(CERTIFICATES)).join("ca.pem"), None).expect("a CA");
    let mut options = ConnectOptions { tls: (!said(CERTIFICATES).is_empty()).then(load), ..ConnectOptions::default() };
    options.client.lease_ms = lease.as_millis() as u32;
    options
}

/// Transfers: each begins with a direction, as a letter, and a count.
fn serve_raw(stream: TcpStream) -> std::io::Result<()> {
    let mut stream = tcp::accepted(stream)?;
    stream.set_nonblocking(false)?;
    loop {
        let (mut way, mut bytes) = ([0], [0; 8]);
        stream.read_exact(&mut way)?;
        stream.read_exact(&mut bytes)?;
        let bytes = u64::from_le_bytes(bytes);
        if way == *b"u" {
            swallow(&mut stream, bytes)?;
            stream.write_all(b"!")?;
        } else {
            pour(&mut stream, bytes)?;
        }
    }
}

fn swallow(stream: &mut TcpStream, mut bytes: u64) -> std::io::Result<()> {
    let mut buf = vec![0; 256 << 10];
    while bytes > 0 {
        let n = stream.read(&mut buf)? as u64;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes = bytes.saturating_sub(n);
    }
    Ok(())
}

fn pour(stream: &mut TcpStream, mut bytes: u64) -> std::io::Result<()> {
    let buf = vec![7; 256 << 10];
    while bytes > 0 {
        let n = bytes.min(buf.len() as u64);
        stream.write_all(&buf[..n as usize])?;
        bytes -= n;
    }
    Ok(())
}

#[test]
#[ignore = "only as a process of other tests"]
fn a_client() {
    if !is_role() {
        return;
    }
    let places = said(PLACES);
    let (uri, raw) = places.split_once(' ').expect("two places");
    let uri: Uri = uri.parse().expect("an address");
    // Set up as the link's own are, and as long-lived.
    let (mut raw, _) = tcp::connect_to(raw.parse().expect("an address"), CONNECT).expect("a socket");
    raw.set_nonblocking(false).expect("it can block");
    let mut options = options(LEASE);
    options.client.reconnect_for = Duration::from_secs(15);
    let mut session = blocking::Session::connect(&uri, options).expect("a session");
    say("ready");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let (what, bytes) = line.split_once(' ').expect("a word and a number");
        let bytes: u64 = bytes.parse().expect("a number");
        if let Some(gets) = what.strip_prefix("both-") {
            let took = ours(&mut session, "put", bytes, gets.parse().expect("a number"));
            say(&format!("both {} {}", took.put.as_secs_f64(), took.get.as_secs_f64()));
            continue;
        }
        if what == "cut" {
            // What waits for it is all that the server holds then.
            session.close().expect("the path is whole");
            return say(&format!("cut {}", cut(&uri, bytes).as_secs_f64()));
        }
        let took = match what {
            "put" => ours(&mut session, what, bytes, 1).put,
            "get" => ours(&mut session, what, bytes, 1).get,
            _ => raw_stream(&mut raw, what, bytes).expect("the raw stream lives"),
        };
        say(&format!("{what} {}", took.as_secs_f64()));
    }
}

/// A put and gets. That it moves is said when the one of them that was asked for begins.
fn ours(session: &mut blocking::Session, what: &str, bytes: u64, gets: u32) -> Took {
    let spec = TensorSpec::new(DType::U8, &[bytes]).expect("a shape");
    let data = content(bytes, bytes as usize);
    let moving = |which: &str| {
        if which == what {
            say("moving");
        }
        Instant::now()
    };
    let began = moving("put");
    let tensor = session.put(&spec, data, PutOptions::default()).expect("a put");
    let put = began.elapsed();
    let mut get = Duration::ZERO;
    for _ in 0..gets {
        let began = moving("get");
        let got = session.get(&tensor).expect("a get");
        get += began.elapsed();
        is_whole(&got);
        session.recycle(got);
    }
    session.free(tensor.handle).expect("it was there");
    assert_eq!(session.sessions_lost(), 0);
    Took { put, get }
}

/// A put whose path is gone before its end, and how long it takes to find out.
fn cut(uri: &Uri, bytes: u64) -> Duration {
    let mut options = options(CUT_LEASE);
    options.client.reconnect_for = Duration::from_secs(1);
    let mut session = blocking::Session::connect(uri, options).expect("a session");
    let spec = TensorSpec::new(DType::U8, &[bytes]).expect("a shape");
    let data = content(bytes, bytes as usize);
    say("moving");
    let began = Instant::now();
    match session.put(&spec, data, PutOptions::default()) {
        Err(ClientError::Unreachable { effect: Effect::Unknown, .. }) => began.elapsed(),
        other => panic!("the path is gone, and yet: {other:?}"),
    }
}

fn raw_stream(stream: &mut TcpStream, what: &str, bytes: u64) -> std::io::Result<Duration> {
    say("moving");
    let began = Instant::now();
    let mut head = vec![if what == "raw-up" { b'u' } else { b'd' }];
    head.extend_from_slice(&bytes.to_le_bytes());
    stream.write_all(&head)?;
    if what == "raw-up" {
        pour(stream, bytes)?;
        swallow(stream, 1)?;
    } else {
        swallow(stream, bytes)?;
    }
    Ok(began.elapsed())
}
