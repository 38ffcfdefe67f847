//! Results: for people, or as JSON.

use std::io::{self, ErrorKind, Write, stderr, stdout};

use anyhow::{Context, Result};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;

use crate::fail::OutputClosed;

/// Where results go, and in which form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Say {
    pub(crate) json: bool,
}

impl Say {
    /// A result: as JSON, or as what `text` makes of it.
    pub(crate) fn result<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string_pretty(value)? } else { text(value) };
        line(&text)
    }
}

/// A line on standard output, at once.
///
/// # Errors
/// As [`piece`].
pub(crate) fn line(text: &str) -> Result<()> {
    piece(&format!("{}\n", text.trim_end_matches('\n')))
}

/// Text on standard output, at once.
///
/// # Errors
/// [`OutputClosed`] if nobody reads it any more.
pub(crate) fn piece(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        written => written.context("cannot write to standard output"),
    }
}

/// Writes what a library of ours has kept of standard output. Where nobody reads it, there is nobody to be told.
pub(crate) fn flush() {
    let _: io::Result<()> = stdout().flush();
}

/// A line on standard error. Where nobody reads that, there is nobody to be told.
pub(crate) fn note(text: &str) {
    let _: io::Result<()> = writeln!(stderr(), "{text}");
}

/// A table whose columns after the first are aligned to the right.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// Bytes with a unit.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [(&str, f64); 4] = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)];
    let value = n as f64;
    let (unit, scale) = UNITS.into_iter().find(|(_, scale)| value >= *scale).unwrap_or(("B", 1.0));
    let scaled = value / scale;
    if scale == 1.0 || scaled >= 100.0 { format!("{scaled:.0} {unit}") } else { format!("{scaled:.1} {unit}") }
}

/// Seconds with a unit.
pub(crate) fn seconds(s: f64) -> String {
    match s {
        s if s >= 100.0 => format!("{s:.0} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.1} us", s * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500), "1.5 kB");
        assert_eq!(bytes(538_000_000), "538 MB");
        assert_eq!(seconds(0.000_012_3), "12.3 us");
        assert_eq!(seconds(0.0222), "22.2 ms");
        assert_eq!(seconds(1.5), "1.50 s");
    }

    #[test]
    fn a_table_has_its_cells() {
        let table = table(["name", "n"], [["a".to_owned(), "1".to_owned()]]);
        assert!(table.contains("name") && table.contains('1'), "{table}");
    }
}
