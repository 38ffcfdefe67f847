//! Finding out what both ends can do, and trying it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::probe::{Probe, Told};
use super::{Candidate, Facts, choose};
use crate::link::{Dial, Stream, dialer};
use crate::uri::Uri;
use crate::wire::LinkScheme;

/// A server, reached over the link that was chosen.
pub struct Found {
    /// A control lane to it, which has not greeted yet.
    pub stream: Arc<dyn Stream>,
    /// What opened it.
    pub dial: Box<dyn Dial>,
    /// What was found on the way.
    pub report: Report,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The address that was chosen.
    pub chosen: Uri,
    /// Why.
    pub why: String,
    /// Both ends have proved that they are on one host.
    pub same_host: bool,
    /// All that the server offers, the best first.
    pub tried: Vec<Tried>,
}

/// One link that the server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Its scheme.
    pub scheme: LinkScheme,
    /// What came of it.
    pub outcome: Outcome,
    /// The shortest of some round trips of the smallest frames, where it answered.
    pub round_trip: Option<Duration>,
}

/// What came of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It carries the connection.
    Chosen,
    /// It was not needed: a better one works.
    Spare,
    /// It was not tried, and why.
    LeftOut(String),
    /// It was tried, and why it does not carry the connection.
    Failed(String),
}

/// How much longer than over TCP a round trip over RDMA may take: beyond, the device is no help.
const SLOWER: u32 = 4;
const SLOWER_BY: Duration = Duration::from_millis(1);

/// Reaches the server of `genie://host:port`.
///
/// # Errors
/// Nobody answers there, or not over the link that was asked for.
pub fn find(host: &str, port: u16, forced: Option<LinkScheme>) -> io::Result<Found> {
    let asked = Uri::Tcp { host: host.to_owned(), port };
    let mut base = Base { dial: dialer(&asked), stream: None };
    let stream = base.dial.control()?;
    let probe = Probe::new()?;
    let told = match probe.ask(&stream) {
        Ok(told) => told,
        Err(error) => return unasked(base, asked, forced, &error),
    };
    base.stream = Some(stream);
    let same_host = probe.is_here(&told.links);
    let offers = told.links.offers.clone();
    let choice = choose(&Facts { host: host.to_owned(), asked: asked.clone(), same_host, offers, forced });
    let mut tried: Vec<_> = choice.left_out.into_iter().map(|l| entry(l.scheme, Outcome::LeftOut(l.why))).collect();
    let mut chosen = None;
    for candidate in choice.order {
        if chosen.is_some() {
            let round_trip = (candidate.uri == asked).then_some(told.round_trip);
            tried.push(Tried { round_trip, ..entry(candidate.scheme, Outcome::Spare) });
            continue;
        }
        match base.open(&candidate, &asked, &probe, &told) {
            Ok((stream, dial, round_trip)) => {
                tried.push(Tried { round_trip: Some(round_trip), ..entry(candidate.scheme, Outcome::Chosen) });
                chosen = Some((stream, dial, candidate));
            }
            Err(error) => {
                tracing::warn!(uri = %candidate.uri, %error, "a better link does not work: going on without it");
                tried.push(entry(candidate.scheme, Outcome::Failed(error.to_string())));
            }
        }
    }
    let Some((stream, dial, candidate)) = chosen else { return Err(none(forced, &tried)) };
    tracing::debug!(uri = %candidate.uri, why = candidate.why, "link chosen");
    let report = Report { chosen: candidate.uri, why: candidate.why.to_owned(), same_host, tried };
    Ok(Found { stream, dial, report })
}

/// The lane over which the server was asked: it may carry the connection as well.
struct Base {
    dial: Box<dyn Dial>,
    stream: Option<Arc<dyn Stream>>,
}

type Opened = (Arc<dyn Stream>, Box<dyn Dial>, Duration);

impl Base {
    fn open(&mut self, candidate: &Candidate, asked: &Uri, probe: &Probe, told: &Told) -> io::Result<Opened> {
        if candidate.uri == *asked {
            let stream = self.stream.take().ok_or(io::ErrorKind::NotConnected)?;
            let dial = std::mem::replace(&mut self.dial, dialer(asked));
            return Ok((stream, dial, told.round_trip));
        }
        let mut dial = dialer(&candidate.uri);
        let stream = dial.control()?;
        let there = probe.ask(&stream)?;
        if there.links.server != told.links.server {
            return Err(io::Error::other("another server answers there"));
        }
        if candidate.scheme == LinkScheme::Rdma && is_slower(there.round_trip, told.round_trip) {
            let (there, here) = (there.round_trip.as_micros(), told.round_trip.as_micros());
            return Err(io::Error::other(format!("a round trip takes {there} us, over TCP {here} us")));
        }
        Ok((stream, dial, there.round_trip))
    }
}

fn is_slower(candidate: Duration, base: Duration) -> bool {
    candidate > base * SLOWER && candidate > base + SLOWER_BY
}

/// A server that does not know the question has one link, as far as anybody can tell.
fn unasked(mut base: Base, asked: Uri, forced: Option<LinkScheme>, error: &io::Error) -> io::Result<Found> {
    let failed = |scheme: LinkScheme| io::Error::other(format!("the server offers no {}: {error}", scheme.name()));
    if let Some(scheme) = forced.filter(|&scheme| scheme != LinkScheme::Tcp) {
        return Err(failed(scheme));
    }
    tracing::warn!(uri = %asked, %error, "the server does not say which links it has: going on with this one");
    let stream = base.dial.control()?;
    let why = format!("the server does not say which links it has: {error}");
    let tried = vec![entry(LinkScheme::Tcp, Outcome::Chosen)];
    Ok(Found { stream, dial: base.dial, report: Report { chosen: asked, why, same_host: false, tried } })
}

fn entry(scheme: LinkScheme, outcome: Outcome) -> Tried {
    Tried { scheme, outcome, round_trip: None }
}

fn none(forced: Option<LinkScheme>, tried: &[Tried]) -> io::Error {
    let wanted = forced.map_or("any link", LinkScheme::name);
    let why =
        tried.iter().find(|t| Some(t.scheme) == forced).map_or("the server does not offer it", |t| match &t.outcome {
            Outcome::LeftOut(why) | Outcome::Failed(why) => why,
            Outcome::Chosen | Outcome::Spare => "it was not tried",
        });
    io::Error::new(io::ErrorKind::NotConnected, format!("no {wanted} to this server: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_much_slower_than_tcp_is_no_help() {
        let us = Duration::from_micros;
        assert!(!is_slower(us(20), us(10)));
        assert!(!is_slower(us(900), us(10)), "noise");
        assert!(is_slower(us(2000), us(10)));
        assert!(!is_slower(us(30_000), us(10_000)));
        assert!(is_slower(us(50_000), us(10_000)));
    }
}
