//! `--device cuda` over the stand-ins for NVIDIA's libraries: real processes, the calls that the driver would get, no GPU.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_models::remote::{RemoteModel, RemoteOptions, Sampling};
use genie_models::{HashCache, Model, OpenOptions};
use genie_tests::driver::StandIn;
use genie_transport::client::{ConnectOptions, blocking};

use crate::model;
use crate::support::{Server, genie, good, json};

pub(crate) const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 5 };

/// Machines with GPUs that are none.
pub(crate) struct Machine {
    pub(crate) driver: StandIn,
    variables: Vec<(&'static str, &'static str)>,
}

impl Machine {
    pub(crate) fn new(variables: &[(&'static str, &'static str)]) -> Self {
        Self::with(StandIn::new(), variables)
    }

    pub(crate) fn with(driver: StandIn, variables: &[(&'static str, &'static str)]) -> Self {
        Self { driver, variables: variables.to_vec() }
    }

    /// The program on this machine.
    pub(crate) fn run(&self, arguments: &[&str]) -> Command {
        let mut command = genie(arguments);
        command.env_remove("CUDA_VISIBLE_DEVICES");
        command.envs(self.driver.variables()).envs(self.variables.iter().copied());
        command
    }

    /// A server on it.
    pub(crate) fn serve(&self, listen: &str, device: &str, serves: &str) -> Server {
        let log = File::create(self.log()).expect("room for a log");
        let call = ["serve", "--listen", listen, "--device", device, "--memory", "128M", "-v"];
        Server::of(self.run(&call).stderr(log), serves)
    }

    /// Waits until it is so.
    fn wait_until(&self, is: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(60);
        while !is() {
            assert!(Instant::now() < until, "{}", self.logged());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> PathBuf {
        self.driver.path().join("log")
    }

    /// What the server logged up to now. The stand-ins have seen no call that breaks a rule.
    pub(crate) fn logged(&self) -> String {
        let log = fs::read_to_string(self.log()).expect("the log");
        assert!(!log.contains("mistake:"), "{log}");
        log
    }

    /// What a server says that cannot start.
    fn refusal(&self, device: &str) -> String {
        let call = ["serve", "--listen", "tcp://127.0.0.1:0", "--device", device, "--json"];
        let output = self.run(&call).output().expect("the program starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        let told = json(error.lines().last().unwrap_or_default());
        told["error"].as_str().expect("it says why").to_owned()
    }
}

/// Where a server of a test can listen, of each link that works here.
fn links(folder: &std::path::Path) -> Vec<String> {
    let shm = format!("shm://{}", folder.join("socket").display());
    let all = ["tcp://127.0.0.1:0", "uring://127.0.0.1:0", &shm];
    genie_tests::here::links(&all).into_iter().map(str::to_owned).collect()
}

pub(crate) fn tiny(options: OpenOptions) -> Arc<Model> {
    let folder = tempfile::tempdir().expect("there is room");
    model::write(folder.path());
    // The files stay mapped though their folder goes.
    Arc::new(Model::open(folder.path(), options).expect("a model"))
}

pub(crate) fn remote(uri: &str, model: &Arc<Model>) -> RemoteModel {
    let session = blocking::Session::connect(&uri.parse().expect("an address"), ConnectOptions::default());
    let options = RemoteOptions { hashes: HashCache::none(), ..RemoteOptions::default() };
    RemoteModel::establish(session.expect("a session"), model.clone(), &options, |_| {}).expect("a model")
}

/// So many tokens.
pub(crate) fn prompt(length: i32) -> Vec<i32> {
    (0..length).map(|i| (i * 13 + 5) % 97).collect()
}

/// What follows the prompt, in one generate and then step by step: as often as a step must be seen to be captured and replayed.
/// `before` is told how much there is.
fn said(remote: &mut RemoteModel, before: impl Fn(usize)) -> Vec<i32> {
    let mut context = remote.context(GREEDY).expect("a context");
    let mut tokens = Vec::new();
    let prompt = prompt(40);
    let more = |token| {
        tokens.push(token);
        before(tokens.len());
        true
    };
    remote.generate(&mut context, &prompt, 12, &[], more).expect("text");
    for _ in 0..6 {
        before(tokens.len());
        tokens.push(remote.step(&mut context, tokens[tokens.len() - 1]).expect("a step"));
    }
    tokens
}

#[test]
fn tensors_and_text_are_the_cpus_over_every_link() {
    let model = tiny(OpenOptions::default());
    let expected = said(&mut remote(&Server::start().uri, &model), |_| ());
    let folder = tempfile::tempdir().expect("there is room");
    for listen in links(folder.path()) {
        let machine = Machine::new(&[]);
        let server = machine.serve(&listen, "auto", "cuda:0");
        let devices = json(&good(&["devices", &server.uri, "--json"]));
        assert_eq!(devices[0]["uuid"], "GPU-005d5d5d-5d5d-5d5d-5d5d-5d5d5d5d5d5d", "{devices}");
        assert!(devices[0]["pcie_to"].as_f64().is_some_and(|speed| speed > 0.0), "{devices}");
        let (there, back) = (folder.path().join("there"), folder.path().join("back"));
        for size in [1, 65_537, 9_000_001] {
            let data: Vec<u8> = (0..size).map(|i: usize| (i * 31) as u8 ^ (i >> 8) as u8).collect();
            fs::write(&there, &data).expect("there is room");
            good(&["put", &server.uri, "tensor", there.to_str().expect("a name")]);
            good(&["get", &server.uri, "tensor", back.to_str().expect("a name")]);
            assert!(fs::read(&back).expect("a file") == data, "{listen}: {size} bytes came back changed");
        }
        // Two clients share the weights; both go on at once.
        let (mut one, mut other) = (remote(&server.uri, &model), remote(&server.uri, &model));
        assert_eq!(other.uploaded().sent, 0);
        let texts = std::thread::scope(|scope| {
            [&mut one, &mut other].map(|client| scope.spawn(|| said(client, |_| ()))).map(|text| text.join())
        });
        for text in texts {
            assert_eq!(text.expect("no panic"), expected, "{listen}");
        }
        drop((one, other));
        server.signal("-TERM");
        assert_eq!(server.wait().code(), Some(0), "{}", machine.logged());
        machine.logged();
    }
}

#[test]
fn a_kernel_that_faults_costs_its_gpu_alone_and_that_comes_back() {
    let model = tiny(OpenOptions::default());
    let machine = Machine::new(&[("GENIE_STAND_IN_GPUS", "2"), ("GENIE_STAND_IN_POOLS", "gone")]);
    let server = machine.serve("tcp://127.0.0.1:0", "cuda", "cuda:0, cuda:1");
    let mut client = remote(&server.uri, &model);
    let whole = said(&mut client, |_| ());
    // In the middle of a generate, and before a step.
    for (lives, at) in [(2, 4), (3, 15)] {
        let text = said(&mut client, |count| {
            if count == at {
                machine.driver.fail_next_kernel(0);
            }
        });
        assert!(!machine.driver.is_to_fail(), "a kernel failed");
        assert_eq!((text, client.lives()), (whole.clone(), lives));
    }
    drop(client);
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    let log = machine.logged();
    assert!(log.contains("the device failed") && log.contains("cuda:0") && log.contains("ILLEGAL_ADDRESS"), "{log}");
}

#[test]
fn a_gpu_that_no_reset_helps_is_out_and_the_server_goes_on() {
    let machine = Machine::new(&[("GENIE_STAND_IN_DEAD", "1")]);
    let server = machine.serve("tcp://127.0.0.1:0", "cuda", "cuda:0");
    let model = tiny(OpenOptions::default());
    let mut client = remote(&server.uri, &model);
    machine.driver.fail_next_kernel(0);
    let mut context = client.context(GREEDY).expect("a context");
    client.prefill(&mut context, &[3, 14, 15]).expect_err("the GPU is lost");
    good(&["ping", &server.uri, "--count", "3"]);
    drop(client);
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    assert!(machine.logged().contains("start the server anew"));
}

/// Every request that brought a byte to the GPU failed where the driver pinned nothing.
#[test]
fn a_driver_that_pins_nothing_serves_the_same() {
    let model = tiny(OpenOptions::default());
    let expected = said(&mut remote(&Server::start().uri, &model), |_| ());
    for (pinning, warning) in
        [("refused", "the driver pins no host memory"), ("full", "no more host memory can be pinned")]
    {
        let machine = Machine::new(&[("GENIE_STAND_IN_PINNING", pinning)]);
        let server = machine.serve("tcp://127.0.0.1:0", "cuda", "cuda:0");
        assert_eq!(said(&mut remote(&server.uri, &model), |_| ()), expected, "{pinning}");
        assert_eq!(machine.logged().matches(warning).count(), 1, "{}", machine.logged());
    }
}

/// The driver was taken down under the thread that waited for the GPU.
#[test]
fn a_gpu_that_hangs_does_not_keep_the_server_nor_crash_its_end() {
    let folder = tempfile::tempdir().expect("there is room");
    let hang = folder.path().join("hang");
    let mut machine = Machine::new(&[]);
    machine.variables.push(("GENIE_STAND_IN_HANG", hang.to_str().expect("a name").to_owned().leak()));
    let server = machine.serve("tcp://127.0.0.1:0", "cuda", "cuda:0");
    let mut client = remote(&server.uri, &tiny(OpenOptions::default()));
    let mut context = client.context(GREEDY).expect("a context");
    File::create(&hang).expect("there is room");
    // It is never answered, and tries to come back for as long as the test lasts.
    std::thread::spawn(move || client.prefill(&mut context, &[3, 14, 15]).map(drop));
    // The step is there, and hangs.
    machine.wait_until(|| hang.with_extension("seen").exists());
    server.signal("-TERM");
    machine.wait_until(|| machine.logged().contains("stopping: what runs comes to its end"));
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", machine.logged());
    assert!(machine.logged().contains("stopping at once"));
}

#[test]
fn kernels_are_compiled_once_the_gpus_are_open() {
    let machine = Machine::new(&[("GENIE_STAND_IN_GPUS", "2")]);
    let server = machine.serve("tcp://127.0.0.1:0", "cuda", "cuda:0, cuda:1");
    machine.wait_until(|| machine.logged().matches("all kernels are ready").count() >= 2);
    let mut session = blocking::Session::connect(&server.uri.parse().expect("an address"), ConnectOptions::default())
        .expect("a session");
    let counters = session.stats().expect("counters");
    for device in ["cuda:0", "cuda:1"] {
        let name = format!("genie_device_uncompiled_kernel_modules{{device=\"{device}\"}}");
        assert!(counters.iter().any(|(known, value)| *known == name && *value == 0), "{counters:?}");
    }
}

#[test]
fn the_toolkits_stub_is_told_from_the_driver() {
    let refusal = Machine::new(&[("GENIE_STAND_IN_STUB", "1")]).refusal("cuda");
    assert!(refusal.contains("STUB_LIBRARY") && refusal.contains("LD_LIBRARY_PATH"), "{refusal}");
}

#[test]
fn those_that_cuda_shows_are_served_and_those_that_fail_left_out() {
    let machine = Machine::new(&[
        ("GENIE_STAND_IN_GPUS", "4"),
        ("GENIE_STAND_IN_CAPABILITY", "90,90,90,70"),
        ("GENIE_STAND_IN_BROKEN", "2"),
        ("CUDA_VISIBLE_DEVICES", "3,2,1"),
    ]);
    let server = machine.serve("tcp://127.0.0.1:0", "cuda", "cuda:2");
    let devices = json(&good(&["devices", &server.uri, "--json"]));
    assert_eq!(devices[0]["name"], "cuda:2");
    assert!(devices[0]["uuid"].as_str().expect("a UUID").starts_with("GPU-015d"), "{devices}");
    assert!(devices[1].is_null(), "{devices}");
    let log = machine.logged();
    assert!(log.contains("cuda:0 is left out") && log.contains("7.5 is the oldest"), "{log}");
    assert!(log.contains("cuda:1 is left out") && log.contains("the GPU is not available"), "{log}");
    let refusal = machine.refusal("cuda:1");
    assert!(refusal.contains("cuda:1 cannot be used") && refusal.contains("not available"), "{refusal}");
    let refusal = machine.refusal("cuda:3");
    assert!(refusal.contains("CUDA shows 3"), "{refusal}");
}

#[test]
fn a_driver_that_is_too_old_or_shows_nothing_is_told() {
    let old = Machine::new(&[("GENIE_STAND_IN_VERSION", "12080")]).refusal("cuda");
    assert!(old.contains("too old: it has 12.8") && old.contains("branch 580"), "{old}");
    let hidden = Machine::new(&[("CUDA_VISIBLE_DEVICES", "-1")]);
    let none = hidden.refusal("cuda");
    assert!(none.contains("CUDA_VISIBLE_DEVICES"), "{none}");
    let _cpu = hidden.serve("tcp://127.0.0.1:0", "auto", "cpu:0");
    assert!(hidden.logged().contains("the CPU is taken"));
}

#[test]
fn a_gpu_that_is_full_says_so_and_goes_on() {
    let machine = Machine::new(&[("GENIE_STAND_IN_MEMORY", "167772160")]);
    let server = machine.serve("tcp://127.0.0.1:0", "cuda", "cuda:0");
    let folder = tempfile::tempdir().expect("there is room");
    let file = folder.path().join("large");
    File::create(&file).and_then(|file| file.set_len(48 << 20)).expect("there is room");
    let put = |name: &str| {
        let output = genie(&["put", &server.uri, name, file.to_str().expect("a name")])
            .stdout(Stdio::null())
            .output()
            .expect("the program starts");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!((0..2).all(|i| put(&format!("tensor {i}")).0));
    let (went_well, error) = put("one too many");
    assert!(!went_well && error.contains("bytes wanted"), "{error}");
    let mut client = remote(&server.uri, &tiny(OpenOptions::default()));
    assert_eq!(said(&mut client, |_| ()).len(), 18);
    machine.logged();
}

#[test]
fn bench_transfer_serves_the_gpu() {
    let machine = Machine::new(&[]);
    let call = ["bench", "transfer", "--serve", "--serve-device", "cuda", "--sizes", "3M", "--json"];
    let quick = ["--time", "0.05", "--warmup", "0.01", "--no-floor", "--op", "put,get"];
    // What a client shares is registered with the driver and read where it lies.
    for more in [["--links", "tcp", "--memory", "heap"], ["--links", "shm", "--memory", "shared"]] {
        let output = machine.run(&call).args(quick).args(more).output().expect("the program starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !error.contains("mistake:"), "{error}");
        let rows = json(&String::from_utf8_lossy(&output.stdout));
        let rows = rows.as_array().expect("rows");
        assert!(rows.len() == 2 && rows.iter().all(|row| row["copied_per_byte"] == 0.0), "{rows:?}");
    }
}
