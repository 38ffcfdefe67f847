//! Products of a few rows.

use genie_cuda_kernels::View;
use genie_cuda_kernels::launch::ahead::{Ahead, Part};
use genie_cuda_kernels::launch::epilogue::{Activation, Epilogue, Prologue};
use genie_cuda_kernels::launch::matvec::{Gate, MOST_ROWS, Matvec};
use genie_cuda_kernels::launch::weight::Weight;
use genie_cuda_kernels::launch::workspace::Machine;
use genie_graph::{DType, LinearLayout, QuantFormat};

use super::product::{
    ACTIVATIONS, QUANTISED, TestWeight, activate, assert_counters_are_zero, assert_sums, normalise, product, shift,
    workspace,
};
use super::support::{FLOATS, Tensor, run_all};

const LAYOUTS: [LinearLayout; 2] = [LinearLayout::OutIn, LinearLayout::InOut];
/// Few multiprocessors: blocks take several tiles. Many: sums are cut into parts.
const SMALL: Machine = Machine { sms: 1, shared: 227 << 10 };
const LARGE: Machine = Machine { sms: 16, shared: 227 << 10 };
/// Compute capability 7.5: x does not fit as a whole.
const OLD: Machine = Machine { sms: 2, shared: 64 << 10 };

/// Relative to the sum of magnitudes: sums of f32 in a few hundred steps, most of them far from the largest.
const SUM_ERROR: f64 = 1e-6;

fn case(x: View, y: View, weight: Weight, rows: usize, n: usize, k: usize) -> Matvec {
    let (prologue, epilogue) = (Prologue::None, Epilogue::default());
    let (rows, n, k) = (rows as u64, n as u64, k as u64);
    Matvec { x, x_as: x.dtype, y, weight, gate: None, prologue, epilogue, ahead: None, rows, n, k }
}

fn compute(matvec: &Matvec, machine: Machine, y: &mut Tensor) -> Vec<f64> {
    let workspace = workspace(matvec.workspace_bytes(machine));
    let launches = matvec.launches(workspace.view(), machine).expect("a product that can be made");
    run_all(&launches, &mut [y]);
    assert_counters_are_zero(&workspace);
    y.values()
}

fn check_plain(dtype: DType, stored: &TestWeight, rows: usize, n: usize, k: usize, machine: Machine) {
    let x = Tensor::random(dtype, rows * k, 1.0, (rows + n) as u64);
    let mut y = Tensor::poisoned(dtype, rows * n);
    let got = compute(&case(x.view(), y.view(), stored.weight, rows, n, k), machine, &mut y);
    let (sums, magnitudes) = product(&x.values(), &stored.values, rows, n, k);
    let what = format!("[{rows}, {k}] of {dtype} by {n} of {:?}, {machine:?}", stored.weight);
    assert_sums(&what, dtype, &got, &sums, &magnitudes, SUM_ERROR);
}

#[test]
fn floats_of_every_type_and_layout() {
    for dtype in FLOATS {
        for weight in FLOATS {
            for layout in LAYOUTS {
                let aligned = TestWeight::plain(weight, layout, 72, 1040, 1);
                check_plain(dtype, &aligned, 3, 72, 1040, LARGE);
                // Rows that do not begin at multiples of 16 bytes.
                let odd = TestWeight::plain(weight, layout, 67, 133, 2);
                check_plain(dtype, &odd, 2, 67, 133, SMALL);
            }
        }
    }
}

#[test]
fn one_of_everything() {
    for dtype in FLOATS {
        for layout in LAYOUTS {
            check_plain(dtype, &TestWeight::plain(dtype, layout, 1, 1, 3), 1, 1, 1, LARGE);
        }
    }
}

#[test]
fn several_tiles_a_block_and_little_shared_memory() {
    for layout in LAYOUTS {
        let stored = TestWeight::plain(DType::BF16, layout, 328, 1200, 4);
        check_plain(DType::BF16, &stored, 8, 328, 1200, SMALL);
        check_plain(DType::BF16, &stored, 1, 328, 1200, OLD);
        let stored = TestWeight::plain(DType::F32, layout, 24, 1200, 4);
        check_plain(DType::F32, &stored, 8, 24, 1200, OLD);
    }
}

/// Whoever asks for a later weight touches nothing behind it, and computes the same: with few and with many blocks, of nine rows in
/// their second launch.
#[test]
fn what_is_asked_for_ahead_changes_no_bit() {
    let (n, k, other) = (328, 400, 6 * 4096);
    let later = Tensor::random(DType::BF16, other, 1.0, 7);
    // Up to the weight's very end; pieces of one request and of several.
    let parts = [
        Part { offset: 96, pitch: 6144, rows: 8, bytes: 6048 },
        Part { offset: 16, pitch: 0, rows: 1, bytes: 2 * other as u32 - 16 },
    ];
    for layout in LAYOUTS {
        let stored = TestWeight::plain(DType::BF16, layout, n, k, 4);
        for (rows, machine) in [(1, SMALL), (3, LARGE), (9, LARGE)] {
            let x = Tensor::random(DType::BF16, rows * k, 1.0, 5);
            let of = |ahead: Option<Ahead>| {
                let mut y = Tensor::poisoned(DType::BF16, rows * n);
                compute(&Matvec { ahead, ..case(x.view(), y.view(), stored.weight, rows, n, k) }, machine, &mut y)
            };
            let alone = of(None);
            for part in parts {
                assert!(of(Some(Ahead { weight: later.view(), part })) == alone, "{layout:?}, {rows} rows, {part:?}");
            }
        }
    }
}

#[test]
fn eight_stages_where_blocks_are_few() {
    for (layout, n) in [(LinearLayout::OutIn, 317), (LinearLayout::InOut, 632)] {
        // Ten tiles on 16 multiprocessors: sums are not cut, and most steps lie in the weight as a whole.
        check_plain(DType::BF16, &TestWeight::plain(DType::BF16, layout, n, 1048, 35), 3, n, 1048, LARGE);
    }
}

#[test]
fn quantised_weights() {
    for format in QUANTISED {
        for dtype in FLOATS {
            for (n, k, machine) in [(37, 352, SMALL), (16, 1312, LARGE), (3, 32, LARGE), (5, 2048, OLD)] {
                check_plain(dtype, &TestWeight::quantised(format, n, k, 5), 3, n, k, machine);
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    let (n, k) = (40, 544);
    let weights = || {
        let plain = |dtype, layout| TestWeight::plain(dtype, layout, n, k, 6);
        let floats = FLOATS.into_iter().flat_map(move |dtype| LAYOUTS.map(|layout| plain(dtype, layout)));
        floats.chain(QUANTISED.map(|format| TestWeight::quantised(format, n, k, 6)))
    };
    let most = MOST_ROWS as usize;
    for dtype in [DType::F32, DType::BF16] {
        let x = Tensor::random(dtype, most * k, 1.0, 7);
        let norm = Tensor::random(dtype, k, 1.0, 8);
        for stored in weights() {
            let rows_of = |rows: usize| {
                let mut y = Tensor::poisoned(dtype, rows * n);
                let x = View::new(x.view().at, dtype, (rows * k) as u64);
                let prologue = Prologue::RmsNorm { eps: 1e-5, weight: norm.view() };
                let matvec = Matvec { prologue, ..case(x, y.view(), stored.weight, rows, n, k) };
                compute(&matvec, LARGE, &mut y);
                y.bytes().to_vec()
            };
            let all = rows_of(most);
            for rows in [1, 8, 9] {
                let some = rows_of(rows);
                assert!(all[..some.len()] == some, "{rows} rows of {dtype} by {:?} differ from 16", stored.weight);
            }
        }
    }
}

#[test]
fn rows_that_are_not_finite_keep_to_themselves() {
    let (n, k) = (20, 160);
    for stored in [
        TestWeight::plain(DType::BF16, LinearLayout::OutIn, n, k, 9),
        TestWeight::plain(DType::BF16, LinearLayout::InOut, n, k, 9),
        TestWeight::plain(DType::F32, LinearLayout::OutIn, n, k, 9),
        TestWeight::quantised(QuantFormat::Q8_0, n, k, 9),
    ] {
        for dtype in [DType::BF16, DType::F32] {
            let mut values = Tensor::random(dtype, 4 * k, 1.0, 10).values();
            (values[5], values[k + 7], values[3 * k - 1]) = (f64::INFINITY, f64::NAN, f64::NEG_INFINITY);
            let x = Tensor::new(dtype, &values);
            let mut y = Tensor::poisoned(dtype, 4 * n);
            let got = compute(&case(x.view(), y.view(), stored.weight, 4, n, k), SMALL, &mut y);
            let (sums, magnitudes) = product(&values, &stored.values, 4, n, k);
            assert_sums(&format!("{:?}", stored.weight), dtype, &got, &sums, &magnitudes, SUM_ERROR);
        }
    }
}

#[test]
fn normalised_rows() {
    let (rows, n, k) = (3, 33, 328);
    for dtype in FLOATS {
        // Shifted, so that the mean is far from 0.
        let values: Vec<f64> = Tensor::random(dtype, rows * k, 2.0, 11).values().iter().map(|v| v + 3.0).collect();
        let x = Tensor::new(dtype, &values);
        for of_norm in FLOATS {
            let (scale, shift) = (Tensor::random(of_norm, k, 1.0, 12), Tensor::random(of_norm, k, 1.0, 13));
            for stored in [
                TestWeight::plain(dtype, LinearLayout::InOut, n, k, 14),
                TestWeight::plain(DType::F32, LinearLayout::OutIn, n, k, 14),
            ] {
                for layer in [false, true] {
                    let mut y = Tensor::poisoned(dtype, rows * n);
                    let (eps, weight, bias) = (1e-5, scale.view(), shift.view());
                    let prologue = if layer {
                        Prologue::LayerNorm { eps, weight, bias }
                    } else {
                        Prologue::RmsNorm { eps, weight }
                    };
                    let matvec = Matvec { prologue, ..case(x.view(), y.view(), stored.weight, rows, n, k) };
                    let got = compute(&matvec, LARGE, &mut y);
                    let bias = layer.then(|| shift.values());
                    let rows_of = normalise(dtype, &x.values(), 1e-5, &scale.values(), bias.as_deref());
                    let (sums, magnitudes) = product(&rows_of, &stored.values, rows, n, k);
                    // Where f32 and f64 round a normalised element to different neighbours, a term is off by one place.
                    let error = SUM_ERROR + 0.05 * super::support::precision(dtype);
                    let what = format!("{prologue:?}, {dtype} by {:?}", stored.weight);
                    assert_sums(&what, dtype, &got, &sums, &magnitudes, error);
                }
            }
        }
    }
}

#[test]
fn norms_of_rows_that_are_not_aligned() {
    let (rows, n, k) = (2, 9, 75);
    let (scale, bias) = (Tensor::random(DType::F32, k, 1.0, 15), Tensor::random(DType::F32, k, 1.0, 16));
    let x = Tensor::random(DType::F32, rows * k, 1.0, 17);
    let stored = TestWeight::plain(DType::F32, LinearLayout::OutIn, n, k, 18);
    let (_held, shifted) = shift(&x);
    let mut y = Tensor::poisoned(DType::F32, rows * n);
    let prologue = Prologue::LayerNorm { eps: 0.1, weight: scale.view(), bias: bias.view() };
    let matvec = Matvec { prologue, ..case(shifted, y.view(), stored.weight, rows, n, k) };
    let got = compute(&matvec, SMALL, &mut y);
    let rows_of = normalise(DType::F32, &x.values(), 0.1, &scale.values(), Some(&bias.values()));
    let (sums, magnitudes) = product(&rows_of, &stored.values, rows, n, k);
    assert_sums("unaligned", DType::F32, &got, &sums, &magnitudes, SUM_ERROR);
}

#[test]
fn tensors_that_begin_between_packs() {
    let (rows, n, k) = (2, 40, 96);
    for dtype in FLOATS {
        for layout in LAYOUTS {
            let stored = TestWeight::plain(dtype, layout, n, k, 19);
            let x = Tensor::random(dtype, rows * k, 1.0, 20);
            let ((_x, from), (_weight, weight)) = (shift(&x), stored.shifted());
            let mut y = Tensor::poisoned(dtype, rows * n + 1);
            let to = View::new(y.view().at + dtype.bytes(), dtype, (rows * n) as u64);
            let got = compute(&case(from, to, weight, rows, n, k), LARGE, &mut y);
            let (sums, magnitudes) = product(&x.values(), &stored.values, rows, n, k);
            assert_sums("shifted", dtype, &got[1..], &sums, &magnitudes, SUM_ERROR);
            assert!(got[0].is_nan(), "the element in front of y was written");
        }
    }
}

#[test]
fn sums_are_finished() {
    let (rows, n, k) = (9, 21, 64);
    for dtype in FLOATS {
        let x = Tensor::random(dtype, rows * k, 0.2, 21);
        let stored = TestWeight::plain(dtype, LinearLayout::OutIn, n, k, 22);
        let bias = Tensor::random(DType::F32, n, 1.0, 23);
        let (factor, residual) = (Tensor::random(dtype, rows * n, 1.0, 24), Tensor::random(dtype, rows * n, 1.0, 25));
        let (sums, magnitudes) = product(&x.values(), &stored.values, rows, n, k);
        let (bias_values, factors, residuals) = (bias.values(), factor.values(), residual.values());
        for activation in ACTIVATIONS {
            let mut y = Tensor::poisoned(dtype, rows * n);
            let epilogue = Epilogue {
                bias: Some(bias.view()),
                activation,
                factor: Some(factor.view()),
                residual: Some(residual.view()),
            };
            let matvec = Matvec { epilogue, ..case(x.view(), y.view(), stored.weight, rows, n, k) };
            let got = compute(&matvec, SMALL, &mut y);
            let finished = |i: usize| activate(activation, sums[i] + bias_values[i % n]) * factors[i] + residuals[i];
            let expected: Vec<f64> = (0..rows * n).map(finished).collect();
            // The factor is up to about 4, and no function here is steeper than 1.2.
            let error = 5.0 * SUM_ERROR;
            assert_sums(&format!("{activation:?} of {dtype}"), dtype, &got, &expected, &magnitudes, error);
        }
    }
}

#[test]
fn gated_pairs() {
    let (rows, k) = (3, 320);
    for (dtype, n, machine) in [(DType::BF16, 40, SMALL), (DType::F32, 40, LARGE), (DType::F16, 80, LARGE)] {
        let x = Tensor::random(dtype, rows * k, 0.2, 26);
        let pairs: Vec<[TestWeight; 2]> = vec![
            [27, 28].map(|seed| TestWeight::plain(dtype, LinearLayout::OutIn, n, k, seed)),
            [27, 28].map(|seed| TestWeight::plain(dtype, LinearLayout::InOut, n, k, seed)),
            [27, 28].map(|seed| TestWeight::plain(DType::F32, LinearLayout::InOut, n, k, seed)),
            [27, 28].map(|seed| TestWeight::quantised(QuantFormat::Q4_0, n, k, seed)),
        ];
        let biases = [29, 30].map(|seed| Tensor::random(dtype, n, 1.0, seed));
        for [first, second] in &pairs {
            for biased in [false, true] {
                let mut y = Tensor::poisoned(dtype, rows * n);
                let bias = |i: usize| biased.then(|| biases[i].view());
                let epilogue = Epilogue { bias: bias(0), activation: Activation::Silu, ..Epilogue::default() };
                let gate = Some(Gate { weight: second.weight, bias: bias(1) });
                let matvec = Matvec { epilogue, gate, ..case(x.view(), y.view(), first.weight, rows, n, k) };
                let got = compute(&matvec, machine, &mut y);
                let [a, b] = [first, second].map(|w| product(&x.values(), &w.values, rows, n, k));
                let value = |i: usize, j: usize| if biased { biases[i].values()[j % n] } else { 0.0 };
                let expected: Vec<f64> = (0..rows * n)
                    .map(|j| activate(Activation::Silu, a.0[j] + value(0, j)) * (b.0[j] + value(1, j)))
                    .collect();
                let magnitudes: Vec<f64> =
                    (0..rows * n).map(|j| a.1[j] * (b.0[j].abs() + 4.0) + b.1[j] * (a.0[j].abs() + 4.0)).collect();
                assert_sums(&format!("{dtype}, {:?}", first.weight), dtype, &got, &expected, &magnitudes, SUM_ERROR);
            }
        }
    }
}

#[test]
fn nothing_to_add_up_and_nothing_to_do() {
    let (x, mut y) = (Tensor::poisoned(DType::F16, 0), Tensor::poisoned(DType::F16, 2 * 5));
    let stored = TestWeight::plain(DType::F16, LinearLayout::OutIn, 5, 0, 31);
    let bias = Tensor::new(DType::F16, &[1.0, 2.0, 3.0, 4.0, 5.0]);
    let epilogue = Epilogue { bias: Some(bias.view()), ..Epilogue::default() };
    let matvec = Matvec { epilogue, ..case(x.view(), y.view(), stored.weight, 2, 5, 0) };
    assert_eq!(compute(&matvec, LARGE, &mut y), [1.0, 2.0, 3.0, 4.0, 5.0, 1.0, 2.0, 3.0, 4.0, 5.0]);

    let none = Tensor::poisoned(DType::F16, 0);
    let rows =
        case(x.view(), none.view(), TestWeight::plain(DType::F16, LinearLayout::OutIn, 5, 8, 31).weight, 0, 5, 8);
    assert!(rows.launches(none.view(), LARGE).expect("no rows are fine").iter().all(Option::is_none));
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (x, y) = (Tensor::poisoned(DType::F16, 64), Tensor::poisoned(DType::F16, 8));
    let none = Tensor::poisoned(DType::U8, 0);
    let stored = TestWeight::plain(DType::F16, LinearLayout::OutIn, 8, 64, 32);
    let good = case(x.view(), y.view(), stored.weight, 1, 8, 64);
    let refused = |matvec: Matvec| matvec.launches(none.view(), SMALL).expect_err("it must be refused").to_string();
    assert!(good.launches(none.view(), SMALL).is_ok());
    assert_eq!(refused(Matvec { k: 63, ..good }), "`matvec` needs 63 elements of x, but the tensor has 64");
    assert_eq!(refused(Matvec { rows: 17, ..good }), "`matvec`: rows is 17, but must be 0 to 16");
    let epilogue = Epilogue { bias: Some(x.view()), ..Epilogue::default() };
    assert_eq!(refused(Matvec { epilogue, ..good }), "`matvec` needs 8 elements of bias, but the tensor has 64");
    let gate = Some(Gate { weight: Weight { layout: LinearLayout::InOut, ..stored.weight }, bias: None });
    assert!(refused(Matvec { gate, ..good }).contains("gate of another format or layout"));
    let blocks = TestWeight::quantised(QuantFormat::Q8_0, 8, 64, 33);
    let odd = Weight { layout: LinearLayout::InOut, ..blocks.weight };
    assert!(refused(Matvec { weight: odd, ..good }).contains("OutIn (0) for quantised weights"));
    let view = View { at: blocks.weight.view.at + 2, ..blocks.weight.view };
    assert!(refused(Matvec { weight: Weight { view, ..blocks.weight }, ..good }).contains("not aligned to 16 bytes"));
    let long = TestWeight::plain(DType::F16, LinearLayout::OutIn, 8, 2048, 34);
    let x = Tensor::poisoned(DType::F16, 2048);
    let part = Part { offset: 0, pitch: 0, rows: 1, bytes: 1 << 20 };
    let ahead = Some(Ahead { weight: good.weight.view, part });
    assert!(refused(Matvec { ahead, ..good }).contains("within the weight"));
    let parts = Matvec { x: x.view(), weight: long.weight, k: 2048, ..good };
    assert!(parts.launches(none.view(), LARGE).expect_err("no workspace").to_string().contains("workspace_bytes"));
}
