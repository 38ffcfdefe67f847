//! The choice, from all that can be known.

use super::*;

fn offer(scheme: LinkScheme) -> LinkOffer {
    match scheme {
        LinkScheme::Shm => LinkOffer { scheme, port: 0, path: Some("/run/genie.sock".into()) },
        _ => LinkOffer { scheme, port: 7000 + scheme as u16, path: None },
    }
}

fn facts(offers: &[LinkScheme]) -> Facts {
    Facts {
        host: "gpu-host".into(),
        asked: "tcp://gpu-host:7070".parse().unwrap(),
        same_host: false,
        loopback: false,
        trusts: false,
        offers: offers.iter().map(|&s| offer(s)).collect(),
        forced: None,
    }
}

/// Whether this build has a link for it.
fn has(scheme: LinkScheme) -> bool {
    let text = match scheme {
        LinkScheme::Shm => "shm:///run/genie.sock".to_owned(),
        _ => format!("{}://gpu-host:1", scheme.name()),
    };
    text.parse::<Uri>().is_ok()
}

fn order(choice: &Choice) -> Vec<LinkScheme> {
    choice.order.iter().map(|c| c.scheme).collect()
}

/// Every subset of what can be offered, on one host and on two, with a CA and without, forced and not.
fn all() -> impl Iterator<Item = Facts> {
    let forced = || [None].into_iter().chain(LinkScheme::ALL.iter().map(|&s| Some(s)));
    (0..1 << LinkScheme::ALL.len()).flat_map(move |subset: usize| {
        let offers: Vec<_> =
            LinkScheme::ALL.iter().enumerate().filter(|(i, _)| subset >> i & 1 == 1).map(|(_, &s)| s).collect();
        (0..8).flat_map(move |bits: u8| {
            let offers = offers.clone();
            let [same_host, loopback, trusts] = [1, 2, 4].map(|bit| bits & bit != 0);
            forced().map(move |forced| Facts { same_host, loopback, trusts, forced, ..facts(&offers) })
        })
    })
}

#[test]
fn what_holds_whatever_is_offered() {
    for facts in all() {
        let choice = choose(&facts);
        let schemes = order(&choice);
        let offered = |scheme| facts.offers.iter().any(|o| o.scheme == scheme);
        // The best first, nothing twice.
        assert!(schemes.windows(2).all(|w| rank(w[0]) < rank(w[1])), "{facts:?}: {schemes:?}");
        for candidate in &choice.order {
            assert!(candidate.scheme == LinkScheme::Tcp || offered(candidate.scheme), "{facts:?}: {candidate:?}");
            assert!(facts.forced.is_none_or(|f| f == candidate.scheme), "{facts:?}: {candidate:?}");
            let text = candidate.uri.to_string();
            assert!(text.contains("://gpu-host:") || facts.same_host && text == "shm:///run/genie.sock", "{text}");
        }
        // What could be used is tried; nothing that leaves the host in the open where a CA was given, unless it was asked for.
        let free = |scheme| facts.forced.is_none_or(|f| f == scheme) && offered(scheme) && has(scheme);
        let open = facts.forced.is_some() || !facts.trusts || facts.loopback;
        assert_eq!(schemes.contains(&LinkScheme::Tcp), facts.forced.is_none_or(|f| f == LinkScheme::Tcp) && open);
        assert_eq!(schemes.contains(&LinkScheme::Shm), free(LinkScheme::Shm) && facts.same_host, "{facts:?}");
        let rdma = free(LinkScheme::Rdma) && (facts.forced.is_some() || !facts.trusts);
        assert_eq!(schemes.contains(&LinkScheme::Rdma), rdma, "{facts:?}");
        let rings = free(LinkScheme::Uring) && facts.forced.is_some();
        assert_eq!(schemes.contains(&LinkScheme::Uring), rings, "{facts:?}");
        let tls = free(LinkScheme::Tcps) && (facts.forced.is_some() || facts.trusts);
        assert_eq!(schemes.contains(&LinkScheme::Tcps), tls, "{facts:?}");
        let rings = free(LinkScheme::Urings) && facts.forced.is_some();
        assert_eq!(schemes.contains(&LinkScheme::Urings), rings, "{facts:?}");
        // Whatever is offered is accounted for.
        for scheme in LinkScheme::ALL.iter().copied().filter(|&s| s != LinkScheme::Tcp && offered(s)) {
            let left_out = choice.left_out.iter().any(|l| l.scheme == scheme && !l.why.is_empty());
            assert_ne!(schemes.contains(&scheme), left_out, "{facts:?}: {scheme:?}");
        }
    }
}

#[test]
fn where_nothing_is_encrypted_it_is_said() {
    let mut facts = facts(&[LinkScheme::Rdma]);
    for forced in [None, Some(LinkScheme::Rdma)] {
        facts.forced = forced;
        let choice = choose(&facts);
        let rdma = choice.order.iter().find(|c| c.scheme == LinkScheme::Rdma);
        assert_eq!(rdma.is_some(), has(LinkScheme::Rdma));
        assert!(rdma.is_none_or(|c| c.why.contains("encrypt")), "{choice:?}");
    }
}

#[test]
fn io_uring_is_for_who_asks_for_it() {
    let mut facts = facts(&[LinkScheme::Uring, LinkScheme::Tcp]);
    for same_host in [false, true] {
        facts.same_host = same_host;
        let choice = choose(&facts);
        assert_eq!(order(&choice), [LinkScheme::Tcp]);
        assert!(choice.left_out[0].why.contains("--link uring"), "{choice:?}");
    }
    facts.forced = Some(LinkScheme::Uring);
    assert_eq!(order(&choose(&facts)).contains(&LinkScheme::Uring), has(LinkScheme::Uring));
}

#[test]
fn nothing_offered_leaves_what_was_asked_over() {
    let choice = choose(&facts(&[]));
    assert_eq!(choice.order.len(), 1);
    assert_eq!(choice.order[0].uri.to_string(), "tcp://gpu-host:7070");
}

#[test]
fn an_ipv6_host_keeps_its_brackets() {
    let mut facts = facts(&[LinkScheme::Tcps, LinkScheme::Rdma]);
    facts.host = "::1".into();
    facts.asked = "tcp://[::1]:7070".parse().unwrap();
    for candidate in choose(&facts).order {
        assert!(candidate.uri.to_string().contains("[::1]"), "{candidate:?}");
    }
}

#[test]
fn a_server_that_was_asked_over_tls_is_not_left_for_plaintext() {
    let mut facts = facts(&[LinkScheme::Tcp, LinkScheme::Uring, LinkScheme::Rdma]);
    (facts.asked, facts.trusts) = ("tcps://gpu-host:7070".parse().unwrap(), true);
    let choice = choose(&facts);
    assert_eq!(order(&choice), [LinkScheme::Tcps]);
    assert_eq!(choice.left_out.len(), 3, "{choice:?}");
}
