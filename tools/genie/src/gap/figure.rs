//! The figure of a gap: time and bytes of a step, by phase and mode, on logarithmic scales.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::record::{self, Record, Summary};
use crate::say;

const WIDTH: u32 = 960;
const HEIGHT: u32 = 640;

/// The modes' colours, from Okabe and Ito's palette: told apart by all eyes.
const COLOURS: [(&str, RGBColor); 4] = [
    ("local", RGBColor(0x99, 0x99, 0x99)),
    ("naive", RGBColor(0xD5, 0x5E, 0x00)),
    ("remote-cache", RGBColor(0xE6, 0x9F, 0x00)),
    ("genie", RGBColor(0x00, 0x72, 0xB2)),
];

/// What a panel shows.
struct Quantity {
    title: &'static str,
    of_summary: fn(&Summary) -> f64,
    of_record: fn(&Record) -> f64,
    label: fn(f64) -> String,
    /// The least that an axis begins with.
    least: f64,
}

const QUANTITIES: [Quantity; 2] = [
    Quantity {
        title: "time of a step",
        of_summary: |s| s.step_s,
        of_record: |r| r.latency_s / f64::from(r.steps),
        label: say::seconds,
        least: 1e-6,
    },
    Quantity {
        title: "bytes of a step on the network",
        of_summary: |s| s.step_bytes,
        of_record: |r| r.net_bytes as f64 / f64::from(r.steps),
        label: |b| say::bytes(b as u64),
        least: 1.0,
    },
];

/// The figure as SVG.
pub(super) fn svg(records: &[Record], title: &str) -> Result<String> {
    let summaries = record::summaries(records);
    let mut phases: Vec<&str> = summaries.iter().map(|s| s.phase).collect();
    phases.dedup();
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE).map_err(drawing)?;
        let style = ("sans-serif", 19).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
        root.draw(&Text::new(title.to_owned(), ((WIDTH / 2) as i32, 14), style)).map_err(drawing)?;
        let note = ("sans-serif", 13).into_font().color(&BLACK.mix(0.6)).pos(Pos::new(HPos::Center, VPos::Top));
        let text = "logarithmic scales; a bar is the median of the trials, a dot is a trial";
        root.draw(&Text::new(text, ((WIDTH / 2) as i32, 40), note)).map_err(drawing)?;
        let body = root.margin(60, 8, 8, 8);
        let panels = body.split_evenly((QUANTITIES.len(), phases.len().max(1)));
        let kinds = QUANTITIES.iter().flat_map(|quantity| phases.iter().map(move |phase| (quantity, *phase)));
        for (area, (quantity, phase)) in panels.iter().zip(kinds) {
            panel(area, quantity, phase, &summaries, records)?;
        }
        root.present().map_err(drawing)?;
    }
    Ok(text)
}

fn panel<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    quantity: &Quantity,
    phase: &str,
    summaries: &[Summary],
    records: &[Record],
) -> Result<()>
where
    DB::ErrorType: 'static,
{
    let bars: Vec<_> = summaries.iter().filter(|s| s.phase == phase).collect();
    // The phases of a row have one scale: they can be compared.
    let values = records.iter().map(quantity.of_record).filter(|v| *v > 0.0);
    let (low, high) = values.fold((f64::MAX, quantity.least), |(low, high), v| (low.min(v), high.max(v)));
    let low = 10f64.powf((low.min(high) / 2.0).log10().floor()).max(quantity.least);
    // Room for the labels above the bars.
    let high = (high * 6.0).max(low * 10.0);
    let count = bars.len();
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{phase}: {}", quantity.title), ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(74)
        .build_cartesian_2d(-0.5..count as f64 - 0.5, (low..high).log_scale())
        .map_err(drawing)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(BLACK.mix(0.12))
        .light_line_style(TRANSPARENT)
        .axis_style(BLACK.mix(0.5))
        .x_labels(0)
        .y_labels(8)
        .y_label_formatter(&|v| short((quantity.label)(*v)))
        .label_style(("sans-serif", 13))
        .draw()
        .map_err(drawing)?;
    let centre = |vertical| Pos::new(HPos::Center, vertical);
    for (i, summary) in bars.iter().enumerate() {
        let (x, value) = (i as f64, (quantity.of_summary)(summary));
        let colour = COLOURS.iter().find(|(mode, _)| *mode == summary.mode).map_or(BLACK, |(_, colour)| *colour);
        let name = ("sans-serif", 14).into_font().color(&BLACK).pos(centre(VPos::Top));
        let below = EmptyElement::at((x, low)) + Text::new(summary.mode, (0, 8), name);
        chart.plotting_area().draw(&below).map_err(drawing)?;
        let top = value.max(low);
        if value > low {
            let bar = Rectangle::new([(x - 0.32, low), (x + 0.32, value)], colour.mix(0.85).filled());
            chart.plotting_area().draw(&bar).map_err(drawing)?;
        }
        let style = ("sans-serif", 14).into_font().color(&BLACK).pos(centre(VPos::Bottom));
        let trials = records.iter().filter(|r| r.phase == phase && r.mode == summary.mode).map(quantity.of_record);
        let top = trials.clone().fold(top, f64::max);
        let label = EmptyElement::at((x, top)) + Text::new((quantity.label)(value), (0, -7), style);
        chart.plotting_area().draw(&label).map_err(drawing)?;
        for point in trials.filter(|v| *v > low) {
            let dot = Circle::new((x, point), 2.5, BLACK.mix(0.6).filled());
            chart.plotting_area().draw(&dot).map_err(drawing)?;
        }
    }
    Ok(())
}

/// `10.0 kB` as `10 kB`: an axis has round numbers.
fn short(label: String) -> String {
    match label.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => label,
    }
}

fn drawing(error: impl std::error::Error) -> anyhow::Error {
    anyhow!("the figure cannot be drawn: {error}")
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    #[test]
    fn every_mode_has_its_bar_and_its_number() {
        let records = [
            record(0, "prefill", "local", 0.2, 0),
            record(0, "prefill", "naive", 1.5, 538_000_000),
            record(0, "decode", "local", 0.1, 0),
            record(0, "decode", "genie", 0.11, 720),
        ];
        let svg = svg(&records, "a title").unwrap();
        for text in ["a title", "naive", "genie", "prefill: time of a step", "538 MB", "180 B", "0 B"] {
            assert!(svg.contains(text), "{text}");
        }
    }

    #[test]
    fn an_axis_has_round_numbers() {
        assert_eq!(short("10.0 kB".into()), "10 kB");
        assert_eq!(short("1.00 s".into()), "1 s");
        assert_eq!(short("100 B".into()), "100 B");
    }

    #[test]
    fn one_phase_and_one_mode_are_enough() {
        assert!(svg(&[record(0, "prefill", "local", 0.2, 0)], "t").unwrap().ends_with("</svg>\n"));
    }
}
