//! Which devices are served where no GPU can be used: CUDA is shown none, so that this holds on every machine.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::{bad, genie, json};

const HIDDEN: (&str, &str) = ("CUDA_VISIBLE_DEVICES", "");

#[test]
fn gpus_that_are_asked_for_are_not_replaced() {
    for device in ["cuda", "cuda:0", "cuda:0,cuda:2"] {
        let output = genie(&["serve", "--listen", "tcp://127.0.0.1:0", "--device", device, "--json"])
            .env(HIDDEN.0, HIDDEN.1)
            .output()
            .expect("the program starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]), "{error}");
        let told = json(error.lines().last().unwrap_or_default());
        let told = told["error"].as_str().expect("it says why");
        assert!(told.contains("no GPU can be used") || told.contains("cuda:0 cannot be used"), "{told}");
        let advice = ["--device cpu", "CUDA_VISIBLE_DEVICES"];
        assert!(advice.iter().any(|what| told.contains(what)), "{told}");
    }
}

#[test]
fn auto_goes_on_with_the_cpu_and_says_why() {
    let folder = tempfile::tempdir().expect("there is room");
    let log = folder.path().join("log");
    let mut child = genie(&["serve", "--listen", "tcp://127.0.0.1:0", "--device", "auto", "--with-parent", "-v"])
        .env(HIDDEN.0, HIDDEN.1)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(&log).expect("there is room"))
        .spawn()
        .expect("the program starts");
    let mut ready = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("its output is piped"));
    out.read_line(&mut ready).expect("its output can be read");
    drop(child.stdin.take());
    assert!(child.wait().expect("it can be waited for").success());
    let log = std::fs::read_to_string(log).expect("it is there");
    assert!(ready.starts_with("genie: serving cpu:0 on "), "{ready}{log}");
    assert!(log.contains("INFO") && log.contains("the CPU is taken: "), "{log}");
}

#[test]
fn what_is_of_gpus_alone_is_refused_where_there_is_none() {
    let folder = tempfile::tempdir().expect("there is room");
    let file = folder.path().join("file");
    let file = file.to_str().expect("it is text");
    let (_, error) = bad(&["serve", "--listen", "tcp://127.0.0.1:0", "--device", "cpu", "--trace", file]);
    assert!(error.contains("--trace is of copies to and from GPUs"), "{error}");
    let (_, error) = bad(&["bench", "transfer", "--serve", "--op", "echo", "--sizes", "64", "--utilisation", file]);
    assert!(error.contains("nobody tells how busy device 0 is"), "{error}");
    assert!(!std::path::Path::new(file).exists(), "nothing was made that would hold nothing");
}
