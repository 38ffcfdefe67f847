//! Configurations from GGUF metadata.

use genie_graph::{LinearLayout, RopeStyle};

use super::{Config, Gpt2Config, LlamaConfig, check_factor, narrow, plain_frequencies, require};
use crate::ModelError;
use crate::dequant::dequantize;
use crate::gguf::{Gguf, Value};

pub(super) fn read(file: &Gguf) -> Result<Config, ModelError> {
    let architecture = file.get("general.architecture").and_then(Value::as_str).ok_or_else(|| {
        ModelError::Config(
            "general.architecture is missing: the file holds something else than a language model".into(),
        )
    })?;
    let keys = Keys { file, architecture };
    match architecture {
        "llama" => llama_from_gguf(&keys, RopeStyle::Interleaved),
        "qwen2" => llama_from_gguf(&keys, RopeStyle::Half),
        "gpt2" => gpt2_from_gguf(&keys),
        other => Err(ModelError::Architecture(other.to_owned())),
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
    let window = Some(keys.count_or("attention.sliding_window", 0)?).filter(|&n| n > 0).unwrap_or(u64::MAX);
    let rope_theta = if keys.get("rope.freq_base").is_some() { keys.real("rope.freq_base")? } else { 10_000.0 };
    let config = LlamaConfig {
        vocab: keys.vocab()?,
        hidden,
        layers: keys.count32("block_count")?,
        heads,
        kv_heads: narrow("head_count_kv", keys.count_or("attention.head_count_kv", heads.into())?)?,
        head_dim,
        intermediate: keys.count("feed_forward_length")?,
        // Within the window, a model with one computes what a model without one does.
        max_positions: keys.count("context_length")?.min(window),
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
        require(dequantize(t.ty, &t.data, &mut divisors), || {
            format!("rope_freqs.weight has shape {:?}, not {} elements", t.dims, frequencies.len())
        })?;
        frequencies.iter_mut().zip(divisors).for_each(|(f, d)| *f /= d);
        return Ok(Some(frequencies));
    }
    let old = keys.get("rope.scaling.factor").is_none() && keys.get("rope.scale_linear").is_some();
    let key = if old { "rope.scale_linear" } else { "rope.scaling.factor" };
    // A factor without a type is a linear one.
    let default = if keys.get(key).is_some() { "linear" } else { "none" };
    match keys.get("rope.scaling.type").and_then(Value::as_str).unwrap_or(default) {
        "none" => Ok(None),
        "linear" => {
            let factor = check_factor(keys.real(key)?.into())? as f32;
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
