//! `genie serve`: the server.

use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use genie_executor::device::{Device, select};
use genie_executor::{Config, Executor};
use genie_http::Door;
use genie_transport::Uri;
use genie_transport::auth::{Guard, Tokens};
use genie_transport::connection::{Directory, Offers, Settings};
use genie_transport::link::tls::TlsServer;
use genie_transport::link::{Access, Listener, Server, choose, io_threads};
use genie_transport::wire::{ErrorCode, RemoteError, limits};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::connect::{seconds, size};
use crate::gpu;
use crate::say::{self, Say};
use crate::traced::TraceFile;

/// Serve this machine's devices
///
/// Prints one line when it is ready. Stops on SIGTERM or SIGINT: what runs comes to its end, what waits and every session is told;
/// a second signal stops it at once.
///
/// Without tokens or certificates it listens on this machine's own addresses only. For others to reach it:
///   genie token new alice --tokens tokens --client alice.token
///   genie serve --listen tcps://0.0.0.0:7070 --tokens tokens --tls-cert server.pem --tls-key server.key
/// On SIGHUP it reads tokens and certificates again. docs/security.md tells more.
///
/// Example: genie serve --listen tcp://127.0.0.1:7070 --device cpu
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ServeArgs {
    /// Where to listen: tcp://HOST:PORT, tcps://HOST:PORT, uring://HOST:PORT, urings://HOST:PORT, rdma://ADDRESS:PORT or
    /// shm:///path/to/socket; docs/links.md says which to pick. Port 0 takes a free one, and prints it. May be given several times. Only
    /// tcps:// and urings:// encrypt: what goes by rdma:// can be read on the way, with tokens as without.
    #[arg(long, default_value = "tcp://127.0.0.1:7070")]
    listen: Vec<Uri>,
    /// Which devices: auto (every GPU that works, else the CPU), cpu (one with all cores), cpu*N (N that share them), cuda (every GPU that
    /// works), or cuda:0,cuda:2 (these). GPUs are numbered as CUDA shows them to this process: CUDA_VISIBLE_DEVICES hides some.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads that the CPU devices share; without it, as many as the machine has.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Bytes that tensors may take, of all CPU devices together, or of each GPU: 8G. Without it, what there is to spare.
    #[arg(long, value_name = "BYTES", value_parser = size)]
    memory: Option<u64>,
    /// Bytes of the host's memory, pinned, that tensors pass through on their way to and from each GPU: 64M. Without it, what 2.5 ms of
    /// its PCIe take, which is measured at the start.
    #[arg(long, value_name = "BYTES", value_parser = size)]
    staging: Option<u64>,
    /// Bytes of the host's memory, pinned, for weights that a GPU had no room for: they come back without their client; 0: none stays.
    /// Without it, a quarter of the host's memory.
    #[arg(long, value_name = "BYTES", value_parser = size)]
    evicted: Option<u64>,
    /// When the server stops, write into this file when each slice of a tensor was on the network, and when it was copied to or from a
    /// GPU: trace events, which Perfetto (ui.perfetto.dev) shows. While it serves, it counts how much of the copies' time the network was busy.
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,
    /// Bytes that one session may hold; without it, as many as tensors may take.
    #[arg(long, value_name = "BYTES", value_parser = size)]
    quota: Option<u64>,
    /// Seconds that a session outlives its connection if its client does not say.
    #[arg(long, value_name = "S", default_value_t = 60.0, value_parser = seconds)]
    lease: f64,
    /// Microseconds that a connection is polled for its next request before its thread sleeps, while traffic is dense; 0: not at
    /// all.
    #[arg(long, value_name = "US", default_value_t = Settings::new(0).spin.as_micros() as u64)]
    spin: u64,
    /// Bytes up to which a payload goes in one frame with its request: larger ones go in slices over the bulk lanes. Without it, 64K
    /// (docs/decisions/0012-fixed-sizes.md).
    #[arg(long, value_name = "BYTES", value_parser = eager)]
    eager: Option<u32>,
    /// Bytes of a slice, a multiple of 4K up to 4M. Without it, 256K.
    #[arg(long, value_name = "BYTES", value_parser = slice)]
    slice: Option<u32>,
    /// Threads that move bytes; without it, one less than there are cores, or one.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    io_threads: Option<u16>,
    /// Ask every client for one of the tokens in this file, which nobody else may be able to read; `genie token new` writes it.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// The certificate for tcps:// and urings://, and those between it and its authority.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Ask clients on tcps:// and urings:// for a certificate that this authority has signed.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    client_ca: Option<PathBuf>,
    /// Let other machines in over links that do not encrypt (tcp://, rdma://), by token: for a network that is trusted.
    #[arg(long)]
    plaintext_off_host: bool,
    /// Open an HTTP door, too: tensor files in, tensor files out (docs/http.md). Without an address it is at 127.0.0.1:8888; without this
    /// flag there is none. With --tls-cert it speaks HTTPS. Who may reach it is as for --listen.
    #[arg(long, value_name = "HOST:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:8888")]
    http: Option<String>,
    /// Bytes of one HTTP request, and of one answer: all requests together may hold four times as many.
    #[arg(long, value_name = "BYTES", value_parser = size, default_value = "1G", requires = "http")]
    http_limit: u64,
    /// Seconds that an HTTP client may take over its headers, and over each 64 KiB of a body or an answer; and that a token's session stays
    /// open after a request.
    #[arg(long, value_name = "S", default_value_t = 30.0, value_parser = seconds, requires = "http")]
    http_patience: f64,
    /// HTTP connections at a time: for one more the oldest goes whose request has not come whole.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..), requires = "http")]
    http_connections: u16,
    /// Let clients that ask for it do without checksums over tensors on their way: a bit that flips then goes unnoticed.
    #[arg(long)]
    unchecked: bool,
    /// Stop when standard input ends: for a server that must not outlive who started it.
    #[arg(long, hide = true)]
    with_parent: bool,
}

/// The line that says that it is ready.
#[derive(Debug, Serialize)]
struct Ready {
    /// The first of [`Self::uris`].
    uri: String,
    /// Where it listens, in the order asked for.
    uris: Vec<String>,
    devices: Vec<String>,
    /// Where the HTTP door is, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    pid: u32,
}

/// Leases end within this time of their due.
const TICK: Duration = Duration::from_millis(500);
/// How long the last words may take to reach the clients: what the link gives each of them (1 s), and some time to notice.
const LAST_WORDS: Duration = Duration::from_millis(1200);

/// Runs the command.
pub(crate) fn run(args: &ServeArgs, say: Say) -> Result<()> {
    more_descriptors();
    let threads = args.threads.map(usize::from);
    let limits = select::Limits { threads, memory_bytes: args.memory, staging_bytes: args.staging, measure: true };
    let devices = select::open(&args.device, limits)?;
    log_gpus(&devices);
    let trace = args.trace.as_deref().map(|path| TraceFile::begin(path, &devices)).transpose()?;
    let names: Vec<_> = devices.iter().map(|d| d.info().name).collect();
    let mut config = Config::new(devices, getrandom::u64().context("drawing the server's epoch")?);
    config.settings.spin = Duration::from_micros(args.spin);
    config.settings.unchecked = args.unchecked;
    config.settings.eager_bytes = args.eager.unwrap_or(config.settings.eager_bytes);
    config.settings.slice_bytes = args.slice.unwrap_or(config.settings.slice_bytes);
    config.default_lease = Duration::from_secs_f64(args.lease);
    config.max_lease = config.max_lease.max(config.default_lease);
    config.evicted_bytes = args.evicted.unwrap_or(config.evicted_bytes);
    if let Some(quota) = args.quota {
        config.default_quota = quota;
        config.max_quota = quota;
    }
    let access = access(args)?;
    config.settings.guard = access.guard.clone();
    let threads = args.io_threads.map_or_else(io_threads, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = runtime.context("starting the runtime")?;
    let served = runtime.block_on(async {
        let listeners =
            args.listen.iter().map(|uri| Listener::bind_with(uri, &access)).collect::<Result<Vec<_>, _>>()?;
        let uris = listeners.iter().map(|l| Ok(l.uri()?.to_string())).collect::<Result<Vec<_>>>()?;
        let offers = listeners.iter().map(Listener::offers).collect::<Result<Vec<_>, _>>()?.concat();
        config.settings.offers = Arc::new(Offers { boot: choose::boot_id(), offers });
        let uri = uris.first().cloned().unwrap_or_default();
        // Handlers stand before anybody can know that there is a server to be stopped.
        let stop = Stop::new(args.with_parent)?;
        let hangups = signal(SignalKind::hangup()).context("listening for signals")?;
        let executor = Arc::new(Executor::new(config)?);
        let server = Arc::new(Server::new(executor.clone()));
        let mut listening = JoinSet::new();
        for listener in listeners {
            let server = server.clone();
            listening.spawn(async move { server.run(listener).await });
        }
        let inside = args.http.as_deref().map(|address| Inside::open(address, args, &access)).transpose()?;
        let (http, door) = match inside {
            Some(inside) => {
                let server = server.clone();
                listening.spawn(async move { server.run(inside.listener).await });
                (Some(inside.door.url().to_owned()), Some((inside.door, inside.folder)))
            }
            None => (None, None),
        };
        ready(&Ready { uri, uris, devices: names, http, pid: std::process::id() }, say)?;
        tokio::select! {
            () = ticks(&executor) => {}
            () = reloads(hangups, args, &access, server.directory(), &executor) => {}
            () = stop.asked() => {}
        }
        listening.shutdown().await;
        // Requests that are under way are told by the server that it stops; the folder of its socket goes with the door.
        drop(door);
        // The listeners are gone: who reconnects now waits for the next server, and finds this one's sessions gone.
        tracing::info!("stopping: what runs comes to its end");
        let ending = tokio::task::spawn_blocking(move || executor.shutdown());
        tokio::select! {
            done = ending => done.context("ending the sessions")?,
            () = stop.asked() => {
                tracing::warn!("asked again: stopping at once");
                return Ok(());
            }
        }
        let until = Instant::now() + LAST_WORDS;
        while !server.directory().peers().is_empty() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok::<_, anyhow::Error>(())
    });
    let traced = trace.map_or(Ok(()), TraceFile::finish);
    // Lanes that wait for clients who never leave are not waited for.
    runtime.shutdown_background();
    served.and(traced)
}

/// What GPUs there are, and what is served of them.
fn log_gpus(devices: &[Arc<dyn Device>]) {
    // Starting the management library takes longer than all else of a start.
    if !tracing::enabled!(tracing::Level::INFO) {
        return;
    }
    if let Some(visibility) = gpu::visibility() {
        tracing::info!("GPUs: {visibility}");
    }
    for device in devices {
        let Some(gpu) = device.gpu() else { continue };
        let info = device.info();
        let (to, from) = gpu.pcie.map_or((None, None), |(to, from)| (Some(to), Some(from)));
        tracing::info!(
            model = info.model,
            uuid = gpu.uuid,
            capability = info.capability,
            memory = info.total_bytes,
            utilisation = gpu.utilisation,
            pcie_to = to,
            pcie_from = from,
            "{}",
            info.name
        );
    }
}

fn ready(ready: &Ready, say: Say) -> Result<()> {
    if say.json {
        return say::line(&serde_json::to_string(ready)?);
    }
    let http = ready.http.iter().map(String::as_str);
    let places: Vec<_> = ready.uris.iter().map(String::as_str).chain(http).collect();
    say::line(&format!("genie: serving {} on {}", ready.devices.join(", "), places.join(", ")))
}

/// The HTTP door, and the server's address that is for it alone: shared memory, by a socket in a folder that only this user may enter.
struct Inside {
    door: Door,
    listener: Listener,
    folder: tempfile::TempDir,
}

impl Inside {
    fn open(address: &str, args: &ServeArgs, access: &Access) -> Result<Self> {
        let folder = private_folder().context("a folder for the HTTP door's socket")?;
        let path = folder.path().join("socket");
        let path = path.to_str().context("the folder for temporary files has a name that is not UTF-8")?;
        let uri: Uri = format!("shm://{path}").parse()?;
        let listener = Listener::bind_with(&uri, access)?;
        let settings = genie_http::Settings {
            body_bytes: args.http_limit,
            memory_bytes: args.http_limit.saturating_mul(4),
            connections: args.http_connections.into(),
            patience: Duration::from_secs_f64(args.http_patience),
            ..genie_http::Settings::default()
        };
        let door = Door::open(address, uri, access, settings)?;
        Ok(Self { door, listener, folder })
    }
}

/// A folder that only this user may enter.
fn private_folder() -> std::io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("genie-http-").permissions(Permissions::from_mode(0o700)).tempdir()
}

/// Who is let in.
fn access(args: &ServeArgs) -> Result<Access> {
    let guard = match &args.tokens {
        Some(path) => {
            let tokens = Tokens::load(path)?;
            anyhow::ensure!(!tokens.is_empty(), "{} has no token: make one with `genie token new`", path.display());
            Guard::with_tokens(tokens)
        }
        None => Guard::open(),
    };
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(Arc::new(TlsServer::load(cert, key, args.client_ca.as_deref())?)),
        _ => None,
    };
    if let Some(tls) = &tls {
        guard.set_trust(tls.clone());
    }
    let plaintext_off_host = args.plaintext_off_host;
    Ok(Access { guard: Arc::new(guard), tls, plaintext_off_host, ..Access::default() })
}

/// Reads tokens and certificates again whenever it is asked to. What cannot be read leaves what was there before.
async fn reloads(mut hangups: Signal, args: &ServeArgs, access: &Access, directory: &Directory, executor: &Executor) {
    while hangups.recv().await.is_some() {
        if let Some(tls) = &access.tls {
            match tls.reload() {
                Ok(()) => access.guard.set_trust(tls.clone()),
                Err(error) => tracing::error!(%error, "the certificates stay as they were"),
            }
        }
        if let Some(path) = &args.tokens {
            match Tokens::load(path) {
                Ok(tokens) => {
                    tracing::info!(tokens = tokens.len(), "tokens were read again");
                    access.guard.set_tokens(tokens);
                }
                Err(error) => tracing::error!(%error, "the tokens stay as they were"),
            }
        }
        dismiss(&access.guard, directory);
        // With the connections go the sessions that nobody may take up any more.
        executor.tick(Instant::now());
    }
}

/// Ends the connections whose token was taken back or changed, or whose certificate is not trusted any more; who still may comes
/// back.
fn dismiss(guard: &Guard, directory: &Directory) {
    let (peers, mut judge) = (directory.peers(), guard.judge());
    for peer in &peers {
        if !judge.is_current(peer.identity()) {
            let message = "the token or certificate of this connection was changed or taken back: connect again";
            peer.goodbye(RemoteError::new(ErrorCode::Unauthorized, message));
        }
    }
}

async fn ticks(executor: &Executor) {
    let mut interval = tokio::time::interval(TICK);
    loop {
        interval.tick().await;
        executor.tick(Instant::now());
    }
}

/// What stops a server.
struct Stop {
    /// A permit for each time that it was asked to: two that come before anybody looks are two.
    asked: Arc<Semaphore>,
}

impl Stop {
    fn new(with_parent: bool) -> Result<Self> {
        let asked = Arc::new(Semaphore::new(0));
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let (mut signals, asked) = (signal(kind).context("listening for signals")?, asked.clone());
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    asked.add_permits(1);
                }
            });
        }
        if with_parent {
            let asked = asked.clone();
            std::thread::spawn(move || {
                let mut byte = [0; 64];
                while std::io::stdin().read(&mut byte).is_ok_and(|n| n > 0) {}
                asked.add_permits(1);
            });
        }
        Ok(Self { asked })
    }

    async fn asked(&self) {
        // It is never closed.
        if let Ok(once) = self.asked.acquire().await {
            once.forget();
        }
    }
}

/// What fits a frame of the control lane.
fn eager(text: &str) -> Result<u32, String> {
    let most = limits::CONTROL_PAYLOAD_BYTES;
    let fits = u32::try_from(size(text)?).ok().filter(|&n| n <= most);
    fits.ok_or_else(|| format!("at most {most} bytes fit a frame"))
}

/// What a peer takes for a slice size.
fn slice(text: &str) -> Result<u32, String> {
    let most = limits::SLICE_BYTES;
    let fits = u32::try_from(size(text)?).ok().filter(|&n| n <= most && n.is_multiple_of(4096));
    fits.ok_or_else(|| format!("a slice has a multiple of 4096 bytes, at most {most}"))
}

/// Each connection takes descriptors: as many as the system allows.
pub(crate) fn more_descriptors() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => tracing::debug!(limit, "descriptors"),
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is: few clients may connect"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Others could enter it, and connect to the socket that asks nobody in particular.
    #[test]
    fn nobody_else_may_enter_the_folder_of_the_doors_socket() {
        let folder = private_folder().unwrap();
        assert_eq!(std::fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn sizes_that_a_client_would_not_take_are_refused() {
        assert_eq!((eager("16K"), eager("4M")), (Ok(16 << 10), Ok(4 << 20)));
        assert_eq!((slice("4K"), slice("4M")), (Ok(4 << 10), Ok(4 << 20)));
        for bad in ["0", "4097K", "5000M", "8G"] {
            assert!(eager(bad).is_err() && slice(bad).is_err(), "{bad}");
        }
        assert!(slice("5000").unwrap_err().contains("multiple of 4096"));
    }
}
