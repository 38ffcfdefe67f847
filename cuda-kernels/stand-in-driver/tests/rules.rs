//! That what breaks a rule is refused: a stand-in that says yes to everything would find nothing.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use cudarc::driver::sys::{
    CUcontext, CUdeviceptr, CUevent, CUgraph, CUgraphExec, CUmemAllocationType_enum, CUmemLocationType_enum,
    CUmemPoolProps, CUmemoryPool, CUresult, CUstream,
};
use genie_cuda_stand_in as _;

use CUresult::*;

// SAFETY: the library has them, with these arguments.
unsafe extern "C" {
    fn cuInit(flags: c_uint) -> CUresult;
    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: c_int) -> CUresult;
    fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> CUresult;
    fn cuCtxSetCurrent(context: CUcontext) -> CUresult;
    fn cuCtxSynchronize() -> CUresult;
    fn cuStreamCreate(stream: *mut CUstream, flags: c_uint) -> CUresult;
    fn cuStreamDestroy_v2(stream: CUstream) -> CUresult;
    fn cuStreamSynchronize(stream: CUstream) -> CUresult;
    fn cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint) -> CUresult;
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: c_int) -> CUresult;
    fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph) -> CUresult;
    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_int) -> CUresult;
    fn cuEventCreate(event: *mut CUevent, flags: c_uint) -> CUresult;
    fn cuEventRecord(event: CUevent, stream: CUstream) -> CUresult;
    fn cuEventQuery(event: CUevent) -> CUresult;
    fn cuMemPoolCreate(pool: *mut CUmemoryPool, wanted: *const CUmemPoolProps) -> CUresult;
    fn cuMemAllocFromPoolAsync(at: *mut CUdeviceptr, bytes: usize, pool: CUmemoryPool, stream: CUstream) -> CUresult;
    fn cuMemAlloc_v2(at: *mut CUdeviceptr, bytes: usize) -> CUresult;
    fn cuMemFree_v2(at: CUdeviceptr) -> CUresult;
    fn cuMemGetHandleForAddressRange(
        handle: *mut c_void,
        at: CUdeviceptr,
        bytes: usize,
        kind: c_uint,
        flags: u64,
    ) -> CUresult;
    fn cuFlushGPUDirectRDMAWrites(target: c_uint, scope: c_uint) -> CUresult;
    fn cuMemFreeAsync(at: CUdeviceptr, stream: CUstream) -> CUresult;
    fn cuMemHostRegister_v2(at: *mut c_void, bytes: usize, flags: c_uint) -> CUresult;
    fn cuMemHostUnregister(at: *mut c_void) -> CUresult;
    fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream) -> CUresult;
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream) -> CUresult;
    fn cuMemsetD8Async(to: CUdeviceptr, byte: u8, bytes: usize, stream: CUstream) -> CUresult;
    fn cuGraphInstantiateWithFlags(ready: *mut CUgraphExec, graph: CUgraph, flags: u64) -> CUresult;
    fn cuGraphDestroy(graph: CUgraph) -> CUresult;
    fn cuGraphExecDestroy(ready: CUgraphExec) -> CUresult;
    fn cuGraphLaunch(ready: CUgraphExec, stream: CUstream) -> CUresult;
    fn genieStandInLaunch(
        stream: CUstream,
        run: unsafe extern "C" fn(*const c_void),
        release: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
        ranges: *const [u64; 2],
        count: usize,
        loads: bool,
    ) -> CUresult;
}

/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`.
const THREAD_LOCAL: c_int = 1;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const RELAXED: c_int = 2;

/// One test at a time has the GPU.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The GPU's context, current on this thread, with a stream and a pool.
struct Gpu {
    stream: CUstream,
    pool: CUmemoryPool,
    context: CUcontext,
}

impl Gpu {
    fn new() -> Self {
        let (mut context, mut stream, mut pool) = (null_mut(), null_mut(), null_mut());
        // SAFETY: here and in all tests: what is written to is of the right type and live.
        unsafe {
            assert_eq!(cuInit(0), CUDA_SUCCESS);
            assert_eq!(cuDevicePrimaryCtxRetain(&mut context, 0), CUDA_SUCCESS);
            assert_eq!(cuCtxSetCurrent(context), CUDA_SUCCESS);
            assert_eq!(cuStreamCreate(&mut stream, 1), CUDA_SUCCESS);
            let mut wanted: CUmemPoolProps = std::mem::zeroed();
            assert_eq!(cuMemPoolCreate(&mut pool, &wanted), CUDA_ERROR_INVALID_VALUE, "of no kind");
            wanted.allocType = CUmemAllocationType_enum::CU_MEM_ALLOCATION_TYPE_PINNED;
            wanted.location.type_ = CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE;
            assert_eq!(cuMemPoolCreate(&mut pool, &wanted), CUDA_SUCCESS);
        }
        Self { stream, pool, context }
    }

    fn allocate(&self, bytes: usize) -> CUdeviceptr {
        let mut at = 0;
        // SAFETY: see `new`.
        assert_eq!(unsafe { cuMemAllocFromPoolAsync(&mut at, bytes, self.pool, self.stream) }, CUDA_SUCCESS);
        at
    }

    fn event(&self) -> CUevent {
        let mut event = null_mut();
        // SAFETY: see `new`.
        assert_eq!(unsafe { cuEventCreate(&mut event, 2) }, CUDA_SUCCESS);
        event
    }

    fn fill(&self, at: CUdeviceptr, bytes: usize) -> CUresult {
        // SAFETY: the library checks where that is.
        unsafe { cuMemsetD8Async(at, 7, bytes, self.stream) }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: see `new`.
        unsafe { cuDevicePrimaryCtxRelease_v2(0) };
    }
}

#[test]
fn a_context_is_the_threads_and_ends() {
    let _alone = alone();
    let gpu = Gpu::new();
    // SAFETY: see `Gpu::new`.
    unsafe {
        assert_eq!(thread::spawn(|| cuCtxSynchronize()).join().expect("no panic"), CUDA_ERROR_INVALID_CONTEXT);
        assert_eq!(cuCtxSynchronize(), CUDA_SUCCESS);
        let (before, stream) = (gpu.context, gpu.stream);
        drop(gpu);
        assert_eq!(cuCtxSynchronize(), CUDA_ERROR_CONTEXT_IS_DESTROYED);
        assert_eq!(cuCtxSetCurrent(before), CUDA_ERROR_INVALID_CONTEXT);
        assert_eq!(cuDevicePrimaryCtxRelease_v2(0), CUDA_ERROR_INVALID_CONTEXT, "nobody has it");
        let gpu = Gpu::new();
        assert_ne!(gpu.context, before);
        assert_eq!(cuStreamSynchronize(stream), CUDA_ERROR_INVALID_HANDLE, "the other context's");
        assert_eq!(cuStreamDestroy_v2(gpu.stream), CUDA_SUCCESS);
        assert_eq!(cuStreamDestroy_v2(gpu.stream), CUDA_ERROR_INVALID_HANDLE);
    }
}

#[test]
fn memory_has_ends_and_is_freed_once() {
    let _alone = alone();
    let gpu = Gpu::new();
    let at = gpu.allocate(1000);
    assert_eq!(gpu.fill(at + 10, 990), CUDA_SUCCESS);
    assert_eq!(gpu.fill(at + 10, 991), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(gpu.fill(at - 1, 1), CUDA_ERROR_INVALID_VALUE);
    // SAFETY: see `Gpu::new`.
    unsafe {
        assert_eq!(cuMemFreeAsync(at + 256, gpu.stream), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(cuMemFreeAsync(at, gpu.stream), CUDA_SUCCESS);
        assert_eq!(gpu.fill(at, 1), CUDA_ERROR_INVALID_VALUE, "it is being freed");
        assert_eq!(cuMemFreeAsync(at, gpu.stream), CUDA_ERROR_INVALID_VALUE);
        let mut none = 0;
        assert_eq!(cuMemAllocFromPoolAsync(&mut none, 0, gpu.pool, gpu.stream), CUDA_ERROR_INVALID_VALUE);
        assert_eq!(cuMemAllocFromPoolAsync(&mut none, 1 << 40, gpu.pool, gpu.stream), CUDA_ERROR_OUT_OF_MEMORY);
    }
}

#[test]
fn whole_pages_that_are_no_pools_are_exported() {
    let _alone = alone();
    let gpu = Gpu::new();
    // SAFETY: see `Gpu::new`; the descriptor is closed by nobody else.
    unsafe {
        let (mut at, mut fd): (_, c_int) = (0, -1);
        assert_eq!(cuMemAlloc_v2(&mut at, 2 << 20), CUDA_SUCCESS);
        let handle = (&raw mut fd).cast();
        let export = |at, bytes, kind, flags| cuMemGetHandleForAddressRange(handle, at, bytes, kind, flags);
        assert_eq!(export(at + 512, 4096, 1, 0), CUDA_ERROR_INVALID_VALUE, "not a page's beginning");
        assert_eq!(export(at, 1000, 1, 0), CUDA_ERROR_INVALID_VALUE, "not whole pages");
        assert_eq!(export(at, 4 << 20, 1, 0), CUDA_ERROR_INVALID_VALUE, "beyond its end");
        assert_eq!(export(at, 4096, 2, 0), CUDA_ERROR_INVALID_VALUE, "not a dmabuf");
        assert_eq!(export(gpu.allocate(4096), 4096, 1, 0), CUDA_ERROR_INVALID_VALUE, "a pool's");
        assert_eq!(export(at + 4096, 8192, 1, 0), CUDA_SUCCESS);
        assert_eq!(libc::close(fd), 0);
        assert_eq!(
            (cuFlushGPUDirectRDMAWrites(0, 100), cuFlushGPUDirectRDMAWrites(0, 1)),
            (CUDA_SUCCESS, CUDA_ERROR_INVALID_VALUE)
        );
        assert_eq!(cuMemFree_v2(at), CUDA_SUCCESS);
        assert_eq!(export(at, 4096, 1, 0), CUDA_ERROR_INVALID_VALUE, "it was freed");
    }
}

#[test]
fn memory_is_used_in_streams_that_come_after_its_allocation() {
    let _alone = alone();
    for ordered in [true, false] {
        let gpu = Gpu::new();
        let (event, mut other) = (gpu.event(), null_mut());
        // SAFETY: see `Gpu::new`.
        unsafe {
            assert_eq!(cuStreamCreate(&mut other, 1), CUDA_SUCCESS);
            let at = gpu.allocate(16);
            assert_eq!(cuEventRecord(event, gpu.stream), CUDA_SUCCESS);
            if ordered {
                assert_eq!(cuStreamWaitEvent(other, event, 0), CUDA_SUCCESS);
            }
            assert_eq!(cuMemsetD8Async(at, 7, 16, other), CUDA_SUCCESS);
            let done = if ordered { CUDA_SUCCESS } else { CUDA_ERROR_ILLEGAL_ADDRESS };
            assert_eq!(cuStreamSynchronize(other), done);
        }
    }
}

#[test]
fn what_is_put_into_a_stream_is_done_when_it_is_waited_for() {
    let _alone = alone();
    let gpu = Gpu::new();
    let (at, event, mut seen) = (gpu.allocate(4), gpu.event(), [1_u8; 4]);
    // SAFETY: see `Gpu::new`.
    unsafe {
        assert_eq!(cuEventQuery(event), CUDA_SUCCESS, "never recorded");
        assert_eq!(cuMemcpyDtoHAsync_v2(seen.as_mut_ptr().cast(), at, 2, gpu.stream), CUDA_SUCCESS);
        assert_eq!(gpu.fill(at, 4), CUDA_SUCCESS);
        assert_eq!(cuMemcpyDtoHAsync_v2(seen.as_mut_ptr().add(2).cast(), at, 2, gpu.stream), CUDA_SUCCESS);
        assert_eq!(cuEventRecord(event, gpu.stream), CUDA_SUCCESS);
        assert_eq!(seen, [1; 4], "nobody waited");
        assert_eq!(cuEventQuery(event), CUDA_ERROR_NOT_READY);
        assert_eq!(cuStreamSynchronize(gpu.stream), CUDA_SUCCESS);
        assert_eq!((cuEventQuery(event), seen), (CUDA_SUCCESS, [0xFF, 0xFF, 7, 7]));
    }
}

#[test]
fn host_memory_is_registered_in_pages_and_copied_within_its_ends() {
    let _alone = alone();
    let gpu = Gpu::new();
    let at = gpu.allocate(1 << 16);
    let mut host = vec![1_u8; 1 << 16];
    let start = host.as_mut_ptr();
    // SAFETY: see `Gpu::new`; the vector stays where it is.
    unsafe {
        let (part, rest) = (start.add(8192).cast::<c_void>(), start.add(20000).cast());
        assert_eq!(cuMemHostRegister_v2(part, 8192, 1), CUDA_SUCCESS);
        assert_eq!(cuMemHostRegister_v2(part, 8192, 1), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        assert_eq!(cuMemHostRegister_v2(start.add(8191).cast(), 1, 1), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        assert_eq!(cuMemHostUnregister(rest), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
        let copy = |from: usize, bytes| cuMemcpyHtoDAsync_v2(at, start.add(from).cast(), bytes, gpu.stream);
        assert_eq!(copy(8000, 500), CUDA_ERROR_INVALID_VALUE, "into it");
        assert_eq!(copy(16000, 500), CUDA_ERROR_INVALID_VALUE, "out of it");
        assert_eq!(copy(0, 1 << 16), CUDA_ERROR_INVALID_VALUE, "across it");
        assert_eq!((copy(0, 8192), copy(8192, 8192), copy(16384, 100)), (CUDA_SUCCESS, CUDA_SUCCESS, CUDA_SUCCESS));
        assert_eq!(cuMemHostUnregister(part), CUDA_ERROR_ILLEGAL_STATE, "a copy is under way");
        assert_eq!(cuStreamSynchronize(gpu.stream), CUDA_SUCCESS);
        assert_eq!(cuMemHostUnregister(part), CUDA_SUCCESS);
    }
}

#[test]
fn a_recording_holds_what_it_can_and_else_ends() {
    let _alone = alone();
    let gpu = Gpu::new();
    let (at, event, graph) = (gpu.allocate(16), gpu.event(), &mut null_mut());
    let context = gpu.context.addr();
    // SAFETY: see `Gpu::new`.
    unsafe {
        assert_eq!(cuEventRecord(event, gpu.stream), CUDA_SUCCESS);
        let mut recorder = null_mut();
        assert_eq!(cuStreamCreate(&mut recorder, 1), CUDA_SUCCESS);
        let begin = || assert_eq!(cuStreamBeginCapture_v2(recorder, THREAD_LOCAL), CUDA_SUCCESS);
        begin();
        assert_eq!(cuStreamBeginCapture_v2(recorder, THREAD_LOCAL), CUDA_ERROR_ILLEGAL_STATE);
        assert_eq!(cuMemsetD8Async(at, 1, 16, recorder), CUDA_SUCCESS);
        let other = thread::spawn(move || {
            let set = cuCtxSetCurrent(std::ptr::without_provenance_mut(context));
            (set, cuCtxSynchronize())
        });
        // What one thread records is not the others' business.
        assert_eq!(other.join().expect("no panic"), (CUDA_SUCCESS, CUDA_SUCCESS));
        let mut mode = RELAXED;
        assert_eq!(cuThreadExchangeStreamCaptureMode(&mut mode), CUDA_SUCCESS);
        assert_eq!(cuEventQuery(event), CUDA_SUCCESS);
        assert_eq!(cuThreadExchangeStreamCaptureMode(&mut mode), CUDA_SUCCESS);
        assert_eq!(cuStreamEndCapture(recorder, graph), CUDA_SUCCESS);
        assert!(!graph.is_null());

        begin();
        assert_eq!(cuEventQuery(event), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        assert_eq!(cuMemsetD8Async(at, 1, 16, recorder), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        assert_eq!(cuStreamEndCapture(recorder, graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        assert!(graph.is_null());
        begin();
        assert_eq!(cuStreamWaitEvent(recorder, event, 0), CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
        assert_eq!(cuStreamEndCapture(recorder, graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        begin();
        assert_eq!(cuStreamSynchronize(recorder), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        assert_eq!(cuStreamEndCapture(recorder, graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        assert_eq!(cuStreamEndCapture(recorder, graph), CUDA_ERROR_ILLEGAL_STATE);
    }
}

/// How often a kernel of another library ran, and was given back.
#[derive(Default)]
struct Kernel {
    runs: AtomicU32,
    releases: AtomicU32,
}

impl Kernel {
    unsafe extern "C" fn run(of: *const c_void) {
        // SAFETY: the test keeps it until nothing can run it.
        unsafe { &*of.cast::<Self>() }.runs.fetch_add(1, Relaxed);
    }

    unsafe extern "C" fn release(of: *mut c_void) {
        // SAFETY: as above.
        unsafe { &*of.cast::<Self>() }.releases.fetch_add(1, Relaxed);
    }

    fn put(&self, stream: CUstream, range: [u64; 2], loads: bool) -> CUresult {
        let of = std::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: one range; it touches nothing of the GPU's.
        unsafe { genieStandInLaunch(stream, Self::run, Self::release, of, &range, 1, loads) }
    }

    fn seen(&self) -> (u32, u32) {
        (self.runs.load(Relaxed), self.releases.load(Relaxed))
    }
}

#[test]
fn a_librarys_kernel_keeps_the_rules_of_ours() {
    let _alone = alone();
    let gpu = Gpu::new();
    let (at, kernel) = (gpu.allocate(1000), Kernel::default());
    assert_eq!(kernel.put(gpu.stream, [at + 8, 992], true), CUDA_SUCCESS);
    assert_eq!(kernel.seen(), (0, 0), "nobody waited");
    // SAFETY: see `Gpu::new`.
    assert_eq!(unsafe { cuStreamSynchronize(gpu.stream) }, CUDA_SUCCESS);
    assert_eq!(kernel.seen(), (1, 1));
    assert_eq!(kernel.put(gpu.stream, [at + 8, 993], true), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(kernel.seen(), (1, 2), "it is given back where it is refused, too");
    let kernel = Kernel::default();
    let (mut recorder, mut graph, mut ready) = (null_mut(), null_mut(), null_mut());
    // SAFETY: see `Gpu::new`.
    unsafe {
        assert_eq!(cuStreamCreate(&mut recorder, 1), CUDA_SUCCESS);
        assert_eq!(cuStreamBeginCapture_v2(recorder, THREAD_LOCAL), CUDA_SUCCESS);
        assert_eq!(kernel.put(recorder, [at, 1000], true), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        assert_eq!(cuStreamEndCapture(recorder, &mut graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        assert_eq!(kernel.seen(), (0, 1));
        assert_eq!(cuStreamBeginCapture_v2(recorder, THREAD_LOCAL), CUDA_SUCCESS);
        assert_eq!(kernel.put(recorder, [at, 1000], false), CUDA_SUCCESS);
        assert_eq!(cuStreamEndCapture(recorder, &mut graph), CUDA_SUCCESS);
        assert_eq!(cuGraphInstantiateWithFlags(&mut ready, graph, 0), CUDA_SUCCESS);
        assert_eq!(cuGraphDestroy(graph), CUDA_SUCCESS);
        assert_eq!([cuGraphLaunch(ready, gpu.stream), cuGraphLaunch(ready, gpu.stream)], [CUDA_SUCCESS; 2]);
        assert_eq!(cuGraphExecDestroy(ready), CUDA_SUCCESS);
        assert_eq!(kernel.seen(), (0, 1), "it is put there, and kept for that");
        assert_eq!(cuStreamSynchronize(gpu.stream), CUDA_SUCCESS);
        assert_eq!(kernel.seen(), (2, 2));
    }
}
