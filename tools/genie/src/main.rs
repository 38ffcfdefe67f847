//! The `genie` command line.

fn main() {}
