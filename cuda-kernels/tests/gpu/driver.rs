//! This suite once more, over the library that stands in for the CUDA driver: what `gpu::cuda` asks the driver for, in which order, on
//! which thread. And what a fault leaves, which that library can be told to make.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread;

use genie_cuda_kernels::gpu::{Gpu, GpuError, Stream, cuda};

use super::support::{Buffer, after, finish, negate, pattern};

/// A file that makes the next kernel fault.
const FAULT: &str = "GENIE_STAND_IN_FAULT";

/// Runs this program over the stand-in, whose pools go with a context or stay, and which orders what network cards write or exports
/// memory to them.
fn over_the_stand_in(arguments: &[&str]) {
    // Over a GPU, or in a child of this function.
    if env::var_os("GENIE_TEST_GPU").is_some() {
        return;
    }
    let program = env::current_exe().expect("this program");
    // This crate's tests depend on it, so that cargo has built it.
    let library = program.with_file_name("libgenie_cuda_stand_in.so");
    let name = format!("driver-{}-{}", std::process::id(), arguments.len());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).expect("room for a folder");
    for name in ["libcuda.so", "libcuda.so.1"] {
        symlink(&library, folder.join(name)).expect("a link");
    }
    for (pools, ordered, dmabuf) in [("gone", "0", "1"), ("stay", "1", "0")] {
        let run = Command::new(&program)
            .args(arguments)
            .env_remove("CUDA_VISIBLE_DEVICES")
            .env("LD_LIBRARY_PATH", &folder)
            .env(FAULT, folder.join("fault"))
            .envs([("GENIE_TEST_GPU", "1"), ("GENIE_STAND_IN_GPUS", "2"), ("GENIE_STAND_IN_POOLS", pools)])
            .envs([("GENIE_STAND_IN_ORDERED", ordered), ("GENIE_STAND_IN_DMABUF", dmabuf)])
            .output()
            .expect("this program starts");
        let (said, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        let well = run.status.success() && !errors.contains("mistake:") && !said.contains(" 0 passed");
        assert!(well, "{pools}: {said}\n{errors}");
    }
    fs::remove_dir_all(&folder).expect("it is ours");
}

#[test]
fn all_of_it_holds_over_the_stand_in_for_the_drivers_library() {
    // There is no stand-in for cuBLASLt.
    over_the_stand_in(&["--skip", "products"]);
}

#[test]
fn what_a_fault_of_the_driver_leaves_is_used_no_more() {
    over_the_stand_in(&["--exact", "driver::a_fault_is_everybodys_until_the_context_is_made_anew", "--ignored"]);
}

/// Each life of the GPU, from a fault to the next.
#[test]
#[ignore = "only where the driver's library is the stand-in, and alone: the fault is everybody's"]
fn a_fault_is_everybodys_until_the_context_is_made_anew() {
    let same = cuda::open(0).expect("a GPU");
    let gpu: Arc<dyn Gpu> = Arc::new(cuda::open(0).expect("the same GPU"));
    let pinned = gpu.pin(1 << 16).expect("pinned memory");
    // SAFETY: it has that many bytes, and nothing copies.
    unsafe { pinned.as_ptr().write_bytes(7, 1 << 16) };
    let mut theirs = pattern(1 << 16, 3);
    let shared = NonNull::new(theirs.as_mut_ptr()).expect("a vector's address");
    // SAFETY: the vector stays where it is until it is unregistered.
    unsafe { gpu.register(shared, theirs.len()) }.expect("registered");
    for life in 0..3 {
        let (x, y) = (Buffer::of_floats(&gpu, &[1.0; 64]), Buffer::of_floats(&gpu, &[0.0; 64]));
        let graph = gpu.capture(&mut || negate(&x, &y)).expect("a graph");
        let event = gpu.event().expect("an event");
        gpu.record(Stream::Upload, &event).expect("recorded");
        fail(&gpu, &x, &y);
        for after in [gpu.allocate(1).map(drop), gpu.is_past(&event).map(drop), gpu.memory().map(drop)] {
            assert!(after.expect_err("it is broken").is_sticky(), "life {life}");
        }
        // SAFETY: what was recorded is still there.
        assert!(unsafe { gpu.replay(&graph) }.expect_err("it is broken").is_sticky());
        assert!(same.memory().expect_err("the same GPU").is_sticky());

        // Some of what is from before is given back before, some after.
        drop(x);
        gpu.revive().expect("a new life");
        let memory = gpu.memory().expect("an answer");
        assert!(memory.total - memory.free <= 4096, "all is given back: {memory:?}");
        assert_eq!(gpu.is_past(&event), Ok(true));
        // SAFETY: it is refused.
        assert!(!unsafe { gpu.replay(&graph) }.expect_err("it is from before").is_sticky());
        let (a, b) = (Buffer::of_floats(&gpu, &[3.0; 64]), Buffer::of_floats(&gpu, &[0.0; 64]));
        drop((y, graph, event));
        // A thread that had the context of before, and one that has none.
        negate(&a, &b).expect("a launch");
        assert_eq!(b.floats(), vec![-3.0; 64]);
        thread::scope(|scope| {
            scope.spawn(|| {
                negate(&b, &a).expect("a launch");
                assert_eq!(a.floats(), vec![3.0; 64]);
            });
        });
        for (host, bytes) in [(pinned, vec![7; 1 << 16]), (shared, pattern(1 << 16, 3))] {
            let buffer = Buffer::new(&gpu, bytes.len());
            after(&*gpu, Stream::Upload, Stream::Compute);
            // SAFETY: both live on until the stream has been waited for.
            unsafe { gpu.copy_in(Stream::Upload, buffer.at, host.as_ptr(), bytes.len()) }.expect("a copy");
            finish(&*gpu, Stream::Upload);
            assert_eq!(buffer.read(), bytes);
        }
    }
    revived_while_it_records(&gpu);
    // SAFETY: no copy is under way, and nobody uses the pinned memory.
    unsafe {
        gpu.unregister(shared);
        gpu.unpin(pinned);
    }
    drop(gpu);
    drop(same);
    let again: Arc<dyn Gpu> = Arc::new(cuda::open(0).expect("what was closed can be opened"));
    assert_eq!(Buffer::of_floats(&again, &[5.0; 64]).floats(), vec![5.0; 64]);
}

fn fail(gpu: &Arc<dyn Gpu>, x: &Buffer, y: &Buffer) {
    fs::write(env::var_os(FAULT).expect("the stand-in's"), "").expect("room for a file");
    negate(x, y).expect("it is only put into the stream");
    let event = gpu.event().expect("an event");
    gpu.record(Stream::Compute, &event).expect("recorded");
    let error = gpu.synchronize(&event).expect_err("the kernel faults");
    assert!(matches!(&error, GpuError::Fault { reason, .. } if reason.contains("ILLEGAL_ADDRESS")), "{error}");
}

/// Another thread revives the GPU meanwhile.
fn revived_while_it_records(gpu: &Arc<dyn Gpu>) {
    let (x, y) = (Buffer::of_floats(gpu, &[1.0; 64]), Buffer::of_floats(gpu, &[0.0; 64]));
    let recorded = gpu.capture(&mut || {
        negate(&x, &y)?;
        thread::scope(|scope| {
            scope.spawn(|| {
                fail(gpu, &x, &y);
                gpu.revive().expect("a new life");
            });
        });
        Ok(())
    });
    let error = recorded.expect_err("what was recorded is gone");
    assert!(!error.is_sticky() && error.to_string().contains("revived"), "{error}");
    let (x, y) = (Buffer::of_floats(gpu, &[1.0; 64]), Buffer::of_floats(gpu, &[0.0; 64]));
    let graph = gpu.capture(&mut || negate(&x, &y)).expect("recording works");
    // SAFETY: the buffers live on until they are read.
    unsafe { gpu.replay(&graph) }.expect("a replay");
    assert_eq!(y.floats(), vec![-1.0; 64]);
}
