//! What this process has taken of the machine so far.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time of all its threads, those that have ended too.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Bytes of memory that are in place; `None` where the system does not say.
pub fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_time_and_memory() {
        let before = cpu_time();
        let mut held = vec![1u8; 32 << 20];
        while cpu_time() <= before {
            held.iter_mut().for_each(|b| *b = std::hint::black_box(b.wrapping_mul(3)));
        }
        if cfg!(target_os = "linux") {
            assert!(resident_bytes().is_some_and(|n| n >= held.len() as u64));
        }
    }
}
