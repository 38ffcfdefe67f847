//! Kernels that begin before those before them have ended.

use genie_cuda_kernels::gpu::{Stream, try_overlap};

use super::support::{Buffer, finish, gpus, negation, stand_in};

#[test]
fn kernels_behind_each_other_compute_what_they_do_one_after_another() {
    for gpu in gpus() {
        assert_eq!(try_overlap(&*gpu), Ok(true));
    }
}

#[test]
fn a_gpu_whose_kernels_do_not_wait_is_found_out() {
    let gpu = stand_in();
    gpu.set_hasty(true);
    assert_eq!(try_overlap(&gpu), Ok(false));
    finish(&gpu, Stream::Compute);
    assert_eq!(gpu.used(), 0, "and nothing is left behind");
}

#[test]
fn a_kernel_behind_another_sees_what_that_one_wrote() {
    for gpu in gpus() {
        let x = Buffer::of_floats(&gpu, &[3.0; 5000]);
        let (y, z) = (Buffer::of_floats(&gpu, &[0.0; 5000]), Buffer::of_floats(&gpu, &[0.0; 5000]));
        let both = || {
            // SAFETY: the buffers are there until they are read; the second follows a kernel.
            unsafe {
                gpu.launch(Stream::Compute, &negation(&x, &y))?;
                gpu.launch_behind(Stream::Compute, &negation(&y, &z))
            }
        };
        both().expect("launches");
        assert_eq!(z.floats(), vec![3.0; 5000]);
        let graph = gpu.capture(&mut || both()).expect("a graph");
        x.write(&[7.0_f32; 5000].map(f32::to_le_bytes).concat());
        // SAFETY: as above.
        unsafe { gpu.replay(&graph) }.expect("a replay");
        assert_eq!(z.floats(), vec![7.0; 5000]);
    }
}
