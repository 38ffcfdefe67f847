//! bench transfer, interference, growth: what they say they measure, not what comes out.

use std::fs;
use std::time::Duration;

use genie_tests::serve::{self, Live};
use serde_json::Value;

use crate::support::{Server, bad, genie, good, json};

/// Every field of a row, in the order in which CSV has them.
const FIELDS: [&str; 35] = [
    "op",
    "link",
    "uri",
    "bytes",
    "depth",
    "batch",
    "lanes",
    "threads",
    "memory",
    "integrity",
    "spin_us",
    "rate",
    "requests",
    "unstarted",
    "seconds",
    "messages_s",
    "gb_s",
    "mean_us",
    "p50_us",
    "p90_us",
    "p99_us",
    "p999_us",
    "max_us",
    "connect_us",
    "first_us",
    "first_registering_us",
    "client_cpu_s_gb",
    "server_cpu_s_gb",
    "copied_per_byte",
    "copy_overlap",
    "avg_sm",
    "floor",
    "floor_p50_us",
    "floor_gb_s",
    "ratio",
];

const QUICK: [&str; 6] = ["bench", "transfer", "--time", "0.05", "--warmup", "0.01"];

fn call<'a>(more: &[&'a str]) -> Vec<&'a str> {
    QUICK.into_iter().chain(more.iter().copied()).collect()
}

fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or_else(|| panic!("{field} of {row}"))
}

fn sound(row: &Value) {
    let fields = row.as_object().expect("a row is an object");
    assert!(fields.len() == FIELDS.len() && FIELDS.iter().all(|f| fields.contains_key(*f)), "{row}");
    let times = ["p50_us", "p90_us", "p99_us", "p999_us"].map(|f| number(row, f));
    assert!(times.is_sorted() && times[0] > 0.0, "{row}");
    // A histogram has three digits.
    assert!(number(row, "max_us") >= number(row, "p999_us") * 0.99 && number(row, "mean_us") > 0.0, "{row}");
    for field in ["requests", "seconds", "messages_s", "gb_s", "connect_us", "first_us"] {
        assert!(number(row, field) > 0.0, "{field} of {row}");
    }
    // What passes tensors spends less on a GB than is shown.
    assert!(number(row, "client_cpu_s_gb") >= 0.0 && number(row, "server_cpu_s_gb") >= 0.0, "{row}");
    assert!(number(row, "copied_per_byte") >= 0.0, "{row}");
}

#[test]
fn a_row_for_each_op_and_size_beside_its_floor() {
    let folder = tempfile::tempdir().unwrap();
    let figure = folder.path().join("transfer.svg");
    let ops = "echo,put,get,mixed";
    let svg = figure.to_str().unwrap();
    let rows = json(&good(&call(&["--serve", "--op", ops, "--sizes", "64,256K:1M:4", "--json", "--svg", svg])));
    let rows = rows.as_array().unwrap();
    let named: Vec<_> = rows.iter().map(|r| (r["op"].as_str().unwrap(), r["bytes"].as_u64().unwrap())).collect();
    let sizes = [64, 256 << 10, 1 << 20];
    let wanted: Vec<_> = ops.split(',').flat_map(|op| sizes.map(|bytes| (op, bytes))).collect();
    assert_eq!(named, wanted);
    for row in rows {
        sound(row);
        let echo = row["op"] == "echo";
        assert_eq!(row["depth"], if echo { 1 } else { 4 });
        let (floor, there) = if echo { ("sockets, polled", "floor_p50_us") } else { ("a raw stream", "floor_gb_s") };
        assert_eq!(row["floor"], floor);
        assert!(number(row, there) > 0.0 && number(row, "ratio") > 0.0, "{row}");
        // What goes in slices is not copied.
        if !echo && row["bytes"] == 1 << 20 {
            assert_eq!(number(row, "copied_per_byte"), 0.0, "{row}");
        }
    }
    let figure = fs::read_to_string(&figure).unwrap();
    assert!(["tcp echo", "tcp mixed", "floor: a raw stream", "throughput"].iter().all(|text| figure.contains(text)));
}

#[test]
fn what_is_asked_for_is_done() {
    let server = Server::start();
    let uri = server.uri.as_str();
    let iterations = ["bench", "transfer", "--uri", uri, "--iterations", "7", "--warmup", "0", "--sizes", "64"];
    let more = ["--threads", "2", "--batch", "3", "--depth", "2", "--lanes", "2", "--no-floor", "--json"];
    let rows = json(&good(&[&iterations[..], &more].concat()));
    let row = &rows[0];
    sound(row);
    assert_eq!(
        [&row["requests"], &row["threads"], &row["batch"], &row["lanes"]].map(|v| v.as_u64().unwrap()),
        [14, 2, 3, 2]
    );
    assert!(["floor", "floor_p50_us", "floor_gb_s", "ratio", "rate"].iter().all(|f| row[f].is_null()), "{row}");
    let ratio = number(row, "messages_s") * number(row, "seconds") / 42.0;
    assert!((0.9..1.1).contains(&ratio), "14 requests of 3: {row}");

    // An open loop of 5 turns begins 4 requests in each, whatever else this machine does meanwhile.
    let rows = json(&good(&call(&["--uri", uri, "--op", "echo", "--sizes", "64", "--rate", "400", "--json"])));
    sound(&rows[0]);
    assert_eq!(number(&rows[0], "rate"), 400.0);
    assert_eq!(number(&rows[0], "requests") + number(&rows[0], "unstarted"), 20.0);

    let server = Server::at("tcp://127.0.0.1:0", &["--device", "cpu", "--unchecked"]);
    let uri = server.uri.as_str();
    let pinned = ["--uri", uri, "--memory", "pinned", "--integrity", "off", "--sizes", "512K", "--json", "--no-floor"];
    let rows = json(&good(&call(&pinned)));
    sound(&rows[0]);
    assert_eq!((rows[0]["memory"].as_str(), rows[0]["integrity"].as_str()), (Some("pinned"), Some("off")));
}

#[test]
fn links_are_swept() {
    let csv = good(&call(&["--serve", "--links", "tcp,shm", "--op", "echo,put", "--sizes", "64", "--csv"]));
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some(FIELDS.join(",").as_str()));
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    let named: Vec<_> = rows.iter().map(|r| (r[1], r[0])).collect();
    assert_eq!(named, [("tcp", "echo"), ("tcp", "put"), ("shm", "echo"), ("shm", "put")]);
    assert!(csv.contains("shared-memory spin") && csv.contains("memcpy"), "{csv}");
    let shared = ["--serve", "--links", "shm", "--memory", "shared", "--sizes", "4M", "--json", "--no-floor"];
    let rows = json(&good(&call(&shared)));
    sound(&rows[0]);
    assert_eq!(number(&rows[0], "copied_per_byte"), 0.0, "a shared tensor is passed, not copied");
    let shared =
        ["--serve", "--links", "shm", "--op", "get", "--memory", "shared", "--sizes", "4M", "--json", "--no-floor"];
    let rows = json(&good(&call(&shared)));
    sound(&rows[0]);
    let copied = number(&rows[0], "copied_per_byte");
    assert!((1.0..1.05).contains(&copied), "the server writes it to the shared memory, once: {copied}");
    let table = good(&call(&["--serve", "--sizes", "64"]));
    assert!(table.contains("p99.9") && table.contains("first use: connect"), "{table}");
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let server = Server::start();
    let uri = server.uri.as_str();
    for (more, why) in [
        (&["--uri", uri, "--memory", "shared"][..], "shm://"),
        (&["--uri", uri, "--memory", "device"], "CUDA"),
        (&["--uri", uri, "--integrity", "off"], "--unchecked"),
        (&["--uri", uri, "--op", "get", "--memory", "pinned"], "--memory pinned is for puts"),
        (&["--uri", uri, "--op", "get", "--memory", "shared"], "shm://"),
        (&["--serve", "--links", "rdma"], "--host"),
        (&["--uri", uri, "--op", "put,echo", "--sizes", "5M"], "too many for an echo"),
        (&["--uri", uri, "--time", "0"], "--iterations"),
        (&["--sizes", "64"], "--serve"),
        (&["--serve", "--links", "pigeon"], "pigeon"),
    ] {
        let (code, error) = bad(&[&["bench", "transfer"][..], more].concat());
        assert!(code == 1 && error.contains(why), "{more:?}: {error}");
    }
    let (code, error) = bad(&["bench", "growth", "--uri", uri, "--time", "36"]);
    assert!(code == 1 && error.contains("up to 10"), "{error}");
    for more in [
        &["--uri", uri, "--csv", "--json"][..],
        &["--uri", uri, "--links", "tcp"],
        &["--uri", uri, "--sizes", "4K:64:2"],
        &["--uri", uri, "--rate", "0"],
        &["--uri", uri, "--time", "1", "--iterations", "1"],
    ] {
        let output = genie(&[&["bench", "transfer"][..], more].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{more:?}");
    }
}

#[test]
fn a_price_is_measured_in_pairs() {
    let quick = ["bench", "price", "--serve", "--time", "0.02", "--pairs", "3", "--sizes", "512K", "--json"];
    let rows = json(&good(&[&quick[..], &["--serve-args=--unchecked"]].concat()));
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.iter().map(|r| r["op"].as_str().unwrap()).collect::<Vec<_>>(), ["put", "get"]);
    for row in rows {
        assert!(["with_gb_s", "without_gb_s", "ratio"].iter().all(|f| number(row, f) > 0.0), "{row}");
        let (low, high) = (number(row, "ratio_q1"), number(row, "ratio_q3"));
        assert!(low <= number(row, "ratio") && number(row, "ratio") <= high, "{row}");
        assert!(row["without"].as_str().unwrap().ends_with("unchecked"), "{row}");
        assert_eq!((&row["with_integrity"], &row["without_integrity"]), (&"crc32c".into(), &"none".into()));
    }
    // Two addresses: the first beside the second.
    let rows = json(&good(&[&quick[..], &["--links", "shm,tcp", "--op", "put"]].concat()));
    let (with, without) = (rows[0]["with"].as_str().unwrap(), rows[0]["without"].as_str().unwrap());
    assert!(with.starts_with("shm://") && without.starts_with("tcp://"), "{rows}");
    assert_eq!((&rows[0]["with_integrity"], &rows[0]["without_integrity"]), (&"none".into(), &"crc32c".into()));
    // Where nothing is checked by sums, a thing would be measured beside itself.
    let (code, error) = bad(&[&quick[..], &["--links", "shm"]].concat());
    assert!(code == 1 && error.contains("two addresses"), "{error}");
    // A server that does not go without them is not measured as if it did.
    let (code, error) = bad(&quick);
    assert!(code == 1 && error.contains("--unchecked"), "{error}");
}

#[test]
fn a_small_request_beside_a_large_put() {
    let call = ["bench", "interference", "--serve", "--tensor", "256M", "--turns", "1", "--json"];
    let rows = json(&good(&call));
    let row = &rows[0];
    let fields = ["idle_p50_us", "idle_p99_us", "busy_p50_us", "busy_p99_us", "busy_max_us", "ratio_p99", "put_gb_s"];
    assert!(fields.iter().all(|f| number(row, f) > 0.0), "{row}");
    assert!(number(row, "busy_p50_us") <= number(row, "busy_p99_us"), "{row}");
    assert_eq!((row["tensor_bytes"].as_u64(), row["small_bytes"].as_u64()), (Some(256 << 20), Some(64)));
}

#[test]
fn connections_and_residents_grow() {
    let call =
        ["bench", "growth", "--serve", "--connections", "1,20", "--residents", "50,1", "--time", "0.05", "--json"];
    let folder = tempfile::tempdir().unwrap();
    let figure = folder.path().join("growth.svg");
    let rows = json(&good(&[&call[..], &["--svg", figure.to_str().unwrap()]].concat()));
    let named: Vec<_> =
        rows.as_array().unwrap().iter().map(|r| (r["what"].as_str().unwrap(), r["count"].as_u64().unwrap())).collect();
    assert_eq!(named, [("connections", 1), ("connections", 20), ("residents", 1), ("residents", 50)]);
    let curves = fs::read_to_string(&figure).unwrap();
    assert!(curves.contains("tcp connections") && curves.contains("tcp residents"), "{curves}");
    for row in rows.as_array().unwrap() {
        assert!(["p50_us", "p99_us", "each_us"].iter().all(|f| number(row, f) > 0.0), "{row}");
        assert_eq!(row["floor"], "sockets, polled");
        assert!(number(row, "floor_p50_us") > 0.0, "{row}");
        // A plain connection is what a session is opened over; a resident has nothing of the kind.
        assert_eq!(row["floor_each_us"].as_f64().is_some_and(|us| us > 0.0), row["what"] == "connections", "{row}");
        let there = ["server_bytes_each", "client_bytes_each", "idle_cpu_percent"];
        assert!(there.iter().all(|f| number(row, f) >= 0.0), "{row}");
    }
}

/// The benches' sessions block, and say nothing while their floor or another session has its turn: a server that takes them for dead
/// meanwhile, and keeps sessions for no longer than that by itself, ended every long run with "the session is gone".
#[test]
fn a_session_that_was_silent_for_long_goes_on() {
    let mut config = serve::config(7);
    config.settings.keepalive = Duration::from_millis(30);
    config.default_lease = Duration::from_millis(30);
    let server = Live::start(config);
    let uri = server.uri.to_string();
    let rows = |call: &[&str]| json(&good(&[&["bench"], call, &["--connect", &uri, "--json"]].concat()));
    // Who looks at the counters waits for all of the puts, then the tensor that is read for turns of the floor.
    let rows_of = rows(&["transfer", "--op", "put", "--sizes", "64", "--time", "0.4", "--no-floor"]);
    sound(&rows_of[0]);
    let rows_of = rows(&["transfer", "--op", "get", "--sizes", "64K", "--time", "0.75"]);
    sound(&rows_of[0]);
    let rows_of = rows(&["growth", "--connections", "1,20", "--residents", "1,100", "--time", "0.3"]);
    assert_eq!(rows_of.as_array().unwrap().len(), 4);
    let rows_of = rows(&["latency", "--sizes", "64", "--floor", "--time", "1.2"]);
    assert!(number(&rows_of[0], "ratio") > 0.0);
}

/// The same rows in another form.
#[test]
fn rows_come_as_csv() {
    for (call, first) in [
        (
            &["price", "--links", "tcp,shm", "--op", "put", "--time", "0.01", "--pairs", "1", "--sizes", "64K"][..],
            "op,bytes,with",
        ),
        (&["interference", "--tensor", "16M", "--turns", "1"], "op,link,uri,tensor_bytes"),
        (&["growth", "--connections", "1", "--residents", "0", "--time", "0.01", "--no-floor"], "what,link,count"),
    ] {
        let csv = good(&[&["bench"], call, &["--serve", "--csv"]].concat());
        assert!(csv.starts_with(first) && csv.lines().count() == 2, "{csv}");
        assert!(
            csv.lines().all(|line| line.split(',').count() == csv.lines().next().unwrap().split(',').count()),
            "{csv}"
        );
    }
}
