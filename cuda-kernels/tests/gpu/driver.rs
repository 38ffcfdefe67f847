//! This suite once more, over the library that stands in for the CUDA driver: what `gpu::cuda` asks the driver for, in which order, on
//! which thread. And what a fault leaves, which that library can be told to make.

use std::env;
use std::ffi::{CStr, c_char};
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

/// A file that makes kernels compute nothing.
const WRONG: &str = "GENIE_STAND_IN_WRONG";

/// Runs this program over the stand-in, once with each of these settings.
fn over_the_stand_in(arguments: &[&str], settings: &[(&str, &str)]) {
    // Over a GPU, or in a child of this function.
    if env::var_os("GENIE_TEST_GPU").is_some() {
        return;
    }
    let program = env::current_exe().expect("this program");
    // This crate's tests depend on it, so that cargo has built it.
    let library = program.with_file_name("libgenie_cuda_stand_in.so");
    let name = format!("driver-{}-{}", std::process::id(), arguments.concat().replace(':', "-"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).expect("room for a folder");
    for name in ["libcuda.so", "libcuda.so.1"] {
        symlink(&library, folder.join(name)).expect("a link");
    }
    for setting in settings {
        let run = Command::new(&program)
            .args(arguments)
            .env_remove("CUDA_VISIBLE_DEVICES")
            .env("LD_LIBRARY_PATH", &folder)
            .envs([(FAULT, folder.join("fault")), (WRONG, folder.join("wrong"))])
            .envs([("GENIE_TEST_GPU", "1"), ("GENIE_STAND_IN_GPUS", "2"), *setting])
            .output()
            .expect("this program starts");
        let (said, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        let well = run.status.success() && !errors.contains("mistake:") && !said.contains(" 0 passed");
        assert!(well, "{setting:?}: {said}\n{errors}");
    }
    fs::remove_dir_all(&folder).expect("it is ours");
}

/// One test alone, which is ignored but here.
fn alone_over_the_stand_in(name: &str, settings: &[(&str, &str)]) {
    over_the_stand_in(&["--exact", &format!("driver::{name}"), "--ignored"], settings);
}

/// Pools go with the context, or stay.
const BOTH: [(&str, &str); 2] = [("GENIE_STAND_IN_POOLS", "gone"), ("GENIE_STAND_IN_POOLS", "stay")];

#[test]
fn all_of_it_holds_over_the_stand_in_for_the_drivers_library() {
    // There is no stand-in for cuBLASLt.
    over_the_stand_in(&["--skip", "products"], &BOTH);
}

#[test]
fn what_a_fault_of_the_driver_leaves_is_used_no_more() {
    alone_over_the_stand_in("a_fault_is_everybodys_until_the_context_is_made_anew", &BOTH);
}

#[test]
fn host_memory_that_the_driver_does_not_pin_is_had_unless_there_is_none() {
    let setting = |value| ("GENIE_STAND_IN_PINNING", value);
    alone_over_the_stand_in("memory_that_is_not_pinned_is_copied_as_any_other", &[setting("refused")]);
    alone_over_the_stand_in("no_more_can_be_pinned", &[setting("full")]);
}

/// A revival that leaves gigabytes with nobody would serve a GPU that refuses what it had promised.
#[test]
fn a_gpu_that_does_not_come_back_whole_stays_out() {
    alone_over_the_stand_in("memory_that_does_not_come_back_is_told", &[("GENIE_STAND_IN_POOLS", "lost")]);
    alone_over_the_stand_in("a_gpu_that_computes_nothing_is_not_back", &BOTH);
}

#[test]
fn events_are_had_again_and_nothing_waits_in_the_driver() {
    alone_over_the_stand_in("events_are_made_once", &BOTH[..1]);
}

/// A GPU whose driver pins nothing.
#[test]
#[ignore = "only where the driver's library is the stand-in, which is told to refuse"]
fn memory_that_is_not_pinned_is_copied_as_any_other() {
    let gpu: Arc<dyn Gpu> = Arc::new(cuda::open(0).expect("a GPU"));
    let mut theirs = vec![0; 4096];
    let shared = NonNull::new(theirs.as_mut_ptr()).expect("a vector's address");
    // SAFETY: it is refused.
    let refused = unsafe { gpu.register(shared, 4096) }.expect_err("nothing is registered").to_string();
    assert!(refused.contains("cuMemHostRegister") && refused.contains("OPERATING_SYSTEM: OS call failed"), "{refused}");
    let pinned = gpu.pin(1 << 16).expect("memory, though it is not pinned");
    // SAFETY: it has that many bytes, zeroed; nothing copies but what is waited for.
    let host = unsafe { std::slice::from_raw_parts_mut(pinned.as_ptr(), 1 << 16) };
    assert!(pinned.as_ptr().addr().is_multiple_of(4096) && host.iter().all(|&byte| byte == 0));
    for life in 0..2 {
        host.copy_from_slice(&pattern(1 << 16, life));
        let buffer = Buffer::new(&gpu, 1 << 16);
        after(&*gpu, Stream::Upload, Stream::Compute);
        // SAFETY: as above.
        unsafe { gpu.copy_in(Stream::Upload, buffer.at, pinned.as_ptr(), 1 << 16) }.expect("a copy");
        finish(&*gpu, Stream::Upload);
        host.fill(0);
        // SAFETY: as above.
        unsafe { gpu.copy_out(Stream::Download, pinned.as_ptr(), buffer.at, 1 << 16) }.expect("a copy");
        finish(&*gpu, Stream::Download);
        assert!(host == pattern(1 << 16, life));
        let (x, y) = (Buffer::of_floats(&gpu, &[1.0; 64]), Buffer::of_floats(&gpu, &[0.0; 64]));
        fail(&gpu, &x, &y);
        gpu.revive().expect("a new life");
    }
    // SAFETY: it came from there, and nobody uses it.
    unsafe { gpu.unpin(pinned) };
}

#[test]
#[ignore = "only where the driver's library is the stand-in, which is told to refuse"]
fn no_more_can_be_pinned() {
    let gpu = cuda::open(0).expect("a GPU");
    assert_eq!(gpu.pin(5000), Err(GpuError::OutOfMemory { wanted: 5000 }));
}

#[test]
#[ignore = "only where the driver's library is the stand-in, which is told to lose memory"]
fn memory_that_does_not_come_back_is_told() {
    let gpu: Arc<dyn Gpu> = Arc::new(cuda::open(0).expect("a GPU"));
    let (x, y) = (Buffer::of_floats(&gpu, &[1.0; 64]), Buffer::of_floats(&gpu, &[0.0; 64]));
    // Little may be missing.
    fail(&gpu, &x, &y);
    gpu.revive().expect("a new life");
    let (x, y) = (Buffer::of_floats(&gpu, &[1.0; 64]), Buffer::of_floats(&gpu, &[0.0; 64]));
    let large = Buffer::new(&gpu, 200 << 20);
    fail(&gpu, &x, &y);
    for _ in 0..2 {
        let told = gpu.revive().expect_err("it is not all back").to_string();
        assert!(told.contains("MiB were free") && told.contains("start the server anew"), "{told}");
        assert!(gpu.memory().expect_err("it is out").is_sticky());
    }
    drop((x, y, large));
}

#[test]
#[ignore = "only where the driver's library is the stand-in, which is told to compute nothing"]
fn a_gpu_that_computes_nothing_is_not_back() {
    let wrong = env::var_os(WRONG).expect("the stand-in's");
    let gpu: Arc<dyn Gpu> = Arc::new(cuda::open(0).expect("a GPU"));
    let (x, y) = (Buffer::of_floats(&gpu, &[1.0; 64]), Buffer::of_floats(&gpu, &[0.0; 64]));
    fail(&gpu, &x, &y);
    fs::write(&wrong, "").expect("room for a file");
    let told = gpu.revive().expect_err("it computes nothing").to_string();
    assert!(told.contains("something else than it should") && told.contains("start the server anew"), "{told}");
    assert!(gpu.allocate(1).expect_err("it is out").is_sticky());
    fs::remove_file(wrong).expect("it is there");
    // One that faults again is out, too.
    fs::write(env::var_os(FAULT).expect("the stand-in's"), "").expect("room for a file");
    let told = gpu.revive().expect_err("its kernel faults").to_string();
    assert!(told.contains("ILLEGAL_ADDRESS") && told.contains("start the server anew"), "{told}");
    gpu.revive().expect("a new life");
    drop((x, y));
    assert_eq!(Buffer::of_floats(&gpu, &[5.0; 64]).floats(), vec![5.0; 64]);
}

/// How often the stand-in's function of this name was called.
fn calls(name: &CStr) -> u64 {
    // SAFETY: the stand-in is loaded, which has this function; the name ends with a zero.
    unsafe {
        let calls =
            cudarc::driver::sys::culib().get::<unsafe extern "C" fn(*const c_char) -> u64>(b"genie_stand_in_calls\0");
        calls.expect("the stand-in's")(name.as_ptr())
    }
}

#[test]
#[ignore = "only where the driver's library is the stand-in, which counts"]
fn events_are_made_once() {
    let gpu: Arc<dyn Gpu> = Arc::new(cuda::open(0).expect("a GPU"));
    let slice = || {
        let (began, done) = (gpu.timed_event().expect("an event"), gpu.event().expect("an event"));
        gpu.record(Stream::Upload, &began).expect("recorded");
        gpu.record(Stream::Upload, &done).expect("recorded");
        gpu.synchronize(&done).expect("no fault");
        assert_eq!(gpu.elapsed(&began, &done), Ok(None), "one of both is not timed");
        let later = gpu.timed_event().expect("an event");
        assert_eq!(gpu.elapsed(&began, &later), Ok(None), "it was not recorded");
        gpu.record(Stream::Upload, &later).expect("recorded");
        gpu.synchronize(&later).expect("no fault");
        assert!(gpu.elapsed(&began, &later).expect("no fault").is_some());
    };
    slice();
    let made = calls(c"cuEventCreate");
    assert!(made > 0);
    (0..200).for_each(|_| slice());
    assert_eq!(calls(c"cuEventCreate"), made);
    assert_eq!(calls(c"cuEventDestroy_v2"), 0);
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
