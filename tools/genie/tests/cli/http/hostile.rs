//! Requests that were damaged at random: whatever comes, the server answers or closes, soon, and goes on.
//!
//! `GENIE_CASES` is how many (2000 without it), `GENIE_SEED` where they begin.

use std::io::Write;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use genie_tensor_files::{Contents, Format};

use super::client::{Answer, Door, Form, f32s, file};

/// Numbers as an RNG gives them: splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// Pieces that parsers of HTTP and of forms have stumbled over.
const PIECES: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r\n\r\n",
    b"\0",
    b"--",
    b"\r\n--",
    b"\r\nContent-Length: 0",
    b"\r\nContent-Length: 18446744073709551616",
    b"\r\nContent-Length: -1",
    b"\r\nTransfer-Encoding: chunked",
    b"\r\nTransfer-Encoding: identity, chunked",
    b"\r\nExpect: 100-continue",
    b"\r\nUpgrade: h2c\r\nConnection: upgrade",
    b"\r\nOrigin: http://evil.example",
    b"\r\nHost: evil.example",
    b"; filename=\"\\\"",
    b"; name=\"operation\"",
    b"boundary=",
    b"\xff\xfe",
    b"%00%2e%2e",
    b"{\"operations\":[{\"op_id\":",
    b"[[[[[[[[[[[[[[[[",
    b"1e999",
    b"HTTP/9.9",
];

fn damage(bytes: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.below(3) {
        // The head is short, and most of what can go wrong is in it.
        let reach = if dice.below(2) == 0 { bytes.len().min(400) } else { bytes.len() };
        let at = dice.below(reach + 1).min(bytes.len());
        let longest = 1 << dice.below(8);
        let length = dice.below(longest).min(bytes.len() - at);
        match dice.below(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..at + length)),
            2 => {
                let copy = bytes[at..at + length].to_vec();
                drop(bytes.splice(at..at, copy));
            }
            3 => drop(bytes.splice(at..at, PIECES[dice.below(PIECES.len())].iter().copied())),
            4 => drop(bytes.splice(at..at, vec![dice.roll() as u8; 1 << dice.below(10)])),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.below(8);
                }
            }
        }
    }
}

/// Damages what follows the headers, and says its true length: else no damage gets past that.
fn damage_body(request: &mut Vec<u8>, dice: &mut Dice) {
    let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") else { return };
    let mut body = request.split_off(end + 4);
    damage(&mut body, dice);
    let head = String::from_utf8_lossy(request).into_owned();
    let lines = head.split("\r\n").map(|line| match line.strip_prefix("Content-Length: ") {
        Some(_) => format!("Content-Length: {}", body.len()),
        None => line.to_owned(),
    });
    *request = [lines.collect::<Vec<_>>().join("\r\n").into_bytes(), body].concat();
}

#[test]
fn damaged_requests_are_answered_or_closed_and_the_server_goes_on() {
    let door = Door::open(&["--http-limit", "4M", "--http-patience", "2"]);
    let x = |format| file(format, &Contents::One(f32s(&[2, 3], &[1.0; 6])));
    let relu = |format| Form::new().text("operation", "relu").file("tensor_file", &x(format));
    let operations =
        r#"{"operations": [{"op_id": 1, "operation": "add", "inputs": [7, 7]}], "input_tensors": [7], "output_id": 1}"#;
    let good: Vec<Vec<u8>> = vec![
        door.request("/execute", &relu(Format::Pt)),
        door.request("/execute", &relu(Format::Npy)),
        door.request("/execute", &relu(Format::Safetensors).text("kwargs", "{}")),
        door.request(
            "/execute",
            &Form::new().text("operation", "sum").text("dim", "-1").file("tensor_file", &x(Format::Npy)),
        ),
        door.request("/execute_subgraph", &Form::new().text("request", operations).file("tensors", &x(Format::Pt))),
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(),
    ];
    for request in &good {
        assert_eq!(door.send(request).status, 200);
    }
    let (cases, seed) = (setting("GENIE_CASES", 2000), setting("GENIE_SEED", 0));
    let before = door.server.resident_kb();
    let (mut answered, mut fine) = (0_u64, 0_u64);
    for case in seed..seed + cases {
        let mut dice = Dice(case);
        let mut request = good[dice.below(good.len())].clone();
        if dice.below(2) == 0 {
            damage_body(&mut request, &mut dice);
        } else {
            damage(&mut request, &mut dice);
        }
        let begun = Instant::now();
        let mut socket = door.connect();
        // It may close while this is sent.
        let _ = socket.write_all(&request);
        let _ = socket.shutdown(Shutdown::Write);
        if let Some(answer) = Answer::read(&mut socket) {
            answered += 1;
            fine += u64::from(answer.status == 200);
            assert_ne!(answer.status, 500, "case {case}: {}", answer.text());
        }
        assert!(begun.elapsed() < Duration::from_secs(50), "case {case} hangs");
    }
    for request in &good {
        assert_eq!(door.send(request).status, 200, "the server goes on as before");
    }
    assert!(answered > cases / 3 && fine < answered, "{answered} of {cases} were answered, {fine} of them with 200");
    let grown = door.server.resident_kb().saturating_sub(before);
    assert!(grown < 256 << 10, "{cases} requests left {grown} kB behind");
    assert_eq!(door.health()["status"], "healthy");
    println!("{cases} cases from {seed}: {answered} answered, {fine} of them fine; {grown} kB more than before");
}
