//! NVIDIA's driver, the GPUs that it shows, and its management library.

#[cfg(not(feature = "cuda"))]
use super::State;
use super::{Finding, names_in, read};

/// What is to be said of GPUs.
#[cfg(feature = "cuda")]
pub(super) fn findings() -> Vec<Finding> {
    use genie_cuda_kernels::gpu::{
        cuda::{probe, products_library},
        inventory::inventory,
    };

    let probed = probe();
    let mut findings = vec![driver(&probed, nvidia_on_pci())];
    if let Ok(gpus) = &probed {
        let one = |(number, gpu)| usable(number, gpu);
        findings.extend((0..).zip(gpus).map(one));
        findings.push(products(products_library()));
        findings.push(management(inventory()));
    }
    findings
}

/// What is to be said where this build cannot use them.
#[cfg(not(feature = "cuda"))]
pub(super) fn findings() -> Vec<Finding> {
    let there = !names_in("/proc/driver/nvidia/gpus").is_empty() || nvidia_on_pci();
    let found = if there { "there, but this build has no CUDA" } else { "none, and this build has no CUDA" };
    let advice = "cargo build --release -p genie makes one that has it; meanwhile genie serve computes on the CPU";
    vec![Finding::but("NVIDIA driver", State::Absent, found, advice)]
}

#[cfg(feature = "cuda")]
use with_cuda::{driver, management, products, usable};

#[cfg(feature = "cuda")]
mod with_cuda {
    use genie_cuda_kernels::gpu::cuda::NoProducts;
    use genie_cuda_kernels::gpu::inventory::{Inventory, InventoryError};
    use genie_cuda_kernels::gpu::{GpuError, Properties};

    use super::super::{Finding, State};
    use crate::say;

    /// The CUDA driver. `card`: whether one by NVIDIA is plugged in.
    pub(super) fn driver(probed: &Result<Vec<Result<Properties, GpuError>>, GpuError>, card: bool) -> Finding {
        const WHAT: &str = "NVIDIA driver";
        match probed {
            Ok(gpus) => {
                let version = gpus.iter().find_map(|gpu| gpu.as_ref().ok()).map(|gpu| gpu.driver);
                let version = version.map_or_else(String::new, |v| format!("CUDA {}.{}; ", v / 1000, v % 1000 / 10));
                let usable = gpus.iter().filter(|gpu| gpu.is_ok()).count();
                let found = format!("{version}{usable} of {} visible GPUs can be used", gpus.len());
                if usable > 0 {
                    return Finding::good(WHAT, found);
                }
                let advice =
                    "genie serve computes on the CPU here: look at CUDA_VISIBLE_DEVICES, and at what nvidia-smi says";
                Finding::but(WHAT, State::Absent, found, advice)
            }
            Err(GpuError::NoDriver { reason }) if card => {
                let advice = "the card is there, its driver is not: apt-get install nvidia-driver (Debian, contrib and non-free) or \
                              ubuntu-drivers install (Ubuntu), then restart";
                Finding::but(WHAT, State::Absent, format!("none ({reason})"), advice)
            }
            Err(GpuError::NoDriver { reason }) => {
                let advice =
                    "genie serve computes on the CPU here; run it on a machine with a GPU and connect from this one";
                Finding::but(WHAT, State::Absent, format!("none ({reason}), and no card"), advice)
            }
            Err(other) => {
                let advice = "genie serve computes on the CPU until that is done";
                Finding::but(WHAT, State::Absent, other.to_string(), advice)
            }
        }
    }

    /// One GPU that CUDA shows.
    pub(super) fn usable(number: u32, gpu: &Result<Properties, GpuError>) -> Finding {
        match gpu {
            Ok(gpu) => {
                let (name, uuid, memory) = (&gpu.name, &gpu.uuid, say::bytes(gpu.total_bytes));
                let (major, minor) = (gpu.capability / 10, gpu.capability % 10);
                let found = format!("cuda:{number} {name}, {memory}, compute capability {major}.{minor}, {uuid}");
                Finding::good("GPU", found)
            }
            Err(error) => {
                let found = format!("cuda:{number}: {error}");
                Finding::but("GPU", State::Absent, found, "genie serve leaves it out, and takes the others")
            }
        }
    }

    /// The library that does products of many rows.
    pub(super) fn products(version: Result<String, NoProducts>) -> Finding {
        const WHAT: &str = "cuBLASLt";
        match version {
            Ok(version) => Finding::good(WHAT, version),
            Err(reason) => {
                let advice = "prompts are slower without it: install libcublas of CUDA 13, so that the system finds libcublasLt.so.13";
                Finding::but(WHAT, State::Improvable, reason.to_string(), advice)
            }
        }
    }

    /// What the management library tells of all GPUs, the hidden ones among them.
    pub(super) fn management(inventory: Result<Inventory, InventoryError>) -> Finding {
        const WHAT: &str = "NVIDIA management";
        let inventory = match inventory {
            Ok(inventory) => inventory,
            Err(error) => {
                let advice = "without it nobody tells how busy a GPU is; all else works";
                return Finding::but(WHAT, State::Improvable, error.to_string(), advice);
            }
        };
        let mut found = format!("driver {}; GPUs: {}", inventory.driver, inventory.visibility);
        for (number, gpu) in inventory.gpus.iter().enumerate() {
            found += &match gpu {
                Ok(gpu) => {
                    let busy = gpu.utilisation.map_or_else(String::new, |percent| format!(", {percent} % busy"));
                    let (free, total) = (say::bytes(gpu.free_bytes), say::bytes(gpu.total_bytes));
                    format!("; {} ({}): {free} of {total} free{busy}", gpu.name, gpu.uuid)
                }
                Err(error) => format!("; GPU {number}: {error}"),
            };
        }
        Finding::good(WHAT, found)
    }

    #[cfg(test)]
    mod tests {
        use genie_cuda_kernels::gpu::inventory::{InstalledGpu, Visibility};

        use super::*;

        fn gpu() -> Properties {
            Properties {
                ordinal: 0,
                name: "NVIDIA X".to_owned(),
                uuid: "GPU-a".to_owned(),
                capability: 90,
                multiprocessors: 132,
                shared_bytes: 227 << 10,
                total_bytes: 143_000_000_000,
                bus: String::new(),
                driver: 13010,
            }
        }

        #[test]
        fn what_lacks_is_told_apart() {
            let none = || Err(GpuError::NoDriver { reason: "libcuda.so.1 was not found".to_owned() });
            assert!(driver(&none(), true).advice.unwrap().contains("apt-get install nvidia-driver"));
            assert!(driver(&none(), false).advice.unwrap().contains("on the CPU here"));
            let old = driver(&Err(GpuError::OldDriver { has: 12080, needs: 13000, branch: 580 }), true);
            assert!(old.found.contains("12.8") && old.found.contains("branch 580"), "{}", old.found);
            let hidden = driver(&Ok(Vec::new()), true);
            assert_eq!(hidden.state, State::Absent);
            assert!(hidden.advice.unwrap().contains("CUDA_VISIBLE_DEVICES"));
        }

        #[test]
        fn a_gpu_that_works_is_good_whatever_the_others_do() {
            let old = || Err(GpuError::OldDevice { name: "NVIDIA V".to_owned(), capability: 70 });
            let found = driver(&Ok(vec![old(), Ok(gpu())]), true);
            assert_eq!(found, Finding::good("NVIDIA driver", "CUDA 13.1; 1 of 2 visible GPUs can be used"));
            let found = usable(1, &Ok(gpu()));
            assert_eq!(found, Finding::good("GPU", "cuda:1 NVIDIA X, 143 GB, compute capability 9.0, GPU-a"));
            assert_eq!(usable(0, &old()).state, State::Absent);
        }

        #[test]
        fn a_library_of_products_that_is_not_there_is_worth_having() {
            assert_eq!(products(Ok("13.0.0".to_owned())), Finding::good("cuBLASLt", "13.0.0"));
            let none = products(Err(NoProducts::NotFound));
            assert!(none.state == State::Improvable && none.found.contains("libcublasLt.so.13"), "{none:?}");
        }

        #[test]
        fn the_library_sees_what_is_hidden() {
            let installed = InstalledGpu {
                name: "NVIDIA X".to_owned(),
                uuid: "GPU-a".to_owned(),
                bus: String::new(),
                total_bytes: 2_000_000_000,
                free_bytes: 1_000_000_000,
                utilisation: Some(7),
            };
            let refusal = InventoryError::Refused { during: "looking at a GPU", reason: "lost".to_owned() };
            let variable = Some("1".to_owned());
            let visibility = Visibility { installed: 2, visible: 1, variable };
            let gpus = vec![Ok(installed), Err(refusal)];
            let found = management(Ok(Inventory { driver: "580.65".to_owned(), gpus, visibility })).found;
            for part in
                ["2 installed, 1 visible (CUDA_VISIBLE_DEVICES=1)", "1.0 GB of 2.0 GB free, 7 % busy", "GPU 1: looking"]
            {
                assert!(found.contains(part), "{found}");
            }
            let none = management(Err(InventoryError::NoLibrary { reason: "gone".to_owned() }));
            assert_eq!(none.state, State::Improvable);
        }
    }
}

/// Whether a display controller by NVIDIA is plugged in.
fn nvidia_on_pci() -> bool {
    names_in("/sys/bus/pci/devices").iter().any(|device| {
        let file = |name: &str| read(&format!("/sys/bus/pci/devices/{device}/{name}"));
        file("vendor").trim() == "0x10de" && file("class").starts_with("0x03")
    })
}
