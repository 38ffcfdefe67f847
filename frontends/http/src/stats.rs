//! What is counted, and how Prometheus is told.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

/// Requests so far.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    runs: Runs,
    /// By endpoint and status.
    answers: BTreeMap<(&'static str, u16), u64>,
    times: BTreeMap<&'static str, Times>,
}

/// Requests that run something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Runs {
    pub(crate) total_requests: u64,
    pub(crate) successful: u64,
    pub(crate) failed: u64,
}

/// Upper bounds of the histogram, in seconds.
const BOUNDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

#[derive(Debug, Default)]
struct Times {
    /// Each counts those within its bound that are in none before.
    within: [u64; BOUNDS.len()],
    count: u64,
    seconds: f64,
}

impl Stats {
    /// An answer was given.
    pub(crate) fn answered(&self, endpoint: &'static str, runs: bool, status: u16, took: Duration) {
        let mut counted = self.lock();
        if runs {
            let good = (200..300).contains(&status);
            counted.runs.total_requests += 1;
            counted.runs.successful += u64::from(good);
            counted.runs.failed += u64::from(!good);
        }
        *counted.answers.entry((endpoint, status)).or_default() += 1;
        let times = counted.times.entry(endpoint).or_default();
        let seconds = took.as_secs_f64();
        times.count += 1;
        times.seconds += seconds;
        if let Some(within) = BOUNDS.iter().position(|bound| seconds <= *bound).and_then(|i| times.within.get_mut(i)) {
            *within += 1;
        }
    }

    pub(crate) fn runs(&self) -> Runs {
        self.lock().runs
    }

    /// As Prometheus reads it: these, `gauges` of the door, and the server's own counters.
    pub(crate) fn render(&self, gauges: &[(&str, u64)], server: &[(String, u64)]) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let mut line = |line: std::fmt::Arguments<'_>| {
            let _ = text.write_fmt(format_args!("{line}\n"));
        };
        let counted = self.lock();
        line(format_args!("# TYPE genie_http_requests_total counter"));
        for ((endpoint, status), count) in &counted.answers {
            line(format_args!("genie_http_requests_total{{endpoint=\"{endpoint}\",status=\"{status}\"}} {count}"));
        }
        line(format_args!("# TYPE genie_http_request_seconds histogram"));
        for (endpoint, times) in &counted.times {
            let mut so_far = 0;
            for (bound, within) in BOUNDS.iter().zip(times.within) {
                so_far += within;
                line(format_args!(
                    "genie_http_request_seconds_bucket{{endpoint=\"{endpoint}\",le=\"{bound}\"}} {so_far}"
                ));
            }
            let Times { count, seconds, .. } = times;
            line(format_args!("genie_http_request_seconds_bucket{{endpoint=\"{endpoint}\",le=\"+Inf\"}} {count}"));
            line(format_args!("genie_http_request_seconds_sum{{endpoint=\"{endpoint}\"}} {seconds}"));
            line(format_args!("genie_http_request_seconds_count{{endpoint=\"{endpoint}\"}} {count}"));
        }
        for (name, value) in gauges {
            line(format_args!("# TYPE {name} gauge\n{name} {value}"));
        }
        for (name, value) in server {
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            line(format_args!("# TYPE {name} {kind}\n{name} {value}"));
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_and_told() {
        let stats = Stats::default();
        stats.answered("/execute", true, 200, Duration::from_millis(3));
        stats.answered("/execute", true, 422, Duration::from_secs(99));
        stats.answered("/health", false, 200, Duration::from_micros(10));
        assert_eq!(stats.runs(), Runs { total_requests: 2, successful: 1, failed: 1 });
        let text = stats.render(&[("genie_http_connections", 4)], &[("genie_runs_total".to_owned(), 7)]);
        for line in [
            "genie_http_requests_total{endpoint=\"/execute\",status=\"422\"} 1",
            "genie_http_request_seconds_bucket{endpoint=\"/execute\",le=\"0.0025\"} 0",
            "genie_http_request_seconds_bucket{endpoint=\"/execute\",le=\"0.005\"} 1",
            "genie_http_request_seconds_bucket{endpoint=\"/execute\",le=\"+Inf\"} 2",
            "genie_http_request_seconds_count{endpoint=\"/health\"} 1",
            "# TYPE genie_http_connections gauge",
            "# TYPE genie_runs_total counter",
            "genie_runs_total 7",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
    }
}
