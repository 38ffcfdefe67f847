//! What the benches print: a table for people, or CSV, or JSON.

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::say::{self, Say};

/// In which form the rows are printed, beside `--json`.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// The rows as CSV.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

impl OutputArgs {
    /// Prints the rows: as JSON or CSV with the same fields, or as the table.
    pub(super) fn print<T: Serialize>(
        &self,
        say: Say,
        rows: &Vec<T>,
        table: impl FnOnce(&Vec<T>) -> String,
    ) -> Result<()> {
        if self.csv { say::piece(&csv(rows)?) } else { say.result(rows, table) }
    }
}

/// The rows as CSV, with a header.
fn csv<T: Serialize>(rows: &[T]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    rows.iter().try_for_each(|row| writer.serialize(row))?;
    Ok(String::from_utf8(writer.into_inner()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_columns() {
        #[derive(Serialize)]
        struct Row {
            op: &'static str,
            gb_s: Option<f64>,
        }
        let rows = [Row { op: "put", gb_s: Some(1.5) }, Row { op: "a,b", gb_s: None }];
        assert_eq!(csv(&rows).unwrap(), "op,gb_s\nput,1.5\n\"a,b\",\n");
    }
}
