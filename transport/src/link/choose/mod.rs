//! `genie://host:port`: which link it will be.
//!
//! What is known of both ends goes in as [`Facts`]; [`choose`] says what to try, in which order, and why. Finding out and trying
//! is [`find`]'s, which a dialer of `genie://` calls for every connection.

mod dial;
mod find;
mod probe;

use crate::uri::{Uri, UriError};
use crate::wire::{LinkOffer, LinkScheme};

pub(super) use self::dial::Dialer;
pub use self::find::{Found, Outcome, Report, Tried, find};
pub use self::probe::boot_id;

/// What is known of both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The host that the user named.
    pub host: String,
    /// How the server was asked: the link that is there in any case.
    pub asked: Uri,
    /// Both ends have proved that they are on one host.
    pub same_host: bool,
    /// Where the server listens.
    pub offers: Vec<LinkOffer>,
    /// The user wants this link, or none.
    pub forced: Option<LinkScheme>,
}

/// What to try.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The best first.
    pub order: Vec<Candidate>,
    /// What the server offers and is not tried.
    pub left_out: Vec<LeftOut>,
}

/// An address to try, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where.
    pub uri: Uri,
    /// Its scheme.
    pub scheme: LinkScheme,
    /// A clause.
    pub why: &'static str,
}

/// A link that is not tried, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its scheme.
    pub scheme: LinkScheme,
    /// A clause.
    pub why: String,
}

/// What to try, from what is known: shared memory on one host, then RDMA, then what the server was asked over. Nothing that is
/// less protected than that: who asked over TLS stays with it, or on the host.
pub fn choose(facts: &Facts) -> Choice {
    let mut choice = Choice::default();
    let mut offers: Vec<&LinkOffer> = facts.offers.iter().collect();
    offers.sort_by_key(|offer| (rank(offer.scheme), offer.port));
    let asked = scheme_of(&facts.asked);
    for offer in offers {
        match judge(facts, asked, offer) {
            // It is at the end of the list whether it is offered or not.
            Ok(candidate) if candidate.scheme == asked => {}
            Ok(candidate) => choice.order.push(candidate),
            Err(why) => choice.left_out.push(LeftOut { scheme: offer.scheme, why }),
        }
    }
    if facts.forced.is_none_or(|forced| forced == asked) {
        let why = if facts.forced.is_some() { "it was asked for" } else { "it is always there" };
        choice.order.push(Candidate { uri: facts.asked.clone(), scheme: asked, why });
    }
    choice
}

/// The better, the lower: what copies less, and wakes fewer.
fn rank(scheme: LinkScheme) -> u8 {
    match scheme {
        LinkScheme::Shm => 0,
        LinkScheme::Rdma => 1,
        LinkScheme::Tcps => 2,
        LinkScheme::Tcp => 3,
    }
}

fn judge(facts: &Facts, asked: LinkScheme, offer: &LinkOffer) -> Result<Candidate, String> {
    let scheme = offer.scheme;
    if let Some(forced) = facts.forced
        && forced != scheme
    {
        return Err(format!("{} was asked for", forced.name()));
    }
    if scheme == LinkScheme::Shm && !facts.same_host {
        return Err("the server is not known to be on this host".to_owned());
    }
    if asked == LinkScheme::Tcps && matches!(scheme, LinkScheme::Tcp | LinkScheme::Rdma) {
        return Err("it is not encrypted, and TLS was asked for".to_owned());
    }
    if asked == LinkScheme::Tcp && scheme == LinkScheme::Tcps && facts.forced.is_none() {
        return Err("TLS was not asked for".to_owned());
    }
    // A server's word never leads to another host: the name is the user's, a path is on this host.
    let host = if facts.host.contains(':') { format!("[{}]", facts.host) } else { facts.host.clone() };
    let text = match &offer.path {
        Some(path) => format!("{}://{path}", scheme.name()),
        None => format!("{}://{host}:{}", scheme.name(), offer.port),
    };
    let uri = text.parse().map_err(|e: UriError| e.to_string())?;
    let why = match scheme {
        _ if facts.forced.is_some() => "it was asked for",
        LinkScheme::Shm => "both ends are on one host: bytes need not pass the kernel",
        LinkScheme::Rdma => "the server has an RDMA device: tensors go from memory to memory",
        LinkScheme::Tcps => "the server offers TLS",
        LinkScheme::Tcp => "the server listens there",
    };
    Ok(Candidate { uri, scheme, why })
}

/// The scheme that an address has, as a server offers it.
fn scheme_of(uri: &Uri) -> LinkScheme {
    let text = uri.to_string();
    let scheme = text.split_once("://").map_or("tcp", |(scheme, _)| scheme);
    LinkScheme::ALL.iter().copied().find(|s| s.name() == scheme).unwrap_or(LinkScheme::Tcp)
}

#[cfg(test)]
mod tests;
