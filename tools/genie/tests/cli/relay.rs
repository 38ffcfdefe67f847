//! A way to a server that can be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Passes connections on to a server, and breaks them when it is told to. The next ones pass again.
pub(crate) struct Relay {
    pub(crate) uri: String,
    passing: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    pub(crate) fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("tcp://{}", listener.local_addr().unwrap());
        let (server, passing) = (server.trim_start_matches("tcp://").to_owned(), Arc::<Mutex<_>>::default());
        let all: Arc<Mutex<Vec<TcpStream>>> = passing.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
                let pairs = [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server.try_clone().unwrap(), client.try_clone().unwrap()),
                ];
                all.lock().unwrap().extend([client, server]);
                for (from, to) in pairs {
                    std::thread::spawn(move || pass(from, to));
                }
            }
        });
        Self { uri, passing }
    }

    pub(crate) fn cut(&self) {
        for stream in self.passing.lock().unwrap().drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Until one of the two ends.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    let mut buf = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buf) {
        if to.write_all(&buf[..n]).is_err() {
            break;
        }
    }
    // The other end may have done so already.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
