//! Models with random weights, for tests and measurements where no trained ones can be had.
//!
//! A weight is a function of seed, name and element index, made of integer operations and exact or once-rounded f32 ones
//! only, so that any language gives the same bits; `tools/golden/make_golden.py` has the same function in NumPy.

use genie_graph::DType;

use crate::config::{Config, Gpt2Config, GptJConfig, LlamaConfig};
use crate::weights::{Kind, Source, Weight, WeightSpec};
use crate::{Model, ModelError};

/// Uniform values around a centre: element i is `centre + (2u - 1) * half_width`, where u in [0, 1) has the upper 24 bits
/// of SplitMix64's i-th output (Steele, Lea and Flood 2014) from a start that seed and name give.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    start: u64,
    centre: f32,
    half_width: f32,
}

/// A standard deviation near 0.04 for matrices: twice GPT-2's, so that attention and positions matter to the outcome.
const MATRIX: (f32, f32) = (0.0, 0.0703125);
const NORM: (f32, f32) = (1.0, 0.125);
const VECTOR: (f32, f32) = (0.0, 0.03125);

impl Pattern {
    fn new(seed: u64, spec: &WeightSpec) -> Self {
        let (centre, half_width) = match spec.kind {
            Kind::Matrix => MATRIX,
            Kind::Norm => NORM,
            Kind::Vector => VECTOR,
        };
        Self { start: mix(seed ^ fnv1a(spec.name.as_bytes())), centre, half_width }
    }

    /// Writes the elements from `first` on.
    pub(crate) fn fill(&self, first: u64, out: &mut [f32]) {
        for (i, x) in (first..).zip(out) {
            let bits = mix(self.start.wrapping_add((i + 1).wrapping_mul(GOLDEN)));
            let unit = (bits >> 40) as f32 * (1.0 / (1 << 24) as f32);
            *x = self.centre + (2.0 * unit - 1.0) * self.half_width;
        }
    }
}

/// 2^64 over the golden ratio, odd.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's output function.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// 64-bit FNV-1a.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3))
}

/// A GPT-2 of this shape with random weights, matrices in `dtype`. It has no tokenizer.
///
/// # Errors
/// [`ModelError::Config`] if the shape is impossible, [`ModelError::TargetType`] if `dtype` is not a float.
pub fn random_gpt2(config: Gpt2Config, seed: u64, dtype: DType) -> Result<Model, ModelError> {
    random(Config::Gpt2(config), seed, dtype)
}

/// A Llama of this shape with random weights, matrices in `dtype`. It has no tokenizer.
///
/// # Errors
/// As [`random_gpt2`].
pub fn random_llama(config: LlamaConfig, seed: u64, dtype: DType) -> Result<Model, ModelError> {
    random(Config::Llama(config), seed, dtype)
}

/// A GPT-J of this shape with random weights, matrices in `dtype`. It has no tokenizer.
///
/// # Errors
/// As [`random_gpt2`].
pub fn random_gptj(config: GptJConfig, seed: u64, dtype: DType) -> Result<Model, ModelError> {
    random(Config::GptJ(config), seed, dtype)
}

/// Published models, by the names under which [`preset`] makes them.
pub const PRESETS: [&str; 3] = ["gpt2", "gpt2-xl", "gpt-j-6b"];

/// A model of the true configuration of a published one, but with random weights, matrices in `dtype`. It has no tokenizer.
///
/// # Errors
/// [`ModelError::Preset`] if `name` is none of [`PRESETS`], [`ModelError::TargetType`] if `dtype` is not a float.
pub fn preset(name: &str, seed: u64, dtype: DType) -> Result<Model, ModelError> {
    let config = match name {
        "gpt2" => Config::Gpt2(Gpt2Config::small()),
        "gpt2-xl" => Config::Gpt2(Gpt2Config::xl()),
        "gpt-j-6b" => Config::GptJ(GptJConfig::six_b()),
        other => return Err(ModelError::Preset(other.to_owned())),
    };
    random(config, seed, dtype).map(|model| model.named(format!("{name}, random")))
}

fn random(config: Config, seed: u64, dtype: DType) -> Result<Model, ModelError> {
    let config = config.check()?;
    let weights = config
        .weights()
        .into_iter()
        .map(|spec| {
            let pattern = Pattern::new(seed, &spec);
            let dtype = if spec.kind == Kind::Matrix { dtype } else { DType::F32 };
            match config.made(&spec.name) {
                Some(region) => Weight::new(spec, dtype, Source::Made(region)),
                None => Weight::new(spec, dtype, Source::Random(pattern)),
            }
        })
        .collect::<Result<_, _>>()?;
    Ok(Model::from_parts(format!("random-{seed}"), config, weights))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generators_are_the_published_ones() {
        // SplitMix64 from 0 and FNV-1a of "a", as published with the generators.
        assert_eq!(mix(GOLDEN), 0xE220_A839_7B1D_CDAF);
        assert_eq!(fnv1a(b"a"), 0xAF63_DC4C_8601_EC8C);
    }

    #[test]
    fn parts_equal_the_whole() {
        let spec = WeightSpec { name: "w".into(), dims: vec![100], kind: Kind::Matrix };
        let pattern = Pattern::new(7, &spec);
        let (mut whole, mut part) = ([0.0; 100], [0.0; 40]);
        pattern.fill(0, &mut whole);
        pattern.fill(60, &mut part);
        assert_eq!(whole[60..], part);
        assert!(whole.iter().all(|x| x.abs() <= MATRIX.1));
    }
}
