//! Gets whose slices are pages of the server's memory: what a client reads late is what it asked for, whatever it said meanwhile.

use std::time::Duration;

use bytes::Bytes;
use genie_graph::DType;
use genie_tests::answer::Told;
use genie_tests::here;
use genie_tests::raw::{Raw, frame};
use genie_tests::serve::{Live, config};
use genie_transport::Uri;
use genie_transport::client::{ConnectOptions, PutOptions, blocking};
use genie_transport::link::Access;
use genie_transport::wire::{Kind, PutBody, PutRequest, PutTarget, Request, ResidencyCode, SliceHead, TensorSpec};

const BYTES: usize = 2 << 20;
const SLICE: usize = 256 << 10;

/// How a client lets go of what it has not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    /// It says that it has it all, and frees the tensor.
    Says,
    /// It ends its control lane, and with it its connection; its session has a lease.
    Breaks,
    /// It closes its session.
    Closes,
}

/// A server on each link that sends pages.
fn servers() -> impl Iterator<Item = Live> {
    here::links(&["tcp", "uring"]).into_iter().map(|scheme| {
        println!("over {scheme}");
        Live::start_for(config(7), &format!("{scheme}://127.0.0.1:0").parse::<Uri>().unwrap(), &Access::default())
    })
}

/// A client asks for a tensor, reads nothing of it, and sees to it that the server may use the memory again. Another client's tensors,
/// which are of the same size, are never seen in what it reads then.
#[test]
fn memory_that_is_read_late_holds_nothing_of_others() {
    let all = [Leaves::Says, Leaves::Breaks, Leaves::Closes];
    for (leaves, server) in all.into_iter().flat_map(|leaves| servers().map(move |server| (leaves, server))) {
        println!("{leaves:?}");
        let (mut raw, welcome, _) = Raw::open(server.address(), 0);
        let mut lane = Raw::bulk(server.address(), &welcome);
        let own = vec![0x11; BYTES];
        let spec = TensorSpec::new(DType::U8, &[BYTES as u64]).unwrap();
        let target = PutTarget::New { device: 0, residency: ResidencyCode::Private, hash: None, name: None };
        let body = PutBody::Sliced { slice_bytes: SLICE as u32, announce: false };
        let put = raw.start(&Request::Put(PutRequest { target, spec: spec.clone(), body }));
        for (index, part) in own.chunks(SLICE).enumerate() {
            let head = SliceHead::encode(put, (index * SLICE) as u64, BYTES as u64, part);
            lane.send(&[&head[..], part].concat());
        }
        let Ok(Told::Tensor { handle, .. }) = raw.end_of(put) else { panic!("it was not put") };
        let get = raw.start(&Request::Get { handle, offset: 0, length: 0, sliced: Some(SLICE as u32) });
        assert!(raw.end_of(get).is_ok());
        // Pages are in its socket then.
        let socket = lane.socket().try_clone().unwrap();
        while socket.peek(&mut [0; 1 << 10]).unwrap() < 1 << 10 {}
        match leaves {
            Leaves::Says => {
                raw.send(&frame(Kind::Cancel, get, &[], &[]));
                assert!(raw.ask(&Request::Free(handle)).is_ok());
            }
            Leaves::Breaks => raw.socket().shutdown(std::net::Shutdown::Both).unwrap(),
            Leaves::Closes => assert!(raw.ask(&Request::Close).is_ok()),
        }

        let mut other = blocking::Session::connect(&server.uri, ConnectOptions::default()).unwrap();
        let theirs = Bytes::from(vec![0x22; BYTES]);
        for _ in 0..4 {
            let tensors: Vec<_> =
                (0..3).map(|_| other.put(&spec, theirs.clone(), PutOptions::default()).unwrap()).collect();
            for tensor in tensors {
                assert!(other.get(&tensor).unwrap()[..] == theirs[..]);
                other.free(tensor.handle).unwrap();
            }
        }

        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let (mut late, mut some) = (Vec::new(), vec![0; 1 << 20]);
        // The lane ends, or nothing more comes.
        while let Ok(n @ 1..) = std::io::Read::read(&mut &socket, &mut some) {
            late.extend_from_slice(&some[..n]);
        }
        assert!(!late.windows(16).any(|part| part == [0x22; 16]), "{leaves:?}: another client's bytes");
        assert!(late.windows(16).any(|part| part == [0x11; 16]));
    }
}

/// Its own memory is another matter: a session that gets, frees and puts has the same memory again, and every tensor is right.
#[test]
fn a_session_that_lets_go_early_gets_what_it_asks_for() {
    servers().for_each(|server| lets_go_early(&server));
}

fn lets_go_early(server: &Live) {
    let mut session = blocking::Session::connect(&server.uri, ConnectOptions::default()).unwrap();
    let spec = TensorSpec::new(DType::U8, &[BYTES as u64]).unwrap();
    for round in 0..20_u8 {
        let sent = Bytes::from(vec![round; BYTES]);
        let tensor = session.put(&spec, sent.clone(), PutOptions::default()).unwrap();
        // Given up before it has come: what is on its way then is dropped, whatever it holds.
        let pending = session.start_get(tensor.handle, 0, BYTES as u64).unwrap();
        let whole = session.start_get(tensor.handle, 0, BYTES as u64).unwrap();
        drop(session.start_get(tensor.handle, 0, BYTES as u64).unwrap());
        assert!(session.finish_get(whole).unwrap()[..] == sent[..], "round {round}");
        assert!(session.finish_get(pending).unwrap()[..] == sent[..], "round {round}");
        // A part is written in place, or the whole is copied first: others see neither.
        let part = Bytes::from(vec![!round; 1000]);
        session.put_range(&tensor, 5, part.clone()).unwrap();
        let back = session.get(&tensor).unwrap();
        assert!(back[..5] == sent[..5] && back[5..1005] == part[..] && back[1005..] == sent[1005..], "round {round}");
        session.free(tensor.handle).unwrap();
    }
}
