//! The CPU device against the machine: bytes a second of decode products beside a plain read of the same memory, flops of
//! prefill, and whole steps of models.
//!
//! `cargo bench -p genie-executor --bench device [-- THREADS]` (all cores unless given).

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Instant;

use genie_executor::device::cpu::CpuDevice;
use genie_graph::DType;

use support::models::{Config, Model, gpt2, llama};
use support::{Runner, Session};

fn main() {
    let given = std::env::args().skip(1).find_map(|a| a.parse().ok());
    let threads = given.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    println!("{threads} threads, read floor {:.1} GB/s", read_floor(threads));
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let config = Config { weights: dtype, ..Config::SMOL };
        whole_model(&format!("SmolLM2-135M {dtype}"), llama(&config), threads);
    }
    whole_model("GPT-2 124M f32", gpt2(&Config::GPT2), threads);
}

fn best(mut f: impl FnMut(), times: usize) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..times {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// GB/s at which `threads` read 512 MiB.
fn read_floor(threads: usize) -> f64 {
    let data = vec![1_u64; 64 << 20];
    let seconds = best(
        || {
            std::thread::scope(|scope| {
                for part in data.chunks(data.len() / threads) {
                    scope.spawn(move || {
                        let mut sums = [0_u64; 32];
                        for line in part.chunks_exact(32) {
                            sums.iter_mut().zip(line).for_each(|(s, x)| *s = s.wrapping_add(*x));
                        }
                        std::hint::black_box(sums);
                    });
                }
            });
        },
        7,
    );
    (data.len() * 8) as f64 / seconds / 1e9
}

fn whole_model(name: &str, model: Model, threads: usize) {
    let device = CpuDevice::new(0, threads, 16 << 30).expect("threads");
    let bytes: usize = model.weights.iter().map(|w| w.len()).sum();
    let runner = Runner::new(device, model);
    let run = |sessions: &mut [Session]| {
        let mut sessions: Vec<&mut Session> = sessions.iter_mut().collect();
        runner.step(&mut sessions, 1).expect("runs");
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
            5,
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
        let seconds = best(|| run(&mut sessions), 20);
        print!(" batch {batch}: {:.2} ms", seconds * 1e3);
        if batch == 1 {
            print!(" ({:.1} GB/s)", bytes as f64 / seconds / 1e9);
        }
        print!(";");
    }
    println!();
}
