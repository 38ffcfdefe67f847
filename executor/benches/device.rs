//! The CPU device against the machine: bytes a second of decode products beside a plain read of the same memory, flops of
//! prefill products beside the gemm crate's, meeting of threads beside rayon's, and whole steps of models.
//!
//! `cargo bench -p genie-executor --bench device [-- THREADS] [-- ISA] [-- NAME]` (all cores, the widest instruction set and all
//! lines unless given).

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_executor::device::cpu::{CpuDevice, Isa};
use genie_executor::device::{Device, HostTensor, Row};
use genie_graph::{DType, Dim, GraphBuilder, InputRole, LinearLayout, Op, QuantFormat, Symbol, TensorType};
use genie_transport::memory::Region;

use support::models::{Config, Model, gpt2, llama};
use support::{Runner, Session, tensor};

/// The sizes of SmolLM2-135M.
const SMOL: Config = Config {
    layers: 30,
    hidden: 576,
    heads: 9,
    kv_heads: 3,
    intermediate: 1536,
    vocabulary: 49152,
    weights: DType::F32,
    cache: DType::F32,
    activations: DType::F32,
    vectors: None,
};

/// The sizes of GPT-2 (124M).
const GPT2: Config = Config {
    layers: 12,
    hidden: 768,
    heads: 12,
    kv_heads: 12,
    intermediate: 3072,
    vocabulary: 50257,
    weights: DType::F32,
    cache: DType::F32,
    activations: DType::F32,
    vectors: None,
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let threads = arguments.iter().find_map(|a| a.parse().ok());
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let isa = Isa::available().into_iter().rfind(|isa| arguments.iter().any(|a| a == isa.name()));
    let isa = isa.unwrap_or_else(Isa::detect);
    let machine = Machine { threads, isa };
    let name = arguments.iter().find(|a| a.parse::<usize>().is_err() && *a != isa.name());
    let wanted = |line: &str| name.is_none_or(|n| line.contains(n.as_str()));
    println!("{threads} threads, {}, read floor {:.1} GB/s", isa.name(), read_floor(threads));
    for layout in [LinearLayout::OutIn, LinearLayout::InOut] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for (n, k) in [(49152, 576), (16384, 1536)] {
                let line = format!("linear-{layout:?}-{dtype} {n}x{k}");
                if wanted(&line) {
                    linear(&line, layout, dtype, n, k, machine);
                }
            }
        }
    }
    for format in QuantFormat::ALL {
        for (n, k) in [(49152, 576), (16384, 1536)] {
            let line = format!("linear-{format:?} {n}x{k}");
            if wanted(&line) {
                packed(&line, format, n, k, machine);
            }
        }
    }
    // Layers of ResNet-50 and of EfficientNet-Lite0.
    for (channels, out, kernel, side, stride, groups) in [
        (3, 64, 7, 224, 2, 1),
        (64, 64, 3, 56, 1, 1),
        (256, 256, 3, 14, 1, 1),
        (512, 512, 3, 7, 1, 1),
        (1024, 256, 1, 14, 1, 1),
        (144, 144, 3, 56, 1, 144),
        (144, 144, 5, 56, 2, 144),
        (672, 672, 5, 14, 1, 672),
    ] {
        let line = format!("conv {channels}->{out} {kernel}x{kernel}/{stride} of {side}x{side}, {groups} groups");
        if wanted(&line) {
            convolution(&line, [channels, out, kernel, side], stride, groups, machine);
        }
    }
    if wanted("gemm") {
        gemm_crate(threads);
    }
    if wanted("meeting") {
        meetings(machine);
    }
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        whole_model("SmolLM2-135M", llama, &Config { weights: dtype, ..SMOL }, machine, &wanted);
        whole_model("GPT-2-124M", gpt2, &Config { weights: dtype, ..GPT2 }, machine, &wanted);
    }
}

/// What is measured.
#[derive(Clone, Copy)]
struct Machine {
    threads: usize,
    isa: Isa,
}

impl Machine {
    fn device(self, memory: u64) -> CpuDevice {
        CpuDevice::with_isa(0, self.threads, memory, self.isa).expect("threads")
    }
}

/// Seconds of the fastest of many runs within a time; other work on the machine then matters least.
fn best(mut f: impl FnMut(), time: Duration) -> f64 {
    f();
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    while begin.elapsed() < time {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

const SHORT: Duration = Duration::from_millis(700);

/// GB/s at which `threads` read 128 MiB, asking ahead for what comes (a plain loop does not reach what memory gives).
fn read_floor(threads: usize) -> f64 {
    let data = vec![1_u64; 16 << 20];
    let read = || {
        std::thread::scope(|scope| {
            for part in data.chunks(data.len() / threads) {
                scope.spawn(move || {
                    let mut sums = [0_u64; 32];
                    for line in part.chunks_exact(32) {
                        prefetch(line.as_ptr().wrapping_add(2048));
                        sums.iter_mut().zip(line).for_each(|(s, x)| *s = s.wrapping_add(*x));
                    }
                    std::hint::black_box(sums);
                });
            }
        });
    };
    (data.len() * 8) as f64 / best(read, SHORT) / 1e9
}

/// The four lines from an address.
fn prefetch(p: *const u64) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..4 {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch of any address is harmless, and every x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.wrapping_add(line * 8).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// One product with floats.
fn linear(name: &str, layout: LinearLayout, dtype: DType, n: u64, k: u64, machine: Machine) {
    let mut b = GraphBuilder::new("linear");
    let batch = Dim::Symbol(Symbol::Batch);
    let x = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [batch, k.into()])).expect("input");
    let dims = if layout == LinearLayout::OutIn { [n.into(), k.into()] } else { [k.into(), n.into()] };
    let w = b.input("w", InputRole::Weight, TensorType::new(dtype, dims)).expect("input");
    let y = b.push(Op::Linear { layout }, &[x, w]).expect("linear");
    b.output("y", y);
    product(name, b, n * k * dtype.bytes(), [n, k], machine);
}

/// The same with a weight in blocks.
fn packed(name: &str, format: QuantFormat, n: u64, k: u64, machine: Machine) {
    let mut b = GraphBuilder::new("packed");
    let batch = Dim::Symbol(Symbol::Batch);
    let x = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [batch, k.into()])).expect("input");
    let width = k / QuantFormat::BLOCK * format.block_bytes();
    let w = b.input("w", InputRole::Weight, TensorType::new(DType::U8, [n.into(), width.into()])).expect("input");
    let w = b.push(Op::Dequantize { format, to: DType::F32 }, &[w]).expect("dequantize");
    let y = b.push(Op::Linear { layout: LinearLayout::OutIn }, &[x, w]).expect("linear");
    b.output("y", y);
    product(name, b, n * width, [n, k], machine);
}

/// A program of one product with a weight of so many bytes, for several numbers of rows.
fn product(name: &str, b: GraphBuilder, bytes: u64, [n, k]: [u64; 2], machine: Machine) {
    let device = machine.device(8 << 30);
    let program = device.load(Arc::new(b.finish().expect("graph"))).expect("program");
    let weights = [Region::copy_of(&vec![1; bytes as usize]).into()];
    print!("{name}:");
    for rows in [1, 2, 4, 8, 16, 72, 512] {
        let arguments: [HostTensor; 1] = [tensor(&[rows, k], &vec![0.5; (rows * k) as usize])];
        let mut outputs = Vec::new();
        let mut run = || {
            let row = Row::new(&arguments, &mut outputs, 0);
            program.run(&weights, &mut [row]).expect("runs");
        };
        let seconds = best(&mut run, SHORT);
        if rows <= 16 {
            print!(" {rows} rows {:.1} GB/s;", bytes as f64 / seconds / 1e9);
        } else {
            print!(" {rows} rows {:.0} GFLOP/s;", (2 * rows * n * k) as f64 / seconds / 1e9);
        }
    }
    println!();
}

/// A convolution with as much padding as keeps the image's size, for several numbers of images.
fn convolution(name: &str, [channels, out, kernel, side]: [u64; 4], stride: u32, groups: u32, machine: Machine) {
    let mut b = GraphBuilder::new("convolution");
    let ty = |dims: [Dim; 4]| TensorType::new(DType::F32, dims);
    let image = [Dim::Symbol(Symbol::Batch), channels.into(), side.into(), side.into()];
    let x = b.input("x", InputRole::Argument, ty(image)).expect("input");
    let seen = channels / u64::from(groups);
    let w = b.input("w", InputRole::Weight, ty([out, seen, kernel, kernel].map(Dim::from))).expect("input");
    let op = Op::Conv2d { stride: [stride; 2], padding: [(kernel / 2) as u32; 4], dilation: [1; 2], groups };
    let y = b.push(op, &[x, w]).expect("conv2d");
    b.output("y", y);
    let device = machine.device(8 << 30);
    let program = device.load(Arc::new(b.finish().expect("graph"))).expect("program");
    let (taps, windows) = (seen * kernel * kernel, (side.div_ceil(stride.into())).pow(2));
    let weights = [Region::copy_of(&vec![0; (out * taps * 4) as usize]).into()];
    print!("{name}:");
    for images in [1, 8] {
        let arguments =
            [tensor(&[images, channels, side, side], &vec![0.5; (images * channels * side * side) as usize])];
        let mut outputs = Vec::new();
        let mut run = || {
            let row = Row::new(&arguments, &mut outputs, 0);
            program.run(&weights, &mut [row]).expect("runs");
        };
        let flops = 2 * images * out * taps * windows;
        print!(" {images} images {:.1} GFLOP/s;", flops as f64 / best(&mut run, SHORT) / 1e9);
    }
    println!();
}

/// The gemm crate on the shapes of [`linear`].
fn gemm_crate(threads: usize) {
    print!("gemm crate f32 49152x576:");
    let (n, k) = (49152, 576);
    let w = vec![0.5_f32; n * k];
    let parallelism = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    for rows in [1, 8, 16, 72, 512] {
        let x = vec![0.5_f32; rows * k];
        let mut y = vec![0.0_f32; rows * n];
        let (n_stride, k_stride) = (n as isize, k as isize);
        let run = || {
            // SAFETY: the slices have rows * n, rows * k and n * k elements, laid out by these strides.
            unsafe {
                gemm::gemm(
                    rows,
                    n,
                    k,
                    y.as_mut_ptr(),
                    1,
                    n_stride,
                    false,
                    x.as_ptr(),
                    1,
                    k_stride,
                    w.as_ptr(),
                    k_stride,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    parallelism,
                );
            }
        };
        let seconds = best(run, SHORT);
        print!(
            " {rows} rows {:.1} GB/s {:.0} GFLOP/s;",
            (n * k * 4) as f64 / seconds / 1e9,
            (2 * rows * n * k) as f64 / seconds / 1e9
        );
    }
    println!();
}

/// What it costs to divide work among threads: a program of many dependent small steps, and rayon's scope and broadcast.
fn meetings(machine: Machine) {
    const STEPS: u32 = 1000;
    let mut b = GraphBuilder::new("chain");
    let ty = TensorType::new(DType::F32, [Dim::Symbol(Symbol::Batch), 2048.into()]);
    let mut x = b.input("x", InputRole::Argument, ty).expect("input");
    for _ in 0..STEPS {
        x = b.push(Op::Neg, &[x]).expect("neg");
    }
    b.output("x", x);
    let device = machine.device(1 << 30);
    let program = device.load(Arc::new(b.finish().expect("graph"))).expect("program");
    let arguments = [tensor(&[1, 2048], &[0.5; 2048])];
    let mut outputs = Vec::new();
    let ours = best(
        || {
            let row = Row::new(&arguments, &mut outputs, 0);
            program.run(&[], &mut [row]).expect("runs");
        },
        SHORT,
    );
    let pool = rayon::ThreadPoolBuilder::new().num_threads(machine.threads).build().expect("pool");
    let mut values = vec![0.5_f32; 2048];
    let negate = |part: &mut [f32]| part.iter_mut().for_each(|v| *v = -*v);
    let fork_join = best(
        || {
            pool.install(|| {
                for _ in 0..STEPS {
                    let (a, b) = values.split_at_mut(1024);
                    rayon::join(|| negate(a), || negate(b));
                }
            });
        },
        SHORT,
    );
    let broadcast =
        best(|| (0..STEPS / 10).for_each(|_| drop(pool.broadcast(|_| std::hint::black_box(0)))), SHORT) * 10.0;
    let per = |seconds: f64| seconds / f64::from(STEPS) * 1e6;
    println!(
        "meeting, us a step: ours {:.2}, rayon join {:.2}, rayon broadcast {:.2}",
        per(ours),
        per(fork_join),
        per(broadcast)
    );
}

fn whole_model(
    name: &str,
    make: fn(&Config) -> Model,
    config: &Config,
    machine: Machine,
    wanted: &dyn Fn(&str) -> bool,
) {
    let name = format!("{name}-{}", config.weights);
    if !wanted(&name) {
        return;
    }
    let model = make(config);
    let device = machine.device(16 << 30);
    let bytes: usize = model.weights.iter().map(|w| w.len()).sum();
    let runner = Runner::new(device, model);
    let run = |sessions: &mut [Session]| {
        let mut rows: Vec<Row<'_>> = sessions.iter_mut().map(|s| s.row(1)).collect();
        runner.program.run(&runner.weights, &mut rows).expect("runs");
    };
    print!("{name}:");
    for prompt in [72, 512] {
        let tokens: Vec<i32> = (0..prompt).collect();
        let seconds = best(
            || {
                let mut session = [runner.session()];
                session[0].feed(&tokens);
                run(&mut session);
            },
            3 * SHORT,
        );
        print!(" prefill {prompt}: {:.1} ms;", seconds * 1e3);
    }
    for batch in [1, 2, 4, 8, 16] {
        let mut sessions: Vec<Session> = (0..batch).map(|_| runner.session()).collect();
        for session in &mut sessions {
            session.feed(&(0..72).collect::<Vec<_>>());
            run(std::slice::from_mut(session));
            session.feed(&[7]);
        }
        let seconds = best(|| run(&mut sessions), 2 * SHORT);
        print!(" batch {batch}: {:.2} ms", seconds * 1e3);
        if batch == 1 {
            print!(" ({:.1} GB/s)", bytes as f64 / seconds / 1e9);
        }
        print!(";");
    }
    println!();
}
