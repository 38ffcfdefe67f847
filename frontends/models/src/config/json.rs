//! Configurations from Hugging Face's `config.json`.

use genie_graph::{LinearLayout, RopeStyle};
use serde::Deserialize;

use super::{Config, Gpt2Config, GptJConfig, LlamaConfig, check_factor, narrow, plain_frequencies, require};
use crate::ModelError;

pub(super) fn read(text: &[u8]) -> Result<Config, ModelError> {
    let bad = |e: serde_json::Error| ModelError::Config(format!("config.json: {e}"));
    let kind: JsonKind = serde_json::from_slice(text).map_err(bad)?;
    if let Some(quantised) = kind.quantization_config {
        let method = quantised.quant_method.as_deref().unwrap_or("a method without a name");
        return Err(ModelError::Config(format!(
            "the weights are quantised by {method}, which is not read: take the model that was quantised, or a GGUF file of it"
        )));
    }
    match kind.model_type.as_str() {
        "llama" | "mistral" | "qwen2" => {
            let json: JsonLlama = serde_json::from_slice(text).map_err(bad)?;
            json.into_config(&kind.model_type)
        }
        "gpt2" => {
            let json: JsonGpt2 = serde_json::from_slice(text).map_err(bad)?;
            json.into_config()
        }
        "gptj" => {
            let json: JsonGptJ = serde_json::from_slice(text).map_err(bad)?;
            json.into_config()
        }
        other => Err(ModelError::Architecture(other.to_owned())),
    }
}

#[derive(Deserialize)]
struct JsonKind {
    model_type: String,
    quantization_config: Option<JsonQuantised>,
}

#[derive(Deserialize)]
struct JsonQuantised {
    quant_method: Option<String>,
}

#[derive(Deserialize)]
struct JsonLlama {
    vocab_size: u64,
    hidden_size: u64,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    intermediate_size: u64,
    max_position_embeddings: u64,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    /// Older files: scaling alone. Newer ones (`rope_parameters`): scaling and base.
    rope_scaling: Option<JsonRope>,
    rope_parameters: Option<JsonRope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    sliding_window: Option<u64>,
    use_sliding_window: Option<bool>,
    #[serde(default = "silu")]
    hidden_act: String,
}

#[derive(Deserialize, Clone)]
struct JsonRope {
    rope_type: Option<String>,
    /// The older name of `rope_type`; some files have both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

fn silu() -> String {
    "silu".into()
}

impl JsonLlama {
    fn into_config(self, model_type: &str) -> Result<Config, ModelError> {
        require(self.hidden_act == "silu", || format!("the activation '{}' is not supported", self.hidden_act))?;
        let qwen = model_type == "qwen2";
        // Qwen2's files name a window that they do not use.
        let windowed = self.use_sliding_window.unwrap_or(!qwen) && self.sliding_window.is_some();
        let window = self.sliding_window.filter(|_| windowed).unwrap_or(u64::MAX);
        let heads = self.num_attention_heads;
        let head_dim = match self.head_dim {
            Some(n) => n,
            None => narrow("the head size", self.hidden_size / u64::from(heads.max(1)))?,
        };
        let rope = self.rope_parameters.or(self.rope_scaling);
        let theta = self.rope_theta.or(rope.as_ref().and_then(|r| r.rope_theta)).unwrap_or(10_000.0);
        let config = LlamaConfig {
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            layers: self.num_hidden_layers,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim,
            intermediate: self.intermediate_size,
            // Within the window, a model with one computes what a model without one does.
            max_positions: self.max_position_embeddings.min(window),
            rms_eps: self.rms_norm_eps,
            rope_theta: theta,
            rope_style: RopeStyle::Half,
            inv_freq: None,
            tied: self.tie_word_embeddings,
            qkv_bias: qwen || self.attention_bias,
            output_bias: !qwen && self.attention_bias,
            mlp_bias: self.mlp_bias,
        };
        config.check()?;
        let inv_freq = rope.map_or(Ok(None), |r| r.frequencies(theta, head_dim))?;
        Config::Llama(LlamaConfig { inv_freq, ..config }).check()
    }
}

impl JsonRope {
    fn frequencies(&self, theta: f32, head_dim: u32) -> Result<Option<Vec<f32>>, ModelError> {
        let mut frequencies = plain_frequencies(theta, head_dim);
        let number = |name: &str, x: Option<f64>| {
            x.ok_or_else(|| ModelError::Config(format!("the rotary scaling lacks {name}")))
        };
        let factor = || number("factor", self.factor).and_then(check_factor);
        match self.rope_type.as_deref().or(self.old_type.as_deref()).unwrap_or("default") {
            "default" => return Ok(None),
            "linear" => {
                let factor = factor()? as f32;
                frequencies.iter_mut().for_each(|f| *f /= factor);
            }
            "llama3" => {
                let factor = factor()?;
                let low = number("low_freq_factor", self.low_freq_factor)?;
                let high = number("high_freq_factor", self.high_freq_factor)?;
                let context = number("original_max_position_embeddings", self.original_max_position_embeddings)?;
                for f in &mut frequencies {
                    *f = llama3_frequency(f64::from(*f), factor, low, high, context) as f32;
                }
            }
            other => return Err(ModelError::Config(format!("rotary scaling of type '{other}' is not supported"))),
        }
        Ok(Some(frequencies))
    }
}

/// Llama 3.1's stretch: long waves are slowed by `factor`, short ones kept, those between blended by how many times they
/// fit into the old context.
fn llama3_frequency(f: f64, factor: f64, low: f64, high: f64, context: f64) -> f64 {
    let turns = context * f / std::f64::consts::TAU;
    if turns < low {
        f / factor
    } else if turns > high {
        f
    } else {
        let blend = (turns - low) / (high - low);
        (1.0 - blend) * f / factor + blend * f
    }
}

#[derive(Deserialize)]
struct JsonGpt2 {
    vocab_size: u64,
    n_positions: u64,
    n_embd: u64,
    n_layer: u32,
    n_head: u32,
    n_inner: Option<u64>,
    #[serde(default = "gpt2_eps")]
    layer_norm_epsilon: f32,
    #[serde(default = "gelu_new")]
    activation_function: String,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
}

fn gpt2_eps() -> f32 {
    1e-5
}

fn gelu_new() -> String {
    "gelu_new".into()
}

fn yes() -> bool {
    true
}

impl JsonGpt2 {
    fn into_config(self) -> Result<Config, ModelError> {
        check_gelu(&self.activation_function)?;
        require(self.scale_attn_weights && !self.scale_attn_by_inverse_layer_idx, || {
            "attention that is not scaled by the head size alone is not supported".into()
        })?;
        Config::Gpt2(Gpt2Config {
            vocab: self.vocab_size,
            max_positions: self.n_positions,
            hidden: self.n_embd,
            layers: self.n_layer,
            heads: self.n_head,
            intermediate: self.n_inner.unwrap_or(self.n_embd.saturating_mul(4)),
            eps: self.layer_norm_epsilon,
            layout: LinearLayout::InOut,
            tied: self.tie_word_embeddings,
        })
        .check()
    }
}

/// Both names mean the tanh form.
fn check_gelu(activation: &str) -> Result<(), ModelError> {
    require(matches!(activation, "gelu_new" | "gelu_pytorch_tanh"), || {
        format!("the activation '{activation}' is not supported")
    })
}

#[derive(Deserialize)]
struct JsonGptJ {
    vocab_size: u64,
    n_positions: u64,
    n_embd: u64,
    n_layer: u32,
    n_head: u32,
    n_inner: Option<u64>,
    /// Absent in no file that was published; the transformers library takes 64 then, and fails where it is null.
    #[serde(default = "gptj_rotary")]
    rotary_dim: u32,
    #[serde(default = "gpt2_eps")]
    layer_norm_epsilon: f32,
    #[serde(default = "gelu_new")]
    activation_function: String,
    #[serde(default)]
    tie_word_embeddings: bool,
}

fn gptj_rotary() -> u32 {
    64
}

impl JsonGptJ {
    fn into_config(self) -> Result<Config, ModelError> {
        check_gelu(&self.activation_function)?;
        Config::GptJ(GptJConfig {
            vocab: self.vocab_size,
            max_positions: self.n_positions,
            hidden: self.n_embd,
            layers: self.n_layer,
            heads: self.n_head,
            intermediate: self.n_inner.unwrap_or(self.n_embd.saturating_mul(4)),
            rotary_dim: self.rotary_dim,
            eps: self.layer_norm_epsilon,
            tied: self.tie_word_embeddings,
        })
        .check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_counts_where_the_family_uses_it() {
        let positions = |kind: &str, more: &str| {
            let text = format!(
                r#"{{"model_type": "{kind}", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                    "intermediate_size": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "sliding_window": 16{more}}}"#
            );
            read(text.as_bytes()).unwrap().max_positions()
        };
        assert_eq!((positions("mistral", ""), positions("qwen2", "")), (16, 64));
        assert_eq!(positions("qwen2", r#", "use_sliding_window": true"#), 16);
        assert_eq!(positions("mistral", r#", "use_sliding_window": false"#), 64);
    }

    #[test]
    fn the_published_gpt_j_is_read() {
        let text = |more: &str| {
            format!(
                r#"{{"model_type": "gptj", "vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16,
                    "n_inner": null, "rotary": true, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
                    "tie_word_embeddings": false{more}}}"#
            )
        };
        let config = |more: &str| read(text(more).as_bytes());
        assert_eq!(config(r#", "rotary_dim": 64"#).unwrap(), Config::GptJ(GptJConfig::six_b()));
        assert_eq!(config("").unwrap(), Config::GptJ(GptJConfig::six_b()));
        let all = GptJConfig { rotary_dim: 256, ..GptJConfig::six_b() };
        assert_eq!(config(r#", "rotary_dim": 256"#).unwrap(), Config::GptJ(all));
        for odd in ["0", "63", "258", "null"] {
            assert!(matches!(config(&format!(r#", "rotary_dim": {odd}"#)), Err(ModelError::Config(_))), "{odd}");
        }
        let relu = text("").replace("gelu_new", "relu");
        assert!(matches!(read(relu.as_bytes()), Err(ModelError::Config(reason)) if reason.contains("relu")));
    }

    #[test]
    fn quantised_weights_are_refused_by_the_name_of_the_method() {
        let text = br#"{"model_type": "llama", "quantization_config": {"quant_method": "awq", "bits": 4}}"#;
        assert!(matches!(read(text), Err(ModelError::Config(reason)) if reason.contains("awq")));
    }
}
