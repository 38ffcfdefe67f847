//! Drawing the next token: the very tokens of `genie_graph::sample_row`.

use genie_cuda_kernels::launch::sample::{Sample, sample, scratch_bytes};
use genie_graph::DType;

use super::support::{FLOATS, Tensor, run_all};

/// A row's settings.
#[derive(Clone, Copy, Debug)]
struct Setting {
    temperature: f32,
    top_p: f32,
    top_k: i64,
    seed: i64,
    position: i32,
}

const GREEDY: Setting = Setting { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0, position: 0 };

/// Draws from `rows`, one setting each, and compares.
fn check(dtype: DType, rows: &[Vec<f64>], settings: &[Setting], sms: u32) {
    let width = rows[0].len();
    let logits = Tensor::new(dtype, &rows.concat());
    let real: Vec<f64> = settings.iter().flat_map(|s| [s.temperature, s.top_p]).map(f64::from).collect();
    let integer: Vec<i64> = settings.iter().flat_map(|s| [s.top_k, s.seed]).collect();
    let positions: Vec<f64> = settings.iter().flat_map(|s| [-7.0, f64::from(s.position)]).collect();
    let (real, positions) = (Tensor::new(DType::F32, &real), Tensor::new(DType::I32, &positions));
    let integer = Tensor::of_i64(&integer);
    let mut tokens = Tensor::poisoned(DType::I32, rows.len());
    let scratch = Tensor::poisoned(DType::U8, scratch_bytes(rows.len() as u64) as usize);
    let launches = sample(
        &Sample {
            rows: rows.len() as u64,
            width: width as u64,
            logits: logits.view(),
            real: real.view(),
            integer: integer.view(),
            positions: positions.view(),
            tokens: tokens.view(),
            scratch: scratch.view(),
        },
        sms,
    );
    run_all(&launches.expect("a launch"), &mut [&mut tokens]);
    let (values, mut space) = (logits.values(), Vec::new());
    for (row, (setting, token)) in settings.iter().zip(tokens.values()).enumerate() {
        let Setting { temperature, top_p, top_k, seed, position } = *setting;
        let logits: Vec<f32> = values[row * width..][..width].iter().map(|&v| v as f32).collect();
        let position = u64::try_from(position).unwrap_or_default();
        let seed = seed.cast_unsigned();
        let expected = genie_graph::sample_row(&logits, temperature, top_p, top_k, seed, position, &mut space);
        assert_eq!(token, f64::from(expected), "{dtype} width {width}, row {row}, {setting:?}");
    }
}

fn normal(width: usize, scale: f32, seed: u64) -> Vec<f64> {
    let mut row = vec![0.0; width];
    genie_graph::random::fill_normal(seed, 0, &mut row);
    row.iter().map(|v| f64::from(v * scale)).collect()
}

const TEMPERATURES: [f32; 7] = [0.0, 0.2, 1.0, 3.0, f32::INFINITY, 1e-40, f32::MAX];
const TOP_P: [f32; 7] = [-1.0, 0.0, 0.3, 0.9, 0.999_999, 1.0, f32::NAN];
const TOP_K: [i64; 8] = [-1, 0, 1, 2, 40, 996, 2500, i64::MAX];

/// Every top-p and top-k at these temperatures, in rows that `make` gives.
fn check_all(dtype: DType, temperatures: &[f32], make: impl Fn(u64) -> Vec<f64>) {
    for (i, &temperature) in temperatures.iter().enumerate() {
        let settings: Vec<Setting> = (0..TOP_P.len() * TOP_K.len())
            .map(|n| Setting {
                temperature,
                top_p: TOP_P[n % TOP_P.len()],
                top_k: TOP_K[n / TOP_P.len()],
                seed: (n as i64 - 9) << 31,
                position: n as i32 * 5 - 7,
            })
            .collect();
        let rows: Vec<Vec<f64>> = (0..settings.len() as u64).map(|n| make(n + 1000 * i as u64)).collect();
        check(dtype, &rows, &settings, 8);
    }
}

#[test]
fn every_setting_draws_the_same_token() {
    // Each temperature with one type: the types differ in how they are read alone.
    for (dtype, temperatures) in FLOATS.into_iter().zip(TEMPERATURES.chunks(3)) {
        check_all(dtype, temperatures, |seed| normal(997, 3.0, seed));
    }
}

#[test]
fn equals_and_what_is_no_number() {
    check_all(DType::F32, &[0.3, 1.0, f32::INFINITY], |seed| {
        let mut row: Vec<f64> = normal(331, 8.0, seed).iter().map(|v| v.round() / 2.0).collect();
        (row[3], row[4], row[5], row[6]) = (f64::NAN, f64::NEG_INFINITY, -0.0, 0.0);
        row
    });
}

/// More tokens than the list holds have weights: selections go over the row itself, in several chunks.
#[test]
fn flat_rows_are_longer_than_the_list() {
    let width = 9001;
    let settings =
        [(1.0, 0.5, 0), (1.0, 0.97, 6000), (1.0, 1.0, 5000), (1.0, 1.0, 0), (f32::INFINITY, 0.9, 0), (2.0, 0.7, 30)];
    let settings: Vec<Setting> = settings
        .into_iter()
        .map(|(temperature, top_p, top_k)| Setting { temperature, top_p, top_k, seed: 77, position: top_k as i32 + 3 })
        .collect();
    for dtype in [DType::F32, DType::BF16] {
        for scale in [0.0, 0.01, 2.0] {
            let rows: Vec<Vec<f64>> = (0..settings.len() as u64).map(|n| normal(width, scale, n)).collect();
            check(dtype, &rows, &settings, 16);
        }
    }
}

#[test]
fn large_vocabularies() {
    let settings = [
        GREEDY,
        Setting { temperature: 0.8, top_p: 0.95, top_k: 50, seed: 1, position: 12 },
        Setting { temperature: 1.0, top_p: 0.9, top_k: 0, seed: 2, position: 13 },
        Setting { temperature: 1.0, top_p: 1.0, top_k: 0, seed: -3, position: 14 },
    ];
    for (dtype, width) in [(DType::BF16, 50_257), (DType::F32, 32_000), (DType::F16, 128_256)] {
        let rows: Vec<Vec<f64>> = (0..4).map(|n| normal(width, 4.0, n)).collect();
        check(dtype, &rows, &settings, 40);
    }
}

#[test]
fn rows_of_nothing_and_of_infinities() {
    let rows = [
        vec![f64::NAN; 70],
        vec![f64::NEG_INFINITY; 70],
        (0..70).map(|i| if i > 33 { f64::INFINITY } else { 1.0 }).collect(),
        (0..70).map(|i| if i == 69 { -3e38 } else { f64::NEG_INFINITY }).collect(),
        (0..70).map(|i| if i % 2 == 0 { 3.4e38 } else { -3.4e38 }).collect(),
        vec![-5.0; 70],
    ];
    let draws = |temperature, top_k, top_p| Setting { temperature, top_p, top_k, seed: 5, position: 1 };
    for setting in [GREEDY, draws(1.0, 0, 1.0), draws(2.0, 3, 0.5), draws(f32::MAX, 0, 0.7), draws(f32::NAN, 0, 1.0)] {
        check(DType::F32, &rows, &[setting; 6], 4);
    }
    for width in [1, 2, 7] {
        check(DType::BF16, &[normal(width, 1.0, 3)], &[draws(1.0, 0, 0.9)], 4);
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (logits, real) = (Tensor::poisoned(DType::F16, 20), Tensor::poisoned(DType::F32, 4));
    let (integer, positions) = (Tensor::poisoned(DType::I64, 4), Tensor::poisoned(DType::I32, 6));
    let tokens = Tensor::poisoned(DType::I32, 2);
    let scratch = Tensor::poisoned(DType::U8, scratch_bytes(2) as usize);
    let good = Sample {
        rows: 2,
        width: 10,
        logits: logits.view(),
        real: real.view(),
        integer: integer.view(),
        positions: positions.view(),
        tokens: tokens.view(),
        scratch: scratch.view(),
    };
    assert!(sample(&good, 1).expect("a launch").iter().all(Option::is_some));
    let error = sample(&Sample { width: 11, ..good }, 1).expect_err("longer rows than there are");
    assert_eq!(error.to_string(), "`sample` needs 22 elements of logits, but the tensor has 20");
    assert!(sample(&Sample { width: 0, ..good }, 1).is_err());
    assert!(sample(&Sample { logits: integer.view(), ..good }, 1).is_err());
    assert!(sample(&Sample { integer: real.view(), ..good }, 1).is_err());
    assert!(sample(&Sample { scratch: tokens.view(), ..good }, 1).is_err());
    let mut odd = scratch.view();
    odd.at += 4;
    assert!(sample(&Sample { scratch: odd, ..good }, 1).is_err());
}
