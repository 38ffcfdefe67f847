//! Models whose products and attention have 16 bits, beside the same weights with f32 throughout.

use std::sync::Arc;

use genie_cuda_kernels::gpu::{HostGpu, HostProducts, HostSettings};
use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::cuda::CudaDevice;
use genie_graph::{DType, Dim, LinearLayout, NodeId, Op, ReduceKind};

use crate::case::Case;
use crate::models::{BOTH, text};
use crate::stand_in::gpu;
use crate::support::models::{Config, Model};
use crate::support::{Runner, Session};
use crate::tiny::TINY;

/// Sums go through matrix units in whole packs here, and heads of 16 through those of attention.
const ALIGNED: Config =
    Config { layers: 2, hidden: 64, heads: 4, kv_heads: 2, intermediate: 96, vocabulary: 104, ..TINY };

fn wide(sizes: Config, weights: DType) -> Config {
    Config { weights, vectors: Some(DType::F32), ..sizes }
}

fn narrow(sizes: Config, weights: DType) -> Config {
    Config { activations: weights, cache: weights, ..wide(sizes, weights) }
}

/// The largest difference over the largest number.
fn error(got: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().map(|x| x.abs()).fold(0.0, f32::max);
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst.is_finite() && got.len() == expected.len());
    worst / largest
}

/// What 16 bits may cost: a step of bf16 is 2^-8 wide, one of f16 an eighth of that.
fn allowed(dtype: DType) -> f32 {
    if dtype == DType::BF16 { 2e-2 } else { 4e-3 }
}

fn on_cpu(make: fn(&Config) -> Model, config: &Config) -> Runner {
    Runner::new(CpuDevice::new(0, 2, 1 << 30).unwrap(), make(config))
}

fn on_host(products: HostProducts, make: fn(&Config) -> Model, config: &Config) -> (Arc<HostGpu>, Runner) {
    let host = Arc::new(HostGpu::new(HostSettings { total_bytes: 1 << 30, ..HostSettings::default() }));
    host.set_products(products);
    let device = CudaDevice::new(0, host.clone(), None).unwrap();
    (host, Runner::new(device, make(config)))
}

/// A prompt, single tokens, another prompt: the logits after each.
fn logits(runner: &Runner) -> Vec<Vec<f32>> {
    let mut session = runner.session();
    let parts = [text(0, 70), vec![3], vec![100], text(1, 20), vec![0]];
    parts.iter().map(|tokens| runner.feed(&mut session, tokens)).collect()
}

fn assert_near(what: &str, dtype: DType, got: &[Vec<f32>], expected: &[Vec<f32>]) {
    for (step, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = error(got, expected);
        assert!(error < allowed(dtype), "{what}, {dtype}, step {step}: {error}");
    }
}

#[test]
fn the_cpu_stays_near_f32() {
    for make in BOTH {
        for dtype in [DType::F16, DType::BF16] {
            for sizes in [TINY, ALIGNED] {
                let expected = logits(&on_cpu(make, &wide(sizes, dtype)));
                assert_near("cpu", dtype, &logits(&on_cpu(make, &narrow(sizes, dtype))), &expected);
            }
        }
    }
}

#[test]
fn a_gpu_stays_near_the_f32_of_the_cpu() {
    for make in BOTH {
        for dtype in [DType::F16, DType::BF16] {
            for sizes in [TINY, ALIGNED] {
                let expected = logits(&on_cpu(make, &wide(sizes, dtype)));
                let of = |config: &Config| logits(&Runner::new(gpu(), make(config)));
                assert_near("gpu", dtype, &of(&narrow(sizes, dtype)), &expected);
                let cache = Config { cache: DType::F32, ..narrow(sizes, dtype) };
                assert_near("gpu with a cache of f32", dtype, &of(&cache), &expected);
            }
        }
    }
}

/// Whatever the library of products has no way for, kernels do.
#[test]
fn with_and_without_a_library() {
    for make in BOTH {
        let expected = logits(&on_cpu(make, &wide(ALIGNED, DType::BF16)));
        let mut done = Vec::new();
        for products in [HostProducts::None, HostProducts::Bare, HostProducts::All] {
            let (host, runner) = on_host(products, make, &narrow(ALIGNED, DType::BF16));
            assert_near(&format!("{products:?}"), DType::BF16, &logits(&runner), &expected);
            done.push((host.launches(), host.products()));
        }
        let [none, bare, all] = done[..] else { panic!("three of them") };
        assert_eq!(none.1, 0);
        assert_eq!(bare.1, all.1, "all products are the library's");
        assert!(all.0 < bare.0, "what it does besides needs no kernel: {all:?} and {bare:?}");
    }
}

/// Conversions go into the kernels beside them.
#[test]
fn steps_take_no_more_kernels_than_with_f32() {
    for make in BOTH {
        let kernels = |config: &Config, tokens: usize| {
            let (host, runner) = on_host(HostProducts::None, make, config);
            let mut session = runner.session();
            runner.feed(&mut session, &text(0, tokens));
            let before = host.launches();
            runner.feed(&mut session, &text(1, tokens));
            host.launches() - before
        };
        for tokens in [1, 40] {
            let plain = kernels(&wide(ALIGNED, DType::BF16), tokens);
            assert_eq!(kernels(&narrow(ALIGNED, DType::BF16), tokens), plain, "{tokens} tokens");
        }
    }
}

#[test]
fn a_prompt_and_its_tokens_one_by_one_go_on_alike() {
    for make in BOTH {
        for dtype in [DType::F16, DType::BF16] {
            let runner = Runner::new(gpu(), make(&narrow(ALIGNED, dtype)));
            let tokens = text(2, 48);
            let (mut whole, mut parts): (Session, Session) = (runner.session(), runner.session());
            let of_whole = runner.feed(&mut whole, &tokens);
            runner.feed(&mut parts, &tokens[..40]);
            let mut of_parts = Vec::new();
            tokens[40..].iter().for_each(|&token| of_parts = runner.feed(&mut parts, &[token]));
            let worst = error(&of_parts, &of_whole);
            assert!(worst < allowed(dtype), "{dtype}: {worst}");
            let mut sorted = of_whole.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let largest = of_whole.iter().map(|x| x.abs()).fold(0.0, f32::max);
            if sorted[0] - sorted[1] > 2.0 * worst * largest {
                assert_eq!(whole.token(), parts.token(), "{dtype}");
            }
        }
    }
}

/// Layers of all kinds: which of their nodes become one kernel depends on what is there, and on the rows. The reference rounds to f16
/// after each node: up to three roundings of factors whose product is some forty.
#[test]
fn conversions_are_right_wherever_they_end_up() {
    for seed in 0..60 {
        let mut case = Case::new(seed);
        let rows = [3, 20, 70][case.source.below(3)];
        let (k, n) = (8 * case.source.size(9) + [0, 3][case.source.below(2)], case.source.size(50));
        let layout = [LinearLayout::OutIn, LinearLayout::InOut][case.source.below(2)];
        let w = if layout == LinearLayout::OutIn { [n, k] } else { [k, n] }.map(Dim::from);
        let [norm, bias, activation, factor, residual, shared] = [3, 3, 3, 3, 2, 4].map(|n| case.source.below(n));
        let reshaped = case.source.below(2) == 0;
        let vector = [DType::F32, DType::F16][bias % 2];
        case.argument(DType::F32, &[rows.into(), k.into()]);
        case.weight(DType::F32, &[k.into()]).weight(DType::F32, &[k.into()]);
        case.weight(DType::F16, &w).weight(vector, &[n.into()]).weight(DType::F16, &w);
        case.argument(DType::F16, &[rows.into(), n.into()]).argument(DType::F32, &[rows.into(), n.into()]);
        let what = format!(
            "{rows} x {k} x {n}, {layout:?}: {norm} {bias} {activation} {factor} {residual} {shared} {reshaped}"
        );
        case.check_graph(&what, 150.0, |b, ids| {
            let &[x, scale, shift, weight, vector, gate, other, added] = ids else { panic!("eight inputs") };
            let mut push = |op: Op, inputs: &[NodeId]| b.push(op, inputs).unwrap();
            let x = if reshaped { push(Op::Reshape { dims: vec![rows.into(), 1.into(), k.into()] }, &[x]) } else { x };
            let x = match norm {
                0 => x,
                1 => push(Op::RmsNorm { eps: 1e-5 }, &[x, scale]),
                _ => push(Op::LayerNorm { eps: 1e-3 }, &[x, scale, shift]),
            };
            let x = push(Op::Cast { to: DType::F16 }, &[x]);
            let x = if reshaped { push(Op::Reshape { dims: vec![rows.into(), k.into()] }, &[x]) } else { x };
            let linear = |weight| match bias {
                0 => (Op::Linear { layout }, vec![x, weight]),
                _ => (Op::Linear { layout }, vec![x, weight, vector]),
            };
            let (op, inputs) = linear(weight);
            let y = push(op, &inputs);
            let y = match activation {
                0 => y,
                1 => push(Op::Gelu { tanh: true }, &[y]),
                _ => push(Op::Silu, &[y]),
            };
            let y = match factor {
                0 => y,
                1 => push(Op::Mul, &[y, other]),
                _ => {
                    let (op, inputs) = linear(gate);
                    let gate = push(op, &inputs);
                    push(Op::Mul, &[y, gate])
                }
            };
            let mut y = push(Op::Cast { to: DType::F32 }, &[y]);
            if residual == 1 {
                y = push(Op::Add, &[y, added]);
            }
            if shared == 0 {
                // Somebody else reads what was converted: it must be there.
                let all = push(Op::Reduce { kind: ReduceKind::Mean, axes: vec![1], keep_dims: true }, &[x]);
                let all = push(Op::Cast { to: DType::F32 }, &[all]);
                y = push(Op::Add, &[y, all]);
            }
            y
        });
    }
}

/// A replay after a loss must not change the text.
#[test]
fn a_replay_gives_the_same_bits_as_decoding_did_on_the_cpu() {
    for make in BOTH {
        for dtype in [DType::F16, DType::BF16] {
            let runner = on_cpu(make, &narrow(TINY, dtype));
            let tokens = text(0, 40);
            let mut stepwise = runner.session();
            let mut logits = runner.feed(&mut stepwise, &tokens[..20]);
            for token in &tokens[20..] {
                logits = runner.feed(&mut stepwise, &[*token]);
            }
            assert_eq!(runner.feed(&mut runner.session(), &tokens), logits, "{dtype}");
        }
    }
}

#[test]
fn a_batch_gives_each_row_the_bits_it_gets_alone() {
    for make in BOTH {
        let runner = Runner::new(gpu(), make(&narrow(ALIGNED, DType::BF16)));
        let fill = |i: usize| {
            let mut session = runner.session();
            runner.feed(&mut session, &text(i, 1 + i * 23));
            session
        };
        let mut alone: Vec<Session> = (0..3).map(fill).collect();
        let mut together: Vec<Session> = (0..3).map(fill).collect();
        for step in 0..5 {
            for (i, session) in alone.iter_mut().enumerate() {
                runner.feed(session, &text(i + step, 1));
            }
            together.iter_mut().enumerate().for_each(|(i, s)| s.feed(&text(i + step, 1)));
            runner.step(&mut together.iter_mut().collect::<Vec<_>>(), u64::MAX).unwrap();
            for (a, b) in alone.iter().zip(&together) {
                assert_eq!(a.outputs, b.outputs, "step {step}");
            }
        }
    }
}
