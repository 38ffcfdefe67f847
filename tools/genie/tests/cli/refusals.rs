//! Who may not come in: told so, logged by the server, and counted where `stats` shows it. The server is a process of its own, on
//! every link that needs no device, with tokens, and certificates for those that encrypt.

use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_tests::authority::Authority;
use genie_tests::here;
use genie_tests::raw::{Raw, control};
use genie_transport::auth::{Exchange, Token};
use genie_transport::client::{ConnectOptions, blocking};
use genie_transport::link::tls::TlsClient;
use genie_transport::wire::{Caps, Control, ErrorCode, Proof};
use tempfile::TempDir;

use crate::support::{Server, bad, genie, good};

/// A server that asks everybody who they are.
struct Gate {
    _server: Server,
    uris: Vec<String>,
    /// What it says to its standard error.
    log: PathBuf,
    /// A token that it knows, and one of the same name that it does not.
    token: PathBuf,
    wrong: PathBuf,
    authority: Authority,
    folder: TempDir,
}

impl Gate {
    fn new() -> Self {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let file = |name: &str| folder.path().join(name);
        let (tokens, token, wrong, log) = (file("tokens"), file("token"), file("wrong"), file("log"));
        good(&["token", "new", "alice", "--tokens", text(&tokens), "--client", text(&token)]);
        good(&["token", "new", "alice", "--client", text(&wrong)]);
        let (cert, key) = authority.sign("127.0.0.1", 30);
        let shm = format!("shm://{}", file("genie").display());
        let mut more = vec!["--device", "cpu", "--threads", "1", "--memory", "64M"];
        let places = here::links(&["tcps://127.0.0.1:0", "uring://127.0.0.1:0", "urings://127.0.0.1:0", &shm]);
        more.extend(places.iter().flat_map(|place| ["--listen", place]));
        let ca = authority.ca();
        more.extend(["--tokens", text(&tokens), "--tls-cert", text(&cert), "--tls-key", text(&key)]);
        more.extend(["--client-ca", text(&ca)]);
        let server = Server::logging("tcp://127.0.0.1:0", &more, File::create(&log).unwrap().into());
        let uris = server.uri.split(", ").map(str::to_owned).collect();
        Self { _server: server, uris, log, token, wrong, authority, folder }
    }

    fn at(&self, scheme: &str) -> &str {
        self.uris.iter().find(|uri| uri.starts_with(&format!("{scheme}://"))).expect("it listens there")
    }

    /// What a client is told whom this server refuses, for `reason` and no other; whatever it logs of that has `words` in it.
    fn refuses(&self, reason: &str, counter: &str, words: &str, attempt: impl FnOnce() -> String) -> String {
        let (logged, counted) = (self.logged(reason, words), self.counted());
        let told = attempt();
        let until = Instant::now() + Duration::from_secs(60);
        while self.logged(reason, words) == logged {
            assert!(Instant::now() < until, "{reason} with {words:?} is not logged: {}", self.lines());
            std::thread::sleep(Duration::from_millis(5));
        }
        for ((name, before), (_, now)) in counted.iter().zip(self.counted()) {
            // A command looks whether anybody is there before it connects: such a lane, without a handshake, is no refusal.
            assert_eq!(now > *before, name == counter, "{name}: {before}, and then {now}: {}", self.lines());
        }
        told
    }

    fn lines(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Lines about refusals for this reason.
    fn logged(&self, reason: &str, words: &str) -> usize {
        let reason = format!("reason={reason} ");
        let is = |line: &&str| line.contains(" WARN ") && line.contains(&reason) && line.contains("refused: ");
        self.lines().lines().filter(is).filter(|line| line.contains(words)).count()
    }

    /// The counters of refusals, as somebody sees them who may come in.
    fn counted(&self) -> Vec<(String, u64)> {
        let mut options = ConnectOptions::default();
        options.client.token = Some(Arc::new(Token::load(&self.token).unwrap()));
        let mut session = blocking::Session::connect(&self.at("tcp").parse().unwrap(), options).unwrap();
        let mut stats = session.stats().unwrap();
        session.close().unwrap();
        stats.retain(|(name, _)| name.starts_with("genie_refused_"));
        assert!(!stats.is_empty());
        stats
    }

    /// Arguments of a client over this link, with a certificate that ends so many days from now, if any.
    fn ping(&self, scheme: &str, token: &Path, days: Option<i64>) -> Vec<String> {
        let mut words: Vec<String> = ["ping", self.at(scheme), "--count", "1"].map(str::to_owned).into();
        words.extend(["--token-file".to_owned(), text(token).to_owned()]);
        if scheme.ends_with("ps") || scheme.ends_with("gs") {
            words.extend(["--ca".to_owned(), text(&self.authority.ca()).to_owned()]);
            if let Some((cert, key)) = days.map(|days| self.authority.sign("client", days)) {
                let files = ["--tls-cert", text(&cert), "--tls-key", text(&key)];
                words.extend(files.map(str::to_owned));
            }
        }
        words
    }
}

const LINKS: [&str; 5] = ["tcp", "tcps", "uring", "urings", "shm"];
const VALID: Option<i64> = Some(30);
const EXPIRED: Option<i64> = Some(-1);

fn text(path: &Path) -> &str {
    path.to_str().expect("names of temporary files are ASCII")
}

/// Runs a client that must be refused, which is a failure (1), and not that nobody is there (3); what it says.
fn turned_away(arguments: &[String]) -> String {
    let (code, error) = bad(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, 1, "{error}");
    error
}

#[test]
fn a_wrong_token_on_every_link() {
    let gate = Gate::new();
    for scheme in here::links(&LINKS) {
        let right = gate.ping(scheme, &gate.token, VALID);
        good(&right.iter().map(String::as_str).collect::<Vec<_>>());
        let wrong = gate.ping(scheme, &gate.wrong, VALID);
        let logged = if scheme == "shm" { "name=\"alice\"" } else { "from=\"127.0.0.1:" };
        let told = gate.refuses("WrongToken", "genie_refused_token_total", logged, || turned_away(&wrong));
        assert!(told.contains("check the token file on both sides"), "{scheme}: {told}");
    }
}

#[test]
fn certificates_that_are_missing_or_have_expired() {
    let gate = Gate::new();
    for scheme in here::links(&["tcps", "urings"]) {
        let none = gate.ping(scheme, &gate.token, None);
        let counter = "genie_refused_no_certificate_total";
        let told = gate.refuses("NoCertificate", counter, "from=\"127.0.0.1:", || turned_away(&none));
        assert!(told.contains("the server asks for a client certificate: give --tls-cert"), "{scheme}: {told}");
        let old = gate.ping(scheme, &gate.token, EXPIRED);
        let told = gate.refuses("Certificate", "genie_refused_certificate_total", "has expired", || turned_away(&old));
        assert!(told.contains("this side's certificate has expired"), "{scheme}: {told}");
    }
}

/// What an eavesdropper has heard of a connection is worth nothing on another, whatever the link.
#[test]
fn a_challenge_that_is_answered_by_an_earlier_answer() {
    let gate = Gate::new();
    let token = Token::load(&gate.token).unwrap();
    let (cert, key) = gate.authority.sign("client", 30);
    let tls = TlsClient::load(&gate.authority.ca(), Some((&cert, &key))).unwrap();
    let challenged = |scheme: &str| {
        let mut raw = Raw::dial_link(&gate.at(scheme).parse().unwrap(), Some(&tls));
        raw.send(&control(&Control::Hello(Caps::OURS)));
        match raw.hear_control() {
            Some(Control::Challenge(nonce)) => (raw, nonce),
            other => panic!("{scheme}: no challenge came, but {other:?}"),
        }
    };
    for scheme in here::links(&LINKS) {
        let (mut first, server_nonce) = challenged(scheme);
        let nonce = [3; 32];
        let exchange =
            Exchange { server_nonce: &server_nonce, client_nonce: &nonce, name: &token.name, binding: first.binding() };
        let proof = exchange.client_proof(&token.secret);
        let heard = control(&Control::Proof(Proof { nonce, proof, name: token.name.clone() }));
        first.send(&heard);
        assert!(matches!(first.hear_control(), Some(Control::Welcome(_))), "{scheme}: the token is known");
        let told = gate.refuses("Replay", "genie_refused_replay_total", "name=\"alice\"", || {
            let (mut again, _) = challenged(scheme);
            again.send(&heard);
            let error = again.goodbye();
            assert_eq!(error.code, ErrorCode::Unauthorized, "{scheme}");
            error.message
        });
        assert!(told.contains("made for an earlier connection"), "{scheme}: {told}");
    }
}

/// Shared memory is for one user, even where the files let others in.
#[test]
fn a_process_of_another_user_over_shared_memory() {
    let gate = Gate::new();
    let path = gate.at("shm").trim_start_matches("shm://");
    // A program that the other can read.
    let program = gate.folder.path().join("program");
    fs::copy(genie(&[]).get_program(), &program).unwrap();
    let open = |file: &Path, mode| fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
    open(gate.folder.path(), 0o755);
    open(&program, 0o755);
    open(Path::new(path), 0o666);
    let mut other = Command::new(&program);
    other.args(["ping", gate.at("shm"), "--count", "1"]).uid(65_534);
    let tried = loop {
        match other.output() {
            // A process that another test has just begun has the copy open until it runs its own program.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(Duration::from_millis(5));
            }
            tried => break tried,
        }
    };
    match tried {
        Ok(_) => {
            let told = gate.refuses("User", "genie_refused_user_total", "from=\"user 65534\"", || {
                let output = other.output().unwrap();
                assert!(!output.status.success());
                String::from_utf8(output.stderr).unwrap()
            });
            assert!(told.contains("shares memory with that user and root alone"), "{told}");
        }
        // Only root can be another user.
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            eprintln!("not tested: only root can become another user, and this process is not root");
        }
    }
}
