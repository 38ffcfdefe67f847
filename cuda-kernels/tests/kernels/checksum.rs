//! Checksums against those of a program for the CPU, a bit at a time.

use genie_cuda_kernels::View;
use genie_cuda_kernels::launch::checksum::{Crc32c, crc32c, remainders_of};
use genie_graph::DType;

use super::support::{Numbers, Tensor, run};

fn reference(bytes: &[u8]) -> u32 {
    let mut register = !0_u32;
    for &byte in bytes {
        register ^= u32::from(byte);
        for _ in 0..8 {
            register = register >> 1 ^ (0x82f6_3b78 & 0_u32.wrapping_sub(register & 1));
        }
    }
    !register
}

fn sum(x: View) -> (Vec<u32>, u64) {
    let mut remainders = Tensor::poisoned(DType::I32, remainders_of(x.elements) as usize);
    let launch = crc32c(x, remainders.view());
    run(launch, &mut [&mut remainders]);
    (remainders.bytes().as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect(), x.elements)
}

#[test]
fn any_number_of_bytes_at_any_address() {
    let mut numbers = Numbers::new(1);
    for len in [1, 2, 3, 4, 5, 255, 1024, 65_535, 65_536, 65_537, 131_072 + 10, 262_144] {
        let bytes: Vec<f64> = (0..len + 3).map(|_| numbers.below(256) as f64).collect();
        let all: Vec<u8> = bytes.iter().map(|&b| b as u8).collect();
        let tensor = Tensor::new(DType::U8, &bytes);
        for skipped in 0..=3 {
            let (remainders, taken) = sum(tensor.tail(skipped));
            let mut crc = Crc32c::new();
            crc.add(taken, &remainders);
            assert_eq!(crc.value(), reference(&all[skipped as usize..]), "{len} bytes and 3, less {skipped}");
        }
    }
}

#[test]
fn pieces_one_after_another() {
    let (mut numbers, mut crc, mut all) = (Numbers::new(2), Crc32c::new(), Vec::new());
    for len in [70_000, 1, 4096, 65_536] {
        let bytes: Vec<f64> = (0..len).map(|_| numbers.below(256) as f64).collect();
        all.extend(bytes.iter().map(|&b| b as u8));
        let tensor = Tensor::new(DType::U8, &bytes);
        let (remainders, taken) = sum(tensor.view());
        crc.add(taken, &remainders);
    }
    assert_eq!(crc.value(), reference(&all));
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = View::new(4096, DType::U8, 65_537);
    let remainders = |elements| View::new(8192, DType::I32, elements);
    assert!(crc32c(x, remainders(2)).is_ok_and(|launch| launch.is_some()));
    assert!(crc32c(x, remainders(1)).is_err());
    assert!(crc32c(View { dtype: DType::F32, ..x }, remainders(2)).is_err());
    assert!(crc32c(View { elements: 0, ..x }, remainders(0)).is_ok_and(|launch| launch.is_none()));
}
