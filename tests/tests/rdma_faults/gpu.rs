//! Tensors that the client's network card writes into a GPU's memory itself, and reads there. The GPU is this CPU, and its memory the
//! host's: soft-RoCE registers that by its address, as `nvidia-peermem` has it for real ones.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use genie_cuda_kernels::gpu::{HostExports, HostGpu, HostSettings};
use genie_executor::Config;
use genie_executor::device::cuda::CudaDevice;
use genie_graph::DType;
use genie_tests::log::Log;
use genie_tests::rdma::serve;
use genie_tests::serve::Live;
use genie_transport::client::{ConnectOptions, PutOptions, blocking};
use genie_transport::link::rdma::faults::{Faults, LaneFault, UNREGISTRABLE};
use genie_transport::memory::copied_bytes;
use genie_transport::wire::TensorSpec;

/// Not a whole number of words, nor of slices.
const BYTES: usize = (1 << 20) + 5;

struct Scene {
    server: Live,
    /// What is said once a process may be said in any of these tests.
    log: Log,
    gpu: HostGpu,
    faults: Arc<Faults>,
}

impl Scene {
    fn new(exports: HostExports) -> Self {
        let log = Log::of_this_process();
        let gpu = HostGpu::new(HostSettings { total_bytes: 64 << 20, seed: 1, ..HostSettings::default() });
        gpu.set_exports(exports);
        let device = CudaDevice::with_staging(0, Arc::new(gpu.clone()), None, 16 << 20).expect("a device");
        let faults = Arc::<Faults>::default();
        let server = serve(Config::new(vec![Arc::new(device)], 7), faults.clone());
        Self { server, log, gpu, faults }
    }

    fn is_told(&self, is: impl Fn(&String) -> bool) -> bool {
        self.log.lines().iter().any(|(_, line)| is(line))
    }

    fn connect(&self) -> blocking::Session {
        blocking::Session::connect(&self.server.uri, ConnectOptions::default()).expect("a session")
    }
}

fn noise(seed: u64) -> Bytes {
    (0..BYTES as u64).map(|i| ((i ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn spec() -> TensorSpec {
    TensorSpec::new(DType::U8, &[BYTES as u64]).expect("a shape")
}

fn counter(session: &mut blocking::Session, name: &str) -> u64 {
    let stats = session.stats().expect("stats");
    stats.iter().find(|(counter, _)| counter == name).map_or(0, |(_, n)| *n)
}

/// Slices that were written straight into the GPU's memory, those that were read there, and those that came through the host's.
fn slices(session: &mut blocking::Session) -> [u64; 3] {
    ["written_by_rdma", "read_by_rdma", "staged"]
        .map(|way| counter(session, &format!("genie_device_slices_{way}_total{{device=\"cuda:0\"}}")))
}

#[test]
fn a_put_goes_straight_into_the_gpus_memory_and_a_get_comes_straight_from_it() {
    for exports in [HostExports::Address, HostExports::Descriptor] {
        let scene = Scene::new(exports);
        let mut session = scene.connect();
        let (before, bytes) = (copied_bytes(), noise(1));
        let (to_gpu, settled) = (scene.gpu.copies_in(), scene.gpu.settled());
        let tensor = session.put(&spec(), bytes.clone(), PutOptions::default()).expect("a put");
        assert_eq!(scene.gpu.copies_in(), to_gpu, "nothing was copied to the GPU");
        assert!(scene.gpu.settled() > settled, "what the network card wrote is waited for");
        assert!(session.get(&tensor).expect("a get")[..] == bytes[..], "{exports:?}: other bytes came back");
        assert_eq!(copied_bytes() - before, 0);
        let [written, read, staged] = slices(&mut session);
        assert!(written > 0 && read == written && staged == 0, "{exports:?}: {written}, {read} straight, {staged} not");
        let is = |line: &String| line.contains("reaches GPU memory itself") && line.contains("no dmabuf: ");
        assert!(scene.is_told(is), "the way is not told: {:?}", scene.log.lines());
        // Another connection has a domain of its own, and its tensors lie beside these.
        let (mut other, others) = (scene.connect(), noise(2));
        let theirs = other.put(&spec(), others.clone(), PutOptions::default()).expect("a put");
        session.free(tensor.handle).expect("freed");
        drop(session);
        assert!(other.get(&theirs).expect("a get")[..] == others[..], "{exports:?}: other bytes came back");
    }
}

#[test]
fn where_the_network_card_does_not_reach_the_gpu_slabs_do_and_the_reason_is_told() {
    for (exports, why) in [(HostExports::None, "it was told to refuse"), (HostExports::Address, "it was told to fail")]
    {
        let scene = Scene::new(exports);
        UNREGISTRABLE.store(exports == HostExports::Address, Ordering::Release);
        let mut session = scene.connect();
        let bytes = noise(3);
        let tensor = session.put(&spec(), bytes.clone(), PutOptions::default()).expect("a put");
        assert!(session.get(&tensor).expect("a get")[..] == bytes[..], "{exports:?}: other bytes came back");
        UNREGISTRABLE.store(false, Ordering::Release);
        let [written, read, staged] = slices(&mut session);
        assert!(written == 0 && staged > 0, "{exports:?}: {written} straight, {staged} not");
        assert_eq!(read, 0, "{exports:?}");
        let is =
            |line: &String| line.contains(" WARN ") && line.contains("through slabs of the host") && line.contains(why);
        assert!(scene.is_told(is), "{why} is not told: {:?}", scene.log.lines());
    }
}

#[test]
fn what_was_offered_to_a_connection_that_cannot_read_it_comes_as_bytes() {
    let scene = Scene::new(HostExports::Address);
    let (mut first, bytes) = (scene.connect(), noise(6));
    let named = PutOptions { name: Some("shared"), ..PutOptions::default() };
    first.put(&spec(), bytes.clone(), named).expect("a put");
    let mut second = scene.connect();
    let tensor = second.lookup("shared").expect("it has a name");
    UNREGISTRABLE.store(true, Ordering::Release);
    let back = second.get(&tensor).expect("a get");
    UNREGISTRABLE.store(false, Ordering::Release);
    assert!(back[..] == bytes[..], "other bytes came back");
    let [written, read, _] = slices(&mut first);
    assert!(written > 0 && read > 0, "{written} written, {read} offered");
    let again = first.lookup("shared").expect("it has a name");
    assert!(first.get(&again).expect("a get")[..] == bytes[..], "other bytes came back");
}

#[test]
fn a_slice_with_a_wrong_checksum_is_not_taken() {
    let scene = Scene::new(HostExports::Address);
    let mut session = scene.connect();
    scene.faults.corrupt(3);
    let bytes = noise(4);
    let tensor = session.put(&spec(), bytes.clone(), PutOptions::default()).expect("a put");
    let flipped = scene.faults.flipped();
    assert!(flipped > 0);
    assert_eq!(counter(&mut session, "genie_slices_corrupted_total"), flipped);
    assert!(session.get(&tensor).expect("a get")[..] == bytes[..], "other bytes came back");
    assert!(scene.faults.flipped() > flipped, "a get has checksums, too");
    scene.faults.corrupt(0);
    let [written, _, staged] = slices(&mut session);
    assert!(written > 0 && staged == 0, "{written} straight, {staged} not");
}

#[test]
fn a_client_that_is_cut_off_in_the_middle_harms_nobody() {
    let scene = Scene::new(HostExports::Address);
    let (mut session, mut other) = (scene.connect(), scene.connect());
    let others = noise(5);
    let theirs = other.put(&spec(), others.clone(), PutOptions::default()).expect("a put");
    for round in 0..4 {
        let bytes = noise(10 + round);
        scene.faults.break_lane_after(BYTES as u64 / 3, LaneFault::Cut);
        let tensor = session.put(&spec(), bytes.clone(), PutOptions::default()).expect("a put");
        // The first is given back, and the next lies where it was: what was on its way must not come there.
        assert!(session.get(&tensor).expect("a get")[..] == bytes[..], "round {round}: other bytes came back");
        session.free(tensor.handle).expect("freed");
    }
    assert!(scene.faults.lane_faults() > 0);
    scene.faults.cut_after(BYTES as u64 / 2, u64::MAX);
    let bytes = noise(20);
    let tensor = session.put(&spec(), bytes.clone(), PutOptions::default()).expect("a put, after a reconnect");
    assert!(scene.faults.cuts() > 0);
    assert!(session.get(&tensor).expect("a get")[..] == bytes[..], "other bytes came back");
    assert!(other.get(&theirs).expect("a get")[..] == others[..], "another's tensor changed");
}
