//! What a model's configuration says, from GGUF metadata or a `config.json`.

mod gguf;
mod json;

use genie_graph::{LinearLayout, RopeStyle};
use genie_transport::memory::Region;

use crate::gguf::Gguf;
use crate::llama::INV_FREQ;
use crate::weights::WeightSpec;
use crate::{ModelError, gpt2, gptj, llama};

/// A model's configuration.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Config {
    /// Llama, Mistral, Qwen2.
    Llama(LlamaConfig),
    /// GPT-2.
    Gpt2(Gpt2Config),
    /// GPT-J.
    GptJ(GptJConfig),
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

/// A GPT-J model (Wang and Komatsuzaki 2021): attention and feed-forward layer side by side behind one LayerNorm, rotary positions
/// in the first part of each head, an output layer with a bias.
#[derive(Clone, Debug, PartialEq)]
pub struct GptJConfig {
    /// Rows of the embedding table.
    pub vocab: u64,
    /// Tokens that the model was trained to see.
    pub max_positions: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Decoder layers.
    pub layers: u32,
    /// Heads; divides `hidden`.
    pub heads: u32,
    /// Width of the feed-forward layer.
    pub intermediate: u64,
    /// Elements of a head that are rotated, from its first on: even, at most all.
    pub rotary_dim: u32,
    /// Added under the norms' roots.
    pub eps: f32,
    /// Whether the embedding table is also the output layer's weight.
    pub tied: bool,
}

impl Config {
    /// Decoder layers.
    pub fn layers(&self) -> u32 {
        match self {
            Self::Llama(c) => c.layers,
            Self::Gpt2(c) => c.layers,
            Self::GptJ(c) => c.layers,
        }
    }

    /// Rows of the embedding table.
    pub fn vocab(&self) -> u64 {
        match self {
            Self::Llama(c) => c.vocab,
            Self::Gpt2(c) => c.vocab,
            Self::GptJ(c) => c.vocab,
        }
    }

    /// Tokens that the model can see, or its sliding window where that is less; more than that gives nonsense (Llama, GPT-J) or
    /// an error (GPT-2).
    pub fn max_positions(&self) -> u64 {
        match self {
            Self::Llama(c) => c.max_positions,
            Self::Gpt2(c) => c.max_positions,
            Self::GptJ(c) => c.max_positions,
        }
    }

    /// The bytes of a weight that no file holds.
    pub(crate) fn made(&self, name: &str) -> Option<Region> {
        match self {
            Self::Llama(LlamaConfig { inv_freq: Some(f), .. }) if name == INV_FREQ => {
                Some(Region::copy_of(bytemuck::cast_slice(f)))
            }
            Self::GptJ(c) if name == INV_FREQ => Some(Region::copy_of(bytemuck::cast_slice(&c.frequencies()))),
            _ => None,
        }
    }

    /// The weights that it calls for, in the order of the graph's inputs.
    pub fn weights(&self) -> Vec<WeightSpec> {
        match self {
            Self::Llama(c) => llama::weights(c),
            Self::Gpt2(c) => gpt2::weights(c),
            Self::GptJ(c) => gptj::weights(c),
        }
    }

    pub(crate) fn hugging_face_name(&self, name: &str) -> String {
        match self {
            Self::Llama(_) => llama::hugging_face_name(name),
            Self::Gpt2(_) => gpt2::hugging_face_name(name),
            Self::GptJ(_) => gptj::hugging_face_name(name),
        }
    }

    pub(crate) fn from_gguf(file: &Gguf) -> Result<Self, ModelError> {
        gguf::read(file)
    }

    pub(crate) fn from_json(text: &[u8]) -> Result<Self, ModelError> {
        json::read(text)
    }

    pub(crate) fn check(self) -> Result<Self, ModelError> {
        match &self {
            Self::Llama(c) => c.check()?,
            Self::Gpt2(c) => c.check()?,
            Self::GptJ(c) => c.check()?,
        }
        Ok(self)
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
        head_dim(self.hidden, self.heads)
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
        check_heads(self.hidden, self.heads)
    }
}

impl GptJConfig {
    /// GPT-J-6B, the model that was published.
    pub fn six_b() -> Self {
        Self {
            vocab: 50400,
            max_positions: 2048,
            hidden: 4096,
            layers: 28,
            heads: 16,
            intermediate: 16384,
            rotary_dim: 64,
            eps: 1e-5,
            tied: false,
        }
    }

    /// Elements a head.
    pub fn head_dim(&self) -> u32 {
        head_dim(self.hidden, self.heads)
    }

    /// Inverse frequencies of a head's pairs `[head_dim / 2]`; those that are not rotated turn by 0.
    fn frequencies(&self) -> Vec<f32> {
        let mut frequencies = plain_frequencies(10_000.0, self.rotary_dim);
        frequencies.resize(self.head_dim() as usize / 2, 0.0);
        frequencies
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
        check_heads(self.hidden, self.heads)?;
        let (head, rotary) = (self.head_dim(), self.rotary_dim);
        require(head.is_multiple_of(2), || format!("the head size {head} is odd"))?;
        require((2..=head).contains(&rotary) && rotary.is_multiple_of(2), || {
            format!(
                "{rotary} elements of a head are rotated, which is not an even number from 2 to the head size {head}"
            )
        })
    }
}

/// Elements a head, of a checked configuration.
fn head_dim(hidden: u64, heads: u32) -> u32 {
    // It has at least one head, and a width that fits 32 bits.
    u32::try_from(hidden / u64::from(heads.max(1))).unwrap_or(u32::MAX)
}

fn check_heads(hidden: u64, heads: u32) -> Result<(), ModelError> {
    require(hidden.is_multiple_of(u64::from(heads)), || {
        format!("the hidden size {hidden} is not a multiple of {heads} heads")
    })
}

/// By how much rotary positions are stretched.
fn check_factor(factor: f64) -> Result<f64, ModelError> {
    require(factor.is_finite() && factor > 0.0, || format!("the rotary scaling's factor is {factor}, not above 0"))?;
    Ok(factor)
}

fn narrow(name: &str, n: u64) -> Result<u32, ModelError> {
    u32::try_from(n).map_err(|_| ModelError::Config(format!("{name} is {n}, which is too large")))
}

/// Inverse frequencies as the RoFormer paper has them.
fn plain_frequencies(theta: f32, head_dim: u32) -> Vec<f32> {
    let exponent = |i: u32| -2.0 * f64::from(i) / f64::from(head_dim);
    (0..head_dim / 2).map(|i| f64::from(theta).powf(exponent(i)) as f32).collect()
}
