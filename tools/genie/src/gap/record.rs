//! The table of a gap.

use anyhow::Result;
use serde::Serialize;

use crate::bench::median;
use crate::say;

/// A row of the table: one phase of one mode of one trial.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Record {
    pub(super) trial: u32,
    pub(super) phase: &'static str,
    pub(super) mode: &'static str,
    pub(super) latency_s: f64,
    pub(super) wall_s: f64,
    pub(super) net_bytes: u64,
    pub(super) avg_sm: Option<f64>,
    pub(super) setup_bytes: u64,
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
    pub(super) steps: u32,
    pub(super) tokens_s: f64,
}

/// One phase of one mode: medians over the trials.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub(super) struct Summary {
    pub(super) phase: &'static str,
    pub(super) mode: &'static str,
    /// Time of the phase.
    pub(super) latency_s: f64,
    /// Time of a step.
    pub(super) step_s: f64,
    /// By how much it is slower than the local mode.
    pub(super) times_local: Option<f64>,
    /// Bytes that a step moves, both ways.
    pub(super) step_bytes: f64,
    pub(super) setup_bytes: f64,
    pub(super) tokens_s: f64,
    /// Percent of the phase in which the GPU ran a kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) avg_sm: Option<f64>,
}

/// The rows as CSV.
pub(super) fn csv(records: &[Record]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for record in records {
        writer.serialize(record)?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// One summary for each phase and mode, in the order of the rows; the first trial's order is that of all.
pub(super) fn summaries(records: &[Record]) -> Vec<Summary> {
    let mut kinds: Vec<(&str, &str)> = Vec::new();
    for phase in ["prefill", "decode"] {
        for record in records.iter().filter(|r| r.phase == phase) {
            if !kinds.contains(&(record.phase, record.mode)) {
                kinds.push((record.phase, record.mode));
            }
        }
    }
    let of = |phase: &str, mode: &str, value: fn(&Record) -> f64| {
        let values: Vec<_> = records.iter().filter(|r| r.phase == phase && r.mode == mode).map(value).collect();
        (!values.is_empty()).then(|| median(&values))
    };
    let mut all = Vec::new();
    for record in records {
        let Some(at) = kinds.iter().position(|k| *k == (record.phase, record.mode)) else { continue };
        let (phase, mode) = (record.phase, record.mode);
        let value = |value| of(phase, mode, value).unwrap_or(f64::NAN);
        let same = records.iter().filter(|r| r.phase == phase && r.mode == mode);
        let busy: Vec<_> = same.filter_map(|r| r.avg_sm).collect();
        let step_s = value(|r| r.latency_s / f64::from(r.steps));
        let summary = Summary {
            phase,
            mode,
            latency_s: value(|r| r.latency_s),
            step_s,
            times_local: of(phase, "local", |r| r.latency_s / f64::from(r.steps)).map(|local| step_s / local),
            step_bytes: value(|r| r.net_bytes as f64 / f64::from(r.steps)),
            setup_bytes: value(|r| r.setup_bytes as f64),
            tokens_s: value(|r| r.tokens_s),
            avg_sm: Some(busy).filter(|busy| !busy.is_empty()).map(|busy| median(&busy)),
        };
        all.push((at, summary));
    }
    all.sort_by_key(|(at, _)| *at);
    all.dedup_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, summary)| summary).collect()
}

/// The summary for people. How busy the GPU was has a column where it is known.
pub(super) fn table(summaries: &[Summary]) -> String {
    let header = ["phase", "mode", "time a step", "x local", "bytes a step", "set up", "tokens/s"];
    if summaries.iter().all(|s| s.avg_sm.is_none()) {
        return say::table(header, summaries.iter().map(cells));
    }
    let [a, b, c, d, e, f, g] = header;
    say::table(
        [a, b, c, d, e, f, g, "avg_sm %"],
        summaries.iter().map(|s| {
            let [a, b, c, d, e, f, g] = cells(s);
            [a, b, c, d, e, f, g, s.avg_sm.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.0}"))]
        }),
    )
}

fn cells(s: &Summary) -> [String; 7] {
    [
        s.phase.to_owned(),
        s.mode.to_owned(),
        say::seconds(s.step_s),
        s.times_local.map_or_else(|| "-".to_owned(), |x| format!("{x:.2}")),
        say::bytes(s.step_bytes as u64),
        say::bytes(s.setup_bytes as u64),
        format!("{:.1}", s.tokens_s),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::gap) fn record(
        trial: u32,
        phase: &'static str,
        mode: &'static str,
        latency_s: f64,
        bytes: u64,
    ) -> Record {
        let steps = if phase == "decode" { 4 } else { 1 };
        Record {
            trial,
            phase,
            mode,
            latency_s,
            wall_s: latency_s + 1.0,
            net_bytes: bytes,
            avg_sm: None,
            setup_bytes: 7,
            bytes_up: bytes - bytes / 2,
            bytes_down: bytes / 2,
            steps,
            tokens_s: 4.0 / latency_s,
        }
    }

    #[test]
    fn the_columns_are_those_that_scripts_read() {
        let text = csv(&[record(0, "prefill", "local", 0.5, 0)]).unwrap();
        let mut lines = text.lines();
        let header =
            "trial,phase,mode,latency_s,wall_s,net_bytes,avg_sm,setup_bytes,bytes_up,bytes_down,steps,tokens_s";
        assert_eq!(lines.next(), Some(header));
        assert_eq!(lines.next(), Some("0,prefill,local,0.5,1.5,0,,7,0,0,1,8.0"), "avg_sm is empty, not 0");
        assert_eq!(lines.next(), None);
    }

    #[test]
    fn summaries_are_medians_against_local() {
        let records = [
            record(0, "prefill", "local", 1.0, 0),
            record(0, "decode", "local", 4.0, 0),
            record(0, "prefill", "genie", 2.0, 100),
            record(0, "decode", "genie", 8.0, 400),
            record(1, "decode", "local", 4.0, 0),
            record(1, "decode", "genie", 6.0, 400),
            record(2, "decode", "genie", 80.0, 400),
        ];
        let all = summaries(&records);
        let kinds: Vec<_> = all.iter().map(|s| (s.phase, s.mode)).collect();
        assert_eq!(kinds, [("prefill", "local"), ("prefill", "genie"), ("decode", "local"), ("decode", "genie")]);
        assert_eq!((all[3].step_s, all[3].times_local, all[3].step_bytes), (2.0, Some(2.0), 100.0));
        assert!(table(&all).contains("genie") && !table(&all).contains("avg_sm"));
    }

    #[test]
    fn the_use_of_the_gpu_is_said_where_it_is_known() {
        let with = |trial, avg_sm| Record { avg_sm, ..record(trial, "decode", "genie", 8.0, 400) };
        let records = [with(0, Some(50.0)), with(1, None), with(2, Some(60.0)), record(0, "decode", "local", 4.0, 0)];
        let all = summaries(&records);
        assert_eq!((all[0].avg_sm, all[1].avg_sm), (Some(55.0), None));
        assert!(table(&all).contains("avg_sm") && table(&all).contains("55"));
    }
}
