//! How far whole models on the CUDA device are from the reference, in numbers that `tools/gpu-check` reads.

use genie_graph::DType;

use crate::models::beside_the_reference;
use crate::reference::Tensor;
use crate::stand_in::gpu;
use crate::support::Runner;
use crate::support::models::{Config, gpt2, llama};
use crate::tiny::TINY;

/// The largest difference of two lists of logits, by the largest logit.
fn error(got: &Tensor, expected: &Tensor) -> f64 {
    let largest = expected.data.iter().fold(0.0, |most: f64, e| most.max(e.abs()));
    let differences = got.data.iter().zip(&expected.data).map(|(g, e)| (g - e).abs());
    // Not a number is as far off as can be.
    differences.fold(0.0, |worst: f64, d| if d.is_nan() { f64::INFINITY } else { worst.max(d) }) / largest
}

#[test]
fn errors_stay_small() {
    for (name, make) in [("llama", llama as fn(&Config) -> _), ("gpt2", gpt2)] {
        for (dtype, most) in [(DType::F32, 1e-3), (DType::F16, 2e-2), (DType::BF16, 2e-2)] {
            let mut worst: f64 = 0.0;
            let config = Config { weights: dtype, cache: dtype, ..TINY };
            let load = |model| Runner::new(gpu(), model);
            beside_the_reference(make, &config, load, |got, expected| worst = worst.max(error(got, expected)));
            println!("golden, {name} {dtype}: error {worst:.1e}, at most {most:.0e}");
            assert!(worst <= most, "{name} {dtype}: {worst}");
        }
    }
}

#[test]
fn an_error_is_seen() {
    let of = |data: &[f64]| Tensor::new(DType::F32, &[1, data.len()], data.to_vec());
    assert_eq!(error(&of(&[1.0, -4.5]), &of(&[1.0, -4.0])), 0.125);
    assert_eq!(error(&of(&[f64::NAN, 2.0]), &of(&[1.0, 2.0])), f64::INFINITY);
}
