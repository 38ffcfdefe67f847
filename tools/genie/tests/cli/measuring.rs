//! gap, bench, generate. What they measure is not looked at, only that they measure what they say.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use genie_transport::client::{ConnectOptions, blocking};

use crate::model;
use crate::support::{Certificate, Server, bad, genie, good, json};

#[test]
fn all_modes_of_a_gap_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    model::write(folder.path());
    let out = folder.path().join("gap.csv");
    let (folder, out_arg) = (folder.path().to_str().unwrap(), out.to_str().unwrap());
    let told = json(&good(&[
        "gap",
        "--model",
        folder,
        "--modes",
        "local,naive,remote-cache,sys_simulated",
        "--phases",
        "prefill,decode",
        "--trials",
        "2",
        "--prompt-tokens",
        "100",
        "--new-tokens",
        "40",
        "--seed",
        "3",
        "--temperature",
        "0.8",
        "--out",
        out_arg,
        "--json",
    ]));
    let table = fs::read_to_string(&out).unwrap();
    let mut lines = table.lines();
    let header = "trial,phase,mode,latency_s,wall_s,net_bytes,avg_sm,setup_bytes,bytes_up,bytes_down,steps,tokens_s";
    assert_eq!(lines.next(), Some(header));
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 2 * 2 * 4);
    let number = |text: &str| text.parse::<f64>().unwrap();
    for row in &rows {
        let [_, phase, mode, latency, wall, net, sm, setup, up, down, steps, _] = row[..] else { panic!("{row:?}") };
        assert_eq!(sm, "", "no GPU is measured");
        assert!(number(wall) >= number(latency) && number(latency) > 0.0);
        assert_eq!(number(up) + number(down), number(net));
        let steps = number(steps);
        assert_eq!(steps, if phase == "decode" { 40.0 } else { 1.0 });
        let weights = told["model_bytes"].as_f64().unwrap();
        match mode {
            "local" => assert_eq!((number(net), number(setup)), (0.0, 0.0)),
            "naive" => assert!(number(up) > steps * weights && number(setup) < 1000.0, "{row:?}"),
            "remote-cache" => assert!(number(setup) > weights && number(down) > steps * 16_384.0, "{row:?}"),
            "genie" => {
                assert!(number(setup) > weights);
                if phase == "decode" {
                    assert!(number(up) <= steps * 128.0 && number(down) <= steps * 128.0, "{row:?}");
                }
            }
            other => panic!("{other}"),
        }
    }
    let tokens = told["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 41);
    assert!(tokens.iter().any(|t| t != &tokens[0]), "a model that says one thing only shows nothing");
    let figure = fs::read_to_string(out.with_extension("svg")).unwrap();
    assert!(figure.contains("remote-cache") && figure.trim_end().ends_with("</svg>"));
}

#[test]
fn a_gap_on_a_server_that_has_the_weights_does_not_send_them() {
    let folder = tempfile::tempdir().unwrap();
    model::write(folder.path());
    let server = Server::start();
    let folder = folder.path().to_str().unwrap();
    let call =
        ["gap", "--model", folder, "--modes", "genie", "--trials", "2", "--prompt-tokens", "5", "--new-tokens", "2"];
    let call: Vec<_> = call.into_iter().chain(["--connect", &server.uri, "--phases", "decode", "--json"]).collect();
    let told = json(&good(&call));
    let rows = told["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    let (first, second) = (rows[0]["setup_bytes"].as_u64().unwrap(), rows[1]["setup_bytes"].as_u64().unwrap());
    let weights = told["model_bytes"].as_u64().unwrap();
    assert!(first > weights && second < weights / 4, "{first} then {second}");
}

#[test]
fn a_gap_that_cannot_be_is_refused_before_it_begins() {
    let folder = tempfile::tempdir().unwrap();
    model::write(folder.path());
    let figure = folder.path().join("x.svg");
    let folder = folder.path().to_str().unwrap();
    let (_, error) = bad(&["gap", "--model", folder, "--modes", "local", "--out", figure.to_str().unwrap()]);
    assert!(error.contains("FILE.csv") && !figure.exists(), "{error}");
    let many = model::POSITIONS.to_string();
    for command in [&["gap"][..], &["bench", "decode"]] {
        let rest = ["--model", folder, "--prompt-tokens", &many, "--new-tokens", "2"];
        let (_, error) = bad(&[command, &rest].concat());
        assert!(error.contains("--prompt-tokens"), "{error}");
    }
}

#[test]
fn benches_give_their_fields() {
    let server = Server::start();
    let echo =
        ["bench", "latency", "--connect", &server.uri, "--sizes", "64,65536", "--floor", "--json", "--time", "0.05"];
    for spin in ["100", "0"] {
        let call: Vec<_> = echo.into_iter().chain(["--spin", spin]).collect();
        let rows = json(&good(&call));
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.iter().map(|r| r["bytes"].as_u64().unwrap()).collect::<Vec<_>>(), [64, 65_536]);
        for row in rows {
            assert_eq!(row["op"], "echo");
            assert!(
                ["p50_us", "p99_us", "floor_p50_us", "ratio"].iter().all(|f| row[f].as_f64().unwrap() > 0.0),
                "{row}"
            );
        }
    }
    let put = ["bench", "put", "--connect", &server.uri, "--sizes", "1M", "--turns", "1", "--json"];
    let without = json(&good(&put));
    assert!(without[0]["floor_gb_s"].is_null() && without[0]["ratio"].is_null());
    let rows = json(&good(&put.into_iter().chain(["--floor"]).collect::<Vec<_>>()));
    assert_eq!((rows[0]["op"].as_str(), rows[0]["bytes"].as_u64()), (Some("put"), Some(1 << 20)));
    assert!(["gb_s", "floor_gb_s", "ratio"].iter().all(|f| rows[0][f].as_f64().unwrap() > 0.0), "{rows}");
    assert_eq!(rows[0]["copied_bytes"], 0, "payloads are not copied");
    let (code, error) = bad(&["bench", "latency", "--connect", &server.uri, "--sizes", "5M"]);
    assert!(code == 1 && error.contains("bench put"), "{error}");
}

#[test]
fn decode_is_measured_in_process_and_remote() {
    let folder = tempfile::tempdir().unwrap();
    model::write(folder.path());
    let folder = folder.path().to_str().unwrap();
    let told = json(&good(&[
        "bench",
        "decode",
        "--model",
        folder,
        "--prompt-tokens",
        "20",
        "--new-tokens",
        "10",
        "--turns",
        "3",
        "--sessions",
        "3",
        "--round-trip",
        "50000",
        "--ahead",
        "9",
        "--json",
    ]));
    for bytes in ["step_bytes_up", "step_bytes_down"] {
        assert!(told[bytes].as_u64().is_some_and(|n| n > 0 && n <= 128), "{told}");
    }
    assert!(told["decode_ratio"].as_f64().unwrap() > 0.0 && told["several"]["speedup"].as_f64().unwrap() > 0.0);
    assert!(told["streamed_ratio"].as_f64().unwrap() > 0.0 && told["prefill_ratio"].as_f64().unwrap() > 0.0);
    assert_eq!(told["streamed_alike"], 10);
    let far = &told["far"];
    // On a busy machine much of a round trip is the machine's, and less is held back: what is held is waited for in any case.
    let held = far["held_us"].as_f64().unwrap();
    assert!(held > 0.0 && far["round_trip_us"].as_f64().unwrap() >= held, "{told}");
    assert!(far["remote_decode_ms"].as_f64().unwrap() * 1e3 >= held, "a step waits for its round trip: {told}");
    assert_eq!(told["ahead"], 9);
    assert!(told["ahead_decode_ms"].as_f64().unwrap() > 0.0 && told["ahead_ratio"].as_f64().unwrap() > 0.0, "{told}");
    // All ten are under way at once: together they wait for one.
    let (each, ahead) = (far["remote_decode_ms"].as_f64().unwrap(), far["ahead_decode_ms"].as_f64().unwrap());
    assert!(ahead < each && far["ahead_ratio"].as_f64().unwrap() > 0.0, "{told}");
    assert!(told["second_client"].is_null(), "a text needs a tokenizer");
    // As long as the model sees: not one more token has room.
    let most = model::POSITIONS.to_string();
    let all =
        ["bench", "decode", "--model", folder, "--prompt-tokens", &most, "--turns", "1", "--json", "--new-tokens"];
    let told = json(&good(&[&all[..], &["0"]].concat()));
    assert!(told["remote_prefill_ms"].as_f64().unwrap() > 0.0 && told["decode_ratio"].is_null(), "{told}");
    assert!(told["several"].is_null() && told["far"].is_null(), "{told}");
    let (_, error) = bad(&[&all[..], &["1"]].concat());
    assert!(error.contains("--new-tokens"), "{error}");
}

/// The second client is another process: it is told all that this one needs to be let in.
#[test]
fn decode_is_measured_where_a_token_and_a_certificate_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    model::write(folder.path());
    model::write_tokenizer(folder.path());
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (tokens, token, certificate) = (file("tokens"), file("token"), Certificate::new());
    good(&["token", "new", "alice", "--tokens", &tokens, "--client", &token]);
    let (cert, key) = (certificate.path("cert.pem"), certificate.path("key.pem"));
    let asked = ["--device", "cpu", "--threads", "2", "--tokens", &tokens, "--tls-cert", &cert, "--tls-key", &key];
    let server = Server::at("tcps://127.0.0.1:0", &asked);
    let ca = certificate.path("ca.pem");
    let model = ["bench", "decode", "--model", folder.path().to_str().unwrap(), "--connect", &server.uri];
    let few = ["--prompt-tokens", "20", "--new-tokens", "4", "--turns", "1", "--sessions", "0", "--json"];
    let told = json(&good(&[&model[..], &few, &["--token-file", &token, "--ca", &ca]].concat()));
    let second = &told["second_client"];
    assert!(second["bytes_up"].as_u64().is_some_and(|n| n > 0), "{told}");
    assert!(second["first_token_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{told}");
}

/// With the real model, where it is: `tools/fetch-smollm2` brings it.
#[test]
fn the_capital_of_france() {
    let path = genie_models::smollm2_path();
    if !path.exists() {
        eprintln!("skipped: {} is not there (run tools/fetch-smollm2)", path.display());
        return;
    }
    let server = Server::start();
    let call = [
        "generate",
        "--connect",
        &server.uri,
        "--model",
        path.to_str().unwrap(),
        "--prompt",
        "The capital of France is",
    ];
    let call: Vec<_> = call.into_iter().chain(["--max-new-tokens", "2", "--temperature", "0", "--seed", "1"]).collect();
    let output = genie(&call).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), " Paris.\n", "the text alone");
    assert!(String::from_utf8(output.stderr).unwrap().contains("tokens/s"));
    let told = |more: &[&str]| json(&good(&[&call[..], more, &["--json"]].concat()));
    let bytes = |told: &serde_json::Value, name: &str| told[name].as_u64().unwrap();
    let packed = told(&["--per-step"]);
    assert_eq!((packed["text"].as_str(), packed["finish"].as_str()), (Some(" Paris."), Some("length")));
    assert_eq!(packed["upload_bytes"], 0, "the server has it");

    // As floats it is another model to the server, and says the same.
    let wide = told(&["--dtype", "f32"]);
    assert_eq!((wide["text"].as_str(), &wide["tokens"]), (Some(" Paris."), &packed["tokens"]));
    assert!(bytes(&packed, "model_bytes") < bytes(&wide, "model_bytes") / 5, "sent as it lies in the file: {packed}");
    // Norms are f32 in both.
    assert!((1..bytes(&wide, "model_bytes")).contains(&bytes(&wide, "upload_bytes")), "{wide}");
    let again = told(&["--dtype", "f32", "--per-step"]);
    let sent = bytes(&again, "bytes_up") as f64 / bytes(&again, "model_bytes") as f64;
    assert!(again["upload_bytes"] == 0 && sent < 0.0001, "a second client sends {sent} of the model");

    // A reader that has seen enough is no failure, and the session ends all the same.
    let mut long: Vec<_> = call.into_iter().filter(|a| *a != "2").collect();
    long.insert(long.iter().position(|a| *a == "--max-new-tokens").unwrap() + 1, "30");
    let mut client = genie(&long).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut some = [0; 5];
    client.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert_eq!(client.wait().unwrap().code(), Some(0));
    let mut session = blocking::Session::connect(&server.uri.parse().unwrap(), ConnectOptions::default()).unwrap();
    let stats = session.stats().unwrap();
    assert_eq!(stats.iter().find(|(name, _)| name == "genie_sessions").unwrap().1, 1, "this one");
}
