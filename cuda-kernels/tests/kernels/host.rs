//! The table of kernels agrees with itself on every target.

use genie_cuda_kernels::{KERNELS, MODULES};

#[test]
fn every_target_has_every_kernel_with_the_same_parameters() {
    for kernel in KERNELS {
        for (target, ptx) in MODULES[kernel.module].ptx {
            let (name, bytes) = (kernel.name, kernel.bytes);
            assert!(ptx.contains(&format!(".visible .entry {name}(")), "{name} is not in compute_{target}");
            assert!(ptx.contains(&format!(" {name}_param_0[{bytes}]")), "{name} of compute_{target} takes others");
            assert!(ptx.contains(&format!(".target sm_{target}")), "compute_{target} was made for another");
        }
    }
}

#[test]
fn a_gpu_gets_the_newest_that_it_can_run() {
    let target = |capability| MODULES[0].ptx_for(capability).map(|ptx| ptx.split(".target ").nth(1).map(|t| &t[..5]));
    assert_eq!(target(70), None);
    assert_eq!(target(75), Some(Some("sm_75")));
    assert_eq!(target(86), Some(Some("sm_80")));
    assert_eq!(target(120), Some(Some("sm_90")));
}
