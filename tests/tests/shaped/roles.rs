//! The two ends of a path: a server with a raw echo beside it, and a client that measures.

use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_executor::Executor;
use genie_graph::DType;
use genie_tests::child::{Role, is_role, say};
use genie_tests::churn::{content, is_whole};
use genie_tests::serve::config;
use genie_transport::Uri;
use genie_transport::client::{ClientError, ConnectOptions, PutOptions, blocking};
use genie_transport::link::{Server, tcp};
use genie_transport::wire::{Effect, TensorSpec};

use crate::path::{Path, SERVER};

/// Nothing takes longer, whatever the path.
const LONGEST: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(10);
const PORTS: &str = "GENIE_SHAPED_PORTS";
const KEEPALIVE: &str = "GENIE_SHAPED_KEEPALIVE_MS";

/// Both processes.
pub(crate) struct Ends {
    server: Role,
    client: Role,
}

impl Ends {
    pub(crate) fn start(path: &Path) -> Self {
        Self::with_keepalive(path, None)
    }

    pub(crate) fn with_keepalive(path: &Path, keepalive: Option<Duration>) -> Self {
        let [server, client] = &path.names;
        let keepalive = keepalive.map_or(String::new(), |k| k.as_millis().to_string());
        let mut server = Role::start_in(server, "roles::a_server", &[(KEEPALIVE, &keepalive)]);
        let ports = server.hear("listening", LONGEST);
        let mut client = Role::start_in(client, "roles::a_client", &[(PORTS, &ports)]);
        client.hear("ready", LONGEST);
        Self { server, client }
    }

    /// MB/s of one transfer.
    pub(crate) fn rate(&mut self, what: &str, bytes: u64) -> f64 {
        self.begin(what, bytes);
        bytes as f64 / 1e6 / self.end(what).as_secs_f64()
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
    let any = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
    let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
    let (listener, raw) = (any(), any());
    let ports = format!("{} {}", port(&listener), port(&raw));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let _within = runtime.enter();
    let mut config = config(1);
    if let Ok(ms) = std::env::var(KEEPALIVE).unwrap_or_default().parse() {
        config.settings.keepalive = Duration::from_millis(ms);
    }
    let executor = Arc::new(Executor::new(config).expect("a server"));
    let server = Server::new(executor.clone());
    let uri = format!("tcp://127.0.0.1:{}", port(&listener));
    say(&format!("listening {ports}"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            raw.incoming().flatten().for_each(|stream| {
                // It ends as it likes: whoever measures waits in vain then.
                let _ = serve_raw(stream);
            })
        });
        // A listener of the product's would refuse: the path is no loopback, and there is no token.
        let handle = runtime.handle();
        scope.spawn(|| {
            let _within = handle.enter();
            for stream in listener.incoming().flatten() {
                server.serve(Arc::new(tcp::accepted(stream).expect("a socket takes options")));
            }
        });
        scope.spawn(|| {
            loop {
                executor.tick(Instant::now());
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            assert_eq!(line, "sessions");
            let uri = uri.parse().expect("an address");
            let mut session = blocking::Session::connect(&uri, ConnectOptions::default()).expect("a session");
            let stats = session.stats().expect("the server answers");
            let all = stats.iter().find(|(name, _)| name == "genie_sessions").map_or(0, |(_, count)| *count);
            session.close().expect("the server answers");
            say(&format!("sessions {}", all - 1));
        }
        std::process::exit(0);
    });
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
    let ports = std::env::var(PORTS).expect("whoever starts this says where");
    let (port, raw) = ports.split_once(' ').expect("two ports");
    let uri: Uri = format!("tcp://{SERVER}:{port}").parse().expect("an address");
    let raw: SocketAddr = format!("{SERVER}:{raw}").parse().expect("an address");
    // Set up as the link's own are, and as long-lived.
    let (mut raw, _) = tcp::connect_to(raw, CONNECT).expect("a socket");
    raw.set_nonblocking(false).expect("it can block");
    let mut options = ConnectOptions::default();
    options.client.lease_ms = 1000;
    options.client.reconnect_for = Duration::from_secs(15);
    let mut session = blocking::Session::connect(&uri, options).expect("a session");
    say("ready");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let (what, bytes) = line.split_once(' ').expect("a word and a number");
        let bytes: u64 = bytes.parse().expect("a number");
        let took = match what {
            "put" | "get" => ours(&mut session, what, bytes),
            "cut" => cut(&uri, bytes),
            _ => raw_stream(&mut raw, what, bytes).expect("the raw stream lives"),
        };
        say(&format!("{what} {}", took.as_secs_f64()));
    }
}

fn ours(session: &mut blocking::Session, what: &str, bytes: u64) -> Duration {
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
    let began = moving("get");
    let got = session.get(&tensor).expect("a get");
    let get = began.elapsed();
    // Both ways, whichever was asked for.
    is_whole(&got);
    session.recycle(got);
    session.free(tensor.handle).expect("it was there");
    assert_eq!(session.sessions_lost(), 0);
    if what == "put" { put } else { get }
}

/// A put whose path is gone before its end, and how long it takes to find out.
fn cut(uri: &Uri, bytes: u64) -> Duration {
    let mut options = ConnectOptions::default();
    options.client.lease_ms = 1000;
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
