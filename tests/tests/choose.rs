//! `genie://` over real sockets: what is offered is looked at, and what does not work is done without.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use genie_tests::authority::Authority;
use genie_tests::raw::{Raw, control};
use genie_tests::serve::{Live, config};
use genie_transport::Uri;
use genie_transport::client::{ClientError, ConnectOptions, blocking};
use genie_transport::connection::Offers;
use genie_transport::link::Access;
use genie_transport::link::choose::{self, Outcome};
use genie_transport::link::tls::{TlsClient, TlsServer};
use genie_transport::wire::{AskLinks, Control, ErrorCode, LinkOffer, LinkScheme, limits};

/// A server that says of itself that it listens there as well.
fn offering(epoch: u64, boot: Option<String>, paths: &[&str]) -> Live {
    let shm = |path: &&str| LinkOffer { scheme: LinkScheme::Shm, port: 0, path: Some((*path).to_owned()) };
    let mut config = config(epoch);
    config.settings.offers = Arc::new(Offers { boot, offers: paths.iter().map(shm).collect() });
    Live::start(config)
}

fn find(address: SocketAddr) -> choose::Report {
    choose::find("127.0.0.1", address.port(), None, None).expect("the server is there").report
}

fn session(address: SocketAddr, link: &str) -> Result<blocking::Session, ClientError> {
    session_with(address, link, ConnectOptions::default())
}

fn session_with(address: SocketAddr, link: &str, options: ConnectOptions) -> Result<blocking::Session, ClientError> {
    let uri: Uri = format!("genie://127.0.0.1:{}{link}", address.port()).parse().expect("an address");
    blocking::Session::connect(&uri, options)
}

fn echoes(mut session: blocking::Session) {
    let mut back = Vec::new();
    session.echo(b"there and back", &mut back).expect("an echo");
    assert_eq!(back, b"there and back");
    session.close().expect("it ends");
}

#[test]
fn with_nothing_else_offered_it_is_tcp() {
    let server = offering(1, choose::boot_id(), &[]);
    let report = find(server.address());
    assert_eq!(report.chosen, server.uri);
    assert!(report.same_host);
    assert!(report.tried[0].outcome == Outcome::Chosen && report.tried[0].round_trip.is_some());
    echoes(session(server.address(), "").expect("a session"));
    echoes(session(server.address(), "?link=tcp").expect("a session"));
}

#[test]
fn a_better_link_that_does_not_work_is_done_without() {
    let server = offering(2, choose::boot_id(), &["/nonexistent/genie.sock"]);
    let report = find(server.address());
    assert_eq!(report.chosen, server.uri);
    let shm = report.tried.iter().find(|t| t.scheme == LinkScheme::Shm).expect("it was offered");
    assert!(matches!(shm.outcome, Outcome::Failed(_) | Outcome::LeftOut(_)), "{shm:?}");
    echoes(session(server.address(), "").expect("a session"));
}

#[test]
fn on_one_host_it_is_shared_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("genie.sock").display().to_string();
    let shm: Uri = format!("shm://{path}").parse().expect("an address");
    let server = offering(6, choose::boot_id(), &[&path]);
    server.listen(&shm);
    let report = find(server.address());
    assert_eq!(report.chosen, shm);
    assert!(report.same_host && report.tried[0].outcome == Outcome::Chosen, "{report:?}");
    assert_eq!(report.tried[1].outcome, Outcome::Spare);
    echoes(session(server.address(), "").expect("a session"));
    echoes(session(server.address(), "?link=shm").expect("a session"));
    let choose::Report { chosen, .. } = choose::find("127.0.0.1", server.address().port(), Some(LinkScheme::Tcp), None)
        .expect("the server is there")
        .report;
    assert_eq!(chosen, server.uri);
}

#[test]
fn another_server_at_the_path_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("genie.sock").display().to_string();
    let other = Live::start_at(config(7), &format!("shm://{path}").parse().expect("an address"));
    let server = offering(8, choose::boot_id(), &[&path]);
    let report = find(server.address());
    assert_eq!(report.chosen, server.uri);
    let why = Outcome::Failed("another server answers there".to_owned());
    assert_eq!(report.tried.iter().find(|t| t.scheme == LinkScheme::Shm).map(|t| &t.outcome), Some(&why));
    drop(other);
}

#[test]
fn a_link_that_is_asked_for_is_not_done_without() {
    let server = offering(3, choose::boot_id(), &["/nonexistent/genie.sock"]);
    let mut options = ConnectOptions::default();
    // What is not there is tried for as long.
    options.client.reconnect_for = Duration::from_millis(500);
    let asked = |link: &str| session_with(server.address(), link, options.clone());
    assert!(matches!(asked("?link=shm"), Err(ClientError::Unreachable { .. })));
    let Err(error) = asked("?link=rdma") else { panic!("a session over a link that is not offered") };
    assert!(error.to_string().contains("no rdma to this server"), "{error}");
}

#[test]
fn a_server_elsewhere_gets_no_client_to_open_a_path() {
    for boot in [None, Some("another host's".to_owned())] {
        let server = offering(4, boot, &["/tmp/genie.sock"]);
        let report = find(server.address());
        assert!(!report.same_host);
        assert_eq!(report.chosen, server.uri);
        // It is not even told.
        assert!(report.tried.iter().all(|t| t.scheme == LinkScheme::Tcp), "{report:?}");
    }
}

#[test]
fn a_server_that_does_not_know_the_question_is_taken_as_it_is() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let old = std::thread::spawn(move || {
        let (mut first, _) = listener.accept().expect("a client");
        let _ = first.read(&mut [0; 64]);
        // What it says before it closes is no answer.
        let _ = first.write_all(b"what?");
        drop(first);
        let _second = listener.accept().expect("the client comes again");
    });
    let report = find(address);
    assert_eq!(report.chosen.to_string(), format!("tcp://{address}"));
    assert!(report.why.contains("does not say"), "{report:?}");
    old.join().expect("the server ran");
}

/// A server that listens by TLS alone, with a certificate for this name, and who trusts it.
fn encrypted(epoch: u64, name: &str) -> (Live, TlsClient) {
    let authority = Authority::new();
    let (cert, key) = authority.sign(name, 30);
    let tls = Some(Arc::new(TlsServer::load(&cert, &key, None).expect("a certificate")));
    let mut config = config(epoch);
    let offer = LinkOffer { scheme: LinkScheme::Tcps, port: 1, path: None };
    config.settings.offers = Arc::new(Offers { boot: choose::boot_id(), offers: vec![offer] });
    let uri = "tcps://127.0.0.1:0".parse().expect("an address");
    let server = Live::start_for(config, &uri, &Access { tls, ..Access::anybody() });
    (server, TlsClient::load(&authority.ca(), None).expect("a CA"))
}

#[test]
fn a_server_that_speaks_tls_alone_is_reached_with_a_ca() {
    let (server, tls) = encrypted(9, "127.0.0.1");
    let port = server.address().port();
    let report = choose::find("127.0.0.1", port, None, Some(&tls)).expect("the server is there").report;
    assert_eq!(report.chosen, server.uri);
    assert!(report.same_host, "it was asked over TLS as well");
    let options = ConnectOptions { tls: Some(tls), ..ConnectOptions::default() };
    echoes(session_with(server.address(), "", options).expect("a session"));
    // Without one, it is said what is missing, at once.
    match session(server.address(), "") {
        Err(ClientError::Untrusted { reason }) => assert!(reason.contains("--ca"), "{reason}"),
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn a_certificate_of_somebody_else_is_not_got_around() {
    let (server, _) = encrypted(10, "127.0.0.1");
    let (_other, tls) = encrypted(11, "127.0.0.1");
    let Err(error) = choose::find("127.0.0.1", server.address().port(), None, Some(&tls)) else {
        panic!("somebody else's certificate was taken");
    };
    assert!(error.to_string().contains("authority"), "{error}");
}

#[test]
fn with_a_ca_a_server_without_tls_is_reached_on_this_host_alone() {
    let (_, tls) = encrypted(12, "127.0.0.1");
    let server = offering(13, choose::boot_id(), &[]);
    let report = choose::find("127.0.0.1", server.address().port(), None, Some(&tls)).expect("it stays here").report;
    assert_eq!(report.chosen, server.uri);
}

#[test]
fn io_uring_is_left_to_who_asks_for_it() {
    if let Err(why) = genie_transport::link::uring::available() {
        eprintln!("left out: {why}");
        return;
    }
    let server = Live::start_offering(config(14), &"uring://127.0.0.1:0".parse().expect("an address"));
    let port = server.address().port();
    let ring: Uri = format!("uring://127.0.0.1:{port}").parse().expect("an address");
    // Its port speaks tcp as well, for clients without io_uring.
    let plain = Uri::Tcp { host: "127.0.0.1".to_owned(), port };
    let report = find(server.address());
    let of = |scheme| report.tried.iter().find(|t| t.scheme == scheme).map(|t| &t.outcome);
    assert_eq!((&report.chosen, of(LinkScheme::Tcp)), (&plain, Some(&Outcome::Chosen)));
    assert!(matches!(of(LinkScheme::Uring), Some(Outcome::LeftOut(why)) if why.contains("--link uring")), "{report:?}");
    echoes(session(server.address(), "").expect("a session"));
    let forced = choose::find("127.0.0.1", port, Some(LinkScheme::Uring), None).expect("it was asked for").report;
    assert_eq!(forced.chosen, ring);
    echoes(session(server.address(), "?link=uring").expect("a session"));
}

#[test]
fn links_are_not_asked_for_without_end() {
    let server = offering(5, None, &[]);
    let mut raw = Raw::dial(server.address());
    let ask = control(&Control::AskLinks(AskLinks { nonce: [1; 16], host: [0; 16] }));
    for _ in 0..limits::LINKS_ASKED {
        raw.send(&ask);
        assert!(matches!(raw.hear_control(), Some(Control::Links(_))));
    }
    raw.send(&ask);
    match raw.hear_control() {
        Some(Control::Goodbye(error)) => assert_eq!(error.code, ErrorCode::Busy),
        other => panic!("{other:?}"),
    }
    // Nor in the middle of a connection.
    let (mut greeted, _) = Raw::greet(server.address());
    greeted.send(&ask);
    match greeted.hear_control() {
        Some(Control::Goodbye(error)) => assert_eq!(error.code, ErrorCode::Malformed),
        other => panic!("{other:?}"),
    }
}
