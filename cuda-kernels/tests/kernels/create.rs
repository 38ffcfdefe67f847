//! Tensors made from nothing.

use genie_cuda_kernels::launch::create::{arange, fill, positions, rand, randn, random_by};
use genie_graph::{DType, RandomKind, random};
use half::{bf16, f16};

use super::support::{FLOATS, Tensor, assert_close, precision, run};

#[test]
fn fills_write_every_element_and_no_other() {
    for dtype in DType::ALL {
        for (count, first, last) in [(1, 0, 1), (17, 0, 17), (40, 3, 40), (1000, 5, 991), (64, 0, 64), (9, 7, 7)] {
            let mut y = Tensor::poisoned(dtype, count);
            let part = genie_cuda_kernels::View { elements: last - first, ..y.tail(first) };
            let bits = 0x0123_4567_89AB_CD01_u64;
            run(fill(part, bits), &mut [&mut y]);
            let size = dtype.bytes() as usize;
            for (i, element) in y.bytes().chunks(size).enumerate() {
                let inside = (first..last).contains(&(i as u64));
                let expected = if inside { &bits.to_le_bytes()[..size] } else { &[0xFF; 8][..size] };
                assert_eq!(element, expected, "{dtype} {count} {first}..{last}: {i}");
            }
        }
    }
}

#[test]
fn sequences_are_computed_in_f64() {
    for (start, step) in [(0.0, 1.0), (-3.0, 0.1), (250.0, 7.5), (1e9, 3e7), (0.3, -0.7)] {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32, DType::U8] {
            let mut y = Tensor::poisoned(dtype, 301);
            run(arange(start, step, y.view()), &mut [&mut y]);
            let at = |i: usize| start + i as f64 * step;
            let expected: Vec<f64> = (0..301)
                .map(at)
                .map(|x| match dtype {
                    DType::F16 => f16::from_f32(x as f32).to_f64(),
                    DType::BF16 => bf16::from_f32(x as f32).to_f64(),
                    DType::I64 => x as i64 as f64,
                    DType::I32 => f64::from(x as i32),
                    DType::U8 => f64::from(x as u8),
                    _ => f64::from(x as f32),
                })
                .collect();
            assert_eq!(y.values(), expected, "{start} {step} {dtype}");
        }
    }
    let flags = Tensor::poisoned(DType::Bool, 4);
    assert!(arange(0.0, 1.0, flags.view()).is_err());
}

#[test]
fn uniform_numbers_are_the_cpu_s_bit_for_bit() {
    for dtype in FLOATS {
        for (count, seed) in [(0, 1), (1, 2), (1027, 3), (4096, u64::MAX)] {
            let (mut y, mut expected) = (Tensor::poisoned(dtype, count), vec![0.0; count]);
            run(rand(seed, y.view()), &mut [&mut y]);
            random::fill_uniform(seed, 0, &mut expected);
            let expected = Tensor::new(dtype, &expected.into_iter().map(f64::from).collect::<Vec<_>>());
            assert_eq!(y.bytes(), expected.bytes(), "{count} {dtype}");
        }
    }
}

#[test]
fn normal_numbers_are_the_cpu_s_to_a_unit_in_the_last_place() {
    let made = |seed: u64, count: usize| {
        let mut y = Tensor::poisoned(DType::F32, count);
        run(randn(seed, y.view()), &mut [&mut y]);
        y
    };
    // The first numbers of the later seeds have angles of half a turn and of a quarter, where f64 has no exact zero.
    for (seed, count) in [(9, 5003), (335_182, 4), (10_984_164, 4), (13_119_419, 4)] {
        let mut expected = vec![0.0_f32; count];
        random::fill_normal(seed, 0, &mut expected);
        for (got, expected) in made(seed, count).values().into_iter().zip(expected) {
            let got = got as f32;
            assert!(got.to_bits().abs_diff(expected.to_bits()) <= 1, "{seed}: {got:e} {expected:e}");
        }
    }
    let y = made(9, 300);
    for dtype in [DType::F16, DType::BF16] {
        let (mut narrow, first) = (Tensor::poisoned(dtype, 301), 2);
        run(randn(9, narrow.tail(first)), &mut [&mut narrow]);
        let expected = Tensor::new(dtype, &y.values()[..299]);
        assert_eq!(narrow.values()[2..], expected.values());
    }
    let integers = Tensor::poisoned(DType::I32, 4);
    assert!(randn(1, integers.view()).is_err());
}

#[test]
fn positions_follow_the_lengths_in_memory() {
    for dtype in [DType::I32, DType::I64] {
        let lens = Tensor::new(dtype, &[0.0, 7.0, 2_147_483_640.0, 63.0]);
        for steps in [1, 3, 7, 300] {
            let mut y = Tensor::poisoned(DType::I32, 4 * steps);
            run(positions(lens.view(), y.view(), 4, steps as u64), &mut [&mut y]);
            let lens = lens.values();
            let expected: Vec<f64> =
                (0..4 * steps).map(|i| f64::from((lens[i / steps] as i32).wrapping_add((i % steps) as i32))).collect();
            assert_eq!(y.values(), expected);
        }
    }
    let (lens, y) = (Tensor::poisoned(DType::I32, 2), Tensor::poisoned(DType::I32, 4));
    assert!(positions(lens.view(), y.view(), 2, 3).is_err());
    assert!(positions(lens.view(), y.view(), 2, 1 << 31).is_err());
    assert!(matches!(positions(lens.tail(2), y.tail(4), 0, 3), Ok(None)));
}

/// The stream that a key in memory names is the one that the host makes; where 64 bits do not hold a block's number, too.
#[test]
fn a_key_in_memory_names_a_stream() {
    for (key, start) in [(7, 0), (u64::MAX, 1 << 40), (3, u64::MAX - 1)] {
        let words = Tensor::of_i64(&[key.cast_signed(), start.cast_signed()]);
        for count in [1, 7, 1000] {
            let (mut floats, mut bits) = (vec![0.0; count], vec![0; count]);
            let mut y = Tensor::poisoned(DType::F32, count);
            run(random_by(RandomKind::Uniform, words.view(), y.view()), &mut [&mut y]);
            random::fill_uniform_from(key, start, 0, &mut floats);
            assert_eq!(y.values(), floats.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
            run(random_by(RandomKind::Normal, words.view(), y.view()), &mut [&mut y]);
            random::fill_normal_from(key, start, 0, &mut floats);
            let expected: Vec<f64> = floats.iter().map(|&v| v.into()).collect();
            assert_close("normal", &y.values(), &expected, 2.0 * precision(DType::F32), 0.0);
            let mut y = Tensor::poisoned(DType::I64, count);
            run(random_by(RandomKind::Bits, words.view(), y.view()), &mut [&mut y]);
            random::fill_bits_from(key, start, 0, &mut bits);
            assert_eq!(y.bytes(), bits.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
        }
    }
    let (key, y) = (Tensor::of_i64(&[1, 2, 3]), Tensor::poisoned(DType::F32, 4));
    assert!(random_by(RandomKind::Uniform, key.view(), y.view()).is_err());
    assert!(random_by(RandomKind::Bits, key.view(), y.view()).is_err());
}
