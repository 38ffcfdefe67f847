//! A step in steady state allocates nothing on the heap: not on the caller's thread, not on the device's.

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::{Device, HostTensor, Memory, Row};
use genie_graph::{
    CompareKind, CumulativeKind, DType, Dim, GraphBuilder, InputRole, LinearLayout, Op, PoolKind, QuantFormat,
    RandomKind, ScatterKind, Symbol, TensorType, UnaryKind,
};
use genie_transport::memory::Region;

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

/// Allocations of ten times `step`. The harness's own thread may make some beside it, once: what a step makes comes again.
fn made(mut step: impl FnMut()) -> u64 {
    let mut ten = || {
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        (0..10).for_each(|_| step());
        ALLOCATIONS.load(Ordering::SeqCst) - before
    };
    match ten() {
        0 => 0,
        first => first.min(ten()),
    }
}

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
                let made = made(|| {
                    step(&mut rows);
                    step(&mut rows[..1]);
                });
                assert_eq!(made, 0, "{tokens} tokens, {weights} weights");
            }
        }
    }
    images_and_blocks();
    order_and_lookups();
}

/// The same for a program that sorts, takes what it sorted, scatters it, carries sums, chooses, and draws random numbers.
fn order_and_lookups() {
    let mut b = GraphBuilder::new("order");
    let argument = |b: &mut GraphBuilder, name: &str, dtype, dims: &[u64]| {
        b.input(name, InputRole::Argument, TensorType::new(dtype, dims.iter().map(|&d| d.into()))).unwrap()
    };
    let (x, key) = (argument(&mut b, "x", DType::F32, &[7, 300]), argument(&mut b, "key", DType::I64, &[2]));
    let order = b.push(Op::ArgSort { axis: 0, descending: true }, &[x]).unwrap();
    let sorted = b.push(Op::TakeAlong { axis: 0 }, &[x, order]).unwrap();
    let back = b.push(Op::ScatterAlong { axis: 0, kind: ScatterKind::Add }, &[x, order, sorted]).unwrap();
    let sums = b.push(Op::Cumulative { kind: CumulativeKind::Sum, axis: 1 }, &[back]).unwrap();
    let random = Op::Random { kind: RandomKind::Normal, dtype: DType::F16, dims: vec![7.into(), 1.into()] };
    let random = b.push(random, &[key]).unwrap();
    let random = b.push(Op::Cast { to: DType::F32 }, &[random]).unwrap();
    let above = b.push(Op::Compare { kind: CompareKind::Gt }, &[sums, random]).unwrap();
    let chosen = b.push(Op::Where, &[above, sums, random]).unwrap();
    let y = b.push(Op::Unary { kind: UnaryKind::Lgamma }, &[chosen]).unwrap();
    b.output("y", y);
    let program = CpuDevice::new(0, 2, 1 << 26).unwrap().load(Arc::new(b.finish().unwrap())).unwrap();
    let key = HostTensor { dtype: Some(DType::I64), dims: vec![2], data: vec![5; 16] };
    let arguments = [tensor(&[7, 300], &vec![0.5; 2100]), key];
    let mut outputs = Vec::new();
    let mut step = || program.run(&[], &mut [Row::new(&arguments, &mut outputs, u64::MAX)]).unwrap();
    (0..2).for_each(|_| step());
    assert_eq!(made(step), 0, "order and lookups");
}

/// The same for a program of convolutions, pools, a norm, a product that reads blocks, and a scatter.
fn images_and_blocks() {
    let mut b = GraphBuilder::new("net");
    let input = |b: &mut GraphBuilder, name: &str, role, dtype, dims: &[Dim]| {
        b.input(name, role, TensorType::new(dtype, dims.iter().copied())).unwrap()
    };
    let fixed = |dims: &[u64]| dims.iter().map(|&d| Dim::Fixed(d)).collect::<Vec<_>>();
    let batch = Dim::Symbol(Symbol::Batch);
    let image = [&[batch], &fixed(&[8, 9, 9])[..]].concat();
    let x = input(&mut b, "x", InputRole::Argument, DType::F32, &image);
    let dense = input(&mut b, "dense", InputRole::Weight, DType::F32, &fixed(&[8, 8, 3, 3]));
    let own = input(&mut b, "own", InputRole::Weight, DType::F16, &fixed(&[8, 1, 3, 3]));
    let norm = input(&mut b, "norm", InputRole::Weight, DType::F32, &fixed(&[8]));
    let blocks = input(&mut b, "blocks", InputRole::Weight, DType::U8, &fixed(&[40, 18]));
    let rows = input(&mut b, "rows", InputRole::Weight, DType::I32, &fixed(&[40]));
    let conv = |groups| Op::Conv2d { stride: [1; 2], padding: [1; 4], dilation: [1; 2], groups };
    let pool = Op::Pool { kind: PoolKind::Max, kernel: [5; 2], stride: [4; 2], padding: [0; 4], count_padding: false };
    let y = b.push(conv(1), &[x, dense]).unwrap();
    let y = b.push(conv(8), &[y, own]).unwrap();
    let y = b.push(Op::BatchNorm { eps: 1e-3 }, &[y, norm, norm, norm, norm]).unwrap();
    let y = b.push(pool, &[y]).unwrap();
    let y = b.push(Op::Reshape { dims: vec![batch, Dim::Fixed(32)] }, &[y]).unwrap();
    let w = b.push(Op::Dequantize { format: QuantFormat::Q4_0, to: DType::F32 }, &[blocks]).unwrap();
    let y = b.push(Op::Linear { layout: LinearLayout::OutIn }, &[y, w]).unwrap();
    b.output("y", y);
    let table = b.push(Op::Scatter, &[blocks, rows, blocks]).unwrap();
    b.output("table", table);
    let program = CpuDevice::new(0, 2, 1 << 26).unwrap().load(Arc::new(b.finish().unwrap())).unwrap();
    let bytes = [8 * 8 * 9 * 4, 8 * 9 * 2, 8 * 4, 40 * 18, 40 * 4];
    let weights = bytes.map(|n| Memory::from(Region::copy_of(&vec![0; n])));
    for images in [1, 5] {
        let arguments = [tensor(&[images, 8, 9, 9], &vec![0.5; 648 * images as usize])];
        let mut outputs = Vec::new();
        let mut step = || {
            let row = Row::new(&arguments, &mut outputs, u64::MAX);
            program.run(&weights, &mut [row]).unwrap();
        };
        (0..2).for_each(|_| step());
        assert_eq!(made(step), 0, "{images} images");
    }
}
