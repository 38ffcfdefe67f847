//! The same loops as in tools/peers/harness.py, for what is faster than Python.

use std::time::{Duration, Instant};

use crate::Result;

pub(crate) const ECHO_BYTES: usize = 64;
pub(crate) const PUT_BYTES: [usize; 2] = [4 << 20, 64 << 20];
pub(crate) const DEPTHS: [usize; 2] = [1, 4];

const ECHO_WARM_UP: Duration = Duration::from_millis(300);
const ECHO_TIME: Duration = Duration::from_secs(2);
const TURN_BYTES: usize = 256 << 20;
const TURNS: usize = 7;
const PUT_TIME: Duration = Duration::from_secs(4);

/// Round trips for a while, as the JSON of a report.
pub(crate) fn echo(mut round_trip: impl FnMut() -> Result<()>) -> Result<String> {
    let until = Instant::now() + ECHO_WARM_UP;
    while Instant::now() < until {
        round_trip()?;
    }
    let mut trips = Vec::with_capacity(16 << 20);
    let until = Instant::now() + ECHO_TIME;
    loop {
        let began = Instant::now();
        round_trip()?;
        let ended = Instant::now();
        trips.push(ended - began);
        if ended >= until {
            break;
        }
    }
    trips.sort_unstable();
    let us = |share: usize| trips[(trips.len() * share / 100).min(trips.len() - 1)].as_nanos() as f64 / 1e3;
    Ok(format!(r#"{{"bytes": {ECHO_BYTES}, "p50_us": {}, "p99_us": {}, "samples": {}}}"#, us(50), us(99), trips.len()))
}

/// Turns of `count` puts each, as the JSON of a report.
pub(crate) fn put(size: usize, depth: usize, mut turn: impl FnMut(usize) -> Result<()>) -> Result<String> {
    let count = (TURN_BYTES / size).max(8);
    let mut rates = Vec::new();
    // Not counted: it touches memory.
    turn(count)?;
    let until = Instant::now() + PUT_TIME;
    while rates.len() < TURNS && Instant::now() < until {
        let began = Instant::now();
        turn(count)?;
        rates.push((count * size) as f64 / began.elapsed().as_secs_f64() / 1e9);
    }
    rates.sort_by(f64::total_cmp);
    let (rate, turns) = (rates[rates.len() / 2], rates.len());
    Ok(format!(r#"{{"bytes": {size}, "depth": {depth}, "gb_s": {rate}, "turns": {turns}}}"#))
}

/// Prints a report.
pub(crate) fn report(echo: Option<&str>, puts: &[String]) {
    println!(r#"{{"version": "", "echo": {}, "puts": [{}]}}"#, echo.unwrap_or("null"), puts.join(", "));
}
