//! The true SmolLM2-135M-Instruct, as `tools/fetch-smollm2` keeps it.

use genie_graph::{DType, InputRole, Phase};
use genie_models::gguf::Gguf;
use genie_models::{Config, GraphOptions, HashCache, Model, OpenOptions, map_file, smollm2_path};
use serde::Deserialize;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden");

fn smollm2(dtype: Option<DType>) -> Model {
    let path = smollm2_path();
    assert!(path.is_file(), "{} is missing: run tools/fetch-smollm2", path.display());
    Model::open(path, OpenOptions { dtype, ..OpenOptions::default() }).unwrap()
}

#[derive(Deserialize)]
struct Golden {
    texts: Vec<Text>,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Chat {
    user: String,
    text: String,
    ids: Vec<u32>,
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(format!("{GOLDEN}/tokenizer_smollm2.json")).unwrap()).unwrap()
}

#[test]
fn texts_become_the_golden_ids() {
    let model = smollm2(None);
    let tokenizer = model.tokenizer().unwrap();
    for Text { text, ids } in golden().texts {
        assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn chats_are_laid_out_by_the_models_template() {
    let model = smollm2(None);
    let tokenizer = model.tokenizer().unwrap();
    assert!(tokenizer.has_chat_template());
    for Chat { user, text, ids } in golden().chats {
        assert_eq!(tokenizer.chat_text(&user).unwrap(), text);
        assert_eq!(tokenizer.encode_chat(&user).unwrap(), ids);
    }
}

#[test]
fn a_stream_gives_the_text_piece_by_piece_and_never_half_a_character() {
    let model = smollm2(None);
    let tokenizer = model.tokenizer().unwrap();
    for Text { text, ids } in golden().texts {
        if text.contains("<|") || text.contains("<repo") {
            continue; // control tokens have no text
        }
        let mut stream = tokenizer.stream();
        let mut pieces = Vec::new();
        for id in ids {
            pieces.extend(stream.push(id));
        }
        assert!(pieces.iter().all(|p| !p.contains('\u{FFFD}')), "{pieces:?}");
        assert_eq!(pieces.concat(), text);
        assert_eq!(stream.finish(), None);
    }
}

#[test]
fn a_cut_character_comes_at_the_end_as_a_replacement() {
    let model = smollm2(None);
    let tokenizer = model.tokenizer().unwrap();
    let ids = tokenizer.encode("\u{1D54F}").unwrap();
    assert!(ids.len() > 1, "the character must be spread over tokens for this test");
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(ids[0]), None);
    assert_eq!(stream.finish().as_deref(), Some("\u{FFFD}"));
    // Bytes that can never become a character do not hold the text back for ever.
    let given = (0..40).filter_map(|_| stream.push(ids[0])).count();
    assert!(given >= 4);
}

/// When the bytes after a character that was given up on completed one, all that had been given out came again.
#[test]
fn a_character_completed_late_repeats_nothing() {
    let model = smollm2(None);
    let tokenizer = model.tokenizer().unwrap();
    let ids = tokenizer.encode("\u{1D54F}").unwrap();
    let mut stream = tokenizer.stream();
    // The eighth is given up on, and it is the beginning of the character that comes.
    let mut pieces: Vec<String> = (0..8).filter_map(|_| stream.push(ids[0])).collect();
    assert_eq!(pieces.concat(), "\u{FFFD}".repeat(8));
    pieces.extend(ids[1..].iter().filter_map(|&id| stream.push(id)));
    assert_eq!(pieces.concat(), format!("{}\u{1D54F}", "\u{FFFD}".repeat(8)));
}

#[test]
fn the_end_tokens_are_known() {
    let model = smollm2(None);
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!(tokenizer.eos_ids(), [0, 2]);
    assert_eq!(tokenizer.bos_id(), None);
    assert_eq!(tokenizer.id("<|im_end|>"), Some(2));
}

#[test]
fn graphs_take_the_weights_in_the_models_order() {
    let model = smollm2(None);
    let Config::Llama(config) = model.config() else { panic!("{:?}", model.config()) };
    assert_eq!((config.layers, config.heads, config.kv_heads, config.head_dim), (30, 9, 3, 64));
    assert_eq!(model.weights().len(), 272);
    assert_eq!(model.weight_bytes(), 134_515_008 * 4);
    for phase in [Phase::Prefill, Phase::Decode] {
        let graph = model.graph(GraphOptions::new(phase)).unwrap();
        let weights: Vec<_> = graph.inputs().iter().filter(|i| i.role == InputRole::Weight).collect();
        assert_eq!(weights.len(), 272);
        for (input, weight) in weights.iter().zip(model.weights()) {
            assert_eq!((input.name.as_str(), &input.ty), (weight.name(), &weight.ty()));
        }
    }
}

#[test]
fn conversion_applies_to_matrices_alone() {
    let model = smollm2(Some(DType::BF16));
    for weight in model.weights() {
        let expected = if weight.dims().len() == 2 { DType::BF16 } else { DType::F32 };
        assert_eq!(weight.dtype(), expected, "{}", weight.name());
    }
    let plain = smollm2(None);
    let (narrow, wide) = (model.weights()[2].bytes(), plain.weights()[2].bytes());
    assert_eq!(narrow.len() * 2, wide.len());
    for (n, w) in narrow.chunks_exact(2).zip(wide.chunks_exact(4)) {
        let wide = f32::from_le_bytes(w.try_into().unwrap());
        assert_eq!(half::bf16::from_le_bytes(n.try_into().unwrap()), half::bf16::from_f32(wide));
    }
}

#[test]
fn blocks_are_those_of_the_file() {
    let options = OpenOptions { blocks: true, ..OpenOptions::default() };
    let model = Model::open(smollm2_path(), options).unwrap();
    let file = Gguf::parse(&map_file(&smollm2_path()).unwrap()).unwrap();
    let mut kept = 0;
    for weight in model.weights().iter().filter(|w| w.format().is_some()) {
        let stored = file.tensor(weight.name()).unwrap();
        assert_eq!((weight.dtype(), weight.format()), (DType::U8, stored.ty.blocks()));
        assert!(*weight.bytes() == *stored.data, "{}", weight.name());
        assert_eq!(weight.len_bytes(), stored.data.len() as u64);
        assert_eq!(weight.bytes().as_ptr(), weight.bytes().as_ptr(), "the same place in the mapped file");
        kept += 1;
    }
    assert_eq!(kept, file.tensors().filter(|(_, t)| t.ty.blocks().is_some()).count());
    // A bit more than five bits a number, where f32 has 32.
    assert!(model.weight_bytes() < smollm2(None).weight_bytes() / 5);
}

#[test]
fn remembered_hashes_are_those_of_the_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let cache = HashCache::at(folder.path());
    let model = smollm2(None);
    let mut steps = 0;
    let first = model.hashes(&cache, |_, _| steps += 1);
    assert_eq!(steps, 272);
    let again = smollm2(None).hashes(&cache, |_, _| panic!("computed again"));
    assert_eq!(first, again);
    assert_eq!(first[1].0, *blake3::hash(&model.weights()[1].bytes()).as_bytes());
    // Other types have other bytes.
    let narrow = smollm2(Some(DType::F16));
    let other = narrow.hashes(&cache, |_, _| {});
    assert_ne!(first[0], other[0]);
    assert_eq!(narrow.weights()[0].hash(), other[0]);
    // So do blocks, which are neither.
    let packed = Model::open(smollm2_path(), OpenOptions { blocks: true, ..OpenOptions::default() }).unwrap();
    let other = packed.hashes(&cache, |_, _| {});
    assert_ne!(first[2], other[2]);
    assert_eq!(packed.weights()[2].hash(), other[2]);
}
