//! Memory that network cards are told of.

use genie_cuda_kernels::gpu::{EXPORT_UNIT, GpuError, HostExports, Stream};

use super::support::{finish, gpus, pattern, stand_in};

#[test]
fn it_is_memory_as_any_other() {
    for gpu in gpus() {
        let bytes = 2 * EXPORT_UNIT;
        // A GPU of which no network card knows anything says so.
        let at = match gpu.allocate_exportable(bytes) {
            Err(GpuError::Refused { .. }) => continue,
            at => at.expect("memory"),
        };
        let (sent, mut back) = (pattern(5000, 1), vec![0; 5000]);
        // SAFETY: all live on until it is done, which is waited for.
        unsafe {
            gpu.copy_in(Stream::Upload, at + bytes - 5000, sent.as_ptr(), 5000).expect("a copy");
            gpu.copy_out(Stream::Upload, back.as_mut_ptr(), at + bytes - 5000, 5000).expect("a copy");
        }
        finish(&*gpu, Stream::Upload);
        assert_eq!(back, sent);
        gpu.settle_network_writes().expect("nothing was written");
        if let Err(error) = gpu.export(at, bytes) {
            assert!(!error.is_sticky(), "{error}");
        }
        assert!(gpu.allocate_exportable(EXPORT_UNIT + 1).is_err_and(|error| !error.is_sticky()));
        // SAFETY: nothing uses it any more.
        unsafe { gpu.free_exportable(at) };
    }
}

#[test]
fn after_a_revival_it_is_given_back_once_more_and_frees_nothing() {
    let gpu = stand_in();
    let gpu: &dyn genie_cuda_kernels::gpu::Gpu = &gpu;
    let before = gpu.allocate_exportable(EXPORT_UNIT).expect("memory");
    gpu.revive().expect("revived");
    let after = gpu.allocate_exportable(EXPORT_UNIT).expect("memory");
    assert_ne!(before, after, "what network cards may still write is nobody else's");
    // SAFETY: nothing uses them.
    unsafe {
        gpu.free_exportable(before);
        gpu.fill(Stream::Compute, after, 7, EXPORT_UNIT).expect("it is still there");
        finish(gpu, Stream::Compute);
        gpu.free_exportable(after);
    }
    let memory = gpu.memory().expect("an answer");
    assert_eq!(memory.free, memory.total);
}

#[test]
fn a_gpu_that_is_told_to_refuses() {
    let gpu = stand_in();
    gpu.set_exports(HostExports::None);
    let gpu: &dyn genie_cuda_kernels::gpu::Gpu = &gpu;
    assert!(matches!(gpu.allocate_exportable(EXPORT_UNIT), Err(GpuError::Refused { .. })));
}
