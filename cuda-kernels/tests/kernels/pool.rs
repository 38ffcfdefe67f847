//! The largest or the mean of windows.

use genie_cuda_kernels::launch::pool::{Pool, Pooling, pool};
use genie_graph::DType;

use super::support::{FLOATS, Tensor, assert_close, precision, run};

fn reference(pooling: Pooling, pool: &Pool, x: &[f64]) -> Vec<f64> {
    let [height, width] = pool.output_size().expect("windows that fit");
    let mut result = Vec::new();
    for plane in x.chunks((pool.size[0] * pool.size[1]) as usize) {
        for position in 0..height * width {
            let inside = |axis: usize, i: u64, k: u64| {
                (i * pool.stride[axis] + k).checked_sub(pool.padding[axis]).filter(|&at| at < pool.size[axis])
            };
            let window: Vec<f64> = (0..pool.kernel[0] * pool.kernel[1])
                .filter_map(|k| {
                    let y = inside(0, position / width, k / pool.kernel[1])?;
                    let x = inside(1, position % width, k % pool.kernel[1])?;
                    Some(plane[(y * pool.size[1] + x) as usize])
                })
                .collect();
            let sum: f64 = window.iter().sum();
            result.push(match pooling {
                Pooling::Max if window.iter().any(|v| v.is_nan()) => f64::NAN,
                Pooling::Max => window.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                Pooling::Average { count_padding: true } => sum / (pool.kernel[0] * pool.kernel[1]) as f64,
                Pooling::Average { count_padding: false } => sum / window.len() as f64,
            });
        }
    }
    result
}

#[test]
fn windows_of_every_kind() {
    let pools = [
        Pool { planes: 3, size: [9, 7], kernel: [2, 2], stride: [2, 2], padding: [0; 4] },
        Pool { planes: 2, size: [12, 13], kernel: [3, 3], stride: [2, 1], padding: [1; 4] },
        Pool { planes: 2, size: [5, 6], kernel: [4, 3], stride: [3, 2], padding: [3, 0, 2, 1] },
        Pool { planes: 70, size: [7, 7], kernel: [7, 7], stride: [1, 1], padding: [0; 4] },
        Pool { planes: 1, size: [20, 20], kernel: [8, 9], stride: [5, 7], padding: [7, 8, 7, 8] },
        Pool { planes: 0, size: [4, 4], kernel: [2, 2], stride: [1, 1], padding: [0; 4] },
    ];
    for dtype in FLOATS {
        for sizes in &pools {
            let count = (sizes.planes * sizes.size[0] * sizes.size[1]) as usize;
            let mut values = Tensor::random(dtype, count, 1.0, 5).values();
            if let Some(first) = values.first_mut() {
                *first = f64::NAN;
            }
            let x = Tensor::new(dtype, &values);
            let average = |count_padding| Pooling::Average { count_padding };
            for pooling in [Pooling::Max, average(false), average(true)] {
                let expected = reference(pooling, sizes, &x.values());
                let mut y = Tensor::poisoned(dtype, expected.len());
                run(pool(pooling, sizes, x.view(), y.view()), &mut [&mut y]);
                // A sum of up to 72 numbers near 1 in f32.
                let what = format!("{dtype} {sizes:?} {pooling:?}");
                assert_close(&what, &y.values(), &expected, 0.5 * precision(dtype), 1e-6);
            }
        }
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (x, y) = (Tensor::poisoned(DType::F32, 32), Tensor::poisoned(DType::F32, 18));
    let good = Pool { planes: 2, size: [4, 4], kernel: [2, 2], stride: [1, 1], padding: [0; 4] };
    let launch = |sizes: Pool| pool(Pooling::Max, &sizes, x.view(), y.view());
    assert!(launch(good).expect("sizes that fit").is_some());
    let wrong = [
        Pool { stride: [1, 0], ..good },
        Pool { kernel: [0, 2], ..good },
        Pool { kernel: [5, 2], ..good },
        Pool { padding: [2, 0, 0, 0], ..good },
        Pool { padding: [1, 0, 0, 0], ..good },
        Pool { planes: 3, ..good },
        Pool { planes: u64::MAX, ..good },
        Pool { size: [1 << 40, 4], ..good },
    ];
    for sizes in wrong {
        assert!(launch(sizes).is_err(), "{sizes:?}");
    }
    assert!(pool(Pooling::Max, &good, x.view(), Tensor::poisoned(DType::F16, 18).view()).is_err());
}
