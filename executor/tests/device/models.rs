//! Whole models with caches: against the reference, and against themselves in other batches and on other threads.

use std::collections::HashMap;

use genie_executor::device::cpu::{CpuDevice, Isa};
use genie_graph::{DType, InputRole, Sizes};

use crate::case::compare;
use crate::reference::{History, Tensor, evaluate};
use crate::support::models::{Config, Model, gpt2, llama};
use crate::support::{Runner, Session, tensor};
use crate::tiny::TINY;

pub(crate) const BOTH: [fn(&Config) -> Model; 2] = [llama, gpt2];

fn runner(threads: usize, make: fn(&Config) -> Model, config: &Config) -> Runner {
    runner_on(Isa::detect(), threads, make, config)
}

fn runner_on(isa: Isa, threads: usize, make: fn(&Config) -> Model, config: &Config) -> Runner {
    Runner::new(CpuDevice::with_isa(0, threads, 1 << 30, isa).unwrap(), make(config))
}

/// Every instruction set of this machine with each of these types of weights.
fn each_isa<const N: usize>(types: [DType; N]) -> impl Iterator<Item = (Isa, DType)> {
    Isa::available().into_iter().flat_map(move |isa| types.map(|dtype| (isa, dtype)))
}

/// Tokens that differ by session and position.
pub(crate) fn text(session: usize, len: usize) -> Vec<i32> {
    (0..len).map(|i| ((i * 7 + session * 13 + i * i) % 101) as i32).collect()
}

#[test]
fn prefill_and_decode_agree_with_the_reference() {
    agree_with_the_reference(1.0, |model| Runner::new(CpuDevice::new(0, 2, 1 << 30).unwrap(), model));
}

/// Runs models of all types on a device. `slack`: what it may leave unrounded that the reference rounds.
pub(crate) fn agree_with_the_reference(slack: f64, load: fn(Model) -> Runner) {
    for make in BOTH {
        for weights in [DType::F32, DType::F16, DType::BF16] {
            for cache in [DType::F32, DType::BF16] {
                // Rounding a key or an activation to bf16 after f32 or after f64 arithmetic may go either way.
                let rounds = cache == DType::BF16 || weights == DType::BF16;
                let slack = if rounds { 40.0 * slack } else { 10.0 };
                let config = Config { weights, cache, ..TINY };
                beside_the_reference(make, &config, load, |got, expected| compare(&"logits", got, expected, slack));
            }
        }
    }
}

/// Runs a model on a device and by the reference, and shows the logits of both.
pub(crate) fn beside_the_reference(
    make: fn(&Config) -> Model,
    config: &Config,
    load: fn(Model) -> Runner,
    mut both: impl FnMut(&Tensor, &Tensor),
) {
    let model = make(config);
    let mut inputs = HashMap::new();
    let mut regions = model.weights.iter();
    for decl in model.graph.inputs().iter().filter(|i| i.role == InputRole::Weight) {
        let dims = decl.ty.concrete(&Sizes::default()).unwrap();
        let data = regions.next().unwrap().to_vec();
        let host = genie_executor::device::HostTensor { dtype: Some(decl.ty.dtype), dims, data };
        inputs.insert(decl.node, Tensor::from_host(&host));
    }
    let graph = model.graph.clone();
    let runner = load(model);
    let mut session = runner.session();
    let mut history: History = vec![Default::default(); config.layers as usize];
    // Across block borders: 70 tokens, then one at a time, then some together.
    for tokens in [text(0, 70), vec![3], vec![100], text(1, 60), vec![0]] {
        let position = session.cache.len();
        let logits = runner.feed(&mut session, &tokens);
        for (decl, argument) in graph.inputs().iter().filter(|i| is_argument(i.role)).zip(&session.arguments) {
            inputs.insert(decl.node, Tensor::from_host(argument));
        }
        let sizes = Sizes { batch: 1, sequence: tokens.len() as u64, position };
        let expected = evaluate(&graph, &sizes, &inputs, &mut history);
        both(&Tensor::from_host(&tensor(&[1, config.vocabulary], &logits)), &expected[1]);
    }
    assert_eq!(session.cache.len(), 133);
}

fn is_argument(role: InputRole) -> bool {
    !matches!(role, InputRole::Weight | InputRole::KvCache | InputRole::Positions)
}

/// A session lost with its server is replayed as one prompt, and then goes on: the text must not change.
#[test]
fn a_replay_gives_the_same_bits_as_decoding_did() {
    for make in BOTH {
        for (isa, weights) in each_isa([DType::F32, DType::F16, DType::BF16]) {
            for cache in [DType::F32, DType::F16] {
                let runner = runner_on(isa, 2, make, &Config { weights, cache, ..TINY });
                let tokens = text(0, 90);
                let mut stepwise = runner.session();
                let mut logits = runner.feed(&mut stepwise, &tokens[..20]);
                for token in &tokens[20..] {
                    logits = runner.feed(&mut stepwise, &[*token]);
                }
                let mut replayed = runner.session();
                assert_eq!(runner.feed(&mut replayed, &tokens), logits);
                assert_eq!(runner.feed(&mut stepwise, &[5]), runner.feed(&mut replayed, &[5]));
            }
        }
    }
}

#[test]
fn a_batch_gives_each_row_the_bits_it_gets_alone() {
    for make in BOTH {
        for (isa, weights) in each_isa([DType::F32, DType::F16, DType::BF16]) {
            let runner = runner_on(isa, 2, make, &Config { weights, ..TINY });
            for sessions in [2, 3, 9] {
                let lengths: Vec<usize> = (0..sessions).map(|i| 1 + i * 23).collect();
                let fill = |i: usize| {
                    let mut session = runner.session();
                    runner.feed(&mut session, &text(i, lengths[i]));
                    session
                };
                let mut alone: Vec<Session> = (0..sessions).map(fill).collect();
                let mut together: Vec<Session> = (0..sessions).map(fill).collect();
                for step in [1, 1, 20, 1] {
                    for (i, session) in alone.iter_mut().enumerate() {
                        runner.feed(session, &text(i + step, step));
                    }
                    together.iter_mut().enumerate().for_each(|(i, s)| s.feed(&text(i + step, step)));
                    runner.step(&mut together.iter_mut().collect::<Vec<_>>(), u64::MAX).unwrap();
                    for (a, b) in alone.iter().zip(&together) {
                        assert_eq!(a.outputs, b.outputs);
                        assert_eq!(a.cache.len(), b.cache.len());
                    }
                }
            }
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    for make in BOTH {
        for (isa, weights) in each_isa([DType::F32, DType::BF16]) {
            let mut first = None;
            for threads in [1, 2, 3, 5] {
                let runner = runner_on(isa, threads, make, &Config { weights, ..TINY });
                let mut session = runner.session();
                let mut logits = runner.feed(&mut session, &text(0, 77));
                logits.extend(runner.feed(&mut session, &[1]));
                assert_eq!(*first.get_or_insert(logits.clone()), logits, "{threads} threads");
            }
        }
    }
}

#[test]
fn a_seed_gives_the_same_tokens_in_any_batch() {
    let runner = runner(2, llama, &TINY);
    let session = |i: usize| {
        let mut session = runner.session();
        session.arguments[1] = tensor(&[1, 2], &[1.0, 0.95]);
        session.arguments[2].data[8] = 40 + i as u8;
        session.feed(&text(i, 5));
        session
    };
    let draw = |sessions: &mut [Session]| {
        let mut tokens = vec![Vec::new(); sessions.len()];
        for _ in 0..10 {
            runner.step(&mut sessions.iter_mut().collect::<Vec<_>>(), 1).unwrap();
            for (session, tokens) in sessions.iter_mut().zip(&mut tokens) {
                tokens.push(session.token());
                session.feed(&[session.token()]);
            }
        }
        tokens
    };
    let together = draw(&mut (0..4).map(session).collect::<Vec<_>>());
    let alone: Vec<Vec<i32>> = (0..4).map(|i| draw(&mut [session(i)]).remove(0)).collect();
    assert_eq!(together, alone);
    assert!(together.iter().any(|t| t != &together[0]), "seeds make a difference");
}

#[test]
fn only_wanted_outputs_are_filled() {
    let runner = runner(1, llama, &TINY);
    let mut session = runner.session();
    session.feed(&[1, 2]);
    runner.step(&mut [&mut session], 1).unwrap();
    assert_eq!(session.outputs.len(), 2);
    assert_eq!(session.outputs[0].dims, [1]);
    assert_eq!(session.outputs[1].dtype, None);
    assert!(session.outputs[1].data.is_empty());
}

#[test]
fn many_lengths_run_in_bounded_memory() {
    let runner = runner(1, llama, &TINY);
    for len in (1..100).rev() {
        runner.feed(&mut runner.session(), &text(0, len));
    }
    let used = runner.device.info().total_bytes - runner.device.info().free_bytes;
    // One arena, and nothing a plan: only the frequencies of rope.
    assert!(used < 2 << 20, "{used}");
}
