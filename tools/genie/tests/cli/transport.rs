//! The Rust side of docs/guide/transport.md: its example, against a server in a process of its own.

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
