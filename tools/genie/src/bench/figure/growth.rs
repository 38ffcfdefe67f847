//! The figure of `genie bench growth`: latency, and the server's memory, by the number of connections or residents.

use anyhow::Result;
use plotters::prelude::SeriesLabelPosition;

use super::super::growth::Row;
use super::{COLOURS, Kind, Line, Panel, draw, si};

/// The figure as SVG.
pub(in crate::bench) fn svg(rows: &[Row]) -> Result<String> {
    let (latency, memory) = lines(rows);
    let (x, x_label) = ("how many there are", (|count: f64| si(count, "")) as fn(f64) -> String);
    let latency = Panel {
        title: "latency of one of them: p50, and p99 (thin)",
        x,
        x_label,
        y_label: |us| si(us / 1e6, "s"),
        legend: SeriesLabelPosition::UpperLeft,
        lines: latency,
    };
    let memory = Panel {
        title: "the server's memory for each",
        x,
        x_label,
        y_label: |bytes| si(bytes, "B"),
        legend: SeriesLabelPosition::UpperRight,
        lines: memory,
    };
    draw("genie bench growth", "connections: an echo of 64 bytes; residents: a get of another one", [latency, memory])
}

/// The lines of both panels: one for each link and what grows.
fn lines(rows: &[Row]) -> (Vec<Line>, Vec<Line>) {
    let mut series: Vec<(&str, &str)> = Vec::new();
    for row in rows {
        let key = (row.link.as_str(), row.what);
        if !series.contains(&key) {
            series.push(key);
        }
    }
    let (mut latency, mut memory) = (Vec::new(), Vec::new());
    for (i, (link, what)) in series.into_iter().enumerate() {
        let line = |kind, name: &str, value: &dyn Fn(&Row) -> Option<f64>| Line {
            name: name.to_owned(),
            colour: COLOURS[i % COLOURS.len()],
            kind,
            points: rows
                .iter()
                .filter(|r| r.link == link && r.what == what)
                .filter_map(|r| Some((f64::from(r.count), value(r).filter(|v| *v > 0.0)?)))
                .collect(),
        };
        let name = format!("{link} {what}");
        latency.push(line(Kind::Measured, &name, &|r| Some(r.p50_us)));
        latency.push(line(Kind::Tail, "", &|r| Some(r.p99_us)));
        let floor = rows.iter().find(|r| r.link == link && r.what == what).and_then(|r| r.floor.clone());
        latency.push(line(Kind::Floor, &floor.unwrap_or_default(), &|r| r.floor_p50_us));
        memory.push(line(Kind::Measured, &name, &|r| r.server_bytes_each));
    }
    for panel in [&mut latency, &mut memory] {
        panel.retain(|line| !line.points.is_empty());
    }
    (latency, memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(link: &str, what: &'static str, count: u32) -> Row {
        Row {
            link: link.into(),
            what,
            count,
            p50_us: 9.0,
            p99_us: 30.0,
            server_bytes_each: Some(8e3),
            floor: Some("sockets, polled".into()),
            floor_p50_us: Some(7.0),
            ..Row::default()
        }
    }

    #[test]
    fn every_curve_is_drawn() {
        let rows = [row("tcp", "connections", 1), row("tcp", "connections", 10_000), row("shm", "residents", 100)];
        let svg = svg(&rows).unwrap();
        for text in ["tcp connections", "shm residents", "floor: sockets, polled", "memory for each", "how many"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(svg.trim_end().ends_with("</svg>"));
        // What a server does not tell is left out.
        let untold = Row { server_bytes_each: None, ..row("tcp", "residents", 1) };
        assert!(super::svg(&[untold]).is_ok() && super::svg(&[]).is_ok());
    }
}
