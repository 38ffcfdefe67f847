//! What the benches share: a server on threads of its own, and raw sockets as the floor.
//!
//! The floors run in the same process, on a thread of their own, under the congestion control that the link picked, polling
//! where Genie polls: what is left between the two is Genie's own work.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use genie_executor::device::select;
use genie_executor::{Config, Executor};
use genie_transport::Uri;
use genie_transport::client::ConnectOptions;
use genie_transport::client::blocking::Session;
use genie_transport::link::tcp::{Path, tune};
use genie_transport::link::{Listener, Server, io_threads};
use socket2::SockRef;

/// Any failure to set a bench up.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A session on a server that lives in this process.
///
/// # Errors
/// Whatever kept the server from starting, or the session from opening.
pub fn session() -> Result<Session, Error> {
    let executor = Arc::new(Executor::new(Config::new(select::open("cpu", select::Limits::default())?, 1))?);
    let (tell, uri) = std::sync::mpsc::channel();
    std::thread::spawn(move || -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(io_threads()).enable_all().build()?;
        runtime.block_on(async {
            let listener = Listener::bind(&Uri::Tcp { host: Ipv4Addr::LOCALHOST.to_string(), port: 0 })?;
            tell.send(listener.uri()?)?;
            Server::new(executor).run(listener).await;
            Ok(())
        })
    });
    let uri = uri.recv_timeout(Duration::from_secs(30))?;
    Ok(Session::connect(&uri, ConnectOptions::default())?)
}

/// A raw socket whose other end sends back every `bytes` bytes it gets; both ends poll.
///
/// # Errors
/// The system's.
pub fn echo_floor(bytes: usize) -> io::Result<TcpStream> {
    let (near, mut far) = pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    std::thread::spawn(move || {
        let mut buf = vec![0; bytes];
        while poll_read(&mut far, &mut buf).is_ok() && poll_write(&mut far, &buf).is_ok() {}
    });
    Ok(near)
}

/// A raw socket whose other end reads into one buffer of `bytes` bytes, and answers each with one byte.
///
/// # Errors
/// The system's.
pub fn put_floor(bytes: usize) -> io::Result<TcpStream> {
    let (near, mut far) = pair()?;
    std::thread::spawn(move || {
        let mut buf = vec![0; bytes];
        while far.read_exact(&mut buf).is_ok() && far.write_all(&[1]).is_ok() {}
    });
    Ok(near)
}

/// Reads a whole buffer, polling.
///
/// # Errors
/// The system's; `UnexpectedEof` when the other end has closed.
pub fn poll_read(socket: &mut TcpStream, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match socket.read(buf) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => buf = &mut buf[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes a whole buffer, polling.
///
/// # Errors
/// The system's.
pub fn poll_write(socket: &mut TcpStream, mut buf: &[u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match socket.write(buf) {
            Ok(n) => buf = &buf[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    for socket in [&near, &far] {
        tune(&SockRef::from(socket), Path::SameHost)?;
    }
    Ok((near, far))
}
