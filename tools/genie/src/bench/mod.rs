//! Measurements against a floor that is measured in the same run, in turns, so that a machine that gets slower or faster
//! meanwhile changes both.

pub(crate) mod decode;
mod figure;
mod floors;
pub(crate) mod growth;
pub(crate) mod http;
pub(crate) mod interference;
pub(crate) mod latency;
mod load;
mod memory;
mod output;
pub(crate) mod price;
pub(crate) mod put;
mod relay;
mod row;
mod server;
mod sizes;
pub(crate) mod transfer;
pub(crate) mod usage;
mod work;

use std::net::{IpAddr, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use genie_transport::Uri;
use genie_transport::client::blocking::Session;
use genie_transport::wire::Caps;
use hdrhistogram::Histogram;

/// An echo travels in one frame on the control lane, which takes no larger one.
const LARGEST_ECHO: u64 = 4 << 20;

/// The floor is measured on this machine: the server has to be on it, too.
fn same_host(uri: &Uri) -> Result<()> {
    let is_here = |ip: IpAddr| ip.is_loopback();
    let text = uri.to_string();
    let (_, rest) = text.split_once("://").unwrap_or_default();
    let host_port = rest.split('?').next().unwrap_or_default();
    // A path is on this machine.
    let here = host_port.starts_with('/') || host_port.to_socket_addrs()?.all(|a| is_here(a.ip()));
    if !here {
        bail!("the floor is measured over loopback, but {uri} is another machine: leave out --floor, or measure there");
    }
    Ok(())
}

/// What is asked to go without checksums goes without them: measured with them, it would be called what it is not.
fn is_unchecked(session: &mut Session, uri: &Uri) -> Result<()> {
    if !session.welcome().is_some_and(|welcome| welcome.caps.has(Caps::UNCHECKED)) {
        bail!(
            "{uri} does not go without checksums: start it with `genie serve --unchecked`, or here with \
             --serve-args=--unchecked"
        );
    }
    Ok(())
}

/// The median of some numbers; NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (n, half) if n % 2 == 1 => sorted[half],
        (_, half) => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// For times from a nanosecond to a minute.
pub(crate) fn times() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).context("making a histogram")
}

/// Adds a time, as nanoseconds.
pub(crate) fn record(times: &mut Histogram<u64>, time: Duration) {
    times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

/// Three digits are more than any of these numbers is good for: after the point, or from the first one that is not zero.
pub(crate) fn rounded(value: f64) -> f64 {
    let small = value.is_normal() && value.abs() < 0.1;
    let scale = if small { 10_f64.powf(2.0 - value.abs().log10().floor()) } else { 1e3 };
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn small_numbers_keep_their_digits() {
        assert_eq!([1.23456, 0.5004, 0.000_123_45, 0.0].map(rounded), [1.235, 0.5, 0.000_123, 0.0]);
    }

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut all = times().unwrap();
        for us in 1..=1000 {
            record(&mut all, Duration::from_micros(us));
        }
        let near = |quantile, us: u64| all.value_at_quantile(quantile).abs_diff(us * 1000) <= us;
        assert!(near(0.5, 500) && near(0.99, 990) && near(1.0, 1000));
    }

    #[test]
    fn the_floor_is_for_this_machine() {
        assert!(same_host(&"tcp://127.0.0.1:1".parse().unwrap()).is_ok());
        assert!(same_host(&"tcp://[::1]:1".parse().unwrap()).is_ok());
        assert!(same_host(&"tcp://192.0.2.1:1".parse().unwrap()).is_err());
    }
}
