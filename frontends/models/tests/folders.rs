//! Models in safetensors files, as the transformers library writes them (`tools/golden/make_golden.py`), and synthetic ones.

use std::fs;
use std::path::{Path, PathBuf};

use genie_graph::{DType, InputRole, LinearLayout, NodeId, Op, Phase, RopeStyle, VerifiedGraph};
use genie_models::{
    Config, Gpt2Config, GptJConfig, GraphOptions, HashCache, LlamaConfig, Model, ModelError, OpenOptions, outputs,
    synthetic,
};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn open(path: impl AsRef<Path>) -> Result<Model, ModelError> {
    Model::open(path, OpenOptions::default())
}

fn tiny_gpt2() -> Gpt2Config {
    Gpt2Config { vocab: 96, max_positions: 160, ..Gpt2Config::of(2, 4, 32) }
}

fn tiny_gptj() -> GptJConfig {
    GptJConfig {
        vocab: 96,
        max_positions: 160,
        hidden: 32,
        layers: 2,
        heads: 2,
        intermediate: 128,
        rotary_dim: 8,
        ..GptJConfig::six_b()
    }
}

/// The folder's weights are the synthetic ones, bit for bit: reading, naming and the formula are all right, or none is.
fn assert_same_weights(stored: &Model, made: &Model) {
    assert_eq!(stored.weights().len(), made.weights().len());
    for (s, m) in stored.weights().iter().zip(made.weights()) {
        assert_eq!((s.name(), s.ty()), (m.name(), m.ty()));
        assert!(*s.bytes() == *m.bytes(), "{}", s.name());
    }
}

#[test]
fn a_single_file_is_read() {
    let made = synthetic::random_gpt2(tiny_gpt2(), 1, DType::F32).unwrap();
    let folder = open(golden("tiny-gpt2")).unwrap();
    assert_eq!(folder.config(), &Config::Gpt2(tiny_gpt2()));
    assert_same_weights(&folder, &made);
    assert_same_weights(&open(golden("tiny-gpt2/model.safetensors")).unwrap(), &made);
    assert!(matches!(folder.tokenizer(), Err(ModelError::Tokenizer(_))));
}

#[test]
fn gptj_is_read() {
    let folder = open(golden("tiny-gptj")).unwrap();
    assert_eq!(folder.config(), &Config::GptJ(tiny_gptj()));
    assert_same_weights(&folder, &synthetic::random_gptj(tiny_gptj(), 5, DType::F32).unwrap());
    let frequencies = folder.weights()[1].bytes();
    let turned: Vec<f32> = frequencies.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    assert_eq!(turned, [1.0, 0.1, 0.01, 0.001, 0.0, 0.0, 0.0, 0.0], "four pairs of eight are rotated");
}

#[test]
fn shards_are_read_and_llama_3_frequencies_computed() {
    let folder = open(golden("tiny-llama")).unwrap();
    let Config::Llama(config) = folder.config().clone() else { panic!() };
    assert_eq!(
        (config.rope_style, config.tied, config.qkv_bias, config.mlp_bias),
        (RopeStyle::Half, false, true, true)
    );
    let frequencies = config.inv_freq.clone().unwrap();
    // Base 500, heads of 12: transformers' own values for these settings.
    assert_eq!(frequencies.len(), 6);
    assert_eq!(frequencies[0], 1.0);
    assert!((frequencies[5] - 500f32.powf(-10.0 / 12.0) / 4.0).abs() < 1e-8);
    assert_same_weights(&folder, &synthetic::random_llama(config, 3, DType::F32).unwrap());
}

#[test]
fn views_copy_nothing_and_conversions_are_rounded() {
    let plain = open(golden("tiny-gpt2")).unwrap();
    let first = &plain.weights()[0];
    assert_eq!(first.bytes().as_ptr(), first.bytes().as_ptr(), "the same place in the mapped file");
    let narrow =
        Model::open(golden("tiny-gpt2"), OpenOptions { dtype: Some(DType::F16), ..OpenOptions::default() }).unwrap();
    assert_eq!(narrow.weights()[0].dtype(), DType::F16);
    let wide: Vec<f32> = first.bytes().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let halves = narrow.weights()[0].bytes();
    for (w, h) in wide.iter().zip(halves.chunks_exact(2)) {
        assert_eq!(half::f16::from_f32(*w), half::f16::from_le_bytes(h.try_into().unwrap()));
    }
    let integer = Model::open(golden("tiny-gpt2"), OpenOptions { dtype: Some(DType::I32), ..OpenOptions::default() });
    assert!(matches!(integer, Err(ModelError::TargetType(DType::I32))));
}

/// A copy of a golden folder that a test may damage.
fn copied(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

#[test]
fn damaged_files_are_refused() {
    let folder = copied("tiny-gpt2");
    let file = folder.path().join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    for len in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..len]).unwrap();
        assert!(matches!(open(folder.path()), Err(ModelError::Safetensors { .. })), "{len} bytes");
    }
    let mut long_header = whole;
    long_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&file, long_header).unwrap();
    assert!(matches!(open(folder.path()), Err(ModelError::Safetensors { .. })));
}

#[test]
fn an_index_names_only_its_neighbours() {
    let folder = copied("tiny-llama");
    let index = folder.path().join("model.safetensors.index.json");
    for odd in ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "config.json", ""] {
        fs::write(&index, format!(r#"{{"weight_map": {{"w": "{odd}"}}}}"#)).unwrap();
        assert!(matches!(open(folder.path()), Err(ModelError::Safetensors { .. })), "{odd:?}");
    }
    fs::write(&index, r#"{"weight_map": {"w": "absent.safetensors"}}"#).unwrap();
    assert!(matches!(open(folder.path()), Err(ModelError::Io { .. })));
}

#[test]
fn tensors_must_be_there_in_shape_and_type() {
    let folder = copied("tiny-gpt2");
    let file = folder.path().join("model.safetensors");
    let write = |dtype, shape: &[usize], bytes: usize| {
        let data = vec![0; bytes];
        let view = TensorView::new(dtype, shape.to_vec(), &data).unwrap();
        serialize_to_file([("transformer.wte.weight", view)], None, &file).unwrap();
        open(folder.path()).unwrap_err()
    };
    assert!(matches!(write(Dtype::F32, &[96, 32], 96 * 32 * 4), ModelError::MissingTensor(n) if n == "wpe.weight"));
    let error = write(Dtype::F32, &[32, 96], 96 * 32 * 4);
    assert!(
        matches!(error, ModelError::TensorShape { expected, found, .. } if expected == [96, 32] && found == [32, 96])
    );
    let error = write(Dtype::F64, &[96, 32], 96 * 32 * 8).to_string();
    assert!(error.contains("F64") && error.contains("transformer.wte.weight"), "{error}");
}

#[test]
fn what_is_no_model_is_said() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(open(folder.path()), Err(ModelError::NotAModel(_))));
    assert!(matches!(open(folder.path().join("absent.gguf")), Err(ModelError::Io { .. })));
    for (name, pickle) in [("model.pt", true), ("pytorch_model.bin", true), ("notes.txt", false)] {
        let path = folder.path().join(name);
        fs::write(&path, "x").unwrap();
        match open(&path) {
            Err(ModelError::Pickle(_)) => assert!(pickle),
            Err(ModelError::NotAModel(_)) => assert!(!pickle),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(open(folder.path()), Err(ModelError::Pickle(_))), "a folder with pickled weights only");
    fs::write(folder.path().join("alone.safetensors"), "x").unwrap();
    assert!(matches!(open(folder.path().join("alone.safetensors")), Err(ModelError::NotAModel(_))), "no config.json");
}

#[test]
fn configurations_are_checked() {
    let folder = copied("tiny-llama");
    let path = folder.path().join("config.json");
    let original = fs::read_to_string(&path).unwrap();
    let with = |key: &str, value: &str| {
        let mut json: serde_json::Value = serde_json::from_str(&original).unwrap();
        json[key] = serde_json::from_str(value).unwrap();
        fs::write(&path, json.to_string()).unwrap();
        open(folder.path()).unwrap_err()
    };
    for (key, value) in [
        ("num_attention_heads", "3"),
        ("num_attention_heads", "0"),
        ("num_hidden_layers", "0"),
        ("num_hidden_layers", "4000000000"),
        ("vocab_size", "18446744073709551615"),
        ("head_dim", "7"),
        ("rms_norm_eps", "-1"),
        ("hidden_act", "\"relu\""),
        ("hidden_size", "\"32\""),
        ("rope_parameters", r#"{"rope_type": "yarn", "factor": 2.0}"#),
        ("rope_parameters", r#"{"rope_type": "llama3"}"#),
        ("rope_parameters", r#"{"rope_type": "linear", "factor": 0.0}"#),
        ("rope_parameters", r#"{"rope_type": "linear", "factor": -2.0}"#),
        ("quantization_config", r#"{"quant_method": "gptq", "bits": 4}"#),
    ] {
        assert!(matches!(with(key, value), ModelError::Config(_)), "{key} = {value}");
    }
    assert!(matches!(with("model_type", "\"mamba\""), ModelError::Architecture(n) if n == "mamba"));
    assert!(matches!(with("hidden_size", "64"), ModelError::TensorShape { .. }));
}

/// Inputs for weights, in order, must be the model's weights.
fn assert_weights_fit(model: &Model, graph: &VerifiedGraph) {
    let inputs: Vec<_> = graph
        .inputs()
        .iter()
        .filter(|i| i.role == InputRole::Weight)
        .map(|i| (i.name.as_str(), i.ty.clone()))
        .collect();
    let weights: Vec<_> = model.weights().iter().map(|w| (w.name(), w.ty())).collect();
    assert_eq!(inputs, weights);
}

fn tiny_llama() -> LlamaConfig {
    LlamaConfig {
        vocab: 96,
        hidden: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 12,
        intermediate: 48,
        max_positions: 64,
        rms_eps: 1e-5,
        rope_theta: 1e4,
        rope_style: RopeStyle::Half,
        inv_freq: None,
        tied: true,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
    }
}

#[test]
fn graphs_of_every_family_verify() {
    let llama = tiny_llama();
    let biased = LlamaConfig {
        tied: false,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        inv_freq: Some(vec![0.5; 6]),
        ..llama
    };
    let gguf_gpt2 = Gpt2Config { layout: LinearLayout::OutIn, tied: false, ..tiny_gpt2() };
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for model in [
            synthetic::random_llama(llama.clone(), 1, dtype).unwrap(),
            synthetic::random_llama(biased.clone(), 1, dtype).unwrap(),
            synthetic::random_gpt2(tiny_gpt2(), 1, dtype).unwrap(),
            synthetic::random_gpt2(gguf_gpt2.clone(), 1, dtype).unwrap(),
            synthetic::random_gptj(tiny_gptj(), 1, dtype).unwrap(),
            synthetic::random_gptj(GptJConfig { tied: true, rotary_dim: 16, ..tiny_gptj() }, 1, dtype).unwrap(),
        ] {
            for (phase, all_logits) in [(Phase::Prefill, false), (Phase::Decode, false), (Phase::Prefill, true)] {
                let graph =
                    model.graph(GraphOptions { phase, all_logits, kv_dtype: dtype, activations: dtype }).unwrap();
                assert_weights_fit(&model, &graph);
                assert_eq!(graph.phase(), phase);
                let names: Vec<_> = graph.outputs.iter().map(|o| o.name.as_str()).collect();
                assert_eq!(names, [outputs::TOKEN, outputs::LOGITS]);
            }
        }
    }
}

/// Products and attention have the activations' type; what the layers add to, the norms and the logits are f32. But for conversions it is
/// the graph that f32 has.
#[test]
fn activations_of_16_bits_lie_between_f32() {
    let llama = LlamaConfig { qkv_bias: true, ..tiny_llama() };
    for activations in [DType::F16, DType::BF16] {
        for model in [
            synthetic::random_llama(llama.clone(), 1, activations).unwrap(),
            synthetic::random_gpt2(tiny_gpt2(), 1, activations).unwrap(),
            synthetic::random_gptj(tiny_gptj(), 1, activations).unwrap(),
        ] {
            for all_logits in [false, true] {
                let plain = GraphOptions { all_logits, kv_dtype: activations, ..GraphOptions::new(Phase::Decode) };
                let narrow = model.graph(GraphOptions { activations, ..plain }).unwrap();
                assert_weights_fit(&model, &narrow);
                let of = |id: NodeId| &narrow.nodes[id.0 as usize];
                for node in &narrow.nodes {
                    match node.op {
                        Op::Linear { .. } | Op::Attention { .. } => assert_eq!(node.ty.dtype, activations),
                        Op::Add | Op::RmsNorm { .. } | Op::LayerNorm { .. } | Op::Embedding { .. } => {
                            assert_eq!(node.ty.dtype, DType::F32);
                        }
                        Op::Sample => assert_eq!(of(node.inputs[0]).ty.dtype, DType::F32),
                        _ => {}
                    }
                }
                let logits = narrow.outputs.iter().find(|o| o.name == outputs::LOGITS).unwrap();
                assert_eq!(of(logits.node).ty.dtype, DType::F32);
                let plain = model.graph(plain).unwrap();
                let ops = |graph: &VerifiedGraph| -> Vec<Op> {
                    graph.nodes.iter().map(|n| n.op.clone()).filter(|op| !matches!(op, Op::Cast { .. })).collect()
                };
                assert_eq!(ops(&narrow), ops(&plain));
                assert_eq!(plain.nodes.len(), ops(&plain).len(), "f32 needs no conversion");
                // Behind each norm, in front of each addition to the residual stream, and behind the logits.
                let count = |is: fn(&Op) -> bool| narrow.nodes.iter().filter(|n| is(&n.op)).count();
                let norms = count(|op| matches!(op, Op::RmsNorm { .. } | Op::LayerNorm { .. }));
                let layers = count(|op| matches!(op, Op::Attention { .. }));
                assert_eq!(narrow.nodes.len() - plain.nodes.len(), norms + 2 * layers + 1);
            }
        }
    }
}

/// Several sessions of one process with the same model do not each make gigabytes of random weights for their names alone.
#[test]
fn a_model_hashes_its_weights_once() {
    let model = synthetic::random_gptj(tiny_gptj(), 1, DType::F32).unwrap();
    let mut steps = 0;
    let first = model.hashes(&HashCache::none(), |_, _| steps += 1);
    assert_eq!(steps, model.weights().len());
    assert_eq!(model.hashes(&HashCache::none(), |_, _| panic!("computed again")), first);
    assert_eq!(model.weights()[3].hash(), first[3]);
}

#[test]
fn published_models_are_listed_without_being_made() {
    // As many parameters as were published. GPT-J's card has 610 * 4096 more, for it counts what each of the eight machines that
    // trained it had a copy of (norms, three biases) eight times.
    for (name, parameters) in [("gpt2", 124_439_808), ("gpt2-xl", 1_557_611_200), ("gpt-j-6b", 6_050_882_784)] {
        let model = synthetic::preset(name, 1, DType::BF16).unwrap();
        let learned = model.weights().iter().filter(|w| w.name() != "rope.inv_freq");
        let elements: u64 = learned.map(|w| w.dims().iter().product::<u64>()).sum();
        assert_eq!(elements, parameters, "{name}");
        assert_weights_fit(&model, &model.graph(GraphOptions::new(Phase::Decode)).unwrap());
        assert_eq!(model.name(), format!("{name}, random"));
    }
    assert_eq!(synthetic::PRESETS.map(|name| synthetic::preset(name, 1, DType::F32).is_ok()), [true; 3]);
    let unknown = synthetic::preset("gpt5", 1, DType::F32).unwrap_err();
    assert!(synthetic::PRESETS.iter().all(|name| unknown.to_string().contains(name)), "{unknown}");
    let odd = synthetic::random_gpt2(Gpt2Config::of(1, 5, 32), 1, DType::F32);
    assert!(matches!(odd, Err(ModelError::Config(_))));
    for config in [
        GptJConfig { heads: 3, ..tiny_gptj() },
        GptJConfig { rotary_dim: 18, ..tiny_gptj() },
        GptJConfig { rotary_dim: 7, ..tiny_gptj() },
        GptJConfig { rotary_dim: 0, ..tiny_gptj() },
        GptJConfig { hidden: 30, heads: 2, ..tiny_gptj() },
        GptJConfig { layers: 0, ..tiny_gptj() },
    ] {
        assert!(matches!(synthetic::random_gptj(config, 1, DType::F32), Err(ModelError::Config(_))));
    }
}
