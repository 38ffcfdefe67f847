//! This suite once more, over the libraries that stand in for the CUDA driver and cuBLASLt: what `gpu::cuda` asks them for, in which
//! order, on which thread. And what a fault leaves, and a cuBLASLt that lacks or refuses something, which these libraries can be told to
//! make.

use std::env;
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

/// Runs this program over the stand-ins; a line for each product that the library did. `pools`: whether they go with a context or stay.
/// A GPU whose pools stay orders what network cards write, and exports no memory to them; the other the other way about.
fn over_the_stand_ins(arguments: &[&str], library: Library, pools: &str) -> Vec<String> {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let program = env::current_exe().expect("this program");
    // This crate's tests depend on them, so that cargo has built them.
    let stand_in = |name: &str| program.with_file_name(format!("libgenie_{name}_stand_in.so"));
    let name = format!("driver-{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
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
    let (ordered, dmabuf) = if pools == "gone" { ("0", "1") } else { ("1", "0") };
    let run = Command::new(&program)
        .args(arguments)
        .env_remove("CUDA_VISIBLE_DEVICES")
        .env("LD_LIBRARY_PATH", &folder)
        .env(FAULT, folder.join("fault"))
        .env("GENIE_STAND_IN_PRODUCTS_DONE", folder.join("done"))
        .envs([("GENIE_TEST_GPU", "1"), ("GENIE_STAND_IN_GPUS", "2"), ("GENIE_STAND_IN_POOLS", pools)])
        .envs([("GENIE_STAND_IN_ORDERED", ordered), ("GENIE_STAND_IN_DMABUF", dmabuf)])
        .env(REFUSES, refuses)
        .output()
        .expect("this program starts");
    let (said, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let well = run.status.success() && !errors.contains("mistake:") && !said.contains(" 0 passed");
    assert!(well, "{library:?}, {pools}: {said}\n{errors}");
    let done = fs::read_to_string(folder.join("done")).unwrap_or_default();
    fs::remove_dir_all(&folder).expect("it is ours");
    done.lines().map(str::to_owned).collect()
}

/// Whether this program runs over a GPU, or is a child of [`over_the_stand_ins`].
fn is_over_a_gpu() -> bool {
    env::var_os("GENIE_TEST_GPU").is_some()
}

#[test]
fn all_of_it_holds_over_the_stand_ins() {
    if is_over_a_gpu() {
        return;
    }
    let done = over_the_stand_ins(&[], ALL, "gone");
    for what in ["f32 f32 ", "f16 f16 ", "f16 f32 ", "bf16 bf16 ", "bf16 f32 ", " Gelu", " bias", " added", "x3 None"] {
        assert!(done.iter().any(|line| line.contains(what)), "the library did no product of {what}: {done:?}");
    }
    assert!(over_the_stand_ins(&["--skip", "products"], Library::None, "stay").is_empty());
}

#[test]
fn what_a_fault_leaves_is_used_no_more() {
    if is_over_a_gpu() {
        return;
    }
    let fault = ["--exact", "driver::a_fault_is_everybodys_until_the_context_is_made_anew", "--ignored"];
    assert_eq!(over_the_stand_ins(&fault, ALL, "gone").len(), 3, "one each life");
    assert_eq!(over_the_stand_ins(&fault, ALL, "stay").len(), 3, "one each life");
    assert!(over_the_stand_ins(&fault, Library::None, "gone").is_empty());
}

#[test]
fn a_library_that_lacks_or_refuses_something_does_nothing() {
    if is_over_a_gpu() {
        return;
    }
    let refused = ["--exact", "driver::what_there_is_no_way_for_is_not_done", "--ignored"];
    for library in [Library::None, Library::Empty] {
        assert!(over_the_stand_ins(&refused, library, "gone").is_empty(), "{library:?}");
    }
    for what in ["start", "all", "silently", "found", "late", "unknown", "full"] {
        assert!(over_the_stand_ins(&refused, Library::Refusing(what), "gone").is_empty(), "{what}");
    }
    let bare = over_the_stand_ins(&refused, Library::Refusing("more"), "gone");
    assert!(bare.len() == 2 && bare.iter().all(|line| line == "f32 f32 48x32x16x1 None"), "{bare:?}");
    let failing = ["--exact", "driver::a_product_that_fails_is_an_error", "--ignored"];
    over_the_stand_ins(&failing, Library::Refusing("failing"), "gone");
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
