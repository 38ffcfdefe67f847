//! A step in steady state allocates nothing on the heap: not on the caller's thread, not on the device's.

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use genie_executor::device::Row;
use genie_executor::device::cpu::CpuDevice;
use genie_graph::DType;

use support::models::{Config, gpt2, llama};
use support::{Runner, tensor};
use tiny::TINY;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(p, layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: as the caller's.
        unsafe { System.realloc(p, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One test for all, so that no other test's allocations are counted.
#[test]
fn a_step_in_steady_state_allocates_nothing() {
    for make in [llama, gpt2] {
        for weights in [DType::F32, DType::BF16, DType::F16] {
            for tokens in [1, 20] {
                let config = Config { weights, ..TINY };
                let runner = Runner::new(CpuDevice::new(0, 2, 1 << 30).unwrap(), make(&config));
                let mut sessions = [runner.session(), runner.session()];
                for session in &mut sessions {
                    // Sampling too, not only greedy.
                    session.arguments[1] = tensor(&[1, 2], &[0.8, 0.9]);
                    session.feed(&(0..tokens).collect::<Vec<i32>>());
                    // Room for all that comes: a new block every so many tokens is an allocation.
                    session.cache.reserve(64 * 20).unwrap();
                }
                let [a, b] = &mut sessions;
                let mut rows = [a.row(u64::MAX), b.row(u64::MAX)];
                let step = |rows: &mut [Row<'_>]| runner.program.run(&runner.weights, rows).unwrap();
                for _ in 0..2 {
                    step(&mut rows);
                    step(&mut rows[..1]);
                }
                let before = ALLOCATIONS.load(Ordering::SeqCst);
                for _ in 0..10 {
                    step(&mut rows);
                    step(&mut rows[..1]);
                }
                let made = ALLOCATIONS.load(Ordering::SeqCst) - before;
                assert_eq!(made, 0, "{tokens} tokens, {weights} weights");
            }
        }
    }
}
