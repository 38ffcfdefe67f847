//! GPUs of this machine: how many there are, and how busy one is while something is measured.

use std::path::{Path, PathBuf};
#[cfg(any(feature = "cuda", test))]
use std::time::Duration;
use std::time::Instant;

use anyhow::{Context, Result};
#[cfg(feature = "cuda")]
use genie_cuda_kernels::gpu::inventory::UtilisationSampler;
use genie_transport::client::blocking::Session;
use serde::Serialize;

use crate::get::write_whole;

/// A GPU gives the same value for a sixth of a second at least.
#[cfg(feature = "cuda")]
const PERIOD: Duration = Duration::from_millis(100);

/// How busy a GPU was at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    at: Instant,
    /// Percent of the moments before in which a kernel ran.
    sm: u32,
    /// Bytes of its memory that are taken.
    memory: u64,
}

/// What takes samples until it is dropped.
trait Source {
    /// All so far.
    fn samples(&self) -> Vec<Sample>;
}

/// Watches one GPU of this machine.
pub(crate) struct Watch {
    began: Instant,
    source: Box<dyn Source>,
}

/// A row of the table.
#[derive(Debug, Serialize)]
struct Row {
    time_s: f64,
    sm: u32,
    memory: u64,
}

impl Watch {
    /// Begins, if this machine has that GPU, and NVIDIA's management library to tell how busy it is.
    pub(crate) fn start(uuid: &str) -> Option<Self> {
        Some(Self { began: Instant::now(), source: source(uuid)? })
    }

    /// Percent of the time between two moments in which a kernel ran; none where no sample was taken between them.
    pub(crate) fn average(&self, from: Instant, to: Instant) -> Option<f64> {
        let samples = self.source.samples().into_iter().filter(|s| (from..=to).contains(&s.at));
        let (sum, count) = samples.fold((0.0, 0_u32), |(sum, count), s| (sum + f64::from(s.sm), count + 1));
        (count > 0).then(|| sum / f64::from(count))
    }

    /// Percent since it began.
    pub(crate) fn average_so_far(&self) -> Option<f64> {
        self.average(self.began, Instant::now())
    }

    /// Writes all samples as CSV: seconds since it began, percent, bytes.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        for Sample { at, sm, memory } in self.source.samples() {
            let time_s = at.saturating_duration_since(self.began).as_secs_f64();
            writer.serialize(Row { time_s, sm, memory })?;
        }
        write_whole(path, &writer.into_inner()?).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Where the samples of a measurement go whose table is this: `gap.csv` has `gap.sm.csv` beside it.
pub(crate) fn beside(table: &Path) -> PathBuf {
    table.with_extension("sm.csv")
}

/// The UUID of a server's device, if it is a GPU and the server tells.
pub(crate) fn uuid_of(session: &mut Session, device: u16) -> Result<Option<String>> {
    let devices = session.devices()?;
    let Some(device) = devices.iter().find(|d| d.index == u32::from(device)) else { return Ok(None) };
    Ok(Facts::of(&session.stats()?, &device.name).uuid)
}

/// GPUs that are installed on a server, and those of them that CUDA shows to it, as its counters tell.
pub(crate) fn installed_and_visible(counters: &[(String, u64)]) -> Option<(u64, u64)> {
    let value = |name: &str| counters.iter().find(|(counter, _)| counter == name).map(|(_, value)| *value);
    value("genie_gpus_installed").zip(value("genie_gpus_visible"))
}

/// What a server's counters tell of one of its GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) uuid: Option<String>,
    /// Percent.
    pub(crate) utilisation: Option<u64>,
    /// Bytes a second from the host.
    pub(crate) pcie_to: Option<u64>,
    /// Bytes a second to the host.
    pub(crate) pcie_from: Option<u64>,
}

impl Facts {
    /// Of the device of this name.
    pub(crate) fn of(counters: &[(String, u64)], device: &str) -> Self {
        let value = |what: &str| {
            let name = format!("genie_device_{what}{{device=\"{device}\"}}");
            counters.iter().find(|(counter, _)| *counter == name).map(|(_, value)| *value)
        };
        let start = format!("genie_device_info{{device=\"{device}\",uuid=\"");
        let uuid = counters.iter().find_map(|(name, _)| name.strip_prefix(&start)?.strip_suffix("\"}"));
        Self {
            uuid: uuid.map(str::to_owned),
            utilisation: value("utilisation_percent"),
            pcie_to: value("pcie_to_device_bytes_per_second"),
            pcie_from: value("pcie_from_device_bytes_per_second"),
        }
    }
}

#[cfg(feature = "cuda")]
impl Source for UtilisationSampler {
    fn samples(&self) -> Vec<Sample> {
        let seen = self.seen().samples.into_iter();
        seen.map(|s| Sample { at: s.at, sm: s.sm, memory: s.memory_bytes }).collect()
    }
}

#[cfg(feature = "cuda")]
fn source(uuid: &str) -> Option<Box<dyn Source>> {
    match UtilisationSampler::start(uuid, PERIOD) {
        Ok(sampler) => Some(Box::new(sampler)),
        Err(error) => {
            tracing::info!(%error, "how busy the GPU is is not measured");
            None
        }
    }
}

/// This build has nobody to ask.
#[cfg(not(feature = "cuda"))]
fn source(_uuid: &str) -> Option<Box<dyn Source>> {
    None
}

/// `8 installed, 1 visible (CUDA_VISIBLE_DEVICES=3)`; none where NVIDIA's management library is not to be had.
#[cfg(feature = "cuda")]
pub(crate) fn visibility() -> Option<String> {
    let found = genie_cuda_kernels::gpu::inventory::inventory();
    found.ok().map(|inventory| inventory.visibility.to_string())
}

/// This build has nobody to ask.
#[cfg(not(feature = "cuda"))]
pub(crate) fn visibility() -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Vec<Sample>);

    impl Source for Fixed {
        fn samples(&self) -> Vec<Sample> {
            self.0.clone()
        }
    }

    fn watch() -> Watch {
        let began = Instant::now();
        let sample = |ms, sm| Sample { at: began + Duration::from_millis(ms), sm, memory: 1 << 30 };
        Watch { began, source: Box::new(Fixed(vec![sample(0, 10), sample(500, 40), sample(1000, 80)])) }
    }

    #[test]
    fn averages_are_of_what_was_seen_between_two_moments() {
        let watch = watch();
        let at = |ms| watch.began + Duration::from_millis(ms);
        assert_eq!(watch.average(at(0), at(500)), Some(25.0));
        assert_eq!(watch.average(at(400), at(2000)), Some(60.0));
        assert_eq!(watch.average(at(100), at(400)), None);
    }

    #[test]
    fn samples_are_a_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = beside(&folder.path().join("gap.csv"));
        assert!(path.ends_with("gap.sm.csv"));
        watch().write(&path).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text, "time_s,sm,memory\n0.0,10,1073741824\n0.5,40,1073741824\n1.0,80,1073741824\n");
    }

    #[test]
    fn a_gpu_that_is_not_here_is_not_watched() {
        assert!(Watch::start("GPU-none").is_none());
    }

    #[test]
    fn counters_tell_of_the_gpu_that_is_meant() {
        let counters: Vec<(String, u64)> = [
            ("genie_sessions", 3),
            ("genie_device_info{device=\"cuda:1\",uuid=\"GPU-b\"}", 1),
            ("genie_device_utilisation_percent{device=\"cuda:1\"}", 7),
            ("genie_device_info{device=\"cuda:10\",uuid=\"GPU-c\"}", 1),
            ("genie_device_pcie_to_device_bytes_per_second{device=\"cuda:10\"}", 5),
            ("genie_device_pcie_from_device_bytes_per_second{device=\"cuda:10\"}", 6),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let one = Facts { uuid: Some("GPU-b".into()), utilisation: Some(7), ..Facts::default() };
        assert_eq!(Facts::of(&counters, "cuda:1"), one);
        let ten = Facts { uuid: Some("GPU-c".into()), utilisation: None, pcie_to: Some(5), pcie_from: Some(6) };
        assert_eq!(Facts::of(&counters, "cuda:10"), ten);
        assert_eq!(Facts::of(&counters, "cpu:0"), Facts::default());
        assert_eq!(installed_and_visible(&counters), None);
        let both =
            [("genie_gpus_visible", 1), ("genie_gpus_installed", 8)].map(|(name, value)| (name.to_owned(), value));
        assert_eq!(installed_and_visible(&both), Some((8, 1)));
    }
}
