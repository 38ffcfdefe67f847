//! The suite.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use genie_graph::DType;
use genie_transport::client::ClientError;
use genie_transport::wire::{ContentHash, ErrorCode, Handle, Offered, TensorSpec};

use crate::link::{Client, EAGER, Link, SLICE};

/// Copies are counted for the whole process: whoever looks at the count is alone.
static COPIES: RwLock<()> = RwLock::new(());

pub(crate) fn among_others() -> RwLockReadGuard<'static, ()> {
    COPIES.read().unwrap_or_else(PoisonError::into_inner)
}

/// No two of these are alike, nor two parts of one.
fn content(bytes: usize, seed: u64) -> Bytes {
    let mix = |i: u64| (i ^ (seed << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    (0..bytes as u64).map(|i| mix(i) as u8).collect()
}

fn spec(bytes: usize) -> TensorSpec {
    TensorSpec::new(DType::U8, &[bytes as u64]).expect("a shape")
}

/// More than a few slices, and a last one that is short.
const LARGE: usize = (5 << 20) + 3;

pub(crate) fn every_size_comes_back<L: Link>() {
    let _among = among_others();
    let link = L::start();
    let mut client = link.connect(None);
    for (i, bytes) in [0, 1, 63, 64, 4096, EAGER - 1, EAGER, EAGER + 1, 1 << 20].into_iter().enumerate() {
        let sent = content(bytes, i as u64);
        assert!(client.echo(&sent).expect("an echo") == sent[..], "an echo of {bytes} bytes");
    }
    let around = |n: usize| [n - 1, n, n + 1];
    let sizes = [1, 63, 64, 4096].into_iter().chain(around(EAGER)).chain(around(SLICE)).chain(around(3 * SLICE));
    for (i, bytes) in sizes.chain([LARGE]).enumerate() {
        let sent = content(bytes, i as u64);
        let tensor = client.put(&spec(bytes), sent.clone()).expect("a put");
        assert_eq!(tensor.spec.bytes(), bytes as u64);
        assert!(client.get(&tensor).expect("a get") == sent[..], "{bytes} bytes came back otherwise");
        client.free(tensor.handle).expect("freed");
    }
    // A tensor of no bytes does not exist.
    assert!(TensorSpec::new(DType::U8, &[0]).is_err());
}

pub(crate) fn ranges<L: Link>() {
    let _among = among_others();
    let link = L::start();
    let mut client = link.connect(None);
    let mut expected = content(LARGE, 1).to_vec();
    let tensor = client.put(&spec(LARGE), expected.clone().into()).expect("a put");
    let edges = [0, 1, EAGER, SLICE - 1, SLICE, SLICE + 1, LARGE / 2, LARGE - SLICE, LARGE - 2, LARGE - 1];
    for (i, offset) in edges.into_iter().enumerate() {
        for bytes in [1, 63, EAGER, EAGER + 1, SLICE, 2 * SLICE + 1].into_iter().filter(|n| offset + n <= LARGE) {
            let ticket = client.start_get(tensor.handle, offset as u64, bytes as u64);
            let got = client.finish_get(ticket).expect("a range");
            assert!(got == expected[offset..offset + bytes], "{bytes} bytes from {offset} on");
        }
        let bytes = [3, EAGER + 1, 2 * SLICE + 5][i % 3].min(LARGE - offset);
        let fresh = content(bytes, 100 + i as u64);
        client.put_range(&tensor, offset as u64, fresh.clone()).expect("a range is replaced");
        expected[offset..offset + bytes].copy_from_slice(&fresh);
    }
    assert!(client.get(&tensor).expect("a get") == expected, "the whole, after its ranges were replaced");
}

/// More than there are credits, of all sizes, picked up in another order than they were asked in.
pub(crate) fn pipelined_requests<L: Link>() {
    let _among = among_others();
    let link = L::start();
    let mut client = link.connect(None);
    let sizes: Vec<usize> = (0..300).map(|i| [8, 700, EAGER + i, 3][i % 4]).collect();
    let sent: Vec<Bytes> = sizes.iter().enumerate().map(|(i, &n)| content(n, i as u64)).collect();
    let puts: Vec<_> = sent.iter().map(|bytes| client.start_put(&spec(bytes.len()), bytes.clone())).collect();
    assert_eq!(client.echo(b"meanwhile").expect("an echo"), b"meanwhile");
    let mut tensors: Vec<_> = puts.into_iter().rev().map(|put| client.finish_put(put).expect("a put")).collect();
    tensors.reverse();
    let gets: Vec<_> = tensors.iter().map(|t| client.start_get(t.handle, 0, t.spec.bytes())).collect();
    for (i, get) in gets.into_iter().enumerate().rev() {
        assert!(client.finish_get(get).expect("a get") == sent[i][..], "tensor {i}");
    }
}

pub(crate) fn small_requests_do_not_wait_behind_bulk<L: Link>() {
    let _among = among_others();
    let link = L::start();
    let mut client = link.connect(None);
    let small = client.put(&spec(8), content(8, 1)).expect("a put");
    link.hold_bulk(true);
    let sent = content(LARGE, 2);
    let large = client.start_put(&spec(LARGE), sent.clone());
    for i in 0..20_u8 {
        assert_eq!(client.echo(&[i; 64]).expect("an echo"), [i; 64]);
        assert_eq!(client.get(&small).expect("a get"), content(8, 1));
    }
    // The bulk is far from whole: else nothing was shown.
    assert!(link.arrived() < LARGE as u64, "the upload did not wait");
    link.hold_bulk(false);
    let large = client.finish_put(large).expect("a put");
    assert!(client.get(&large).expect("a get") == sent[..]);
}

pub(crate) fn a_generate_can_be_cancelled<L: Link>() {
    let _among = among_others();
    let link = L::start();
    let mut client = link.connect(None);
    assert_eq!(client.generate(20, usize::MAX), (20, Ok(())));
    let (came, end) = client.generate(1_000_000, 3);
    assert!((3..1_000_000).contains(&came), "{came} tokens");
    match end {
        Err(ClientError::Remote(error)) => assert_eq!(error.code, ErrorCode::Cancelled),
        other => panic!("a million tokens were made: {other:?}"),
    }
    assert_eq!(client.echo(b"on").expect("an echo"), b"on");
}

pub(crate) fn steps_are_asked_for_ahead<L: Link>() {
    let _among = among_others();
    let link = L::start();
    let mut client = link.connect(None);
    let one_by_one = client.steps(40, 0).expect("40 steps");
    assert_eq!(one_by_one.len(), 40);
    for ahead in [1, 5, 39] {
        assert_eq!(client.steps(40, ahead).expect("40 steps"), one_by_one, "{ahead} ahead");
    }
}

/// One binding, and other tensors each time; the runs go on where the connection breaks in between, on what they named.
pub(crate) fn runs_name_residents<L: Link>() {
    let _among = among_others();
    let link = L::start();
    let mut client = link.connect(None);
    let spec = TensorSpec::new(DType::F32, &[4]).expect("a shape");
    let bytes = |values: [f32; 4]| Bytes::from(values.map(f32::to_le_bytes).as_flattened().to_vec());
    let put = |client: &mut L::Client, i: u8| {
        let x = f32::from(i);
        client.put(&spec, bytes([x, -1.0 - x, x + 0.5, -1.0])).expect("a put")
    };
    let mut tensors: Vec<_> = (0..100).map(|i| put(&mut client, i)).collect();
    let expected: Vec<_> = (0..100_u8).map(|i| bytes([f32::from(i), 0.0, f32::from(i) + 0.5, 0.0])).collect();
    assert!(client.relu(&tensors).expect("100 runs") == expected);
    link.cut_after(4000, u64::MAX);
    // A link may let a little more through than it was told.
    for _ in 0..50 {
        assert!(client.relu(&tensors).expect("100 runs") == expected, "{} cuts", link.cuts());
        if link.cuts() > 0 {
            break;
        }
    }
    assert_eq!(link.cuts(), 1, "it was not cut");
    // What one has, the other does not reach; and what was freed is gone.
    let mut stranger = link.connect(None);
    match stranger.relu(&tensors[..1]) {
        Err(ClientError::Remote(error)) => assert_eq!(error.code, ErrorCode::NoSuchHandle, "{error}"),
        other => panic!("{other:?}"),
    }
    client.free(tensors[50].handle).expect("freed");
    match client.relu(&tensors) {
        Err(ClientError::Remote(error)) => assert_eq!(error.code, ErrorCode::StaleHandle, "{error}"),
        other => panic!("{other:?}"),
    }
    tensors[50] = put(&mut client, 50);
    assert!(client.relu(&tensors).expect("100 runs") == expected);
}

pub(crate) fn an_upload_goes_on_where_it_was_cut<L: Link>() {
    let _among = among_others();
    let link = L::start();
    let mut client = link.connect(None);
    let sent = content(LARGE, 3);
    let part = LARGE as u64 / 4;
    link.cut_after(part, part);
    let put = client.start_put(&spec(LARGE), sent.clone());
    let tensor = client.finish_put(put).expect("a put");
    link.cut_after(u64::MAX, u64::MAX);
    // No connection lets all of it through: begun anew each time, it would never have ended.
    assert!(link.cuts() >= 3, "it was cut {} times", link.cuts());
    assert!(link.arrived() >= LARGE as u64);
    assert!(client.get(&tensor).expect("a get") == sent[..]);
}

pub(crate) fn a_download_that_is_cut_is_whole<L: Link>() {
    let _among = among_others();
    let link = L::start();
    let mut client = link.connect(None);
    let sent = content(LARGE, 4);
    let tensor = client.put(&spec(LARGE), sent.clone()).expect("a put");
    link.cut_after(LARGE as u64 / 2, u64::MAX);
    let get = client.start_get(tensor.handle, 0, LARGE as u64);
    assert!(client.finish_get(get).expect("a get") == sent[..]);
    assert_eq!(link.cuts(), 1, "it was not cut");
}

pub(crate) fn a_session_is_taken_up_by_its_token<L: Link>() {
    let _among = among_others();
    let link = L::start();
    let mut first = link.connect(None);
    let sent = content(LARGE, 5);
    let tensor = first.put(&spec(LARGE), sent.clone()).expect("a put");
    let opened = first.opened();
    drop(first);
    let mut second = link.connect(Some(opened));
    assert_eq!(second.opened().session, opened.session);
    assert!(second.get(&tensor).expect("it is there") == sent[..]);
    let more = second.put(&spec(8), content(8, 6)).expect("another");
    assert_eq!(second.get(&more).expect("a get"), content(8, 6));
    assert!(second.get(&tensor).expect("it is there") == sent[..]);
}

pub(crate) fn two_clients<L: Link>() {
    let _among = among_others();
    let link = L::start();
    let (mut a, mut b) = (link.connect(None), link.connect(None));
    let (of_a, of_b) = (content(LARGE, 7), content(LARGE, 8));
    let (put_a, put_b) = (a.start_put(&spec(LARGE), of_a.clone()), b.start_put(&spec(LARGE), of_b.clone()));
    assert_eq!(b.echo(b"b").expect("an echo"), b"b");
    assert_eq!(a.echo(b"a").expect("an echo"), b"a");
    let (tensor_a, tensor_b) = (a.finish_put(put_a).expect("a put"), b.finish_put(put_b).expect("a put"));
    let (get_a, get_b) = (a.start_get(tensor_a.handle, 0, LARGE as u64), b.start_get(tensor_b.handle, 0, LARGE as u64));
    assert!(b.finish_get(get_b).expect("a get") == of_b[..]);
    assert!(a.finish_get(get_a).expect("a get") == of_a[..]);
    assert_ne!(a.opened().session, b.opened().session);
    // What one has, the other does not reach.
    b.free(tensor_b.handle).expect("freed");
    assert!(b.get(&tensor_a).is_err());
    assert!(a.get(&tensor_a).expect("a get") == of_a[..]);
}

pub(crate) fn corruption_is_not_seen<L: Link>() {
    let _among = among_others();
    let link = L::start();
    link.corrupt();
    let mut client = link.connect(None);
    let (mut rounds, mut flipped) = (0, 0);
    while rounds < 3 || flipped == 0 {
        let sent = content(LARGE / 4, rounds);
        let tensor = client.put(&spec(sent.len()), sent.clone()).expect("a put");
        assert!(client.get(&tensor).expect("a get") == sent[..], "round {rounds}");
        client.free(tensor.handle).expect("freed");
        rounds += 1;
        flipped = link.flipped();
        assert!(rounds < 100, "nothing was corrupted");
    }
}

/// Above the eager threshold no byte is copied in user space, on either side.
pub(crate) fn bulk_is_not_copied<L: Link>() {
    let _alone = COPIES.write().unwrap_or_else(PoisonError::into_inner);
    let link = L::start();
    let mut client = link.connect(None);
    let copied = |client: &mut L::Client| {
        let stats = client.stats().expect("counters");
        stats.iter().find(|(name, _)| name == "genie_copied_bytes_total").expect("the counter").1
    };
    // Lanes open with the first of these.
    client.put(&spec(LARGE), content(LARGE, 9)).expect("a put");
    let before = copied(&mut client);
    for bytes in [EAGER + 1, SLICE, LARGE] {
        let sent = content(bytes, 10);
        let tensor = client.put(&spec(bytes), sent.clone()).expect("a put");
        let got = client.get(&tensor).expect("a get");
        assert!(got == sent[..]);
    }
    assert_eq!(copied(&mut client) - before, 0, "bytes were copied");
    // Over shared memory what is larger than a page is not inline, whatever the server's threshold.
    client.put(&spec(4096), content(4096, 11)).expect("a put");
    assert!(copied(&mut client) - before >= 4096, "the counter counts");
}

pub(crate) fn refusals_are_told<L: Link>() {
    let _among = among_others();
    let link = L::start();
    let mut client = link.connect(None);
    let tensor = client.put(&spec(LARGE), content(LARGE, 12)).expect("a put");
    for (offset, length) in [(LARGE as u64, 1), (0, LARGE as u64 + 1), (1, LARGE as u64)] {
        let get = client.start_get(tensor.handle, offset, length);
        match client.finish_get(get) {
            Err(ClientError::Remote(error)) => assert_eq!(error.code, ErrorCode::OutOfRange, "{error}"),
            other => panic!("{other:?}"),
        }
    }
    client.free(tensor.handle).expect("freed");
    match client.get(&tensor) {
        Err(ClientError::Remote(error)) => assert_eq!(error.code, ErrorCode::StaleHandle, "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.echo(b"on").expect("an echo"), b"on");
}

/// The second client of some weights names all of them by one hash.
pub(crate) fn weights_are_known_by_one_hash<L: Link>() {
    let _among = among_others();
    let link = L::start();
    let contents: Vec<Bytes> = [8, EAGER, EAGER + 1, 3 * SLICE + 5].map(|bytes| content(bytes, bytes as u64)).into();
    let entries: Vec<_> = contents.iter().map(|bytes| (ContentHash::of(bytes), spec(bytes.len()))).collect();
    let sets_found = |client: &mut L::Client| {
        let stats = client.stats().expect("counters");
        stats.iter().find(|(name, _)| name == "genie_weight_sets_found_total").expect("the counter").1
    };
    let mut first = link.connect(None);
    assert_eq!(first.offer(&entries).expect("an offer"), [Offered::Absent; 4]);
    for bytes in &contents {
        first.put_weight(&spec(bytes.len()), bytes.clone()).expect("a put");
    }
    assert_eq!(sets_found(&mut first), 0);
    let mut second = link.connect(None);
    let offered = second.offer(&entries).expect("an offer");
    assert_eq!(sets_found(&mut second), 1, "it was asked for by its hash");
    let handles: Vec<Handle> = offered
        .into_iter()
        .map(|one| match one {
            Offered::Present(handle) => handle,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(handles.len(), contents.len());
    for (handle, bytes) in handles.iter().zip(&contents) {
        let get = second.start_get(*handle, 0, bytes.len() as u64);
        assert!(second.finish_get(get).expect("a get") == bytes[..], "{} bytes", bytes.len());
    }
    // What one has of it, another does not reach.
    let get = first.start_get(handles[3], 0, 8);
    assert!(first.finish_get(get).is_err());
}
