//! A control lane: two rings, and the socket that wakes who sleeps.

use std::io::{self, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::ring::{CAPACITY, HEADER, Nonsense, Reader, Writer, fresh_key};
use super::socket::Socket;
use crate::link::wait::{Interest, Waiter};
use crate::link::{Ready, Stream};
use crate::memory::{NotShared, Regions, SharedBytes, SharedMemory};
use crate::wire::Local;

/// Bytes of the memory that holds both rings: their headers, a page; then the client's bytes, then the server's.
pub(super) const BYTES: usize = HEADERS + 2 * CAPACITY;
const HEADERS: usize = 4096;

/// Where the header and the bytes of the client's ring lie, and of the server's.
const UP: (usize, usize) = (0, HEADERS);
const DOWN: (usize, usize) = (HEADER, HEADERS + CAPACITY);

/// One end of a control lane.
///
/// While both ends poll, no system call is made. Who is about to sleep says so in the ring, and is sent one message over the
/// socket when there is something. The socket also brings memory that the client shares, and its end is the lane's.
#[derive(Debug)]
pub struct ControlStream {
    socket: Arc<Socket>,
    writer: Writer,
    reader: Reader,
    mail: Mail,
    closed: AtomicBool,
    /// What the client shares; a server's end.
    regions: Option<Arc<Regions>>,
}

/// Counts what a client shares over the socket, so that its server looks there when, and only when, there is something, and
/// reads no request before it has what was shared before that. Both counts go round.
#[derive(Debug)]
struct Mail {
    memory: Arc<SharedMemory>,
    sent: AtomicU32,
    received: AtomicU32,
}

/// Where the client's count lies: beside its ring's key.
const MAIL: usize = 8;

impl Mail {
    fn count(&self) -> Option<&AtomicU32> {
        self.memory.counter(MAIL)
    }

    /// Whether the client has sent something that has not come.
    fn is_due(&self) -> bool {
        let sent = self.count().map_or(0, |count| count.load(Ordering::Acquire));
        sent.wrapping_sub(self.received.load(Ordering::Relaxed)) as i32 > 0
    }
}

impl ControlStream {
    /// The server's end, and the memory for the client's.
    pub(super) fn server(socket: Arc<Socket>) -> io::Result<(Self, Arc<SharedMemory>)> {
        let memory = Arc::new(SharedMemory::new(BYTES)?);
        for ring in [UP, DOWN] {
            fresh_key(&memory, ring.0)?;
        }
        let mut stream = Self::new(socket, &memory, false).ok_or(io::ErrorKind::OutOfMemory)?;
        stream.regions = Some(Arc::default());
        Ok((stream, memory))
    }

    /// The client's end, over the memory that the server passed.
    pub(super) fn client(socket: Arc<Socket>, memory: OwnedFd, bytes: u64) -> Result<Self, NotShared> {
        let memory = Arc::new(SharedMemory::adopt(memory, bytes)?);
        let found = memory.len() as u64;
        Self::new(socket, &memory, true).ok_or(NotShared::Size { found, said: BYTES as u64 })
    }

    fn new(socket: Arc<Socket>, memory: &Arc<SharedMemory>, is_client: bool) -> Option<Self> {
        let (write, read) = if is_client { (UP, DOWN) } else { (DOWN, UP) };
        Some(Self {
            socket,
            writer: Writer::new(memory, write.0, write.1)?,
            reader: Reader::new(memory, read.0, read.1)?,
            mail: Mail { memory: memory.clone(), sent: AtomicU32::new(0), received: AtomicU32::new(0) },
            closed: AtomicBool::new(false),
            regions: None,
        })
    }

    fn post(&self, message: Local, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.socket.send(message, file)?;
        let sent = self.mail.sent.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        if let Some(count) = self.mail.count() {
            // Before any byte that is written to the ring from now on.
            count.store(sent, Ordering::Release);
        }
        Ok(())
    }

    /// The same, and waits a while for a socket that is full: many pieces may be shared at once, and the other side may be busy.
    fn post_in_time(&self, message: Local, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let until = Instant::now() + FULL;
        loop {
            match self.post(message, file) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                    Waiter::default()
                        .wait(std::iter::once(self.socket.interest(false, true)), Duration::from_millis(10));
                }
                other => return other,
            }
        }
    }

    /// Takes what has come over the socket.
    fn drain(&self) -> io::Result<()> {
        loop {
            match self.socket.receive() {
                Ok(Some((Local::Wake, None))) => {}
                Ok(Some((Local::Share { region, bytes, era }, Some(file)))) if self.regions.is_some() => {
                    if let Some(regions) = &self.regions {
                        regions.share(region, file, bytes, era);
                    }
                    self.mail.received.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Some((Local::Unshare { region }, None))) if self.regions.is_some() => {
                    if let Some(regions) = &self.regions {
                        regions.unshare(region);
                    }
                    self.mail.received.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Some(_)) => {
                    self.closed.store(true, Ordering::Release);
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a message that has no place on this socket",
                    ));
                }
                Ok(None) => {
                    self.closed.store(true, Ordering::Release);
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => {
                    self.closed.store(true, Ordering::Release);
                    return Err(e);
                }
            }
        }
    }

    /// Whether what the client shared before it wrote what now waits in the ring has yet to come.
    fn waits_for_mail(&self) -> io::Result<bool> {
        if self.regions.is_none() || !self.mail.is_due() {
            return Ok(false);
        }
        self.drain()?;
        Ok(self.mail.is_due())
    }

    fn wake_other(&self) -> io::Result<()> {
        match self.socket.send(Local::Wake, None) {
            // It has enough to wake it.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }
}

fn broken(nonsense: Nonsense) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, nonsense)
}

/// Glances at the ring that take about as long as one look at a socket does.
const GLANCES: u32 = 4;

/// How long the other side may take to read what was shared.
const FULL: Duration = Duration::from_secs(2);

impl Stream for ControlStream {
    fn recv(&self, first: &mut [u8], then: &mut [u8]) -> io::Result<usize> {
        if self.reader.has_more() {
            if self.waits_for_mail()? {
                if self.closed.load(Ordering::Acquire) {
                    // What these bytes are about will never come: the lane ends before them, and whoever wrote them asks again.
                    return Ok(0);
                }
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let n = self.reader.read(first, then);
            if self.reader.tell() {
                self.wake_other()?;
            }
            return Ok(n);
        }
        self.reader.expect();
        if self.closed.load(Ordering::Acquire) {
            return Ok(0);
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn watch(&self, looks: u32) -> u32 {
        for left in (0..looks).rev() {
            for _ in 0..GLANCES {
                self.reader.expect();
                std::hint::spin_loop();
                if self.reader.has_more() || self.closed.load(Ordering::Relaxed) {
                    return left;
                }
            }
        }
        0
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.closed.load(Ordering::Acquire) {
            // Why it has closed may wait here still: a client reads that before it finds the lane gone.
            let last_words = self.regions.is_none() && self.reader.has_more();
            return Err(if last_words { io::ErrorKind::WouldBlock } else { io::ErrorKind::BrokenPipe }.into());
        }
        let n = self.writer.write(bufs).map_err(broken)?;
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.writer.is_to_wake() {
            self.wake_other()?;
        }
        Ok(n)
    }

    fn interest(&self, _: bool, _: bool) -> Interest {
        // Whatever a side waits for, it is woken by a message; that the socket could take more wakes nobody.
        self.socket.interest(true, false)
    }

    fn arm(&self, read: bool, write: bool) -> bool {
        // On an error the driver looks, and finds it.
        (read && self.reader.arm() && !(self.regions.is_some() && self.mail.is_due()))
            || (write && self.writer.arm().unwrap_or(true))
            || (read && self.closed.load(Ordering::Acquire))
    }

    fn disarm(&self) {
        self.reader.disarm();
        self.writer.disarm();
        if let Err(error) = self.drain() {
            tracing::debug!(%error, "the socket beside the rings ended");
        }
    }

    fn ready(&self) -> Ready {
        // `disarm` has read what was there; what has come since wakes again.
        Ready::default()
    }

    fn is_over(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn finish(&self) {
        self.socket.finish();
    }

    fn regions(&self) -> Option<Arc<Regions>> {
        self.regions.clone()
    }

    fn can_share(&self) -> bool {
        self.regions.is_none()
    }

    fn share(&self, number: u64, bytes: &SharedBytes) -> io::Result<()> {
        let message = Local::Share { region: number, bytes: bytes.memory().len() as u64, era: bytes.era() };
        self.post_in_time(message, bytes.memory().fd())
    }

    fn unshare(&self, number: u64) -> io::Result<()> {
        self.post_in_time(Local::Unshare { region: number }, None)
    }
}

#[cfg(test)]
mod tests {
    //! A client that is killed inside a ring operation: whatever it has left behind there, the kernel closes its socket, and the
    //! server's end of the lane comes to its end by that, without waiting for what will never be written.

    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::link::wait;

    /// A server's end, and a client's, which is killed by dropping it.
    fn lane() -> (ControlStream, ControlStream) {
        let (client, server) = UnixStream::pair().unwrap();
        let (server, memory) = ControlStream::server(Arc::new(Socket::new(server).unwrap())).unwrap();
        let passed = memory.fd().unwrap().try_clone_to_owned().unwrap();
        let client = Arc::new(Socket::new(client).unwrap());
        (server, ControlStream::client(client, passed, memory.len() as u64).unwrap())
    }

    /// What still comes over a lane whose client is gone, as its driver finds it: looks, and waits only for what wakes it.
    fn rest(server: &ControlStream) -> Vec<u8> {
        let (mut came, mut buf) = (Vec::new(), [0; 4096]);
        for _ in 0..10 {
            match server.recv(&mut buf, &mut []) {
                Ok(0) => return came,
                Ok(n) => came.extend_from_slice(&buf[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !server.arm(true, false) {
                        assert!(wait::ready(server.socket.as_raw_fd()).read, "it would sleep for ever");
                    }
                    server.disarm();
                }
                // The lane is gone.
                Err(_) => return came,
            }
        }
        panic!("it goes round and round");
    }

    fn recv(server: &ControlStream) -> io::ErrorKind {
        server.recv(&mut [0; 64], &mut []).unwrap_err().kind()
    }

    fn send(stream: &ControlStream, bytes: &[u8]) {
        assert_eq!(stream.send(&[IoSlice::new(bytes)]).unwrap(), bytes.len());
    }

    #[test]
    fn a_client_killed_between_its_bytes_and_their_word() {
        // Less than a line, a line and more, and all that fits, behind a record that was whole.
        for bytes in [1, 100, CAPACITY - 1000] {
            let (server, client) = lane();
            send(&client, b"whole");
            client.writer.die_before_the_word(&vec![7; bytes]);
            drop(client);
            assert_eq!(rest(&server), b"whole", "{bytes} bytes of a record without a word");
            assert!(server.is_over());
        }
    }

    #[test]
    fn a_client_killed_before_it_wakes_who_sleeps() {
        let (server, client) = lane();
        assert_eq!(recv(&server), io::ErrorKind::WouldBlock);
        assert!(!server.arm(true, false), "the server sleeps");
        client.writer.write(&[IoSlice::new(b"nobody is told of this")]).unwrap();
        assert!(!wait::ready(server.socket.as_raw_fd()).read);
        drop(client);
        assert!(wait::ready(server.socket.as_raw_fd()).read, "the end of the socket wakes it");
        server.disarm();
        assert_eq!(rest(&server), b"nobody is told of this");
    }

    #[test]
    fn a_client_killed_while_it_sleeps() {
        // For an answer.
        let (server, client) = lane();
        assert!(!client.arm(true, false));
        drop(client);
        let answer = server.send(&[IoSlice::new(b"an answer to nobody")]);
        assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(rest(&server), b"");
        // For room.
        let (server, client) = lane();
        send(&client, &vec![7; CAPACITY - 8]);
        assert!(!client.arm(false, true));
        drop(client);
        // Whom it would tell of room is gone, which may end the lane before the last of what lies in the ring is read.
        let came = rest(&server);
        assert!(!came.is_empty() && came.iter().all(|&byte| byte == 7));
        server.disarm();
        assert!(server.is_over());
    }

    #[test]
    fn a_client_that_counted_mail_and_never_sent_it() {
        let (server, client) = lane();
        send(&client, b"before");
        assert_eq!(server.recv(&mut [0; 64], &mut []).unwrap(), 6);
        client.mail.count().unwrap().store(3, Ordering::Release);
        send(&client, b"about what was never shared");
        // It is not read before what it is about; nor does the server look for that again and again.
        assert_eq!(recv(&server), io::ErrorKind::WouldBlock);
        assert!(!server.arm(true, false));
        assert!(!wait::ready(server.socket.as_raw_fd()).read, "and it sleeps meanwhile");
        server.disarm();
        drop(client);
        assert_eq!(
            rest(&server),
            b"",
            "a request that names what never came would fail, though nothing is wrong with it"
        );
        assert!(server.is_over());
    }

    #[test]
    fn a_client_killed_in_the_middle_of_a_message() {
        use std::io::Write;
        let (server, client) = lane();
        client.socket.stream().write_all(&Local::Wake.encode()[..5]).unwrap();
        assert!(!server.arm(true, false));
        server.disarm();
        assert!(!server.is_over());
        drop(client);
        assert_eq!(rest(&server), b"");
        assert!(server.is_over());
    }
}
