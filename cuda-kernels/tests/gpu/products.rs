//! Matrix products by a library, against plain sums.

use std::sync::Arc;

use genie_cuda_kernels::View;
use genie_cuda_kernels::gpu::{Gpu, GpuError, Operands, Product, WeightLayout};
use genie_graph::DType;
use half::{bf16, f16};

use super::support::{Buffer, gpus};

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const LAYOUTS: [WeightLayout; 2] = [WeightLayout::OutIn, WeightLayout::InOut];

pub(crate) fn product(dtype: DType, layout: WeightLayout, [m, n, k]: [u64; 3], batch: u64) -> Product {
    let (a_step, b_step, c_step) = (m * k, n * k, m * n);
    Product { dtype, c_type: dtype, layout, m, n, k, batch, a_step, b_step, c_step, gelu: false }
}

fn encode(dtype: DType, value: f32) -> Vec<u8> {
    match dtype {
        DType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

fn decode(dtype: DType, bytes: &[u8]) -> f64 {
    match dtype {
        DType::F16 => f16::from_le_bytes(bytes.try_into().expect("two bytes")).to_f64(),
        DType::BF16 => bf16::from_le_bytes(bytes.try_into().expect("two bytes")).to_f64(),
        _ => f32::from_le_bytes(bytes.try_into().expect("four bytes")).into(),
    }
}

/// Elements on a GPU, some bytes after where its memory begins, and what they are.
struct Matrix {
    buffer: Buffer,
    dtype: DType,
    skip: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn random(gpu: &Arc<dyn Gpu>, dtype: DType, count: u64, seed: u64, skip: usize) -> Self {
        let mut values = vec![0.0; count as usize];
        genie_graph::random::fill_normal(seed, 0, &mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|&value| encode(dtype, value)).collect();
        let buffer = Buffer::holding(gpu, &[vec![0; skip], bytes.clone()].concat());
        let values = bytes.chunks(dtype.bytes() as usize).map(|element| decode(dtype, element)).collect();
        Self { buffer, dtype, skip, values }
    }

    fn view(&self) -> View {
        View::new(self.buffer.at + self.skip as u64, self.dtype, self.values.len() as u64)
    }

    fn now(&self) -> Vec<f64> {
        self.buffer.read()[self.skip..].chunks(self.dtype.bytes() as usize).map(|e| decode(self.dtype, e)).collect()
    }
}

/// What is added to a product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct More {
    /// The result as it was.
    itself: bool,
    /// Another matrix.
    other: bool,
    bias: bool,
    /// Bytes after which it begins.
    bias_skip: usize,
}

pub(crate) const NOTHING: More = More { itself: false, other: false, bias: false, bias_skip: 0 };
pub(crate) const A_BIAS: More = More { bias: true, ..NOTHING };

/// Runs a product; false if the library has no way. Elements of `c` between the steps must stay.
pub(crate) fn check(gpu: &Arc<dyn Gpu>, product: &Product, skip: usize, more: More) -> bool {
    let Product { dtype, c_type, layout, m, n, k, batch, a_step, b_step, c_step, gelu } = *product;
    let a = Matrix::random(gpu, dtype, (batch - 1) * a_step + m * k, 1, skip);
    let b = Matrix::random(gpu, dtype, (batch - 1) * b_step + n * k, 2, skip);
    let c = Matrix::random(gpu, c_type, (batch - 1) * c_step + m * n, 3, skip);
    let other = Matrix::random(gpu, c_type, (batch - 1) * c_step + m * n, 4, skip);
    let bias = Matrix::random(gpu, c_type, n, 5, more.bias_skip);
    let added = if more.itself { Some(&c) } else { Some(&other).filter(|_| more.other) };
    let operands = Operands {
        added: added.map(Matrix::view),
        bias: more.bias.then(|| bias.view()),
        ..Operands::new(a.view(), b.view(), c.view())
    };
    // SAFETY: the matrices live on until `now` has waited.
    if !unsafe { gpu.multiply(product, &operands) }.expect("no error") {
        assert_eq!(c.now(), c.values, "nothing was done");
        return false;
    }
    let mut expected: Vec<(f64, f64)> = c.values.iter().map(|&value| (value, 0.0)).collect();
    for (of, row, column) in (0..batch).flat_map(|i| (0..m).flat_map(move |r| (0..n).map(move |c| (i, r, c)))) {
        let term = |i: u64| {
            let weight = match layout {
                WeightLayout::OutIn => column * k + i,
                WeightLayout::InOut => i * n + column,
            };
            a.values[(of * a_step + row * k + i) as usize] * b.values[(of * b_step + weight) as usize]
        };
        let (sum, size) = (0..k).map(term).fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        let at = (of * c_step + row * n + column) as usize;
        let mut before = added.map_or(0.0, |added| added.values[at]);
        before += if more.bias { bias.values[column as usize] } else { 0.0 };
        // Sums in f32, in any order: at most one rounding a term, and one of the result.
        let last = match c_type {
            DType::F16 => 2.0_f64.powi(-11),
            DType::BF16 => 2.0_f64.powi(-8),
            _ => 2.0_f64.powi(-24),
        };
        let value = if gelu { gelu_of(sum + before) } else { sum + before };
        // The library's hyperbolic tangent may be the GPU's own, which is off by 2^-11 at most (PTX ISA, `tanh.approx.f32`), and half of
        // its argument is what it is multiplied by. No function here is steeper than 1.2.
        let of_gelu = if gelu { (sum + before).abs() * 2.0_f64.powi(-11) + 1e-3 * value.abs() } else { 0.0 };
        let sums = 1.2 * (size * k as f64 + 2.0 * before.abs()) * 2.0_f64.powi(-24);
        expected[at] = (value, sums + value.abs() * last + of_gelu + 1e-7);
    }
    for (at, (&got, (value, error))) in c.now().iter().zip(expected).enumerate() {
        let what = format!("{product:?}, {more:?}, element {at}");
        assert!((got - value).abs() <= error, "{what}: {got}, expected {value} within {error}");
    }
    true
}

fn gelu_of(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

#[test]
fn products_are_those_of_plain_sums() {
    for gpu in gpus() {
        for dtype in TYPES {
            for layout in LAYOUTS {
                for sizes in [[1, 64, 128], [8, 32, 16], [64, 48, 80], [16, 8, 256]] {
                    let product = product(dtype, layout, sizes, 1);
                    assert!(check(&gpu, &product, 0, NOTHING), "no way (no cuBLASLt?) for {product:?}");
                    let itself = More { itself: true, ..NOTHING };
                    assert!(check(&gpu, &product, 0, itself), "no way for {product:?}, added");
                }
            }
        }
    }
}

/// Factors of 16 bits and a result of 32, and what a layer does to its sums.
#[test]
fn results_are_wide_and_finished() {
    for gpu in gpus() {
        for dtype in TYPES {
            for layout in LAYOUTS {
                for c_type in [DType::F32, dtype] {
                    let plain = Product { c_type, ..product(dtype, layout, [64, 48, 80], 1) };
                    assert!(check(&gpu, &plain, 0, NOTHING), "no way for {plain:?}");
                    for (gelu, other, bias) in [
                        (false, true, false),
                        (false, false, true),
                        (false, true, true),
                        (true, false, false),
                        (true, false, true),
                    ] {
                        // The library may have no way for some; then nothing was done.
                        check(&gpu, &Product { gelu, ..plain }, 0, More { other, bias, ..NOTHING });
                    }
                }
            }
        }
    }
}

/// What was found for a bias is for such as are aligned as it is: the library looks at its address. One plan did for all.
#[test]
fn a_bias_lies_at_any_place_after_another() {
    for gpu in gpus() {
        for dtype in TYPES {
            let product = product(dtype, WeightLayout::OutIn, [32, 48, 16], 1);
            for bias_skip in [0, 16, 0, 64, 48] {
                let bias = More { bias: true, bias_skip, ..NOTHING };
                assert!(check(&gpu, &product, 0, bias), "no way for {product:?}, {bias:?}");
            }
            // May be refused.
            check(&gpu, &product, 0, More { bias: true, bias_skip: dtype.bytes() as usize, ..NOTHING });
        }
    }
}

#[test]
fn odd_sizes_and_addresses_are_right_or_refused() {
    for gpu in gpus() {
        for dtype in TYPES {
            for layout in LAYOUTS {
                let skips = [dtype.bytes() as usize, 3 * dtype.bytes() as usize];
                for (sizes, skip) in
                    [[1, 1, 1], [3, 5, 7], [33, 17, 65], [2, 129, 31]].into_iter().zip(skips.into_iter().cycle())
                {
                    check(&gpu, &product(dtype, layout, sizes, 1), skip, NOTHING);
                }
            }
        }
        assert!(
            check(&gpu, &product(DType::F32, WeightLayout::OutIn, [3, 5, 7], 1), 4, NOTHING),
            "f32 needs no alignment"
        );
    }
}

#[test]
fn batches_step_as_they_are_told() {
    for gpu in gpus() {
        for dtype in TYPES {
            let plain = product(dtype, WeightLayout::OutIn, [8, 16, 32], 3);
            assert!(check(&gpu, &plain, 0, NOTHING));
            assert!(check(&gpu, &Product { b_step: 0, ..plain }, 0, NOTHING), "one weight for all");
            let apart = Product { a_step: 8 * 32 + 64, b_step: 16 * 32 + 8, c_step: 8 * 16 + 24, ..plain };
            assert!(check(&gpu, &apart, 0, NOTHING));
            let itself = More { itself: true, ..NOTHING };
            assert!(check(&gpu, &Product { layout: WeightLayout::InOut, ..apart }, 0, itself));
        }
    }
}

#[test]
fn a_product_can_be_recorded() {
    for gpu in gpus() {
        let wanted = product(DType::F32, WeightLayout::OutIn, [4, 4, 4], 1);
        let identity: Vec<f32> = (0..16).map(|i| f32::from(u8::from(i % 5 == 0))).collect();
        let (a, b) = (Buffer::of_floats(&gpu, &[1.0; 16]), Buffer::of_floats(&gpu, &identity));
        let c = Buffer::of_floats(&gpu, &[0.0; 16]);
        let graph = gpu.capture(&mut || {
            // SAFETY: the buffers outlive the graph's replays.
            let done = unsafe { gpu.multiply(&wanted, &Operands::new(a.view(), b.view(), c.view())) }?;
            assert!(done, "no way for it");
            Ok(())
        });
        let graph = graph.expect("a graph");
        for value in [2.0_f32, 7.0] {
            a.write(&[value; 16].map(f32::to_le_bytes).concat());
            // SAFETY: as above.
            unsafe { gpu.replay(&graph) }.expect("a replay");
            assert_eq!(c.floats(), vec![value; 16]);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for gpu in gpus() {
        let view = |elements| View::new(256, DType::F32, elements);
        let good = product(DType::F32, WeightLayout::OutIn, [4, 4, 4], 2);
        let no = |product: Product, [a, b, c]: [View; 3]| {
            // SAFETY: it is refused before anything is touched.
            let error = unsafe { gpu.multiply(&product, &Operands::new(a, b, c)) }.expect_err("it does not fit");
            assert!(matches!(error, GpuError::Refused { .. }), "{error}");
        };
        no(good, [view(31), view(32), view(32)]);
        no(good, [view(32), view(31), view(32)]);
        no(good, [view(32), view(32), view(31)]);
        no(good, [view(32), View::new(256, DType::F16, 32), view(32)]);
        no(good, [view(32), view(32), View::new(258, DType::F32, 32)]);
        no(Product { c_step: 15, ..good }, [view(32), view(32), view(32)]);
        no(Product { m: u64::MAX, k: u64::MAX, ..good }, [view(32), view(32), view(32)]);
        no(Product { dtype: DType::I32, ..good }, [view(32), view(32), view(32)]);
        let half = |elements| View::new(256, DType::F16, elements);
        no(Product { c_type: DType::F16, ..good }, [view(32), view(32), half(32)]);
        no(Product { dtype: DType::F16, c_type: DType::BF16, ..good }, [half(32), half(32), half(32)]);
        let wide = Product { dtype: DType::F16, ..good };
        let operands = Operands::new(half(32), half(32), view(32));
        for (added, bias) in
            [(Some(half(32)), None), (Some(view(31)), None), (None, Some(half(4))), (None, Some(view(3)))]
        {
            // SAFETY: it is refused before anything is touched.
            let refused = unsafe { gpu.multiply(&wide, &Operands { added, bias, ..operands }) };
            assert!(matches!(refused, Err(GpuError::Refused { .. })), "{added:?}, {bias:?}");
        }
        // SAFETY: there is nothing to do.
        let done = unsafe { gpu.multiply(&Product { n: 0, ..good }, &Operands::new(view(32), view(0), view(0))) };
        assert_eq!(done, Ok(true));
    }
}
