//! Recording work once and doing it often.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;

use genie_cuda_kernels::gpu::{GpuError, Graph, Stream};

use super::support::{Buffer, finish, gpus, negate};

fn replay(buffer: &Buffer, graph: &Graph) {
    // SAFETY: tests keep what was recorded until they have waited.
    unsafe { buffer.gpu.replay(graph) }.expect("a replay");
}

#[test]
fn what_is_recorded_is_done_when_it_is_replayed_with_what_is_there_then() {
    for gpu in gpus() {
        let (x, y) = (Buffer::of_floats(&gpu, &[1.0; 300]), Buffer::of_floats(&gpu, &[0.0; 300]));
        let z = Buffer::of_floats(&gpu, &[0.0; 300]);
        let graph = gpu
            .capture(&mut || {
                negate(&x, &y)?;
                // SAFETY: the buffers outlive the graph's last replay.
                unsafe { gpu.copy(Stream::Compute, z.at, y.at, 1200) }?;
                negate(&y, &y)
            })
            .expect("a graph");
        assert_eq!((y.floats(), z.floats()), (vec![0.0; 300], vec![0.0; 300]), "recording does nothing");
        for value in [1.0, 5.0, -3.0] {
            x.write(&[value; 300].map(f32::to_le_bytes).concat());
            replay(&x, &graph);
            assert_eq!((y.floats(), z.floats()), (vec![value; 300], vec![-value; 300]), "replay with {value}");
        }
        // Twice without a wait: the second sees what the first left.
        negate(&x, &x).expect("a launch");
        replay(&x, &graph);
        replay(&x, &graph);
        assert_eq!(y.floats(), vec![3.0; 300]);
    }
}

#[test]
fn copies_to_and_from_the_host_are_recorded_and_find_what_is_there_then() {
    type Floats = [f32; 64];
    const BYTES: usize = size_of::<Floats>();
    for gpu in gpus() {
        let x = Buffer::of_floats(&gpu, &[0.0; 64]);
        let pinned = gpu.pin(2 * BYTES).expect("memory");
        // SAFETY: it is within what was just pinned.
        let (from, to) = unsafe { (pinned.as_ptr(), pinned.as_ptr().add(BYTES)) };
        let graph = gpu.capture(&mut || {
            // SAFETY: buffer and pinned memory outlive the graph's last replay.
            unsafe { gpu.copy_in(Stream::Compute, x.at, from, BYTES) }?;
            negate(&x, &x)?;
            // SAFETY: as above.
            unsafe { gpu.copy_out(Stream::Compute, to, x.at, BYTES) }
        });
        let graph = graph.expect("a graph");
        for value in [1.0_f32, 5.0, -3.0] {
            // SAFETY: pages are aligned to more, and no copy is under way.
            unsafe { from.cast::<Floats>().write([value; 64]) };
            replay(&x, &graph);
            finish(&*gpu, Stream::Compute);
            // SAFETY: as above.
            assert_eq!(unsafe { to.cast::<Floats>().read() }, [-value; 64]);
        }
        drop(graph);
        // SAFETY: nothing uses it any more.
        unsafe { gpu.unpin(pinned) };
    }
}

#[test]
fn other_threads_go_on_while_one_records() {
    for gpu in gpus() {
        let (x, y) = (Buffer::of_floats(&gpu, &[2.0; 64]), Buffer::of_floats(&gpu, &[0.0; 64]));
        let other = Buffer::of_floats(&gpu, &[10.0; 64]);
        let (to_other, asked) = mpsc::channel::<()>();
        let (to_recorder, answered) = mpsc::channel::<Vec<f32>>();
        let graph = thread::scope(|scope| {
            let other = &other;
            scope.spawn(move || {
                for () in asked {
                    negate(other, other).expect("a launch");
                    to_recorder.send(other.floats()).expect("it listens");
                }
            });
            let graph = gpu.capture(&mut || {
                negate(&x, &y)?;
                for expected in [-10.0, 10.0, -10.0] {
                    to_other.send(()).expect("it listens");
                    assert_eq!(answered.recv().expect("an answer"), vec![expected; 64], "done at once");
                }
                negate(&y, &y)
            });
            drop(to_other);
            graph.expect("a graph")
        });
        assert_eq!(y.floats(), vec![0.0; 64]);
        replay(&x, &graph);
        assert_eq!(y.floats(), vec![2.0; 64]);
        assert_eq!(other.floats(), vec![-10.0; 64], "not what the other thread did");
    }
}

#[test]
fn threads_record_at_once() {
    for gpu in gpus() {
        let barrier = std::sync::Barrier::new(3);
        thread::scope(|scope| {
            for seed in 1..=3 {
                let (gpu, barrier) = (&gpu, &barrier);
                scope.spawn(move || {
                    let (x, y) = (Buffer::of_floats(gpu, &[seed as f32; 64]), Buffer::of_floats(gpu, &[0.0; 64]));
                    let graph = gpu.capture(&mut || {
                        barrier.wait();
                        negate(&x, &y)?;
                        barrier.wait();
                        Ok(())
                    });
                    let graph = graph.expect("a graph");
                    replay(&x, &graph);
                    assert_eq!(y.floats(), vec![-(seed as f32); 64]);
                });
            }
        });
    }
}

#[test]
fn a_recording_that_fails_leaves_nothing() {
    for gpu in gpus() {
        let (x, y) = (Buffer::of_floats(&gpu, &[4.0; 64]), Buffer::of_floats(&gpu, &[0.0; 64]));
        let no = GpuError::Refused { during: "a test", reason: "no".to_owned() };
        let failed = gpu.capture(&mut || {
            negate(&x, &y)?;
            Err(no.clone())
        });
        assert_eq!(failed.expect_err("as the work said"), no);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            gpu.capture(&mut || {
                negate(&x, &y).expect("a launch");
                panic!("in the middle of a recording");
            })
        }));
        assert!(panicked.is_err(), "the panic goes on");
        assert_eq!(y.floats(), vec![0.0; 64]);
        negate(&x, &y).expect("and what comes then is done, not recorded");
        assert_eq!(y.floats(), vec![-4.0; 64]);
        gpu.capture(&mut || negate(&x, &y)).expect("and recording works");
    }
}

#[test]
fn a_thread_records_one_graph_at_a_time() {
    for gpu in gpus() {
        let mut inner = None;
        gpu.capture(&mut || {
            inner = Some(gpu.capture(&mut || Ok(())));
            Ok(())
        })
        .expect("the outer one is a graph");
        let error = inner.expect("it was tried").expect_err("but refused");
        assert!(matches!(error, GpuError::Refused { .. }), "{error}");
    }
}

#[test]
fn a_graph_that_is_dropped_is_done_to_the_end() {
    for gpu in gpus() {
        let (x, y) = (Buffer::of_floats(&gpu, &[4.0; 64]), Buffer::of_floats(&gpu, &[0.0; 64]));
        let graph = gpu.capture(&mut || negate(&x, &y)).expect("a graph");
        replay(&x, &graph);
        drop(graph);
        finish(&*gpu, Stream::Compute);
        assert_eq!(y.floats(), vec![-4.0; 64]);
    }
}

#[test]
fn nothing_can_be_recorded_too() {
    for gpu in gpus() {
        let x = Buffer::of_floats(&gpu, &[4.0; 64]);
        let graph = gpu.capture(&mut || Ok(())).expect("a graph");
        replay(&x, &graph);
        assert_eq!(x.floats(), vec![4.0; 64]);
    }
}
