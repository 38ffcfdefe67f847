//! A row of `genie bench transfer`: what was asked, what was measured, and what it is compared with.

use serde::Serialize;

use super::load::Outcome;
use super::usage::Spent;
use super::{median, rounded};
use crate::say;

/// One row. As JSON and CSV its fields have these names; a time's name ends with its unit.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Row {
    pub(super) op: &'static str,
    /// The link's name, and the server's address.
    pub(super) link: String,
    pub(super) uri: String,
    /// Of one message: a tensor, or an echo.
    pub(super) bytes: u64,
    pub(super) depth: u32,
    pub(super) batch: u32,
    pub(super) lanes: u32,
    pub(super) threads: u32,
    pub(super) memory: &'static str,
    pub(super) integrity: &'static str,
    pub(super) spin_us: u64,
    /// Requests a second that were asked for, by all threads; null in a closed loop.
    pub(super) rate: Option<f64>,
    /// Requests that were answered; each has `batch` messages.
    pub(super) requests: u64,
    /// Requests that were due and could not begin.
    pub(super) unstarted: u64,
    pub(super) seconds: f64,
    /// Of all turns together.
    pub(super) messages_s: f64,
    /// The median of the turns.
    pub(super) gb_s: f64,
    pub(super) mean_us: f64,
    pub(super) p50_us: f64,
    pub(super) p90_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
    /// The first session's connect, handshake and opening included.
    pub(super) connect_us: f64,
    /// The first request of this row: memory is touched, or registered, for the first time. Not among the others.
    pub(super) first_us: f64,
    /// Of that, what registering memory with a device took this process; null over links that register none.
    pub(super) first_registering_us: Option<f64>,
    pub(super) client_cpu_s_gb: f64,
    pub(super) server_cpu_s_gb: Option<f64>,
    /// Payload bytes copied in user space at both ends, for each byte that was moved.
    pub(super) copied_per_byte: Option<f64>,
    /// Of the time that copies to and from the server's GPU took, the part in which the network was busy; null where it does not trace.
    pub(super) copy_overlap: Option<f64>,
    /// Percent of the time in which the server's GPU ran a kernel; null where nobody tells.
    pub(super) avg_sm: Option<f64>,
    /// What the floor is; null where there is none.
    pub(super) floor: Option<String>,
    pub(super) floor_p50_us: Option<f64>,
    /// The median of the turns.
    pub(super) floor_gb_s: Option<f64>,
    /// Echo: p50 by the floor's (lower is better). Else the median of the turns' ratios, GB/s by the floor's (higher is better).
    pub(super) ratio: Option<f64>,
}

impl Row {
    /// Fills in what was measured, in all and in each turn.
    pub(super) fn measured(&mut self, outcome: &Outcome, turns: &[f64], spent: &Spent) {
        let seconds = outcome.took.as_secs_f64();
        let messages = outcome.requests * u64::from(self.batch);
        let gigabytes = (messages * self.bytes) as f64 / 1e9;
        let us = |quantile| rounded(outcome.latencies.value_at_quantile(quantile) as f64 / 1e3);
        self.requests = outcome.requests;
        self.unstarted = outcome.unstarted;
        self.seconds = (seconds * 1e6).round() / 1e6;
        self.messages_s = rounded(messages as f64 / seconds);
        // As the floor's. A small message's rate has its digits further behind.
        self.gb_s = (median(turns) * 1e6).round() / 1e6;
        self.mean_us = rounded(outcome.latencies.mean() / 1e3);
        self.max_us = rounded(outcome.latencies.max() as f64 / 1e3);
        (self.p50_us, self.p90_us, self.p99_us, self.p999_us) = (us(0.5), us(0.9), us(0.99), us(0.999));
        self.client_cpu_s_gb = rounded(spent.client_cpu.as_secs_f64() / gigabytes);
        self.server_cpu_s_gb = spent.server_cpu.map(|time| rounded(time.as_secs_f64() / gigabytes));
        self.copy_overlap = spent.copy_overlap().map(rounded);
        self.copied_per_byte = spent.copied.map(|bytes| rounded(bytes as f64 / (gigabytes * 1e9)));
    }

    /// CPU seconds a GB of both ends.
    pub(super) fn cpu_s_gb(&self) -> Option<f64> {
        self.server_cpu_s_gb.map(|server| self.client_cpu_s_gb + server)
    }
}

/// The table for people.
pub(super) fn table(rows: &[Row]) -> String {
    let some = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), digits);
    let floor = |row: &Row| match (row.floor_p50_us, row.floor_gb_s) {
        (Some(us), _) => format!("{} us", digits(us)),
        (None, Some(rate)) => format!("{} GB/s", digits(rate)),
        (None, None) => "-".to_owned(),
    };
    let header = [
        "link", "op", "size", "msg/s", "GB/s", "p50 us", "p90", "p99", "p99.9", "max", "first", "CPU s/GB", "copied/B",
        "floor", "ratio",
    ];
    let cells = rows.iter().map(|row| {
        let times = [row.p50_us, row.p90_us, row.p99_us, row.p999_us, row.max_us, row.first_us].map(digits);
        let [p50, p90, p99, p999, max, first] = times;
        let (link, op, size) = (row.link.clone(), row.op.to_owned(), size(row.bytes));
        let (messages, rate) = (digits(row.messages_s), digits(row.gb_s));
        let (cpu, copied) = (some(row.cpu_s_gb()), some(row.copied_per_byte));
        let ratio = some(row.ratio);
        [link, op, size, messages, rate, p50, p90, p99, p999, max, first, cpu, copied, floor(row), ratio]
    });
    format!("{}\n{}", say::table(header, cells), legend(rows))
}

/// What all rows have in common, and what their columns say.
fn legend(rows: &[Row]) -> String {
    let Some(row) = rows.first() else { return String::new() };
    let mut lines = vec![format!(
        "depth {}, batch {}, lanes {}, threads {}, {} memory, integrity {}, polling {} us",
        row.depth, row.batch, row.lanes, row.threads, row.memory, row.integrity, row.spin_us
    )];
    if let Some(rate) = rows.iter().find_map(|r| r.rate) {
        let unstarted: u64 = rows.iter().map(|r| r.unstarted).sum();
        lines.push(format!(
            "open loop: {rate} requests/s, latency from when each was meant to begin; {unstarted} could not begin in time"
        ));
    }
    let mut links: Vec<(&str, f64)> = rows.iter().map(|r| (r.link.as_str(), r.connect_us)).collect();
    links.dedup();
    let connects: Vec<_> = links.iter().map(|(link, us)| format!("{link} {} us", digits(*us))).collect();
    lines.push(format!("first use: connect {}; the first request of a size is in the table", connects.join(", ")));
    let registering: Vec<_> = rows
        .iter()
        .filter_map(|r| Some(format!("{} {} {} us", r.op, size(r.bytes), digits(r.first_registering_us?))))
        .collect();
    if !registering.is_empty() {
        lines.push(format!("of the first requests, registering memory: {}", registering.join(", ")));
    }
    let overlaps: Vec<_> = rows
        .iter()
        .filter_map(|r| Some(format!("{} {} {} {:.0} %", r.link, r.op, size(r.bytes), r.copy_overlap? * 100.0)))
        .collect();
    if !overlaps.is_empty() {
        lines.push(format!("copies to and from the GPU while the network was busy: {}", overlaps.join(", ")));
    }
    let busy: Vec<_> =
        rows.iter().filter_map(|r| Some(format!("{} {} {:.0} %", r.op, size(r.bytes), r.avg_sm?))).collect();
    if !busy.is_empty() {
        lines.push(format!("avg_sm, a kernel ran on the GPU: {}", busy.join(", ")));
    }
    let mut floors: Vec<_> =
        rows.iter().filter_map(|r| Some(format!("{} {}: {}", r.link, r.op, r.floor.as_ref()?))).collect();
    floors.dedup();
    if !floors.is_empty() {
        lines.push(format!("floors, in turns with it: {}", floors.join("; ")));
    }
    lines.join("\n")
}

/// A size as one writes it: 4K.
pub(super) fn size(bytes: u64) -> String {
    let units = [(30, "G"), (20, "M"), (10, "K")];
    match units.into_iter().find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift)) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// Three digits, more only before the point.
pub(super) fn digits(value: f64) -> String {
    match value.abs() {
        v if v == 0.0 || v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::record;
    use super::*;

    fn outcome() -> Outcome {
        let mut outcome = Outcome::empty().unwrap();
        (outcome.requests, outcome.took) = (1000, Duration::from_secs(2));
        (1..=1000).for_each(|us| record(&mut outcome.latencies, Duration::from_micros(us)));
        outcome
    }

    fn row() -> Row {
        let mut row = Row { op: "put", link: "tcp".into(), bytes: 1_000_000, batch: 2, ..Row::default() };
        let spent = Spent {
            client_cpu: Duration::from_secs(1),
            server_cpu: Some(Duration::from_secs(3)),
            copied: Some(4_000_000_000),
            copies: Some((Duration::from_secs(8), Duration::from_secs(7))),
        };
        row.measured(&outcome(), &[0.5, 1.0, 7.0], &spent);
        row
    }

    #[test]
    fn numbers_follow_from_what_was_measured() {
        let row = row();
        assert_eq!((row.messages_s, row.gb_s, row.copied_per_byte), (1000.0, 1.0, Some(2.0)));
        assert_eq!(row.copy_overlap, Some(0.875));
        assert_eq!((row.client_cpu_s_gb, row.server_cpu_s_gb, row.cpu_s_gb()), (0.5, Some(1.5), Some(2.0)));
        let near = |a: f64, b: f64| (a - b).abs() <= b / 500.0;
        assert!(near(row.p50_us, 500.0) && near(row.p999_us, 999.0) && near(row.max_us, 1000.0), "{row:?}");
        assert!(row.p50_us <= row.p90_us && row.p90_us <= row.p99_us && row.p99_us <= row.p999_us);
    }

    #[test]
    fn a_table_holds_the_rows() {
        let compared = Row { floor: Some("memcpy".into()), floor_gb_s: Some(12.5), rate: Some(5.0), ..row() };
        let rows = [row(), Row { avg_sm: Some(3.0), first_registering_us: Some(140.0), ..compared }];
        let table = table(&rows);
        for text in [
            "p99.9",
            "12.5 GB/s",
            "registering memory: put 1000000 140 us",
            "network was busy: tcp put 1000000 88 %",
            "avg_sm, a kernel ran on the GPU: put 1000000 3 %",
            "tcp put: memcpy",
            "open loop: 5 requests/s",
        ] {
            assert!(table.contains(text), "{text}: {table}");
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 0.1234, 1.234, 12.34, 123.4, 12_345.6].map(digits),
            ["0", "0.123", "1.23", "12.3", "123", "12346"]
        );
        assert_eq!([64, 4096, 1 << 20, 3 << 30, 1000].map(size), ["64", "4K", "1M", "3G", "1000"]);
    }
}
