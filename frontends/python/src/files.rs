//! Files of tensors that are no known model.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use bytes::Bytes;
use genie_graph::DType;
use genie_models::map_file;
use genie_transport::client::{self, PutOptions};
use genie_transport::memory::Region;
use genie_transport::wire::{ContentHash, Offered, TensorSpec};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use safetensors::{Dtype, SafeTensors};

use crate::cancel;
use crate::connect::aside;
use crate::errors::{bad_input, in_range};
use crate::held::Tensor;
use crate::memory;
use crate::session::Session;
use crate::shared::{Left, Made, Stop};

/// A tensor of a file.
struct Stored {
    name: String,
    spec: TensorSpec,
    data: Region,
}

/// Makes the tensors of a safetensors file weights of a session: those that the server has are not sent. By name. `progress` gets what is
/// being done, bytes done, and bytes in all.
#[pyfunction]
#[pyo3(signature = (session, path, *, device=0, progress=None))]
pub(crate) fn load_tensors<'py>(
    py: Python<'py>,
    session: &Bound<'py, Session>,
    path: PathBuf,
    #[pyo3(from_py_with = in_range)] device: u16,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let shared = &session.get().shared;
    let stored = py.detach(|| read(&path))?;
    let total: u64 = stored.iter().map(|tensor| tensor.spec.bytes()).sum();
    let tell = |what: &str, done: u64, total: u64| match progress {
        Some(progress) => progress.call1((what, done, total)).map(|_| ()),
        None => Ok(()),
    };
    let (mut entries, mut done) = (Vec::new(), 0);
    for Stored { spec, data, .. } in &stored {
        cancel::check(py)?;
        entries.push((py.detach(|| ContentHash::of(data)), spec.clone()));
        done += spec.bytes();
        tell("hashing tensors", done, total)?;
    }
    // What the server has is held from here on: whatever goes wrong below, or while nobody waits any more, it is freed.
    let (home, asked) = (shared.clone(), entries.clone());
    let offer = move || {
        let Made { what: offered, life } = home.with(None, |session| session.offer(device, &asked))?;
        let held = |(offered, (_, spec)): (Offered, (_, TensorSpec))| match offered {
            Offered::Present(handle) => Some(Tensor::new(&home, client::Tensor { handle, device, spec }, life)),
            _ => None,
        };
        Ok::<_, Stop>((offered.into_iter().zip(asked).map(held).collect::<Vec<_>>(), life))
    };
    let (offered, life) = aside(py, "genie-offer", offer, |_| Ok(()))??;
    let specs = entries.iter().zip(&offered);
    let missing: u64 = specs.filter(|(_, held)| held.is_none()).map(|((_, spec), _)| spec.bytes()).sum();
    let counters = py.detach(|| shared.with(None, |session| Ok(session.counters())))?.what;
    let before = counters.up.load(Ordering::Relaxed);
    let shown = progress.map(|progress| progress.clone().unbind());
    let mut look = || {
        Python::attach(|py| {
            cancel::check(py)?;
            let Some(shown) = &shown else { return Ok(()) };
            let sent = (counters.up.load(Ordering::Relaxed) - before).min(missing);
            shown.bind(py).call1(("sending tensors", sent, missing)).map(|_| ())
        })
    };
    let tensors = PyDict::new(py);
    for ((Stored { name, spec, data }, (hash, _)), offered) in stored.into_iter().zip(entries).zip(offered) {
        let tensor = if let Some(held) = offered {
            held
        } else {
            let options = PutOptions { device, name: None, weight: Some(hash) };
            let data = Bytes::from_owner(data);
            let put = py.detach(|| {
                shared.call(
                    Some(life),
                    Left::Tensor,
                    |session| session.start_put(&spec, data, options),
                    |session, pending| session.finish_put(pending),
                    &mut look,
                )
            })?;
            Tensor::new(shared, put.what, put.life)
        };
        tensors.set_item(name, tensor)?;
    }
    Ok(tensors)
}

fn read(path: &Path) -> PyResult<Vec<Stored>> {
    let bad = |reason: String| bad_input(format!("{}: {reason}", path.display()));
    let file = map_file(path).map_err(|error| bad_input(error.to_string()))?;
    let (header, metadata) = SafeTensors::read_metadata(&file).map_err(|error| bad(error.to_string()))?;
    let start = header + size_of::<u64>();
    let mut stored = Vec::new();
    for (name, info) in metadata.tensors() {
        let dims: Vec<u64> = info.shape.iter().map(|&d| d as u64).collect();
        let dtype = dtype(info.dtype).ok_or_else(|| {
            bad(format!(
                "'{name}' is stored as {:?}, which cannot be sent: f32, f16, bf16, i64, i32, u8 and bool can",
                info.dtype
            ))
        })?;
        let spec = memory::spec(dtype, &dims).map_err(|error| bad(format!("'{name}': {error}")))?;
        let (from, to) = info.data_offsets;
        let range = start.checked_add(from).zip(start.checked_add(to));
        let data = range.and_then(|(from, to)| file.slice(from..to)).filter(|data| data.len() as u64 == spec.bytes());
        let data = data.ok_or_else(|| bad(format!("the data of '{name}' lies outside the file: it is cut short")))?;
        stored.push((from, Stored { name, spec, data }));
    }
    // As they lie in the file: it is read from one end to the other.
    stored.sort_by_key(|(from, _)| *from);
    Ok(stored.into_iter().map(|(_, tensor)| tensor).collect())
}

fn dtype(stored: Dtype) -> Option<DType> {
    Some(match stored {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}
