//! Named tensors.

use std::sync::Arc;

use genie_transport::auth::Token;
use genie_transport::wire::{ErrorCode, Request};

use crate::client::{Server, noise, private, put_request, sliced_put, tensor};

#[test]
fn a_name_is_found_by_others_and_outlives_who_gave_it() {
    let server = Server::inline();
    let bytes = noise(3000, 1);
    let mut giver = server.client();
    giver.call(put_request(private(None, Some("x")), &bytes)).unwrap();
    giver.call(Request::Close).unwrap();
    let mut other = server.client();
    let handle = tensor(other.call(Request::LookupName("x")));
    assert_eq!(other.get(handle), bytes);
    assert_eq!(other.fails(Request::LookupName("y")), ErrorCode::NoSuchName);
}

#[test]
fn a_look_up_that_is_repeated_gives_the_same_handle() {
    // A look-up by name makes a handle, but was no request that is answered once: a client whose reply was lost asked again,
    // got another handle, and the first one was charged until the session ended.
    let server = Server::inline();
    let mut client = server.client();
    client.call(put_request(private(None, Some("x")), &noise(3000, 1))).unwrap();
    let id = client.ask(Request::LookupName("x"));
    let handle = tensor(client.answer(id));
    let held = server.counter("genie_session_bytes");
    client.reconnect(id);
    client.ask_as(id, Request::LookupName("x"));
    assert_eq!(tensor(client.answer(id)), handle);
    assert_eq!(server.counter("genie_session_bytes"), held);
}

#[test]
fn another_put_replaces_the_name_whole() {
    let server = Server::inline();
    let (old, new) = (noise(9000, 1), noise(9000, 2));
    let mut writer = server.client();
    writer.call(put_request(private(None, Some("x")), &old)).unwrap();
    let mut reader = server.client();
    let before = tensor(reader.call(Request::LookupName("x")));
    let id = writer.ask(sliced_put(private(None, Some("x")), new.len(), false));
    writer.send(id, &new, &[0, 1]);
    let during = tensor(reader.call(Request::LookupName("x")));
    assert_eq!(reader.get(during), old);
    writer.send(id, &new, &[2]);
    let mine = tensor(writer.answer(id));
    let after = tensor(reader.call(Request::LookupName("x")));
    assert_eq!((reader.get(before), reader.get(after)), (old, new.clone()));
    // What the writer does to its own resident is not the name's.
    writer.call(put_request(genie_transport::wire::PutTarget::Range { handle: mine, offset: 0 }, &[0; 8])).unwrap();
    assert_eq!(reader.get(after), new);
}

#[test]
fn a_steady_stream_to_one_name_takes_no_more_memory() {
    let server = Server::inline();
    let mut client = server.client();
    let mut free = None;
    for round in 0..20 {
        let handle = tensor(client.call(put_request(private(None, Some("x")), &noise(50_000, round))));
        client.call(Request::Free(handle)).unwrap();
        let now = client.devices()[0].1;
        assert_eq!(*free.get_or_insert(now), now);
    }
}

#[test]
fn names_nobody_uses_make_room() {
    let server = Server::with(1, 64 << 10, |_| {});
    let mut client = server.client();
    for name in ["a", "b", "c"] {
        let handle = tensor(client.call(put_request(private(None, Some(name)), &noise(16 << 10, 1))));
        client.call(Request::Free(handle)).unwrap();
    }
    tensor(client.call(Request::LookupName("a")));
    client.put(&noise(32 << 10, 2));
    assert_eq!(client.fails(Request::LookupName("b")), ErrorCode::NoSuchName, "the least recently used");
    tensor(client.call(Request::LookupName("a")));
}

#[test]
fn a_weight_of_two_names_can_still_be_let_go() {
    // Each name counted the other as somebody who uses the weight: neither was ever let go, nor was the memory.
    let server = Server::with(1, 64 << 10, |config| config.names_quota = 80 << 10);
    let mut client = server.client();
    let bytes = noise(32 << 10, 1);
    let hash = genie_transport::wire::ContentHash::of(&bytes);
    for name in ["a", "b"] {
        let residency = genie_transport::wire::ResidencyCode::Weight;
        let target = genie_transport::wire::PutTarget::New { device: 0, residency, hash: Some(hash), name: Some(name) };
        let handle = tensor(client.call(put_request(target, &bytes)));
        client.call(Request::Free(handle)).unwrap();
    }
    let held = tensor(client.call(Request::LookupName("a")));
    let mut other = server.client();
    assert_eq!(other.fails(put_request(private(None, None), &noise(48 << 10, 2))), ErrorCode::OutOfMemory);
    client.call(Request::Free(held)).unwrap();
    other.put(&noise(48 << 10, 2));
    assert_eq!(client.fails(Request::LookupName("a")), ErrorCode::NoSuchName);
}

#[test]
fn names_have_a_quota_of_their_own() {
    let server = Server::with(1, 1 << 20, |config| config.names_quota = 10_000);
    let mut client = server.client();
    let first = tensor(client.call(put_request(private(None, Some("a")), &noise(6000, 1))));
    assert_eq!(client.fails(put_request(private(None, Some("b")), &noise(6000, 1))), ErrorCode::OverQuota);
    client.call(Request::Free(first)).unwrap();
    client.call(put_request(private(None, Some("b")), &noise(6000, 1))).unwrap();
    assert_eq!(client.fails(Request::LookupName("a")), ErrorCode::NoSuchName);
}

/// Names went over a token's quota, session by session, and pushed other tenants' names out.
#[test]
fn the_names_of_one_owner_take_nothing_from_anothers() {
    let token = |name: &str| {
        let mut token = Token::draw(name).unwrap();
        token.rights.quota = Some(10_000);
        Arc::new(token)
    };
    let (alice, bob) = (token("alice"), token("bob"));
    let server = Server::with(1, 1 << 20, |config| config.names_quota = 14_000);
    let give = |client: &mut crate::client::Client<'_>, name: &str, bytes: usize| {
        client.call(put_request(private(None, Some(name)), &noise(bytes, 1)))
    };
    let mut hers = server.client_of(&alice);
    let handle = tensor(give(&mut hers, "a", 6000));
    hers.call(Request::Free(handle)).unwrap();
    let mut his = server.client_of(&bob);
    let first = tensor(give(&mut his, "x", 6000));
    his.call(Request::Free(first)).unwrap();
    // All names together are short: his own goes, not hers.
    let second = tensor(give(&mut his, "y", 6000));
    his.call(Request::Free(second)).unwrap();
    assert_eq!(his.fails(Request::LookupName("x")), ErrorCode::NoSuchName);
    let hers_still = tensor(hers.call(Request::LookupName("a")));
    hers.call(Request::Free(hers_still)).unwrap();
    // A second session has names of the same account.
    let held = tensor(his.call(Request::LookupName("y")));
    let mut again = server.client_of(&bob);
    let over = give(&mut again, "z", 6000).unwrap_err();
    assert_eq!(over.code, ErrorCode::OverQuota);
    assert!(over.message.contains("this token's named tensors may take 10000"), "{over}");
    his.call(Request::Free(held)).unwrap();
    give(&mut again, "z", 6000).unwrap();
}
