//! A request on the small path allocates nothing, neither at the client nor at the server: an echo of 64 bytes and a decode step,
//! over TCP and over shared memory, whether the two ends poll or sleep.
//!
//! Both ends are in this process, and every thread's allocations are counted. What is asked for is a run of requests without a
//! single one: a server has chores now and then (a tick, a lane that falls asleep and is watched again), but what a request
//! allocates shows in every run.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use genie_graph::{DType, RopeStyle};
use genie_models::remote::{RemoteModel, RemoteOptions, Sampling};
use genie_models::{HashCache, LlamaConfig, synthetic};
use genie_tests::graphs::{Tiny, VOCABULARY, WIDTH, tiny};
use genie_tests::serve::{Live, config};
use genie_transport::client::{BindInputs, ConnectOptions, Input, PutOptions, RunOptions, blocking};
use genie_transport::wire::TensorSpec;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time: the counter is everybody's.
static ALONE: Mutex<()> = Mutex::new(());

/// Requests in a run.
const RUN: usize = 10;
/// Runs to find one among in which nothing is allocated: on a busy machine, lanes fall asleep between requests.
const RUNS: usize = 5000;

/// The fewest allocations in any run of [`RUN`] requests.
fn fewest(mut request: impl FnMut()) -> u64 {
    // Buffers grow, windows fill.
    (0..2000).for_each(|_| request());
    let mut fewest = u64::MAX;
    for _ in 0..RUNS {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (0..RUN).for_each(|_| request());
        fewest = fewest.min(ALLOCATIONS.load(Ordering::Relaxed) - before);
        if fewest == 0 {
            break;
        }
    }
    fewest
}

const TCP: &str = "tcp://127.0.0.1:0";

fn shm() -> String {
    static LISTENERS: AtomicU64 = AtomicU64::new(0);
    let name = format!("genie-allocations-{}-{}.sock", std::process::id(), LISTENERS.fetch_add(1, Ordering::Relaxed));
    format!("shm://{}", std::env::temp_dir().join(name).display())
}

fn connected(uri: &str, spin: Option<Duration>) -> (Live, blocking::Session) {
    let mut config = config(1);
    let mut options = ConnectOptions::default();
    if let Some(spin) = spin {
        config.settings.spin = spin;
        options.spin = spin;
    }
    let server = Live::start_at(config, &uri.parse().unwrap());
    let session = blocking::Session::connect(&server.uri, options).unwrap();
    (server, session)
}

fn echoes(uri: &str, spin: Option<Duration>) -> u64 {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (_server, mut session) = connected(uri, spin);
    let (payload, mut back) = ([7; 64], Vec::with_capacity(64));
    fewest(|| session.echo(&payload, &mut back).unwrap())
}

/// Steps that bring their token along; `named`: they name the residents that their sampling is, too.
fn steps(uri: &str, spin: Option<Duration>, named: bool) -> u64 {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (_server, mut session) = connected(uri, spin);
    let tiny = tiny().unwrap();
    let spec = TensorSpec::new(DType::F32, &[VOCABULARY, WIDTH]).unwrap();
    let table = session.put(&spec, Tiny::table_bytes().into(), PutOptions::default()).unwrap();
    let program = session.define(0, &tiny.graph.encode()).unwrap();
    // Blocks of the cache are made ahead: a step takes one from there.
    let cache = session.create_cache(&program, tiny.cache, 16_384).unwrap();
    let real: Vec<u8> = [0_f32, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let fixed = vec![
        Input { index: tiny.real, dtype: DType::F32, dims: &[1, 2], data: &real },
        Input { index: tiny.int, dtype: DType::I64, dims: &[1, 2], data: &[0; 16] },
    ];
    let residents = vec![(tiny.table, table.handle), (tiny.cache, cache.0)];
    let mut put = |input: &Input<'_>| {
        let spec = TensorSpec::new(input.dtype, input.dims).unwrap();
        (input.index, session.put(&spec, Bytes::copy_from_slice(input.data), PutOptions::default()).unwrap())
    };
    let tensors: Vec<_> = if named { fixed.iter().map(&mut put).collect() } else { Vec::new() };
    let given: Vec<_> = tensors.iter().map(|(index, tensor)| (*index, tensor)).collect();
    let fixed = if named { Vec::new() } else { fixed };
    let binding = session.bind(&program, &BindInputs { weights: Vec::new(), residents, fixed }).unwrap();
    let mut token = 3;
    fewest(|| {
        let data = i32::to_le_bytes(token);
        let input = Input { index: tiny.tokens, dtype: DType::I32, dims: &[1, 1], data: &data };
        let step = session.start_run_with(binding, &[input], &given, RunOptions::default()).unwrap();
        token = session.finish_step(step).unwrap();
    })
}

/// Steps of a Llama of two layers. Its context grows, and with it now and then a list at the client and a cache at the server:
/// of the runs between, not one may allocate.
fn llama_steps(uri: &str, spin: Option<Duration>) -> u64 {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (_server, session) = connected(uri, spin);
    let config = LlamaConfig {
        vocab: 97,
        hidden: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        intermediate: 64,
        max_positions: 65_536,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_style: RopeStyle::Half,
        inv_freq: None,
        tied: true,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
    };
    let model = Arc::new(synthetic::random_llama(config, 3, DType::F32).unwrap());
    let options = RemoteOptions { hashes: HashCache::none(), ..RemoteOptions::default() };
    let mut remote = RemoteModel::establish(session, model, &options, |_| {}).unwrap();
    let mut context = remote.context(Sampling::default()).unwrap();
    let mut token = remote.prefill(&mut context, &[1, 2, 3]).unwrap();
    fewest(|| token = remote.step(&mut context, token).unwrap())
}

#[test]
fn a_step_of_a_llama_allocates_nothing() {
    assert_eq!(llama_steps(TCP, None), 0);
}

#[test]
fn a_step_of_a_llama_allocates_nothing_where_nobody_polls() {
    assert_eq!(llama_steps(TCP, Some(Duration::ZERO)), 0);
}

#[test]
fn an_echo_allocates_nothing() {
    assert_eq!(echoes(TCP, None), 0);
}

#[test]
fn an_echo_allocates_nothing_where_nobody_polls() {
    assert_eq!(echoes(TCP, Some(Duration::ZERO)), 0);
}

#[test]
fn a_decode_step_allocates_nothing() {
    assert_eq!(steps(TCP, None, false), 0);
}

#[test]
fn a_step_that_names_residents_allocates_nothing() {
    assert_eq!(steps(TCP, None, true), 0);
}

#[test]
fn a_decode_step_allocates_nothing_where_nobody_polls() {
    assert_eq!(steps(TCP, Some(Duration::ZERO), false), 0);
}

#[test]
fn nothing_is_allocated_over_shared_memory() {
    assert_eq!(echoes(&shm(), None), 0);
    assert_eq!(steps(&shm(), None, true), 0);
}

#[test]
fn nothing_is_allocated_over_shared_memory_where_nobody_polls() {
    assert_eq!(echoes(&shm(), Some(Duration::ZERO)), 0);
    assert_eq!(steps(&shm(), Some(Duration::ZERO), false), 0);
}
