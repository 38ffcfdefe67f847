//! Streams, and the events that order them.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use genie_cuda_kernels::gpu::{Gpu, Stream};

use super::support::{Buffer, after, bytes_of, finish, gpus, negate};

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 7 + seed * 1000) as f32 + 1.0).collect()
}

fn negated(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| -value).collect()
}

/// Uploads, computes and downloads in three streams, ordered by events alone.
fn through(gpu: &Arc<dyn Gpu>, values: &[f32]) -> Vec<f32> {
    let (x, y) = (Buffer::new(gpu, values.len() * 4), Buffer::new(gpu, values.len() * 4));
    let (sent, mut got) = (bytes_of(values), vec![0_u8; values.len() * 4]);
    after(&**gpu, Stream::Upload, Stream::Compute);
    // SAFETY: all live on until the last stream has been waited for, which waits for the others.
    unsafe { gpu.copy_in(Stream::Upload, x.at, sent.as_ptr(), sent.len()) }.expect("a copy");
    after(&**gpu, Stream::Compute, Stream::Upload);
    negate(&x, &y).expect("a launch");
    after(&**gpu, Stream::Download, Stream::Compute);
    // SAFETY: as above, and nobody looks at `got` before.
    unsafe { gpu.copy_out(Stream::Download, got.as_mut_ptr(), y.at, got.len()) }.expect("a copy");
    finish(&**gpu, Stream::Download);
    got.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four bytes"))).collect()
}

#[test]
fn events_order_streams() {
    for gpu in gpus() {
        for round in 0..8 {
            let values = numbers(10_000, round);
            assert_eq!(through(&gpu, &values), negated(&values), "round {round}");
        }
    }
}

#[test]
fn threads_use_a_gpu_at_once() {
    for gpu in gpus() {
        thread::scope(|scope| {
            for seed in 0..4 {
                let gpu = gpu.clone();
                scope.spawn(move || {
                    for round in 0..10 {
                        let values = numbers(1000 + seed, seed * 10 + round);
                        assert_eq!(through(&gpu, &values), negated(&values), "thread {seed}, round {round}");
                    }
                });
            }
        });
    }
}

#[test]
fn two_buffers_take_turns_while_copies_and_kernels_overlap() {
    const COUNT: usize = 4096;
    for gpu in gpus() {
        let slices: Vec<Vec<f32>> = (0..9).map(|seed| numbers(COUNT, seed)).collect();
        let sent: Vec<Vec<u8>> = slices.iter().map(|slice| bytes_of(slice)).collect();
        let turns = [0, 1].map(|_| Buffer::new(&gpu, COUNT * 4));
        let all = Buffer::new(&gpu, slices.len() * COUNT * 4);
        let free = [0, 1].map(|_| gpu.event().expect("an event"));
        after(&*gpu, Stream::Upload, Stream::Compute);
        for (index, bytes) in sent.iter().enumerate() {
            let (turn, free) = (&turns[index % 2], &free[index % 2]);
            // The first two find an event that was never recorded, which counts as passed.
            gpu.wait(Stream::Upload, free).expect("a wait");
            // SAFETY: what is sent lives on until the end, where all is waited for.
            unsafe { gpu.copy_in(Stream::Upload, turn.at, bytes.as_ptr(), bytes.len()) }.expect("a copy");
            after(&*gpu, Stream::Compute, Stream::Upload);
            negate(turn, turn).expect("a launch");
            let to = all.at + (index * COUNT * 4) as u64;
            // SAFETY: as above.
            unsafe { gpu.copy(Stream::Compute, to, turn.at, bytes.len() as u64) }.expect("a copy");
            gpu.record(Stream::Compute, free).expect("recorded");
        }
        let expected: Vec<f32> = slices.iter().flat_map(|slice| negated(slice)).collect();
        assert_eq!(all.floats(), expected);
    }
}

#[test]
fn an_event_is_past_until_it_is_recorded_and_after_its_moment() {
    for gpu in gpus() {
        let event = gpu.event().expect("an event");
        assert!(gpu.is_past(&event).expect("no error"));
        gpu.synchronize(&event).expect("no error");
        let buffer = Buffer::new(&gpu, 1 << 20);
        // SAFETY: the buffer lives on until that is done.
        unsafe { gpu.fill(Stream::Compute, buffer.at, 3, 1 << 20) }.expect("a fill");
        gpu.record(Stream::Compute, &event).expect("recorded");
        while !gpu.is_past(&event).expect("no error") {
            thread::yield_now();
        }
        assert_eq!(buffer.read(), vec![3; 1 << 20]);
        gpu.synchronize(&event).expect("no error");
    }
}

#[test]
fn timed_events_tell_how_far_apart_they_are() {
    for gpu in gpus() {
        let buffer = Buffer::new(&gpu, 8 << 20);
        let [first, last] = [0, 1].map(|_| gpu.timed_event().expect("an event"));
        let plain = gpu.event().expect("an event");
        assert_eq!(gpu.elapsed(&first, &last).expect("no error"), None, "they were not recorded");
        let began = Instant::now();
        gpu.record(Stream::Compute, &first).expect("recorded");
        for byte in 0..20 {
            // SAFETY: the buffer lives on until that is done.
            unsafe { gpu.fill(Stream::Compute, buffer.at, byte, 8 << 20) }.expect("a fill");
        }
        gpu.record(Stream::Compute, &last).expect("recorded");
        gpu.record(Stream::Compute, &plain).expect("recorded");
        gpu.synchronize(&plain).expect("no error");
        let took = gpu.elapsed(&first, &last).expect("no error").expect("both have passed");
        assert!(took > Duration::ZERO && took <= began.elapsed(), "{took:?}");
        for (from, to) in [(&last, &first), (&first, &plain), (&plain, &last)] {
            assert_eq!(gpu.elapsed(from, to).expect("no error"), None);
        }
        // What was the first moves on, and is the last.
        // SAFETY: as above.
        unsafe { gpu.fill(Stream::Compute, buffer.at, 1, 8 << 20) }.expect("a fill");
        gpu.record(Stream::Compute, &first).expect("recorded again");
        finish(&*gpu, Stream::Compute);
        assert_eq!(gpu.elapsed(&first, &last).expect("no error"), None);
        assert!(gpu.elapsed(&last, &first).expect("no error").is_some());
    }
}

#[test]
fn a_wait_is_for_the_moment_that_the_event_was_then() {
    for gpu in gpus() {
        let buffer = Buffer::holding(&gpu, &[1; 64]);
        let event = gpu.event().expect("an event");
        let mut seen = [0_u8; 64];
        // SAFETY: all live on until the streams have been waited for.
        unsafe {
            gpu.fill(Stream::Compute, buffer.at, 2, 64).expect("a fill");
            gpu.record(Stream::Compute, &event).expect("recorded");
            gpu.wait(Stream::Download, &event).expect("a wait");
            // The event moves on to a stream that waits for the download: no circle, since that waits for the first moment.
            gpu.copy_out(Stream::Download, seen.as_mut_ptr(), buffer.at, 64).expect("a copy");
        }
        after(&*gpu, Stream::Upload, Stream::Download);
        gpu.record(Stream::Upload, &event).expect("recorded again");
        gpu.synchronize(&event).expect("no error");
        assert_eq!(seen, [2; 64]);
    }
}

#[test]
fn an_event_that_is_dropped_early_still_orders() {
    for gpu in gpus() {
        let buffer = Buffer::holding(&gpu, &[1; 4096]);
        let mut seen = vec![0_u8; 4096];
        // SAFETY: all live on until the last stream has been waited for.
        unsafe {
            gpu.fill(Stream::Compute, buffer.at, 9, 4096).expect("a fill");
            after(&*gpu, Stream::Download, Stream::Compute);
            gpu.copy_out(Stream::Download, seen.as_mut_ptr(), buffer.at, 4096).expect("a copy");
        }
        finish(&*gpu, Stream::Download);
        assert_eq!(seen, vec![9; 4096]);
    }
}
