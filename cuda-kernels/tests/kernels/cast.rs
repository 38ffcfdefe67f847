//! Element type conversion.

use genie_cuda_kernels::launch::cast::cast;
use genie_graph::DType;
use half::{bf16, f16};

use super::support::{Tensor, run, run_any_grid, run_over};

/// An element of `from` that holds `x`, as `to` gets it: through f32 or i64, as the CPU device does.
fn reference(from: DType, to: DType, x: f64) -> f64 {
    let is_integer = !from.is_float();
    match to {
        DType::F32 => f64::from(x as f32),
        DType::F16 => f16::from_f32(x as f32).to_f64(),
        DType::BF16 => bf16::from_f32(x as f32).to_f64(),
        DType::I64 => x as i64 as f64,
        DType::I32 if is_integer => f64::from(x as i64 as i32),
        DType::I32 => f64::from(x as i32),
        DType::U8 if is_integer => f64::from(x as i64 as u8),
        DType::U8 => f64::from(x as u8),
        DType::Bool => f64::from(u8::from(x != 0.0)),
    }
}

#[test]
fn every_type_becomes_every_other() {
    let hard = [
        0.0,
        -0.0,
        0.5,
        -0.5,
        0.999,
        1.0,
        -1.0,
        1.5,
        254.9,
        255.0,
        255.5,
        256.0,
        300.0,
        -1.5,
        65504.0,
        65520.0,
        1e-8,
        2147483520.0,
        2147483648.0,
        -2147483648.0,
        -2147483904.0,
        9.3e18,
        -9.3e18,
        1e38,
        3.1e-41,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        1.00390625,
        1.01171875,
        16777217.0,
        4503599627370497.0,
    ];
    let mut values = hard.to_vec();
    values.extend((0..1013).map(|i| f64::from(i * i % 3001) * 0.37 - 400.0));
    for from in DType::ALL {
        let x = Tensor::new(from, &values);
        // Integers of tensors are exact as f64 where they are below 2^53, or are the ends of i64.
        let exact = x.values();
        for to in DType::ALL {
            for first in [0, 1] {
                let mut y = Tensor::poisoned(to, values.len());
                run_any_grid(&[cast(x.tail(first), y.tail(first)).expect("a launch")], &mut [&mut y]);
                for (i, (&got, &x)) in y.values().iter().zip(&exact).enumerate().skip(first as usize) {
                    let expected = reference(from, to, x);
                    assert!(
                        got == expected || (got.is_nan() && expected.is_nan()),
                        "{from} to {to}, {i}: {x} is {got}"
                    );
                }
            }
        }
    }
}

#[test]
fn bytes_of_bools_may_be_anything() {
    let bytes = Tensor::new(DType::U8, &[0.0, 1.0, 2.0, 255.0]);
    let flags = genie_cuda_kernels::View { dtype: DType::Bool, ..bytes.view() };
    for to in DType::ALL {
        let mut y = Tensor::poisoned(to, 4);
        run(cast(flags, y.view()), &mut [&mut y]);
        assert_eq!(y.values(), [0.0, 1.0, 1.0, 1.0], "{to}");
    }
}

#[test]
fn in_place_of_the_same_size_is_allowed() {
    let mut x = Tensor::new(DType::F32, &[1.75; 101]);
    let as_integers = genie_cuda_kernels::View { dtype: DType::I32, ..x.view() };
    run_over(&[cast(x.view(), as_integers).expect("a launch")], &mut x);
    assert!(x.bytes().chunks(4).all(|element| element == 1_i32.to_le_bytes()));
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (x, y) = (Tensor::poisoned(DType::F32, 8), Tensor::poisoned(DType::I64, 7));
    assert!(cast(x.view(), y.view()).is_err());
    let askew = genie_cuda_kernels::View { at: x.view().at + 2, ..x.view() };
    assert!(cast(askew, x.view()).is_err());
    assert!(matches!(cast(x.tail(8), y.tail(7)), Ok(None)));
}
