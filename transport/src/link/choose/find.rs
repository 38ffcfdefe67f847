//! Finding out what both ends can do, and trying it.

use std::io;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::probe::{Probe, SpeaksTls, Told};
use super::{Candidate, Facts, choose};
use crate::link::tls::{TlsClient, Untrusted};
use crate::link::{Dial, Stream, dialer_with};
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

/// Reaches the server of `genie://host:port`. `tls`: whom to trust; what leaves this host is encrypted then.
///
/// # Errors
/// Nobody answers there, or not over a link that may be used.
pub fn find(host: &str, port: u16, forced: Option<LinkScheme>, tls: Option<&TlsClient>) -> io::Result<Found> {
    let probe = Probe::new()?;
    let (mut base, told) = Base::ask(host, port, &probe, tls)?;
    let told = match told {
        Ok(told) => told,
        Err(error) => return base.unasked(forced, &error),
    };
    let same_host = probe.is_here(&told.links);
    let choice = choose(&Facts {
        host: host.to_owned(),
        asked: base.uri.clone(),
        same_host,
        loopback: base.loopback,
        trusts: tls.is_some(),
        offers: told.links.offers.clone(),
        forced,
    });
    let mut tried: Vec<_> = choice.left_out.into_iter().map(|l| entry(l.scheme, Outcome::LeftOut(l.why))).collect();
    let mut chosen = None;
    for candidate in choice.order {
        if chosen.is_some() {
            let round_trip = (candidate.uri == base.uri).then_some(told.round_trip);
            tried.push(Tried { round_trip, ..entry(candidate.scheme, Outcome::Spare) });
            continue;
        }
        match base.open(&candidate, &probe, &told) {
            Ok((stream, dial, round_trip)) => {
                tried.push(Tried { round_trip: Some(round_trip), ..entry(candidate.scheme, Outcome::Chosen) });
                chosen = Some((stream, dial, candidate.uri, candidate.why.to_owned()));
            }
            Err(error) => {
                tracing::warn!(uri = %candidate.uri, %error, "a better link does not work: going on without it");
                tried.push(entry(candidate.scheme, Outcome::Failed(error.to_string())));
            }
        }
    }
    let Some((stream, dial, uri, why)) = chosen else { return Err(none(forced, &tried)) };
    tracing::debug!(%uri, why, "link chosen");
    Ok(Found { stream, dial, report: Report { chosen: uri, why, same_host, tried } })
}

/// The lane over which the server was asked: it may carry the connection as well.
struct Base {
    uri: Uri,
    loopback: bool,
    tls: Option<TlsClient>,
    dial: Box<dyn Dial>,
    stream: Option<Arc<dyn Stream>>,
    /// When the server answered over it.
    asked: Instant,
}

/// How long a lane may stand unused before another is opened in its place: a server waits ten seconds for a greeting.
const STALE: Duration = Duration::from_secs(3);

type Opened = (Arc<dyn Stream>, Box<dyn Dial>, Duration);

impl Base {
    /// Asks the server, over TLS first where a CA was given: one that speaks only that is reached as well. `Err` within: somebody
    /// answers, but not this question.
    fn ask(host: &str, port: u16, probe: &Probe, tls: Option<&TlsClient>) -> io::Result<(Self, io::Result<Told>)> {
        let loopback = (host, port).to_socket_addrs()?.all(|address| address.ip().is_loopback());
        let over = |uri: Uri| {
            let mut dial = dialer_with(&uri, tls.cloned());
            let stream = dial.control()?;
            let told = probe.ask(&stream);
            let stream = told.is_ok().then_some(stream);
            Ok::<_, io::Error>((Self { uri, loopback, tls: tls.cloned(), dial, stream, asked: Instant::now() }, told))
        };
        if tls.is_some() {
            let (base, told) = over(Uri::Tls { host: host.to_owned(), port })?;
            match told {
                Ok(told) => return Ok((base, Ok(told))),
                Err(error) if Untrusted::of(&error).is_some() => return Err(error),
                Err(error) => tracing::debug!(%error, "the server does not speak TLS at this port"),
            }
        }
        let (base, told) = over(Uri::Tcp { host: host.to_owned(), port })?;
        match told {
            Err(error) if SpeaksTls::is(&error) && tls.is_none() => {
                let why = format!(
                    "{host}:{port} speaks TLS alone: give --ca FILE (or GENIE_CA), with the certificate of who signed the server's"
                );
                Err(io::Error::other(Untrusted(why)))
            }
            told => Ok((base, told)),
        }
    }

    fn open(&mut self, candidate: &Candidate, probe: &Probe, told: &Told) -> io::Result<Opened> {
        if candidate.uri == self.uri {
            let mut stream = self.stream.take().ok_or(io::ErrorKind::NotConnected)?;
            if self.asked.elapsed() > STALE {
                stream = self.dial.control()?;
                let there = probe.ask(&stream)?;
                if there.links.server != told.links.server {
                    return Err(io::Error::other("the server was restarted meanwhile: try again"));
                }
            }
            let dial = std::mem::replace(&mut self.dial, dialer_with(&self.uri, self.tls.clone()));
            return Ok((stream, dial, told.round_trip));
        }
        let mut dial = dialer_with(&candidate.uri, self.tls.clone());
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

    /// A server that does not know the question has one link, as far as anybody can tell.
    fn unasked(mut self, forced: Option<LinkScheme>, error: &io::Error) -> io::Result<Found> {
        let uri = self.uri;
        if let Some(scheme) = forced.filter(|&scheme| scheme != LinkScheme::Tcp) {
            return Err(io::Error::other(format!("the server offers no {}: {error}", scheme.name())));
        }
        if self.tls.is_some() && !self.loopback && forced.is_none() {
            let why = format!("the server offers no link that encrypts ({error}), and a CA was given");
            return Err(io::Error::other(Untrusted(why)));
        }
        tracing::warn!(%uri, %error, "the server does not say which links it has: going on with this one");
        let stream = self.dial.control()?;
        let why = format!("the server does not say which links it has: {error}");
        let tried = vec![entry(LinkScheme::Tcp, Outcome::Chosen)];
        Ok(Found { stream, dial: self.dial, report: Report { chosen: uri, why, same_host: false, tried } })
    }
}

fn is_slower(candidate: Duration, base: Duration) -> bool {
    candidate > base * SLOWER && candidate > base + SLOWER_BY
}

fn entry(scheme: LinkScheme, outcome: Outcome) -> Tried {
    Tried { scheme, outcome, round_trip: None }
}

fn none(forced: Option<LinkScheme>, tried: &[Tried]) -> io::Error {
    let why = |t: &Tried| match &t.outcome {
        Outcome::LeftOut(why) | Outcome::Failed(why) => why.clone(),
        Outcome::Chosen | Outcome::Spare => "it was not tried".to_owned(),
    };
    let Some(forced) = forced else {
        let all: Vec<_> = tried.iter().map(|t| format!("{}: {}", t.scheme.name(), why(t))).collect();
        let text = format!("no link to this server may be used: {}", all.join("; "));
        return io::Error::new(io::ErrorKind::NotConnected, text);
    };
    let why = tried.iter().find(|t| t.scheme == forced).map_or("the server does not offer it".to_owned(), why);
    io::Error::new(io::ErrorKind::NotConnected, format!("no {} to this server: {why}", forced.name()))
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
