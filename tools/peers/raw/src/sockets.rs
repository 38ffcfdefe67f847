//! One TCP connection. A put is `SIZE` bytes and a byte back when all of them are in the other's memory.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::measure::{self, DEPTHS, ECHO_BYTES, PUT_BYTES};
use crate::{OtherEnd, Result, ready};

/// Busy: both ends ask again and again instead of sleeping in the kernel.
pub(crate) fn measure(busy: bool) -> Result<()> {
    let server = OtherEnd::start(&["tcp"])?;
    let connect = |size: usize, busy: bool| -> Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", server.ready.parse()?))?;
        stream.set_nodelay(true)?;
        stream.write_all(&[u64::from(busy), size as u64].map(u64::to_le_bytes).concat())?;
        stream.set_nonblocking(busy)?;
        Ok(stream)
    };
    let mut stream = connect(ECHO_BYTES, busy)?;
    let (sent, mut back) = ([7; ECHO_BYTES], [0; ECHO_BYTES]);
    let echo = measure::echo(|| {
        drain(&mut stream, &sent)?;
        Ok(fill(&mut stream, &mut back)?)
    })?;
    // The other end serves one connection at a time.
    drop(stream);
    let mut puts = Vec::new();
    for size in PUT_BYTES {
        for depth in DEPTHS {
            // Large transfers are not polled for: a poller takes the core that the kernel moves them with.
            let mut stream = connect(size, false)?;
            let sources = vec![vec![7; size]; depth];
            puts.push(measure::put(size, depth, |count| {
                let mut landed = [0];
                for i in 0..count {
                    if i >= depth {
                        fill(&mut stream, &mut landed)?;
                    }
                    drain(&mut stream, &sources[i % depth])?;
                }
                (0..depth.min(count)).try_for_each(|_| fill(&mut stream, &mut landed))?;
                Ok(())
            })?);
        }
    }
    measure::report(Some(&echo), &puts);
    Ok(())
}

pub(crate) fn serve() -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    ready(&listener.local_addr()?.port().to_string())?;
    loop {
        // One at a time: nothing else runs while something is measured. It ends when its client closes it.
        let _ = answer(listener.accept()?.0);
    }
}

fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut numbers = [0; 16];
    stream.read_exact(&mut numbers)?;
    let busy = numbers[0] != 0;
    let size = usize::from_le_bytes(numbers[8..].try_into()?);
    stream.set_nonblocking(busy)?;
    let mut buffers = vec![vec![0; size]; if size == ECHO_BYTES { 1 } else { DEPTHS[DEPTHS.len() - 1] }];
    for i in 0.. {
        let slot = i % buffers.len();
        fill(&mut stream, &mut buffers[slot])?;
        drain(&mut stream, if size == ECHO_BYTES { &buffers[slot] } else { &[1] })?;
    }
    Ok(())
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
