//! Two processes that hand a message to and fro through memory that both map, each watching the other's counter: what a link over
//! shared memory stands on.
//!
//! The other process lasts as long as its measurement. Each end writes a message, then its counter, which lies on a cache line of
//! its own, as do the messages: nothing is checked, nothing is found by name, nobody sleeps.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use genie_transport::memory::SharedMemory;

const ASKED: usize = 0;
const ANSWERED: usize = 128;
const QUESTION: usize = 256;

/// In place of a turn's number: there will be no more.
const OVER: u32 = u32::MAX;

/// Looks between two words to the scheduler, and between two questions whether the other process is still there: on one core, it
/// has to run.
const LOOKS: u32 = 10_000;

/// Round trips of `bytes` bytes for `time`; `each` gets their durations.
pub(crate) fn spin(bytes: usize, time: Duration, mut each: impl FnMut(Duration)) -> Result<()> {
    let near = Mailboxes::new(SharedMemory::new(whole(bytes))?, bytes);
    let mut far = Far::start(&near.memory, bytes)?;
    let (sent, mut back) = (vec![7; bytes], vec![0; bytes]);
    let until = Instant::now() + time;
    for turn in 1..OVER {
        let began = Instant::now();
        near.give(QUESTION, &sent, ASKED, turn);
        near.wait(ANSWERED, turn, || far.is_there())?;
        near.memory.read(near.answer(), &mut back);
        let ended = Instant::now();
        // The first waits for the other process to begin.
        if turn > 1 {
            each(ended - began);
            if ended >= until {
                break;
            }
        }
    }
    near.counter(ASKED)?.store(OVER, Ordering::Release);
    far.join()?;
    if back != sent {
        bail!("the floor's message came back changed");
    }
    Ok(())
}

/// The other process.
pub(super) fn serve(file: &Path, bytes: usize) -> Result<()> {
    let file = std::fs::File::options().read(true).write(true).open(file).context("opening the floor's memory")?;
    let far = Mailboxes::new(SharedMemory::adopt(OwnedFd::from(file), whole(bytes) as u64)?, bytes);
    answer(&far, bytes, {
        let parent = std::os::unix::process::parent_id();
        move || std::os::unix::process::parent_id() == parent
    })
}

/// Gives back what comes, until there will be no more or nobody is there.
fn answer(far: &Mailboxes, bytes: usize, mut is_there: impl FnMut() -> bool) -> Result<()> {
    let mut message = vec![0; bytes];
    for turn in 1..OVER {
        if far.wait(ASKED, turn, &mut is_there)? == OVER {
            break;
        }
        far.memory.read(QUESTION, &mut message);
        far.give(far.answer(), &message, ANSWERED, turn);
    }
    Ok(())
}

fn lines(bytes: usize) -> usize {
    bytes.next_multiple_of(128)
}

fn whole(bytes: usize) -> usize {
    (QUESTION + 2 * lines(bytes)).next_multiple_of(4096)
}

/// The counters and messages of both ends.
struct Mailboxes {
    memory: SharedMemory,
    bytes: usize,
}

impl Mailboxes {
    fn new(memory: SharedMemory, bytes: usize) -> Self {
        Self { memory, bytes }
    }

    fn answer(&self) -> usize {
        QUESTION + lines(self.bytes)
    }

    fn counter(&self, at: usize) -> Result<&AtomicU32> {
        self.memory.counter(at).context("the floor's memory is too small")
    }

    fn give(&self, at: usize, message: &[u8], counter: usize, turn: u32) {
        self.memory.write(at, message);
        if let Some(counter) = self.memory.counter(counter) {
            counter.store(turn, Ordering::Release);
        }
    }

    /// Returns when the counter has this turn's number, or [`OVER`].
    fn wait(&self, at: usize, turn: u32, mut is_there: impl FnMut() -> bool) -> Result<u32> {
        let counter = self.counter(at)?;
        let mut looks = 0u32;
        loop {
            let found = counter.load(Ordering::Acquire);
            if found == turn || found == OVER {
                return Ok(found);
            }
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(LOOKS) {
                if !is_there() {
                    bail!("the floor's other process is gone");
                }
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

/// The other process, as this one sees it; it ends with this value.
struct Far(Child);

impl Far {
    fn start(memory: &SharedMemory, bytes: usize) -> Result<Self> {
        let fd = memory.fd().context("the floor's memory has no file")?.as_raw_fd();
        // By a name that lasts as long as this process: the descriptor itself is closed in children.
        let file: OsString = format!("/proc/{}/fd/{fd}", std::process::id()).into();
        let me = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(me);
        command.arg("floor").arg("--memory").arg(file).arg("--bytes").arg(bytes.to_string()).stdin(Stdio::null());
        Ok(Self(command.spawn().context("starting the floor's process")?))
    }

    fn is_there(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    fn join(&mut self) -> Result<()> {
        let status = self.0.wait()?;
        if !status.success() {
            bail!("the floor's process ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        // It is gone already if this fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two ends, here in one process, over two mappings of the memory.
    #[test]
    fn a_message_comes_back() {
        let near = Mailboxes::new(SharedMemory::new(whole(100)).unwrap(), 100);
        let file = near.memory.fd().unwrap().try_clone_to_owned().unwrap();
        let far = Mailboxes::new(SharedMemory::adopt(file, whole(100) as u64).unwrap(), 100);
        std::thread::scope(|scope| {
            scope.spawn(|| answer(&far, 100, || true).unwrap());
            let mut back = [0; 100];
            for turn in 1..100 {
                near.give(QUESTION, &[turn as u8; 100], ASKED, turn);
                near.wait(ANSWERED, turn, || true).unwrap();
                near.memory.read(near.answer(), &mut back);
                assert_eq!(back, [turn as u8; 100]);
            }
            near.counter(ASKED).unwrap().store(OVER, Ordering::Release);
        });
        let gone = near.wait(ANSWERED, 1000, || false);
        assert!(gone.unwrap_err().to_string().contains("gone"));
    }
}
