//! GPT-J (Wang and Komatsuzaki 2021): attention and feed-forward layer read the same norm, and both are added to the stream.

use genie_graph::{LinearLayout, Op, RopeStyle, VerifiedGraph};

use crate::ModelError;
use crate::config::GptJConfig;
use crate::graphs::{Body, GraphOptions, Heads};
use crate::llama::INV_FREQ;
use crate::weights::{Kind, Weight, WeightSpec};

/// The weights that this configuration calls for, in the order of the graph's inputs.
pub fn weights(config: &GptJConfig) -> Vec<WeightSpec> {
    let c = config;
    let mut specs = Vec::new();
    let mut add = |name: String, dims: &[u64], kind| specs.push(WeightSpec { name, dims: dims.to_vec(), kind });
    add("token_embd.weight".into(), &[c.vocab, c.hidden], Kind::Matrix);
    add(INV_FREQ.into(), &[u64::from(c.head_dim() / 2)], Kind::Vector);
    for layer in 0..c.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        add(name("attn_norm.weight"), &[c.hidden], Kind::Norm);
        add(name("attn_norm.bias"), &[c.hidden], Kind::Vector);
        for (part, out, inner, bias) in [
            ("attn_q", c.hidden, c.hidden, false),
            ("attn_k", c.hidden, c.hidden, false),
            ("attn_v", c.hidden, c.hidden, false),
            ("attn_output", c.hidden, c.hidden, false),
            ("ffn_up", c.intermediate, c.hidden, true),
            ("ffn_down", c.hidden, c.intermediate, true),
        ] {
            add(name(&format!("{part}.weight")), &[out, inner], Kind::Matrix);
            if bias {
                add(name(&format!("{part}.bias")), &[out], Kind::Vector);
            }
        }
    }
    add("output_norm.weight".into(), &[c.hidden], Kind::Norm);
    add("output_norm.bias".into(), &[c.hidden], Kind::Vector);
    if !c.tied {
        add("output.weight".into(), &[c.vocab, c.hidden], Kind::Matrix);
    }
    add("output.bias".into(), &[c.vocab], Kind::Vector);
    specs
}

/// The program over these weights.
///
/// # Errors
/// [`ModelError::MissingTensor`] if a weight is not there, [`ModelError::Graph`] if the verifier refuses the result.
pub fn graph(
    name: &str,
    config: &GptJConfig,
    weights: &[Weight],
    options: GraphOptions,
) -> Result<VerifiedGraph, ModelError> {
    let c = config;
    let heads = Heads { layers: c.layers, heads: c.heads, kv_heads: c.heads, head_dim: c.head_dim() };
    let mut g = Body::new(name, weights, heads, options)?;
    let out_in = LinearLayout::OutIn;
    let table = g.weight("token_embd.weight")?;
    // Those of the elements that are not rotated are 0; with all of them given, theta is not looked at.
    let frequencies = g.weight(INV_FREQ)?;
    let rope = Op::Rope { theta: 10_000.0, head_dim: c.head_dim(), style: RopeStyle::Interleaved };
    let mut x = g.embed(table, g.tokens)?;
    for layer in 0..c.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let n = g.layer_norm(x, &name("attn_norm"), c.eps)?;
        let mut qkv = [n; 3];
        for (node, part) in qkv.iter_mut().zip(["attn_q", "attn_k", "attn_v"]) {
            *node = g.linear(n, &name(part), out_in)?;
        }
        for node in &mut qkv[..2] {
            *node = g.push(rope.clone(), &[*node, g.positions, frequencies])?;
        }
        let a = g.attend(layer, heads, qkv)?;
        let a = g.linear(a, &name("attn_output"), out_in)?;
        // Before the other product, so that each of the two sums can be done with its own.
        x = g.add_to(x, a)?;
        let up = g.linear(n, &name("ffn_up"), out_in)?;
        let up = g.push(Op::Gelu { tanh: true }, &[up])?;
        let down = g.linear(up, &name("ffn_down"), out_in)?;
        x = g.add_to(x, down)?;
    }
    let x = g.wanted_positions(x)?;
    let x = g.layer_norm(x, "output_norm", c.eps)?;
    let output = if c.tied { table } else { g.weight("output.weight")? };
    let bias = g.weight("output.bias")?;
    g.finish(x, c.hidden, &[output, bias], c.vocab)
}

/// What Hugging Face's files call a weight, without the prefix `transformer.` that all but the output layer's have.
pub(crate) fn hugging_face_name(name: &str) -> String {
    let Some((layer, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return match name {
            "token_embd.weight" => "wte.weight",
            "output_norm.weight" => "ln_f.weight",
            "output_norm.bias" => "ln_f.bias",
            "output.weight" => "lm_head.weight",
            "output.bias" => "lm_head.bias",
            other => other,
        }
        .to_owned();
    };
    let (part, kind) = part.rsplit_once('.').unwrap_or((part, "weight"));
    let part = match part {
        "attn_norm" => "ln_1",
        "attn_q" => "attn.q_proj",
        "attn_k" => "attn.k_proj",
        "attn_v" => "attn.v_proj",
        "attn_output" => "attn.out_proj",
        "ffn_up" => "mlp.fc_in",
        "ffn_down" => "mlp.fc_out",
        other => other,
    };
    format!("h.{layer}.{part}.{kind}")
}
