//! Memory of a GPU: had, given back, had again, and no more of it.

use std::sync::Arc;
use std::thread;

use genie_cuda_kernels::gpu::{Gpu, GpuError, HostGpu, HostSettings, Stream};

use super::support::{Buffer, finish, gpus, pattern};

#[test]
fn memory_is_aligned_and_its_own() {
    for gpu in gpus() {
        let buffers: Vec<Buffer> = (0..40).map(|i| Buffer::holding(&gpu, &pattern(1 + i * 37, i))).collect();
        for (i, buffer) in buffers.iter().enumerate() {
            assert_eq!(buffer.at % 16, 0);
            assert_eq!(buffer.read(), pattern(1 + i * 37, i), "buffer {i}");
        }
    }
}

#[test]
fn nothing_at_all_has_an_address_too() {
    for gpu in gpus() {
        let none = Buffer::new(&gpu, 0);
        assert_ne!(none.at, 0);
        assert_eq!(none.read(), Vec::<u8>::new());
    }
}

#[test]
fn what_is_freed_while_it_is_used_is_used_to_the_end() {
    for gpu in gpus() {
        let kept = Buffer::new(&gpu, 1 << 16);
        for round in 0..20_u8 {
            let passing = Buffer::new(&gpu, 1 << 16);
            // SAFETY: freeing comes after both in the stream.
            unsafe {
                gpu.fill(Stream::Compute, passing.at, round, 1 << 16).expect("a fill");
                gpu.copy(Stream::Compute, kept.at, passing.at, 1 << 16).expect("a copy");
            }
            drop(passing);
            // Perhaps at the same address, and so only after the copy.
            let next = Buffer::new(&gpu, 1 << 16);
            // SAFETY: as above.
            unsafe { gpu.fill(Stream::Compute, next.at, 0xEE, 1 << 16) }.expect("a fill");
            assert_eq!(kept.read(), vec![round; 1 << 16]);
        }
    }
}

#[test]
fn threads_take_and_give_at_once() {
    for gpu in gpus() {
        thread::scope(|scope| {
            for seed in 0..4 {
                let gpu = gpu.clone();
                scope.spawn(move || {
                    for round in 0..25 {
                        let (bytes, seed) = (1 + (round * 977 + seed * 131) % 5000, seed * 100 + round);
                        let buffer = Buffer::holding(&gpu, &pattern(bytes, seed));
                        let copy = Buffer::new(&gpu, bytes);
                        // SAFETY: both live on until `read` has waited.
                        unsafe { gpu.copy(Stream::Compute, copy.at, buffer.at, bytes as u64) }.expect("a copy");
                        drop(buffer);
                        assert_eq!(copy.read(), pattern(bytes, seed));
                    }
                });
            }
        });
    }
}

#[test]
fn more_than_there_is_is_refused_and_less_is_had_after_that() {
    for gpu in gpus() {
        for wanted in [gpu.properties().total_bytes + 1, 1 << 60, u64::MAX] {
            assert_eq!(gpu.allocate(wanted), Err(GpuError::OutOfMemory { wanted }));
        }
        let buffer = Buffer::holding(&gpu, &pattern(5000, 0));
        assert_eq!(buffer.read(), pattern(5000, 0));
        let memory = gpu.memory().expect("an answer");
        assert!(memory.free <= memory.total && memory.total > 0, "{memory:?}");
    }
}

#[test]
fn memory_that_is_being_freed_is_had_before_the_answer_is_no() {
    let gpu: Arc<dyn Gpu> = Arc::new(HostGpu::new(HostSettings { total_bytes: 1 << 20, ..HostSettings::default() }));
    for _ in 0..5 {
        let most = Buffer::new(&gpu, 900 << 10);
        assert_eq!(gpu.allocate(200 << 10), Err(GpuError::OutOfMemory { wanted: 200 << 10 }));
        drop(most);
    }
    finish(&*gpu, Stream::Compute);
    let memory = gpu.memory().expect("an answer");
    assert_eq!((memory.free, memory.total), (1 << 20, 1 << 20));
}
