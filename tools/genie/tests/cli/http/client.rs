//! A small HTTP client, which can be told to send what no good client sends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use genie_graph::DType;
use genie_tensor_files::{Contents, Format, Limits, Tensor, read, write};
use serde_json::Value;

use crate::support::Server;

/// A server with a door.
pub(crate) struct Door {
    pub(crate) server: Server,
    address: String,
    token: Option<String>,
}

/// A form, as curl sends it.
#[derive(Clone)]
pub(crate) struct Form(pub(crate) Vec<u8>);

pub(crate) const BOUNDARY: &str = "------------------------d74496d66958873e";

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Door {
    /// At a port that is free, with these further arguments.
    pub(crate) fn open(more: &[&str]) -> Self {
        let mut all = vec!["--device", "cpu", "--threads", "2", "--memory", "256M", "--http", "127.0.0.1:0"];
        all.extend(more);
        let server = Server::at("tcp://127.0.0.1:0", &all);
        let (_, address) = server.uri.rsplit_once("http://").expect("the line says where the door is");
        let address = address.to_owned();
        Self { server, address, token: None }
    }

    /// Shows this token with each request.
    pub(crate) fn with_token(mut self, token: String) -> Self {
        self.token = Some(token);
        self
    }

    pub(crate) fn port(&self) -> &str {
        self.address.rsplit_once(':').expect("it has a port").1
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(&self.address).expect("it listens");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("it can be set");
        socket
    }

    /// Sends these bytes, and reads up to the end.
    pub(crate) fn send(&self, bytes: impl AsRef<[u8]>) -> Answer {
        let mut socket = self.connect();
        // What answers before it has read all may close while this is sent.
        let _ = socket.write_all(bytes.as_ref());
        Answer::read(&mut socket).expect("an answer comes")
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{}\r\n",
            self.authorization()
        ))
    }

    pub(crate) fn post(&self, path: &str, form: &Form) -> Answer {
        self.send(self.request(path, form))
    }

    pub(crate) fn health(&self) -> Value {
        self.get("/health").json()
    }

    /// The bytes of a request with a form.
    pub(crate) fn request(&self, path: &str, form: &Form) -> Vec<u8> {
        let body = form.body();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{}Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\
             Content-Length: {}\r\n\r\n",
            self.authorization(),
            body.len()
        );
        [head.as_bytes(), &body].concat()
    }

    fn authorization(&self) -> String {
        self.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default()
    }
}

impl Form {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn text(self, name: &str, text: &str) -> Self {
        self.part(&format!("name=\"{name}\""), text.as_bytes())
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.part(&format!("name=\"{name}\"; filename=\"{name}.bin\"\r\nContent-Type: application/octet-stream"), data)
    }

    fn part(mut self, words: &str, data: &[u8]) -> Self {
        self.0.extend(format!("--{BOUNDARY}\r\nContent-Disposition: form-data; {words}\r\n\r\n").bytes());
        self.0.extend(data);
        self.0.extend(b"\r\n");
        self
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        [&self.0[..], format!("--{BOUNDARY}--\r\n").as_bytes()].concat()
    }
}

impl Answer {
    /// `None`: the connection ended without one.
    pub(crate) fn read(socket: &mut TcpStream) -> Option<Self> {
        let mut bytes = Vec::new();
        // An answer that came before the other side closed on what it did not read counts.
        let _ = socket.read_to_end(&mut bytes);
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8(bytes[..end].to_vec()).expect("headers are ASCII");
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().expect("a status");
        let headers =
            lines.map(|line| line.split_once(": ").expect("a header")).map(|(a, b)| (a.to_owned(), b.to_owned()));
        let mut answer = Self { status, headers: headers.collect(), body: bytes[end + 4..].to_vec() };
        if let Ok(length) = answer.header("content-length").parse::<usize>() {
            assert!(answer.body.len() >= length, "the answer is cut short: {}", answer.text());
            answer.body.truncate(length);
        }
        Some(answer)
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub(crate) fn detail(&self) -> String {
        self.json()["detail"].as_str().expect("it says what is wrong").to_owned()
    }
}

pub(crate) fn f32s(dims: &[u64], values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor { dtype: DType::F32, dims: dims.to_vec(), data: data.into() }
}

pub(crate) fn file(format: Format, contents: &Contents) -> Vec<u8> {
    write(format, contents).expect("it can be written").concat()
}

/// The one tensor of a file.
pub(crate) fn tensor(file: &[u8]) -> Tensor {
    let file = file.to_vec().into();
    match read(&file, &Limits::default()).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&file))).1 {
        Contents::One(tensor) => tensor,
        Contents::Dict(mut entries) if entries.len() == 1 => entries.remove(0).1,
        other => panic!("{other:?} is not one tensor"),
    }
}

/// Waits until it is so.
pub(crate) fn soon(what: &str, is: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
