//! Figures of the benches: curves over sizes or numbers, on logarithmic scales.

mod growth;
mod transfer;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub(super) use self::growth::svg as growth;
pub(super) use self::transfer::svg as transfer;

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

/// One of a figure's two panels.
struct Panel {
    title: &'static str,
    /// What lies along it.
    x: &'static str,
    x_label: fn(f64) -> String,
    y_label: fn(f64) -> String,
    /// Where no curve is.
    legend: SeriesLabelPosition,
    lines: Vec<Line>,
}

/// Draws two panels side by side, as SVG.
fn draw(title: &str, subtitle: &str, panels: [Panel; 2]) -> Result<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE).map_err(drawing)?;
        let centre = Pos::new(HPos::Center, VPos::Top);
        let font = ("sans-serif", 19).into_font().color(&BLACK).pos(centre);
        root.draw(&Text::new(title, ((WIDTH / 2) as i32, 12), font)).map_err(drawing)?;
        let note = ("sans-serif", 13).into_font().color(&BLACK.mix(0.6)).pos(centre);
        root.draw(&Text::new(subtitle, ((WIDTH / 2) as i32, 38), note)).map_err(drawing)?;
        let (left, right) = root.margin(58, 8, 8, 8).split_horizontally((WIDTH - 16) / 2);
        for (area, panel) in [left, right].iter().zip(panels) {
            draw_panel(area, panel)?;
        }
        root.present().map_err(drawing)?;
    }
    Ok(text)
}

fn draw_panel<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, panel: Panel) -> Result<()>
where
    DB::ErrorType: 'static,
{
    let Panel { title, x, x_label, y_label, legend, lines } = panel;
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
        .x_label_formatter(&|value| x_label(*value))
        .y_label_formatter(&|value| y_label(*value))
        .x_desc(x)
        .label_style(("sans-serif", 13))
        .draw()
        .map_err(drawing)?;
    for line in &lines {
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

    #[test]
    fn axes_have_short_numbers() {
        assert_eq!([1e-5, 2.5e-3, 1.0].map(|s| si(s, "s")), ["10 us", "2.5 ms", "1 s"]);
        assert_eq!([1e9, 1.5e10, 1e5].map(|b| si(b, "B/s")), ["1 GB/s", "15 GB/s", "100 kB/s"]);
    }
}
