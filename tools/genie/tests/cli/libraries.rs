//! cuBLASLt and NVML, over their stand-ins: products of long prompts, what the server says where there is no library or it refuses, and
//! what NVML tells of the machine's GPUs.

use std::fs::{self, File};
use std::path::Path;

use genie_graph::DType;
use genie_models::OpenOptions;
use genie_models::remote::RemoteModel;
use genie_tests::driver::{MANAGEMENT, PRODUCTS, StandIn};
use serde_json::Value;

use crate::driver::{GREEDY, Machine, prompt, remote, tiny};
use crate::model;
use crate::support::{Server, good, json};

/// Rows of which products are the library's.
const LONG: i32 = 300;

/// What follows a prompt.
fn said(remote: &mut RemoteModel, length: i32) -> Vec<i32> {
    let mut context = remote.context(GREEDY).expect("a context");
    let mut tokens = Vec::new();
    let more = |token| {
        tokens.push(token);
        true
    };
    remote.generate(&mut context, &prompt(length), 3, &[], more).expect("text");
    tokens
}

/// Ends a server, which logged nothing that breaks a rule.
fn stop(machine: &Machine, server: Server) -> String {
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", machine.logged());
    machine.logged()
}

#[test]
fn a_long_prompt_runs_on_the_library_and_says_what_the_cpu_says() {
    let model = tiny(OpenOptions::default());
    let expected = said(&mut remote(&Server::start().uri, &model), LONG);
    let machine = Machine::new(&[]);
    let server = machine.serve("tcp://127.0.0.1:0", "cuda", "cuda:0");
    assert_eq!(said(&mut remote(&server.uri, &model), LONG), expected);
    let rows = format!("x{LONG}x");
    let wide = |line: &String| line.starts_with("f32 f32 ") && line.contains(&rows);
    let all = machine.driver.products();
    // Query, key and value, output, gate and up, down: some may be one product.
    assert!(all.iter().filter(|line| wide(line)).count() >= 2 * 4, "{all:?}");
    assert!(all.iter().any(|line| line.contains(" added")), "the residual goes along: {all:?}");
    // What the matrices are of, products read and give on a GPU.
    for (dtype, name) in [(DType::F16, "f16 f16 "), (DType::BF16, "bf16 bf16 ")] {
        let model = tiny(OpenOptions { dtype: Some(dtype), ..OpenOptions::default() });
        assert_eq!(said(&mut remote(&server.uri, &model), LONG).len(), 3);
        let all = machine.driver.products();
        assert!(all.iter().any(|line| line.starts_with(name) && line.contains(&rows)), "{name}: {all:?}");
    }
    let log = stop(&machine, server);
    assert!(log.contains("cuBLASLt 13.0.0 does matrix products"), "{log}");
}

#[test]
fn without_the_library_our_own_kernels_do_it_and_the_server_says_so() {
    let (model, length) = (tiny(OpenOptions::default()), 40);
    let expected = said(&mut remote(&Server::start().uri, &model), length);
    let own = "on Genie's own kernels";
    for (driver, refuses, told) in [
        (StandIn::new().without(PRODUCTS), "nothing", "no cuBLASLt here (libcublasLt.so.13 was not found): matrix"),
        (StandIn::new().emptied(PRODUCTS), "nothing", "the cuBLASLt here has no cublasLtCreate: matrix"),
        (StandIn::new(), "start", "cuBLASLt does not start: matrix"),
        (StandIn::new(), "all", "cuBLASLt has no way for a product: it runs"),
        (StandIn::new(), "silently", "cuBLASLt has no way for a product: it runs"),
        (StandIn::new(), "late", "cuBLASLt has no way for a product: it runs"),
        (StandIn::new(), "unknown", "cuBLASLt has no way for a product: it runs"),
        (StandIn::new(), "full", "cuBLASLt has no memory for a product: it runs"),
    ] {
        let machine = Machine::with(driver, &[("GENIE_STAND_IN_PRODUCTS", refuses)]);
        let server = machine.serve("tcp://127.0.0.1:0", "cuda", "cuda:0");
        assert_eq!(said(&mut remote(&server.uri, &model), length), expected, "{refuses}");
        assert!(machine.driver.products().is_empty(), "{refuses}");
        let log = stop(&machine, server);
        assert!(log.contains(told) && log.contains(own), "{refuses}: {log}");
    }
    let machine = Machine::new(&[("GENIE_STAND_IN_PRODUCTS_VERSION", "110805")]);
    let server = machine.serve("tcp://127.0.0.1:0", "cuda", "cuda:0");
    assert_eq!(said(&mut remote(&server.uri, &model), length), expected);
    assert!(machine.driver.products().is_empty());
    let log = stop(&machine, server);
    assert!(log.contains("the cuBLASLt here is too old: it has 11.8.5, and 12 is needed: matrix"), "{log}");
    // What is to happen to the sums is done behind them.
    let machine = Machine::new(&[("GENIE_STAND_IN_PRODUCTS", "more")]);
    let server = machine.serve("tcp://127.0.0.1:0", "cuda", "cuda:0");
    assert_eq!(said(&mut remote(&server.uri, &model), length), expected);
    assert!(!machine.driver.products().is_empty());
    stop(&machine, server);
}

#[test]
fn a_library_that_fails_costs_the_call_alone() {
    let machine = Machine::new(&[("GENIE_STAND_IN_PRODUCTS", "failing")]);
    let server = machine.serve("tcp://127.0.0.1:0", "cuda", "cuda:0");
    let mut client = remote(&server.uri, &tiny(OpenOptions::default()));
    let mut context = client.context(GREEDY).expect("a context");
    let error = client.prefill(&mut context, &prompt(40)).expect_err("the product fails");
    assert!(error.to_string().contains("CUBLAS_STATUS_EXECUTION_FAILED"), "{error}");
    // A product of one row is our own kernel's.
    let mut context = client.context(GREEDY).expect("a context");
    client.prefill(&mut context, &prompt(1)).expect("a step");
    drop(client);
    stop(&machine, server);
}

/// What the doctor finds of something.
fn finding(machine: &Machine, what: &str) -> Value {
    let output = machine.run(&["doctor", "--json"]).output().expect("the program starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !error.contains("mistake:"), "{error}");
    let all = json(&String::from_utf8_lossy(&output.stdout));
    let found = all.as_array().and_then(|all| all.iter().find(|finding| finding["what"] == what));
    found.unwrap_or_else(|| panic!("nothing of {what}: {all}")).clone()
}

const EIGHT: [(&str, &str); 3] =
    [("GENIE_STAND_IN_GPUS", "8"), ("CUDA_VISIBLE_DEVICES", "3"), ("GENIE_STAND_IN_LOST", "5")];

#[test]
fn the_doctor_tells_of_each_gpu_of_the_machine() {
    let machine = Machine::new(&EIGHT);
    machine.driver.set_busy("0,0,0,37,-");
    let found = finding(&machine, "NVIDIA management");
    assert_eq!(found["state"], "good", "{found}");
    let text = found["found"].as_str().expect("a text");
    for part in [
        "driver 580.65.06; GPUs: 8 installed, 1 visible (CUDA_VISIBLE_DEVICES=3); CPU as GPU 0 (GPU-005d5d5d-",
        "; CPU as GPU 3 (GPU-035d5d5d-5d5d-5d5d-5d5d-5d5d5d5d5d5d): 789 MB of 1.1 GB free, 37 % busy; CPU",
        "; CPU as GPU 4 (GPU-045d5d5d-5d5d-5d5d-5d5d-5d5d5d5d5d5d): 789 MB of 1.1 GB free; GPU 5: looking at a GPU: ",
        "fell off the bus",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(finding(&machine, "cuBLASLt")["found"], "13.0.0");
    assert!(finding(&machine, "GPU")["found"].as_str().is_some_and(|gpu| gpu.contains("GPU-035d5d5d-")));
}

#[test]
fn the_doctor_says_which_library_lacks() {
    let machine = Machine::with(StandIn::new().without(PRODUCTS).without(MANAGEMENT), &[]);
    for (what, why) in [("cuBLASLt", "libcublasLt.so.13"), ("NVIDIA management", "libnvidia-ml.so.1")] {
        let found = finding(&machine, what);
        assert_eq!(found["state"], "improvable", "{found}");
        assert!(found["found"].as_str().is_some_and(|text| text.contains(why)), "{found}");
    }
    let empty = Machine::with(StandIn::new().emptied(MANAGEMENT), &[]);
    for (machine, why) in [
        (Machine::new(&[("GENIE_STAND_IN_NVML", "9")]), "driver is not loaded"),
        (Machine::new(&[("GENIE_STAND_IN_NVML", "18")]), "version mismatch"),
        (empty, "nvmlInit_v2"),
    ] {
        let found = finding(&machine, "NVIDIA management");
        assert!(found["state"] == "improvable", "{found}");
        assert!(found["found"].as_str().is_some_and(|text| text.contains(why)), "{why}: {found}");
    }
}

#[test]
fn devices_tell_how_busy_they_are_now() {
    let machine = Machine::new(&EIGHT);
    let server = machine.serve("tcp://127.0.0.1:0", "cuda", "cuda:0");
    let busy = || json(&good(&["devices", &server.uri, "--json"]))[0]["utilisation"].clone();
    // Each says another number: it is the GPU that CUDA shows, and its number now.
    for percent in [12, 93] {
        machine.driver.set_busy(&format!("1,2,3,{percent},5,6,7,8"));
        assert_eq!(busy(), percent);
    }
    machine.driver.set_busy("1,2,3,-,5,6,7,8");
    assert!(busy().is_null(), "it does not tell");
    let text = good(&["devices", &server.uri]);
    assert!(text.contains("GPUs of the server: 8 installed, 1 visible"), "{text}");
    let log = stop(&machine, server);
    assert!(log.contains("GPUs: 8 installed, 1 visible (CUDA_VISIBLE_DEVICES=3)"), "{log}");
}

#[test]
fn without_nvml_all_else_works() {
    for (driver, refusal) in [(StandIn::new().without(MANAGEMENT), "0"), (StandIn::new(), "9")] {
        let machine = Machine::with(driver, &[("GENIE_STAND_IN_NVML", refusal)]);
        let server = machine.serve("tcp://127.0.0.1:0", "cuda", "cuda:0");
        let device = &json(&good(&["devices", &server.uri, "--json"]))[0];
        assert!(device["utilisation"].is_null() && device["uuid"].is_string(), "{device}");
        let text = good(&["devices", &server.uri]);
        assert!(text.contains("GPU-005d5d5d-") && !text.contains("GPUs of the server"), "{text}");
        stop(&machine, server);
    }
}

/// Runs a measurement of the tiny model on a GPU that is so busy; what it printed.
fn measured(machine: &Machine, folder: &Path, call: &[&str], more: &[&str]) -> Value {
    model::write(folder);
    let model = ["--model", folder.to_str().expect("a name"), "--serve-device", "cuda", "--json"];
    let length = ["--prompt-tokens", "60", "--new-tokens", "24"];
    let log = folder.join("log");
    let output =
        machine.run(call).args(model).args(length).args(more).stderr(File::create(&log).expect("a file")).output();
    let (output, log) = (output.expect("the program starts"), fs::read_to_string(log).expect("a log"));
    assert!(output.status.success() && !log.contains("mistake:"), "{log}");
    json(&String::from_utf8_lossy(&output.stdout))
}

/// Samples of a table.
fn samples(table: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(table).expect("a table");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("time_s,sm,memory"));
    lines.map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

#[test]
fn measurements_tell_how_busy_the_gpu_was() {
    let machine = Machine::new(&[("GENIE_STAND_IN_GPUS", "2"), ("CUDA_VISIBLE_DEVICES", "1")]);
    machine.driver.set_busy("7,42");
    let folder = tempfile::tempdir().expect("there is room");
    let (gap, decode) = (folder.path().join("gap.csv"), folder.path().join("decode.sm.csv"));
    let out = ["--modes", "genie", "--trials", "1", "--out", gap.to_str().expect("a name")];
    let told = measured(&machine, folder.path(), &["gap"], &out);
    assert_eq!(told["utilisation"].as_str(), folder.path().join("gap.sm.csv").to_str(), "{told}");
    // A phase shorter than the time between two samples has none.
    let phases: Vec<&Value> = told["rows"].as_array().expect("rows").iter().map(|row| &row["avg_sm"]).collect();
    assert!(phases.iter().all(|sm| sm.is_null() || **sm == 42.0) && phases.len() == 2, "{told}");
    let out = ["--turns", "1", "--sessions", "0", "--utilisation", decode.to_str().expect("a name")];
    let told = measured(&machine, folder.path(), &["bench", "decode"], &out);
    assert_eq!(told["avg_sm"], 42.0, "{told}");
    for table in [folder.path().join("gap.sm.csv"), decode] {
        let rows = samples(&table);
        let quarter = (1_u64 << 28).to_string();
        assert!(!rows.is_empty() && rows.iter().all(|row| row[1] == "42" && row[2] == quarter), "{rows:?}");
    }
}

#[test]
fn a_measurement_without_nvml_has_no_such_table() {
    let machine = Machine::with(StandIn::new().without(MANAGEMENT), &[]);
    let folder = tempfile::tempdir().expect("there is room");
    let table = folder.path().join("gap.csv");
    let out = ["--modes", "genie", "--trials", "1", "--out", table.to_str().expect("a name")];
    let told = measured(&machine, folder.path(), &["gap"], &out);
    assert!(told["utilisation"].is_null() && table.exists() && !folder.path().join("gap.sm.csv").exists(), "{told}");
    assert!(told["rows"].as_array().expect("rows").iter().all(|row| row["avg_sm"].is_null()), "{told}");
}
