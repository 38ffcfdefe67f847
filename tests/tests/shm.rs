//! Shared memory between a client and a server: what only this link has.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use genie_graph::DType;
use genie_tests::serve::{Live, config};
use genie_transport::Uri;
use genie_transport::auth::{Guard, Rights, Token, Tokens};
use genie_transport::client::{ClientError, ConnectOptions, PutOptions, Tensor, blocking};
use genie_transport::link::Access;
use genie_transport::memory::Region;
use genie_transport::wire::{ContentHash, ErrorCode, TensorSpec};

/// Copies are counted for the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A path of its own.
fn uri(name: &str) -> Uri {
    let path = std::env::temp_dir().join(format!("genie-{name}-{}.sock", std::process::id()));
    format!("shm://{}", path.display()).parse().expect("an address")
}

fn spec(bytes: usize) -> TensorSpec {
    TensorSpec::new(DType::U8, &[bytes as u64]).expect("a shape")
}

fn content(bytes: usize, seed: u32) -> Vec<u8> {
    (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed as u8).collect()
}

fn connect(server: &Live) -> blocking::Session {
    blocking::Session::connect(&server.uri, ConnectOptions::default()).expect("a session")
}

fn copied(client: &mut blocking::Session) -> u64 {
    let stats = client.stats().expect("counters");
    stats.iter().find(|(name, _)| name == "genie_copied_bytes_total").expect("the counter").1
}

/// Shared memory that holds these bytes.
fn shared(client: &mut blocking::Session, bytes: &[u8]) -> Region {
    let mut slab = client.shared(bytes.len()).expect("shared memory");
    slab.copy_from_slice(bytes);
    slab.freeze()
}

fn put(client: &mut blocking::Session, bytes: impl Into<Bytes>) -> Tensor {
    let bytes = bytes.into();
    client.put(&spec(bytes.len()), bytes, PutOptions::default()).expect("a put")
}

/// Eight small gets that were recycled took the places of large ones for good: from then on each large get made new shared memory, and
/// took forty times as long.
#[test]
fn what_is_recycled_is_used_again_whatever_came_before() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Live::start_at(config(1), &uri("recycled"));
    let mut client = connect(&server);
    for bytes in [64, 300_000] {
        for round in 0..10 {
            let sent = content(bytes + 4096 * round, round as u32);
            let tensor = put(&mut client, sent);
            let got = client.get(&tensor).expect("a get");
            client.recycle(got);
        }
    }
    let tensor = put(&mut client, content(1_000_000, 1));
    let first = client.get(&tensor).expect("a get");
    let place = first.as_ptr();
    client.recycle(first);
    assert_eq!(client.get(&tensor).expect("a get").as_ptr(), place);
}

#[test]
fn echoes_and_tensors_come_back() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Live::start_at(config(1), &uri("echo"));
    for staging in [0, 1 << 30] {
        let options = ConnectOptions { staging, ..ConnectOptions::default() };
        let mut client = blocking::Session::connect(&server.uri, options).expect("a session");
        let mut back = Vec::new();
        for bytes in [0, 1, 64, 1000, 100_000, 1_000_000] {
            let sent = vec![7; bytes];
            client.echo(&sent, &mut back).expect("an echo");
            assert_eq!(back, sent);
        }
        for round in 0..6 {
            let sent = content(3_000_000 + round * 77_777, round as u32);
            let tensor = put(&mut client, sent.clone());
            let got = client.get(&tensor).expect("a get");
            assert!(got[..] == sent[..]);
            client.recycle(got);
            client.free(tensor.handle).expect("freed");
        }
    }
}

#[test]
fn a_put_of_shared_memory_copies_nothing_at_any_size() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Live::start_at(config(2), &uri("pass"));
    let mut client = connect(&server);
    for bytes in [1, 64, 5000, 1 << 20, 64 << 20] {
        let sent = content(bytes, 1);
        let region = shared(&mut client, &sent);
        let before = copied(&mut client);
        let tensor = put(&mut client, Bytes::from_owner(region.clone()));
        assert_eq!(copied(&mut client), before, "{bytes} bytes");
        let got = client.get(&tensor).expect("a get");
        assert!(got[..] == sent[..], "{bytes} bytes");
        // A part of it, where it lies.
        if bytes > 64 {
            let part = Bytes::from_owner(region.clone()).slice(7..bytes - 9);
            let before = copied(&mut client);
            let tensor = put(&mut client, part.clone());
            assert_eq!(copied(&mut client), before);
            assert!(client.get(&tensor).expect("a get")[..] == part[..]);
        }
        // It is read-only for as long as the server has it.
        let region = region.try_thaw().expect_err("the server reads it");
        client.free(tensor.handle).expect("freed");
        drop(region);
    }
}

#[test]
fn from_ordinary_memory_each_byte_is_copied_once_each_way() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Live::start_at(config(3), &uri("once"));
    let mut client = connect(&server);
    let sent = Bytes::from(content(5 << 20, 1));
    let before = copied(&mut client);
    let tensor = put(&mut client, sent.clone());
    assert_eq!(copied(&mut client) - before, sent.len() as u64);
    assert!(client.get(&tensor).expect("a get")[..] == sent[..]);
    assert_eq!(copied(&mut client) - before, 2 * sent.len() as u64);
}

#[test]
fn memory_that_the_server_gave_back_can_be_written_again() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Live::start_at(config(4), &uri("again"));
    let mut client = connect(&server);
    let mut region = shared(&mut client, &content(1 << 20, 0));
    for round in 1..5 {
        let tensor = put(&mut client, Bytes::from_owner(region.clone()));
        client.free(tensor.handle).expect("freed");
        let mut slab = region.try_thaw().expect("nobody has it");
        slab.copy_from_slice(&content(1 << 20, round));
        region = slab.freeze();
    }
    let tensor = put(&mut client, Bytes::from_owner(region.clone()));
    assert!(client.get(&tensor).expect("a get")[..] == region[..]);
}

/// What others see, or what a hash speaks for, is not left in memory that its client can write.
#[test]
fn names_and_weights_are_the_servers_own() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Live::start_at(config(5), &uri("own"));
    let mut client = connect(&server);
    let sent = content(1 << 20, 1);
    let region = shared(&mut client, &sent);
    let bytes = Bytes::from_owner(region.clone());
    let weight = ContentHash::of(&sent);
    for options in [
        PutOptions { name: Some("shared"), ..PutOptions::default() },
        PutOptions { weight: Some(weight), ..PutOptions::default() },
    ] {
        let tensor = client.put(&spec(sent.len()), bytes.clone(), options).expect("a put");
        assert!(client.get(&tensor).expect("a get")[..] == sent[..]);
    }
    // Nothing of it is used: it can be written, and they stay what they were.
    drop(bytes);
    region.try_thaw().expect("the server has copies").fill(0);
    let named = client.lookup("shared").expect("the name");
    assert!(client.get(&named).expect("a get")[..] == sent[..]);
}

#[test]
fn residents_outlive_the_connection_and_their_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Live::start_at(config(6), &uri("outlive"));
    let mut client = connect(&server);
    let sent = content(3 << 20, 1);
    let region = shared(&mut client, &sent);
    let tensor = put(&mut client, Bytes::from_owner(region));
    // The memory is unmapped here, and shared no more, with the next piece.
    let other = shared(&mut client, &content(4096, 2));
    assert!(client.get(&tensor).expect("a get")[..] == sent[..]);
    let opened = client.opened().expect("a session");
    drop((client, other));
    let mut options = ConnectOptions::default();
    options.client.resume = Some(opened);
    let mut client = blocking::Session::connect(&server.uri, options).expect("taken up");
    assert!(client.get(&tensor).expect("it is there")[..] == sent[..]);
}

#[test]
fn a_path_is_for_one_server_and_a_dead_ones_is_replaced() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let uri = uri("path");
    let Uri::Shm { path } = &uri else { panic!("not shared memory") };
    drop(std::os::unix::net::UnixListener::bind(path).expect("bound"));
    assert!(std::fs::exists(path).expect("a look"), "a dead server's file stays behind");
    let server = Live::start_at(config(7), &uri);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(path).expect("the file").permissions().mode() & 0o777, 0o600);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let second = runtime.block_on(async { genie_transport::link::Listener::bind(&uri).expect_err("it is taken") });
    assert!(second.to_string().contains("another server"), "{second}");
    connect(&server);
    drop(server);
    assert!(!std::fs::exists(path).expect("a look"), "the file goes with its server");
    std::fs::write(path, b"not a socket").expect("a file");
    runtime.block_on(async { genie_transport::link::Listener::bind(&uri).expect_err("something else lies there") });
    assert_eq!(std::fs::read(path).expect("the file"), b"not a socket");
    std::fs::remove_file(path).expect("removed");
}

#[test]
fn a_quota_holds_for_passed_tensors_too() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut config = config(8);
    config.default_quota = 1 << 20;
    let server = Live::start_at(config, &uri("quota"));
    let mut client = connect(&server);
    let region = shared(&mut client, &content(700 << 10, 1));
    let bytes = Bytes::from_owner(region.clone());
    let first = put(&mut client, bytes.clone());
    match client.put(&spec(bytes.len()), bytes.clone(), PutOptions::default()) {
        Err(ClientError::Remote(error)) => assert_eq!(error.code, ErrorCode::OverQuota, "{error}"),
        other => panic!("{other:?}"),
    }
    client.free(first.handle).expect("freed");
    drop(bytes);
    region.try_thaw().expect("the refused put gave its use back");
}

/// The kernel says who is at the other end of a socket: another user is refused even where the file lets it in.
#[test]
fn another_user_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let uri = uri("user");
    let access = Access::default();
    let mut config = config(9);
    config.settings.guard = access.guard.clone();
    let server = Live::start_for(config, &uri, &access);
    let Uri::Shm { path } = &uri else { panic!("not shared memory") };
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o666)).expect("the file is ours");
    // Another user's program, which must be able to read it.
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("other");
    std::fs::copy(std::env::current_exe().expect("this program"), &program).expect("a copy");
    for file in [folder.path(), &program] {
        std::fs::set_permissions(file, PermissionsExt::from_mode(0o755)).expect("the file is ours");
    }
    let mut other = std::process::Command::new(program);
    other.args(["as_another_user", "--exact", "--ignored", "--nocapture"]).env(OTHER, uri.to_string()).uid(65_534);
    match other.output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{said}");
            assert!(said.contains("shares memory with that user and root alone"), "{said}");
            // And it is counted where everybody sees it.
            let stats = connect(&server).stats().expect("counters");
            let refused = stats.iter().find(|(name, _)| name == "genie_refused_user_total").expect("the counter").1;
            assert!(refused > 0, "{stats:?}");
        }
        // Only root can be another user.
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
            eprintln!("not tested: only root can become another user, and this process is not root");
        }
    }
    connect(&server);
}

/// What says where bytes lie, in place of the bytes, may wait in the session's own memory for its turn.
const PLACE: u64 = 16;

const OTHER: &str = "GENIE_TEST_AS_ANOTHER";

#[test]
#[ignore = "only as a process of another test"]
fn as_another_user() {
    let Ok(uri) = std::env::var(OTHER) else { return };
    let mut options = ConnectOptions::default();
    options.client.reconnect_for = std::time::Duration::from_millis(300);
    let refused = blocking::Session::connect(&uri.parse().expect("an address"), options).err();
    println!("{}", refused.expect("refused"));
}

#[test]
fn an_async_session_passes_what_it_shares() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Live::start_at(config(10), &uri("async"));
    let mut watch = connect(&server);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = genie_transport::client::Session::connect(&server.uri, ConnectOptions::default());
        let client = client.await.expect("a session");
        let sent = content(1 << 20, 3);
        let mut slab = client.shared(sent.len()).expect("shared memory");
        slab.copy_from_slice(&sent);
        let before = copied(&mut watch);
        let bytes = Bytes::from_owner(slab.freeze());
        let tensor = client.put(&spec(sent.len()), bytes, PutOptions::default()).await.expect("a put");
        assert!(copied(&mut watch) - before <= PLACE);
        assert!(client.get(&tensor).await.expect("a get")[..] == sent[..]);
    });
}

/// Ordinary memory is copied to shared memory once, and a get is written to memory of the client's by the server: as in a blocking
/// session.
#[test]
fn an_async_session_copies_each_byte_once_each_way() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let server = Live::start_at(config(11), &uri("async-once"));
    let mut watch = connect(&server);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = genie_transport::client::Session::connect(&server.uri, ConnectOptions::default());
        let client = client.await.expect("a session");
        for round in 0..4 {
            let sent = Bytes::from(content(5 << 20, round));
            let before = copied(&mut watch);
            let tensor = client.put(&spec(sent.len()), sent.clone(), PutOptions::default()).await.expect("a put");
            let put = copied(&mut watch) - before - sent.len() as u64;
            assert!(put <= PLACE, "round {round}: {put} bytes too many");
            let got = client.get(&tensor).await.expect("a get");
            assert!(got[..] == sent[..]);
            let both = copied(&mut watch) - before - 2 * sent.len() as u64;
            assert!(both <= 2 * PLACE, "round {round}: {both} bytes too many");
            client.free(tensor.handle).await.expect("freed");
        }
        // Several together: each has a piece of its own.
        let sent: Vec<_> = (0..6).map(|seed| Bytes::from(content(3 << 20, seed))).collect();
        let mut under_way = tokio::task::JoinSet::new();
        for (i, bytes) in sent.iter().cloned().enumerate() {
            let client = client.clone();
            under_way.spawn(async move {
                let shape = spec(bytes.len());
                (i, client.put(&shape, bytes, PutOptions::default()).await.expect("a put"))
            });
        }
        while let Some(done) = under_way.join_next().await {
            let (i, tensor) = done.expect("it ran");
            assert!(client.get(&tensor).await.expect("a get")[..] == sent[i][..], "tensor {i}");
        }
        // Without staging memory all travels in slices, which copy nothing.
        let options = ConnectOptions { staging: 0, ..ConnectOptions::default() };
        let plain = genie_transport::client::Session::connect(&server.uri, options).await.expect("a session");
        let before = copied(&mut watch);
        let tensor = plain.put(&spec(3 << 20), sent[0].clone(), PutOptions::default()).await.expect("a put");
        assert!(plain.get(&tensor).await.expect("a get")[..] == sent[0][..]);
        assert_eq!(copied(&mut watch), before);
    });
}

/// A put that is refused before anybody looks at what it passes once left its memory marked as read by the server for ever.
#[test]
fn a_put_that_is_refused_unread_gives_its_memory_back() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut config = config(12);
    let none = Token { rights: Rights { devices: Some(vec!["cuda:7".into()]), ..Rights::ALL }, ..drawn() };
    config.settings.guard = Arc::new(Guard::with_tokens(Tokens::new([none.clone()])));
    let server = Live::start_at(config, &uri("refused"));
    let mut options = ConnectOptions::default();
    options.client.token = Some(Arc::new(none));
    let mut client = blocking::Session::connect(&server.uri, options).expect("a session");
    let region = shared(&mut client, &content(1 << 20, 1));
    match client.put(&spec(region.len()), Bytes::from_owner(region.clone()), PutOptions::default()) {
        Err(ClientError::Remote(error)) => assert_eq!(error.code, ErrorCode::Forbidden, "{error}"),
        other => panic!("{other:?}"),
    }
    region.try_thaw().expect("the refused put gave its use back");
}

fn drawn() -> Token {
    Token::draw("none").expect("a token")
}
