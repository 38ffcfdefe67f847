//! Steps with requests ahead of their replies: what is said, and what is in the cache, is what steps one by one say and leave,
//! whatever happens on the way.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use genie_graph::{DType, RopeStyle};
use genie_models::remote::{Context, RemoteModel, RemoteModelError, RemoteOptions, Sampling, StepsOptions};
use genie_models::{HashCache, LlamaConfig, Model, synthetic};
use genie_tests::proxy::Proxy;
use genie_tests::serve::{Live, config};
use genie_transport::Uri;
use genie_transport::client::{ConnectOptions, blocking};
use genie_transport::wire::{Finish, HEADER_BYTES, Kind, decode_header, limits};

const SAMPLING: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 5 };
const POSITIONS: u64 = 128;

fn llama() -> Arc<Model> {
    let config = LlamaConfig {
        vocab: 97,
        hidden: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        intermediate: 64,
        max_positions: POSITIONS,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_style: RopeStyle::Half,
        inv_freq: None,
        tied: true,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
    };
    Arc::new(synthetic::random_llama(config, 3, DType::F32).unwrap())
}

fn session(uri: &Uri) -> blocking::Session {
    blocking::Session::connect(uri, ConnectOptions::default()).unwrap()
}

fn remote(uri: &Uri) -> RemoteModel {
    let options = RemoteOptions { hashes: HashCache::none(), ..RemoteOptions::default() };
    RemoteModel::establish(session(uri), llama(), &options, |_| {}).unwrap()
}

/// A context with a prompt, and the token that follows.
fn begin(remote: &mut RemoteModel) -> (Context, i32) {
    let mut context = remote.context(SAMPLING).unwrap();
    let prompt: Vec<i32> = (0..20).map(|i| (i * 13 + 5) % 97).collect();
    let first = remote.prefill(&mut context, &prompt).unwrap();
    (context, first)
}

/// The token that follows the prompt, and so many that steps one by one make of it.
fn one_by_one(remote: &mut RemoteModel, count: usize) -> Vec<i32> {
    let (mut context, first) = begin(remote);
    let mut tokens = vec![first];
    for _ in 0..count {
        tokens.push(remote.step(&mut context, tokens[tokens.len() - 1]).unwrap());
    }
    remote.forget(context).unwrap();
    tokens
}

/// So many steps, and what `each` saw.
fn ahead(
    remote: &mut RemoteModel,
    context: &mut Context,
    token: i32,
    options: &StepsOptions,
) -> (Result<Finish, RemoteModelError>, Vec<i32>) {
    let mut tokens = Vec::new();
    let finish = remote.steps(context, token, options, |token| {
        tokens.push(token);
        true
    });
    (finish, tokens)
}

fn options(max_new: u32, ahead: u32) -> StepsOptions {
    StepsOptions { max_new, stop: Vec::new(), ahead }
}

/// Steps on from a context whose last token is the n-th of these: they must be the same, as its keys and values are.
fn goes_on(remote: &mut RemoteModel, context: &mut Context, expected: &[i32], n: usize) {
    assert_eq!(context.tokens()[20..], expected[..n], "what is in the context");
    // Each says how long the server's cache must be.
    for at in n..expected.len() - 1 {
        assert_eq!(remote.step(context, expected[at]).unwrap(), expected[at + 1], "token {at}");
    }
}

#[test]
fn tokens_and_cache_are_those_of_steps_one_by_one() {
    let server = Live::start(config(1));
    let mut remote = remote(&server.uri);
    let expected = one_by_one(&mut remote, 60);
    for depth in [0, 1, 7, 1000] {
        let (mut context, first) = begin(&mut remote);
        let (finish, tokens) = ahead(&mut remote, &mut context, first, &options(0, depth));
        assert_eq!((finish.unwrap(), tokens.len(), context.len()), (Finish::Length, 0, 20));
        let (finish, tokens) = ahead(&mut remote, &mut context, first, &options(40, depth));
        assert_eq!((finish.unwrap(), &tokens[..]), (Finish::Length, &expected[1..=40]), "{depth} ahead");
        goes_on(&mut remote, &mut context, &expected, 40);
        remote.forget(context).unwrap();
    }
    assert_eq!(remote.lives(), 1);
}

#[test]
fn as_many_requests_are_under_way_as_were_asked_for() {
    let server = Live::start(config(1));
    let (mut remote, mut watcher) = (remote(&server.uri), session(&server.uri));
    let asked = AtomicU64::new(0);
    // Requests that the server has got, but for those of whoever asks.
    let mut count = || {
        let own = asked.fetch_add(1, Ordering::Relaxed) + 1;
        let stats = watcher.stats().unwrap();
        stats.iter().find(|(name, _)| name == "genie_requests_total").unwrap().1 - own
    };
    for depth in [0, 1, 5] {
        let (mut context, first) = begin(&mut remote);
        let before = count();
        let mut seen = 0;
        remote
            .steps(&mut context, first, &options(12, depth), |_| {
                seen += 1;
                // Of those that are answered, this is the last: the client reads and sends nothing before it returns.
                let expected = before + (seen + u64::from(depth)).min(12);
                let until = Instant::now() + Duration::from_secs(60);
                let mut found = count();
                while found < expected && Instant::now() < until {
                    found = count();
                }
                assert_eq!(found, expected, "after token {seen}, {depth} ahead");
                true
            })
            .unwrap();
        assert_eq!(seen, 12);
        remote.forget(context).unwrap();
    }
}

#[test]
fn what_was_asked_for_too_early_is_undone() {
    let server = Live::start(config(1));
    let mut remote = remote(&server.uri);
    let expected = one_by_one(&mut remote, 60);
    for depth in [0, 1, 6] {
        for at in [1, 2, 17] {
            // By whoever sees the tokens.
            let (mut context, first) = begin(&mut remote);
            let mut tokens = Vec::new();
            let finish = remote.steps(&mut context, first, &options(40, depth), |token| {
                tokens.push(token);
                tokens.len() < at
            });
            assert_eq!((finish.unwrap(), &tokens[..]), (Finish::Stop, &expected[1..=at]), "{depth} ahead");
            goes_on(&mut remote, &mut context, &expected, at);
            remote.forget(context).unwrap();
            // By a token; they are drawn, so it may have come before.
            let (mut context, first) = begin(&mut remote);
            let stop = expected[at];
            let came = 1 + expected[1..].iter().position(|&t| t == stop).unwrap();
            let stopping = StepsOptions { stop: vec![stop], ..options(40, depth) };
            let (finish, tokens) = ahead(&mut remote, &mut context, first, &stopping);
            assert_eq!((finish.unwrap(), &tokens[..]), (Finish::Stop, &expected[1..=came]));
            goes_on(&mut remote, &mut context, &expected, came);
            remote.forget(context).unwrap();
        }
    }
    // The last that was wanted: nothing is under way beyond it.
    let (mut context, first) = begin(&mut remote);
    let stopping = StepsOptions { stop: vec![expected[1]], ..options(1, 3) };
    assert_eq!(ahead(&mut remote, &mut context, first, &stopping).0.unwrap(), Finish::Stop);
    goes_on(&mut remote, &mut context, &expected, 1);
}

#[test]
fn a_context_that_would_be_full_is_left_alone() {
    let server = Live::start(config(1));
    let mut remote = remote(&server.uri);
    let (mut context, first) = begin(&mut remote);
    let room = POSITIONS as u32 - 20;
    let (full, tokens) = ahead(&mut remote, &mut context, first, &options(room + 1, 1));
    assert!(matches!(full, Err(RemoteModelError::ContextFull { .. })), "{full:?}");
    assert_eq!((tokens.len(), context.len()), (0, 20));
    let (finish, tokens) = ahead(&mut remote, &mut context, first, &options(room, 1));
    assert_eq!((finish.unwrap(), tokens.len(), context.len()), (Finish::Length, room as usize, POSITIONS as u32));
}

#[test]
fn a_text_goes_on_the_same_however_often_its_connection_breaks() {
    let server = Live::start(config(1));
    let expected = one_by_one(&mut remote(&server.uri), 60);
    for (cut, depth) in [(5000, 1), (2000, 1), (1100, 1), (1100, 4)] {
        let proxy = Proxy::to(server.address());
        let mut remote = remote(&proxy.uri);
        let (mut context, first) = begin(&mut remote);
        proxy.cut_after(cut, cut);
        let (finish, tokens) = ahead(&mut remote, &mut context, first, &options(40, depth));
        assert_eq!((finish.unwrap(), &tokens[..]), (Finish::Length, &expected[1..=40]), "cut after every {cut} bytes");
        assert!(proxy.cuts() > 0, "it was not cut");
        goes_on(&mut remote, &mut context, &expected, 40);
        // The session was taken up each time.
        assert_eq!((remote.lives(), remote.session().sessions_lost()), (1, 0));
    }
}

#[test]
fn a_server_that_is_lost_in_the_middle_is_built_again() {
    let first_server = Live::start(config(1));
    let (uri, mut server) = (first_server.uri.clone(), Some(first_server));
    let mut remote = remote(&uri);
    let expected = one_by_one(&mut remote, 60);
    let (mut context, first) = begin(&mut remote);
    let mut tokens = Vec::new();
    let finish = remote.steps(&mut context, first, &options(40, 3), |token| {
        tokens.push(token);
        if tokens.len() == 20
            && let Some(lost) = server.take()
        {
            lost.kill();
            server = Some(Live::start_at(config(2), &uri));
        }
        true
    });
    assert_eq!((finish.unwrap(), &tokens[..]), (Finish::Length, &expected[1..=40]));
    goes_on(&mut remote, &mut context, &expected, 40);
    assert_eq!(remote.lives(), 2);
}

#[test]
fn sessions_that_are_ahead_do_not_disturb_each_other() {
    let server = Live::start(config(1));
    let expected = one_by_one(&mut remote(&server.uri), 60);
    let decode = || {
        let mut remote = remote(&server.uri);
        let (mut context, first) = begin(&mut remote);
        let (finish, tokens) = ahead(&mut remote, &mut context, first, &options(40, 2));
        assert_eq!((finish.unwrap(), &tokens[..]), (Finish::Length, &expected[1..=40]));
        goes_on(&mut remote, &mut context, &expected, 40);
    };
    thread::scope(|scope| {
        (0..3).map(|_| scope.spawn(decode)).collect::<Vec<_>>().into_iter().for_each(|t| t.join().unwrap())
    });
}

#[test]
fn a_step_that_comes_corrupted_takes_those_behind_it_along_and_all_run() {
    let server = Live::start(config(1));
    let mut direct = remote(&server.uri);
    let expected = one_by_one(&mut direct, 60);
    for depth in [1, 4] {
        let relay = Corrupting::to(server.address());
        let mut remote = remote(&relay.uri);
        let (mut context, first) = begin(&mut remote);
        // Of the runs from here on; some of them are asked for again and count, too.
        relay.corrupt(&[3, 10, 11, 25]);
        let (finish, tokens) = ahead(&mut remote, &mut context, first, &options(40, depth));
        assert_eq!((finish.unwrap(), &tokens[..]), (Finish::Length, &expected[1..=40]), "{depth} ahead");
        assert_eq!(relay.corrupted(), 4);
        goes_on(&mut remote, &mut context, &expected, 40);
        assert_eq!((remote.lives(), remote.session().sessions_lost()), (1, 0));
    }
}

/// Passes frames on to a server, one connection after another, and changes the payloads of some runs.
struct Corrupting {
    uri: Uri,
    plan: Arc<Plan>,
}

#[derive(Default)]
struct Plan {
    runs: AtomicU64,
    which: std::sync::Mutex<HashSet<u64>>,
    done: AtomicU64,
}

impl Corrupting {
    fn to(there: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
        let plan = Arc::new(Plan::default());
        let of_lanes = plan.clone();
        // Ends with the process: it waits for connections that do not come.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(there) else { return };
                let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || {
                    // That it ends is all that there is to know.
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                let plan = of_lanes.clone();
                thread::spawn(move || {
                    let _ = pass_frames(client, server, &plan);
                });
            }
        });
        Self { uri, plan }
    }

    /// Corrupts these of the runs that come from now on, counted from 0.
    fn corrupt(&self, which: &[u64]) {
        *self.plan.which.lock().unwrap() = which.iter().copied().collect();
        self.plan.runs.store(0, Ordering::SeqCst);
    }

    fn corrupted(&self) -> u64 {
        self.plan.done.load(Ordering::SeqCst)
    }
}

fn pass_frames(mut from: TcpStream, mut to: TcpStream, plan: &Plan) -> std::io::Result<()> {
    to.set_nodelay(true)?;
    loop {
        let mut head = [0; HEADER_BYTES];
        from.read_exact(&mut head)?;
        let header = decode_header(&head, limits::SLICE_BYTES).expect("a client's header");
        let mut frame = head.to_vec();
        frame.resize(HEADER_BYTES + header.body_len(), 0);
        from.read_exact(&mut frame[HEADER_BYTES..])?;
        if header.kind == Ok(Kind::Run) {
            let run = plan.runs.fetch_add(1, Ordering::SeqCst);
            if plan.which.lock().unwrap().contains(&run) {
                *frame.last_mut().unwrap() ^= 1;
                plan.done.fetch_add(1, Ordering::SeqCst);
            }
        }
        to.write_all(&frame)?;
    }
}
