//! GPT-2 (Radford et al. 2019), any size.

use genie_graph::{LinearLayout, Op, VerifiedGraph};

use crate::ModelError;
use crate::config::Gpt2Config;
use crate::graphs::{Body, GraphOptions, Heads};
use crate::weights::{Kind, Weight, WeightSpec};

/// The weights that this configuration calls for, in the order of the graph's inputs.
pub fn weights(config: &Gpt2Config) -> Vec<WeightSpec> {
    let c = config;
    let mut specs = Vec::new();
    let mut add = |name: String, dims: &[u64], kind| specs.push(WeightSpec { name, dims: dims.to_vec(), kind });
    add("token_embd.weight".into(), &[c.vocab, c.hidden], Kind::Matrix);
    add("position_embd.weight".into(), &[c.max_positions, c.hidden], Kind::Matrix);
    for layer in 0..c.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        for (part, out, inner) in [
            ("attn_norm", c.hidden, 0),
            ("attn_qkv", c.hidden * 3, c.hidden),
            ("attn_output", c.hidden, c.hidden),
            ("ffn_norm", c.hidden, 0),
            ("ffn_up", c.intermediate, c.hidden),
            ("ffn_down", c.hidden, c.intermediate),
        ] {
            let weight = name(&format!("{part}.weight"));
            match (inner, c.layout) {
                (0, _) => add(weight, &[out], Kind::Norm),
                (_, LinearLayout::OutIn) => add(weight, &[out, inner], Kind::Matrix),
                (_, LinearLayout::InOut) => add(weight, &[inner, out], Kind::Matrix),
            }
            add(name(&format!("{part}.bias")), &[out], Kind::Vector);
        }
    }
    add("output_norm.weight".into(), &[c.hidden], Kind::Norm);
    add("output_norm.bias".into(), &[c.hidden], Kind::Vector);
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
    config: &Gpt2Config,
    weights: &[Weight],
    options: GraphOptions,
) -> Result<VerifiedGraph, ModelError> {
    let c = config;
    let heads = Heads { layers: c.layers, heads: c.heads, kv_heads: c.heads, head_dim: c.head_dim() };
    let mut g = Body::new(name, weights, heads, options)?;
    let table = g.weight("token_embd.weight")?;
    let places = g.weight("position_embd.weight")?;
    let x = g.embed(table, g.tokens)?;
    let p = g.embed(places, g.positions)?;
    let mut x = g.push(Op::Add, &[x, p])?;
    for layer in 0..c.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let n = g.layer_norm(x, &name("attn_norm"), c.eps)?;
        let joined = g.linear(n, &name("attn_qkv"), c.layout)?;
        let mut qkv = [joined; 3];
        for (i, node) in (0..).zip(&mut qkv) {
            // A checked width is far below 2^63.
            let width = c.hidden as i64;
            *node = g.push(Op::Slice { axis: 2, start: i * width, end: Some((i + 1) * width), step: 1 }, &[joined])?;
        }
        let a = g.attend(layer, heads, qkv)?;
        let a = g.linear(a, &name("attn_output"), c.layout)?;
        x = g.add_to(x, a)?;

        let n = g.layer_norm(x, &name("ffn_norm"), c.eps)?;
        let up = g.linear(n, &name("ffn_up"), c.layout)?;
        let up = g.push(Op::Gelu { tanh: true }, &[up])?;
        let down = g.linear(up, &name("ffn_down"), c.layout)?;
        x = g.add_to(x, down)?;
    }
    let x = g.wanted_positions(x)?;
    let x = g.layer_norm(x, "output_norm", c.eps)?;
    let output = if c.tied { table } else { g.weight("output.weight")? };
    g.finish(x, c.hidden, &[output], c.vocab)
}

/// What Hugging Face's files call a weight, without the prefix `transformer.` that some have.
pub(crate) fn hugging_face_name(name: &str) -> String {
    let Some((layer, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return match name {
            "token_embd.weight" => "wte.weight",
            "position_embd.weight" => "wpe.weight",
            "output_norm.weight" => "ln_f.weight",
            "output_norm.bias" => "ln_f.bias",
            "output.weight" => "lm_head.weight",
            other => other,
        }
        .to_owned();
    };
    let (part, kind) = part.rsplit_once('.').unwrap_or((part, "weight"));
    let part = match part {
        "attn_norm" => "ln_1",
        "attn_qkv" => "attn.c_attn",
        "attn_output" => "attn.c_proj",
        "ffn_norm" => "ln_2",
        "ffn_up" => "mlp.c_fc",
        "ffn_down" => "mlp.c_proj",
        other => other,
    };
    format!("h.{layer}.{part}.{kind}")
}
