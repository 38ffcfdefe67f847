//! How busy a GPU is over a while.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{InventoryError, refused, start};

/// How busy a GPU was at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was asked.
    pub at: Instant,
    /// Percent of the moments before in which a kernel ran on its multiprocessors.
    pub sm: u32,
    /// Bytes of its memory that somebody has.
    pub memory_bytes: u64,
}

/// How busy a GPU was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Utilisation {
    /// What it said, in the order of time.
    pub samples: Vec<Sample>,
    /// How often it did not answer.
    pub failures: u64,
}

impl Utilisation {
    /// Percent of the time in which a kernel ran; none without a sample.
    pub fn average(&self) -> Option<f64> {
        let sum: u64 = self.samples.iter().map(|sample| u64::from(sample.sm)).sum();
        (!self.samples.is_empty()).then(|| sum as f64 / self.samples.len() as f64)
    }
}

/// Takes samples on a thread of its own until it is stopped or dropped.
///
/// The GPU keeps a value over a sixth of a second to a second: a shorter period sees the same one again.
#[derive(Debug)]
pub struct UtilisationSampler {
    stop: Sender<()>,
    thread: JoinHandle<()>,
    seen: Arc<Mutex<Utilisation>>,
}

/// Percent, and bytes of memory.
type Answer = Result<(u32, u64), InventoryError>;

impl UtilisationSampler {
    /// Begins, once a period, with the GPU of this UUID.
    ///
    /// # Errors
    /// [`InventoryError`]: also where the GPU does not tell how busy it is.
    pub fn start(uuid: &str, period: Duration) -> Result<Self, InventoryError> {
        let nvml = start()?;
        let uuid = uuid.to_owned();
        let ask = move || {
            let device = nvml.device_by_uuid(uuid.as_str()).map_err(refused("looking for a GPU"))?;
            let rates = device.utilization_rates().map_err(refused("asking how busy a GPU is"))?;
            let memory = device.memory_info().map_err(refused("asking for a GPU's memory"))?;
            Ok((rates.gpu, memory.used))
        };
        ask()?;
        Self::with(ask, period)
    }

    fn with(ask: impl Fn() -> Answer + Send + 'static, period: Duration) -> Result<Self, InventoryError> {
        let (stop, stopped) = mpsc::channel();
        let seen = Arc::new(Mutex::new(Utilisation::default()));
        let kept = seen.clone();
        let sample = move || {
            loop {
                let answer = ask();
                let mut seen = kept.lock().unwrap_or_else(PoisonError::into_inner);
                match answer {
                    Ok((percent, memory_bytes)) => {
                        seen.samples.push(Sample { at: Instant::now(), sm: percent.min(100), memory_bytes });
                    }
                    Err(_) => seen.failures += 1,
                }
                drop(seen);
                if !matches!(stopped.recv_timeout(period), Err(RecvTimeoutError::Timeout)) {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("gpu-utilisation".to_owned()).spawn(sample);
        let thread = thread.map_err(|error| InventoryError::NoThread { reason: error.to_string() })?;
        Ok(Self { stop, thread, seen })
    }

    /// What was seen so far.
    pub fn seen(&self) -> Utilisation {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends, and says what was seen.
    pub fn stop(self) -> Utilisation {
        let Self { stop, thread, seen } = self;
        drop(stop);
        // A thread that panicked has seen what it saw before.
        let _ = thread.join();
        std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn the_average_is_of_samples_and_failures_are_counted() {
        let (asked, heard) = mpsc::channel();
        let turn = AtomicU32::new(0);
        let ask = move || {
            let now = turn.fetch_add(1, Ordering::Relaxed);
            let _ = asked.send(now);
            match now {
                0 => Ok((20, 7)),
                1 => Err(InventoryError::Refused { during: "asking", reason: "busy".to_owned() }),
                _ => Ok((140, 9)),
            }
        };
        let sampler = UtilisationSampler::with(ask, Duration::from_millis(1)).expect("a thread");
        while heard.recv().expect("it goes on until it is stopped") < 3 {}
        let so_far = sampler.seen();
        let all = sampler.stop();
        assert!(so_far.samples.len() >= 2 && all.samples.starts_with(&so_far.samples), "{so_far:?} {all:?}");
        assert_eq!(all.failures, 1);
        assert_eq!((all.samples[0].sm, all.samples[0].memory_bytes), (20, 7));
        assert_eq!((all.samples[1].sm, all.samples[1].memory_bytes), (100, 9), "percents end at 100");
        assert!(all.samples.is_sorted_by_key(|sample| sample.at));
        let count = all.samples.len() as f64;
        assert_eq!(all.average(), Some((20.0 + 100.0 * (count - 1.0)) / count));
    }

    #[test]
    fn stopping_does_not_wait_for_the_period() {
        let started = Instant::now();
        let sampler = UtilisationSampler::with(|| Ok((100, 0)), Duration::from_secs(3600)).expect("a thread");
        let seen = sampler.stop();
        assert_eq!((seen.average(), seen.samples.len(), seen.failures), (Some(100.0), 1, 0));
        assert!(started.elapsed() < Duration::from_secs(600));
    }

    #[test]
    fn without_an_answer_there_is_no_average() {
        let silent = || Err(InventoryError::Refused { during: "asking", reason: "gone".to_owned() });
        let seen = UtilisationSampler::with(silent, Duration::from_secs(3600)).expect("a thread").stop();
        assert_eq!((seen.average(), seen.failures), (None, 1));
    }
}
