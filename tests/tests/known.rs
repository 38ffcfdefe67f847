//! What clients send and how often they wait: a second client of a model that the server has, runs on other tensors each time. And what
//! they do where the server knows less.

use std::io::{Read, Write, copy};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use genie_graph::{DType, GraphBuilder, InputRole, Op, RopeStyle, TensorType};
use genie_models::remote::{RemoteModel, RemoteOptions, Sampling, StepsOptions, Uploaded};
use genie_models::{HashCache, LlamaConfig, Model, synthetic};
use genie_tests::raw::control;
use genie_tests::serve::{Live, config};
use genie_transport::Uri;
use genie_transport::client::{
    BindInputs, ClientError, ConnectOptions, Input, Outputs, PutOptions, RunOptions, Session, Tensor, Value, blocking,
};
use genie_transport::wire::{Caps, ContentHash, Control, ErrorCode, Handle, Kind, Offered, TensorSpec};

const SAMPLING: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 5 };

/// As many layers as SmolLM2 has, so that there are as many weights: 272.
fn llama() -> Arc<Model> {
    let config = LlamaConfig {
        vocab: 97,
        hidden: 32,
        layers: 30,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        intermediate: 64,
        max_positions: 512,
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

/// What a client of a model came to.
struct Visit {
    uploaded: Uploaded,
    tokens: Vec<i32>,
    /// Bytes that it sent until it had a context, of nothing.
    sent: u64,
    /// How often the relay heard from it until then: as often as it waited for answers.
    turns: u64,
}

fn visit(model: &Arc<Model>, uri: &Uri, turns: &AtomicU64) -> Visit {
    let session = blocking::Session::connect(uri, ConnectOptions::default()).unwrap();
    let before = turns.load(Ordering::Relaxed);
    let options = RemoteOptions { hashes: HashCache::none(), ..RemoteOptions::default() };
    let mut remote = RemoteModel::establish(session, model.clone(), &options, |_| ()).unwrap();
    let mut context = remote.context(SAMPLING).unwrap();
    let (sent, turns) = (remote.session().traffic().0, turns.load(Ordering::Relaxed) - before);
    let mut tokens = vec![remote.prefill(&mut context, &[1, 2, 3]).unwrap()];
    for _ in 0..4 {
        tokens.push(remote.step(&mut context, tokens[tokens.len() - 1]).unwrap());
    }
    let uploaded = remote.uploaded();
    remote.close().unwrap();
    Visit { uploaded, tokens, sent, turns }
}

/// Passes everything on, but takes these capabilities out of what clients say. Whatever comes from them within `pause` it passes on at
/// once, and counts as one turn.
fn relay(server: SocketAddr, without: Caps, pause: Duration) -> (Uri, Arc<AtomicU64>) {
    const HELLO: usize = 32 + 16;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
    let turns = Arc::new(AtomicU64::new(0));
    let counted = turns.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), TcpStream::connect(server).unwrap());
            for socket in [&client, &server] {
                socket.set_nodelay(true).unwrap();
            }
            let (mut down_from, mut down_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || {
                // The connection ends however it does.
                let _ = copy(&mut down_from, &mut down_to);
                let _ = down_to.shutdown(Shutdown::Both);
            });
            let turns = counted.clone();
            std::thread::spawn(move || {
                // The first frame of a bulk lane is longer.
                let mut first = [0; HELLO];
                client.read_exact(&mut first).unwrap();
                let mut begins = first.to_vec();
                if first[3] == Kind::Hello as u8 {
                    let caps = u64::from_le_bytes(*first[32..].first_chunk().unwrap());
                    begins = control(&Control::Hello(Caps(caps & !without.0)));
                }
                server.write_all(&begins).unwrap();
                let mut buffer = vec![0; 1 << 20];
                while let Ok(1..) = client.peek(&mut buffer[..1]) {
                    turns.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(pause);
                    let Ok(n @ 1..) = client.read(&mut buffer) else { break };
                    if server.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
                let _ = server.shutdown(Shutdown::Both);
            });
        }
    });
    (uri, turns)
}

fn counter(server: &Live, name: &str) -> u64 {
    let mut session = blocking::Session::connect(&server.uri, ConnectOptions::default()).unwrap();
    let stats = session.stats().unwrap();
    session.close().unwrap();
    stats.into_iter().find(|(n, _)| n == name).unwrap().1
}

#[test]
fn a_second_client_of_a_model_sends_less_than_a_kilobyte() {
    let (server, model) = (Live::start(config(1)), llama());
    let (uri, turns) = relay(server.address(), Caps(0), Duration::from_millis(50));
    let weights = model.weights().len();
    assert_eq!(weights, 272);
    let first = visit(&model, &uri, &turns);
    assert_eq!((first.uploaded.present, first.uploaded.sent), (0, weights));
    assert_eq!(counter(&server, "genie_weight_sets_found_total"), 0);
    // A client that was off its core between two requests of one turn has made two of it: the fewest of some visits are what it needs.
    let mut fewest = u64::MAX;
    for found in 1..=20 {
        let second = visit(&model, &uri, &turns);
        assert_eq!((second.uploaded.present, second.uploaded.sent_bytes), (weights, 0));
        assert_eq!(second.tokens, first.tokens);
        assert_eq!(counter(&server, "genie_weight_sets_found_total"), found);
        println!("{} bytes, {} turns", second.sent, second.turns);
        assert!(second.sent < 1000, "it sent {} bytes", second.sent);
        fewest = fewest.min(second.turns);
        if fewest == 3 {
            break;
        }
    }
    // Weights and programs; the cache; both bindings.
    assert_eq!(fewest, 3);
}

/// As of a server that is older.
#[test]
fn where_no_sets_are_known_weights_are_offered_and_bound_one_by_one() {
    let (server, model) = (Live::start(config(1)), llama());
    let (uri, turns) = relay(server.address(), Caps::SETS, Duration::ZERO);
    let first = visit(&model, &uri, &turns);
    let second = visit(&model, &uri, &turns);
    assert_eq!((second.uploaded.present, second.uploaded.sent), (model.weights().len(), 0));
    assert_eq!(second.tokens, first.tokens);
    assert_eq!(counter(&server, "genie_weight_sets_found_total"), 0);
    assert!(second.sent > 15_000, "{} bytes do not name each weight, and bind it twice", second.sent);
    // A client that knows of sets finds the one that those made who do not.
    let third = visit(&model, &server.uri, &turns);
    assert_eq!(third.tokens, first.tokens);
    assert_eq!(counter(&server, "genie_weight_sets_found_total"), 1);
}

/// As of a server that is older.
#[test]
fn where_no_tokens_of_requests_are_known_each_step_waits_for_its_token() {
    let (server, model) = (Live::start(config(1)), llama());
    let walk = |without| {
        let (uri, turns) = relay(server.address(), without, Duration::from_millis(50));
        let session = blocking::Session::connect(&uri, ConnectOptions::default()).unwrap();
        let options = RemoteOptions { hashes: HashCache::none(), ..RemoteOptions::default() };
        let mut remote = RemoteModel::establish(session, model.clone(), &options, |_| ()).unwrap();
        let mut context = remote.context(SAMPLING).unwrap();
        let first = remote.prefill(&mut context, &[1, 2, 3]).unwrap();
        let (before, mut tokens) = (turns.load(Ordering::Relaxed), Vec::new());
        let steps = StepsOptions { max_new: 8, ahead: 7, ..StepsOptions::default() };
        let keep = |token| {
            tokens.push(token);
            true
        };
        remote.steps(&mut context, first, &steps, keep).unwrap();
        (tokens, turns.load(Ordering::Relaxed) - before)
    };
    let (ahead, turns) = walk(Caps(0));
    assert!(turns < 8, "{turns} turns: all are asked for at once");
    let (one_by_one, turns) = walk(Caps::AHEAD);
    assert!(turns >= 8, "{turns} turns: one for each");
    assert_eq!(ahead, one_by_one);
}

/// `y = a - b` of `f32 [4]`: nodes 0 and 1.
fn difference() -> Vec<u8> {
    let mut g = GraphBuilder::new("difference");
    let ty = || TensorType::new(DType::F32, [4.into()]);
    let a = g.input("a", InputRole::Argument, ty()).unwrap();
    let b = g.input("b", InputRole::Argument, ty()).unwrap();
    let y = g.push(Op::Sub, &[a, b]).unwrap();
    g.output("y", y);
    g.finish().unwrap().encode()
}

fn floats(values: [f32; 4]) -> Bytes {
    values.map(f32::to_le_bytes).as_flattened().to_vec().into()
}

/// The handle of the one output, which stays.
fn kept(outputs: &Outputs) -> Tensor {
    match &outputs.values[..] {
        [Value::Resident { index: 0, tensor }] => tensor.clone(),
        other => panic!("{other:?}"),
    }
}

/// What a run on other tensors each time costs, named by the run and bound before it.
#[test]
fn a_run_that_names_its_tensors_is_one_request() {
    const RUNS: u64 = 8;
    let server = Live::start(config(1));
    let (uri, turns) = relay(server.address(), Caps(0), Duration::from_millis(10));
    let mut session = blocking::Session::connect(&uri, ConnectOptions::default()).unwrap();
    let program = session.define(0, &difference()).unwrap();
    let spec = TensorSpec::new(DType::F32, &[4]).unwrap();
    let mut put = |x: f32| session.put(&spec, floats([x, 2.0 * x, 3.0 * x, x]), PutOptions::default()).unwrap();
    let tensors: Vec<Tensor> = (0..=RUNS as u8).map(|i| put(f32::from(i * i))).collect();
    let pairs = || tensors.iter().zip(&tensors[1..]);
    let options = RunOptions { wanted: 0, keep: 1, ..RunOptions::default() };
    let costs = |session: &mut blocking::Session, since: (u64, u64, u64)| {
        let (up, down) = session.traffic();
        (turns.load(Ordering::Relaxed) - since.0, up - since.1, down - since.2)
    };
    let start = costs(&mut session, (0, 0, 0));
    let bound: Vec<Tensor> = pairs()
        .map(|(a, b)| {
            let inputs = BindInputs { residents: vec![(0, a.handle), (1, b.handle)], ..BindInputs::default() };
            let binding = session.bind(&program, &inputs).unwrap();
            let output = kept(&session.run(binding, &[], options).unwrap());
            session.free(binding.0).unwrap();
            output
        })
        .collect();
    let by_binding = costs(&mut session, start);
    let binding = session.bind(&program, &BindInputs::default()).unwrap();
    let start = costs(&mut session, (0, 0, 0));
    let named: Vec<Tensor> =
        pairs().map(|(a, b)| kept(&session.run_with(binding, &[], &[(0, a), (1, b)], options).unwrap())).collect();
    let by_name = costs(&mut session, start);
    println!("turns, bytes up and down of {RUNS} runs: {by_binding:?} bound, {by_name:?} named");
    for (one, other) in bound.iter().zip(&named) {
        assert_eq!(session.get(one).unwrap()[..], session.get(other).unwrap()[..]);
    }
    // A bind of two residents, a run of none, a free; and back a handle, the output's handle, and nothing.
    let (up, down) = ((32 + 24 + 2 * 12) + (32 + 32) + (32 + 16), (32 + 16) + (32 + 16 + 28) + 32);
    assert_eq!(by_binding, (3 * RUNS, up * RUNS, down * RUNS));
    assert_eq!(by_name, (RUNS, (32 + 32 + 2 * 28) * RUNS, (32 + 16 + 28) * RUNS));
}

/// As of a server that is older.
#[test]
fn where_runs_name_no_residents_nothing_is_sent() {
    let server = Live::start(config(1));
    let (uri, _) = relay(server.address(), Caps::NAMED, Duration::ZERO);
    let mut session = blocking::Session::connect(&uri, ConnectOptions::default()).unwrap();
    assert!(!session.can_name_residents());
    let program = session.define(0, &difference()).unwrap();
    let binding = session.bind(&program, &BindInputs::default()).unwrap();
    let spec = TensorSpec::new(DType::F32, &[4]).unwrap();
    let x = session.put(&spec, floats([1.0; 4]), PutOptions::default()).unwrap();
    let data = floats([3.0; 4]);
    let inputs = [0, 1].map(|index| Input { index, dtype: DType::F32, dims: &[4], data: &data });
    let (given, both) = ([(1, &x)], [(0, &x), (1, &x)]);
    let far = RunOptions { keep: 1 << 32, ..RunOptions::default() };
    let sent = session.traffic();
    for ran in [
        session.run_with(binding, &inputs[..1], &given, RunOptions::default()),
        session.run_with(binding, &[], &both, RunOptions::default()),
        session.run(binding, &inputs, far),
    ] {
        assert!(matches!(ran, Err(ClientError::ServerTooOld(_))), "{ran:?}");
    }
    assert_eq!(session.traffic(), sent);
    let ran = session.run(binding, &inputs, RunOptions::default()).unwrap();
    assert!(matches!(&ran.values[..], [Value::Inline { data, .. }] if data[..] == [0; 16]), "{ran:?}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        for (uri, old) in [(&uri, true), (&server.uri, false)] {
            let session = Session::connect(uri, ConnectOptions::default()).await.unwrap();
            let program = session.define(0, difference()).await.unwrap();
            let binding = session.bind(&program, &BindInputs::default()).await.unwrap();
            let x = session.put(&spec, floats([1.0; 4]), PutOptions::default()).await.unwrap();
            let ran = session.run_with(binding, &inputs[..1], &[(1, &x)], RunOptions::default()).await;
            match ran {
                Err(ClientError::ServerTooOld(_)) => assert!(old),
                Ok(Outputs { values, .. }) => {
                    let two = floats([2.0; 4]);
                    assert!(
                        matches!(&values[..], [Value::Inline { data, .. }] if !old && data[..] == two),
                        "{values:?}"
                    );
                }
                other => panic!("{other:?}"),
            }
            let ran = session.run(binding, &inputs, far).await;
            match ran {
                Err(ClientError::ServerTooOld(_)) => assert!(old),
                // There is no such output.
                Err(ClientError::Remote(error)) => assert_eq!((error.code, old), (ErrorCode::BadArgument, false)),
                other => panic!("{other:?}"),
            }
            session.close().await.unwrap();
        }
    });
}

/// More than one request can offer, over either kind of session.
#[test]
fn many_weights_are_several_sets() {
    let server = Live::start(config(1));
    let contents: Vec<Bytes> = (0..1500_u32).map(|i| Bytes::copy_from_slice(&i.to_le_bytes())).collect();
    let spec = TensorSpec::new(DType::U8, &[4]).unwrap();
    let entries: Vec<_> = contents.iter().map(|bytes| (ContentHash::of(bytes), spec.clone())).collect();
    let mut first = blocking::Session::connect(&server.uri, ConnectOptions::default()).unwrap();
    assert!(first.offer(0, &entries).unwrap().iter().all(|one| *one == Offered::Absent));
    let puts: Vec<_> = contents
        .iter()
        .zip(&entries)
        // One is missing, in the second set.
        .take(1499)
        .map(|(bytes, (hash, _))| {
            let weight = PutOptions { weight: Some(*hash), ..PutOptions::default() };
            first.start_put(&spec, bytes.clone(), weight).unwrap()
        })
        .collect();
    for put in puts {
        first.finish_put(put).unwrap();
    }
    let handle = |one: &Offered| match one {
        Offered::Present(handle) => Some(*handle),
        _ => None,
    };
    let check = |offered: &[Offered]| -> Vec<Handle> {
        assert_eq!((offered.len(), offered[1499]), (1500, Offered::Absent));
        let handles: Vec<_> = offered.iter().filter_map(handle).collect();
        assert_eq!(handles.len(), 1499);
        handles
    };
    let mut second = blocking::Session::connect(&server.uri, ConnectOptions::default()).unwrap();
    let handles = check(&second.offer(0, &entries).unwrap());
    for i in [0, 1, 1023, 1024, 1498] {
        assert_eq!(second.get_range(handles[i], 0, 4).unwrap()[..], contents[i][..], "weight {i}");
    }
    assert_eq!(counter(&server, "genie_weight_sets_found_total"), 1, "the first of them is whole");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let session = Session::connect(&server.uri, ConnectOptions::default()).await.unwrap();
        let handles = check(&session.offer(0, &entries).await.unwrap());
        for i in [0, 1023, 1024, 1498] {
            assert_eq!(session.get_range(handles[i], 0, 4).await.unwrap()[..], contents[i][..], "weight {i}");
        }
        assert_eq!(session.offer(0, &entries[..1]).await.unwrap().len(), 1);
        session.close().await.unwrap();
    });
    assert_eq!(counter(&server, "genie_weight_sets_found_total"), 2);
}
