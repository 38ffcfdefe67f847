//! How an endpoint ends: last words, error, drain.

use std::io;
use std::time::{Duration, Instant};

use super::{Broken, Endpoint};

/// How long last words and the flushing of a queue may take.
const FAREWELL: Duration = Duration::from_millis(100);
const FLUSH: Duration = Duration::from_secs(1);
const SETTLED: Duration = Duration::from_millis(5);
/// A queue that gives nothing back for so long has nothing more: the device works on none of it, since the queue pair is down.
const SILENT: Duration = Duration::from_millis(100);
/// Looks at the queue before whoever waits for it leaves the core to others, and for how long between the next ones.
const LOOKS: u32 = 64;
const REST: Duration = Duration::from_micros(200);

impl Endpoint {
    /// Ends the connection, and waits until the device is done with everything that was posted, and refuses whatever the peer's
    /// may still ask for.
    pub(in crate::link::rdma) fn shut(&mut self) {
        if std::mem::replace(&mut self.shut, true) {
            return;
        }
        // What was said last goes out, if the peer still takes it.
        let mut looks = 0;
        let until = Instant::now() + FAREWELL;
        if self.end().is_ok() {
            while self.broken.is_none() && self.retired < self.posted && Instant::now() < until {
                if self.id.is_gone() || self.poll().is_err() {
                    break;
                }
                rest(&mut looks);
            }
        }
        self.id.disconnect();
        if self.qp.fail().is_err() {
            return;
        }
        let until = Instant::now() + FLUSH;
        let mut quiet = Instant::now();
        while self.receives > 0 || self.retired < self.posted {
            self.inbox.clear();
            let now = Instant::now();
            if self.poll().unwrap_or(false) {
                quiet = now;
            }
            // Requests that succeeded without telling of it are among the last: nobody will tell of them.
            if now >= until.min(quiet + SILENT) || (self.receives == 0 && now >= quiet + SETTLED) {
                break;
            }
            rest(&mut looks);
        }
        self.broken.get_or_insert(Broken { sort: io::ErrorKind::NotConnected, why: "the lane was closed".to_owned() });
    }
}

fn rest(looks: &mut u32) {
    *looks += 1;
    if *looks < LOOKS {
        std::thread::yield_now();
    } else {
        std::thread::sleep(REST);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // The fields follow: first the queue pair goes, then what it could reach.
        self.shut();
    }
}
