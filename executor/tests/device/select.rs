//! Which devices a name stands for, on machines with GPUs that work and GPUs that do not.

use std::sync::Arc;

use genie_cuda_kernels::gpu::{Gpu, GpuError, HostGpu, HostSettings};
use genie_executor::device::select::{Choice, Driver, Gpus, Limits, Selected};
use genie_executor::device::{Device, DeviceError};

/// A machine's GPUs: whether each is found to work, and can be opened.
struct Machine(Result<Vec<(bool, bool)>, DeviceError>);

fn broken(what: &str) -> DeviceError {
    DeviceError::Gpu(format!("{what} failed"))
}

impl Gpus for Machine {
    fn probe(&self) -> Result<Vec<Result<(), DeviceError>>, DeviceError> {
        let gpus = self.0.clone()?;
        Ok(gpus.into_iter().map(|(found, _)| if found { Ok(()) } else { Err(broken("the probe")) }).collect())
    }

    fn open(&self, number: u32) -> Result<Arc<dyn Gpu>, DeviceError> {
        let gpus = self.0.clone()?;
        match gpus.get(number as usize) {
            Some((true, true)) => {
                Ok(Arc::new(HostGpu::new(HostSettings { total_bytes: 1 << 30, ..Default::default() })))
            }
            Some(_) => Err(broken("the opening")),
            None => Err(GpuError::NoDevice { ordinal: number, visible: gpus.len() as u32 }.into()),
        }
    }
}

const WORKS: (bool, bool) = (true, true);
const LIMITS: Limits = Limits { threads: Some(2), memory_bytes: Some(1 << 20), staging_bytes: None, measure: false };

fn with(text: &str, machine: Result<Vec<(bool, bool)>, DeviceError>) -> Result<Selected, DeviceError> {
    text.parse::<Choice>()?.open(&Machine(machine), LIMITS)
}

fn names(devices: &[Arc<dyn Device>]) -> Vec<String> {
    devices.iter().map(|device| device.info().name).collect()
}

fn no_driver() -> DeviceError {
    GpuError::NoDriver { reason: "libcuda.so.1 was not found".to_owned() }.into()
}

/// The error of a choice that must fail.
fn refused(text: &str, machine: Result<Vec<(bool, bool)>, DeviceError>) -> String {
    with(text, machine).err().expect("no such GPU").to_string()
}

#[test]
fn names_of_devices() {
    for (text, choice) in [
        ("auto", Choice::Auto),
        (" cpu ", Choice::Cpu(1)),
        ("cpu*1", Choice::Cpu(1)),
        ("cpu*8", Choice::Cpu(8)),
        ("cuda", Choice::Gpus),
        ("cuda:3", Choice::These(vec![3])),
        ("cuda:2, cuda:0", Choice::These(vec![2, 0])),
    ] {
        assert_eq!(text.parse(), Ok(choice), "{text}");
    }
    let more = ["", "gpu", "cpu*0", "cpu*", "cpu*-1", "cpu*1000000", "cpu*99999999999999999999", "cpu8"];
    let gpus = ["cuda:", "cuda:-1", "cuda:x", "cuda:0,", ",", "cuda:0,cuda:0", "cuda:0,cpu", "cuda*2", "cuda,cuda:0"];
    for text in more.into_iter().chain(gpus).chain(["cuda:4294967296"]) {
        let error = text.parse::<Choice>().expect_err(text);
        assert_eq!(error, DeviceError::Name { text: text.to_owned() });
        assert!(error.to_string().contains("`cuda:0,cuda:2`"), "{error}");
    }
}

#[test]
fn cpu_devices_share_what_there_is() {
    for (text, count) in [("cpu", 1), ("cpu*1", 1), ("cpu*8", 8)] {
        let Selected { devices, left_out, why_cpu } = with(text, Ok(vec![WORKS])).unwrap();
        assert_eq!((devices.len(), left_out.len(), why_cpu), (count, 0, None));
        for (i, device) in devices.iter().enumerate() {
            let info = device.info();
            assert_eq!((info.index, info.name), (i as u32, format!("cpu:{i}")));
            assert_eq!((info.free_bytes, info.total_bytes), ((1 << 20) / count as u64, (1 << 20) / count as u64));
            assert_eq!(device.gpu(), None);
        }
    }
    let unlimited = Choice::Cpu(1).open(&Machine(Ok(Vec::new())), Limits::default()).unwrap();
    assert!(unlimited.devices[0].info().total_bytes > 1 << 20);
}

#[test]
fn auto_is_every_gpu_that_works_and_else_the_cpu() {
    let all = with("auto", Ok(vec![WORKS; 3])).unwrap();
    assert_eq!(names(&all.devices), ["cuda:0", "cuda:1", "cuda:2"]);
    assert_eq!((all.left_out, all.why_cpu), (Vec::new(), None));
    let none = with("auto", Ok(Vec::new())).unwrap();
    assert_eq!(names(&none.devices), ["cpu:0"]);
    assert!(none.why_cpu.unwrap().to_string().contains("CUDA_VISIBLE_DEVICES"));
    let without = with("auto", Err(no_driver())).unwrap();
    assert_eq!(names(&without.devices), ["cpu:0"]);
    assert_eq!(without.why_cpu, Some(no_driver()));
    let all_broken = with("auto", Ok(vec![(false, true), (true, false)])).unwrap();
    assert_eq!(names(&all_broken.devices), ["cpu:0"]);
    assert_eq!(all_broken.left_out, [(0, broken("the probe")), (1, broken("the opening"))]);
    assert!(all_broken.why_cpu.is_some());
}

#[test]
fn a_broken_gpu_hides_no_other() {
    for text in ["auto", "cuda"] {
        let some = with(text, Ok(vec![(false, true), WORKS, (true, false), WORKS])).unwrap();
        assert_eq!(names(&some.devices), ["cuda:1", "cuda:3"], "each keeps its number");
        assert_eq!(some.left_out, [(0, broken("the probe")), (2, broken("the opening"))]);
        assert_eq!(some.why_cpu, None);
    }
}

#[test]
fn gpus_that_were_asked_for_are_never_the_cpu() {
    let error = refused("cuda", Err(no_driver()));
    assert!(error.contains("libcuda.so.1 was not found") && error.contains("install NVIDIA's driver"), "{error}");
    let error = refused("cuda", Ok(Vec::new()));
    assert!(error.contains("CUDA_VISIBLE_DEVICES") && error.contains("--device cpu"), "{error}");
    let error = refused("cuda", Ok(vec![(false, true), (true, false)]));
    assert!(error.contains("cuda:0: the probe failed") && error.contains("cuda:1: the opening failed"), "{error}");
    let error = refused("cuda:0,cuda:1", Ok(vec![WORKS, (true, false)]));
    assert_eq!(error, "cuda:1 cannot be used: the opening failed");
    let error = refused("cuda:2", Ok(vec![WORKS; 2]));
    assert!(error.contains("cuda:2") && error.contains("CUDA shows 2"), "{error}");
}

#[test]
fn named_gpus_come_in_their_order_each_with_the_limit() {
    let Selected { devices, .. } = with("cuda:2,cuda:0", Ok(vec![WORKS; 3])).unwrap();
    assert_eq!(names(&devices), ["cuda:2", "cuda:0"]);
    for device in &devices {
        assert_eq!(device.info().total_bytes, 1 << 20);
        let gpu = device.gpu().expect("it is a GPU");
        assert_eq!((gpu.uuid.starts_with("GPU-"), gpu.pcie, gpu.utilisation), (true, None, None));
    }
}

#[test]
fn the_way_to_a_gpu_is_measured_when_that_is_asked_for() {
    let limits = Limits { measure: true, ..LIMITS };
    let Selected { devices, .. } = Choice::Gpus.open(&Machine(Ok(vec![WORKS])), limits).unwrap();
    let (to, from) = devices[0].gpu().and_then(|gpu| gpu.pcie).expect("it was measured");
    assert!(to > 0 && from > 0);
}

/// What this machine has. The choice of everything works wherever it is made.
#[test]
fn auto_works_on_this_machine() {
    let found = Choice::Auto.open(&Driver, LIMITS).unwrap();
    assert!(!found.devices.is_empty());
    assert_eq!(found.why_cpu.is_some(), names(&found.devices) == ["cpu:0"]);
}
