//! Tests of what runs kernels here, by kernels of `host/selftest.cu`: exchanges, barriers, copies, fragments, and that mistakes
//! are found.

use std::ffi::c_void;

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use super::{HostError, run};
use crate::kernel::{Kernel, Launch};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SelfTest {
    input: u64,
    output: u64,
}

macro_rules! kernels {
    ($($name:ident = $symbol:ident;)*) => {
        // SAFETY: `host/selftest.cu` defines them so.
        unsafe extern "C" {
            $(fn $symbol(params: *const c_void);)*
        }
        $(static $name: Kernel =
            Kernel { name: stringify!($symbol), module: 0, bytes: size_of::<SelfTest>(), host: $symbol };)*
    };
}

kernels! {
    SHUFFLES = genie_host_selftest_shuffles;
    BARRIERS = genie_host_selftest_barriers;
    STUCK = genie_host_selftest_stuck;
    POISON = genie_host_selftest_poison;
    COPIES = genie_host_selftest_copies;
    HALVES = genie_host_selftest_halves;
    FRAGMENTS_F16 = genie_host_selftest_fragments_f16;
    FRAGMENTS_BF16 = genie_host_selftest_fragments_bf16;
    RACE_OF_WARPS = genie_host_selftest_race_of_warps;
    RACE_IN_A_WARP = genie_host_selftest_race_in_a_warp;
    RACE_OF_COPIES = genie_host_selftest_race_of_copies;
    RACE_OF_SUMS = genie_host_selftest_race_of_sums;
}

/// The orders that kernels' own tests use.
const ORDERS: [u64; 4] = [0, 1, 2, 3];
/// What outputs hold before.
const UNTOUCHED: u32 = 0xABCD;

/// Runs `blocks` blocks of `threads` in one order.
fn run_in<T: Pod>(
    kernel: &'static Kernel,
    blocks: u32,
    threads: u32,
    shared: u32,
    input: &[T],
    outputs: usize,
    order: u64,
) -> Result<Vec<u32>, HostError> {
    // Copies take 16 bytes at a time from addresses that are multiples of it.
    let mut aligned = vec![0_u128; size_of_val(input).div_ceil(16)];
    bytemuck::cast_slice_mut::<u128, u8>(&mut aligned)[..size_of_val(input)]
        .copy_from_slice(bytemuck::cast_slice(input));
    let mut output = vec![UNTOUCHED; outputs];
    let params = SelfTest { input: aligned.as_ptr() as u64, output: output.as_mut_ptr() as u64 };
    let launch = Launch::new(kernel, [blocks, 1, 1], [threads, 1, 1], shared, &params);
    // SAFETY: both live until it returns, and are as large as the kernel takes them to be.
    unsafe { run(&launch, order) }.map(|()| output)
}

/// Runs one block in every order; all must give the same.
fn run_block<T: Pod>(kernel: &'static Kernel, threads: u32, input: &[T], outputs: usize) -> Vec<u32> {
    let one = |order| run_in(kernel, 1, threads, 0, input, outputs, order).expect("it comes to its end");
    let first = one(0);
    for order in ORDERS {
        assert_eq!(one(order), first, "order {order}");
    }
    first
}

const NOTHING: [u32; 0] = [];

#[test]
fn exchanges_give_what_the_device_gives() {
    let got = run_block(&SHUFFLES, 64, &NOTHING, 14 * 64);
    let row = |i: usize, of: &dyn Fn(u32, u32) -> u32| {
        let expected: Vec<u32> = (0..64).map(|thread| of(thread / 32 * 32 + 100, thread % 32)).collect();
        assert_eq!(got[i * 64..(i + 1) * 64], expected, "exchange {i}");
    };
    // Of value `base + lane`.
    row(0, &|base, _| base + 7);
    row(1, &|base, lane| base + (lane + 5) % 32);
    row(2, &|base, lane| base + lane / 8 * 8 + 3);
    row(3, &|base, lane| base + (lane ^ 3));
    // Across parts of 16 there is no exchange: each keeps its own.
    row(4, &|base, lane| base + lane);
    row(5, &|base, lane| base + if lane < 28 { lane + 4 } else { lane });
    row(6, &|base, lane| base + if lane % 8 < 4 { lane + 4 } else { lane });
    row(7, &|base, lane| base + if lane >= 3 { lane - 3 } else { lane });
    row(8, &|base, lane| base + if lane % 8 >= 3 { lane - 3 } else { lane });
    row(9, &|base, _| base + 9);
    row(10, &|_, _| (0..32).filter(|lane| lane % 3 == 0).map(|lane| 1 << lane).sum());
    row(11, &|_, _| 1);
    row(12, &|_, lane| if lane < 20 { 0x000A_AAAA } else { (1 << 20) + (1 << 25) + (1 << 30) + 25 });
    let last = got[13 * 64..].iter().enumerate();
    for (thread, &value) in last {
        let (base, lane) = (thread as u32 / 32 * 32 + 100, thread as u32 % 32);
        match lane {
            // Lane 24 is not of those that wait: what it holds is not said.
            23 => assert_ne!(value, UNTOUCHED),
            24.. => assert_eq!(value, UNTOUCHED),
            _ => assert_eq!(value, base + lane + 1),
        }
    }
}

#[test]
fn barriers_in_loops_and_early_ends() {
    let got = run_block(&BARRIERS, 96, &NOTHING, 96);
    for (me, &sum) in got.iter().enumerate() {
        let (turns, more) = if me < 64 { (5, 1000) } else { (3, 0) };
        let expected = (0..turns).map(|turn| (me as u32 + 33) % 64 + turn).sum::<u32>() + more;
        assert_eq!(sum, if me < 80 { expected } else { UNTOUCHED }, "thread {me}");
    }
}

#[test]
fn a_barrier_that_not_all_reach_is_an_error() {
    for order in ORDERS {
        let error = run_in(&STUCK, 1, 64, 0, &NOTHING, 64, order).expect_err("half of a warp waits elsewhere");
        let said = error.to_string();
        assert!(said.contains("`genie_host_selftest_stuck`, block [0, 0, 0]"), "{said}");
        assert!(said.contains("48 threads from 0 on at the block's barrier"), "{said}");
        assert!(said.contains("16 threads from 16 on for lanes 0xffffffff of their warp"), "{said}");
        // What is stuck does not stay: the next kernel runs.
        assert!(run_in(&BARRIERS, 1, 96, 0, &NOTHING, 96, order).is_ok());
    }
}

#[test]
fn blocks_are_no_larger_than_a_gpu_takes() {
    let shared = 228 << 10;
    assert!(matches!(
        run_in(&POISON, 1, 32, shared, &NOTHING, 64, 0),
        Err(HostError::TooLarge { threads: 32, shared: 233_472, .. })
    ));
    assert!(matches!(run_in(&POISON, 1, 1025, 128, &NOTHING, 64, 0), Err(HostError::TooLarge { threads: 1025, .. })));
}

#[test]
fn shared_memory_holds_nothing_that_a_block_has_not_written() {
    for order in ORDERS {
        let got = run_in(&POISON, 3, 32, 128, &NOTHING, 3 * 64, order).expect("it comes to its end");
        assert!(got.iter().all(|&word| word == u32::MAX), "{got:x?}");
    }
}

#[test]
fn copies_arrive_when_they_are_waited_for() {
    let input: Vec<u32> = (0..128).map(|i| 1000 + i).collect();
    for order in ORDERS {
        let got = run_in(&COPIES, 1, 32, 0, &input, 160, order).expect("it comes to its end");
        // One order has them arrive at once, as they may: what depends on either is wrong, and shows.
        let early = order == 2;
        for me in 0..32 {
            let (mine, next) = (1001 + 4 * me as u32, (me + 1) % 32);
            assert_eq!(got[me], if early { mine } else { 7 }, "before any wait, order {order}");
            assert_eq!(got[32 + me], mine);
            let second = if me == 0 { 0 } else { mine };
            assert_eq!(got[64 + me], if early { second } else { 7 }, "the second group was not waited for");
            assert_eq!(got[96 + me], if next == 0 { 0 } else { 1001 + 4 * next as u32 });
            let third = if next % 2 == 1 || next == 0 { 0 } else { 1002 + 4 * next as u32 };
            assert_eq!(got[128 + me], third, "what is past the valid bytes is zero");
        }
    }
}

#[test]
fn every_half_is_what_it_is() {
    let got = run_block(&HALVES, 256, &NOTHING, 2 << 16);
    for bits in 0..=u16::MAX {
        let (expected, wide) = (f16::from_bits(bits), f32::from_bits(got[usize::from(bits)]));
        let back = got[usize::from(bits) + (1 << 16)];
        if expected.is_nan() {
            assert!(wide.is_nan() && f16::from_bits(back as u16).is_nan(), "{bits:#x}");
        } else {
            assert_eq!((wide.to_bits(), back), (expected.to_f32().to_bits(), bits.into()), "{bits:#x}");
        }
    }
}

#[test]
fn fragments_multiply_as_matrices_do() {
    // Small integers: every sum is exact.
    let value = |i: usize| (i * 7919 % 13) as f32 - 6.0;
    let matrices: Vec<f32> = (0..768).map(value).collect();
    let narrow: Vec<u16> = matrices.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
    let wide: Vec<u16> = matrices.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
    for (kernel, input) in [(&FRAGMENTS_F16, narrow), (&FRAGMENTS_BF16, wide)] {
        let got = run_block(kernel, 32, &input, 512);
        let (a, by_columns, by_rows) = (&matrices[..256], &matrices[256..512], &matrices[512..]);
        for row in 0..16 {
            for column in 0..16 {
                let at = row * 16 + column;
                let of = |b: &dyn Fn(usize) -> f32| (0..16).map(|k| a[row * 16 + k] * b(k)).sum::<f32>();
                assert_eq!(f32::from_bits(got[at]), of(&|k| by_columns[column * 16 + k]), "{row}, {column}");
                assert_eq!(f32::from_bits(got[256 + at]), of(&|k| by_rows[k * 16 + column]), "{row}, {column}");
            }
        }
    }
}

/// Whether a mistake shows: two orders give different results.
fn is_found(kernel: &'static Kernel, threads: u32) -> bool {
    let input: Vec<u32> = (0..4 * threads).collect();
    let one = |order| run_in(kernel, 1, threads, 0, &input, threads as usize, order).expect("it comes to its end");
    let first = one(0);
    ORDERS.iter().any(|&order| one(order) != first)
}

#[test]
fn races_are_found() {
    assert!(is_found(&RACE_OF_WARPS, 128), "a missing barrier of the block");
    assert!(is_found(&RACE_IN_A_WARP, 32), "a missing barrier of a warp");
    assert!(is_found(&RACE_OF_COPIES, 64), "copies that only their own warp has waited for");
    assert!(is_found(&RACE_OF_SUMS, 64), "sums in the order in which threads come");
}
