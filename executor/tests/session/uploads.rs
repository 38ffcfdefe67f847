//! Weights: uploaded once, resumed where they were cut, found by content.

use std::time::Duration;

use genie_transport::wire::{ContentHash, ErrorCode, Offered, Request};

use crate::client::{Server, Told, bytes_spec, noise, put_request, sliced_put, tensor, weight};

fn offer(bytes: &[u8]) -> Request<'static> {
    Request::Offer { device: 0, entries: vec![(ContentHash::of(bytes), bytes_spec(bytes.len()))] }
}

#[test]
fn the_second_client_uploads_nothing() {
    let server = Server::inline();
    let bytes = noise(30_000, 1);
    let mut first = server.client();
    assert_eq!(first.call(offer(&bytes)), Ok(Told::Offered(vec![Offered::Absent])));
    first.put_weight(&bytes);
    let free = first.devices()[0].1;
    let mut second = server.client();
    let Ok(Told::Offered(offered)) = second.call(offer(&bytes)) else { panic!() };
    let [Offered::Present(handle)] = offered[..] else { panic!("{offered:?}") };
    assert_eq!(second.get(handle), bytes);
    // A put of what is there ends at once, whatever its body.
    let id = second.ask(sliced_put(weight(ContentHash::of(&bytes)), bytes.len(), false));
    tensor(second.answer(id));
    assert_eq!(second.devices()[0].1, free, "one copy in memory");
    // The first goes: the weights stay for the next.
    first.call(Request::Close).unwrap();
    second.call(Request::Close).unwrap();
    let mut third = server.client();
    let Ok(Told::Offered(offered)) = third.call(offer(&bytes)) else { panic!() };
    assert!(matches!(offered[..], [Offered::Present(_)]));
}

#[test]
fn another_client_resumes_at_the_first_missing_slice() {
    let server = Server::inline();
    let bytes = noise(20_000, 2);
    let hash = ContentHash::of(&bytes);
    let mut killed = server.client();
    let id = killed.ask(sliced_put(weight(hash), bytes.len(), false));
    killed.send(id, &bytes, &[0, 1, 4]);
    killed.break_off();

    let mut next = server.client();
    let landed = 2 * 4096 + (20_000 - 4 * 4096);
    assert_eq!(next.call(offer(&bytes)), Ok(Told::Offered(vec![Offered::Partial(landed as u64)])));
    let id = next.ask(sliced_put(weight(hash), bytes.len(), true));
    assert_eq!(next.answer(id), Ok(Told::Landed(5, vec![0b1_0011])));
    next.send(id, &bytes, &[2]);
    assert_eq!(next.heard(), []);
    next.send(id, &bytes, &[3]);
    let handle = tensor(next.answer(id));
    assert_eq!(next.get(handle), bytes);
    assert_eq!(server.counter("genie_uploads_adopted_total"), 1);

    // The first client comes back: its request was answered in its absence.
    let opened = killed.opened.unwrap();
    let mut back = server.connect();
    let resume = Request::Resume { token: opened.token, epoch: opened.epoch, unanswered: 0 };
    back.call(resume).unwrap();
    back.ask_as(id, sliced_put(weight(hash), bytes.len(), false));
    let handle = tensor(back.answer(id));
    assert_eq!(back.get(handle), bytes);
}

#[test]
fn the_same_session_resumes_its_own_put() {
    let server = Server::inline();
    let bytes = noise(20_000, 3);
    let mut client = server.client();
    let put = || sliced_put(crate::client::private(None, None), 20_000, true);
    let id = client.ask(put());
    assert_eq!(client.answer(id), Ok(Told::Landed(5, vec![0])));
    client.send(id, &bytes, &[1, 3]);
    client.reconnect(id);
    client.ask_as(id, put());
    assert_eq!(client.answer(id), Ok(Told::Landed(5, vec![0b1010])));
    client.send(id, &bytes, &[0, 2, 4]);
    let handle = tensor(client.answer(id));
    assert_eq!(client.get(handle), bytes);
}

#[test]
fn two_clients_that_send_the_same_content_share_the_work() {
    let server = Server::inline();
    let bytes = noise(20_000, 4);
    let put = || sliced_put(weight(ContentHash::of(&bytes)), 20_000, false);
    let (mut one, mut two) = (server.client(), server.client());
    let (a, b) = (one.ask(put()), two.ask(put()));
    one.send(a, &bytes, &[0, 1]);
    two.send(b, &bytes, &[0, 1, 2, 3]);
    one.send(a, &bytes, &[2, 3, 4]);
    let (x, y) = (tensor(one.answer(a)), tensor(two.answer(b)));
    assert_eq!((one.get(x), two.get(y)), (bytes.clone(), bytes.clone()));
    two.send(b, &bytes, &[4]);
    assert_eq!(two.heard(), [], "late slices are drained");
}

#[test]
fn who_sends_wrong_bytes_of_a_shared_upload_fails_alone() {
    // Whoever knew a weight's hash could join its upload and send wrong bytes under good checksums: the hash of the whole then
    // did not match, and everybody's put failed, as often as the joiner liked.
    let server = Server::inline();
    let (good, mut bad) = (noise(20_000, 9), noise(20_000, 9));
    bad[5000] ^= 1;
    let put = |announce| sliced_put(weight(ContentHash::of(&good)), 20_000, announce);
    let (mut one, mut two, mut away) = (server.client(), server.client(), server.client());
    let a = one.ask(put(false));
    one.send(a, &good, &[0]);
    let b = two.ask(put(true));
    assert_eq!(two.answer(b), Ok(Told::Landed(5, vec![0b1])));
    let c = away.ask(put(false));
    away.break_off();
    two.send(b, &bad, &[1]);
    one.send(a, &good, &[1, 2, 3, 4]);
    // The slices that landed did not make the weight. Each starts over, for itself.
    assert_eq!(one.answer(a), Ok(Told::Landed(5, vec![0])));
    assert_eq!(two.answer(b), Ok(Told::Landed(5, vec![0])));
    two.send(b, &bad, &[0, 1, 2, 3]);
    one.send(a, &good, &[0, 1, 2, 3, 4]);
    let handle = tensor(one.answer(a));
    assert_eq!(one.get(handle), good);
    two.send(b, &bad, &[4]);
    assert_eq!(two.answer(b).unwrap_err().code, ErrorCode::HashMismatch);
    // And so does who was away meanwhile.
    away.reconnect(c);
    away.ask_as(c, put(true));
    assert_eq!(away.answer(c), Ok(Told::Landed(5, vec![0])));
    away.send(c, &good, &[0, 1, 2, 3, 4]);
    let handle = tensor(away.answer(c));
    assert_eq!(away.get(handle), good);
    for client in [one, two, away] {
        assert_eq!(client.heard(), []);
    }
    assert_eq!(server.counter("genie_weights"), 1, "one copy");
}

#[test]
fn an_abandoned_upload_is_let_go() {
    let mut server = Server::inline();
    let bytes = noise(20_000, 5);
    {
        let mut client = server.client();
        let id = client.ask(sliced_put(weight(ContentHash::of(&bytes)), bytes.len(), false));
        client.send(id, &bytes, &[0]);
        client.break_off();
    }
    server.pass(Duration::from_secs(2));
    let mut client = server.client();
    assert_eq!(
        client.call(offer(&bytes)),
        Ok(Told::Offered(vec![Offered::Partial(4096)])),
        "its session is over, but another client could still resume it"
    );
    client.call(Request::Close).unwrap();
    server.pass(Duration::from_secs(100));
    let mut client = server.client();
    assert_eq!(client.call(offer(&bytes)), Ok(Told::Offered(vec![Offered::Absent])));
    assert_eq!(client.devices()[0].1, 64 << 20);
}

#[test]
fn a_cancelled_put_ends_and_its_memory_comes_back() {
    let server = Server::inline();
    let mut client = server.client();
    let bytes = noise(20_000, 6);
    let id = client.ask(sliced_put(crate::client::private(None, None), bytes.len(), false));
    client.send(id, &bytes, &[0, 1]);
    genie_transport::connection::Service::cancel(&server.executor, &client.peer, id, server.now);
    assert_eq!(client.answer(id).unwrap_err().code, ErrorCode::Cancelled);
    client.send(id, &bytes, &[2, 3, 4]);
    assert_eq!(client.heard(), []);
    assert_eq!(client.devices()[0].1, 64 << 20);
}

#[test]
fn slices_off_the_grid_end_the_put() {
    let server = Server::inline();
    let mut client = server.client();
    let bytes = noise(20_000, 7);
    let id = client.ask(sliced_put(crate::client::private(None, None), bytes.len(), false));
    let head = genie_transport::wire::SliceHead::encode(id, 4096, 40_000, &bytes[..4096]);
    let mut frame = head.to_vec();
    frame.extend_from_slice(&bytes[..4096]);
    client.send_frame(&mut genie_transport::connection::BulkIn::new(false), &frame);
    assert_eq!(client.answer(id).unwrap_err().code, ErrorCode::Corrupt);
}

#[test]
fn a_put_that_came_corrupted_can_be_repeated() {
    // `Corrupt` asks the client to send again under the same id; but the answer was kept, and the repeated put got it again and
    // again, whatever it sent.
    let server = Server::inline();
    let mut client = server.client();
    let bytes = noise(20_000, 8);
    let put = || sliced_put(crate::client::private(None, None), bytes.len(), false);
    let id = client.ask(put());
    genie_transport::connection::Service::refused(&server.executor, &client.peer, id, server.now);
    assert_eq!(client.answer(id).unwrap_err().code, ErrorCode::Corrupt);
    // The link ends the transfer before it says so.
    client.ask_as(id, put());
    client.send(id, &bytes, &[0, 1, 2, 3, 4]);
    let handle = tensor(client.answer(id));
    assert_eq!(client.get(handle), bytes);
    client.ask_as(id, put());
    assert_eq!(tensor(client.answer(id)), handle, "now it is kept");
}

#[test]
fn an_inline_weight_of_the_wrong_hash_is_not_kept() {
    let server = Server::inline();
    let mut client = server.client();
    let put = put_request(weight(ContentHash([7; 32])), &[1, 2, 3]);
    assert_eq!(client.fails(put), ErrorCode::HashMismatch);
}
