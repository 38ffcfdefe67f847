//! Models on the CPU device against what the transformers library computes (`tools/golden/make_golden.py`): every golden logit
//! within 1e-3 of the larger of 1 and its size, and 64 greedy tokens, the same one by one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::{Device, HostTensor, KvCache, KvSpec, Loaded, Memory, Row};
use genie_graph::{DType, InputRole, Phase};
use genie_models::{Gpt2Config, GraphOptions, LlamaConfig, Model, OpenOptions, smollm2_path, synthetic};
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
    device: CpuDevice,
    weights: Vec<Memory>,
    all_logits: Arc<dyn Loaded>,
    next_token: Arc<dyn Loaded>,
    cache: KvSpec,
    vocab: usize,
}

impl Runner {
    fn new(model: &Model) -> Self {
        let device = CpuDevice::new(0, 2, 8 << 30).unwrap();
        let options = GraphOptions::new(Phase::Prefill);
        let graph = model.graph(options).unwrap();
        let cache = graph.inputs().iter().find(|i| i.role == InputRole::KvCache).unwrap();
        let cache = KvSpec::of(&cache.ty).unwrap();
        let all = model.graph(GraphOptions { all_logits: true, ..options }).unwrap();
        Self {
            weights: model.weights().iter().map(|w| w.bytes().into()).collect(),
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
        let mut rows = [Row { arguments: &arguments, caches: vec![cache], outputs: &mut outputs, wanted: 0b11 }];
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
    let runner = Runner::new(model);
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

fn smollm2(dtype: Option<DType>) -> Model {
    let path = smollm2_path();
    assert!(path.is_file(), "{} is missing: run tools/fetch-smollm2", path.display());
    Model::open(path, OpenOptions { dtype }).unwrap()
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
    assert_golden("smollm2", &smollm2(None));
}

#[test]
fn smollm2_agrees_in_every_last_logit() {
    let runner = Runner::new(&smollm2(None));
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
        let model = smollm2(Some(dtype));
        let tokenizer = model.tokenizer().unwrap();
        let prompt: Vec<i32> =
            tokenizer.encode("The capital of France is").unwrap().iter().map(|&id| id as i32).collect();
        let tokens: Vec<u32> = Runner::new(&model).greedy(&prompt, 3).iter().map(|&id| id as u32).collect();
        assert!(tokenizer.decode(&tokens).unwrap().starts_with(" Paris."), "{dtype}");
    }
}

#[test]
fn gpt2_tiny_agrees() {
    let config = Gpt2Config { vocab: 96, max_positions: 160, ..Gpt2Config::of(2, 4, 32) };
    assert_golden("gpt2-tiny", &synthetic::random_gpt2(config, 1, DType::F32).unwrap());
    assert_golden("gpt2-tiny", &Model::open(golden_path("tiny-gpt2"), OpenOptions::default()).unwrap());
}

#[test]
fn gpt2_124m_agrees() {
    assert_golden("gpt2-124m", &synthetic::random_gpt2(Gpt2Config::small(), 2, DType::F32).unwrap());
}

#[test]
fn llama_with_stretched_positions_and_biases_agrees() {
    assert_golden("llama-tiny", &Model::open(golden_path("tiny-llama"), OpenOptions::default()).unwrap());
    assert_golden("llama-tiny", &synthetic::random_llama(tiny_llama(), 3, DType::F32).unwrap());
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
    assert_golden("qwen2-tiny", &synthetic::random_llama(config, 4, DType::F32).unwrap());
}
