//! What the tests of matrix products share: weights of every format, and the plain f64 product.

use genie_cuda_kernels::launch::epilogue::Activation;
use genie_cuda_kernels::launch::weight::Weight;
use genie_cuda_kernels::launch::workspace::ZEROED_BYTES;
use genie_cuda_kernels::{LaunchError, View};
use genie_graph::{DType, LinearLayout, QuantFormat};
use half::f16;

use super::support::{Tensor, precision, rounded};

pub(crate) const QUANTISED: [QuantFormat; 3] = [QuantFormat::Q8_0, QuantFormat::Q4_0, QuantFormat::Q4_1];
pub(crate) const ACTIVATIONS: [Activation; 7] = [
    Activation::None,
    Activation::Relu,
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Sigmoid,
    Activation::Tanh,
];

/// A weight in memory, and its values as `[n, k]`.
pub(crate) struct TestWeight {
    pub(crate) memory: Tensor,
    pub(crate) weight: Weight,
    pub(crate) values: Vec<f64>,
}

impl TestWeight {
    pub(crate) fn plain(dtype: DType, layout: LinearLayout, n: usize, k: usize, seed: u64) -> Self {
        let memory = Tensor::random(dtype, n * k, 1.0, seed);
        let stored = memory.values();
        let at = |i: usize| match layout {
            LinearLayout::OutIn => stored[i],
            LinearLayout::InOut => stored[i % k * n + i / k],
        };
        let values = (0..n * k).map(at).collect();
        Self { weight: Weight::plain(memory.view(), layout), memory, values }
    }

    pub(crate) fn quantised(format: QuantFormat, n: usize, k: usize, seed: u64) -> Self {
        let block_bytes = format.block_bytes() as usize;
        let mut numbers = vec![0.0; n * k / 32 * block_bytes];
        genie_graph::random::fill_normal(seed, 0, &mut numbers);
        let mut bytes: Vec<u8> = numbers.iter().map(|v| (v * 80.0) as i32 as u8).collect();
        for (block, number) in bytes.chunks_mut(block_bytes).zip(&numbers) {
            block[..2].copy_from_slice(&f16::from_f32(0.01 * number).to_le_bytes());
            if format == QuantFormat::Q4_1 {
                block[2..4].copy_from_slice(&f16::from_f32(0.1 - 0.05 * number).to_le_bytes());
            }
        }
        let values = bytes.chunks(block_bytes).flat_map(|block| (0..32).map(|i| element(format, block, i))).collect();
        let memory = Tensor::new(DType::U8, &bytes.iter().map(|&b| f64::from(b)).collect::<Vec<_>>());
        Self { weight: Weight::quantised(memory.view(), format), memory, values }
    }

    /// The same values from an address that is an element further than a multiple of 16.
    pub(crate) fn shifted(&self) -> (Tensor, Weight) {
        let (memory, view) = shift(&self.memory);
        (memory, Weight { view, ..self.weight })
    }
}

/// A workspace of so many bytes: counters zero, the rest poisoned.
pub(crate) fn workspace(bytes: Result<u64, LaunchError>) -> Tensor {
    let bytes = bytes.expect("a product that can be made");
    Tensor::new(DType::U8, &(0..bytes).map(|i| if i < ZEROED_BYTES { 0.0 } else { 255.0 }).collect::<Vec<_>>())
}

/// A launch leaves the counters as it found them.
pub(crate) fn assert_counters_are_zero(workspace: &Tensor) {
    let counters = workspace.bytes().len().min(ZEROED_BYTES as usize);
    assert!(workspace.bytes()[..counters].iter().all(|&b| b == 0), "a counter was left behind");
}

/// A copy of a tensor that begins one element behind a multiple of 16 bytes.
pub(crate) fn shift(tensor: &Tensor) -> (Tensor, View) {
    let mut values = vec![0.0];
    values.extend(tensor.values());
    let memory = Tensor::new(tensor.dtype, &values);
    let view = memory.view();
    let bytes = view.dtype.bytes();
    (memory, View::new(view.at + bytes, view.dtype, view.elements - 1))
}

/// Element `i` of a block, from the format's description.
fn element(format: QuantFormat, block: &[u8], i: usize) -> f64 {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f64();
    let nibble = |head: usize| f64::from(block[head + i % 16] >> (4 * (i / 16)) & 15);
    match format {
        QuantFormat::Q8_0 => f64::from(block[2 + i] as i8) * half(0),
        QuantFormat::Q4_0 => (nibble(2) - 8.0) * half(0),
        QuantFormat::Q4_1 => nibble(4) * half(0) + half(2),
    }
}

pub(crate) fn activate(activation: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Silu => x * sigmoid(x),
        Activation::Gelu => x * normal_distribution(x),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Activation::Sigmoid => sigmoid(x),
        Activation::Tanh => x.tanh(),
    }
}

/// The normal distribution up to x, by Simpson's rule; its tails add nothing beyond 9.
fn normal_distribution(x: f64) -> f64 {
    let end = x.clamp(-9.0, 9.0);
    let (steps, density) = (2000, |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt());
    let width = end / f64::from(steps);
    let sum: f64 = (0..=steps)
        .map(|i| density(width * f64::from(i)) * if i == 0 || i == steps { 1.0 } else { 2.0 + 2.0 * f64::from(i % 2) })
        .sum();
    0.5 + sum * width / 3.0
}

/// Sums `[m, n]` of x `[m, k]` and weights `[n, k]`, and the same of magnitudes.
pub(crate) fn product(x: &[f64], weight: &[f64], m: usize, n: usize, k: usize) -> (Vec<f64>, Vec<f64>) {
    let mut sums = (Vec::with_capacity(m * n), Vec::with_capacity(m * n));
    for row in 0..m {
        for column in 0..n {
            let terms = || (0..k).map(|i| x[row * k + i] * weight[column * k + i]);
            sums.0.push(terms().sum());
            sums.1.push(terms().map(f64::abs).sum());
        }
    }
    sums
}

/// As [`super::support::assert_close`], where an element may be off by `sum_error` times the magnitude of what was added up, and by
/// the rounding to `dtype`.
pub(crate) fn assert_sums(what: &str, dtype: DType, got: &[f64], expected: &[f64], magnitudes: &[f64], sum_error: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: number of elements");
    for (i, ((&g, &e), &magnitude)) in got.iter().zip(expected).zip(magnitudes).enumerate() {
        let same = g == e || (g.is_nan() && e.is_nan());
        let allowed = sum_error * magnitude + precision(dtype) * e.abs() + 1e-6;
        assert!(same || (g - e).abs() <= allowed, "{what}: element {i} is {g:e}, expected {e:e} within {allowed:e}");
    }
}

/// Rows normalised and rounded as x's type holds them; without `bias` by the root of the mean square.
pub(crate) fn normalise(dtype: DType, x: &[f64], eps: f64, weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let k = weight.len();
    let rows = x.chunks(k).flat_map(|row| {
        let mean = if bias.is_some() { row.iter().sum::<f64>() / k as f64 } else { 0.0 };
        let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / k as f64;
        let scale = 1.0 / (variance + eps).sqrt();
        (0..k).map(move |i| (row[i] - mean) * scale * weight[i] + bias.map_or(0.0, |bias| bias[i])).collect::<Vec<_>>()
    });
    rounded(dtype, &rows.collect::<Vec<_>>())
}
