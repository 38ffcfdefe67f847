//! gRPC over tonic: an echo and a put as unary calls, bytes in a protobuf message.
//!
//! `grpc` measures and prints a report as tools/peers/harness.py describes it; `grpc serve` is the other end. HTTP/2's windows
//! are as large as what is in flight: the defaults (64 KiB) would measure nothing but them.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prost::bytes::Bytes;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

mod service {
    tonic::include_proto!("peers.Peer");
}
use service::peer_client::PeerClient;
use service::peer_server::{Peer, PeerServer};

/// Bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Blob {
    /// What is sent.
    #[prost(bytes = "bytes", tag = "1")]
    pub bytes: Bytes,
}

/// The answer to a put.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Done {
    /// Bytes that came.
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ECHO_BYTES: usize = 64;
const PUT_BYTES: [usize; 2] = [4 << 20, 64 << 20];
const DEPTHS: [usize; 2] = [1, 4];
const ECHO_WARM_UP: Duration = Duration::from_millis(300);
const ECHO_TIME: Duration = Duration::from_secs(2);
const TURN_BYTES: usize = 256 << 20;
const TURNS: usize = 7;
const PUT_TIME: Duration = Duration::from_secs(4);

/// A message and what protobuf puts around it.
const LARGEST_MESSAGE: usize = (64 << 20) + 64;
const WINDOW: u32 = 512 << 20;
const FRAME: u32 = (16 << 20) - 1;

#[tokio::main]
async fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        None => measure().await,
        Some("serve") => serve().await,
        Some(_) => Err("usage: grpc [serve]".into()),
    }
}

async fn measure() -> Result<()> {
    let server = OtherEnd::start()?;
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{}", server.port))?
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .connect()
        .await?;
    let mut client = PeerClient::new(channel).max_encoding_message_size(LARGEST_MESSAGE);
    let echo = echo(&mut client).await?;
    let mut puts = Vec::new();
    for size in PUT_BYTES {
        for depth in DEPTHS {
            puts.push(put(&client, size, depth).await?);
        }
    }
    println!(r#"{{"version": "", "echo": {echo}, "puts": [{}]}}"#, puts.join(", "));
    Ok(())
}

async fn echo(client: &mut PeerClient<Channel>) -> Result<String> {
    let message = Bytes::from(vec![7; ECHO_BYTES]);
    let mut trips = Vec::new();
    let counts = Instant::now() + ECHO_WARM_UP;
    loop {
        let began = Instant::now();
        client.echo(Blob { bytes: message.clone() }).await?;
        let ended = Instant::now();
        if began >= counts {
            trips.push(ended - began);
        }
        if ended >= counts + ECHO_TIME {
            break;
        }
    }
    trips.sort_unstable();
    let us = |share: usize| trips[(trips.len() * share / 100).min(trips.len() - 1)].as_nanos() as f64 / 1e3;
    let (p50, p99, samples) = (us(50), us(99), trips.len());
    Ok(format!(r#"{{"bytes": {ECHO_BYTES}, "p50_us": {p50}, "p99_us": {p99}, "samples": {samples}}}"#))
}

async fn put(client: &PeerClient<Channel>, size: usize, depth: usize) -> Result<String> {
    let count = (TURN_BYTES / size).max(8);
    let sources: Vec<Bytes> = (0..depth).map(|_| Bytes::from(vec![7; size])).collect();
    let mut rates = Vec::new();
    let mut until = Instant::now() + PUT_TIME;
    // The first turn is not counted: it opens windows and touches memory.
    for turn in 0..=TURNS {
        let began = Instant::now();
        let mut flying = JoinSet::new();
        for source in &sources {
            let (mut client, source) = (client.clone(), source.clone());
            flying.spawn(async move {
                for _ in 0..count / depth {
                    client.put(Blob { bytes: source.clone() }).await?;
                }
                Ok::<_, Status>(())
            });
        }
        while let Some(done) = flying.join_next().await {
            done??;
        }
        if turn == 0 {
            until = Instant::now() + PUT_TIME;
            continue;
        }
        rates.push((count / depth * depth * size) as f64 / began.elapsed().as_secs_f64() / 1e9);
        if Instant::now() > until {
            break;
        }
    }
    rates.sort_by(f64::total_cmp);
    let (rate, turns) = (rates[rates.len() / 2], rates.len());
    Ok(format!(r#"{{"bytes": {size}, "depth": {depth}, "gb_s": {rate}, "turns": {turns}}}"#))
}

struct Answers;

#[tonic::async_trait]
impl Peer for Answers {
    async fn echo(&self, request: Request<Blob>) -> std::result::Result<Response<Blob>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    async fn put(&self, request: Request<Blob>) -> std::result::Result<Response<Done>, Status> {
        Ok(Response::new(Done { bytes: request.into_inner().bytes.len() as u64 }))
    }
}

async fn serve() -> Result<()> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?.port());
    std::io::stdout().flush()?;
    std::thread::spawn(|| {
        // Its parent holds the other end.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let service = PeerServer::new(Answers).max_decoding_message_size(LARGEST_MESSAGE);
    Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}

/// The other end's process; it ends with this value.
struct OtherEnd {
    child: Child,
    port: u16,
}

impl OtherEnd {
    fn start() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(out) = &mut child.stdout {
            let mut byte = [0];
            while out.read(&mut byte)? == 1 && byte != *b"\n" {
                line.push(char::from(byte[0]));
            }
        }
        Ok(Self { port: line.parse()?, child })
    }
}

impl Drop for OtherEnd {
    fn drop(&mut self) {
        // It is gone already if this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
