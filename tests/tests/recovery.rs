//! Connections that break again and again under work that goes on: what was said is said once, what was sent is sent once.
//! (Processes that are killed: the tests of `tools/genie`.)

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use genie_graph::{DType, RopeStyle};
use genie_models::remote::{RemoteModel, RemoteOptions, Sampling};
use genie_models::{HashCache, LlamaConfig, Model, synthetic};
use genie_tests::answer::Told;
use genie_tests::proxy::Proxy;
use genie_tests::raw::{Raw, request};
use genie_tests::serve::{Live, config};
use genie_transport::Uri;
use genie_transport::client::{ConnectOptions, PutOptions, blocking};
use genie_transport::wire::{
    ContentHash, Control, Finish, Offered, PutBody, PutRequest, PutTarget, Reply, Request, ResidencyCode, SliceHead,
    TensorSpec,
};

const SLICE: u64 = 64 << 10;
const SAMPLING: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 5 };

fn server(epoch: u64) -> Live {
    let mut config = config(epoch);
    config.settings.eager_bytes = 4096;
    config.settings.slice_bytes = SLICE as u32;
    Live::start(config)
}

fn connect(uri: &Uri) -> blocking::Session {
    let mut options = ConnectOptions::default();
    options.client.lanes = 2;
    // Nothing stands still here but what a test holds back.
    options.client.stuck = Duration::from_secs(60);
    blocking::Session::connect(uri, options).unwrap()
}

fn content(bytes: usize) -> Bytes {
    (0..bytes as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn llama() -> Arc<Model> {
    let config = LlamaConfig {
        vocab: 97,
        hidden: 32,
        layers: 2,
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

fn remote(uri: &Uri, model: &Arc<Model>) -> RemoteModel {
    let options = RemoteOptions { hashes: HashCache::none(), ..RemoteOptions::default() };
    RemoteModel::establish(connect(uri), model.clone(), &options, |_| {}).unwrap()
}

/// Steps one by one, then a generate, then steps again; cut after every so many bytes.
fn text(model: &Arc<Model>, cut: Option<u64>) -> (Vec<i32>, u64) {
    let server = server(1);
    let proxy = Proxy::to(server.address());
    let mut remote = remote(&proxy.uri, model);
    if let Some(bytes) = cut {
        proxy.cut_after(bytes, bytes);
    }
    let mut context = remote.context(SAMPLING).unwrap();
    let prompt: Vec<i32> = (0..70).map(|i| (i * 13 + 5) % 97).collect();
    let mut tokens = vec![remote.prefill(&mut context, &prompt).unwrap()];
    for _ in 0..60 {
        let last = *tokens.last().unwrap();
        tokens.push(remote.step(&mut context, last).unwrap());
    }
    let last = *tokens.last().unwrap();
    let finish = remote.generate(&mut context, &[last], 80, &[], |token| {
        tokens.push(token);
        true
    });
    assert_eq!(finish.unwrap(), Finish::Length);
    let last = *tokens.last().unwrap();
    tokens.push(remote.step(&mut context, last).unwrap());
    assert_eq!(context.len(), 70 + 60 + 80 + 1);
    // The session was taken up each time: nothing was built anew.
    assert_eq!(remote.lives(), 1);
    assert_eq!(remote.session().sessions_lost(), 0);
    (tokens, proxy.cuts())
}

#[test]
fn a_text_goes_on_the_same_however_often_its_connection_breaks() {
    let model = llama();
    let (undisturbed, none) = text(&model, None);
    assert_eq!((undisturbed.len(), none), (142, 0));
    // About every hundredth, every tenth, and every third request; a connection's own first words take 400 bytes.
    for cut in [5000, 2000, 1100] {
        let (tokens, cuts) = text(&model, Some(cut));
        assert_eq!(tokens, undisturbed, "cut after every {cut} bytes");
        assert!(cuts > 0, "it was not cut");
    }
}

#[test]
fn an_upload_ends_however_often_its_connection_breaks() {
    const SIZE: usize = (24 << 20) + 5;
    let server = server(1);
    let proxy = Proxy::to(server.address());
    let mut session = connect(&proxy.uri);
    let (sent, spec) = (content(SIZE), TensorSpec::new(DType::U8, &[SIZE as u64]).unwrap());
    for weight in [None, Some(ContentHash::of(&sent))] {
        let (before, cuts) = (proxy.passed().0, proxy.cuts());
        proxy.cut_after(2 << 20, 2 << 20);
        let tensor = session.put(&spec, sent.clone(), PutOptions { weight, ..PutOptions::default() }).unwrap();
        proxy.cut_after(u64::MAX, u64::MAX);
        let (cuts, passed) = (proxy.cuts() - cuts, proxy.passed().0 - before);
        // No connection let more than a twelfth of it through: begun anew each time, it would never have ended.
        assert!(cuts >= 8 && passed >= SIZE as u64, "{passed} bytes passed, cut {cuts} times");
        let got = session.get(&tensor).unwrap();
        assert!(got[..] == sent[..]);
        assert_eq!(session.sessions_lost(), 0);
    }
    // The server has the content now: not even a name needs more than a few bytes.
    let before = proxy.passed().0;
    let weight = Some(ContentHash::of(&sent));
    session.put(&spec, sent, PutOptions { weight, ..PutOptions::default() }).unwrap();
    assert!(proxy.passed().0 - before < 1000);
}

/// To the slice: what has landed is told after the session was taken up, and nothing else has to come.
#[test]
fn only_the_missing_slices_are_asked_for() {
    const SLICES: usize = 9;
    let server = server(1);
    let sent = content(SLICES * 4096 - 5);
    let target = PutTarget::New { device: 0, residency: ResidencyCode::Private, hash: None, name: None };
    let spec = TensorSpec::new(DType::U8, &[sent.len() as u64]).unwrap();
    let put = |announce| {
        let body = PutBody::Sliced { slice_bytes: 4096, announce };
        Request::Put(PutRequest { target, spec: spec.clone(), body })
    };
    let slice = |id: u64, index: usize| {
        let payload = sent.chunks(4096).nth(index).unwrap();
        [&SliceHead::encode(id, index as u64 * 4096, sent.len() as u64, payload)[..], payload].concat()
    };
    // Which have landed, as the server says when it is asked again.
    let landed = |raw: &mut Raw, id: u64| -> Vec<usize> {
        raw.send(&request(id, &put(true)));
        let heard = raw.hear().unwrap();
        match Reply::decode(&heard.header, &heard.meta, &heard.payload) {
            Ok(Reply::Landed { slice_bytes: 4096, slices, bits }) if slices as usize == SLICES => {
                (0..SLICES).filter(|i| bits[i / 8] & (1 << (i % 8)) != 0).collect()
            }
            other => panic!("{other:?}"),
        }
    };
    let (mut raw, welcome, opened) = Raw::open(server.address(), 0);
    let mut lane = Raw::bulk(server.address(), &welcome);
    let id = raw.start(&put(false));
    let first = [0, 3, 4, 8];
    first.iter().for_each(|&index| lane.send(&slice(id, index)));
    while landed(&mut raw, id) != first {}
    // In the middle of another slice.
    lane.send(&slice(id, 5)[..2000]);
    drop((raw, lane));

    let (mut raw, welcome) = Raw::greet(server.address());
    let resume = Request::Resume { token: opened.token, epoch: opened.epoch, unanswered: id };
    raw.send(&request(100, &resume));
    assert!(matches!(raw.end_of(100), Ok(Told::Opened(_))));
    let mut lane = Raw::bulk(server.address(), &welcome);
    assert_eq!(landed(&mut raw, id), first);
    (0..SLICES).filter(|index| !first.contains(index)).for_each(|index| lane.send(&slice(id, index)));
    let handle = loop {
        let heard = raw.hear().unwrap();
        if let Ok(Control::SliceAgain { offset, .. }) = Control::decode(&heard.header, &heard.meta) {
            // The one that was cut off: the lane that it came over is not gone yet.
            lane.send(&slice(id, offset as usize / 4096));
            continue;
        }
        match Reply::decode(&heard.header, &heard.meta, &heard.payload) {
            Ok(Reply::Tensor { handle, .. }) => break handle,
            other => panic!("it is not whole: {other:?}"),
        }
    };
    raw.send(&request(101, &Request::Get { handle, offset: 0, length: 0, sliced: None }));
    assert_eq!(raw.end_of(101), Ok(Told::Bytes(sent.to_vec())));
    // Asked once more, the answer is the same, and nothing was put twice.
    raw.send(&request(id, &put(true)));
    assert!(matches!(raw.end_of(id), Ok(Told::Tensor { handle: again, .. }) if again == handle));
}

#[test]
fn a_download_is_whole_after_its_connection_broke() {
    const SIZE: usize = (8 << 20) + 5;
    let server = server(1);
    let proxy = Proxy::to(server.address());
    let mut session = connect(&proxy.uri);
    let (sent, spec) = (content(SIZE), TensorSpec::new(DType::U8, &[SIZE as u64]).unwrap());
    let tensor = session.put(&spec, sent.clone(), PutOptions::default()).unwrap();
    for round in 1..=5 {
        proxy.cut_after(SIZE as u64 * round / 6, u64::MAX);
        let got = session.get(&tensor).unwrap();
        assert!(got[..] == sent[..], "round {round}");
        assert_eq!(proxy.cuts(), round);
        session.recycle(got);
    }
    assert_eq!(session.sessions_lost(), 0);
}

/// A client that vanished in the middle of an upload, and another that goes on with it in a session of its own.
#[test]
fn an_upload_goes_on_in_another_session() {
    const SIZE: usize = (16 << 20) + 5;
    let server = server(1);
    let proxy = Proxy::to(server.address());
    let sent = content(SIZE);
    let (weight, spec) = (Some(ContentHash::of(&sent)), TensorSpec::new(DType::U8, &[SIZE as u64]).unwrap());
    let (mut first, mut watcher) = (connect(&proxy.uri), connect(&server.uri));
    proxy.hold_bulk_from(10 << 20);
    let pending = first.start_put(&spec, sent.clone(), PutOptions { weight, ..PutOptions::default() }).unwrap();
    // What has landed, as an offer tells: until it is nearly all that came through.
    let mut landed = 0;
    while landed < 9 << 20 {
        // Its bytes move while it waits for something.
        first.echo(b"go on", &mut Vec::new()).unwrap();
        match watcher.offer(0, &[(weight.unwrap(), spec.clone())]).unwrap()[..] {
            [Offered::Partial(bytes)] => landed = bytes,
            [Offered::Absent] => {}
            ref other => panic!("{other:?}"),
        }
    }
    proxy.cut();
    drop((pending, first));
    proxy.hold_bulk_from(u64::MAX);
    // What the first one's lanes have sent may be counted late.
    let of_the_first = proxy.lanes().1 as usize;
    let mut second = connect(&proxy.uri);
    let tensor = second.put(&spec, sent.clone(), PutOptions { weight, ..PutOptions::default() }).unwrap();
    let passed: u64 = proxy.carried()[of_the_first..].iter().sum();
    assert!(passed > 1 << 20, "{passed} bytes are not what was missing");
    // On a busy machine a slice may be late, and is asked for over another lane.
    let counters = second.counters();
    let again = counters.slices_late.load(Ordering::Relaxed) + counters.slices_again.load(Ordering::Relaxed);
    let most = SIZE as u64 - landed + (1 + again) * SLICE;
    assert!(passed < most, "{passed} bytes were sent again, though {landed} had landed ({again} asked for again)");
    let got = second.get(&tensor).unwrap();
    assert!(got[..] == sent[..]);
}

/// A server that is gone and comes back empty, seen from the session: it is told, and goes on anew.
#[test]
fn a_restart_is_told() {
    let first = server(1);
    let uri = first.uri.clone();
    let mut session = connect(&uri);
    let spec = TensorSpec::new(DType::U8, &[8]).unwrap();
    let tensor = session.put(&spec, content(8), PutOptions::default()).unwrap();
    first.kill();
    let mut config = config(2);
    config.settings.eager_bytes = 4096;
    let _second = Live::start_at(config, &uri);
    let error = session.get(&tensor).unwrap_err();
    assert!(error.to_string().contains("upload again"), "{error}");
    assert_eq!(session.sessions_lost(), 1);
    let error = session.get(&tensor).unwrap_err();
    assert!(error.to_string().contains("life 1"), "{error}");
    let again = session.put(&spec, content(8), PutOptions::default()).unwrap();
    assert_eq!(session.get(&again).unwrap()[..], content(8)[..]);
}
