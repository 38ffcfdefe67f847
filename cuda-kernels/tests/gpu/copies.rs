//! Copies, fills, and host memory that is pinned or registered.

use std::ptr::NonNull;
use std::sync::Arc;

use genie_cuda_kernels::gpu::{Gpu, GpuError, Stream, measure_pcie};

use super::support::{Buffer, after, finish, gpus, pattern, stand_in};

#[test]
fn bytes_come_back_as_they_went() {
    for gpu in gpus() {
        for bytes in [1, 3, 255, 4096, 4097, (1 << 20) + 3] {
            let sent = pattern(bytes, bytes);
            let first = Buffer::holding(&gpu, &sent);
            let second = Buffer::new(&gpu, bytes);
            // SAFETY: the buffers live on, and `read` waits.
            unsafe { gpu.copy(Stream::Compute, second.at, first.at, bytes as u64) }.expect("a copy");
            assert_eq!(second.read(), sent, "{bytes} bytes");
        }
    }
}

/// Two GPUs, of which the first reaches the other's memory where it may: two stand-ins, and the first two of a machine where GPUs are
/// asked for and there are two.
fn pairs() -> Vec<[Arc<dyn Gpu>; 2]> {
    let stand_ins: [Arc<dyn Gpu>; 2] = [Arc::new(stand_in()), Arc::new(stand_in())];
    std::iter::once(stand_ins).chain(real_pair()).collect()
}

#[cfg(feature = "cuda")]
fn real_pair() -> Option<[Arc<dyn Gpu>; 2]> {
    use genie_cuda_kernels::gpu::cuda;
    let asked = std::env::var("GENIE_TEST_GPU").is_ok_and(|value| value == "1");
    let two = asked && cuda::probe().is_ok_and(|all| all.len() > 1);
    let open = |number| -> Arc<dyn Gpu> { Arc::new(cuda::open(number).expect("GENIE_TEST_GPU=1 asks for GPUs")) };
    two.then(|| [0, 1].map(open))
}

#[cfg(not(feature = "cuda"))]
fn real_pair() -> Option<[Arc<dyn Gpu>; 2]> {
    None
}

#[test]
fn bytes_go_from_one_gpu_to_another() {
    for [here, there] in pairs() {
        if !here.reaches(&*there) {
            continue;
        }
        let sent = pattern(100_003, 4);
        let (from, to) = (Buffer::holding(&here, &sent), Buffer::holding(&there, &pattern(100_103, 9)));
        // SAFETY: both live on, and the copy is waited for before anybody looks.
        unsafe { here.copy_to_peer(Stream::Download, &*there, to.at + 50, from.at, 100_003) }.expect("a copy");
        finish(&*here, Stream::Download);
        let (seen, around) = (to.read(), pattern(100_103, 9));
        assert!(seen[50..100_053] == sent && seen[..50] == around[..50] && seen[100_053..] == around[100_053..]);
        // Nothing at all goes, too.
        // SAFETY: no byte is touched.
        unsafe { here.copy_to_peer(Stream::Download, &*there, to.at, from.at, 0) }.expect("no copy");
    }
}

#[test]
fn a_gpu_that_is_not_reached_is_refused() {
    let (here, there) = (stand_in(), stand_in());
    assert!(here.reaches(&there));
    assert!(!here.reaches(&here.clone()), "it is no peer of its own");
    there.set_peers(false);
    assert!(!here.reaches(&there) && !there.reaches(&here));
    // SAFETY: nothing is copied.
    let refused = unsafe { here.copy_to_peer(Stream::Download, &there, 0, 0, 1) };
    assert!(matches!(refused, Err(GpuError::Refused { .. })), "{refused:?}");
}

#[test]
fn parts_are_copied_and_filled_without_touching_what_is_beside() {
    for gpu in gpus() {
        let buffer = Buffer::holding(&gpu, &pattern(1000, 0));
        let mut expected = pattern(1000, 0);
        let part = pattern(101, 5);
        // SAFETY: all live on until `read` has waited, and lie within the buffer.
        unsafe {
            gpu.copy_in(Stream::Compute, buffer.at + 13, part.as_ptr(), part.len()).expect("a copy");
            gpu.fill(Stream::Compute, buffer.at + 501, 0xA5, 77).expect("a fill");
            gpu.copy(Stream::Compute, buffer.at + 700, buffer.at + 13, 101).expect("a copy");
        }
        expected[13..114].copy_from_slice(&part);
        expected[501..578].fill(0xA5);
        expected[700..801].copy_from_slice(&part);
        assert_eq!(buffer.read(), expected);
    }
}

#[test]
fn nothing_is_copied_where_there_is_nothing() {
    for gpu in gpus() {
        let buffer = Buffer::holding(&gpu, &pattern(64, 1));
        let mut none = [0_u8; 0];
        // SAFETY: no byte is touched.
        unsafe {
            gpu.copy_in(Stream::Upload, buffer.at, none.as_ptr(), 0).expect("no copy");
            gpu.copy_out(Stream::Download, none.as_mut_ptr(), buffer.at, 0).expect("no copy");
            gpu.copy(Stream::Compute, buffer.at, buffer.at, 0).expect("no copy");
            gpu.fill(Stream::Compute, buffer.at, 7, 0).expect("no fill");
        }
        assert_eq!(buffer.read(), pattern(64, 1));
    }
}

#[test]
fn pinned_memory_is_zeroed_and_of_whole_pages() {
    for gpu in gpus() {
        for bytes in [1_usize, 4096, 5000, (4 << 20) + 1] {
            let pinned = gpu.pin(bytes).expect("pinned memory");
            assert_eq!(pinned.as_ptr().addr() % 4096, 0, "{bytes} bytes");
            // SAFETY: it has that many bytes, and nothing copies yet.
            let host = unsafe { std::slice::from_raw_parts_mut(pinned.as_ptr(), bytes) };
            assert!(host.iter().all(|&byte| byte == 0), "{bytes} bytes");
            host.copy_from_slice(&pattern(bytes, 2));
            let buffer = Buffer::new(&gpu, bytes);
            after(&*gpu, Stream::Upload, Stream::Compute);
            // SAFETY: both live on until the stream has been waited for.
            unsafe { gpu.copy_in(Stream::Upload, buffer.at, pinned.as_ptr(), bytes) }.expect("a copy");
            finish(&*gpu, Stream::Upload);
            // SAFETY: it came from there, and the copy is done.
            unsafe { gpu.unpin(pinned) };
            assert_eq!(buffer.read(), pattern(bytes, 2), "{bytes} bytes");
        }
    }
}

#[test]
fn memory_of_others_can_be_registered_and_again_after_that_ended() {
    for gpu in gpus() {
        let mut theirs = pattern(3 << 16, 3);
        let at = NonNull::new(theirs.as_mut_ptr()).expect("a vector's address");
        for round in 0..3 {
            // SAFETY: the vector stays where it is until it is unregistered.
            unsafe { gpu.register(at, theirs.len()) }.expect("registered");
            let buffer = Buffer::new(&gpu, theirs.len());
            after(&*gpu, Stream::Upload, Stream::Compute);
            // SAFETY: both live on until the stream has been waited for.
            unsafe { gpu.copy_in(Stream::Upload, buffer.at, at.as_ptr(), theirs.len()) }.expect("a copy");
            finish(&*gpu, Stream::Upload);
            // SAFETY: no copy is under way.
            unsafe { gpu.unregister(at) };
            assert_eq!(buffer.read(), theirs, "round {round}");
        }
    }
}

#[test]
fn the_bus_is_measured_and_everything_given_back() {
    for gpu in gpus() {
        let bandwidth = measure_pcie(&*gpu).expect("a measurement");
        let [to, from] = [bandwidth.to_device, bandwidth.from_device].map(|speed| speed / 1e9);
        // `tools/gpu-check` reads this line.
        println!("pinned copies, {}: {to:.2} GB/s to it, {from:.2} GB/s from it", gpu.properties().name);
        for speed in [bandwidth.to_device, bandwidth.from_device] {
            assert!(speed.is_finite() && speed > 1e6, "{bandwidth:?}");
        }
    }
    let gpu = stand_in();
    measure_pcie(&gpu).expect("a measurement");
    finish(&gpu, Stream::Compute);
    assert_eq!(gpu.used(), 0);
}
