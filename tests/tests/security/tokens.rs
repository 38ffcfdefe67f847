//! Proofs of tokens: good, wrong, missing, replayed, skipped.

use bytes::Bytes;
use genie_graph::DType;
use genie_tests::raw::{Raw, control, lane_hello, request};
use genie_transport::auth::{Exchange, Token};
use genie_transport::client::{ClientError, PutOptions};
use genie_transport::wire::{Caps, Control, ErrorCode, Mac, Proof, Request, TensorSpec};

use super::{Scene, over_all};

fn token(name: &str) -> Token {
    Token::draw(name).unwrap()
}

#[test]
fn a_token_opens_and_its_lanes_carry() {
    let alice = token("alice");
    over_all(&[&alice], |scene| {
        let mut session = scene.connect(Some(&alice)).unwrap();
        let bytes = Bytes::from((0..8 << 20).map(|i: u32| (i >> 3) as u8).collect::<Vec<_>>());
        let spec = TensorSpec::new(DType::U8, &[8 << 20]).unwrap();
        let tensor = session.put(&spec, bytes.clone(), PutOptions::default()).unwrap();
        assert!(session.get(&tensor).unwrap()[..] == bytes[..]);
        session.close().unwrap();
        assert_eq!(scene.guard.refusals().map(|(_, n)| n).sum::<u64>(), 0);
    });
}

/// Slices go without checksums where every record is authenticated, and nowhere else.
#[test]
fn checksums_are_left_out_over_tls_alone() {
    let alice = token("alice");
    over_all(&[&alice], |scene| {
        let mut session = scene.connect(Some(&alice)).unwrap();
        let welcome = session.welcome().unwrap();
        assert_eq!(welcome.caps.has(Caps::UNCHECKED), scene.tls.is_some());
        session.close().unwrap();
    });
}

#[test]
fn without_the_token_nobody_gets_in() {
    let (alice, other) = (token("alice"), token("alice"));
    over_all(&[&alice], |scene| {
        assert_eq!(scene.connect(None).err(), Some(ClientError::TokenWanted));
        for wrong in [&other, &token("mallory")] {
            match scene.connect(Some(wrong)).err() {
                Some(ClientError::Remote(error)) => {
                    assert_eq!(error.code, ErrorCode::Unauthorized);
                    assert!(error.message.contains("token"), "{error}");
                }
                got => panic!("{got:?}"),
            }
        }
        assert_eq!(scene.refused("genie_refused_token_total"), 2);
        // Counted where everybody who may can see it.
        let stats = scene.connect(Some(&alice)).unwrap().stats().unwrap();
        assert!(stats.contains(&("genie_refused_token_total".to_owned(), 2)), "{stats:?}");
    });
}

fn dial(scene: &Scene) -> Raw {
    Raw::dial_link(&scene.server.uri, scene.tls.as_ref())
}

fn challenged(scene: &Scene) -> (Raw, [u8; 32]) {
    let mut raw = dial(scene);
    raw.send(&control(&Control::Hello(Caps::OURS)));
    match raw.hear_control() {
        Some(Control::Challenge(nonce)) => (raw, nonce),
        other => panic!("no challenge came, but {other:?}"),
    }
}

/// As who has the token makes it for this lane.
fn proof(token: &Token, raw: &Raw, server_nonce: &[u8; 32]) -> Proof {
    let (nonce, binding) = ([3; 32], raw.binding());
    let exchange = Exchange { server_nonce, client_nonce: &nonce, name: &token.name, binding };
    Proof { nonce, proof: exchange.client_proof(&token.secret), name: token.name.clone() }
}

/// What an eavesdropper has heard opens nothing: not the connection, and not its lanes.
#[test]
fn what_was_heard_on_the_way_opens_nothing() {
    let alice = token("alice");
    over_all(&[&alice], |scene| {
        let (mut first, nonce) = challenged(scene);
        let heard = control(&Control::Proof(proof(&alice, &first, &nonce)));
        first.send(&heard);
        let Some(Control::Welcome(welcome)) = first.hear_control() else { panic!("not welcomed") };
        assert_ne!(welcome.proof, Mac([0; 32]));
        let (mut again, other) = challenged(scene);
        assert_ne!(nonce, other, "nonces are drawn for one connection");
        again.send(&heard);
        assert_eq!(again.goodbye().code, ErrorCode::Unauthorized);
        assert_eq!(scene.refused("genie_refused_replay_total"), 1);
        // The welcome's salt alone is no lane key.
        let mut lane = dial(scene);
        lane.send(&control(&Control::LaneHello(lane_hello(&welcome, 1))));
        assert_eq!(lane.goodbye().code, ErrorCode::Unauthorized);
        assert_eq!(scene.refused("genie_refused_lane_total"), 1);
    });
}

/// A proof that was made for one channel, as one in the middle has it, is worth nothing on another with the same challenge.
#[test]
fn a_proof_is_for_its_channel_alone() {
    let alice = token("alice");
    let scene = Scene::new(&[&alice], "tcps");
    let (other, _) = challenged(&scene);
    let (mut raw, nonce) = challenged(&scene);
    assert_ne!(raw.binding(), other.binding());
    raw.send(&control(&Control::Proof(proof(&alice, &other, &nonce))));
    assert_eq!(raw.goodbye().code, ErrorCode::Unauthorized);
    assert_eq!(scene.refused("genie_refused_token_total"), 1);
}

#[test]
fn who_skips_the_proof_is_ended() {
    let alice = token("alice");
    over_all(&[&alice], |scene| {
        let open = request(1, &Request::Open { quota: 0, lease_ms: 0 });
        let (mut after, _) = challenged(scene);
        after.send(&open);
        assert_eq!(after.goodbye().code, ErrorCode::Unauthorized);
        let (mut twice, _) = challenged(scene);
        twice.send(&control(&Control::Hello(Caps::OURS)));
        assert_eq!(twice.goodbye().code, ErrorCode::Unauthorized);
        let mut at_once = dial(scene);
        at_once.send(&[control(&Control::Hello(Caps::OURS)), open].concat());
        assert_eq!(at_once.goodbye().code, ErrorCode::Unauthorized);
        assert_eq!(scene.refused("genie_refused_no_proof_total"), 3);
        assert!(scene.connect(Some(&alice)).is_ok());
    });
}

/// A server that does not ask, or does not know the token, is somebody else's.
#[test]
fn a_server_that_proves_nothing_is_not_talked_to() {
    let alice = token("alice");
    let open = genie_tests::serve::Live::start(genie_tests::serve::config(7));
    let mut options = genie_transport::client::ConnectOptions::default();
    options.client.token = Some(std::sync::Arc::new(alice));
    let refused = genie_transport::client::blocking::Session::connect(&open.uri, options).err();
    assert_eq!(refused, Some(ClientError::ServerUnproven { name: "alice".into() }));
}

#[test]
fn nobody_resumes_the_session_of_another() {
    let (alice, bob) = (token("alice"), token("bob"));
    over_all(&[&alice, &bob], |scene| {
        let mut session = scene.connect(Some(&alice)).unwrap();
        let opened = session.opened().unwrap();
        let stolen = scene.connect_with(Some(&bob), |o| o.client.resume = Some(opened)).err();
        assert!(matches!(&stolen, Some(ClientError::Remote(e)) if e.code == ErrorCode::Unauthorized), "{stolen:?}");
        assert_eq!(scene.refused("genie_refused_session_total"), 1);
        // It is unharmed, and its owner may.
        session.ping().unwrap();
        let own = scene.connect_with(Some(&alice), |o| o.client.resume = Some(opened)).unwrap().opened();
        assert_eq!(own.map(|o| o.session), Some(opened.session));
    });
}
