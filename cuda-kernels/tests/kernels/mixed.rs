//! Products of factors of 16 bits beside numbers of 32: what is read, added and stored has types of its own.

use genie_cuda_kernels::launch::epilogue::{Activation, Epilogue, Prologue};
use genie_cuda_kernels::launch::gemm::{Batch, Gemm};
use genie_cuda_kernels::launch::matvec::{Gate, Matvec};
use genie_cuda_kernels::launch::workspace::Machine;
use genie_graph::{DType, LinearLayout, QuantFormat};

use super::product::{
    TestWeight, activate, assert_counters_are_zero, assert_sums, normalise, product, shift, workspace,
};
use super::support::{FLOATS, Tensor, precision, rounded, run, run_all};

const MACHINE: Machine = Machine { sms: 16, shared: 227 << 10 };
const NARROW: [DType; 2] = [DType::F16, DType::BF16];
const LAYOUTS: [LinearLayout; 2] = [LinearLayout::OutIn, LinearLayout::InOut];
const SUM_ERROR: f64 = 1e-6;

fn few(matvec: &Matvec, y: &mut Tensor) -> Vec<f64> {
    let workspace = workspace(matvec.workspace_bytes(MACHINE));
    let launches = matvec.launches(workspace.view(), MACHINE).expect("a product that can be made");
    run_all(&launches, &mut [y]);
    assert_counters_are_zero(&workspace);
    y.values()
}

fn many(gemm: &Gemm, c: &mut Tensor) -> Vec<f64> {
    let workspace = workspace(gemm.workspace_bytes(MACHINE));
    run(gemm.launch(workspace.view(), MACHINE), &mut [c]);
    assert_counters_are_zero(&workspace);
    c.values()
}

/// Weights of the type that rows are rounded to, of others, and in blocks.
fn weights(narrow: DType, n: usize, k: usize) -> Vec<TestWeight> {
    let mut all: Vec<TestWeight> = LAYOUTS.map(|layout| TestWeight::plain(narrow, layout, n, k, 1)).into();
    let other = if narrow == DType::F16 { DType::BF16 } else { DType::F16 };
    all.push(TestWeight::plain(other, LinearLayout::OutIn, n, k, 2));
    all.push(TestWeight::plain(DType::F32, LinearLayout::InOut, n, k, 3));
    if k.is_multiple_of(32) {
        all.push(TestWeight::quantised(QuantFormat::Q8_0, n, k, 4));
        all.push(TestWeight::quantised(QuantFormat::Q4_1, n, k, 5));
    }
    all
}

/// Few rows of f32, normalised, then rounded to 16 bits, as a separate conversion would: on any weights, into any type.
#[test]
fn rows_of_f32_are_rounded_before_they_are_multiplied() {
    for narrow in NARROW {
        for (rows, n, k) in [(3, 40, 320), (9, 33, 328), (2, 9, 75)] {
            let x = Tensor::random(DType::F32, rows * k, 2.0, 6);
            let (scale, shift) = (Tensor::random(DType::F32, k, 1.0, 7), Tensor::random(DType::F32, k, 1.0, 8));
            let norm = Prologue::LayerNorm { eps: 1e-5, weight: scale.view(), bias: shift.view() };
            for (i, stored) in weights(narrow, n, k).iter().enumerate() {
                let to = FLOATS[i % 3];
                for prologue in [Prologue::None, norm] {
                    let mut y = Tensor::poisoned(to, rows * n);
                    let matvec = Matvec {
                        x: x.view(),
                        x_as: narrow,
                        y: y.view(),
                        weight: stored.weight,
                        gate: None,
                        prologue,
                        epilogue: Epilogue::default(),
                        ahead: None,
                        rows: rows as u64,
                        n: n as u64,
                        k: k as u64,
                    };
                    let got = few(&matvec, &mut y);
                    let read = match prologue {
                        Prologue::None => rounded(narrow, &x.values()),
                        _ => normalise(narrow, &x.values(), 1e-5, &scale.values(), Some(&shift.values())),
                    };
                    let (sums, magnitudes) = product(&read, &stored.values, rows, n, k);
                    // Where f32 and f64 round a normalised element to different neighbours, a term is off by one place.
                    let error = SUM_ERROR + 0.05 * precision(narrow);
                    let what = format!("[{rows}, {k}] as {narrow} by {:?} into {to}, {prologue:?}", stored.weight);
                    assert_sums(&what, to, &got, &sums, &magnitudes, error);
                }
            }
        }
    }
}

/// The end of a layer: a product of 16 bits is added to what has 32, with nothing rounded on the way.
#[test]
fn few_rows_are_added_to_what_is_wider() {
    let (rows, n, k) = (11, 37, 264);
    for narrow in NARROW {
        let x = Tensor::random(narrow, rows * k, 0.2, 9);
        let bias = Tensor::random(DType::F32, n, 1.0, 10);
        let factor = Tensor::random(narrow, rows * n, 1.0, 11);
        let residual = Tensor::random(DType::F32, rows * n, 100.0, 12);
        for stored in weights(narrow, n, k).iter().take(2) {
            let mut y = Tensor::poisoned(DType::F32, rows * n);
            let epilogue = Epilogue {
                bias: Some(bias.view()),
                activation: Activation::Silu,
                factor: Some(factor.view()),
                residual: Some(residual.view()),
            };
            let (weight, rows_of, columns) = (stored.weight, rows as u64, n as u64);
            let prologue = Prologue::None;
            let matvec = Matvec {
                x: x.view(),
                x_as: narrow,
                y: y.view(),
                weight,
                gate: None,
                prologue,
                epilogue,
                ahead: None,
                rows: rows_of,
                n: columns,
                k: k as u64,
            };
            let got = few(&matvec, &mut y);
            let (sums, magnitudes) = product(&x.values(), &stored.values, rows, n, k);
            let (of_bias, factors, added) = (bias.values(), factor.values(), residual.values());
            let value = |i: usize| activate(Activation::Silu, sums[i] + of_bias[i % n]) * factors[i] + added[i];
            let expected: Vec<f64> = (0..rows * n).map(value).collect();
            assert_sums(&format!("{narrow}"), DType::F32, &got, &expected, &magnitudes, 5.0 * SUM_ERROR);
        }
    }
}

#[test]
fn gated_pairs_of_rounded_rows() {
    let (rows, n, k) = (9, 45, 160);
    for narrow in NARROW {
        let x = Tensor::random(DType::F32, rows * k, 2.0, 13);
        let scale = Tensor::random(DType::F32, k, 0.2, 14);
        let pair = [15, 16].map(|seed| TestWeight::plain(narrow, LinearLayout::OutIn, n, k, seed));
        let mut y = Tensor::poisoned(narrow, rows * n);
        let matvec = Matvec {
            x: x.view(),
            x_as: narrow,
            y: y.view(),
            weight: pair[0].weight,
            gate: Some(Gate { weight: pair[1].weight, bias: None }),
            prologue: Prologue::RmsNorm { eps: 1e-5, weight: scale.view() },
            epilogue: Epilogue { activation: Activation::Silu, ..Epilogue::default() },
            ahead: None,
            rows: rows as u64,
            n: n as u64,
            k: k as u64,
        };
        let got = few(&matvec, &mut y);
        let read = normalise(narrow, &x.values(), 1e-5, &scale.values(), None);
        let [a, b] = [0, 1].map(|i| product(&read, &pair[i].values, rows, n, k));
        let expected: Vec<f64> = (0..rows * n).map(|i| activate(Activation::Silu, a.0[i]) * b.0[i]).collect();
        let magnitudes: Vec<f64> =
            (0..rows * n).map(|i| a.1[i] * (b.0[i].abs() + 1.0) + b.1[i] * (a.0[i].abs() + 1.0)).collect();
        let error = SUM_ERROR + 0.05 * precision(narrow);
        assert_sums(&format!("{narrow}"), narrow, &got, &expected, &magnitudes, error);
    }
}

#[test]
fn many_rows_are_stored_and_added_in_other_types() {
    for (i, (m, n, k)) in [(70, 72, 200), (9, 67, 61), (66, 9, 1000)].into_iter().enumerate() {
        for from in FLOATS {
            for to in FLOATS.into_iter().filter(|&to| to != from) {
                let layout = LAYOUTS[i % 2];
                let stored = TestWeight::plain(from, layout, n, k, 17);
                let a = Tensor::random(from, m * k, 0.2, 18);
                let bias = Tensor::random(DType::F32, n, 1.0, 19);
                let factor = Tensor::random(from, m * n, 1.0, 20);
                let residual = Tensor::random(DType::F32, m * n, 10.0, 21);
                let (sums, magnitudes) = product(&a.values(), &stored.values, m, n, k);
                let (of_bias, factors, added) = (bias.values(), factor.values(), residual.values());
                for all in [false, true] {
                    let there = |view| Some(view).filter(|_| all);
                    let epilogue = Epilogue {
                        bias: there(bias.view()),
                        activation: Activation::None,
                        factor: there(factor.view()),
                        residual: there(residual.view()),
                    };
                    let mut c = Tensor::poisoned(to, m * n);
                    let (batch, sizes) = (Batch::ONE, [m, n, k].map(|size| size as u64));
                    let gemm = Gemm {
                        a: a.view(),
                        b: stored.weight,
                        c: c.view(),
                        epilogue,
                        m: sizes[0],
                        n: sizes[1],
                        k: sizes[2],
                        batch,
                    };
                    let got = many(&gemm, &mut c);
                    let finished = |i: usize| (sums[i] + of_bias[i % n]) * factors[i] + added[i];
                    let expected: Vec<f64> = (0..m * n).map(|i| if all { finished(i) } else { sums[i] }).collect();
                    let what = format!("[{m}, {k}] of {from} by {n} of {layout:?} into {to}, finished: {all}");
                    assert_sums(&what, to, &got, &expected, &magnitudes, 5.0 * (3e-7 + 1e-8 * k as f64));
                }
            }
        }
    }
}

/// Where packs do not begin at multiples of 16 bytes, each tensor is off by an element of its own type.
#[test]
fn tensors_that_begin_between_packs() {
    let (rows, n, k) = (3, 40, 96);
    for narrow in NARROW {
        let stored = TestWeight::plain(narrow, LinearLayout::OutIn, n, k, 22);
        let (x, residual) = (Tensor::random(DType::F32, rows * k, 1.0, 23), Tensor::random(narrow, rows * n, 1.0, 24));
        let ((_x, from), (_weight, weight), (_residual, added)) = (shift(&x), stored.shifted(), shift(&residual));
        let mut y = Tensor::poisoned(DType::F32, rows * n + 1);
        let matvec = Matvec {
            x: from,
            x_as: narrow,
            y: y.tail(1),
            weight,
            gate: None,
            prologue: Prologue::None,
            epilogue: Epilogue { residual: Some(added), ..Epilogue::default() },
            ahead: None,
            rows: rows as u64,
            n: n as u64,
            k: k as u64,
        };
        let got = few(&matvec, &mut y);
        let (sums, magnitudes) = product(&rounded(narrow, &x.values()), &stored.values, rows, n, k);
        let expected: Vec<f64> = sums.iter().zip(residual.values()).map(|(sum, more)| sum + more).collect();
        assert_sums(&format!("{narrow}"), DType::F32, &got[1..], &expected, &magnitudes, SUM_ERROR);
        assert!(got[0].is_nan(), "the element in front of y was written");
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (x, y) = (Tensor::poisoned(DType::F32, 64), Tensor::poisoned(DType::F16, 8));
    let stored = TestWeight::plain(DType::F16, LinearLayout::OutIn, 8, 64, 25);
    let (prologue, epilogue) = (Prologue::None, Epilogue::default());
    let good = Matvec {
        x: x.view(),
        x_as: DType::F16,
        y: y.view(),
        weight: stored.weight,
        gate: None,
        prologue,
        epilogue,
        ahead: None,
        rows: 1,
        n: 8,
        k: 64,
    };
    let none = Tensor::poisoned(DType::U8, 0);
    let refused = |matvec: Matvec| matvec.launches(none.view(), MACHINE).expect_err("it must be refused").to_string();
    assert!(good.launches(none.view(), MACHINE).is_ok());
    assert!(refused(Matvec { x_as: DType::I32, ..good }).contains("takes no what x is rounded to of type i32"));
    assert!(refused(Matvec { y: Tensor::poisoned(DType::U8, 8).view(), ..good }).contains("takes no y of type u8"));
    let integers = Tensor::poisoned(DType::I32, 8);
    let epilogue = Epilogue { residual: Some(integers.view()), ..Epilogue::default() };
    assert!(refused(Matvec { epilogue, ..good }).contains("takes no residual of type i32"));
    // Half of y would be read as what is added before it is written, and half after.
    let wide = genie_cuda_kernels::View { dtype: DType::F32, ..y.view() };
    let epilogue = Epilogue { factor: Some(wide), ..Epilogue::default() };
    assert!(refused(Matvec { epilogue, ..good }).contains("takes no factor of type f32"));
}
