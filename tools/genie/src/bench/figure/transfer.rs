//! The figure of `genie bench transfer`: latency and throughput by size, floors beside them.

use anyhow::Result;
use plotters::prelude::SeriesLabelPosition;

use super::super::row::{self, Row};
use super::{COLOURS, Kind, Line, Panel, draw, si};

/// The figure as SVG.
pub(in crate::bench) fn svg(rows: &[Row]) -> Result<String> {
    let (latency, throughput) = lines(rows);
    let (x, x_label) = ("size of a message", (|bytes: f64| row::size(bytes.round() as u64)) as fn(f64) -> String);
    let latency = Panel {
        title: "latency: p50, and p99 (thin)",
        x,
        x_label,
        y_label: |us| si(us / 1e6, "s"),
        legend: SeriesLabelPosition::UpperLeft,
        lines: latency,
    };
    let throughput = Panel {
        title: "throughput",
        x,
        x_label,
        y_label: |gb| si(gb * 1e9, "B/s"),
        legend: SeriesLabelPosition::LowerRight,
        lines: throughput,
    };
    draw("genie bench transfer", &subtitle(rows), [latency, throughput])
}

/// What all rows have in common.
fn subtitle(rows: &[Row]) -> String {
    let Some(row) = rows.first() else { return "nothing was measured".to_owned() };
    let depths = rows.iter().map(|r| r.depth);
    let depth = match (depths.clone().min(), depths.max()) {
        (Some(least), Some(most)) if least != most => format!("{least} to {most}"),
        _ => row.depth.to_string(),
    };
    let loop_kind = row.rate.map_or_else(String::new, |rate| format!(", open loop of {rate} requests/s"));
    format!(
        "depth {depth}, batch {}, lanes {}, threads {}, {} memory, integrity {}{loop_kind}; dashed: floors of the same run",
        row.batch, row.lanes, row.threads, row.memory, row.integrity
    )
}

/// The lines of both panels: one for each link and op, and its floor once.
fn lines(rows: &[Row]) -> (Vec<Line>, Vec<Line>) {
    let mut series: Vec<(&str, &str)> = Vec::new();
    for row in rows {
        let key = (row.uri.as_str(), row.op);
        if !series.contains(&key) {
            series.push(key);
        }
    }
    let (mut latency, mut throughput) = (Vec::new(), Vec::new());
    for (i, (uri, op)) in series.iter().enumerate() {
        let own: Vec<&Row> = rows.iter().filter(|r| r.uri == *uri && r.op == *op).collect();
        let Some(first) = own.first() else { continue };
        let colour = COLOURS[i % COLOURS.len()];
        let name = format!("{} {op}", first.link);
        let line = |kind, name: &str, value: &dyn Fn(&Row) -> Option<f64>| Line {
            name: name.to_owned(),
            colour,
            kind,
            points: own.iter().filter_map(|r| Some((r.bytes as f64, value(r).filter(|v| *v > 0.0)?))).collect(),
        };
        let floor = first.floor.clone().unwrap_or_default();
        latency.push(line(Kind::Measured, &name, &|r| Some(r.p50_us)));
        latency.push(line(Kind::Tail, "", &|r| Some(r.p99_us)));
        latency.push(line(Kind::Floor, &floor, &|r| r.floor_p50_us));
        throughput.push(line(Kind::Measured, &name, &|r| Some(r.gb_s)));
        throughput.push(line(Kind::Floor, &floor, &|r| r.floor_gb_s));
    }
    for panel in [&mut latency, &mut throughput] {
        panel.retain(|line| !line.points.is_empty());
    }
    (latency, throughput)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(op: &'static str, bytes: u64, us: f64) -> Row {
        let mut row = Row { op, link: "tcp".into(), uri: "tcp://a:1".into(), bytes, ..Row::default() };
        (row.p50_us, row.p99_us, row.gb_s) = (us, us * 3.0, bytes as f64 / us / 1e3);
        (row.floor, row.floor_gb_s) = (Some("a raw stream".into()), Some(row.gb_s * 1.2));
        row
    }

    #[test]
    fn every_series_has_its_line() {
        let rows = [row("echo", 64, 8.0), row("echo", 4096, 17.0), row("put", 1 << 20, 300.0)];
        let svg = svg(&rows).unwrap();
        for text in ["tcp echo", "tcp put", "floor: a raw stream", "latency", "throughput", "4K"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn one_row_or_none_can_be_drawn() {
        assert!(svg(&[row("put", 64, 9.0)]).is_ok());
        assert!(svg(&[]).is_ok());
    }
}
