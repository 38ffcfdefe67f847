//! What a model on a server does where something is too much.

use std::sync::Arc;

use genie_models::remote::{RemoteModel, RemoteModelError, RemoteOptions, Sampling};
use genie_models::{HashCache, Model, OpenOptions};
use genie_transport::client::{ClientError, ConnectOptions, blocking};
use genie_transport::wire::{ErrorCode, Finish};

use crate::model;
use crate::support::Server;

const SAMPLING: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 5 };
/// Room for the weights and the KV cache of some 700 tokens: 256 bytes each, beside 90 kB.
const QUOTA: &str = "270K";

fn tiny() -> Arc<Model> {
    let folder = tempfile::tempdir().unwrap();
    model::write(folder.path());
    Arc::new(Model::open(folder.path(), OpenOptions::default()).unwrap())
}

fn session(server: &Server) -> blocking::Session {
    blocking::Session::connect(&server.uri.parse().unwrap(), ConnectOptions::default()).unwrap()
}

fn remote(server: &Server) -> RemoteModel {
    let options = RemoteOptions { hashes: HashCache::none(), ..RemoteOptions::default() };
    RemoteModel::establish(session(server), tiny(), &options, |_| {}).unwrap()
}

fn stat(session: &mut blocking::Session, name: &str) -> u64 {
    session.stats().unwrap().into_iter().find(|(n, _)| n == name).unwrap().1
}

fn prompt(count: u32) -> Vec<i32> {
    (0..count as i32).map(|i| (i * 13 + 5) % 97).collect()
}

fn over_quota<T>(result: Result<T, RemoteModelError>) -> bool {
    matches!(result, Err(RemoteModelError::Client(ClientError::Remote(e))) if e.code == ErrorCode::OverQuota)
}

#[test]
fn more_than_the_model_sees_is_not_sent() {
    let server = Server::start();
    let mut remote = remote(&server);
    let mut context = remote.context(SAMPLING).unwrap();
    let all = model::POSITIONS;
    let before = remote.session().traffic();
    let full = |r: Result<(), RemoteModelError>, by: u64| {
        let e = r.unwrap_err();
        assert!(e.to_string().contains("shorten the prompt"), "{e}");
        let RemoteModelError::ContextFull { length, max } = e else { panic!("{e}") };
        assert_eq!((length, max), (u64::from(all) + by, u64::from(all)));
    };
    full(remote.prefill(&mut context, &prompt(all + 1)).map(|_| ()), 1);
    full(remote.generate(&mut context, &prompt(all), 2, &[], |_| true).map(|_| ()), 1);
    full(remote.generate(&mut context, &prompt(all + 2), 0, &[], |_| true).map(|_| ()), 2);
    assert_eq!(remote.session().traffic(), before);

    // The last token is not run, so it takes no place.
    assert_eq!(remote.generate(&mut context, &prompt(all - 1), 2, &[], |_| true).unwrap(), Finish::Length);
    assert_eq!(context.len(), all);
    full(remote.step(&mut context, 1).map(|_| ()), 1);
}

/// A prompt longer than 512 tokens is run in pieces. When a later piece failed, the server kept the ones before it and the
/// context did not know: every call after that was refused for its position.
#[test]
fn a_prompt_that_fails_in_the_middle_leaves_the_context_as_it_was() {
    let server = Server::at("tcp://127.0.0.1:0", &["--device", "cpu", "--threads", "2", "--quota", QUOTA]);
    let mut remote = remote(&server);
    let mut context = remote.context(SAMPLING).unwrap();
    let first = remote.prefill(&mut context, &prompt(20)).unwrap();
    assert!(over_quota(remote.generate(&mut context, &prompt(1500), 3, &[], |_| true)));
    assert_eq!(context.len(), 20);
    let second = remote.step(&mut context, first).unwrap();
    assert_eq!(remote.lives(), 1);

    let mut undisturbed = remote.context(SAMPLING).unwrap();
    assert_eq!(remote.prefill(&mut undisturbed, &prompt(20)).unwrap(), first);
    assert_eq!(remote.step(&mut undisturbed, first).unwrap(), second);
}

/// Each try to build a context again made a cache and two bindings, and left them there when its tokens did not fit: the next try
/// had even less room.
#[test]
fn a_context_that_cannot_be_built_again_leaves_nothing() {
    let server = Server::start_apart();
    let mut remote = remote(&server);
    let mut context = remote.context(SAMPLING).unwrap();
    remote.prefill(&mut context, &prompt(1500)).unwrap();
    let uri = server.uri.clone();
    server.signal("-KILL");
    server.wait();
    let server = Server::at(&uri, &["--device", "cpu", "--threads", "2", "--quota", QUOTA]);
    assert!(over_quota(remote.step(&mut context, 1)));
    let held = (stat(remote.session(), "genie_session_bytes"), stat(remote.session(), "genie_handles"));
    for _ in 0..3 {
        assert!(over_quota(remote.step(&mut context, 1)));
    }
    assert_eq!((stat(remote.session(), "genie_session_bytes"), stat(remote.session(), "genie_handles")), held);
    // There is room for another.
    let mut other = remote.context(SAMPLING).unwrap();
    remote.prefill(&mut other, &prompt(500)).unwrap();
    drop(server);
}

#[test]
fn a_model_that_does_not_fit_leaves_no_session() {
    let server = Server::at("tcp://127.0.0.1:0", &["--device", "cpu", "--threads", "2", "--quota", "50K"]);
    let options = RemoteOptions { hashes: HashCache::none(), ..RemoteOptions::default() };
    assert!(over_quota(RemoteModel::establish(session(&server), tiny(), &options, |_| {})));
    let mut watch = session(&server);
    assert_eq!(stat(&mut watch, "genie_sessions"), 1, "this one");
    assert_eq!(stat(&mut watch, "genie_session_bytes"), 0);
}
