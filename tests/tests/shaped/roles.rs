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
use genie_transport::client::{ConnectOptions, PutOptions, blocking};
use genie_transport::link::{Server, tcp};
use genie_transport::wire::TensorSpec;

use crate::path::{Path, SERVER};

/// Nothing takes longer, whatever the path.
const LONGEST: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(10);
const PORTS: &str = "GENIE_SHAPED_PORTS";

/// Both processes.
pub(crate) struct Ends {
    _server: Role,
    client: Role,
}

impl Ends {
    pub(crate) fn start(path: &Path) -> Self {
        let [server, client] = &path.names;
        let mut server = Role::start_in(server, "roles::a_server", &[]);
        let ports = server.hear("listening", LONGEST);
        let mut client = Role::start_in(client, "roles::a_client", &[(PORTS, &ports)]);
        client.hear("ready", LONGEST);
        Self { _server: server, client }
    }

    /// MB/s of one transfer.
    pub(crate) fn rate(&mut self, what: &str, bytes: u64) -> f64 {
        self.begin(what, bytes);
        bytes as f64 / 1e6 / self.end(what).as_secs_f64()
    }

    pub(crate) fn begin(&mut self, what: &str, bytes: u64) {
        self.client.tell(&format!("{what} {bytes}"));
        self.client.hear("moving", LONGEST);
    }

    pub(crate) fn end(&mut self, what: &str) -> Duration {
        let took = self.client.hear(what, LONGEST);
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
    let server = Server::new(Arc::new(Executor::new(config(1)).expect("a server")));
    say(&format!("listening {ports}"));
    std::thread::scope(|scope| {
        scope.spawn(|| raw.incoming().flatten().for_each(|stream| serve_raw(stream).expect("the raw stream lives")));
        // A listener of the product's would refuse: the path is no loopback, and there is no token.
        let handle = runtime.handle();
        scope.spawn(|| {
            let _within = handle.enter();
            for stream in listener.incoming().flatten() {
                server.serve(Arc::new(tcp::accepted(stream).expect("a socket takes options")));
            }
        });
        let mut end = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut end);
        std::process::exit(0);
    });
}

/// One transfer: the direction, as a letter, and the count.
fn serve_raw(stream: TcpStream) -> std::io::Result<()> {
    let mut stream = tcp::accepted(stream)?;
    stream.set_nonblocking(false)?;
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let bytes = u64::from_le_bytes([head[1], head[2], head[3], head[4], head[5], head[6], head[7], head[8]]);
    if head[0] == b'u' {
        swallow(&mut stream, bytes)?;
        stream.write_all(b"!")
    } else {
        pour(&mut stream, bytes)
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
    let mut session = blocking::Session::connect(&uri, ConnectOptions::default()).expect("a session");
    say("ready");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let (what, bytes) = line.split_once(' ').expect("a word and a number");
        let bytes: u64 = bytes.parse().expect("a number");
        let took = match what {
            "put" | "get" => ours(&mut session, what, bytes),
            _ => raw_stream(raw, what, bytes).expect("the raw stream lives"),
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

/// Over a socket that is set up as the link's own are.
fn raw_stream(address: SocketAddr, what: &str, bytes: u64) -> std::io::Result<Duration> {
    let (mut stream, _) = tcp::connect_to(address, CONNECT)?;
    stream.set_nonblocking(false)?;
    say("moving");
    let began = Instant::now();
    let mut head = vec![if what == "raw-up" { b'u' } else { b'd' }];
    head.extend_from_slice(&bytes.to_le_bytes());
    stream.write_all(&head)?;
    if what == "raw-up" {
        pour(&mut stream, bytes)?;
        swallow(&mut stream, 1)?;
    } else {
        swallow(&mut stream, bytes)?;
    }
    Ok(began.elapsed())
}
