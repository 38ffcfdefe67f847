//! What a transport stands on, without a transport: plain sockets and plain shared memory between two processes.
//!
//! `raw LINK` measures `tcp-busy`, `tcp-blocking`, `shm` or `memcpy` and prints a report as tools/peers/harness.py describes it;
//! `raw serve LINK ...` is the other end, which ends with its standard input.

mod measure;
mod memory;
mod sockets;

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["tcp-busy"] => sockets::measure(true),
        ["tcp-blocking"] => sockets::measure(false),
        ["shm"] => memory::measure(),
        ["memcpy"] => memory::copies(),
        ["serve", "tcp"] => sockets::serve(),
        ["serve", "shm", path] => memory::serve(path),
        _ => Err("usage: raw tcp-busy|tcp-blocking|shm|memcpy".into()),
    }
}

/// The other end's process; it ends with this value.
struct OtherEnd {
    child: Child,
    /// What it said when it was ready.
    ready: String,
}

impl OtherEnd {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg("serve").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut ready = String::new();
        if let Some(out) = &mut child.stdout {
            let mut byte = [0];
            while out.read(&mut byte)? == 1 && byte != *b"\n" {
                ready.push(char::from(byte[0]));
            }
        }
        Ok(Self { child, ready })
    }
}

impl Drop for OtherEnd {
    fn drop(&mut self) {
        // It is gone already if this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says that this end is ready, and has it end with its parent.
fn ready(word: &str) -> Result<()> {
    println!("{word}");
    std::io::stdout().flush()?;
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    Ok(())
}
