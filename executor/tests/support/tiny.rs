//! A model that runs in a blink.

use genie_graph::DType;

use crate::support::models::Config;

/// Sizes that are multiples of nothing.
pub(crate) const TINY: Config = Config {
    layers: 2,
    hidden: 36,
    heads: 6,
    kv_heads: 2,
    intermediate: 52,
    vocabulary: 101,
    weights: DType::F32,
    cache: DType::F32,
    activations: DType::F32,
    vectors: None,
};
