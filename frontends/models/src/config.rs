//! What a model's configuration says, from GGUF metadata or a `config.json`.

use genie_graph::{LinearLayout, RopeStyle};
use genie_transport::memory::Region;
use serde::Deserialize;

use crate::gguf::{Gguf, Value};
use crate::llama::INV_FREQ;
use crate::weights::WeightSpec;
use crate::{ModelError, gpt2, llama};

/// A model's configuration.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Config {
    /// Llama, Mistral, Qwen2.
    Llama(LlamaConfig),
    /// GPT-2.
    Gpt2(Gpt2Config),
}

/// A Llama family model (Touvron et al. 2023): pre-norm by RMS, rotary positions, gated SiLU, grouped queries.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Rows of the embedding table.
    pub vocab: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Decoder layers.
    pub layers: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; divides `heads`.
    pub kv_heads: u32,
    /// Elements a head, even.
    pub head_dim: u32,
    /// Width of the feed-forward layer.
    pub intermediate: u64,
    /// Tokens that the model was trained to see.
    pub max_positions: u64,
    /// Added under the norms' roots.
    pub rms_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// How rotary pairs lie in q and k: `Interleaved` in GGUF's Llama, `Half` elsewhere.
    pub rope_style: RopeStyle,
    /// Inverse frequencies `[head_dim / 2]` where scaling makes them other than theta^(-2i/head_dim).
    pub inv_freq: Option<Vec<f32>>,
    /// Whether the embedding table is also the output layer.
    pub tied: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output has one.
    pub output_bias: bool,
    /// Whether the feed-forward layers have them.
    pub mlp_bias: bool,
}

/// A GPT-2 model (Radford et al. 2019) of any size.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpt2Config {
    /// Rows of the embedding table.
    pub vocab: u64,
    /// Rows of the position table: the most tokens it can see.
    pub max_positions: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Decoder layers.
    pub layers: u32,
    /// Heads; divides `hidden`.
    pub heads: u32,
    /// Width of the feed-forward layer.
    pub intermediate: u64,
    /// Added under the norms' roots.
    pub eps: f32,
    /// How linear weights are stored: `InOut` in OpenAI's and Hugging Face's files, `OutIn` in GGUF.
    pub layout: LinearLayout,
    /// Whether the embedding table is also the output layer.
    pub tied: bool,
}

impl Config {
    /// Decoder layers.
    pub fn layers(&self) -> u32 {
        match self {
            Self::Llama(c) => c.layers,
            Self::Gpt2(c) => c.layers,
        }
    }

    /// Rows of the embedding table.
    pub fn vocab(&self) -> u64 {
        match self {
            Self::Llama(c) => c.vocab,
            Self::Gpt2(c) => c.vocab,
        }
    }

    /// Tokens that the model can see; more than that gives nonsense (Llama) or an error (GPT-2).
    pub fn max_positions(&self) -> u64 {
        match self {
            Self::Llama(c) => c.max_positions,
            Self::Gpt2(c) => c.max_positions,
        }
    }

    /// The bytes of a weight that no file holds.
    pub(crate) fn made(&self, name: &str) -> Option<Region> {
        match self {
            Self::Llama(LlamaConfig { inv_freq: Some(f), .. }) if name == INV_FREQ => {
                Some(Region::copy_of(bytemuck::cast_slice(f)))
            }
            _ => None,
        }
    }

    /// The weights that it calls for, in the order of the graph's inputs.
    pub fn weights(&self) -> Vec<WeightSpec> {
        match self {
            Self::Llama(c) => llama::weights(c),
            Self::Gpt2(c) => gpt2::weights(c),
        }
    }

    pub(crate) fn hugging_face_name(&self, name: &str) -> String {
        match self {
            Self::Llama(_) => llama::hugging_face_name(name),
            Self::Gpt2(_) => gpt2::hugging_face_name(name),
        }
    }

    pub(crate) fn check(self) -> Result<Self, ModelError> {
        match &self {
            Self::Llama(c) => c.check()?,
            Self::Gpt2(c) => c.check()?,
        }
        Ok(self)
    }

    pub(crate) fn from_gguf(file: &Gguf) -> Result<Self, ModelError> {
        let architecture = file.get("general.architecture").and_then(Value::as_str).unwrap_or_default();
        let keys = Keys { file, architecture };
        match architecture {
            "llama" => llama_from_gguf(&keys, RopeStyle::Interleaved),
            "qwen2" => llama_from_gguf(&keys, RopeStyle::Half),
            "gpt2" => gpt2_from_gguf(&keys),
            other => Err(ModelError::Architecture(other.to_owned())),
        }
    }

    pub(crate) fn from_json(text: &[u8]) -> Result<Self, ModelError> {
        let bad = |e: serde_json::Error| ModelError::Config(format!("config.json: {e}"));
        let kind: JsonKind = serde_json::from_slice(text).map_err(bad)?;
        match kind.model_type.as_str() {
            "llama" | "mistral" | "qwen2" => {
                let json: JsonLlama = serde_json::from_slice(text).map_err(bad)?;
                json.into_config(&kind.model_type)
            }
            "gpt2" => {
                let json: JsonGpt2 = serde_json::from_slice(text).map_err(bad)?;
                json.into_config()
            }
            other => Err(ModelError::Architecture(other.to_owned())),
        }
    }
}

/// Far above any model there is; keeps every product of sizes within u64.
const MAX_SIZE: u64 = 1 << 24;
const MAX_LAYERS: u32 = 1024;

fn require(holds: bool, what: impl FnOnce() -> String) -> Result<(), ModelError> {
    if holds { Ok(()) } else { Err(ModelError::Config(what())) }
}

fn check_size(name: &str, n: u64) -> Result<(), ModelError> {
    require((1..=MAX_SIZE).contains(&n), || format!("{name} is {n}, outside 1 to {MAX_SIZE}"))
}

fn check_layers(n: u32) -> Result<(), ModelError> {
    require((1..=MAX_LAYERS).contains(&n), || format!("{n} layers, outside 1 to {MAX_LAYERS}"))
}

fn check_eps(eps: f32) -> Result<(), ModelError> {
    require(eps.is_finite() && eps >= 0.0, || format!("the norm's epsilon is {eps}"))
}

impl LlamaConfig {
    fn check(&self) -> Result<(), ModelError> {
        check_layers(self.layers)?;
        for (name, n) in [
            ("the vocabulary", self.vocab),
            ("the hidden size", self.hidden),
            ("the feed-forward size", self.intermediate),
            ("the number of heads", self.heads.into()),
            ("the number of key/value heads", self.kv_heads.into()),
            ("the head size", self.head_dim.into()),
            ("heads times head size", u64::from(self.heads) * u64::from(self.head_dim)),
            ("the number of positions", self.max_positions),
        ] {
            check_size(name, n)?;
        }
        check_eps(self.rms_eps)?;
        require(self.heads.is_multiple_of(self.kv_heads), || {
            format!("{} heads are not a multiple of {} key/value heads", self.heads, self.kv_heads)
        })?;
        require(self.head_dim.is_multiple_of(2), || format!("the head size {} is odd", self.head_dim))?;
        require(self.rope_theta.is_finite() && self.rope_theta > 0.0, || {
            format!("the rotary base is {}", self.rope_theta)
        })?;
        if let Some(f) = &self.inv_freq {
            require(f.len() == self.head_dim as usize / 2 && f.iter().all(|x| x.is_finite()), || {
                format!("the rotary frequencies are not {} finite numbers", self.head_dim / 2)
            })?;
        }
        Ok(())
    }
}

impl Gpt2Config {
    /// The 124M model that was published first, its weights stored as OpenAI stores them.
    pub fn small() -> Self {
        Self::of(12, 12, 768)
    }

    /// The 1.5B model.
    pub fn xl() -> Self {
        Self::of(48, 25, 1600)
    }

    /// GPT-2's vocabulary and positions with these layers, heads and width.
    pub fn of(layers: u32, heads: u32, hidden: u64) -> Self {
        Self {
            vocab: 50257,
            max_positions: 1024,
            hidden,
            layers,
            heads,
            intermediate: hidden.saturating_mul(4),
            eps: 1e-5,
            layout: LinearLayout::InOut,
            tied: true,
        }
    }

    /// Elements a head.
    pub fn head_dim(&self) -> u32 {
        // A checked configuration has at least one head, and a width that fits 32 bits.
        u32::try_from(self.hidden / u64::from(self.heads.max(1))).unwrap_or(u32::MAX)
    }

    fn check(&self) -> Result<(), ModelError> {
        check_layers(self.layers)?;
        for (name, n) in [
            ("the vocabulary", self.vocab),
            ("the hidden size", self.hidden),
            ("the feed-forward size", self.intermediate),
            ("the number of heads", self.heads.into()),
            ("the number of positions", self.max_positions),
        ] {
            check_size(name, n)?;
        }
        check_eps(self.eps)?;
        require(self.hidden.is_multiple_of(u64::from(self.heads)), || {
            format!("the hidden size {} is not a multiple of {} heads", self.hidden, self.heads)
        })
    }
}

/// An architecture's metadata entries.
struct Keys<'a> {
    file: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.file.get(&format!("{}.{key}", self.architecture))
    }

    fn count(&self, key: &str) -> Result<u64, ModelError> {
        let missing = || ModelError::Config(format!("{}.{key} is missing or no count", self.architecture));
        self.get(key).and_then(Value::as_u64).ok_or_else(missing)
    }

    fn count_or(&self, key: &str, default: u64) -> Result<u64, ModelError> {
        if self.get(key).is_some() { self.count(key) } else { Ok(default) }
    }

    fn count32(&self, key: &str) -> Result<u32, ModelError> {
        narrow(key, self.count(key)?)
    }

    fn real(&self, key: &str) -> Result<f32, ModelError> {
        let missing = || ModelError::Config(format!("{}.{key} is missing or no number", self.architecture));
        self.get(key).and_then(Value::as_f64).map(|x| x as f32).ok_or_else(missing)
    }

    fn vocab(&self) -> Result<u64, ModelError> {
        let table = self.file.tensor("token_embd.weight").and_then(|t| t.dims.first().copied());
        table.ok_or_else(|| ModelError::MissingTensor("token_embd.weight".into()))
    }

    fn has(&self, tensor: &str) -> bool {
        self.file.tensor(tensor).is_some()
    }
}

fn narrow(name: &str, n: u64) -> Result<u32, ModelError> {
    u32::try_from(n).map_err(|_| ModelError::Config(format!("{name} is {n}, which is too large")))
}

fn llama_from_gguf(keys: &Keys<'_>, rope_style: RopeStyle) -> Result<Config, ModelError> {
    require(keys.count_or("expert_count", 0)? == 0, || "mixtures of experts are not supported".into())?;
    let (heads, hidden) = (keys.count32("attention.head_count")?, keys.count("embedding_length")?);
    let default_dim = hidden / u64::from(heads.max(1));
    let head_dim = narrow("the head size", keys.count_or("attention.key_length", default_dim)?)?;
    let rotated = keys.count_or("rope.dimension_count", head_dim.into())?;
    require(rotated == u64::from(head_dim), || {
        format!("only {rotated} of {head_dim} elements of a head are rotated, which is not supported")
    })?;
    let value_dim = keys.count_or("attention.value_length", head_dim.into())?;
    require(value_dim == u64::from(head_dim), || "keys and values of different sizes are not supported".into())?;
    let rope_theta = if keys.get("rope.freq_base").is_some() { keys.real("rope.freq_base")? } else { 10_000.0 };
    let config = LlamaConfig {
        vocab: keys.vocab()?,
        hidden,
        layers: keys.count32("block_count")?,
        heads,
        kv_heads: narrow("head_count_kv", keys.count_or("attention.head_count_kv", heads.into())?)?,
        head_dim,
        intermediate: keys.count("feed_forward_length")?,
        max_positions: keys.count("context_length")?,
        rms_eps: keys.real("attention.layer_norm_rms_epsilon")?,
        rope_theta,
        rope_style,
        inv_freq: None,
        tied: !keys.has("output.weight"),
        qkv_bias: keys.has("blk.0.attn_q.bias"),
        output_bias: keys.has("blk.0.attn_output.bias"),
        mlp_bias: keys.has("blk.0.ffn_up.bias"),
    };
    config.check()?;
    let inv_freq = gguf_frequencies(keys, &config)?;
    Config::Llama(LlamaConfig { inv_freq, ..config }).check()
}

/// GGUF scales frequencies by a tensor of divisors (Llama 3.1), by one divisor, or not at all.
fn gguf_frequencies(keys: &Keys<'_>, config: &LlamaConfig) -> Result<Option<Vec<f32>>, ModelError> {
    let mut frequencies = plain_frequencies(config.rope_theta, config.head_dim);
    if let Some(t) = keys.file.tensor("rope_freqs.weight") {
        let mut divisors = vec![0.0; frequencies.len()];
        require(crate::dequant::dequantize(t.ty, &t.data, &mut divisors), || {
            format!("rope_freqs.weight has shape {:?}, not {} elements", t.dims, frequencies.len())
        })?;
        frequencies.iter_mut().zip(divisors).for_each(|(f, d)| *f /= d);
        return Ok(Some(frequencies));
    }
    let kind = keys.get("rope.scaling.type").and_then(Value::as_str).unwrap_or("none");
    match kind {
        "none" => Ok(None),
        "linear" => {
            let factor = keys.real("rope.scaling.factor")?;
            frequencies.iter_mut().for_each(|f| *f /= factor);
            Ok(Some(frequencies))
        }
        other => Err(ModelError::Config(format!("rotary scaling of type '{other}' is not supported"))),
    }
}

fn gpt2_from_gguf(keys: &Keys<'_>) -> Result<Config, ModelError> {
    Config::Gpt2(Gpt2Config {
        vocab: keys.vocab()?,
        max_positions: keys.count("context_length")?,
        hidden: keys.count("embedding_length")?,
        layers: keys.count32("block_count")?,
        heads: keys.count32("attention.head_count")?,
        intermediate: keys.count("feed_forward_length")?,
        eps: keys.real("attention.layer_norm_epsilon")?,
        layout: LinearLayout::OutIn,
        tied: !keys.has("output.weight"),
    })
    .check()
}

#[derive(Deserialize)]
struct JsonKind {
    model_type: String,
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
        let windowed = self.use_sliding_window.unwrap_or(true) && self.sliding_window.is_some();
        let window = self.sliding_window.filter(|_| windowed).unwrap_or(u64::MAX);
        let heads = self.num_attention_heads;
        let head_dim = match self.head_dim {
            Some(n) => n,
            None => narrow("the head size", self.hidden_size / u64::from(heads.max(1)))?,
        };
        let rope = self.rope_parameters.or(self.rope_scaling);
        let theta = self.rope_theta.or(rope.as_ref().and_then(|r| r.rope_theta)).unwrap_or(10_000.0);
        let qwen = model_type == "qwen2";
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
        match self.rope_type.as_deref().or(self.old_type.as_deref()).unwrap_or("default") {
            "default" => return Ok(None),
            "linear" => {
                let factor = number("factor", self.factor)? as f32;
                frequencies.iter_mut().for_each(|f| *f /= factor);
            }
            "llama3" => {
                let factor = number("factor", self.factor)?;
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

fn plain_frequencies(theta: f32, head_dim: u32) -> Vec<f32> {
    let exponent = |i: u32| -2.0 * f64::from(i) / f64::from(head_dim);
    (0..head_dim / 2).map(|i| f64::from(theta).powf(exponent(i)) as f32).collect()
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
        let activation = self.activation_function;
        require(matches!(activation.as_str(), "gelu_new" | "gelu_pytorch_tanh"), || {
            format!("the activation '{activation}' is not supported")
        })?;
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
