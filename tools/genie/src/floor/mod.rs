//! The floor that measurements stand on: plain sockets between two processes, set up as the link sets up its own; and for links
//! over shared memory, memory that two processes watch ([`memory`]).
//!
//! The other process is this program again, with the hidden subcommand `floor`. A connection lasts as long as its measurement, so
//! that nothing of it runs while something else is measured. It begins with four numbers: what to do, the bytes of a message,
//! how many there are, and to how many places in turn they go.

pub(crate) mod memory;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use genie_transport::Uri;
use genie_transport::link::tcp::{self, Path};
use genie_transport::memory::Slab;
use socket2::SockRef;

/// Serve the floor of a measurement.
#[derive(Debug, Args)]
pub(crate) struct FloorArgs {
    /// Over this memory, and for one measurement; without it over sockets, for as many as are asked for.
    #[arg(long, value_name = "FILE", requires = "bytes")]
    memory: Option<PathBuf>,
    /// Bytes of a message in that memory.
    #[arg(long, value_name = "N", requires = "memory")]
    bytes: Option<usize>,
}

/// How the ends of an echo wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// In the kernel.
    Blocking,
    /// By asking again and again.
    Busy,
}

const ECHO_BLOCKING: u64 = 0;
const ECHO_BUSY: u64 = 1;
const SINK: u64 = 2;
const SOURCE: u64 = 3;
const HOLD: u64 = 4;

/// Which way a stream's messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the floor's other process, as a put's do.
    There,
    /// From it, as a get's do.
    Back,
}

/// Places that messages go to, at the most.
const MOST_PLACES: u64 = 64;

/// The floor's other process; it ends with this value.
#[derive(Debug)]
pub(crate) struct Floor {
    child: Child,
    uri: Uri,
}

impl Floor {
    /// Starts it.
    pub(crate) fn start() -> Result<Self> {
        let me = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(me);
        command.arg("floor").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting the floor's process")?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        let Ok(port) = line.trim().parse() else {
            // It says on standard error why.
            let _ = child.wait();
            bail!("the floor's process did not start");
        };
        Ok(Self { child, uri: Uri::Tcp { host: "127.0.0.1".to_owned(), port } })
    }

    /// Round trips of `size` bytes for `time`; `each` gets their durations.
    pub(crate) fn echo(
        &self,
        size: usize,
        waiting: Waiting,
        time: Duration,
        mut each: impl FnMut(Duration),
    ) -> Result<()> {
        let mode = if waiting == Waiting::Busy { ECHO_BUSY } else { ECHO_BLOCKING };
        let mut stream = self.connect([mode, size as u64, 0, 1])?;
        stream.set_nonblocking(waiting == Waiting::Busy)?;
        let (sent, mut back) = (vec![7; size], vec![0; size]);
        let until = Instant::now() + time;
        let mut trips = 0;
        loop {
            let began = Instant::now();
            exchange(&mut stream, &sent, &mut back)?;
            let ended = Instant::now();
            trips += 1;
            // The first round trip waits for the other side to begin.
            if trips > 1 {
                each(ended - began);
                if ended >= until {
                    return Ok(());
                }
            }
        }
    }

    /// Moves `count` messages over each of several connections at once to a receiver that reads them to `places` of its own in turn; the
    /// time until all are there. What comes back is as long as `message`.
    pub(crate) fn streams(&self, way: Way, message: &[u8], count: u64, streams: u32, places: u32) -> Result<Duration> {
        let (mode, places_here) = if way == Way::There { (SINK, 0) } else { (SOURCE, u64::from(places)) };
        let mut lanes = Vec::new();
        for _ in 0..streams {
            let mut stream = self.connect([mode, message.len() as u64, count, u64::from(places)])?;
            stream.set_nonblocking(false)?;
            stream.read_exact(&mut [0])?;
            lanes.push((stream, self::places(places_here, message.len())?));
        }
        let run = |(mut stream, mut places): (TcpStream, Vec<Slab>)| {
            if way == Way::Back {
                stream.write_all(&[1])?;
                return receive(&mut stream, &mut places, count);
            }
            for _ in 0..count {
                stream.write_all(message)?;
            }
            stream.read_exact(&mut [0])
        };
        let began = Instant::now();
        let last = lanes.pop();
        std::thread::scope(|scope| {
            let others: Vec<_> = lanes.into_iter().map(|lane| scope.spawn(move || run(lane))).collect();
            last.map(run).transpose()?;
            for other in others {
                other.join().map_err(|_| anyhow!("a stream of the floor failed"))??;
            }
            Ok(began.elapsed())
        })
    }

    /// A connection that was answered once and is silent from then on. The other process keeps its end for as long as it lives.
    pub(crate) fn hold(&self) -> Result<TcpStream> {
        let mut stream = self.connect([HOLD, 0, 0, 0])?;
        stream.set_nonblocking(false)?;
        stream.read_exact(&mut [0])?;
        Ok(stream)
    }

    fn connect(&self, numbers: [u64; 4]) -> Result<TcpStream> {
        let (mut stream, _) = tcp::connect(&self.uri, Duration::from_secs(5)).context("connecting to the floor")?;
        stream.write_all(numbers.map(u64::to_le_bytes).as_flattened())?;
        Ok(stream)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // It is gone already if this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process.
pub(crate) fn serve(args: &FloorArgs) -> Result<()> {
    if let (Some(file), Some(bytes)) = (&args.memory, args.bytes) {
        return memory::serve(file, bytes);
    }
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    crate::say::line(&listener.local_addr()?.port().to_string())?;
    std::thread::spawn(|| {
        // Its parent holds the other end: when that closes, there is nobody left to serve.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    crate::serve::more_descriptors();
    let mut held = Vec::new();
    loop {
        let (mut stream, _) = listener.accept()?;
        // Here, since a thread of its own would take a connection that is only held longer than the connection.
        match asked(&mut stream) {
            Ok([HOLD, ..]) => held.push(stream),
            Ok(numbers) => {
                std::thread::spawn(move || {
                    if let Err(error) = answer(stream, numbers) {
                        tracing::debug!(%error, "a connection to the floor ended");
                    }
                });
            }
            Err(error) => tracing::debug!(%error, "a connection to the floor asked for nothing"),
        }
    }
}

/// What a connection is for; one that says nothing does not keep the others waiting. One to be held is answered.
fn asked(stream: &mut TcpStream) -> std::io::Result<[u64; 4]> {
    tcp::tune(&SockRef::from(&*stream), Path::SameHost)?;
    stream.set_read_timeout(Some(SAY_WHAT))?;
    let mut bytes = [[0; 8]; 4];
    stream.read_exact(bytes.as_flattened_mut())?;
    stream.set_read_timeout(None)?;
    let numbers = bytes.map(u64::from_le_bytes);
    if numbers[0] == HOLD {
        stream.write_all(&[1])?;
    }
    Ok(numbers)
}

/// How long a connection may take to say what it is for.
const SAY_WHAT: Duration = Duration::from_secs(5);

fn answer(mut stream: TcpStream, [mode, size, count, places]: [u64; 4]) -> std::io::Result<()> {
    let size = usize::try_from(size).map_err(std::io::Error::other)?;
    if mode == SINK {
        let mut places = self::places(places.max(1), size)?;
        stream.write_all(&[1])?;
        receive(&mut stream, &mut places, count)?;
        return stream.write_all(&[1]);
    }
    if mode == SOURCE {
        let mut message = Slab::try_zeroed(size).ok_or(ErrorKind::OutOfMemory)?;
        // Pages that nobody has written are all the same one, which is always in the cache.
        message.fill(7);
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        return (0..count).try_for_each(|_| stream.write_all(&message));
    }
    let mut buffer = vec![0; size];
    stream.set_nonblocking(mode == ECHO_BUSY)?;
    loop {
        fill(&mut stream, &mut buffer)?;
        drain(&mut stream, &buffer)?;
    }
}

/// Memory of the kind that a server, and a client's gets, have for tensors.
fn places(count: u64, size: usize) -> std::io::Result<Vec<Slab>> {
    let place = || Ok(Slab::try_zeroed(size).ok_or(ErrorKind::OutOfMemory)?);
    (0..count.min(MOST_PLACES)).map(|_| place()).collect()
}

/// Reads messages to these places in turn.
fn receive(stream: &mut TcpStream, places: &mut [Slab], count: u64) -> std::io::Result<()> {
    let turns = places.len();
    (0..count as usize).try_for_each(|n| stream.read_exact(&mut places[n % turns]))
}

/// One round trip. The other side answers once it has all of a message, so neither waits for the other to read.
fn exchange(stream: &mut TcpStream, sent: &[u8], back: &mut [u8]) -> std::io::Result<()> {
    drain(stream, sent)?;
    fill(stream, back)
}

fn fill(stream: &mut TcpStream, mut buffer: &mut [u8]) -> std::io::Result<()> {
    while !buffer.is_empty() {
        match stream.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => buffer = &mut buffer[n..],
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn drain(stream: &mut TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends within this process.
    fn floor(connections: usize) -> (u16, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            for _ in 0..connections {
                let (mut stream, _) = listener.accept().unwrap();
                let numbers = asked(&mut stream).unwrap();
                // It ends with an error when the other end leaves.
                let _ = answer(stream, numbers);
            }
        });
        (port, server)
    }

    fn connect(port: u16, numbers: [u64; 4]) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(numbers.map(u64::to_le_bytes).as_flattened()).unwrap();
        stream
    }

    #[test]
    fn an_echo_comes_back_and_a_sink_counts() {
        let (port, server) = floor(3);
        for mode in [ECHO_BLOCKING, ECHO_BUSY] {
            let mut stream = connect(port, [mode, 100, 0, 1]);
            stream.set_nonblocking(mode == ECHO_BUSY).unwrap();
            let (sent, mut back) = ([9; 100], [0; 100]);
            exchange(&mut stream, &sent, &mut back).unwrap();
            assert_eq!(sent, back);
        }
        let mut stream = connect(port, [SINK, 10, 3, 2]);
        stream.write_all(&[0; 30]).unwrap();
        let mut words = [0; 2];
        stream.read_exact(&mut words).unwrap();
        assert_eq!(words, [1, 1]);
        server.join().unwrap();
    }

    #[test]
    fn a_source_sends_what_was_asked_for_and_no_more() {
        let (port, server) = floor(1);
        let mut stream = connect(port, [SOURCE, 10, 3, 2]);
        stream.read_exact(&mut [0]).unwrap();
        stream.write_all(&[1]).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all, [7; 30]);
        server.join().unwrap();
    }

    #[test]
    fn a_connection_to_be_held_is_answered_once() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut stream = connect(listener.local_addr().unwrap().port(), [HOLD, 0, 0, 0]);
        let (mut other, _) = listener.accept().unwrap();
        assert_eq!(asked(&mut other).unwrap()[0], HOLD);
        let mut answer = [0];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [1]);
    }
}
