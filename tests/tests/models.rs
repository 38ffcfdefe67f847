//! Models on the devices against what the transformers library computes (`tools/golden/make_golden.py`): every golden logit
//! within 1e-3 of the larger of 1 and its size, and 64 greedy tokens, the same one by one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use genie_cuda_kernels::gpu::{HostGpu, HostSettings};
use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::cuda::CudaDevice;
use genie_executor::device::{Device, HostTensor, KvCache, KvSpec, Loaded, Memory, Row};
use genie_graph::{DType, InputRole, Phase};
use genie_models::{
    Gpt2Config, GptJConfig, GraphOptions, LlamaConfig, Model, OpenOptions, Weight, smollm2_path, synthetic,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: Vec<i32>,
    positions: Vec<Position>,
    greedy: Vec<i32>,
}

#[derive(Deserialize)]
struct Position {
    position: usize,
    indices: Vec<usize>,
    logits: Vec<f32>,
}

fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn golden(name: &str) -> Vec<Case> {
    let text = std::fs::read(golden_path(&format!("{name}.json"))).unwrap();
    serde_json::from_slice::<Golden>(&text).unwrap().cases
}

/// A model on a device, in two programs: logits of all positions, and the next token.
struct Runner {
    device: Arc<dyn Device>,
    weights: Vec<Memory>,
    all_logits: Arc<dyn Loaded>,
    next_token: Arc<dyn Loaded>,
    cache: KvSpec,
    vocab: usize,
}

impl Runner {
    fn new(device: Arc<dyn Device>, model: &Model) -> Self {
        let options = GraphOptions::new(Phase::Prefill);
        let graph = model.graph(options).unwrap();
        let cache = graph.inputs().iter().find(|i| i.role == InputRole::KvCache).unwrap();
        let cache = KvSpec::of(&cache.ty).unwrap();
        let all = model.graph(GraphOptions { all_logits: true, ..options }).unwrap();
        Self {
            weights: model.weights().iter().map(|w| place(&*device, w)).collect(),
            all_logits: device.load(Arc::new(all)).unwrap(),
            next_token: device.load(Arc::new(graph)).unwrap(),
            device,
            cache,
            vocab: usize::try_from(model.config().vocab()).unwrap(),
        }
    }

    fn cache(&self) -> KvCache {
        self.device.cache(self.cache).unwrap()
    }

    /// Outputs (token, logits) of a greedy step over these tokens.
    fn step(&self, program: &dyn Loaded, cache: &mut KvCache, tokens: &[i32]) -> (i32, Vec<f32>) {
        let arguments = [
            tensor(DType::I32, &[1, tokens.len() as u64], bytemuck::cast_slice(tokens)),
            tensor(DType::F32, &[1, 2], bytemuck::cast_slice(&[0f32, 1.0])),
            tensor(DType::I64, &[1, 2], bytemuck::cast_slice(&[0i64, 0])),
        ];
        let mut outputs = Vec::new();
        let mut rows = [Row { caches: vec![cache], ..Row::new(&arguments, &mut outputs, 0b11) }];
        program.run(&self.weights, &mut rows).unwrap();
        let token = bytemuck::pod_read_unaligned(&outputs[0].data);
        (token, floats(&outputs[1].data))
    }

    /// Logits of every position.
    fn logits(&self, tokens: &[i32]) -> Vec<Vec<f32>> {
        let (_, flat) = self.step(&*self.all_logits, &mut self.cache(), tokens);
        assert_eq!(flat.len(), tokens.len() * self.vocab);
        flat.chunks(self.vocab).map(<[f32]>::to_vec).collect()
    }

    fn greedy(&self, prompt: &[i32], count: usize) -> Vec<i32> {
        let mut cache = self.cache();
        let mut tokens = vec![self.step(&*self.next_token, &mut cache, prompt).0];
        while tokens.len() < count {
            tokens.push(self.step(&*self.next_token, &mut cache, &tokens[tokens.len() - 1..]).0);
        }
        tokens
    }
}

fn cpu() -> Arc<dyn Device> {
    Arc::new(CpuDevice::new(0, 2, 8 << 30).unwrap())
}

/// The CUDA device, its kernels on the CPU.
fn stand_in() -> Arc<dyn Device> {
    let gpu = HostGpu::new(HostSettings { total_bytes: 1 << 30, seed: 1, ..HostSettings::default() });
    Arc::new(CudaDevice::new(0, Arc::new(gpu), None).unwrap())
}

fn place(device: &dyn Device, weight: &Weight) -> Memory {
    let bytes = weight.bytes();
    if device.reads_host_memory() {
        return bytes.into();
    }
    let mut space = device.allocate(weight.len_bytes()).unwrap();
    space.write(0, &bytes).unwrap();
    space.freeze()
}

fn tensor(dtype: DType, dims: &[u64], data: &[u8]) -> HostTensor {
    HostTensor { dtype: Some(dtype), dims: dims.to_vec(), data: data.to_vec() }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn assert_close(found: f32, expected: f32, what: impl FnOnce() -> String) {
    let bound = 1e-3 * expected.abs().max(1.0);
    assert!((found - expected).abs() <= bound, "{}: {found}, but transformers has {expected}", what());
}

fn assert_golden(name: &str, model: &Model) {
    assert_golden_on(cpu(), name, model);
}

/// Small ones only: the stand-in takes a thousand times as long as a GPU.
fn assert_golden_everywhere(name: &str, model: &Model) {
    assert_golden_on(cpu(), name, model);
    assert_golden_on(stand_in(), name, model);
}

fn assert_golden_on(device: Arc<dyn Device>, name: &str, model: &Model) {
    let runner = Runner::new(device, model);
    for (number, case) in golden(name).iter().enumerate() {
        let logits = runner.logits(&case.prompt);
        for p in &case.positions {
            for (&index, &expected) in p.indices.iter().zip(&p.logits) {
                assert_close(logits[p.position][index], expected, || {
                    format!("{name}, case {number}, position {}, logit {index}", p.position)
                });
            }
        }
        assert_eq!(runner.greedy(&case.prompt, case.greedy.len()), case.greedy, "{name}, case {number}");
    }
}

fn smollm2(options: OpenOptions) -> Model {
    let path = smollm2_path();
    assert!(path.is_file(), "{} is missing: run tools/fetch-smollm2", path.display());
    Model::open(path, options).unwrap()
}

/// The configurations of `random_models` in make_golden.py.
fn tiny_llama() -> LlamaConfig {
    let model = Model::open(golden_path("tiny-llama"), OpenOptions::default()).unwrap();
    match model.config() {
        genie_models::Config::Llama(config) => config.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn smollm2_agrees() {
    assert_golden("smollm2", &smollm2(OpenOptions::default()));
}

/// The same bits as when they are made floats before they are sent, so the same goldens.
#[test]
fn smollm2_in_its_own_blocks_agrees() {
    let model = smollm2(OpenOptions { blocks: true, ..OpenOptions::default() });
    assert!(model.weights().iter().filter(|w| w.format().is_some()).count() >= 7 * 30);
    assert_golden("smollm2", &model);
}

#[test]
fn smollm2_agrees_in_every_last_logit() {
    let runner = Runner::new(cpu(), &smollm2(OpenOptions::default()));
    let bytes = std::fs::read(golden_path("smollm2_last.f32")).unwrap();
    let expected = floats(&bytes);
    let logits = runner.logits(&golden("smollm2")[0].prompt);
    let last = logits.last().unwrap();
    assert_eq!(last.len(), expected.len());
    for (i, (&found, &expected)) in last.iter().zip(&expected).enumerate() {
        assert_close(found, expected, || format!("logit {i}"));
    }
}

#[test]
fn smollm2_in_16_bits_still_answers() {
    for dtype in [DType::BF16, DType::F16] {
        let model = smollm2(OpenOptions { dtype: Some(dtype), ..OpenOptions::default() });
        let tokenizer = model.tokenizer().unwrap();
        let prompt: Vec<i32> =
            tokenizer.encode("The capital of France is").unwrap().iter().map(|&id| id as i32).collect();
        let tokens: Vec<u32> = Runner::new(cpu(), &model).greedy(&prompt, 3).iter().map(|&id| id as u32).collect();
        assert!(tokenizer.decode(&tokens).unwrap().starts_with(" Paris."), "{dtype}");
    }
}

#[test]
fn gpt2_tiny_agrees() {
    let config = Gpt2Config { vocab: 96, max_positions: 160, ..Gpt2Config::of(2, 4, 32) };
    assert_golden_everywhere("gpt2-tiny", &synthetic::random_gpt2(config, 1, DType::F32).unwrap());
    assert_golden("gpt2-tiny", &Model::open(golden_path("tiny-gpt2"), OpenOptions::default()).unwrap());
}

#[test]
fn gpt2_124m_agrees() {
    assert_golden("gpt2-124m", &synthetic::random_gpt2(Gpt2Config::small(), 2, DType::F32).unwrap());
}

#[test]
fn gptj_agrees() {
    let config = GptJConfig {
        vocab: 96,
        max_positions: 160,
        hidden: 32,
        layers: 2,
        heads: 2,
        intermediate: 128,
        rotary_dim: 8,
        eps: 1e-5,
        tied: false,
    };
    assert_golden_everywhere("gptj-tiny", &synthetic::random_gptj(config, 5, DType::F32).unwrap());
    assert_golden("gptj-tiny", &Model::open(golden_path("tiny-gptj"), OpenOptions::default()).unwrap());
}

#[test]
fn llama_with_stretched_positions_and_biases_agrees() {
    assert_golden("llama-tiny", &Model::open(golden_path("tiny-llama"), OpenOptions::default()).unwrap());
    assert_golden_everywhere("llama-tiny", &synthetic::random_llama(tiny_llama(), 3, DType::F32).unwrap());
}

#[test]
fn qwen2_agrees() {
    let config = LlamaConfig {
        head_dim: 8,
        rope_theta: 1e6,
        inv_freq: None,
        tied: true,
        qkv_bias: true,
        output_bias: false,
        mlp_bias: false,
        ..tiny_llama()
    };
    assert_golden_everywhere("qwen2-tiny", &synthetic::random_llama(config, 4, DType::F32).unwrap());
}
