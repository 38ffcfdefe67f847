//! serve, ping, devices, put, get.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::Stdio;

use genie_transport::client::{ConnectOptions, blocking};

use crate::support::{Certificate, Server, bad, genie, good, json};

#[test]
fn files_come_back_as_they_were_put() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let (there, back) = (folder.path().join("there"), folder.path().join("back"));
    let (there_arg, back_arg) = (there.to_str().unwrap(), back.to_str().unwrap());
    // One byte, both sides of the eager threshold, several slices and a rest.
    for (i, size) in [1, 65_536, 65_537, 3_000_001].into_iter().enumerate() {
        let data: Vec<u8> = (0..size).map(|j: usize| (j * 31 + i) as u8 ^ (j >> 8) as u8).collect();
        fs::write(&there, &data).unwrap();
        good(&["put", &server.uri, "tensor", there_arg]);
        let told = json(&good(&["get", &server.uri, "tensor", back_arg, "--json"]));
        assert_eq!((told["bytes"].as_u64(), told["dtype"].as_str()), (Some(size as u64), Some("u8")));
        assert!(fs::read(&back).unwrap() == data, "{size} bytes came back changed");
    }
    fs::write(&there, [0; 24]).unwrap();
    good(&["put", &server.uri, "matrix", there_arg, "--dtype", "f32", "--shape", "2,3"]);
    let told = json(&good(&["get", &server.uri, "matrix", back_arg, "--json"]));
    assert_eq!(told["shape"], serde_json::json!([2, 3]));

    let (code, error) = bad(&["get", &server.uri, "nothing", back_arg]);
    assert!(code == 1 && error.contains("`nothing`"), "{error}");
    assert_eq!(fs::read(&back).unwrap().len(), 24, "a get that fails leaves the file");
    let (_, error) = bad(&["get", &server.uri, "matrix", "/dev/full"]);
    assert!(error.contains("No space left"), "{error}");
    let (_, error) = bad(&["put", &server.uri, "x", folder.path().join("missing").to_str().unwrap()]);
    assert!(error.contains("missing"), "{error}");
    let (_, error) = bad(&["put", &server.uri, "x", there_arg, "--dtype", "f32", "--shape", "7"]);
    assert!(error.contains("--shape"), "{error}");
    let (_, error) = bad(&["put", &server.uri, "x", folder.path().to_str().unwrap()]);
    assert!(error.contains("is a folder"), "{error}");
    let (code, _) = bad(&["put", &server.uri, "", there_arg]);
    assert_eq!(code, 2, "a name has at least one letter");
}

#[test]
fn devices_and_pings_are_counted() {
    let server = Server::at("tcp://127.0.0.1:0", &["--device", "cpu*3", "--memory", "96M"]);
    let devices = json(&good(&["devices", &server.uri, "--json"]));
    let devices = devices.as_array().unwrap();
    let names: Vec<_> = devices.iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cpu:0", "cpu:1", "cpu:2"]);
    assert!(devices.iter().all(|d| d["total"] == 32 << 20), "{devices:?}");
    let pings = json(&good(&["ping", &server.uri, "--count", "7", "--json"]));
    assert_eq!(pings["count"], 7);
    assert!(pings["min_us"].as_f64().unwrap() > 0.0 && pings["max_us"].as_f64() >= pings["p50_us"].as_f64());
    assert!(good(&["devices", &server.uri]).contains("cpu:2"));
}

#[test]
fn a_signal_ends_a_server_well() {
    for signal in ["-TERM", "-INT"] {
        let server = Server::start();
        good(&["ping", &server.uri, "--count", "1"]);
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0));
    }
}

#[test]
fn a_server_ends_well_while_a_client_is_there() {
    let server = Server::start();
    let slow = ["ping", &server.uri, "--count", "1000000", "--interval", "1"];
    let mut client = genie(&slow).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    good(&["ping", &server.uri, "--count", "20"]);
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    client.kill().unwrap();
    client.wait().unwrap();
}

#[test]
fn a_server_that_was_started_for_a_parent_ends_with_it() {
    let mut child = genie(&["serve", "--listen", "tcp://127.0.0.1:0", "--device", "cpu", "--with-parent"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let (_, uri) = line.trim().rsplit_once(" on ").expect("the line says where");
    good(&["ping", uri, "--count", "1"]);
    assert!(child.try_wait().unwrap().is_none());
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// A place that is taken, and what it is called. Once it is given up nobody has it: a port of 127.0.0.1 might be another test's at once.
fn place() -> (TcpListener, String) {
    let taken = TcpListener::bind(("127.0.0.3", 0)).unwrap();
    let uri = format!("tcp://{}", taken.local_addr().unwrap());
    (taken, uri)
}

#[test]
fn what_cannot_be_is_said_with_what_to_do() {
    let (taken, uri) = place();
    let (code, error) = bad(&["serve", "--listen", &uri, "--device", "cpu"]);
    assert!(code == 1 && error.contains(&uri) && error.contains("is another server running there?"), "{error}");
    drop(taken);

    let (code, error) = bad(&["ping", &uri]);
    assert!(code == 3 && error.contains("genie serve --listen"), "{error}");

    for everywhere in ["tcp://0.0.0.0:0", "tcp://[::]:0"] {
        let (code, error) = bad(&["serve", "--listen", everywhere]);
        assert!(code == 1 && error.contains("--tokens FILE") && error.contains("127.0.0.1"), "{error}");
    }
    let (code, error) = bad(&["serve", "--listen", "tcp://127.0.0.1:0", "--device", "toaster"]);
    assert!(code == 1 && error.contains("toaster") && error.contains("auto"), "{error}");
    let (code, error) = bad(&["ping", "127.0.0.1:7070"]);
    assert!(code == 2 && error.contains("tcp://"), "{error}");
    let (code, error) = bad(&["generate", "--connect", &uri, "--model", "/nowhere.gguf", "--prompt", "x"]);
    assert!(code == 1 && error.contains("/nowhere.gguf"), "{error}");
    let (code, error) = bad(&["generate", "--connect", &uri, "--model", "random:gpt2-xl", "--prompt", "x"]);
    assert!(code == 1 && error.contains("genie bench decode"), "{error}");
    let (code, error) = bad(&["gap", "--model", "random:gpt-k"]);
    assert!(code == 1 && error.contains("gpt-k") && error.contains("gpt-j-6b"), "{error}");
}

#[test]
fn programs_are_told_errors_as_json() {
    let (taken, uri) = place();
    drop(taken);
    for (call, exit) in [(&["ping", &uri, "--json"][..], 3), (&["ping", &uri, "--json", "--count", "x"], 2)] {
        let (code, error) = bad(call);
        let told = json(&error);
        assert_eq!((code, told["exit"].as_i64(), error.lines().count()), (exit, Some(i64::from(exit)), 1), "{error}");
        assert!(!told["error"].as_str().unwrap().is_empty());
    }
}

#[test]
fn a_lease_is_as_long_as_it_was_said() {
    let server = Server::at("tcp://127.0.0.1:0", &["--device", "cpu", "--lease", "7200"]);
    let mut options = ConnectOptions::default();
    options.client.lease_ms = 0;
    let mut session = blocking::Session::connect(&server.uri.parse().unwrap(), options).unwrap();
    assert_eq!(session.opened().unwrap().lease_ms, 7_200_000);
    session.close().unwrap();
}

#[test]
fn a_client_waits_for_a_server_if_it_is_told_to() {
    let (taken, uri) = place();
    drop(taken);
    let waiting = genie(&["ping", &uri, "--count", "1", "--wait", "30"]).stdout(Stdio::piped()).spawn().unwrap();
    let _server = Server::at(&uri, &["--device", "cpu"]);
    assert!(waiting.wait_with_output().unwrap().status.success());
}

#[test]
fn the_doctor_looks_at_everything() {
    let found = json(&good(&["doctor", "--json"]));
    let found = found.as_array().unwrap();
    assert!(found.len() >= 10);
    for finding in found {
        assert!(!finding["found"].as_str().unwrap().is_empty(), "{finding}");
        assert_eq!(finding["state"] == "good", finding.get("advice").is_none(), "{finding}");
    }
    assert!(good(&["doctor"]).contains("cores"));
}

#[test]
fn a_server_listens_in_several_places() {
    let mut child =
        genie(&["serve", "--listen", "tcp://127.0.0.1:0", "--listen", "tcp://[::1]:0", "--device", "cpu", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
    let uris: Vec<_> = ready["uris"].as_array().unwrap().iter().map(|u| u.as_str().unwrap().to_owned()).collect();
    assert_eq!(uris.len(), 2);
    assert_eq!(ready["uri"], uris[0]);
    for uri in &uris {
        good(&["ping", uri]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[cfg(feature = "uring")]
fn has_rings() -> bool {
    genie_transport::link::uring::available().is_ok()
}

#[cfg(not(feature = "uring"))]
fn has_rings() -> bool {
    false
}

/// What is true of a link is said of it: whether it encrypts, what it copies, and what is fixed.
#[test]
fn rings_and_tls_are_explained() {
    let tls = Certificate::new();
    let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| tls.path(name));
    let rings = has_rings();
    for (scheme, encrypts, hands_pages_over) in
        [("tcp", false, true), ("uring", false, true), ("tcps", true, false), ("urings", true, false)]
    {
        if scheme.starts_with("uring") && !rings {
            eprintln!("not tested: {scheme}, as this machine has no io_uring");
            continue;
        }
        let server = Server::at(
            &format!("{scheme}://127.0.0.1:0"),
            &["--device", "cpu", "--tls-cert", &cert, "--tls-key", &key],
        );
        let told = json(&good(&["explain", &server.uri, "--ca", &ca, "--json"]));
        assert_eq!((told["link"].as_str(), told["encrypted"].as_bool()), (Some(scheme), Some(encrypts)), "{told}");
        assert_eq!(told["zero_copy"], hands_pages_over, "{told}");
        for why in ["encrypted_why", "zero_copy_why", "bottleneck_why"] {
            assert!(told[why].as_str().is_some_and(|text| !text.is_empty()), "{why}: {told}");
        }
        for fixed in ["eager_why", "slice_why"] {
            assert!(told[fixed].as_str().unwrap().starts_with("fixed"), "{told}");
        }
        // As text it says the same, and takes as long again.
        if scheme.starts_with("tcp") {
            let text = good(&["explain", &server.uri, "--ca", &ca]);
            assert!(text.contains("encrypted") && text.contains("TLS 1.3") == encrypts, "{text}");
        }
    }
}

/// io_uring is left to who asks for it, and what it would move between these two ends is measured for them.
#[test]
fn rings_that_were_left_out_are_measured() {
    if !has_rings() {
        return eprintln!("not tested: this machine has no io_uring");
    }
    let server = Server::at("uring://127.0.0.1:0", &["--device", "cpu"]);
    let told = json(&good(&["explain", &server.uri.replace("uring://", "genie://"), "--json"]));
    assert_eq!(told["link"], "tcp");
    for (link, outcome) in [("tcp", "chosen"), ("uring", "left out")] {
        let row = told["candidates"].as_array().unwrap().iter().find(|c| c["link"] == link).unwrap();
        assert!(row["outcome"] == outcome && row["put_gb_s"].as_f64().is_some_and(|rate| rate > 0.0), "{told}");
    }
}

#[test]
fn a_link_is_chosen_and_explained() {
    let server = Server::start();
    let genie = server.uri.replace("tcp://", "genie://");
    good(&["ping", &genie, "--count", "3"]);
    good(&["ping", &genie, "--count", "3", "--link", "tcp"]);
    let told = json(&good(&["explain", &genie, "--json"]));
    assert_eq!((told["link"].as_str(), told["uri"].as_str()), (Some("tcp"), Some(server.uri.as_str())));
    assert_eq!((told["same_host"].as_bool(), told["candidates"][0]["outcome"].as_str()), (Some(true), Some("chosen")));
    assert_eq!(told["copies_per_byte"], 0.0);
    for number in ["lanes", "eager_bytes", "slice_bytes", "credits", "round_trip_us", "put_gb_s", "memcpy_gb_s"] {
        assert!(told[number].as_f64().is_some_and(|n| n > 0.0), "{number}: {told}");
    }
    for text in ["why", "zero_copy_why", "congestion_control", "bottleneck", "bottleneck_why"] {
        assert!(told[text].as_str().is_some_and(|t| !t.is_empty()), "{text}: {told}");
    }
    let told = json(&good(&["explain", &server.uri, "--json"]));
    assert!(told["same_host"].is_null() && told["candidates"] == serde_json::json!([]), "{told}");
    assert!(good(&["explain", &genie]).contains("bottleneck"));

    let folder = tempfile::tempdir().unwrap();
    let path = format!("shm://{}", folder.path().join("genie.sock").display());
    let sizes = ["--eager", "2K", "--slice", "512K"];
    let more = [&["--listen", &path, "--device", "cpu", "--threads", "2"], &sizes[..]].concat();
    let both = Server::at("tcp://127.0.0.1:0", &more);
    let genie = both.uri.split(", ").next().unwrap().replace("tcp://", "genie://");
    let told = json(&good(&["explain", &genie, "--json"]));
    assert_eq!((told["eager_bytes"].as_u64(), told["slice_bytes"].as_u64()), (Some(2 << 10), Some(512 << 10)));
    assert_eq!((told["link"].as_str(), told["uri"].as_str()), (Some("shm"), Some(path.as_str())));
    assert_eq!(told["candidates"][1]["outcome"], "spare");
    good(&["ping", &genie, "--link", "shm"]);
    let told = json(&good(&["explain", &genie, "--link", "tcp", "--json"]));
    assert_eq!(told["link"], "tcp");

    // Asked for twice is asked for; asked for otherwise is a mistake.
    good(&["ping", &server.uri, "--link", "tcp"]);
    let (_, error) = bad(&["ping", &server.uri, "--link", "shm"]);
    assert!(error.contains("names a link already"), "{error}");
    let (code, error) = bad(&["ping", &genie, "--link", "rdma", "--reconnect", "0.1"]);
    assert!(code == 3 && error.contains("no rdma to this server"), "{error}");
    let (_, error) = bad(&["serve", "--listen", "genie://127.0.0.1:0"]);
    assert!(error.contains("genie:// is what clients write"), "{error}");
}
