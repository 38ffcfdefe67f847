//! A server's lanes as they are accepted: sockets, until they turn out to be bulk lanes.

use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::sync::Arc;

use super::crew::{Crew, Host};
use crate::auth::Channel;
use crate::link::host::BulkHost;
use crate::link::tcp::{self, Path};
use crate::link::wait::Interest;
use crate::link::{Ready, Stream};

/// A lane's socket, and the threads that would serve it as a bulk lane.
struct Accepted {
    socket: TcpStream,
    host: Host,
}

/// Makes a lane of a socket that was just accepted.
///
/// # Errors
/// The system's.
pub(crate) fn accepted(socket: TcpStream, crew: &Arc<Crew>) -> io::Result<Arc<dyn Stream>> {
    let socket = tcp::accepted(socket)?;
    let host = Host { crew: crew.clone(), same_host: tcp::path_of(&socket) == Path::SameHost };
    Ok(Arc::new(Accepted { socket, host }))
}

impl Stream for Accepted {
    fn recv(&self, first: &mut [u8], then: &mut [u8]) -> io::Result<usize> {
        self.socket.recv(first, then)
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        Stream::send(&self.socket, bufs)
    }

    fn takes_pages(&self) -> bool {
        self.host.same_host && tcp::ignores_sigpipe()
    }

    fn interest(&self, read: bool, write: bool) -> Interest {
        self.socket.interest(read, write)
    }

    fn ready(&self) -> Ready {
        self.socket.ready()
    }

    fn channel(&self) -> Channel {
        self.socket.channel()
    }

    fn host(&self) -> Option<&dyn BulkHost> {
        Some(&self.host)
    }

    fn finish(&self) {
        self.socket.finish();
    }
}
