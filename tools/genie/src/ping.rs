//! `genie ping`: is it there, and how far?

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use genie_transport::Uri;
use serde::Serialize;

use crate::bench;
use crate::connect::{self, LinkArgs};
use crate::say::Say;

/// Measure the round trip of an empty request.
///
/// Example: genie ping tcp://127.0.0.1:7070 --count 10
#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    /// The server: genie://HOST:PORT, or a link's own address: tcp://HOST:PORT.
    uri: Uri,
    /// Round trips to measure.
    #[arg(long, short, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Milliseconds between them.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    interval: u64,
    #[command(flatten)]
    link: LinkArgs,
}

#[derive(Debug, Serialize)]
struct Pings {
    server: String,
    count: u32,
    min_us: f64,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

/// Runs the command.
pub(crate) fn run(args: &PingArgs, say: Say) -> Result<()> {
    let mut times = bench::times()?;
    connect::within(&args.uri, args.link, |session| {
        for i in 0..args.count {
            if i > 0 && args.interval > 0 {
                std::thread::sleep(Duration::from_millis(args.interval));
            }
            bench::record(&mut times, session.ping()?);
        }
        Ok(())
    })?;
    let us = |ns: u64| ns as f64 / 1e3;
    let pings = Pings {
        server: args.uri.to_string(),
        count: args.count,
        min_us: us(times.min()),
        p50_us: us(times.value_at_quantile(0.5)),
        p99_us: us(times.value_at_quantile(0.99)),
        max_us: us(times.max()),
    };
    say.result(&pings, |p| {
        format!(
            "{}: {} round trips, min {:.1} us, median {:.1} us, p99 {:.1} us, max {:.1} us",
            p.server, p.count, p.min_us, p.p50_us, p.p99_us, p.max_us
        )
    })
}
