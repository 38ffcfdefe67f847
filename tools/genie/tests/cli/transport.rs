//! The Rust programs of docs/guide: against a server in a process of its own.

#[path = "../../../../transport/examples/hello.rs"]
#[expect(dead_code, reason = "its main is for the command line")]
mod hello;
#[path = "../../../../transport/examples/mover.rs"]
#[expect(dead_code, reason = "its main is for the command line")]
mod mover;

use crate::support::Server;

#[test]
fn the_example_moves_blocks() {
    let folder = tempfile::tempdir().expect("there is room");
    let socket = format!("shm://{}/genie.sock", folder.path().display());
    for (listen, how) in [("tcp://127.0.0.1:0", "sent"), (socket.as_str(), "passed")] {
        let server = Server::at(listen, &["--device", "cpu", "--threads", "2"]);
        let said = mover::run(&server.uri, 12).expect("it runs");
        assert_eq!(said, format!("12 MB there and back, {how}"));
    }
}

#[test]
fn the_first_program_gets_its_numbers_back() {
    let server = Server::at("tcp://127.0.0.1:0", &["--device", "cpu", "--threads", "2"]);
    assert_eq!(hello::run(&server.uri).expect("it runs"), [0.0, 4.0, 0.0, 16.0]);
}
