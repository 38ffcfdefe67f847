//! `genie devices`: what a server has.

use anyhow::Result;
use clap::Args;
use genie_transport::Uri;
use serde::Serialize;

use crate::connect::{self, LinkArgs};
use crate::gpu::{self, Facts};
use crate::say::{self, Say};

/// List a server's devices.
///
/// Where the server has GPUs, a last line says how many are installed, and how many of them CUDA_VISIBLE_DEVICES leaves to it.
///
/// With --json: index, name, model, capability, total and free (bytes of memory); of a GPU also uuid, utilisation (percent, where
/// NVIDIA's management library tells), pcie_to and pcie_from (bytes a second between the server's memory and the GPU's).
///
/// Example: genie devices tcp://127.0.0.1:7070 --json
#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// The server: genie://HOST:PORT, or a link's own address: tcp://HOST:PORT.
    uri: Uri,
    #[command(flatten)]
    link: LinkArgs,
}

#[derive(Debug, Serialize)]
struct Device {
    index: u32,
    name: String,
    model: String,
    capability: String,
    /// Bytes of memory.
    total: u64,
    /// Bytes of it that nothing takes.
    free: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    utilisation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pcie_to: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pcie_from: Option<u64>,
}

/// Runs the command.
pub(crate) fn run(args: &DevicesArgs, say: Say) -> Result<()> {
    let (found, counters) =
        connect::within(&args.uri, args.link, |session| Ok((session.devices()?, session.stats()?)))?;
    let gpus = gpu::installed_and_visible(&counters);
    let devices: Vec<_> = found
        .into_iter()
        .map(|d| {
            let Facts { uuid, utilisation, pcie_to, pcie_from } = Facts::of(&counters, &d.name);
            Device {
                index: d.index,
                name: d.name,
                model: d.model,
                capability: d.capability,
                total: d.total_bytes,
                free: d.free_bytes,
                uuid,
                utilisation,
                pcie_to,
                pcie_from,
            }
        })
        .collect();
    say.result(&devices, |devices| text(devices, gpus))
}

/// `gpus`: those that are installed on the server, and those of them that CUDA shows to it.
fn text(devices: &[Device], gpus: Option<(u64, u64)>) -> String {
    let tables = tables(devices);
    match gpus {
        Some((installed, visible)) if installed > 0 => {
            format!("{tables}\nGPUs of the server: {installed} installed, {visible} visible")
        }
        _ => tables,
    }
}

fn tables(devices: &[Device]) -> String {
    let table = say::table(
        ["device", "model", "capability", "memory", "free"],
        devices
            .iter()
            .map(|d| [d.name.clone(), d.model.clone(), d.capability.clone(), say::bytes(d.total), say::bytes(d.free)]),
    );
    if devices.iter().all(|d| d.uuid.is_none()) {
        return table;
    }
    let gpus = say::table(
        ["GPU", "UUID", "busy", "to it", "from it"],
        devices.iter().filter_map(|d| {
            let speed = |rate: Option<u64>| rate.map_or_else(|| "-".to_owned(), |n| format!("{}/s", say::bytes(n)));
            let busy = d.utilisation.map_or_else(|| "-".to_owned(), |percent| format!("{percent} %"));
            Some([d.name.clone(), d.uuid.clone()?, busy, speed(d.pcie_to), speed(d.pcie_from)])
        }),
    );
    format!("{table}\n{gpus}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, uuid: Option<&str>) -> Device {
        Device {
            index: 0,
            name: name.into(),
            model: "M".into(),
            capability: "9.0".into(),
            total: 1,
            free: 1,
            uuid: uuid.map(str::to_owned),
            utilisation: None,
            pcie_to: uuid.map(|_| 55_000_000_000),
            pcie_from: None,
        }
    }

    #[test]
    fn a_gpu_has_a_second_table() {
        let text = text(&[device("cpu:0", None), device("cuda:0", Some("GPU-a"))], Some((8, 1)));
        assert!(text.ends_with("\nGPUs of the server: 8 installed, 1 visible"), "{text}");
        assert!(text.contains("GPU-a") && text.contains("55.0 GB/s"), "{text}");
        assert_eq!(text.matches("cpu:0").count(), 1);
    }

    #[test]
    fn what_is_not_known_of_a_cpu_is_not_said() {
        for gpus in [None, Some((0, 0))] {
            let text = text(&[device("cpu:0", None)], gpus);
            assert!(!text.contains("UUID") && !text.contains("visible"), "{text}");
        }
        let json = serde_json::to_value(device("cpu:0", None)).unwrap();
        assert!(json.get("uuid").is_none() && json.get("total").is_some());
    }
}
