//! This suite once more, over the libraries that stand in for the CUDA driver and cuBLASLt: what `gpu::cuda` asks them for, in which
//! order, on which thread. And what a fault leaves, and a cuBLASLt that lacks or refuses something, which these libraries can be told to
//! make.

use std::env;
use std::ffi::{CStr, c_char};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use genie_cuda_kernels::gpu::{Gpu, GpuError, Operands, Product, Stream, WeightLayout, cuda};
use genie_graph::DType;

use super::products::{A_BIAS, NOTHING, check, product};
use super::support::{Buffer, after, finish, negate, pattern};

/// A file that makes the next kernel fault.
const FAULT: &str = "GENIE_STAND_IN_FAULT";
/// What cuBLASLt refuses.
const REFUSES: &str = "GENIE_STAND_IN_PRODUCTS";

/// A file that makes kernels compute nothing.
const WRONG: &str = "GENIE_STAND_IN_WRONG";

/// Pools go with the context. The GPU does not order what network cards write, and exports memory to them.
const GONE: &[(&str, &str)] =
    &[("GENIE_STAND_IN_POOLS", "gone"), ("GENIE_STAND_IN_ORDERED", "0"), ("GENIE_STAND_IN_DMABUF", "1")];
/// All of that the other way about.
const STAY: &[(&str, &str)] =
    &[("GENIE_STAND_IN_POOLS", "stay"), ("GENIE_STAND_IN_ORDERED", "1"), ("GENIE_STAND_IN_DMABUF", "0")];

/// The cuBLASLt of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Library {
    None,
    /// One without any of its functions.
    Empty,
    /// One that refuses this.
    Refusing(&'static str),
}

const ALL: Library = Library::Refusing("nothing");

/// Runs this program over the stand-ins with these settings; a line for each product that the library did.
fn over_the_stand_ins(arguments: &[&str], library: Library, settings: &[(&str, &str)]) -> Vec<String> {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let program = env::current_exe().expect("this program");
    // This crate's tests depend on them, so that cargo has built them.
    let stand_in = |name: &str| program.with_file_name(format!("libgenie_{name}_stand_in.so"));
    let name = format!("driver-{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // One that failed under the same number has left it.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("room for a folder");
    for name in ["libcuda.so", "libcuda.so.1"] {
        symlink(stand_in("cuda"), folder.join(name)).expect("a link");
    }
    let (products, refuses) = match library {
        Library::None => (None, "nothing"),
        Library::Empty => (Some(stand_in("nvml")), "nothing"),
        Library::Refusing(what) => (Some(stand_in("cublaslt")), what),
    };
    if let Some(products) = products {
        symlink(products, folder.join("libcublasLt.so.13")).expect("a link");
    }
    let run = Command::new(&program)
        .args(arguments)
        .env_remove("CUDA_VISIBLE_DEVICES")
        .env("LD_LIBRARY_PATH", &folder)
        .envs([(FAULT, folder.join("fault")), (WRONG, folder.join("wrong"))])
        .env("GENIE_STAND_IN_PRODUCTS_DONE", folder.join("done"))
        .envs([("GENIE_TEST_GPU", "1"), ("GENIE_STAND_IN_GPUS", "2"), (REFUSES, refuses)])
        .envs(settings.iter().copied())
        .output()
        .expect("this program starts");
    let (said, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let well = run.status.success() && !errors.contains("mistake:") && !said.contains(" 0 passed");
    assert!(well, "{library:?}, {settings:?}: {said}\n{errors}");
    let done = fs::read_to_string(folder.join("done")).unwrap_or_default();
    fs::remove_dir_all(&folder).expect("it is ours");
    done.lines().map(str::to_owned).collect()
}

/// Whether this program runs over a GPU, or is a child of [`over_the_stand_ins`].
fn is_over_a_gpu() -> bool {
    env::var_os("GENIE_TEST_GPU").is_some()
}

/// One test, which is ignored but here, by itself.
fn alone(name: &str, settings: &[(&str, &str)]) {
    if !is_over_a_gpu() {
        over_the_stand_ins(&["--exact", &format!("driver::{name}"), "--ignored"], Library::None, settings);
    }
}

#[test]
fn all_of_it_holds_over_the_stand_ins() {
    if is_over_a_gpu() {
        return;
    }
    let done = over_the_stand_ins(&[], ALL, GONE);
    for what in ["f32 f32 ", "f16 f16 ", "f16 f32 ", "bf16 bf16 ", "bf16 f32 ", " Gelu", " bias", " added", "x3 None"] {
        assert!(done.iter().any(|line| line.contains(what)), "the library did no product of {what}: {done:?}");
    }
    assert!(over_the_stand_ins(&["--skip", "products"], Library::None, STAY).is_empty());
}

#[test]
fn what_a_fault_leaves_is_used_no_more() {
    if is_over_a_gpu() {
        return;
    }
    let fault = ["--exact", "driver::a_fault_is_everybodys_until_the_context_is_made_anew", "--ignored"];
    assert_eq!(over_the_stand_ins(&fault, ALL, GONE).len(), 3, "one each life");
    assert_eq!(over_the_stand_ins(&fault, ALL, STAY).len(), 3, "one each life");
    assert!(over_the_stand_ins(&fault, Library::None, GONE).is_empty());
}

#[test]
fn a_library_that_lacks_or_refuses_something_does_nothing() {
    if is_over_a_gpu() {
        return;
    }
    let refused = ["--exact", "driver::what_there_is_no_way_for_is_not_done", "--ignored"];
    for library in [Library::None, Library::Empty] {
        assert!(over_the_stand_ins(&refused, library, GONE).is_empty(), "{library:?}");
    }
    for what in ["start", "all", "silently", "found", "late", "unknown", "full"] {
        assert!(over_the_stand_ins(&refused, Library::Refusing(what), GONE).is_empty(), "{what}");
    }
    let bare = over_the_stand_ins(&refused, Library::Refusing("more"), GONE);
    assert!(bare.len() == 2 && bare.iter().all(|line| line == "f32 f32 48x32x16x1 None"), "{bare:?}");
    let failing = ["--exact", "driver::a_product_that_fails_is_an_error", "--ignored"];
    over_the_stand_ins(&failing, Library::Refusing("failing"), GONE);
}

/// Twice each: the second time it is remembered.
#[test]
#[ignore = "only where cuBLASLt is the stand-in, or is not there"]
fn what_there_is_no_way_for_is_not_done() {
    let bare = env::var(REFUSES).is_ok_and(|what| what == "more");
    let gpu: Arc<dyn Gpu> = Arc::new(cuda::open(0).expect("a GPU"));
    let product = product(DType::F32, WeightLayout::OutIn, [32, 48, 16], 1);
    for _ in 0..2 {
        assert_eq!(check(&gpu, &product, 0, NOTHING), bare);
        assert!(!check(&gpu, &product, 0, A_BIAS));
    }
}

#[test]
#[ignore = "only where cuBLASLt is the stand-in"]
fn a_product_that_fails_is_an_error() {
    let gpu: Arc<dyn Gpu> = Arc::new(cuda::open(0).expect("a GPU"));
    let (a, b, c) = (Buffer::new(&gpu, 64), Buffer::new(&gpu, 64), Buffer::new(&gpu, 64));
    let product = product(DType::F32, WeightLayout::OutIn, [4, 4, 4], 1);
    // SAFETY: the buffers live on.
    let done = unsafe { gpu.multiply(&product, &Operands::new(a.view(), b.view(), c.view())) };
    let error = done.expect_err("it fails");
    assert!(!error.is_sticky() && error.to_string().contains("CUBLAS_STATUS_EXECUTION_FAILED"), "{error}");
    // The GPU goes on.
    negate(&a, &b).expect("a launch");
    finish(&*gpu, Stream::Compute);
}

#[test]
fn host_memory_that_the_driver_does_not_pin_is_had_unless_there_is_none() {
    let setting = |value| ("GENIE_STAND_IN_PINNING", value);
    alone("memory_that_is_not_pinned_is_copied_as_any_other", &[setting("refused")]);
    alone("no_more_can_be_pinned", &[setting("full")]);
}

/// A revival that leaves gigabytes with nobody would serve a GPU that refuses what it had promised.
#[test]
fn a_gpu_that_does_not_come_back_whole_stays_out() {
    alone("memory_that_does_not_come_back_is_told", &[("GENIE_STAND_IN_POOLS", "lost")]);
    alone("a_gpu_that_computes_nothing_is_not_back", GONE);
    alone("a_gpu_that_computes_nothing_is_not_back", STAY);
}

#[test]
fn events_are_had_again_and_nothing_waits_in_the_driver() {
    alone("events_are_made_once", GONE);
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
        fail(&gpu, &x, &y, None);
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
    fail(&gpu, &x, &y, None);
    gpu.revive().expect("a new life");
    let (x, y) = (Buffer::of_floats(&gpu, &[1.0; 64]), Buffer::of_floats(&gpu, &[0.0; 64]));
    let large = Buffer::new(&gpu, 200 << 20);
    fail(&gpu, &x, &y, None);
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
    fail(&gpu, &x, &y, None);
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
    // Trying it out left something that is freed in the stream's order.
    finish(&*gpu, Stream::Compute);
    let ours = gpu.memory().expect("an answer").free;
    let square = product(DType::F32, WeightLayout::OutIn, [8, 8, 8], 1);
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
        fail(&gpu, &x, &y, (life == 1).then_some(&square));
        for after in [gpu.allocate(1).map(drop), gpu.is_past(&event).map(drop), gpu.memory().map(drop)] {
            assert!(after.expect_err("it is broken").is_sticky(), "life {life}");
        }
        // SAFETY: what was recorded is still there.
        assert!(unsafe { gpu.replay(&graph) }.expect_err("it is broken").is_sticky());
        assert!(same.memory().expect_err("the same GPU").is_sticky());

        // Some of what is from before is given back before, some after.
        drop(x);
        gpu.revive().expect("a new life");
        assert_eq!(gpu.memory().expect("an answer").free, ours, "all is given back");
        assert_eq!(gpu.is_past(&event), Ok(true));
        // SAFETY: it is refused.
        assert!(!unsafe { gpu.replay(&graph) }.expect_err("it is from before").is_sticky());
        let (a, b) = (Buffer::of_floats(&gpu, &[3.0; 64]), Buffer::of_floats(&gpu, &[0.0; 64]));
        drop((y, graph, event));
        // A thread that had the context of before, and one that has none.
        negate(&a, &b).expect("a launch");
        assert_eq!(b.floats(), vec![-3.0; 64]);
        // The library's handle was the context's, too. Without a library nothing is done.
        check(&gpu, &square, 0, NOTHING);
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

/// The kernel that fails is the product's, where there is one that the library does, and else one of ours.
fn fail(gpu: &Arc<dyn Gpu>, x: &Buffer, y: &Buffer, product: Option<&Product>) {
    fs::write(env::var_os(FAULT).expect("the stand-in's"), "").expect("room for a file");
    // SAFETY: the buffers live on until the fault is seen.
    let multiply = |product| unsafe { gpu.multiply(product, &Operands::new(x.view(), x.view(), y.view())) };
    let put = product.is_some_and(|product| multiply(product).expect("it is only put into the stream"));
    if !put {
        negate(x, y).expect("it is only put into the stream");
    }
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
                fail(gpu, &x, &y, None);
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
