//! What requests may take: of memory, of time, of places.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use genie_tensor_files::{Contents, Format};

use super::client::{Answer, BOUNDARY, Door, Form, f32s, file, soon, tensor};

fn relu(values: usize) -> Form {
    let x = file(Format::Npy, &Contents::One(f32s(&[values as u64], &vec![-1.0; values])));
    Form::new().text("operation", "relu").file("tensor_file", &x)
}

fn head(length: &str) -> String {
    format!(
        "POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n{length}\r\n\r\n"
    )
}

#[test]
fn what_is_too_large_is_413() {
    let door = Door::open(&["--http-limit", "1M"]);
    assert_eq!(door.post("/execute", &relu(250_000)).status, 200);
    let answer = door.post("/execute", &relu(270_000));
    assert_eq!(answer.status, 413, "{}", answer.text());
    // Said only, and not sent. The door reads on for two seconds, or up to the end, before it answers.
    let mut socket = door.connect();
    socket.write_all(head("Content-Length: 18446744073709551000").as_bytes()).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(Answer::read(&mut socket).expect("an answer").status, 413);
    // Not said, but sent.
    let mut socket = door.connect();
    socket.write_all(head("Transfer-Encoding: chunked\r\nConnection: close").as_bytes()).unwrap();
    let chunk = [b"10000\r\n", &[b'x'; 0x10000][..], b"\r\n"].concat();
    for _ in 0..17 {
        // It may have answered, and closed.
        let _ = socket.write_all(&chunk);
    }
    let _ = socket.shutdown(Shutdown::Write);
    assert_eq!(Answer::read(&mut socket).expect("an answer").status, 413);
    // A small request, a large result.
    let column = file(Format::Npy, &Contents::One(f32s(&[1000, 1], &[1.0; 1000])));
    let row = file(Format::Npy, &Contents::One(f32s(&[1, 1000], &[1.0; 1000])));
    let form = Form::new().text("operation", "mul").file("tensor_file", &column).file("tensor_file_2", &row);
    let answer = door.post("/execute", &form);
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(answer.detail().contains("4000000 bytes"), "{}", answer.detail());
    let metrics = door.get("/metrics").text();
    assert!(metrics.lines().any(|line| line == "genie_http_held_bytes 0"), "{metrics}");
}

/// The connection was closed on what had not been read, and the answer was lost with it.
#[test]
fn who_sends_much_to_the_wrong_place_is_told() {
    let door = Door::open(&[]);
    let body = vec![b'x'; 8 << 20];
    for (place, status) in [("/health", 405), ("/nothing", 404)] {
        let head = format!(
            "POST {place} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        assert_eq!(door.send([head.as_bytes(), &body].concat()).status, status, "{place}");
    }
}

/// Requests that came in part held all memory that there was for them, and all others waited.
#[test]
fn memory_is_bounded_for_all_requests_together_and_nobody_waits_for_it() {
    let door = Door::open(&["--http-limit", "1M"]);
    let told = || {
        let metrics = door.get("/metrics").text();
        let value = metrics.lines().find_map(|line| line.strip_prefix("genie_http_held_bytes ")).unwrap().to_owned();
        value.parse::<u64>().unwrap()
    };
    // Four times the limit is there for all. One comes after another: of several that grow together, as many might be turned away.
    let held: Vec<_> = (1..=4)
        .map(|count| {
            let mut socket = door.connect();
            socket.write_all(head("Content-Length: 1000000").as_bytes()).unwrap();
            socket.write_all(&[b'x'; 990_000]).unwrap();
            soon("it is held", || told() > count * 975_000);
            socket
        })
        .collect();
    assert!(told() <= 4 << 20);
    let begun = Instant::now();
    let answer = door.post("/execute", &relu(240_000));
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"), "{}", answer.text());
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop(held);
    soon("it is given back", || told() == 0);
    assert_eq!(door.post("/execute", &relu(100_000)).status, 200);
}

#[test]
fn who_is_slow_is_given_up_and_stops_nobody() {
    let door = Door::open(&["--http-patience", "2"]);
    let closed = |mut socket: TcpStream| {
        let (begun, mut rest) = (Instant::now(), Vec::new());
        let _ = socket.read_to_end(&mut rest);
        assert!(begun.elapsed() < Duration::from_secs(50), "the connection stays");
        String::from_utf8_lossy(&rest).into_owned()
    };
    let begun_with = |bytes: &[u8]| {
        let mut socket = door.connect();
        socket.write_all(bytes).unwrap();
        socket
    };
    let silent = begun_with(b"");
    let in_headers = begun_with(b"GET /health HTTP/1.1\r\nHost: loc");
    let in_body = begun_with(head("Content-Length: 1000").as_bytes());
    // A byte now and then, as slowloris has it.
    let mut drips = begun_with(head("Content-Length: 1000000").as_bytes());
    let dripping = thread::spawn(move || {
        while drips.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(100));
        }
    });
    // An answer that nobody reads.
    let unread = begun_with(&door.request("/execute", &relu(4_000_000)));
    for _ in 0..20 {
        assert_eq!(door.post("/execute", &relu(8)).status, 200);
    }
    assert_eq!(closed(silent), "");
    let _ = closed(in_headers);
    assert!(closed(in_body).starts_with("HTTP/1.1 408 "));
    dripping.join().unwrap();
    let held = || door.get("/metrics").text().lines().any(|line| line == "genie_http_held_bytes 0");
    soon("what the unread answer held is given back", held);
    assert!(closed(unread).len() < 16_000_000, "it is cut short");
}

/// Connections that only wait took every place.
#[test]
fn connections_that_wait_make_room_for_new_ones() {
    let door = Door::open(&["--http-connections", "8"]);
    let mut idle: Vec<_> = (0..50).map(|_| door.connect()).collect();
    for socket in &mut idle {
        // Those that made room are closed already.
        let _ = socket.write_all(head("Content-Length: 1000").as_bytes());
    }
    for _ in 0..20 {
        assert_eq!(door.post("/execute", &relu(8)).status, 200);
    }
}

#[test]
fn many_at_once_are_all_answered_right() {
    let door = Door::open(&[]);
    thread::scope(|scope| {
        for client in 0..12_u64 {
            let door = &door;
            scope.spawn(move || {
                for round in 0..10_u64 {
                    // Small ones and large ones, of shapes of their own.
                    let count = if (client + round) % 2 == 0 { 10 + client } else { 40_000 + client };
                    let values: Vec<f32> = (0..count).map(|i| i as f32 - client as f32 - 5.0).collect();
                    let x = file(Format::Safetensors, &Contents::One(f32s(&[count], &values)));
                    let answer = door.post("/execute", &Form::new().text("operation", "relu").file("tensor_file", &x));
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let expected: Vec<f32> = values.iter().map(|x| x.max(0.0)).collect();
                    assert_eq!(tensor(&answer.body), f32s(&[count], &expected));
                }
            });
        }
    });
    assert_eq!(door.health()["stats"]["successful"], 120);
}

/// More graphs than the door keeps: the oldest are freed, and defined again when they are asked for.
#[test]
fn graphs_are_kept_by_the_hundred_and_no_more() {
    let door = Door::open(&[]);
    for round in 0..2 {
        for count in 1..=150 {
            let answer = door.post("/execute", &relu(count));
            assert_eq!(answer.status, 200, "{round}, {count}: {}", answer.text());
        }
    }
    let programs = || {
        let metrics = door.get("/metrics").text();
        metrics
            .lines()
            .find_map(|line| line.strip_prefix("genie_programs ")?.parse::<u64>().ok())
            .expect("it is counted")
    };
    soon("those that are not kept are freed", || programs() <= 100);
}

#[test]
fn it_stops_with_its_server() {
    let door = Door::open(&[]);
    let mut open = door.connect();
    open.write_all(head("Content-Length: 1000").as_bytes()).unwrap();
    assert_eq!(door.post("/execute", &relu(8)).status, 200);
    door.server.signal("-TERM");
    assert!(door.server.wait().success());
}
