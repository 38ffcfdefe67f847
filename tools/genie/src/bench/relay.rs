//! A way to a server with a longer round trip: what passes is held back for a while, each way.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use genie_transport::Uri;

/// Bytes that are on their way at the most, one way: the sender of more waits, as at a full socket.
const MOST_HELD: usize = 8 << 20;
/// Of one read.
const CHUNK: usize = 256 << 10;
/// A connection that was silent for so long is looked at now and then; before that, all the time while it is to be quick.
const AWAKE: Duration = Duration::from_millis(200);
const NAP: Duration = Duration::from_millis(1);

/// Passes connections on to a server of this machine. They end with this value.
#[derive(Debug)]
pub(super) struct Relay {
    uri: Uri,
    ways: Arc<Ways>,
    acceptor: Option<JoinHandle<()>>,
}

/// What all connections know.
#[derive(Debug, Default)]
struct Ways {
    /// Nanoseconds that bytes are held back, each way.
    hold: AtomicU64,
    quick: AtomicBool,
    ended: AtomicBool,
}

impl Relay {
    /// Begins to listen. Nothing is held back yet, and nothing is quick.
    ///
    /// # Errors
    /// If the server is not reached over plain TCP, or no port is free.
    pub(super) fn to(server: &Uri) -> Result<Self> {
        let Uri::Tcp { host, port } = server else {
            bail!("a longer round trip is made for tcp://HOST:PORT alone, and the server is at {server}");
        };
        let server = (host.clone(), *port);
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("listening for connections to pass on")?;
        let here = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let ways = Arc::new(Ways::default());
        let all = ways.clone();
        let acceptor = std::thread::spawn(move || accept(&listener, &server, &all));
        let uri = Uri::Tcp { host: here.ip().to_string(), port: here.port() };
        Ok(Self { uri, ways, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub(super) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// From now on bytes are held back for so long, each way.
    pub(super) fn hold(&self, each_way: Duration) {
        self.ways.hold.store(u64::try_from(each_way.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Polls while `work` is done, which takes a core or two: outside of it, what is measured has those, and bytes take a millisecond.
    pub(super) fn quickly<T>(&self, work: impl FnOnce() -> T) -> T {
        self.ways.quick.store(true, Ordering::Relaxed);
        // What naps has begun to poll by then.
        std::thread::sleep(2 * NAP);
        let done = work();
        self.ways.quick.store(false, Ordering::Relaxed);
        done
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ways.ended.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            // One that panicked passes nothing on any more: whoever is connected was told by its socket.
            let _ = acceptor.join();
        }
    }
}

/// Takes connections until the end, then waits for those there are.
fn accept(listener: &TcpListener, server: &(String, u16), ways: &Arc<Ways>) {
    let mut passing = Vec::new();
    while !ways.ended.load(Ordering::Relaxed) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(NAP);
            continue;
        };
        // A server that is gone: the client sees its connection end.
        let Ok(pairs) = TcpStream::connect((server.0.as_str(), server.1)).and_then(|server| both(&client, &server))
        else {
            continue;
        };
        for (from, to) in pairs {
            let ways = ways.clone();
            passing.push(std::thread::spawn(move || pass(from, to, &ways)));
        }
    }
    for thread in passing {
        // What became of a connection is seen at its ends.
        let _ = thread.join();
    }
}

/// There and back.
fn both(client: &TcpStream, server: &TcpStream) -> std::io::Result<[(TcpStream, TcpStream); 2]> {
    for stream in [client, server] {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
    }
    Ok([(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)])
}

/// Bytes, and when they go on.
struct Held {
    due: Instant,
    bytes: Vec<u8>,
    written: usize,
}

/// Passes one way on until either end is closed.
fn pass(mut from: TcpStream, mut to: TcpStream, ways: &Ways) {
    let (mut queue, mut held, mut chunk) = (VecDeque::<Held>::new(), 0, vec![0; CHUNK]);
    let (mut open, mut last) = (true, Instant::now());
    while !ways.ended.load(Ordering::Relaxed) && (open || !queue.is_empty()) {
        let mut idle = true;
        if open && held < MOST_HELD {
            match from.read(&mut chunk) {
                Ok(0) => open = false,
                Ok(n) => {
                    let due = Instant::now() + Duration::from_nanos(ways.hold.load(Ordering::Relaxed));
                    queue.push_back(Held { due, bytes: chunk[..n].to_vec(), written: 0 });
                    (held, idle) = (held + n, false);
                }
                Err(error) => open = later(&error),
            }
        }
        while let Some(first) = queue.front_mut().filter(|first| first.due <= Instant::now()) {
            match to.write(&first.bytes[first.written..]) {
                Ok(n) => (first.written, held, idle) = (first.written + n, held - n, false),
                Err(error) if later(&error) => break,
                Err(_) => {
                    // Nobody takes what is held, nor what would come.
                    let _ = from.shutdown(Shutdown::Both);
                    return;
                }
            }
            if first.written == first.bytes.len() {
                queue.pop_front();
            }
        }
        if !idle {
            last = Instant::now();
        } else if last.elapsed() > AWAKE || !ways.quick.load(Ordering::Relaxed) {
            std::thread::sleep(NAP);
        } else {
            std::thread::yield_now();
        }
    }
    // The other way may go on. An end that is closed already needs no word of it.
    let _ = to.shutdown(Shutdown::Write);
}

/// Whether a socket that had nothing to do may have it later.
fn later(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says everything again, and the way to it.
    fn echo() -> (JoinHandle<()>, Relay) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = stream.try_clone().unwrap();
            std::io::copy(&mut reader, &mut stream).unwrap();
        });
        let relay = Relay::to(&Uri::Tcp { host: "127.0.0.1".into(), port }).unwrap();
        (server, relay)
    }

    fn client(relay: &Relay) -> TcpStream {
        TcpStream::connect(relay.uri().to_string().trim_start_matches("tcp://")).unwrap()
    }

    #[test]
    fn bytes_pass_whole_and_in_order_and_its_end_with_them() {
        let (server, relay) = echo();
        relay.hold(Duration::from_millis(3));
        let sent: Vec<u8> = (0..3 * CHUNK + 7).map(|i| (i * 7 + i / 251) as u8).collect();
        let mut stream = client(&relay);
        let mut back = stream.try_clone().unwrap();
        let all = sent.clone();
        let sender = std::thread::spawn(move || {
            stream.write_all(&all).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        back.read_to_end(&mut got).unwrap();
        assert_eq!(got, sent);
        sender.join().unwrap();
        server.join().unwrap();
    }

    #[test]
    fn a_round_trip_takes_as_long_as_it_is_told_to() {
        let (server, relay) = echo();
        let mut stream = client(&relay);
        let mut trip = |hold: Duration| {
            relay.hold(hold);
            let began = Instant::now();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            began.elapsed()
        };
        assert!(trip(Duration::from_millis(40)) >= Duration::from_millis(80));
        // As quick as any of several: the machine may be busy.
        let quick = relay.quickly(|| (0..20).map(|_| trip(Duration::ZERO)).min().unwrap());
        assert!(quick < Duration::from_millis(40), "{quick:?}");
        drop(stream);
        server.join().unwrap();
    }

    #[test]
    fn its_end_ends_what_passes() {
        let (server, relay) = echo();
        let mut stream = client(&relay);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        drop(relay);
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
        server.join().unwrap();
    }

    #[test]
    fn other_links_have_no_relay() {
        let error = Relay::to(&"shm:///tmp/x.sock".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("tcp://"), "{error}");
    }
}
