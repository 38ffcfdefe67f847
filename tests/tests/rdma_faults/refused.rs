//! Who may not come in over RDMA: a wrong token, none, and an answer that was heard on the way. Told so, logged and counted, as on
//! every other link.

use std::sync::Arc;
use std::time::Duration;

use genie_tests::child::patience;
use genie_tests::log::Log;
use genie_tests::raw::{Raw, control};
use genie_tests::rdma::serve;
use genie_tests::serve::{Live, config};
use genie_transport::auth::{Exchange, Guard, Token, Tokens};
use genie_transport::client::{ClientError, ConnectOptions, blocking};
use genie_transport::wire::{Caps, Control, ErrorCode, Proof};

fn connect(server: &Live, token: Option<&Token>) -> Result<blocking::Session, ClientError> {
    let mut options = ConnectOptions::default();
    options.client.token = token.cloned().map(Arc::new);
    blocking::Session::connect(&server.uri, options)
}

/// That the server has logged it; from whom is any address's.
fn is_logged(log: &Log, reason: &str) {
    let words = [" WARN ", &format!("reason={reason} "), "name=\"alice\"", "refused: "];
    let is = |line: &String| words.iter().all(|word| line.contains(word));
    let found = patience(Duration::from_secs(10), |_| log.lines().iter().any(|(_, line)| is(line)).then_some(()));
    assert!(found.is_some(), "a refusal for {reason} is not logged: {:?}", log.lines());
}

fn challenged(server: &Live) -> (Raw, [u8; 32]) {
    let mut raw = Raw::dial_link(&server.uri, None);
    raw.send(&control(&Control::Hello(Caps::OURS)));
    match raw.hear_control() {
        Some(Control::Challenge(nonce)) => (raw, nonce),
        other => panic!("no challenge came, but {other:?}"),
    }
}

#[test]
fn who_has_no_token_or_another_or_somebody_elses_answer() {
    let log = Log::of_this_process();
    let (alice, other) = (Token::draw("alice").expect("a name"), Token::draw("alice").expect("a name"));
    let mut config = config(9);
    config.settings.guard = Arc::new(Guard::with_tokens(Tokens::new([alice.clone()])));
    let server = serve(config, Arc::default());

    assert_eq!(connect(&server, None).err(), Some(ClientError::TokenWanted));
    match connect(&server, Some(&other)).err() {
        Some(ClientError::Remote(error)) => assert_eq!(error.code, ErrorCode::Unauthorized, "{error}"),
        got => panic!("another's token: {got:?}"),
    }
    is_logged(&log, "WrongToken");

    let (mut first, server_nonce) = challenged(&server);
    let nonce = [3; 32];
    let exchange = Exchange { server_nonce: &server_nonce, client_nonce: &nonce, name: &alice.name, binding: None };
    let proof = exchange.client_proof(&alice.secret);
    let heard = control(&Control::Proof(Proof { nonce, proof, name: alice.name.clone() }));
    first.send(&heard);
    assert!(matches!(first.hear_control(), Some(Control::Welcome(_))), "the token is known");
    let (mut again, _) = challenged(&server);
    again.send(&heard);
    assert_eq!(again.goodbye().code, ErrorCode::Unauthorized);
    is_logged(&log, "Replay");

    // Whoever has the token comes in, and sees what was counted.
    let stats = connect(&server, Some(&alice)).expect("a session").stats().expect("stats");
    for counter in ["genie_refused_token_total", "genie_refused_replay_total"] {
        assert!(stats.contains(&(counter.to_owned(), 1)), "{counter}: {stats:?}");
    }
}
