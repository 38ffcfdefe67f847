//! What a server says of itself to clients that choose a link, and how the two find out whether they are on one host.
//!
//! Both ends of a host know its boot's id; nobody else does. Each shows a hash of it and of the client's number, so that nothing
//! that passes here can be used again, or tells anybody which host it is.

use crate::wire::{AskLinks, LinkOffer, Links};

/// Where a server listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    /// The id of this host's boot; `None`: not known, and nobody is taken to be on this host.
    pub boot: Option<String>,
    /// In whatever order.
    pub offers: Vec<LinkOffer>,
}

/// Who proves something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Whoever asks.
    Client,
    /// Whoever answers.
    Server,
}

impl Offers {
    /// What a client is told. Paths are for clients on this host.
    pub(super) fn answer(&self, ask: &AskLinks, epoch: u64) -> Links {
        let here = self.boot.as_deref().filter(|boot| same_host(ask.nonce, boot, Side::Client) == ask.host);
        let offers = self.offers.iter().filter(|o| here.is_some() || o.path.is_none()).cloned().collect();
        let host = here.map_or([0; 16], |boot| same_host(ask.nonce, boot, Side::Server));
        Links { host, server: hash("genie server's life", ask.nonce, &epoch.to_le_bytes()), offers }
    }
}

/// Proves to whoever knows this boot's id that this side knows it too.
pub fn same_host(nonce: [u8; 16], boot: &str, side: Side) -> [u8; 16] {
    let context = match side {
        Side::Client => "genie client's host",
        Side::Server => "genie server's host",
    };
    hash(context, nonce, boot.as_bytes())
}

fn hash(context: &str, nonce: [u8; 16], secret: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    hasher.update(&nonce).update(secret);
    let mut out = [0; 16];
    hasher.finalize_xof().fill(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::LinkScheme;

    fn offers() -> Offers {
        let offer = |scheme, port, path: Option<&str>| LinkOffer { scheme, port, path: path.map(str::to_owned) };
        let offers = vec![offer(LinkScheme::Tcp, 7070, None), offer(LinkScheme::Shm, 0, Some("/run/genie.sock"))];
        Offers { boot: Some("here".into()), offers }
    }

    #[test]
    fn on_one_host_both_prove_it_and_paths_are_told() {
        let nonce = [3; 16];
        let links = offers().answer(&AskLinks { nonce, host: same_host(nonce, "here", Side::Client) }, 1);
        assert_eq!(links.host, same_host(nonce, "here", Side::Server));
        assert_eq!(links.offers, offers().offers);
    }

    #[test]
    fn from_elsewhere_nothing_is_proved_and_no_path_is_told() {
        let nonce = [3; 16];
        let wrong = [
            [0; 16],
            same_host(nonce, "there", Side::Client),
            // What a server said cannot be said back to it, nor what was said for another number.
            same_host(nonce, "here", Side::Server),
            same_host([4; 16], "here", Side::Client),
        ];
        for host in wrong {
            let links = offers().answer(&AskLinks { nonce, host }, 1);
            assert_eq!(links.host, [0; 16]);
            assert_eq!(links.offers, offers().offers[..1]);
        }
        let unknown = Offers { boot: None, ..offers() };
        assert_eq!(unknown.answer(&AskLinks { nonce, host: [0; 16] }, 1).host, [0; 16]);
    }

    #[test]
    fn a_servers_life_is_known_again_only_for_the_same_number() {
        let life = |nonce, epoch| offers().answer(&AskLinks { nonce, host: [0; 16] }, epoch).server;
        assert_eq!(life([1; 16], 7), life([1; 16], 7));
        assert_ne!(life([1; 16], 7), life([1; 16], 8));
        assert_ne!(life([1; 16], 7), life([2; 16], 7));
    }
}
