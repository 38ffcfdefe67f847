//! A model on a GPU that fails in the middle of its work: the client builds again what was lost, and the text goes on the same.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use genie_cuda_kernels::gpu::{GpuError, HostGpu, HostSettings};
use genie_executor::Config;
use genie_executor::device::cuda::CudaDevice;
use genie_graph::{DType, RopeStyle};
use genie_models::remote::{RemoteModel, RemoteModelError, RemoteOptions, Sampling, StepsOptions};
use genie_models::{HashCache, LlamaConfig, Model, synthetic};
use genie_tests::serve::Live;
use genie_transport::client::{ClientError, ConnectOptions, blocking};
use genie_transport::wire::{ErrorCode, Finish};

const SAMPLING: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 5 };
const PROMPT: [i32; 5] = [3, 14, 15, 92, 65];

fn model() -> Arc<Model> {
    let config = LlamaConfig {
        vocab: 97,
        hidden: 32,
        layers: 1,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        intermediate: 64,
        max_positions: 512,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_style: RopeStyle::Half,
        inv_freq: None,
        tied: true,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
    };
    Arc::new(synthetic::random_llama(config, 3, DType::F32).unwrap())
}

fn server() -> (Live, HostGpu) {
    let gpu = HostGpu::new(HostSettings { total_bytes: 64 << 20, seed: 1, ..HostSettings::default() });
    let device = CudaDevice::new(0, Arc::new(gpu.clone()), None).unwrap();
    (Live::start(Config::new(vec![Arc::new(device)], 7)), gpu)
}

fn remote(live: &Live) -> Result<RemoteModel, RemoteModelError> {
    let session = blocking::Session::connect(&live.uri, ConnectOptions::default()).unwrap();
    let options = RemoteOptions { hashes: HashCache::none(), ..RemoteOptions::default() };
    RemoteModel::establish(session, model(), &options, |_| ())
}

fn fault() -> GpuError {
    GpuError::Fault { during: "a kernel", reason: "illegal address".to_owned() }
}

/// What is said after the prompt; `fails` sees how many tokens there are, before the next.
fn said(remote: &mut RemoteModel, fails: impl Fn(usize)) -> Vec<i32> {
    let mut context = remote.context(SAMPLING).unwrap();
    let mut tokens = Vec::new();
    remote
        .generate(&mut context, &PROMPT, 12, &[], |token| {
            tokens.push(token);
            fails(tokens.len());
            true
        })
        .unwrap();
    for _ in 0..6 {
        fails(tokens.len());
        tokens.push(remote.step(&mut context, tokens[tokens.len() - 1]).unwrap());
    }
    tokens
}

#[test]
fn what_a_failed_gpu_lost_is_built_again_and_the_text_goes_on_the_same() {
    let (live, gpu) = server();
    let mut remote = remote(&live).unwrap();
    let whole = said(&mut remote, |_| ());
    assert_eq!(remote.lives(), 1);
    let sent = remote.uploaded().sent;
    assert!(sent > 0);
    // In the middle of a generate, and before a step.
    for (times, at) in [(2, 4), (3, 15)] {
        let tokens = said(&mut remote, |n| {
            if n == at {
                gpu.fail(fault());
            }
        });
        assert_eq!(tokens, whole);
        assert_eq!(remote.lives(), times);
        assert_eq!(remote.uploaded().sent, sent, "all of it was lost");
    }
}

#[test]
fn steps_with_requests_ahead_go_on_after_a_gpu_failed_under_them() {
    let (live, gpu) = server();
    let mut remote = remote(&live).unwrap();
    let mut say = |fail_at: usize| {
        let mut context = remote.context(SAMPLING).unwrap();
        let first = remote.prefill(&mut context, &PROMPT).unwrap();
        let (mut tokens, options) = (vec![first], StepsOptions { max_new: 20, ahead: 3, ..StepsOptions::default() });
        let finish = remote.steps(&mut context, first, &options, |token| {
            tokens.push(token);
            if tokens.len() == fail_at {
                gpu.fail(fault());
            }
            true
        });
        assert_eq!((finish.unwrap(), context.len()), (Finish::Length, 25));
        tokens.push(remote.step(&mut context, tokens[tokens.len() - 1]).unwrap());
        (tokens, remote.lives())
    };
    let (whole, lives) = say(0);
    assert_eq!((whole.len(), lives), (22, 1));
    for (fail_at, lives) in [(2, 2), (12, 3)] {
        assert_eq!(say(fail_at), (whole.clone(), lives));
    }
}

#[test]
fn a_gpu_that_takes_a_while_to_come_back_is_waited_for() {
    let (live, gpu) = server();
    let mut one = remote(&live).unwrap();
    let whole = said(&mut one, |_| ());
    gpu.fail_revivals(1);
    let tokens = said(&mut one, |n| {
        if n == 14 {
            gpu.fail(fault());
        }
    });
    assert_eq!((tokens, one.lives()), (whole, 2));
}

#[test]
fn who_comes_while_the_gpu_is_out_is_told_so() {
    let (live, gpu) = server();
    let mut one = remote(&live).unwrap();
    gpu.fail_revivals(u32::MAX);
    gpu.fail(fault());
    let session = one.session();
    let spec = genie_transport::wire::TensorSpec::new(DType::U8, &[9]).unwrap();
    session.put(&spec, vec![1; 9].into(), Default::default()).unwrap_err();
    let told = || match remote(&live).map(|_| ()) {
        Err(RemoteModelError::Client(ClientError::Remote(error))) => error,
        other => panic!("{other:?}"),
    };
    let (mut error, deadline) = (told(), Instant::now() + Duration::from_secs(60));
    while error.message.contains("is being brought back") && Instant::now() < deadline {
        // The first try has not ended yet.
        thread::sleep(Duration::from_millis(10));
        error = told();
    }
    assert_eq!(error.code, ErrorCode::DeviceFailed);
    assert!(error.message.contains("could not be brought back"), "{}", error.message);
}
