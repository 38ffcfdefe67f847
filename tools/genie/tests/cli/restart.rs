//! A server that is gone and comes back, under a model that goes on.

use std::sync::Arc;
use std::time::Duration;

use genie_models::remote::{RemoteModel, RemoteOptions, Sampling};
use genie_models::{HashCache, Model, OpenOptions};
use genie_transport::client::{ConnectOptions, blocking};

use crate::model;
use crate::relay::Relay;
use crate::support::Server;

const SAMPLING: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 11 };

fn remote(uri: &str, model: &Arc<Model>) -> RemoteModel {
    let session = blocking::Session::connect(&uri.parse().unwrap(), ConnectOptions::default()).unwrap();
    let options = RemoteOptions { hashes: HashCache::none(), ..RemoteOptions::default() };
    RemoteModel::establish(session, model.clone(), &options, |_| {}).unwrap()
}

fn tiny() -> Arc<Model> {
    let folder = tempfile::tempdir().unwrap();
    model::write(folder.path());
    // The files stay mapped though their folder goes.
    Arc::new(Model::open(folder.path(), OpenOptions::default()).unwrap())
}

/// Another server at the same place, with nothing of what the first had.
fn replaced(server: Server, signal: &str) -> Server {
    let uri = server.uri.clone();
    server.signal(signal);
    server.wait();
    Server::at(&uri, &["--device", "cpu", "--threads", "2"])
}

fn prompt(count: i32) -> Vec<i32> {
    (0..count).map(|i| (i * 13 + 5) % 97).collect()
}

#[test]
fn steps_go_on_with_the_same_tokens() {
    let model = tiny();
    let say = |restarts: &[(usize, &str)]| {
        let mut server = Server::start_apart();
        let mut remote = remote(&server.uri, &model);
        let mut context = remote.context(SAMPLING).unwrap();
        let mut tokens = vec![remote.prefill(&mut context, &prompt(70)).unwrap()];
        for step in 0..60 {
            for (_, signal) in restarts.iter().filter(|(at, _)| *at == step) {
                server = replaced(server, signal);
            }
            let last = *tokens.last().unwrap();
            tokens.push(remote.step(&mut context, last).unwrap());
        }
        assert_eq!(context.len(), 130);
        assert_eq!(remote.lives(), 1 + restarts.len() as u64);
        (tokens, context.tokens())
    };
    let undisturbed = say(&[]);
    assert_eq!(say(&[(0, "-KILL"), (30, "-TERM"), (59, "-KILL")]), undisturbed);
}

#[test]
fn a_generate_that_is_cut_goes_on_with_the_same_tokens() {
    let model = tiny();
    let say = |restart: Option<(usize, &str)>| {
        let mut server = Some(Server::start_apart());
        let mut remote = remote(&server.as_ref().unwrap().uri, &model);
        let mut context = remote.context(SAMPLING).unwrap();
        // Longer than what a server runs in one piece.
        let mut tokens = Vec::new();
        let stopped = remote.generate(&mut context, &prompt(300), 50, &[], |token| {
            tokens.push(token);
            if let Some((_, signal)) = restart.filter(|(at, _)| *at == tokens.len()) {
                server = server.take().map(|s| replaced(s, signal));
            }
            true
        });
        assert_eq!(stopped.unwrap(), genie_transport::wire::Finish::Length);
        // On from the last token, which was not run yet.
        let last = *tokens.last().unwrap();
        remote
            .generate(&mut context, &[last], 5, &[], |token| {
                tokens.push(token);
                true
            })
            .unwrap();
        assert_eq!(context.len(), 300 + 50 + 4);
        tokens
    };
    let undisturbed = say(None);
    assert_eq!(undisturbed.len(), 55);
    for cut in [(1, "-KILL"), (17, "-KILL"), (1, "-TERM"), (30, "-TERM")] {
        assert_eq!(say(Some(cut)), undisturbed, "{cut:?}");
    }
}

#[test]
fn forks_part_and_both_survive_a_restart() {
    let model = tiny();
    let server = Server::start_apart();
    let mut remote = remote(&server.uri, &model);
    let mut a = remote.context(SAMPLING).unwrap();
    let first = remote.prefill(&mut a, &prompt(66)).unwrap();
    let mut b = remote.fork(&mut a).unwrap();
    let same = (remote.step(&mut a, first).unwrap(), remote.step(&mut b, first).unwrap());
    assert_eq!(same.0, same.1);
    let mut alone = remote.context(SAMPLING).unwrap();
    remote.prefill(&mut alone, &prompt(66)).unwrap();
    remote.step(&mut alone, first).unwrap();
    let other = (first + 1) % 97;
    remote.step(&mut b, other).unwrap();
    let expected = remote.step(&mut alone, same.0).unwrap();
    let _server = replaced(server, "-KILL");
    assert_eq!(remote.step(&mut a, same.0).unwrap(), expected, "what the fork said does not matter to it");
    assert_eq!(b.tokens()[66..], [first, other]);
    let b_next = remote.step(&mut b, 7).unwrap();
    let mut replay = remote.context(SAMPLING).unwrap();
    remote.prefill(&mut replay, &prompt(66)).unwrap();
    remote.step(&mut replay, first).unwrap();
    remote.step(&mut replay, other).unwrap();
    assert_eq!(remote.step(&mut replay, 7).unwrap(), b_next);
    remote.forget(replay).unwrap();
    remote.forget(a).unwrap();
}

#[test]
fn a_session_whose_lease_ran_out_is_built_again() {
    let model = tiny();
    let server = Server::start();
    let mut options = ConnectOptions::default();
    options.client.lease_ms = 1;
    let relay = Relay::to(&server.uri);
    let session = blocking::Session::connect(&relay.uri.parse().unwrap(), options).unwrap();
    let remote_options = RemoteOptions { hashes: HashCache::none(), ..RemoteOptions::default() };
    let mut remote = RemoteModel::establish(session, model, &remote_options, |_| {}).unwrap();
    let mut context = remote.context(SAMPLING).unwrap();
    let first = remote.prefill(&mut context, &prompt(10)).unwrap();
    let second = remote.step(&mut context, first).unwrap();
    relay.cut();
    let mut watch = blocking::Session::connect(&server.uri.parse().unwrap(), ConnectOptions::default()).unwrap();
    while watch.stats().unwrap().iter().any(|(name, count)| name == "genie_sessions" && *count > 1) {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let third = remote.step(&mut context, second).unwrap();
    assert_eq!(remote.lives(), 2);
    assert_eq!(remote.uploaded().sent, 0, "the weights were still there");
    let mut again = remote.context(SAMPLING).unwrap();
    assert_eq!(remote.prefill(&mut again, &prompt(10)).unwrap(), first);
    assert_eq!(remote.step(&mut again, first).unwrap(), second);
    assert_eq!(remote.step(&mut again, second).unwrap(), third);
}

#[test]
fn a_session_that_another_takes_up_is_not_taken_back() {
    let model = tiny();
    let server = Server::start();
    let mut remote = remote(&server.uri, &model);
    let mut context = remote.context(SAMPLING).unwrap();
    let first = remote.prefill(&mut context, &prompt(10)).unwrap();
    let mut taken = ConnectOptions::default();
    taken.client.resume = remote.session().opened();
    let mut other = blocking::Session::connect(&server.uri.parse().unwrap(), taken).unwrap();
    let error = remote.step(&mut context, first).unwrap_err();
    assert!(error.to_string().contains("taken up by another connection"), "{error}");
    other.ping().unwrap();
}

#[test]
fn a_generate_can_be_stopped_and_gone_on_with() {
    let model = tiny();
    let server = Server::start();
    let mut remote = remote(&server.uri, &model);
    let mut context = remote.context(SAMPLING).unwrap();
    let mut all = Vec::new();
    remote
        .generate(&mut context, &prompt(20), 40, &[], |token| {
            all.push(token);
            true
        })
        .unwrap();
    let mut context = remote.context(SAMPLING).unwrap();
    let mut some = Vec::new();
    remote
        .generate(&mut context, &prompt(20), 40, &[], |token| {
            some.push(token);
            some.len() < 7
        })
        .unwrap();
    // A few more may have been on their way.
    assert_eq!(all[..some.len()], some);
    assert_eq!(context.len() as usize, 20 + some.len() - 1);
    let last = *some.last().unwrap();
    assert_eq!(remote.step(&mut context, last).unwrap(), all[some.len()]);
    let stop = all[5];
    let at = all.iter().position(|t| *t == stop).unwrap();
    let mut context = remote.context(SAMPLING).unwrap();
    let mut until = Vec::new();
    let finish = remote.generate(&mut context, &prompt(20), 40, &[stop], |token| {
        until.push(token);
        true
    });
    assert_eq!(finish.unwrap(), genie_transport::wire::Finish::Stop);
    assert_eq!(until, all[..=at]);
}
