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
    /// How the server was asked: over a link that is there in any case.
    pub asked: Uri,
    /// Both ends have proved that they are on one host.
    pub same_host: bool,
    /// That name is a loopback address: what is sent there stays on this host.
    pub loopback: bool,
    /// The user gave a CA: can tell whose certificate it is, and wants to.
    pub trusts: bool,
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

/// What to try, from what is known: shared memory on one host, then RDMA, then sockets, encrypted where the user can tell whose
/// certificate it is, and by plain calls unless rings were asked for. Who gave a CA sends nothing in the open to another host, unless that link
/// was asked for by name.
pub fn choose(facts: &Facts) -> Choice {
    let mut choice = Choice::default();
    let asked = scheme_of(&facts.asked);
    for offer in &facts.offers {
        match judge(facts, offer) {
            // It is a candidate whether it is offered or not.
            Ok(candidate) if candidate.scheme == asked => {}
            Ok(candidate) => choice.order.push(candidate),
            Err(_) if offer.scheme == asked => {}
            Err(why) => choice.left_out.push(LeftOut { scheme: offer.scheme, why }),
        }
    }
    match admit(facts, asked) {
        Ok(()) => {
            let why = match facts.forced {
                Some(_) => "it was asked for",
                None if is_encrypted(asked) => "a CA was given, and the server speaks TLS",
                None => "nothing better is there",
            };
            choice.order.push(Candidate { uri: facts.asked.clone(), scheme: asked, why });
        }
        Err(why) => choice.left_out.push(LeftOut { scheme: asked, why }),
    }
    choice.order.sort_by_key(|candidate| rank(candidate.scheme));
    choice
}

/// The better, the lower: what copies less, and wakes fewer; of the sockets, what is encrypted where it may be chosen at all.
fn rank(scheme: LinkScheme) -> u8 {
    match scheme {
        LinkScheme::Shm => 0,
        LinkScheme::Rdma => 1,
        LinkScheme::Urings => 2,
        LinkScheme::Tcps => 3,
        LinkScheme::Uring => 4,
        LinkScheme::Tcp => 5,
    }
}

fn is_encrypted(scheme: LinkScheme) -> bool {
    matches!(scheme, LinkScheme::Tcps | LinkScheme::Urings)
}

/// Whether a link of this scheme may carry the connection.
fn admit(facts: &Facts, scheme: LinkScheme) -> Result<(), String> {
    if let Some(forced) = facts.forced {
        return if forced == scheme { Ok(()) } else { Err(format!("{} was asked for", forced.name())) };
    }
    if is_encrypted(scheme) && !facts.trusts {
        return Err("no CA was given: nobody could tell whose certificate it is".to_owned());
    }
    if scheme == LinkScheme::Urings {
        // One copy more of what is encrypted, and no figure that says that it pays: docs/decisions/0005-tls-records.md.
        return Err("it is not known to be faster than tcps: ask for it by name".to_owned());
    }
    if scheme == LinkScheme::Uring {
        // What decides is bulk between these two ends, which nobody can send before a session is open; and where that was measured, plain
        // calls were ahead: docs/decisions/0006-io-uring.md.
        return Err("whole transfers were measured to be no faster than over tcp: ask for it by name (--link uring) \
                    where it is faster (genie explain measures both)"
            .to_owned());
    }
    let stays_here = match scheme {
        LinkScheme::Shm => true,
        // A network card's address is never a loopback one.
        LinkScheme::Rdma => false,
        _ => facts.loopback,
    };
    if facts.trusts && !is_encrypted(scheme) && !stays_here {
        return Err("it is not encrypted, and a CA was given".to_owned());
    }
    Ok(())
}

fn judge(facts: &Facts, offer: &LinkOffer) -> Result<Candidate, String> {
    let scheme = offer.scheme;
    admit(facts, scheme)?;
    if scheme == LinkScheme::Shm && !facts.same_host {
        return Err("the server is not known to be on this host".to_owned());
    }
    // A server's word never leads to another host: the name is the user's, a path is on this host.
    let host = if facts.host.contains(':') { format!("[{}]", facts.host) } else { facts.host.clone() };
    let text = match &offer.path {
        Some(path) => format!("{}://{path}", scheme.name()),
        None => format!("{}://{host}:{}", scheme.name(), offer.port),
    };
    let uri = text.parse().map_err(|e: UriError| e.to_string())?;
    let why = match scheme {
        LinkScheme::Rdma if facts.forced.is_some() => "it was asked for; it does not encrypt",
        _ if facts.forced.is_some() => "it was asked for",
        LinkScheme::Shm => "both ends are on one host: bytes need not pass the kernel",
        LinkScheme::Rdma => {
            "the server has an RDMA device: tensors go from memory to memory, and are not encrypted on the way"
        }
        LinkScheme::Tcps => "a CA was given, and the server offers TLS",
        LinkScheme::Uring => "the server offers io_uring",
        LinkScheme::Urings => "the server offers TLS by io_uring",
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
