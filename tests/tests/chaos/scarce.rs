//! A server that has no descriptor left: who is there is served, who comes waits, and nothing is broken when others have left.

use std::time::Duration;

use genie_tests::child::patience;
use genie_tests::churn::Churn;
use genie_transport::client::{ClientError, blocking};

use crate::place::Place;
use crate::roles::{MOST, options, server_with};

/// Descriptors that the server may have: its own, and those of few clients.
const DESCRIPTORS: u64 = 64;

pub(crate) fn descriptors_run_out(scheme: &str) {
    let place = Place::of(scheme);
    let (_server, uri) = server_with(&place, &place.listen, 1, None, DESCRIPTORS);
    let uri = uri.parse().expect("an address");
    let mut options = options(&place.certificates);
    options.client.lease_ms = 60_000;
    options.client.reconnect_for = Duration::from_millis(300);
    // A greeting has no more time than that either. On a busy machine one may take longer, and three in a row do not.
    let attempt = || blocking::Session::connect(&uri, options.clone());
    let connect = || attempt().or_else(|_| attempt()).or_else(|_| attempt());
    // Its lanes are open from here on.
    let mut first = connect().expect("a session");
    let mut churn = Churn::new(1, MOST);
    churn.burst(&mut first).expect("the server is there");
    let mut crowd = Vec::new();
    let refused = loop {
        match connect() {
            Ok(session) => crowd.push(session),
            Err(error) => break error,
        }
        assert!(crowd.len() <= DESCRIPTORS as usize, "more clients than descriptors");
    };
    assert!(matches!(refused, ClientError::Unreachable { .. }), "{refused}");
    assert!(crowd.len() > 5, "only {} were served", crowd.len());
    let mut back = Vec::new();
    for session in crowd.iter_mut().chain([&mut first]) {
        session.echo(b"here", &mut back).expect("whoever is there is served");
        assert_eq!(session.sessions_lost(), 0);
    }
    crowd.clear();
    let found = patience(Duration::from_secs(10), |_| connect().ok());
    let mut late = found.expect("there is room again");
    churn.burst(&mut first).expect("the server is there");
    let mut churn = Churn::new(2, MOST);
    churn.burst(&mut late).expect("the server is there");
}
