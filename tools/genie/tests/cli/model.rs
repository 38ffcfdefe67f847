//! A tiny model on disk.

use std::path::Path;

const HIDDEN: usize = 32;
const LAYERS: usize = 2;
const HEAD: usize = 8;
const INNER: usize = 64;
const VOCAB: usize = 97;
/// More than a server runs in one piece.
pub(crate) const POSITIONS: u32 = 2048;

/// Writes a Llama of two layers with arbitrary weights into a folder. It has no tokenizer.
pub(crate) fn write(folder: &Path) {
    let config = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HIDDEN / HEAD, "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": true
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        tensors.extend([
            (name("input_layernorm"), vec![HIDDEN]),
            (name("self_attn.q_proj"), vec![HIDDEN, HIDDEN]),
            (name("self_attn.k_proj"), vec![2 * HEAD, HIDDEN]),
            (name("self_attn.v_proj"), vec![2 * HEAD, HIDDEN]),
            (name("self_attn.o_proj"), vec![HIDDEN, HIDDEN]),
            (name("post_attention_layernorm"), vec![HIDDEN]),
            (name("mlp.gate_proj"), vec![INNER, HIDDEN]),
            (name("mlp.up_proj"), vec![INNER, HIDDEN]),
            (name("mlp.down_proj"), vec![HIDDEN, INNER]),
        ]);
    }
    tensors.push(("model.norm.weight".to_owned(), vec![HIDDEN]));

    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    let mut state = 1u64;
    for (name, shape) in tensors {
        let start = data.len();
        for _ in 0..shape.iter().product() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
            // Norms near 1, matrices wide enough that the next token depends on the ones before.
            let value = if shape.len() == 1 { 1.0 + 0.1 * uniform } else { uniform };
            data.extend_from_slice(&value.to_le_bytes());
        }
        let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] });
        header.insert(name, entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
}

/// Writes a tokenizer beside it whose tokens are the printable characters of ASCII.
pub(crate) fn write_tokenizer(folder: &Path) {
    let characters: serde_json::Map<_, _> =
        (' '..='~').enumerate().map(|(id, c)| (c.to_string(), serde_json::json!(id))).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "added_tokens": [], "decoder": { "type": "Fuse" },
        "model": { "type": "BPE", "vocab": characters, "merges": [] }
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}
