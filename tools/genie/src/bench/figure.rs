//! The figure of `genie bench transfer`: latency and throughput by size, floors beside them, on logarithmic scales.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::row::{self, Row};

const WIDTH: u32 = 1080;
const HEIGHT: u32 = 560;

/// Okabe and Ito's palette: told apart by all eyes. Grey is the floors'.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
    RGBColor(0x33, 0x33, 0x33),
];

/// A line of a panel.
struct Line {
    name: String,
    colour: RGBColor,
    kind: Kind,
    points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Measured,
    /// The 99th percentile over its median.
    Tail,
    Floor,
}

/// The figure as SVG.
pub(super) fn svg(rows: &[Row]) -> Result<String> {
    let (latency, throughput) = lines(rows);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE).map_err(drawing)?;
        let centre = Pos::new(HPos::Center, VPos::Top);
        let title = ("sans-serif", 19).into_font().color(&BLACK).pos(centre);
        root.draw(&Text::new("genie bench transfer", ((WIDTH / 2) as i32, 12), title)).map_err(drawing)?;
        let note = ("sans-serif", 13).into_font().color(&BLACK.mix(0.6)).pos(centre);
        root.draw(&Text::new(subtitle(rows), ((WIDTH / 2) as i32, 38), note)).map_err(drawing)?;
        let (left, right) = root.margin(58, 8, 8, 8).split_horizontally((WIDTH - 16) / 2);
        panel(&left, "latency: p50, and p99 (thin)", &latency, |us| si(us / 1e6, "s"), SeriesLabelPosition::UpperLeft)?;
        panel(&right, "throughput", &throughput, |gb| si(gb * 1e9, "B/s"), SeriesLabelPosition::LowerRight)?;
        root.present().map_err(drawing)?;
    }
    Ok(text)
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

fn panel<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    title: &str,
    lines: &[Line],
    label: impl Fn(f64) -> String,
    legend: SeriesLabelPosition,
) -> Result<()>
where
    DB::ErrorType: 'static,
{
    let points = || lines.iter().flat_map(|line| &line.points);
    let span = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (x_low, x_high) = span(&mut points().map(|p| p.0));
    let (y_low, y_high) = span(&mut points().map(|p| p.1));
    if x_low > x_high {
        return Ok(());
    }
    // Room at the sides for single points. The legend lies where curves that rise are not.
    let (x_range, y_range) = (x_low / 1.6..x_high * 1.6, y_low / 2.0..y_high * 2.5);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(x_range.log_scale().base(2.0), y_range.log_scale())
        .map_err(drawing)?;
    chart
        .configure_mesh()
        .bold_line_style(BLACK.mix(0.12))
        .light_line_style(BLACK.mix(0.04))
        .axis_style(BLACK.mix(0.5))
        .x_labels(10)
        .y_labels(8)
        .x_label_formatter(&|bytes| row::size(bytes.round() as u64))
        .y_label_formatter(&|value| label(*value))
        .x_desc("size of a message")
        .label_style(("sans-serif", 13))
        .draw()
        .map_err(drawing)?;
    for line in lines {
        let points = line.points.iter().copied();
        let colour = line.colour;
        match line.kind {
            Kind::Measured => {
                chart
                    .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))
                    .map_err(drawing)?
                    .label(line.name.clone())
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(2)));
                chart.draw_series(points.map(|p| Circle::new(p, 3, colour.filled()))).map_err(drawing)?;
            }
            Kind::Tail => {
                chart.draw_series(LineSeries::new(points, colour.mix(0.55).stroke_width(1))).map_err(drawing)?;
            }
            Kind::Floor => {
                let style = colour.mix(0.8).stroke_width(1);
                let dashes = DashedLineSeries::new(points.clone(), 6, 4, style);
                chart.draw_series(dashes).map_err(drawing)?.label(format!("floor: {}", line.name)).legend(
                    move |(x, y)| {
                        let dash = |from: i32| PathElement::new([(x + from, y), (x + from + 6, y)], style);
                        EmptyElement::at((0, 0)) + dash(0) + dash(8) + dash(16)
                    },
                );
                chart.draw_series(points.map(|p| Circle::new(p, 2, colour.stroke_width(1)))).map_err(drawing)?;
            }
        }
    }
    chart
        .configure_series_labels()
        .position(legend)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .label_font(("sans-serif", 13))
        .draw()
        .map_err(drawing)
}

/// A value with a prefix for its unit: `10 us`, `2.5 GB/s`.
fn si(value: f64, unit: &str) -> String {
    const PREFIXES: [(f64, &str); 7] =
        [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u")];
    // What is a power of ten up to rounding has that power's prefix.
    let fits = |scale: &f64| value >= scale * (1.0 - 1e-9);
    let (scale, prefix) = PREFIXES.into_iter().find(|(scale, _)| fits(scale)).unwrap_or((1e-9, "n"));
    let number = format!("{:.1}", value / scale);
    format!("{} {prefix}{unit}", number.trim_end_matches('0').trim_end_matches('.'))
}

fn drawing(error: impl std::error::Error) -> anyhow::Error {
    anyhow!("the figure cannot be drawn: {error}")
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

    #[test]
    fn axes_have_short_numbers() {
        assert_eq!([1e-5, 2.5e-3, 1.0].map(|s| si(s, "s")), ["10 us", "2.5 ms", "1 s"]);
        assert_eq!([1e9, 1.5e10, 1e5].map(|b| si(b, "B/s")), ["1 GB/s", "15 GB/s", "100 kB/s"]);
    }
}
