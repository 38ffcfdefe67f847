//! A file for what a server's devices write down of copies.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use genie_executor::device::Device;
use genie_executor::trace::Trace;

/// Where a trace goes when the server stops.
pub(crate) struct TraceFile {
    path: PathBuf,
    /// Made at once: a place where nothing can be written is told of before anything is measured.
    file: File,
    trace: Arc<Trace>,
}

impl TraceFile {
    /// Lets the devices write down what they copy.
    pub(crate) fn begin(path: &Path, devices: &[Arc<dyn Device>]) -> Result<Self> {
        let trace = Arc::new(Trace::new());
        // Each of them, not up to the first.
        let tracing = devices.iter().filter(|device| device.trace(&trace)).count();
        if tracing == 0 {
            bail!(
                "--trace is of copies to and from GPUs, and none is served here: choose some with --device cuda, or leave it out"
            );
        }
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, trace })
    }

    /// Writes everything so far.
    pub(crate) fn finish(self) -> Result<()> {
        let left_out = self.trace.left_out();
        if left_out > 0 {
            tracing::warn!(left_out, "the trace is full: what came last is not in it");
        }
        let mut writer = BufWriter::new(self.file);
        self.trace
            .write(&mut writer)
            .and_then(|()| writer.flush())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use genie_executor::device::cpu::CpuDevice;

    use super::*;

    #[test]
    fn a_server_without_gpus_makes_no_empty_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let cpu: Arc<dyn Device> = Arc::new(CpuDevice::new(0, 1, 1 << 20).unwrap());
        let error = TraceFile::begin(&path, &[cpu]).err().unwrap().to_string();
        assert!(error.contains("--device cuda") && !path.exists(), "{error}");
    }

    #[test]
    fn a_trace_is_json() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let (file, trace) = (File::create(&path).unwrap(), Arc::new(Trace::new()));
        TraceFile { path: path.clone(), file, trace }.finish().unwrap();
        let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(written["traceEvents"], serde_json::json!([]));
    }
}
