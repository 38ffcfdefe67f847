//! Whole models on the CUDA device over the libraries that stand in for the CUDA driver and cuBLASLt.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

/// What follows is run once more with `GENIE_TEST_GPU=1`, in a process that finds these libraries.
#[test]
fn models_are_near_the_reference_over_the_stand_ins() {
    // Over a GPU, or in the process below.
    if env::var_os("GENIE_TEST_GPU").is_some() {
        return;
    }
    let program = env::current_exe().expect("this program");
    let folder = tempfile::tempdir().expect("room for a folder");
    // This crate's tests depend on both, so that cargo has built them.
    for (name, of) in [("libcuda.so", "cuda"), ("libcuda.so.1", "cuda"), ("libcublasLt.so.13", "cublaslt")] {
        let library = program.with_file_name(format!("libgenie_{of}_stand_in.so"));
        symlink(library, folder.path().join(name)).expect("a link");
    }
    let done = folder.path().join("done");
    let run = Command::new(&program)
        .args(["--exact", "goldens::errors_stay_small", "narrow::a_gpu_stays_near_the_f32_of_the_cpu"])
        .env_remove("CUDA_VISIBLE_DEVICES")
        .envs([("LD_LIBRARY_PATH", folder.path()), ("GENIE_STAND_IN_PRODUCTS_DONE", &done)])
        .envs([("GENIE_TEST_GPU", "1"), ("GENIE_STAND_IN_MEMORY", "2147483648")])
        .output()
        .expect("this program starts");
    let (said, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success() && !errors.contains("mistake:") && said.contains("2 passed"), "{said}\n{errors}");
    let done = fs::read_to_string(done).expect("the library did products");
    for what in ["f32 f32 ", "f16 f16 ", "f16 f32 ", "bf16 bf16 ", "bf16 f32 ", " bias", " added", " Gelu bias"] {
        assert!(done.lines().any(|line| line.contains(what)), "no product of {what}: {done}");
    }
}
