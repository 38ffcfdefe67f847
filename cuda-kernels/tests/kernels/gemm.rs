//! Products of many rows.

use genie_cuda_kernels::View;
use genie_cuda_kernels::launch::epilogue::{Activation, Epilogue};
use genie_cuda_kernels::launch::gemm::{Batch, Gemm};
use genie_cuda_kernels::launch::weight::Weight;
use genie_cuda_kernels::launch::workspace::Machine;
use genie_graph::{DType, LinearLayout, QuantFormat};

use super::product::{
    ACTIVATIONS, QUANTISED, TestWeight, activate, assert_counters_are_zero, assert_sums, product, shift, workspace,
};
use super::support::{FLOATS, Tensor, precision, rounded, run, run_once};

const LAYOUTS: [LinearLayout; 2] = [LinearLayout::OutIn, LinearLayout::InOut];
/// So many multiprocessors that tiles are small and sums are cut into parts, and so few that tiles are large.
const MANY: Machine = Machine { sms: 132, shared: 227 << 10 };
const FEW: Machine = Machine { sms: 1, shared: 64 << 10 };

fn case(a: View, b: Weight, c: View, m: usize, n: usize, k: usize) -> Gemm {
    let (epilogue, batch) = (Epilogue::default(), Batch::ONE);
    Gemm { a, b, c, epilogue, m: m as u64, n: n as u64, k: k as u64, batch }
}

fn compute(gemm: &Gemm, machine: Machine, c: &mut Tensor) {
    let workspace = workspace(gemm.workspace_bytes(machine));
    run(gemm.launch(workspace.view(), machine), &mut [c]);
    assert_counters_are_zero(&workspace);
}

/// The weight as the kernel multiplies it: 16-bit types round it to theirs.
fn converted(dtype: DType, stored: &TestWeight) -> Vec<f64> {
    if dtype == DType::F32 { stored.values.clone() } else { rounded(dtype, &stored.values) }
}

/// What the sums may be off by, relative to the magnitude of what is added up: they are taken one after another in f32, and a
/// quantised element that is taken in f32 and then rounded may be the neighbour of the one that f64 gives.
fn sum_error(dtype: DType, stored: &TestWeight, k: usize) -> f64 {
    let chain = 3e-7 + 1e-8 * k as f64;
    if stored.weight.format.is_none() || dtype == DType::F32 { chain } else { chain + 0.05 * precision(dtype) }
}

fn check(dtype: DType, stored: &TestWeight, [m, n, k]: [usize; 3], machine: Machine) {
    let a = Tensor::random(dtype, m * k, 1.0, (m + n) as u64);
    let mut c = Tensor::poisoned(dtype, m * n);
    compute(&case(a.view(), stored.weight, c.view(), m, n, k), machine, &mut c);
    let (sums, magnitudes) = product(&a.values(), &converted(dtype, stored), m, n, k);
    let what = format!("[{m}, {k}] of {dtype} by {n} of {:?}", stored.weight);
    assert_sums(&what, dtype, &c.values(), &sums, &magnitudes, sum_error(dtype, stored, k));
}

#[test]
fn floats_of_every_type_and_layout() {
    for dtype in FLOATS {
        for weight in FLOATS {
            for layout in LAYOUTS {
                for [m, n, k] in [[70, 72, 200], [9, 67, 61]] {
                    check(dtype, &TestWeight::plain(weight, layout, n, k, 1), [m, n, k], MANY);
                }
            }
        }
    }
}

#[test]
fn large_tiles() {
    for dtype in [DType::F16, DType::BF16] {
        for layout in LAYOUTS {
            check(dtype, &TestWeight::plain(dtype, layout, 136, 168, 2), [150, 136, 168], FEW);
            check(dtype, &TestWeight::plain(dtype, layout, 91, 37, 2), [129, 91, 37], FEW);
        }
    }
}

#[test]
fn parts_of_sums() {
    let [m, n, k] = [66, 9, 1000];
    for dtype in FLOATS {
        for stored in [
            TestWeight::plain(dtype, LinearLayout::InOut, n, k, 23),
            TestWeight::quantised(QuantFormat::Q8_0, n, 992, 23),
        ] {
            let k = stored.values.len() / n;
            check(dtype, &stored, [m, n, k], MANY);
            check(dtype, &stored, [m, n, k], Machine { sms: 3, ..MANY });
        }
    }
    let large = TestWeight::plain(DType::F16, LinearLayout::OutIn, 66, k, 23);
    check(DType::F16, &large, [m, 66, k], FEW);
}

#[test]
fn more_rows_of_tiles_than_a_band() {
    let [m, n, k] = [64 * 9 + 3, 130, 8];
    for dtype in [DType::F32, DType::BF16] {
        check(dtype, &TestWeight::plain(dtype, LinearLayout::OutIn, n, k, 3), [m, n, k], MANY);
    }
}

#[test]
fn quantised_weights() {
    for format in QUANTISED {
        for dtype in FLOATS {
            for [m, n, k] in [[5, 66, 224], [65, 3, 32]] {
                check(dtype, &TestWeight::quantised(format, n, k, 4), [m, n, k], MANY);
            }
        }
    }
}

#[test]
fn matrices_of_a_batch() {
    let (count, m, n, k) = (3, 17, 40, 48);
    for dtype in FLOATS {
        for layout in LAYOUTS {
            for (same_a, same_b) in [(false, false), (true, false), (false, true)] {
                let a = Tensor::random(dtype, if same_a { 1 } else { count } * m * k, 1.0, 5);
                // Matrices one after another are one of more rows, where rows are whole.
                let matrices: Vec<TestWeight> = (0..if same_b { 1 } else { count })
                    .map(|i| TestWeight::plain(dtype, layout, n, k, 6 + i as u64))
                    .collect();
                let stored: Vec<f64> = matrices.iter().flat_map(|b| b.memory.values()).collect();
                let b = Tensor::new(dtype, &stored);
                let mut c = Tensor::poisoned(dtype, count * m * n);
                let residual = Tensor::random(dtype, count * m * n, 1.0, 9);
                let epilogue = Epilogue { residual: Some(residual.view()), ..Epilogue::default() };
                let batch = Batch { count: count as u64, same_a, same_b };
                let weight = Weight::plain(b.view(), layout);
                compute(&Gemm { epilogue, batch, ..case(a.view(), weight, c.view(), m, n, k) }, MANY, &mut c);
                let (values, added) = (a.values(), residual.values());
                for i in 0..count {
                    let from = if same_a { 0 } else { i * m * k };
                    let of_b = &matrices[if same_b { 0 } else { i }].values;
                    let (sums, magnitudes) = product(&values[from..from + m * k], of_b, m, n, k);
                    let range = i * m * n..(i + 1) * m * n;
                    let expected: Vec<f64> = sums.iter().zip(&added[range.clone()]).map(|(s, r)| s + r).collect();
                    let what = format!("matrix {i} of {dtype}, {layout:?}, {same_a}, {same_b}");
                    assert_sums(&what, dtype, &c.values()[range], &expected, &magnitudes, 1e-6);
                }
            }
        }
    }
}

#[test]
fn sums_are_finished() {
    let (m, n, k) = (11, 70, 32);
    for dtype in FLOATS {
        let a = Tensor::random(dtype, m * k, 0.2, 10);
        let stored = TestWeight::plain(dtype, LinearLayout::InOut, n, k, 11);
        let (bias, factor) = (Tensor::random(DType::BF16, n, 1.0, 12), Tensor::random(dtype, m * n, 1.0, 13));
        let (sums, magnitudes) = product(&a.values(), &stored.values, m, n, k);
        let (bias_values, factors) = (bias.values(), factor.values());
        for activation in ACTIVATIONS {
            let mut c = Tensor::poisoned(dtype, m * n);
            let (bias, factor) = (Some(bias.view()), Some(factor.view()));
            let epilogue = Epilogue { bias, activation, factor, residual: factor };
            compute(&Gemm { epilogue, ..case(a.view(), stored.weight, c.view(), m, n, k) }, MANY, &mut c);
            let finished = |i: usize| activate(activation, sums[i] + bias_values[i % n]) * factors[i] + factors[i];
            let expected: Vec<f64> = (0..m * n).map(finished).collect();
            assert_sums(&format!("{activation:?} of {dtype}"), dtype, &c.values(), &expected, &magnitudes, 5e-6);
        }
    }
}

#[test]
fn the_result_may_lie_on_what_is_added() {
    let (m, n, k) = (3, 9, 16);
    for dtype in FLOATS {
        let a = Tensor::random(dtype, m * k, 1.0, 14);
        let stored = TestWeight::plain(dtype, LinearLayout::OutIn, n, k, 15);
        let before = Tensor::random(dtype, m * n, 1.0, 16);
        let c = Tensor::new(dtype, &before.values());
        let epilogue = Epilogue { residual: Some(c.view()), ..Epilogue::default() };
        let gemm = Gemm { epilogue, ..case(a.view(), stored.weight, c.view(), m, n, k) };
        let none = workspace(gemm.workspace_bytes(MANY));
        run_once(&gemm.launch(none.view(), MANY).expect("a product that can be made"));
        let (sums, magnitudes) = product(&a.values(), &stored.values, m, n, k);
        let expected: Vec<f64> = sums.iter().zip(before.values()).map(|(s, b)| s + b).collect();
        assert_sums("in place", dtype, &c.values(), &expected, &magnitudes, 1e-6);
    }
}

#[test]
fn tensors_that_begin_between_packs() {
    let (m, n, k) = (5, 72, 64);
    for dtype in FLOATS {
        for layout in LAYOUTS {
            let stored = TestWeight::plain(dtype, layout, n, k, 17);
            let a = Tensor::random(dtype, m * k, 1.0, 18);
            let ((_a, from), (_b, weight)) = (shift(&a), stored.shifted());
            let mut c = Tensor::poisoned(dtype, m * n + 1);
            let to = View::new(c.view().at + dtype.bytes(), dtype, (m * n) as u64);
            compute(&case(from, weight, to, m, n, k), MANY, &mut c);
            let (sums, magnitudes) = product(&a.values(), &stored.values, m, n, k);
            assert_sums("shifted", dtype, &c.values()[1..], &sums, &magnitudes, 1e-6);
            assert!(c.values()[0].is_nan(), "the element in front of c was written");
        }
    }
}

#[test]
fn rows_that_are_not_finite_keep_to_themselves() {
    let (m, n, k) = (4, 8, 40);
    for dtype in FLOATS {
        let mut values = Tensor::random(dtype, m * k, 1.0, 19).values();
        (values[5], values[k + 7], values[3 * k - 1]) = (f64::INFINITY, f64::NAN, f64::NEG_INFINITY);
        let a = Tensor::new(dtype, &values);
        for stored in [
            TestWeight::plain(dtype, LinearLayout::OutIn, n, k, 20),
            TestWeight::plain(DType::F32, LinearLayout::InOut, n, k, 20),
        ] {
            let mut c = Tensor::poisoned(dtype, m * n);
            compute(&case(a.view(), stored.weight, c.view(), m, n, k), MANY, &mut c);
            let (sums, magnitudes) = product(&values, &converted(dtype, &stored), m, n, k);
            assert_sums(&format!("{dtype}"), dtype, &c.values(), &sums, &magnitudes, 1e-6);
        }
    }
}

#[test]
fn nothing_to_add_up_and_nothing_to_do() {
    for dtype in FLOATS {
        let (a, mut c) = (Tensor::poisoned(dtype, 0), Tensor::poisoned(dtype, 6));
        let bias = Tensor::new(dtype, &[1.0, -2.0, 3.0]);
        let epilogue = Epilogue { bias: Some(bias.view()), activation: Activation::Relu, ..Epilogue::default() };
        let b = Weight::plain(a.view(), LinearLayout::InOut);
        compute(&Gemm { epilogue, ..case(a.view(), b, c.view(), 2, 3, 0) }, MANY, &mut c);
        assert_eq!(c.values(), [1.0, 0.0, 3.0, 1.0, 0.0, 3.0]);
        let none = Gemm { batch: Batch { count: 0, ..Batch::ONE }, ..case(a.view(), b, a.view(), 2, 3, 4) };
        assert!(none.launch(a.view(), MANY).expect("no matrices are fine").is_none());
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (a, c) = (Tensor::poisoned(DType::F16, 64), Tensor::poisoned(DType::F16, 32));
    let stored = TestWeight::plain(DType::F16, LinearLayout::OutIn, 16, 32, 21);
    let good = case(a.view(), stored.weight, c.view(), 2, 16, 32);
    let none = Tensor::poisoned(DType::U8, 0);
    assert!(good.launch(none.view(), MANY).is_ok());
    let refused = |gemm: Gemm| gemm.launch(none.view(), MANY).expect_err("it must be refused").to_string();
    assert_eq!(refused(Gemm { k: 31, ..good }), "`gemm` needs 62 elements of a, but the tensor has 64");
    assert!(refused(Gemm { c: Tensor::poisoned(DType::I32, 32).view(), ..good }).contains("takes no c of type i32"));
    let blocks = TestWeight::quantised(QuantFormat::Q4_1, 32, 32, 22);
    let batch = Batch { count: 2, same_a: false, same_b: false };
    let halves = Gemm { b: blocks.weight, batch, m: 1, ..good };
    assert!(refused(halves).contains("of one matrix where b is quantised"));
    let integers = Tensor::poisoned(DType::I32, 64);
    assert!(refused(Gemm { a: integers.view(), ..good }).contains("takes no a of type i32"));
}
