//! The Llama family (Touvron et al. 2023; grouped queries: Ainslie et al. 2023).

use genie_graph::{LinearLayout, Op, VerifiedGraph};

use crate::ModelError;
use crate::config::LlamaConfig;
use crate::graphs::{Body, GraphOptions, Heads};
use crate::weights::{Kind, Weight, WeightSpec};

/// The frequencies' name, where the configuration has any.
pub(crate) const INV_FREQ: &str = "rope.inv_freq";

/// The weights that this configuration calls for, in the order of the graph's inputs.
pub fn weights(config: &LlamaConfig) -> Vec<WeightSpec> {
    let c = config;
    let (q, kv) = (u64::from(c.heads) * u64::from(c.head_dim), u64::from(c.kv_heads) * u64::from(c.head_dim));
    let mut specs = Vec::new();
    let mut add = |name: String, dims: &[u64], kind| specs.push(WeightSpec { name, dims: dims.to_vec(), kind });
    add("token_embd.weight".into(), &[c.vocab, c.hidden], Kind::Matrix);
    if let Some(f) = &c.inv_freq {
        add(INV_FREQ.into(), &[f.len() as u64], Kind::Vector);
    }
    for layer in 0..c.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        add(name("attn_norm.weight"), &[c.hidden], Kind::Norm);
        for (part, out, inner, bias) in [
            ("attn_q", q, c.hidden, c.qkv_bias),
            ("attn_k", kv, c.hidden, c.qkv_bias),
            ("attn_v", kv, c.hidden, c.qkv_bias),
            ("attn_output", c.hidden, q, c.output_bias),
            ("ffn_norm", c.hidden, 0, false),
            ("ffn_gate", c.intermediate, c.hidden, c.mlp_bias),
            ("ffn_up", c.intermediate, c.hidden, c.mlp_bias),
            ("ffn_down", c.hidden, c.intermediate, c.mlp_bias),
        ] {
            if inner == 0 {
                add(name(&format!("{part}.weight")), &[out], Kind::Norm);
            } else {
                add(name(&format!("{part}.weight")), &[out, inner], Kind::Matrix);
            }
            if bias {
                add(name(&format!("{part}.bias")), &[out], Kind::Vector);
            }
        }
    }
    add("output_norm.weight".into(), &[c.hidden], Kind::Norm);
    if !c.tied {
        add("output.weight".into(), &[c.vocab, c.hidden], Kind::Matrix);
    }
    specs
}

/// The program over these weights.
///
/// # Errors
/// [`ModelError::MissingTensor`] if a weight is not there, [`ModelError::Graph`] if the verifier refuses the result.
pub fn graph(
    name: &str,
    config: &LlamaConfig,
    weights: &[Weight],
    options: GraphOptions,
) -> Result<VerifiedGraph, ModelError> {
    let c = config;
    let heads = Heads { layers: c.layers, heads: c.heads, kv_heads: c.kv_heads, head_dim: c.head_dim };
    let mut g = Body::new(name, weights, heads, options)?;
    let out_in = LinearLayout::OutIn;
    let table = g.weight("token_embd.weight")?;
    let frequencies = g.optional(INV_FREQ)?;
    let mut x = g.embed(table, g.tokens)?;
    for layer in 0..c.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let rope = Op::Rope { theta: c.rope_theta, head_dim: c.head_dim, style: c.rope_style };
        let n = g.rms_norm(x, &name("attn_norm"), c.rms_eps)?;
        let mut qkv = [n; 3];
        for (node, part) in qkv.iter_mut().zip(["attn_q", "attn_k", "attn_v"]) {
            *node = g.linear(n, &name(part), out_in)?;
        }
        for node in &mut qkv[..2] {
            let inputs: Vec<_> = [*node, g.positions].into_iter().chain(frequencies).collect();
            *node = g.push(rope.clone(), &inputs)?;
        }
        let a = g.attend(layer, heads, qkv)?;
        let a = g.linear(a, &name("attn_output"), out_in)?;
        x = g.add_to(x, a)?;

        let n = g.rms_norm(x, &name("ffn_norm"), c.rms_eps)?;
        let gate = g.linear(n, &name("ffn_gate"), out_in)?;
        let gate = g.push(Op::Silu, &[gate])?;
        let up = g.linear(n, &name("ffn_up"), out_in)?;
        let gated = g.push(Op::Mul, &[gate, up])?;
        let down = g.linear(gated, &name("ffn_down"), out_in)?;
        x = g.add_to(x, down)?;
    }
    let x = g.wanted_positions(x)?;
    let x = g.rms_norm(x, "output_norm", c.rms_eps)?;
    let output = if c.tied { table } else { g.weight("output.weight")? };
    g.finish(x, c.hidden, &[output], c.vocab)
}

/// What Hugging Face's files call a weight.
pub(crate) fn hugging_face_name(name: &str) -> String {
    let Some((layer, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return match name {
            "token_embd.weight" => "model.embed_tokens.weight",
            "output_norm.weight" => "model.norm.weight",
            "output.weight" => "lm_head.weight",
            other => other,
        }
        .to_owned();
    };
    let (part, kind) = part.rsplit_once('.').unwrap_or((part, "weight"));
    let part = match part {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => other,
    };
    format!("model.layers.{layer}.{part}.{kind}")
}
