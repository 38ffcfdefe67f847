//! Put, get, copy, free: whole and in ranges.

use genie_transport::wire::{ContentHash, ErrorCode, PutBody, PutRequest, PutTarget, Request};

use crate::client::{Server, Told, bytes_spec, noise, private, put_request, sliced_put, tensor};

#[test]
fn what_is_put_is_got() {
    let server = Server::inline();
    let mut client = server.client();
    let bytes = noise(1000, 1);
    let handle = client.put(&bytes);
    assert_eq!(client.get(handle), bytes);
    let part = client.call(Request::Get { handle, offset: 990, length: 10, sliced: None });
    assert_eq!(part, Ok(Told::Got(bytes[990..].to_vec())));
    for (offset, length) in [(990, 11), (1001, 0), (u64::MAX, 0), (1, u64::MAX - 1)] {
        let get = Request::Get { handle, offset, length, sliced: None };
        assert_eq!(client.fails(get), ErrorCode::OutOfRange, "{offset} {length}");
    }
}

#[test]
fn slices_land_in_any_order_and_become_one_tensor() {
    let server = Server::inline();
    let mut client = server.client();
    let bytes = noise(10_000, 2);
    let id = client.ask(sliced_put(private(Some(ContentHash::of(&bytes)), None), bytes.len(), false));
    client.send(id, &bytes, &[2, 0]);
    assert_eq!(client.heard(), [], "not whole yet");
    client.send(id, &bytes, &[1]);
    let handle = tensor(client.answer(id));
    assert_eq!(client.get(handle), bytes);
    let id = client.ask(Request::Get { handle, offset: 1, length: 9000, sliced: Some(4096) });
    assert_eq!(client.answer(id), Ok(Told::Got(Vec::new())));
    assert!(!client.peer.bulk().is_empty(), "the bytes go over the bulk lanes");
}

#[test]
fn a_wrong_hash_is_refused_and_nothing_is_kept() {
    let server = Server::inline();
    let mut client = server.client();
    let free = client.devices()[0].1;
    let (promised, sent) = (noise(9000, 3), noise(9000, 4));
    let put = put_request(private(Some(ContentHash::of(&promised)), None), &sent);
    assert_eq!(client.fails(put), ErrorCode::HashMismatch);
    let id = client.ask(sliced_put(crate::client::weight(ContentHash::of(&promised)), sent.len(), false));
    client.send(id, &sent, &[0, 1, 2]);
    assert_eq!(client.answer(id).unwrap_err().code, ErrorCode::HashMismatch);
    assert_eq!(client.devices()[0].1, free);
    let offer = Request::Offer { device: 0, entries: vec![(ContentHash::of(&promised), bytes_spec(9000))] };
    assert_eq!(client.call(offer), Ok(Told::Offered(vec![genie_transport::wire::Offered::Absent])));
}

#[test]
fn a_range_changes_at_once_or_not_at_all() {
    let server = Server::inline();
    let mut client = server.client();
    let mut bytes = noise(20_000, 5);
    let handle = client.put(&bytes);
    let patch = noise(9000, 6);
    let target = PutTarget::Range { handle, offset: 500 };
    let id = client.ask(sliced_put(target, patch.len(), false));
    client.send(id, &patch, &[0, 2]);
    assert_eq!(client.get(handle), bytes, "two of three slices have landed: nobody sees them");
    client.send(id, &patch, &[1]);
    assert_eq!(tensor(client.answer(id)), handle);
    bytes[500..9500].copy_from_slice(&patch);
    assert_eq!(client.get(handle), bytes);
    let id = client.ask(put_request(PutTarget::Range { handle, offset: 19_999 }, &[42]));
    client.answer(id).unwrap();
    assert_eq!(client.get(handle)[19_999], 42);
    assert_eq!(client.fails(put_request(PutTarget::Range { handle, offset: 19_999 }, &[1, 2])), ErrorCode::OutOfRange);
    let all = noise(20_000, 7);
    let id = client.ask(sliced_put(PutTarget::Range { handle, offset: 0 }, all.len(), false));
    client.send(id, &all, &[0, 1, 2, 3, 4]);
    client.answer(id).unwrap();
    assert_eq!(client.get(handle), all);
}

#[test]
fn weights_do_not_change() {
    let server = Server::inline();
    let mut client = server.client();
    let handle = client.put_weight(&noise(100, 8));
    let put = put_request(PutTarget::Range { handle, offset: 0 }, &[1]);
    assert_eq!(client.fails(put), ErrorCode::WrongType);
}

#[test]
fn a_copy_is_a_tensor_of_its_own() {
    let server = Server::with(2, 1 << 20, |_| {});
    let mut client = server.client();
    let bytes = noise(5000, 9);
    let original = client.put(&bytes);
    for device in [0, 1] {
        let copy = match client.call(Request::Copy { handle: original, device }) {
            Ok(Told::Tensor(handle, on, _)) => {
                assert_eq!(on, device);
                handle
            }
            other => panic!("{other:?}"),
        };
        client.call(put_request(PutTarget::Range { handle: copy, offset: 0 }, &[1, 2, 3])).unwrap();
        assert_eq!(client.get(copy)[..3], [1, 2, 3]);
        assert_eq!(client.get(original), bytes);
    }
    assert_eq!(client.fails(Request::Copy { handle: original, device: 2 }), ErrorCode::NoSuchDevice);
}

#[test]
fn a_steady_stream_of_puts_takes_no_more_memory() {
    let server = Server::inline();
    let mut client = server.client();
    let bytes = noise(50_000, 10);
    let handle = client.put(&bytes);
    let free = client.devices()[0].1;
    for round in 0..50_u64 {
        let bytes = noise(50_000, round);
        let put = Request::Put(PutRequest {
            target: PutTarget::Range { handle, offset: 0 },
            spec: bytes_spec(bytes.len()),
            body: PutBody::Inline(&bytes),
        });
        client.call(put).unwrap();
        assert_eq!(client.devices()[0].1, free);
    }
    assert_eq!(client.call(Request::Free(handle)), Ok(Told::Done));
    assert_eq!(client.devices()[0].1, 64 << 20);
}
