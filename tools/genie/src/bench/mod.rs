//! Measurements against a floor that is measured in the same run, in turns, so that a machine that gets slower or faster
//! meanwhile changes both.

pub(crate) mod decode;
pub(crate) mod latency;
pub(crate) mod put;

use std::net::{IpAddr, ToSocketAddrs};

use anyhow::{Result, bail};
use genie_transport::Uri;

/// The floor is measured on this machine: the server has to be on it, too.
fn same_host(uri: &Uri) -> Result<()> {
    let is_here = |ip: IpAddr| ip.is_loopback();
    let Uri::Tcp { host, port } = uri else { return Ok(()) };
    let here = (host.as_str(), *port).to_socket_addrs()?.all(|a| is_here(a.ip()));
    if !here {
        bail!("the floor is measured over loopback, but {uri} is another machine: leave out --floor, or measure there");
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

/// Three digits after the point are more than any of these numbers is good for.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
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
    fn the_floor_is_for_this_machine() {
        assert!(same_host(&"tcp://127.0.0.1:1".parse().unwrap()).is_ok());
        assert!(same_host(&"tcp://[::1]:1".parse().unwrap()).is_ok());
        assert!(same_host(&"tcp://192.0.2.1:1".parse().unwrap()).is_err());
    }
}
