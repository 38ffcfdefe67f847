//! TLS channels between the links' own streams, and against rustls's own record layer.

use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_transport::auth::{Guard, Trust};
use genie_transport::link::Stream;
use genie_transport::link::tls::{TlsClient, TlsServer, TlsStream, Untrusted};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::ring::cipher_suite;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// An authority, and what it has signed, as files.
struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        Self::named("the authority")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { folder, issuer }
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for `host` that ends so many days from now.
    fn sign(&self, host: &str, days: i64) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let today = time::OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (today - time::Duration::days(10), today + time::Duration::days(days));
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let (c, k) = (
            self.folder.path().join(format!("{host}{days}.pem")),
            self.folder.path().join(format!("{host}{days}.key")),
        );
        std::fs::write(&c, cert.pem()).unwrap();
        std::fs::write(&k, key.serialize_pem()).unwrap();
        (c, k)
    }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

fn lane(stream: TcpStream) -> Box<dyn Stream> {
    stream.set_nonblocking(true).unwrap();
    Box::new(stream)
}

fn server(tls: &TlsServer, stream: TcpStream) -> TlsStream {
    TlsStream::server(lane(stream), tls, Arc::new(Guard::open()), None).unwrap()
}

/// What comes, or the error that ends it.
fn wait<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match attempt() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_micros(50)),
            other => return other,
        }
        assert!(Instant::now() < until, "nothing came");
    }
}

fn send_all(stream: &TlsStream, bytes: &[u8]) {
    let mut sent = 0;
    while sent < bytes.len() {
        let (a, b) = bytes[sent..].split_at((bytes.len() - sent) / 3);
        sent += wait(|| stream.send(&[IoSlice::new(a), IoSlice::new(b)])).unwrap();
    }
    wait(|| if stream.push()? { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }).unwrap();
}

fn receive_all(stream: &TlsStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut got = 0;
    // Records are opened where they belong if they fit there whole, and else delivered piece by piece: both happen.
    for pieces in [77, usize::MAX, 40_000, 16_384, 16_385, 1].into_iter().cycle() {
        if got == length {
            break;
        }
        let rest = &mut bytes[got..];
        let (a, b) = rest.split_at_mut(rest.len().min(pieces));
        let n = wait(|| stream.recv(a, b)).unwrap();
        assert!(n > 0, "ended after {got} bytes");
        got += n;
    }
    bytes
}

/// As slices are sent and received: a head, and a payload that is a number of records.
#[test]
fn slices_arrive_whole_and_in_place() {
    const HEAD: usize = 56;
    let authority = Authority::new();
    let (server_tls, client_tls) = both(&authority, false);
    let (near, far) = pair();
    let client = TlsStream::client(lane(near), &client_tls, "127.0.0.1").unwrap();
    let server = server(&server_tls, far);
    let slices: Vec<Vec<u8>> = [1, 300, 16_384, 16_385, 256 << 10, 256 << 10, (256 << 10) + 1]
        .into_iter()
        .enumerate()
        .map(|(i, n)| noise(HEAD + n + i)[i..].to_vec())
        .collect();
    std::thread::scope(|s| {
        s.spawn(|| {
            for slice in &slices {
                let mut sent = 0;
                while sent < slice.len() {
                    let (head, payload) = slice.split_at(sent.max(HEAD));
                    sent += wait(|| client.send(&[IoSlice::new(&head[sent..]), IoSlice::new(payload)])).unwrap();
                }
            }
            wait(|| if client.push()? { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }).unwrap();
        });
        let (mut head, mut next) = ([0; HEAD], [0; HEAD]);
        let mut have = 0;
        for (i, slice) in slices.iter().enumerate() {
            while have < HEAD {
                have += wait(|| server.recv(&mut head[have..], &mut [])).unwrap();
            }
            assert_eq!(head, slice[..HEAD], "slice {i}");
            have = 0;
            let mut payload = vec![0; slice.len() - HEAD];
            let mut got = 0;
            while got < payload.len() {
                let n = wait(|| server.recv(&mut payload[got..], &mut next)).unwrap();
                have = (got + n).saturating_sub(payload.len());
                got += n - have;
            }
            assert!(payload == slice[HEAD..], "slice {i}");
            head = next;
        }
    });
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u8).collect()
}

fn both(authority: &Authority, mutual: bool) -> (TlsServer, TlsClient) {
    let (cert, key) = authority.sign("127.0.0.1", 30);
    let ca = authority.ca();
    let server = TlsServer::load(&cert, &key, mutual.then_some(&*ca)).unwrap();
    let (own_cert, own_key) = authority.sign("client", 30);
    let own = mutual.then_some((&*own_cert, &*own_key));
    (server, TlsClient::load(&ca, own).unwrap())
}

#[test]
fn bytes_arrive_as_they_were_sent_both_ways_at_once() {
    let authority = Authority::new();
    for mutual in [false, true] {
        let (server_tls, client_tls) = both(&authority, mutual);
        let (near, far) = pair();
        let client = TlsStream::client(lane(near), &client_tls, "127.0.0.1").unwrap();
        let server = server(&server_tls, far);
        let (up, down) = (noise(3_000_001), noise(1_234_567));
        std::thread::scope(|s| {
            s.spawn(|| send_all(&client, &up));
            s.spawn(|| assert!(receive_all(&server, up.len()) == up));
            s.spawn(|| send_all(&server, &down));
            s.spawn(|| assert!(receive_all(&client, down.len()) == down));
        });
        let (c, s) = (client.channel(), server.channel());
        assert!(c.binding.is_some() && c.binding == s.binding, "both ends know the channel by the same value");
        assert_eq!(s.peer.is_some(), mutual);
        client.finish();
        assert_eq!(wait(|| server.recv(&mut [0; 8], &mut [])).unwrap(), 0, "the end is heard");
        assert!(server.send(&[IoSlice::new(b"still there")]).is_ok());
    }
}

/// Another implementation at the other end: rustls with its own record layer, which also changes its keys and has tickets. In each
/// cipher suite that may be chosen: the key's length, and the hash that others are derived by, differ.
#[test]
fn rustls_itself_understands_us_in_every_suite() {
    let authority = Authority::new();
    let (server_tls, client_tls) = both(&authority, false);
    for suite in [
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ] {
        let mut provider = rustls::crypto::ring::default_provider();
        provider.cipher_suites = vec![suite];
        let provider = Arc::new(provider);
        // A client of rustls's against our server.
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority.ca()).unwrap()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (near, far) = pair();
        let theirs = rustls::ClientConnection::new(Arc::new(config), "127.0.0.1".try_into().unwrap()).unwrap();
        talk(rustls::StreamOwned::new(theirs, near), &server(&server_tls, far), |c| {
            assert_eq!(c.negotiated_cipher_suite(), Some(suite));
            c.export_keying_material([0; 32], b"EXPORTER-genie-channel-1", Some(&[])).unwrap()
        });
        // Our client against a server of rustls's.
        let (cert, key) = authority.sign("127.0.0.1", 31);
        let certs = CertificateDer::pem_file_iter(cert).unwrap().map(Result::unwrap).collect();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certs, PrivateKeyDer::from_pem_file(key).unwrap())
            .unwrap();
        let (near, far) = pair();
        let theirs = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let ours = TlsStream::client(lane(near), &client_tls, "127.0.0.1").unwrap();
        talk(rustls::StreamOwned::new(theirs, far), &ours, |c| {
            assert_eq!(c.negotiated_cipher_suite(), Some(suite));
            c.export_keying_material([0; 32], b"EXPORTER-genie-channel-1", Some(&[])).unwrap()
        });
    }
}

/// The other end echoes, and changes its keys in between.
fn talk<C, D>(mut theirs: rustls::StreamOwned<C, TcpStream>, ours: &TlsStream, exporter: impl Fn(&C) -> [u8; 32] + Send)
where
    C: std::ops::DerefMut<Target = rustls::ConnectionCommon<D>> + Send,
    D: rustls::SideData,
{
    const ROUNDS: usize = 3;
    let bytes = noise(100_000);
    std::thread::scope(|s| {
        let (length, bytes) = (bytes.len(), &bytes);
        let echo = s.spawn(move || {
            for _ in 0..ROUNDS {
                let mut heard = vec![0; length];
                theirs.read_exact(&mut heard).unwrap();
                assert!(heard == *bytes);
                theirs.conn.refresh_traffic_keys().unwrap();
                theirs.write_all(&heard).unwrap();
                theirs.flush().unwrap();
            }
            exporter(&theirs.conn)
        });
        for _ in 0..ROUNDS {
            send_all(ours, bytes);
            assert!(receive_all(ours, length) == *bytes);
        }
        assert_eq!(Some(echo.join().unwrap()), ours.channel().binding);
    });
}

/// Drives both ends until the client is refused, or the server has nothing more to say.
fn refusal(server_tls: &TlsServer, client_tls: &TlsClient, host: &str) -> (String, Vec<(&'static str, u64)>) {
    let (near, far) = pair();
    let guard = Arc::new(Guard::open());
    let server = TlsStream::server(lane(far), server_tls, guard.clone(), None).unwrap();
    let client = TlsStream::client(lane(near), client_tls, host).unwrap();
    let told = std::thread::scope(|s| {
        let end = s.spawn(move || wait(|| server.recv(&mut [0; 64], &mut [])).map(|_| ()));
        let told = wait(|| client.recv(&mut [0; 64], &mut [])).unwrap_err();
        drop(client);
        // The server's end sees the client go.
        let _ = end.join().unwrap();
        told
    });
    assert!(Untrusted::of(&told).is_some(), "{told:?}");
    (told.to_string(), guard.refusals().filter(|(_, n)| *n > 0).collect())
}

#[test]
fn who_does_not_convince_is_refused_with_the_reason() {
    let (authority, other) = (Authority::new(), Authority::new());
    let good = authority.sign("127.0.0.1", 30);
    let ca = authority.ca();
    let load = |cert: &(PathBuf, PathBuf), ca: Option<&Path>| TlsServer::load(&cert.0, &cert.1, ca).unwrap();
    let client = |cert: Option<&(PathBuf, PathBuf)>| TlsClient::load(&ca, cert.map(|(c, k)| (&**c, &**k))).unwrap();
    let mutual = load(&good, Some(&ca));

    let (told, counted) = refusal(&mutual, &client(None), "127.0.0.1");
    assert!(told.contains("asks for a client certificate") && told.contains("--tls-cert"), "{told}");
    assert_eq!(counted, [("genie_refused_no_certificate_total", 1)]);
    let (told, counted) = refusal(&mutual, &client(Some(&authority.sign("late", -1))), "127.0.0.1");
    assert!(told.contains("has expired") && told.contains("renew"), "{told}");
    assert_eq!(counted, [("genie_refused_certificate_total", 1)]);
    for other in [&other, &Authority::named("another")] {
        let (told, counted) = refusal(&mutual, &client(Some(&other.sign("stranger", 30))), "127.0.0.1");
        assert!(told.contains("authority that the other does not trust"), "{told}");
        assert_eq!(counted, [("genie_refused_certificate_total", 1)]);
    }

    let (told, _) = refusal(&load(&authority.sign("127.0.0.1", -2), None), &client(None), "127.0.0.1");
    assert!(told.contains("has expired"), "{told}");
    let (told, _) = refusal(&load(&other.sign("127.0.0.1", 30), None), &client(None), "127.0.0.1");
    assert!(told.contains("not signed by the authority"), "{told}");
    let (told, _) = refusal(&load(&good, None), &client(None), "elsewhere.example");
    assert!(told.contains("does not do"), "{told}");
}

/// A peer that sends what is no handshake, or too much of one, or none of it.
#[test]
fn what_is_no_handshake_ends_the_lane() {
    let authority = Authority::new();
    let (tls, _) = both(&authority, false);
    let hello = {
        // The first record of a real one.
        let (near, mut far) = pair();
        let (_, client_tls) = both(&authority, false);
        let client = TlsStream::client(lane(near), &client_tls, "127.0.0.1").unwrap();
        assert_eq!(client.recv(&mut [0], &mut []).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut hello = vec![0; 4096];
        let n = far.read(&mut hello).unwrap();
        hello.truncate(n);
        hello
    };
    let flipped = |at: usize| {
        let mut bytes = hello.clone();
        bytes[at] ^= 0xff;
        bytes
    };
    let oversized = [&[22, 3, 3, 0xff, 0xff][..], &noise(0xffff)].concat();
    // Handshake messages that never become whole, record after record.
    let endless: Vec<u8> = (0..40)
        .flat_map(|i| {
            [&[22, 3, 3, 0x40, 0][..], if i == 0 { &[1, 0xff, 0xff, 0xff] } else { &[0; 4] }, &[0; 0x3ffc]].concat()
        })
        .collect();
    let cases =
        [noise(5000), b"GET / HTTP/1.1\r\n\r\n".repeat(20), oversized, endless, flipped(0), flipped(5), flipped(9)];
    for (i, bytes) in cases.into_iter().enumerate() {
        let (mut near, far) = pair();
        let guard = Arc::new(Guard::open());
        let server = TlsStream::server(lane(far), &tls, guard.clone(), None).unwrap();
        let writer = std::thread::spawn(move || {
            // The other side may have gone before all was said.
            let _ = near.write_all(&bytes);
            let _ = near.shutdown(std::net::Shutdown::Write);
            let mut rest = Vec::new();
            let _ = near.read_to_end(&mut rest);
        });
        assert!(wait(|| server.recv(&mut [0; 64], &mut [])).is_err(), "case {i}");
        drop(server);
        writer.join().unwrap();
        assert_eq!(guard.refusals().map(|(_, n)| n).sum::<u64>(), 1, "case {i}");
    }
    // Cut at every byte: never an answer to it, and never anything but an end.
    for cut in (0..hello.len()).step_by(7) {
        let (mut near, far) = pair();
        let guard = Arc::new(Guard::open());
        let server = TlsStream::server(lane(far), &tls, guard.clone(), None).unwrap();
        near.write_all(&hello[..cut]).unwrap();
        near.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(wait(|| server.recv(&mut [0; 64], &mut [])).is_err(), "cut at {cut}");
        drop(server);
        // Who says nothing and goes has only looked whether anybody is here.
        assert_eq!(guard.refusals().map(|(_, n)| n).sum::<u64>(), u64::from(cut > 0), "cut at {cut}");
    }
}

/// A record that was changed, repeated or left out on the way ends the channel; nothing of it is delivered.
#[test]
fn a_changed_record_is_never_delivered() {
    let authority = Authority::new();
    let (server_tls, client_tls) = both(&authority, false);
    for fault in 0..4 {
        let ((near, mut middle_near), (mut middle_far, far)) = (pair(), pair());
        let client = TlsStream::client(lane(near), &client_tls, "127.0.0.1").unwrap();
        let server = server(&server_tls, far);
        let mut back = (middle_far.try_clone().unwrap(), middle_near.try_clone().unwrap());
        std::thread::spawn(move || io::copy(&mut back.0, &mut back.1));
        let meddler = std::thread::spawn(move || {
            let mut seen = 0;
            loop {
                let mut head = [0; 5];
                if middle_near.read_exact(&mut head).is_err() {
                    return;
                }
                let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
                middle_near.read_exact(&mut body).unwrap();
                // Finished and the first data record pass: the second is the one.
                let data = head[0] == 23 && body.len() == 1017;
                seen += u32::from(data);
                match (data && seen == 2, fault) {
                    (true, 0) => body[500] ^= 1,
                    (true, 1) => *body.last_mut().unwrap() ^= 1,
                    (true, 2) => continue,
                    (true, _) => {
                        let _ = middle_far.write_all(&head);
                        let _ = middle_far.write_all(&body);
                    }
                    _ => {}
                }
                let _ = middle_far.write_all(&head);
                let _ = middle_far.write_all(&body);
            }
        });
        let talk = std::thread::scope(|s| {
            s.spawn(|| {
                // The handshake is over then: what is sent before that shares a record.
                assert_eq!(receive_all(&client, 2), b"go");
                for i in 0..3 {
                    send_all(&client, &[i; 1000]);
                }
            });
            send_all(&server, b"go");
            let first = receive_all(&server, 1000);
            assert!(first == [0; 1000]);
            let mut rest = Vec::new();
            loop {
                let mut buf = [0; 4096];
                match wait(|| server.recv(&mut buf, &mut [])) {
                    Ok(n) => rest.extend_from_slice(&buf[..n]),
                    Err(e) => return (rest, e),
                }
            }
        });
        assert_eq!(talk.1.kind(), io::ErrorKind::InvalidData);
        assert!(talk.0.iter().all(|&b| b == 1) && talk.0.len() == if fault == 3 { 1000 } else { 0 }, "fault {fault}");
        drop((client, server));
        meddler.join().unwrap();
    }
}

/// A certificate that came in is judged again when the authorities were read anew: those of one that was taken out are out.
#[test]
fn an_authority_that_was_taken_out_is_not_trusted_any_more() {
    let (authority, next) = (Authority::new(), Authority::named("the next"));
    let (server_tls, client_tls) = both(&authority, true);
    let (near, far) = pair();
    let client = TlsStream::client(lane(near), &client_tls, "127.0.0.1").unwrap();
    let server = server(&server_tls, far);
    std::thread::scope(|s| {
        // What comes back has the client go on with its handshake.
        s.spawn(|| {
            send_all(&client, b"hello");
            assert_eq!(receive_all(&client, 2), b"ok");
        });
        assert_eq!(receive_all(&server, 5), b"hello");
        send_all(&server, b"ok");
    });
    let shown = server.channel().certificates.expect("it showed one");
    assert!(server_tls.trusts(&shown) && !server_tls.trusts(&[]) && !server_tls.trusts(&[vec![1, 2, 3]]));
    std::fs::copy(next.ca(), authority.ca()).unwrap();
    assert!(server_tls.trusts(&shown), "until it is told");
    server_tls.reload().unwrap();
    assert!(!server_tls.trusts(&shown));
}
