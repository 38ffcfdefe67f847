//! After a fault: nothing goes on until the GPU is revived, and then nothing of before does harm. On the stand-in alone, where a
//! fault can be planted.

use std::sync::Arc;

use genie_cuda_kernels::gpu::{Gpu, GpuError, Stream};

use super::support::{Buffer, finish, negate, stand_in};

#[test]
fn a_fault_is_everybodys_until_the_gpu_is_revived() {
    let host = stand_in();
    let gpu: Arc<dyn Gpu> = Arc::new(host.clone());
    let (x, y) = (Buffer::of_floats(&gpu, &[1.0; 64]), Buffer::of_floats(&gpu, &[0.0; 64]));
    let z = Buffer::of_floats(&gpu, &[0.0; 64]);
    let graph = gpu.capture(&mut || negate(&x, &y)).expect("a graph");
    let event = gpu.event().expect("an event");
    let pinned = gpu.pin(4096).expect("pinned memory");
    // SAFETY: it has that many bytes, and nothing copies.
    unsafe { pinned.as_ptr().write_bytes(7, 4096) };

    let fault = GpuError::Fault { during: "a kernel", reason: "planted".to_owned() };
    host.fail(fault.clone());
    negate(&x, &y).expect("it is only put into the stream");
    gpu.record(Stream::Compute, &event).expect("recorded");
    assert_eq!(gpu.synchronize(&event), Err(fault.clone()));
    assert!(fault.is_sticky());
    assert_eq!(gpu.allocate(1), Err(fault.clone()));
    assert_eq!(gpu.record(Stream::Upload, &event), Err(fault.clone()));
    assert_eq!(gpu.is_past(&event), Err(fault.clone()));
    assert_eq!(negate(&x, &y), Err(fault.clone()));
    assert_eq!(gpu.memory(), Err(fault.clone()));
    // SAFETY: what was recorded is still there.
    assert_eq!(unsafe { gpu.replay(&graph) }, Err(fault.clone()));
    assert_eq!(gpu.capture(&mut || Ok(())).map(|_| ()), Err(fault));
    drop(z);

    gpu.revive().expect("a new life");
    let memory = gpu.memory().expect("an answer");
    assert_eq!(memory.free, memory.total, "everything was given up");
    gpu.synchronize(&event).expect("what is from before is past");
    // SAFETY: it is refused.
    let error = unsafe { gpu.replay(&graph) }.expect_err("what it uses is gone");
    assert!(matches!(error, GpuError::Refused { .. }), "{error}");
    // SAFETY: pinned memory is the host's, and stays.
    assert_eq!(unsafe { pinned.as_ptr().add(4095).read() }, 7);

    let (a, b) = (Buffer::of_floats(&gpu, &[3.0; 64]), Buffer::of_floats(&gpu, &[0.0; 64]));
    drop((x, y, graph, event));
    negate(&a, &b).expect("a launch");
    finish(&*gpu, Stream::Compute);
    assert_eq!(b.floats(), vec![-3.0; 64], "giving back what is from before frees nothing of now");
    // SAFETY: it came from there, and nothing copies.
    unsafe { gpu.unpin(pinned) };
    drop((a, b));
    finish(&*gpu, Stream::Compute);
    assert_eq!(host.used(), 0);
}

#[test]
fn a_refusal_is_no_fault() {
    let host = stand_in();
    let gpu: Arc<dyn Gpu> = Arc::new(host.clone());
    let x = Buffer::of_floats(&gpu, &[1.0; 64]);
    host.fail(GpuError::Refused { during: "a kernel", reason: "planted".to_owned() });
    negate(&x, &x).expect("put into the stream");
    let event = gpu.event().expect("an event");
    gpu.record(Stream::Compute, &event).expect("recorded");
    assert!(!gpu.synchronize(&event).expect_err("planted").is_sticky());
    gpu.synchronize(&event).expect("and all goes on");
}
