//! Tensors on their way to and from a GPU's memory. The GPU is this CPU, and does everything as late as it may.

use std::collections::BTreeMap;
use std::sync::Arc;

use genie_cuda_kernels::gpu::{Gpu, GpuError, HostGpu, HostSettings, Stream};
use genie_executor::device::cuda::CudaDevice;
use genie_executor::device::{Device, Space};
use genie_executor::trace::Trace;
use genie_executor::{Config, Mode};
use genie_graph::Phase;
use genie_transport::connection::BulkIn;
use genie_transport::memory::{Regions, SharedBytes, copied_bytes};
use genie_transport::wire::{ContentHash, ErrorCode, Handle, Kind, PutBody, PutRequest, PutTarget, Request, SliceHead};

use crate::client::{Client, SLICE, Server, Told, noise, private, put_request, sliced_put, tensor, weight};

const SLAB: u64 = 4 << 20;

/// A server with GPUs of this many slabs each.
struct Gpus {
    server: Server,
    devices: Vec<Arc<CudaDevice>>,
    gpus: Vec<HostGpu>,
}

impl Gpus {
    fn new(count: u32, slabs: u64) -> Self {
        Self::with(count, slabs, |_| {})
    }

    fn with(count: u32, slabs: u64, change: impl FnOnce(&mut Config)) -> Self {
        let gpus: Vec<_> = (0..count)
            .map(|seed| {
                HostGpu::new(HostSettings { total_bytes: 256 << 20, seed: seed.into(), ..HostSettings::default() })
            })
            .collect();
        let device = |(index, gpu): (usize, &HostGpu)| {
            Arc::new(CudaDevice::with_staging(index as u32, Arc::new(gpu.clone()), None, slabs * SLAB).unwrap())
        };
        let devices: Vec<_> = gpus.iter().enumerate().map(device).collect();
        let server = Server::with(1, 1 << 20, |config| {
            config.devices = devices.iter().map(|device| device.clone() as Arc<dyn Device>).collect();
            config.default_quota = 256 << 20;
            config.max_quota = 256 << 20;
            change(config);
        });
        Self { server, devices, gpus }
    }

    /// Everything was given back: pinned memory to the rings, and the GPUs' own to them.
    #[track_caller]
    fn ends_empty(self) {
        for device in &self.devices {
            let (free, all) = device.staging_slabs();
            assert_eq!(free, all);
        }
        let Self { server, devices, gpus } = self;
        drop(server);
        drop(devices);
        for gpu in gpus {
            let event = gpu.event().unwrap();
            gpu.record(Stream::Compute, &event).unwrap();
            gpu.synchronize(&event).unwrap();
            assert_eq!(gpu.used(), 0);
        }
    }
}

fn all(n: usize) -> Vec<usize> {
    (0..n.div_ceil(SLICE as usize)).collect()
}

/// Puts bytes in slices.
#[track_caller]
fn put(client: &mut Client<'_>, target: PutTarget<'_>, bytes: &[u8]) -> Handle {
    let id = client.ask(sliced_put(target, bytes.len(), false));
    client.send(id, bytes, &all(bytes.len()));
    tensor(client.answer(id))
}

/// Asks for a range in slices of this size.
#[track_caller]
fn ask(client: &mut Client<'_>, handle: Handle, (offset, length): (u64, u64), slice: u32) -> u64 {
    let id = client.ask(Request::Get { handle, offset, length, sliced: Some(slice) });
    assert_eq!(client.answer(id), Ok(Told::Got(vec![])));
    id
}

/// What a bulk lane takes, by offset.
fn take(client: &Client<'_>, lane: u32, most: usize) -> BTreeMap<u64, Vec<u8>> {
    let take = || client.peer.bulk().take(lane, client.server.now);
    let taken = std::iter::from_fn(take).take(most);
    taken.map(|slice| (slice.offset, slice.bytes().flatten().copied().collect())).collect()
}

/// All bytes of a range, over a lane of its own.
#[track_caller]
fn get(client: &mut Client<'_>, handle: Handle, range: (u64, u64), slice: u32) -> Vec<u8> {
    let id = ask(client, handle, range, slice);
    client.peer.bulk().open_lane(77);
    let bytes = take(client, 77, usize::MAX).into_values().flatten().collect();
    assert!(client.peer.bulk().is_sent(id));
    client.peer.cancel_sliced(id);
    client.peer.bulk().lost_lane(77, u64::MAX);
    bytes
}

#[test]
fn what_was_put_comes_back() {
    let gpus = Gpus::new(1, 4);
    let mut client = gpus.server.client();
    for n in [1, 4096, 100_000, 9_000_000] {
        let bytes = noise(n, 1);
        let handle = put(&mut client, private(None, None), &bytes);
        for slice in [4096, 1 << 20] {
            assert!(get(&mut client, handle, (0, 0), slice) == bytes, "{n} in {slice}");
        }
        if n > 10_000 {
            assert!(get(&mut client, handle, (777, 90_001), 4096) == bytes[777..90_778]);
            put(&mut client, PutTarget::Range { handle, offset: 5000 }, &noise(10_000, 2));
            client.call(put_request(PutTarget::Range { handle, offset: 0 }, &[9; 3])).unwrap();
            let expected = [&[9; 3], &bytes[3..5000], &noise(10_000, 2), &bytes[15_000..]].concat();
            assert!(get(&mut client, handle, (0, 0), 1 << 20) == expected);
        }
        client.call(Request::Free(handle)).unwrap();
    }
    assert_eq!(gpus.server.counter("genie_unpinned_slices_total"), 0);
    drop(client);
    gpus.ends_empty();
}

#[test]
fn weights_are_hashed_as_they_pass() {
    let gpus = Gpus::new(1, 4);
    let mut client = gpus.server.client();
    for n in [4096, 4097, 100_000, 1 << 20] {
        let bytes = noise(n, 3);
        let hash = ContentHash::of(&bytes);
        let mut wrong = bytes.clone();
        wrong[n / 2] ^= 1;
        let id = client.ask(sliced_put(weight(hash), n, false));
        client.send(id, &wrong, &all(n));
        assert_eq!(client.answer(id).unwrap_err().code, ErrorCode::HashMismatch);
        // Slices in another order, some twice.
        let id = client.ask(sliced_put(weight(hash), n, false));
        let mut order = all(n);
        order.reverse();
        client.send(id, &bytes, &order[..1]);
        client.send(id, &bytes, &order);
        let handle = tensor(client.answer(id));
        assert!(get(&mut client, handle, (0, 0), 4096) == bytes);
        let again = put(&mut client, private(Some(hash), None), &bytes);
        assert!(get(&mut client, again, (0, 0), 4096) == bytes);
    }
    drop(client);
    gpus.ends_empty();
}

#[test]
fn a_corrupt_slice_is_not_taken_for_the_weight() {
    let gpus = Gpus::new(1, 4);
    let mut client = gpus.server.client();
    let bytes = noise(20_000, 4);
    let id = client.ask(sliced_put(weight(ContentHash::of(&bytes)), bytes.len(), false));
    let payload = &bytes[4096..8192];
    let mut frame = SliceHead::encode(id, 4096, bytes.len() as u64, payload).to_vec();
    frame.extend_from_slice(payload);
    *frame.last_mut().unwrap() ^= 1;
    client.send_frame(&mut BulkIn::new(false), &frame);
    client.recorder.take();
    client.send(id, &bytes, &[0, 1, 2, 3, 4]);
    let handle = tensor(client.answer(id));
    assert!(get(&mut client, handle, (0, 0), 4096) == bytes);
    drop(client);
    gpus.ends_empty();
}

#[test]
fn caches_go_in_and_out_in_slices() {
    let gpus = Gpus::new(1, 4);
    let mut client = gpus.server.client();
    let model = client.model(Phase::Decode);
    let tokens: Vec<i32> = (0..70).map(|i| i % 30).collect();
    let (next, _) = client.run(&model, &tokens);
    let held = gpus.server.counter("genie_session_bytes");
    let exported = get(&mut client, model.cache, (0, 0), 4096);
    assert_eq!(gpus.server.counter("genie_session_bytes"), held, "what was sent costs nothing");
    let bytes = exported.len() as u64;
    let id = ask(&mut client, model.cache, (0, 0), 4096);
    assert_eq!(gpus.server.counter("genie_session_bytes"), held + bytes);
    // It goes on while it is sent: what is sent stays as it was.
    let (after, _) = client.run(&model, &[next]);
    client.peer.bulk().open_lane(5);
    assert!(take(&client, 5, usize::MAX).into_values().flatten().eq(exported.iter().copied()));
    client.peer.cancel_sliced(id);

    let other = client.model_with(Phase::Decode, model.table, None);
    let target = PutTarget::Cache { handle: other.cache, length: 70 };
    let Ok(Told::Tensor(_, _, spec)) = client.call(Request::LookupHandle(model.cache)) else { panic!() };
    let body = PutBody::Sliced { slice_bytes: SLICE, announce: false };
    let id = client.ask(Request::Put(PutRequest { target, spec, body }));
    client.send(id, &exported, &all(exported.len()));
    tensor(client.answer(id));
    assert_eq!(client.run(&other, &[next]).0, after, "it goes on where the other was");
    drop(client);
    gpus.ends_empty();
}

#[test]
fn a_large_get_takes_little_pinned_memory_and_sends_again_what_was_lost() {
    let gpus = Gpus::new(1, 8);
    let mut client = gpus.server.client();
    let bytes = noise(40 << 20, 5);
    let handle = put(&mut client, private(None, None), &bytes);
    let id = ask(&mut client, handle, (0, 0), 1 << 20);
    // Of eight times 4 MiB two are in smaller slabs, for smaller slices.
    assert_eq!(gpus.devices[0].staging_slabs(), (2 + 32, 6 + 32), "16 MiB are ahead");
    // Another waits for its turn, and takes none of its own.
    let other = ask(&mut client, handle, (1 << 20, 3 << 20), 1 << 20);
    assert_eq!(gpus.devices[0].staging_slabs().0, 2 + 32);
    client.call(Request::Free(handle)).unwrap();
    assert_eq!(gpus.server.counter("genie_session_bytes"), 40 << 20, "the session pays until all is sent");

    let bulk = client.peer.bulk();
    bulk.open_lane(1);
    let first = take(&client, 1, 10);
    assert!(first.keys().copied().eq((0..10).map(|i| i << 20)));
    // The lane breaks; four slices came.
    bulk.close_lane(1);
    assert!(bulk.lost_lane(1, 4).is_empty());
    bulk.open_lane(2);
    let mut rest = BTreeMap::new();
    let mut others = 0;
    while let Some(slice) = bulk.take(2, gpus.server.now) {
        if slice.transfer == id {
            rest.insert(slice.offset, slice.bytes().flatten().copied().collect::<Vec<u8>>());
        } else {
            assert_eq!(slice.transfer, other);
            others += 1;
        }
    }
    assert_eq!((rest.len(), others), (36, 3));
    let together: Vec<u8> = (0..4 << 20).map(|i| first[&(i >> 20 << 20)][i as usize % (1 << 20)]).collect();
    assert!(together == bytes[..4 << 20]);
    assert!(rest.into_values().flatten().eq(bytes[4 << 20..].iter().copied()));
    assert!(bulk.is_sent(id) && bulk.is_sent(other));
    client.peer.cancel_sliced(id);
    client.peer.cancel_sliced(other);
    assert_eq!(gpus.server.counter("genie_session_bytes"), 0);
    drop(client);
    gpus.ends_empty();
}

#[test]
fn ordinary_memory_does_where_pinned_is_short() {
    let gpus = Gpus::new(1, 1);
    let mut client = gpus.server.client();
    let bytes = noise(50_000, 6);
    // A slice of another upload has the one slab there is, and stands still.
    let id = client.ask(sliced_put(private(None, None), 8192, false));
    let mut lane = BulkIn::new(false);
    let mut frame = SliceHead::encode(id, 0, 8192, &bytes[..4096]).to_vec();
    frame.extend_from_slice(&bytes[..100]);
    client.send_frame(&mut lane, &frame);
    assert_eq!(gpus.devices[0].staging_slabs(), (0, 1));
    let handle = put(&mut client, weight(ContentHash::of(&bytes)), &bytes);
    assert!(get(&mut client, handle, (0, 0), 4096) == bytes);
    assert!(gpus.server.counter("genie_unpinned_slices_total") > 0);
    drop(lane);
    client.ask(Request::Close);
    let [(ended, Err(error)), (_, Ok(Told::Done))] = &client.heard()[..] else { panic!() };
    assert_eq!((*ended, error.code), (id, ErrorCode::Cancelled));
    drop(client);
    gpus.ends_empty();
}

#[test]
fn a_device_that_fails_ends_a_get() {
    let gpus = Gpus::new(1, 8);
    let mut client = gpus.server.client();
    let handle = put(&mut client, private(None, None), &noise(30 << 20, 7));
    let small = put(&mut client, private(None, None), &noise(30 << 10, 7));
    let id = ask(&mut client, handle, (0, 0), 1 << 20);
    let bulk = client.peer.bulk();
    bulk.open_lane(1);
    gpus.gpus[0].fail(GpuError::Fault { during: "a test", reason: "it is one".to_owned() });
    // With the first slice that goes, one more is wanted: nothing more is sent.
    assert!(take(&client, 1, usize::MAX).len() <= 1);
    assert!(!bulk.has(id));
    let told = client.recorder.take();
    assert!(told.iter().any(|frame| frame.header.kind == Ok(Kind::Cancel) && frame.header.id == id));
    // Whoever asks again, as it was told to, gets no bytes: an error, or the connection has ended with the session.
    for handle in [handle, small] {
        let id = client.ask(Request::Get { handle, offset: 0, length: 0, sliced: Some(1 << 20) });
        let heard = client.heard();
        assert!(heard.iter().all(|(_, answer)| answer.is_err()), "{heard:?}");
        assert!(client.peer.is_closed() || heard.iter().any(|(of, _)| *of == id), "{heard:?}");
    }
}

#[test]
fn copies_between_gpus_go_straight_or_pass_through_both_rings() {
    for straight in [true, false] {
        let gpus = Gpus::new(2, 3);
        gpus.gpus[1].set_peers(straight);
        let mut client = gpus.server.client();
        let bytes = noise(21 << 20, 8);
        let handle = put(&mut client, private(None, None), &bytes);
        let before = gpus.gpus[1].copies_in();
        let copy = tensor(client.call(Request::Copy { handle, device: 1 }));
        // Nothing of a copy from GPU to GPU is one from the host.
        assert_eq!(gpus.gpus[1].copies_in() == before, straight);
        client.call(Request::Free(handle)).unwrap();
        assert!(get(&mut client, copy, (0, 0), 1 << 20) == bytes);
        let back = tensor(client.call(Request::Copy { handle: copy, device: 0 }));
        assert!(get(&mut client, back, (0, 0), 1 << 20) == bytes);
        drop(client);
        gpus.ends_empty();
    }
}

/// Memory of a GPU is a buffer's from a moment of its kernels' stream on. Whoever writes it from another GPU has to wait for that: the
/// stand-in makes it bytes that nobody wrote when it comes there.
#[test]
fn a_copy_from_a_peer_waits_for_what_its_target_was_before() {
    let gpus = Gpus::new(2, 2);
    let bytes = noise(300_000, 12);
    let mut source = gpus.devices[0].allocate(300_000).unwrap();
    source.write(0, &bytes).unwrap();
    let source = source.freeze();
    // Its memory waits to be cleared while it is given away.
    let mut before = gpus.devices[1].allocate(300_000).unwrap();
    before.clear().unwrap();
    drop(before);
    let mut target = gpus.devices[1].allocate(300_000).unwrap();
    target.clear().unwrap();
    target.copy(1000, &source.slice(1000..300_000).unwrap()).unwrap();
    let mut seen = vec![1; 300_000];
    target.freeze().read(0, &mut seen).unwrap();
    assert!(seen[..1000] == [0; 1000] && seen[1000..] == bytes[1000..]);
    drop(source);
    gpus.ends_empty();
}

#[test]
fn two_gpus_copy_to_each_other_at_once() {
    let gpus = Gpus::new(2, 2);
    let filled = [0_usize, 1].map(|on| {
        let mut space = gpus.devices[on].allocate(100_000).unwrap();
        space.write(0, &noise(100_000, on as u64)).unwrap();
        space.freeze()
    });
    std::thread::scope(|scope| {
        for (from, to) in [(0, 1), (1, 0), (0, 1), (1, 0)] {
            let (device, source) = (&gpus.devices[to], &filled[from]);
            scope.spawn(move || {
                for _ in 0..50 {
                    let mut space = device.allocate(100_000).unwrap();
                    space.copy(0, source).unwrap();
                    let mut seen = vec![0; 100_000];
                    space.freeze().read(0, &mut seen).unwrap();
                    assert!(seen == noise(100_000, from as u64));
                }
            });
        }
    });
    drop(filled);
    gpus.ends_empty();
}

/// The one that copies has not failed.
#[test]
fn a_copy_to_a_gpu_that_failed_is_an_error_and_the_source_stays() {
    let gpus = Gpus::new(2, 2);
    let mut source = gpus.devices[0].allocate(5000).unwrap();
    source.write(0, &[3; 5000]).unwrap();
    let source = source.freeze();
    let mut target = gpus.devices[1].allocate(5000).unwrap();
    gpus.gpus[1].fail(GpuError::Fault { during: "a test", reason: "it is one".to_owned() });
    let error = target.copy(0, &source).unwrap_err().to_string();
    assert!(error.contains("it is one"), "{error}");
    assert!(gpus.devices[1].loss().is_some() && gpus.devices[0].loss().is_none());
    assert!(target.copy(0, &source).is_err() && gpus.devices[0].loss().is_none());
    let mut seen = [0; 5000];
    source.read(0, &mut seen).unwrap();
    assert_eq!(seen, [3; 5000]);
}

#[test]
fn a_clients_own_memory_is_read_and_written_where_it_lies() {
    let gpus = Gpus::new(1, 2);
    let (device, regions) = (&gpus.devices[0], Regions::default());
    let shared = SharedBytes::new(100_000).unwrap();
    let file = shared.memory().fd().unwrap().try_clone_to_owned().unwrap();
    regions.share(1, file, shared.memory().len() as u64, shared.era());
    let bytes = noise(40_000, 11);
    assert!(shared.memory().write(100, &bytes));
    shared.take_use();
    let mut space = device.allocate(40_000).unwrap();
    space.copy(0, &regions.passed(1, 100, 40_000).unwrap().into()).unwrap();
    assert!(!shared.is_used(), "it was read");
    assert!(shared.memory().write(100, &[0; 40_000]));
    let memory = space.freeze();
    let mut target = regions.target(1, 50_000, 40_000).unwrap();
    for part in [0..30_000, 30_000..40_000] {
        memory.slice(part).unwrap().fill(&mut target).unwrap();
    }
    // It is full: nothing more goes there.
    memory.fill(&mut target).unwrap();
    let mut seen = vec![1; 50_000];
    assert!(shared.memory().read(50_000, &mut seen));
    assert!(seen[..40_000] == bytes && seen[40_000..] == [0; 10_000]);
    drop((memory, target, regions));
    gpus.ends_empty();
}

#[test]
fn threads_bring_and_hash() {
    let gpus = Gpus::with(1, 4, |config| config.mode = Mode::Threads);
    let mut client = gpus.server.client();
    let bytes = noise(20 << 20, 9);
    let id = client.ask(sliced_put(weight(ContentHash::of(&bytes)), bytes.len(), false));
    client.send(id, &bytes, &all(bytes.len()));
    let answer = |client: &Client<'_>| loop {
        let heard = client.heard();
        if let Some((_, answer)) = heard.into_iter().next() {
            return answer;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    let handle = tensor(answer(&client));
    let id = client.ask(Request::Get { handle, offset: 0, length: 0, sliced: Some(1 << 20) });
    assert_eq!(answer(&client), Ok(Told::Got(vec![])));
    let bulk = client.peer.bulk();
    bulk.open_lane(1);
    let mut got = BTreeMap::new();
    while !bulk.is_sent(id) {
        got.extend(take(&client, 1, usize::MAX));
        std::thread::yield_now();
    }
    assert!(got.into_values().flatten().eq(bytes.iter().copied()));
}

/// How exactly the stand-in's clock is known: a thread may be put aside between two looks.
const NEAR_NS: u64 = 2_000_000;

/// A span of a trace, in nanoseconds.
struct Span {
    name: String,
    track: u64,
    began: u64,
    ended: u64,
    bytes: u64,
    slice: u64,
}

/// What a line of a trace says under a name, quotes aside.
fn said<'a>(line: &'a str, name: &str) -> &'a str {
    let (_, rest) = line.split_once(&format!("\"{name}\":")).unwrap();
    rest.trim_start_matches('"').split(['"', ',', '}']).next().unwrap()
}

/// The spans of a trace: each is a line of its own.
fn spans(trace: &Trace) -> Vec<Span> {
    let mut written = Vec::new();
    trace.write(&mut written).unwrap();
    let written = String::from_utf8(written).unwrap();
    let number = |line: &str, name: &str| said(line, name).replace('.', "").parse::<u64>().unwrap();
    let span = |line: &str| Span {
        name: said(line, "name").to_owned(),
        track: number(line, "tid"),
        began: number(line, "ts"),
        ended: number(line, "ts") + number(line, "dur"),
        bytes: number(line, "bytes"),
        slice: number(line, "slice"),
    };
    written.lines().filter(|line| line.starts_with("{\"ph\":\"X\"")).map(span).collect()
}

#[test]
fn a_trace_tells_when_each_slice_came_and_was_copied() {
    const WHOLE: usize = 40;
    let gpus = Gpus::new(1, 8);
    let (device, trace) = (&gpus.devices[0], Arc::new(Trace::new()));
    assert_eq!(device.gpu().unwrap().copies, None, "nobody traces");
    assert!(device.trace(&trace) && !device.trace(&Arc::new(Trace::new())), "it writes down in one place");
    let mut client = gpus.server.client();
    let bytes = noise(WHOLE * SLICE as usize, 13);
    let handle = put(&mut client, private(None, None), &bytes);
    let up = spans(&trace);
    let of = |what: &str| up.iter().filter(|span| span.name == what).collect::<Vec<_>>();
    let (received, copied) = (of("receive"), of("copy to device"));
    assert_eq!((received.len(), copied.len(), up.len()), (WHOLE, WHOLE, 2 * WHOLE));
    for (receive, copy) in received.iter().zip(&copied) {
        assert_eq!((receive.bytes, copy.bytes, receive.slice), (SLICE.into(), SLICE.into(), copy.slice));
        assert!(receive.ended <= copy.began + NEAR_NS, "a slice is copied when it is there");
        assert_ne!(receive.track, copy.track);
    }
    // One copy engine: one after another. Slabs of their own: those of one as well.
    assert!(copied.windows(2).all(|two| two[0].ended <= two[1].began && two[0].track == two[1].track));
    for slab in received.iter().map(|span| span.track) {
        let on: Vec<_> = received.iter().filter(|span| span.track == slab).collect();
        assert!(on.windows(2).all(|two| two[0].ended <= two[1].began));
    }
    let known = |name: &str| gpus.server.counter(&format!("genie_device_copy_{name}_total{{device=\"cuda:0\"}}"));
    let took: u64 = copied.iter().map(|span| span.ended - span.began).sum();
    let said = known("to_device_microseconds");
    assert!(said.abs_diff(took / 1000) <= 1, "{said} us, {took} ns");
    assert!(known("to_device_overlapped_microseconds") <= said);
    assert_eq!(known("from_device_microseconds"), 0);

    assert!(get(&mut client, handle, (0, 0), 1 << 20) == bytes);
    let down = spans(&trace).split_off(up.len());
    for span in &down {
        assert!(["copy from device", "send"].contains(&&*span.name), "{}", span.name);
    }
    let of = |what: &str| down.iter().filter(|span| span.name == what).collect::<Vec<_>>();
    let (copied, sent) = (of("copy from device"), of("send"));
    assert_eq!(copied.len(), sent.len());
    assert_eq!(copied.iter().map(|span| span.bytes).sum::<u64>(), bytes.len() as u64);
    for send in sent {
        let copy = copied.iter().find(|copy| copy.slice == send.slice).unwrap();
        assert!(copy.ended <= send.began + NEAR_NS && copy.bytes == send.bytes);
    }
    drop(client);
    gpus.ends_empty();
}

/// Of a trace of before a failure nothing is wrong afterwards, and what is copied then is in it, too.
#[test]
fn a_trace_goes_on_after_a_gpu_was_brought_back() {
    let gpus = Gpus::new(1, 8);
    let (device, trace) = (&gpus.devices[0], Arc::new(Trace::new()));
    assert!(device.trace(&trace));
    let mut client = gpus.server.client();
    put(&mut client, private(None, None), &noise(100_000, 14));
    gpus.gpus[0].fail(GpuError::Fault { during: "a test", reason: "it is one".to_owned() });
    let id = client.ask(sliced_put(private(None, None), 100_000, false));
    client.send(id, &noise(100_000, 15), &all(100_000));
    let before = spans(&trace).len();
    let mut anew = gpus.server.client();
    let bytes = noise(100_000, 16);
    let handle = put(&mut anew, private(None, None), &bytes);
    assert!(get(&mut anew, handle, (0, 0), 1 << 20) == bytes);
    let after = spans(&trace).split_off(before);
    for what in ["receive", "copy to device", "copy from device", "send"] {
        assert!(after.iter().any(|span| span.name == what), "{what}");
    }
}

#[test]
fn small_tensors_take_small_slabs() {
    let gpus = Gpus::new(1, 16);
    let device = &gpus.devices[0];
    // One of 4 MiB in 64 KiB, four in 256 KiB, and eleven as they are.
    assert_eq!(device.staging_slabs(), (64 + 64 + 11, 64 + 64 + 11));
    let space = device.allocate(1).unwrap();
    let Space::Device(buffer) = &space else { panic!() };
    let mut taken: Vec<_> = (0..64).map(|_| buffer.stage(64 << 10).unwrap()).collect();
    taken.extend((0..64).map(|_| buffer.stage(1).unwrap()));
    assert_eq!(device.staging_slabs().0, 11, "where the small are out, the next larger do");
    taken.extend((0..11).map(|_| buffer.stage(4 << 20).unwrap()));
    assert!(buffer.stage(1).is_none() && device.staging_misses() == 1);
    // No two of them share a byte.
    for (n, slab) in taken.iter_mut().enumerate() {
        slab.fill(n as u8);
    }
    assert!(taken.iter().enumerate().all(|(n, slab)| slab.iter().all(|&byte| byte == n as u8)));
    drop((taken, space));
    gpus.ends_empty();
}

/// Other tests copy bytes, and the counter is the process's: this one runs in a process of its own.
#[test]
fn nothing_is_copied_in_user_space() {
    let this = std::env::current_exe().unwrap();
    let done = std::process::Command::new(this).args(["--exact", "gpu::alone", "--ignored"]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "a part of `nothing_is_copied_in_user_space`"]
fn alone() {
    let gpus = Gpus::new(2, 4);
    let mut client = gpus.server.client();
    let bytes = noise(9 << 20, 10);
    let before = copied_bytes();
    let id = client.ask(sliced_put(weight(ContentHash::of(&bytes)), bytes.len(), false));
    // As a lane's own reads would bring them.
    let mut frames = Vec::new();
    for slice in all(bytes.len()) {
        let payload = &bytes[slice * SLICE as usize..][..SLICE as usize];
        frames.extend_from_slice(&SliceHead::encode(id, (slice * SLICE as usize) as u64, bytes.len() as u64, payload));
        frames.extend_from_slice(payload);
    }
    client.send_frame(&mut BulkIn::new(false), &frames);
    let handle = tensor(client.answer(id));
    assert!(get(&mut client, handle, (0, 0), 1 << 20) == bytes);
    let copy = tensor(client.call(Request::Copy { handle, device: 1 }));
    assert!(get(&mut client, copy, (5, 8 << 20), 1 << 20) == bytes[5..5 + (8 << 20)]);
    assert_eq!(copied_bytes() - before, 0);
}
