//! Who may come in by HTTP: the same as by any link.

use std::path::Path;
use std::process::Command;

use genie_tensor_files::{Contents, Format};

use super::client::{Door, Form, f32s, file};
use crate::support::{Certificate, Server, bad, genie, good};

/// `NAME:SECRET` of a token file.
fn shown(path: &Path) -> String {
    let line = std::fs::read_to_string(path).unwrap();
    let mut words = line.split_whitespace();
    format!("{}:{}", words.next().unwrap(), words.next().unwrap())
}

fn relu(values: usize) -> Form {
    let x = file(Format::Npy, &Contents::One(f32s(&[values as u64], &vec![-1.0; values])));
    Form::new().text("operation", "relu").file("tensor_file", &x)
}

#[test]
fn a_token_is_asked_for_and_its_rights_hold() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (tokens, alice, bob) = (path("tokens"), path("alice"), path("bob"));
    good(&["token", "new", "alice", "--tokens", &text(&tokens), "--client", &text(&alice)]);
    good(&["token", "new", "bob", "--tokens", &text(&tokens), "--client", &text(&bob), "--quota", "1M"]);
    let mut door = Door::open(&["--tokens", &text(&tokens)]);
    for request in ["GET /health", "GET /", "GET /metrics", "POST /execute", "POST /execute_subgraph", "GET /nothing"] {
        for header in ["", "Authorization: Bearer alice\r\n", "Authorization: Basic YTpi\r\n"] {
            let answer =
                door.send(format!("{request} HTTP/1.1\r\nHost: any.example\r\nConnection: close\r\n{header}\r\n"));
            assert_eq!(
                (answer.status, answer.header("www-authenticate")),
                (401, "Bearer realm=\"genie\""),
                "{request}"
            );
            assert!(answer.detail().contains("Authorization: Bearer NAME:SECRET"));
        }
    }
    let wrong = shown(&alice).replace("alice:", "bob:");
    door = door.with_token(wrong);
    assert_eq!(door.post("/execute", &relu(4)).status, 401);
    door = door.with_token(shown(&alice));
    assert_eq!(door.post("/execute", &relu(4)).status, 200);
    assert_eq!(door.post("/execute", &relu(1 << 20)).status, 200);
    let metrics = door.get("/metrics").text();
    let counted = |name: &str| {
        let line =
            metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {metrics}"));
        line.trim().parse::<u64>().unwrap()
    };
    assert_eq!((counted("genie_refused_no_proof_total "), counted("genie_refused_token_total ")), (6, 13));
    // A quota is of the token, whatever it comes by.
    door = door.with_token(shown(&bob));
    assert_eq!(door.post("/execute", &relu(1 << 10)).status, 200);
    let over = door.post("/execute", &relu(1 << 20));
    assert_eq!(over.status, 413, "{}", over.text());
    // Taken back, it is of no use any more.
    let line = std::fs::read_to_string(&tokens).unwrap();
    let kept: String = line.lines().filter(|line| !line.starts_with("bob ")).map(|line| format!("{line}\n")).collect();
    std::fs::write(&tokens, kept).unwrap();
    door.server.signal("-HUP");
    super::client::soon("the token is taken back", || door.get("/health").status == 401);
    door = door.with_token(shown(&alice));
    assert_eq!(door.post("/execute", &relu(4)).status, 200);
}

/// A page that a browser on this machine shows, and a name that was made to lead here.
#[test]
fn pages_of_other_sites_are_turned_away_where_nobody_is_asked_who_they_are() {
    let door = Door::open(&[]);
    let with = |headers: &str| {
        let body = relu(2).body();
        let head = format!(
            "POST /execute HTTP/1.1\r\nConnection: close\r\n{headers}Content-Type: multipart/form-data; boundary={}\r\nContent-Length: {}\r\n\r\n",
            super::client::BOUNDARY,
            body.len()
        );
        door.send([head.as_bytes(), &body].concat())
    };
    let own = format!("localhost:{}", door.port());
    assert_eq!(with(&format!("Host: {own}\r\n")).status, 200);
    assert_eq!(with(&format!("Host: {own}\r\nOrigin: http://{own}\r\n")).status, 200);
    for headers in [
        format!("Host: {own}\r\nOrigin: https://evil.example\r\n"),
        format!("Host: {own}\r\nOrigin: null\r\n"),
        format!("Host: evil.example:{}\r\n", door.port()),
        "Host: 192.0.2.1\r\n".to_owned(),
    ] {
        let answer = with(&headers);
        assert_eq!(answer.status, 403, "{headers}: {}", answer.text());
    }
    assert_eq!(door.health()["stats"]["successful"], 2);
}

#[test]
fn other_machines_reach_it_by_the_rules_of_every_link() {
    let refused = |more: &[&str]| {
        let mut all =
            vec!["serve", "--device", "cpu", "--threads", "1", "--listen", "tcp://127.0.0.1:0", "--http", "0.0.0.0:0"];
        all.extend(more);
        let (code, error) = bad(&all);
        assert_eq!(code, 1);
        error
    };
    assert!(refused(&[]).contains("nobody would be asked who they are"));
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens").display().to_string();
    let client = folder.path().join("client").display().to_string();
    good(&["token", "new", "alice", "--tokens", &tokens, "--client", &client]);
    assert!(refused(&["--tokens", &tokens]).contains("nothing would be encrypted"));
    assert!(
        bad(&["serve", "--device", "cpu", "--listen", "tcp://127.0.0.1:0", "--http", "127.0.0.1:99999"])
            .1
            .contains("HTTP door cannot listen")
    );
    assert!(bad(&["serve", "--http-limit", "1G"]).1.contains("--http"));
}

/// What one request had opened stayed for ever, and a token that may have one session had none left for its own client.
#[test]
fn a_tokens_session_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (tokens, alice, tcp) = (path("tokens"), path("alice"), "tcp://127.0.0.1:0");
    good(&["token", "new", "alice", "--tokens", &tokens, "--client", &alice, "--sessions", "1"]);
    let door = Door::open(&["--tokens", &tokens, "--http-patience", "2"]).with_token(shown(Path::new(&alice)));
    let uri = door.server.uri.split(", ").find(|uri| uri.starts_with("tcp://")).unwrap_or(tcp).to_owned();
    let own = || genie(&["devices", &uri, "--token-file", &alice]).output().expect("it starts").status.success();
    assert!(own(), "nobody has a session");
    assert_eq!(door.get("/health").status, 200);
    super::client::soon("a question keeps none", own);
    // For two seconds, and to begin a process may take a busy machine as long.
    let kept = (0..10).any(|_| {
        assert_eq!(door.post("/execute", &relu(4)).status, 200);
        !own()
    });
    assert!(kept, "the door has it, for what comes next");
    assert_eq!(door.get("/health").status, 200);
    super::client::soon("the door gives it back", own);
    assert_eq!(door.post("/execute", &relu(4)).status, 200);
}

/// It was a panic.
#[test]
fn a_port_that_is_taken_is_said() {
    let door = Door::open(&[]);
    let taken = format!("127.0.0.1:{}", door.port());
    let (code, error) =
        bad(&["serve", "--device", "cpu", "--threads", "1", "--listen", "tcp://127.0.0.1:0", "--http", &taken]);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("is another server running there?"), "{error}");
}

#[test]
fn with_certificates_it_speaks_https() {
    let certificate = Certificate::new();
    let (cert, key) = (certificate.path("cert.pem"), certificate.path("key.pem"));
    let mut command = genie(&[
        "serve",
        "--listen",
        "tcp://127.0.0.1:0",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--http",
        "127.0.0.1:0",
    ]);
    let server = Server::of(command.args(["--tls-cert", &cert, "--tls-key", &key]), "cpu:0");
    let url = server.uri.split(", ").find(|place| place.starts_with("https://")).expect("it says https").to_owned();
    let curl = |more: &[&str]| {
        Command::new("curl").args(["-sS", &format!("{url}/health")]).args(more).output().expect("curl starts")
    };
    let trusted = curl(&["--cacert", &certificate.path("ca.pem")]);
    assert!(trusted.status.success(), "{trusted:?}");
    assert!(String::from_utf8_lossy(&trusted.stdout).contains("\"healthy\""));
    assert!(!curl(&[]).status.success(), "nobody has signed it");
}
