//! `_native.Session`.
#![expect(clippy::too_many_arguments, reason = "Python gives them by name, and most are left out")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use genie_graph::VerifiedGraph;
use genie_transport::client::blocking;
use genie_transport::client::{self, BindInputs, ClientError, Input, PutOptions, RunOptions, Value};
use genie_transport::wire::{ContentHash, Handle};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::cancel;
use crate::connect::{Given, Target, aside};
use crate::errors::{bad_input, in_range, unreachable};
use crate::graph::{self, Graph};
use crate::held::{Binding, Cache, Held, Ports, Program, Tensor};
use crate::memory::{self, Block};
use crate::shared::{Left, Made, Shared, Stop};

/// Graphs of so many bytes are looked for by their hash before they are sent.
const LOOKED_FOR: usize = 16 << 10;

/// A session on a server. Threads may share it.
#[pyclass(frozen, subclass, weakref, module = "genie._native")]
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
}

impl Session {
    /// Calls without Python, which may interrupt it.
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        (life, left): (Option<u64>, Left),
        start: impl FnOnce(&mut blocking::Session) -> Result<blocking::Pending, ClientError> + Send,
        finish: impl FnOnce(&mut blocking::Session, blocking::Pending) -> Result<T, ClientError> + Send,
    ) -> PyResult<Made<T>> {
        let mut look = || Python::attach(cancel::check);
        Ok(py.detach(|| self.shared.call(life, left, start, finish, &mut look))?)
    }

    /// The same, and tells `progress` how many of `total` bytes have moved; that all have, its caller tells, once what was made is held.
    fn watched<T: Send>(
        &self,
        py: Python<'_>,
        (progress, total, up): (Option<&Bound<'_, PyAny>>, u64, bool),
        (life, left): (Option<u64>, Left),
        start: impl FnOnce(&mut blocking::Session) -> Result<blocking::Pending, ClientError> + Send,
        finish: impl FnOnce(&mut blocking::Session, blocking::Pending) -> Result<T, ClientError> + Send,
    ) -> PyResult<Made<T>> {
        let Some(progress) = progress else { return self.call(py, (life, left), start, finish) };
        let tell = progress.clone().unbind();
        let counters = self.with(py, None, |session| Ok(session.counters()))?.what;
        let moved = || if up { &counters.up } else { &counters.down }.load(Ordering::Relaxed);
        let before = moved();
        let mut look = || {
            Python::attach(|py| {
                cancel::check(py)?;
                tell.bind(py).call1(((moved() - before).min(total), total)).map(|_| ())
            })
        };
        Ok(py.detach(|| self.shared.call(life, left, start, finish, &mut look))?)
    }

    fn with<T: Send>(
        &self,
        py: Python<'_>,
        life: Option<u64>,
        work: impl FnOnce(&mut blocking::Session) -> Result<T, ClientError> + Send,
    ) -> PyResult<Made<T>> {
        Ok(py.detach(|| self.shared.with(life, work))?)
    }

    /// The handles of a bind's inputs.
    fn handles(
        &self,
        program: &Program,
        given: Option<&Bound<'_, PyDict>>,
        uses: &mut Vec<Py<PyAny>>,
    ) -> PyResult<Vec<(u32, Handle)>> {
        let Some(given) = given else { return Ok(Vec::new()) };
        let one = |(key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
            let held = if let Ok(tensor) = value.cast::<Tensor>() {
                &tensor.get().held
            } else if let Ok(cache) = value.cast::<Cache>() {
                &cache.get().held
            } else {
                return Err(bad_input("residents are tensors or caches of this session: put the array first"));
            };
            let handle = held.handle(&self.shared)?;
            if held.life() != program.held.life() {
                return Err(Stop::Lost.into());
            }
            let input = program.ports.input(&key)?;
            uses.push(value.unbind());
            Ok((input, handle))
        };
        given.iter().map(one).collect()
    }
}

/// Index, name, model, capability, bytes in all, bytes free.
type Device = (u32, String, String, String, u64, u64);

/// What goes with a request, by the nodes that take it: arrays, and tensors that are on the server.
struct Inputs<'py> {
    arrays: Vec<(u16, Arc<Block>)>,
    residents: Vec<(u16, Bound<'py, Tensor>)>,
}

impl<'py> Inputs<'py> {
    fn of(ports: &Ports, given: Option<&Bound<'py, PyDict>>) -> PyResult<Self> {
        let mut inputs = Self { arrays: Vec::new(), residents: Vec::new() };
        for (key, value) in given.into_iter().flatten() {
            let node = ports.input(&key)?;
            let node = u16::try_from(node).map_err(|_| {
                bad_input(format!("node {node} is too far on to be given with a run: bind it as a resident"))
            })?;
            match value.cast_into::<Tensor>() {
                Ok(tensor) => inputs.residents.push((node, tensor)),
                Err(other) => inputs.arrays.push((node, array(&other.into_inner())?)),
            }
        }
        Ok(inputs)
    }

    /// The tensors, which must be this session's.
    fn residents(&self, session: &Arc<Shared>) -> PyResult<Vec<(u16, client::Tensor)>> {
        let one = |(node, tensor): &(u16, Bound<'_, Tensor>)| {
            tensor.get().held.handle(session)?;
            Ok((*node, tensor.get().tensor.clone()))
        };
        self.residents.iter().map(one).collect()
    }
}

/// An array, or a tuple of bytes, element type and shape.
fn array(value: &Bound<'_, PyAny>) -> PyResult<Arc<Block>> {
    match value.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>, Vec<u64>)>() {
        Ok((data, dtype, shape)) => memory::seen(&data, Some(&dtype), Some(shape)),
        Err(_) => memory::block_of(value, None),
    }
}

fn input((index, block): &(u16, Arc<Block>)) -> Input<'_> {
    let spec = block.spec();
    Input { index: *index, dtype: spec.dtype(), dims: spec.dims(), data: block.bytes() }
}

#[pymethods]
impl Session {
    #[new]
    #[pyo3(signature = (uri, *, token=None, token_file=None, ca=None, cert=None, key=None, link=None, lease=600.0, quota=0, timeout=0.0,
        reconnect=15.0))]
    fn new(
        py: Python<'_>,
        uri: String,
        token: Option<String>,
        token_file: Option<PathBuf>,
        ca: Option<PathBuf>,
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
        link: Option<String>,
        lease: f64,
        #[pyo3(from_py_with = in_range)] quota: u64,
        timeout: f64,
        reconnect: f64,
    ) -> PyResult<Self> {
        let given = Given { uri, token, token_file, ca, cert, key, link, lease, quota, timeout, reconnect };
        let target = Target::new(given)?;
        let session = target.open(py)?;
        Ok(Self { shared: Shared::new(session, target)? })
    }

    /// Where the server is.
    #[getter]
    fn uri(&self) -> String {
        self.shared.target.uri.to_string()
    }

    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        py.detach(|| self.shared.is_closed())
    }

    /// How often what the session held was lost, and another one opened in its place.
    #[getter]
    fn lost(&self) -> u64 {
        self.shared.life()
    }

    /// Frees all that the session has on the server, and ends it. A server that does not answer within `patience` seconds ends it with its
    /// lease.
    #[pyo3(signature = (patience=None))]
    fn close(&self, py: Python<'_>, patience: Option<f64>) -> PyResult<()> {
        let (shared, began) = (self.shared.clone(), Instant::now());
        let look = |_: Python<'_>| match patience {
            Some(patience) if began.elapsed().as_secs_f64() > patience => {
                Err(unreachable("the server did not answer in time: the session ends with its lease".to_owned()))
            }
            _ => Ok(()),
        };
        Ok(aside(py, "genie-closing", move || shared.close(), look)??)
    }

    /// Makes an array's elements a tensor on the server.
    #[pyo3(signature = (data, *, name=None, weight=false, device=0, dtype=None, shape=None, progress=None))]
    fn put(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        name: Option<String>,
        weight: bool,
        #[pyo3(from_py_with = in_range)] device: u16,
        dtype: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = in_range)] shape: Option<Vec<u64>>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Tensor> {
        let block = memory::seen(data, dtype, shape)?;
        let spec = block.spec().clone();
        let total = spec.bytes();
        let hash = weight.then(|| py.detach(|| ContentHash::of(block.bytes())));
        let data = py.detach(|| block.payload(&self.shared));
        let start = move |session: &mut blocking::Session| {
            session.start_put(&spec, data, PutOptions { device, name: name.as_deref(), weight: hash })
        };
        let watch = (progress, total, true);
        let put =
            self.watched(py, watch, (None, Left::Tensor), start, |session, pending| session.finish_put(pending))?;
        let tensor = Tensor::new(&self.shared, put.what, put.life);
        progress.map_or(Ok(()), |progress| progress.call1((total, total)).map(|_| ()))?;
        Ok(tensor)
    }

    /// The elements of a tensor.
    #[pyo3(signature = (tensor, *, progress=None))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        tensor: &Bound<'py, Tensor>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let tensor = tensor.get();
        let (handle, spec) = (tensor.held.handle(&self.shared)?, tensor.tensor.spec.clone());
        let total = spec.bytes();
        let got = self.watched(
            py,
            (progress, total, false),
            (Some(tensor.held.life()), Left::Bytes),
            |session| session.start_get(handle, 0, total),
            |session, pending| session.finish_get(pending),
        )?;
        let block = Block::of_region(got.what, spec, &self.shared)?;
        progress.map_or(Ok(()), |progress| progress.call1((total, total)).map(|_| ()))?;
        memory::array(py, Arc::new(block))
    }

    /// Finds a tensor by its name.
    fn lookup(&self, py: Python<'_>, name: &str) -> PyResult<Tensor> {
        let start = |session: &mut blocking::Session| Ok(session.start_lookup(name));
        // What it finds is a handle of this session, to be freed like any other.
        let found = self.call(py, (None, Left::Tensor), start, |session, pending| session.finish_put(pending))?;
        Ok(Tensor::new(&self.shared, found.what, found.life))
    }

    /// Registers a graph, or its encoding.
    #[pyo3(signature = (graph, device=0))]
    fn define(
        &self,
        py: Python<'_>,
        graph: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = in_range)] device: u16,
    ) -> PyResult<Program> {
        let verified: VerifiedGraph = match graph.cast::<Graph>() {
            Ok(graph) => match graph.try_borrow() {
                Ok(graph) => graph.verified()?,
                Err(_) => return Err(bad_input("another thread is adding to this graph: define it when it is whole")),
            },
            Err(_) => {
                let bytes = graph.cast::<PyBytes>().map_err(|_| bad_input("define takes a genie.Graph, or bytes"))?;
                graph::verified(bytes.as_bytes())?
            }
        };
        let (ports, encoded) = (Arc::new(Ports::of(&verified)), verified.encode());
        let made = (None, Left::Program);
        let mut defined = None;
        if encoded.len() >= LOOKED_FOR {
            let hash = ContentHash(verified.hash().0);
            let known = self.call(
                py,
                made,
                |session| Ok(session.start_define_known(device, hash)),
                |session, pending| session.finish_define_known(pending),
            )?;
            defined = known.what.map(|what| Made { what, life: known.life });
        }
        let defined = match defined {
            Some(defined) => defined,
            None => self.call(
                py,
                made,
                |session| Ok(session.start_define(device, &encoded)),
                |session, pending| session.finish_define(pending),
            )?,
        };
        let Made { what: program, life } = defined;
        Ok(Program { held: Held::new(&self.shared, program.handle, life), program, ports, device })
    }

    /// Joins a program with what is the same in every run: residents (tensors and caches), weights, arrays.
    #[pyo3(signature = (program, *, residents=None, weights=None, fixed=None))]
    fn bind(
        &self,
        py: Python<'_>,
        program: &Bound<'_, Program>,
        residents: Option<&Bound<'_, PyDict>>,
        weights: Option<&Bound<'_, PyDict>>,
        fixed: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Binding> {
        let defined = program.get();
        defined.held.handle(&self.shared)?;
        let ports = defined.ports.clone();
        let mut uses = vec![program.clone().into_any().unbind()];
        let residents = self.handles(defined, residents, &mut uses)?;
        let weights = self.handles(defined, weights, &mut uses)?;
        let fixed = Inputs::of(&ports, fixed)?;
        if !fixed.residents.is_empty() {
            return Err(bad_input("fixed inputs are arrays: tensors are bound as residents"));
        }
        let (program, fixed) = (defined.program, fixed.arrays);
        let start = |session: &mut blocking::Session| {
            session.start_bind(&program, &BindInputs { weights, residents, fixed: fixed.iter().map(input).collect() })
        };
        let of = (Some(defined.held.life()), Left::Binding);
        let Made { what: binding, life } = self.call(py, of, start, |session, pending| session.finish_bind(pending))?;
        Ok(Binding { held: Held::new(&self.shared, binding.0, life), binding, ports, _uses: uses })
    }

    /// Makes an empty KV cache that fits an input of a program, with room for `reserve` tokens.
    #[pyo3(signature = (program, input, reserve=0))]
    fn create_cache(
        &self,
        py: Python<'_>,
        program: &Bound<'_, Program>,
        input: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = in_range)] reserve: u32,
    ) -> PyResult<Cache> {
        let defined = program.get();
        defined.held.handle(&self.shared)?;
        let (input, program) = (defined.ports.input(input)?, defined.program);
        let of = (Some(defined.held.life()), Left::Cache);
        let start = |session: &mut blocking::Session| Ok(session.start_create_cache(&program, input, reserve));
        Ok(self.cache(self.call(py, of, start, |session, pending| session.finish_cache(pending))?))
    }

    /// A second cache with the same tokens.
    fn fork_cache(&self, py: Python<'_>, cache: &Bound<'_, Cache>) -> PyResult<Cache> {
        let Cache { held, cache } = cache.get();
        held.handle(&self.shared)?;
        let of = (Some(held.life()), Left::Cache);
        let start = |session: &mut blocking::Session| Ok(session.start_fork_cache(*cache));
        Ok(self.cache(self.call(py, of, start, |session, pending| session.finish_cache(pending))?))
    }

    /// Forgets a cache's tokens from `length` on.
    fn truncate_cache(
        &self,
        py: Python<'_>,
        cache: &Bound<'_, Cache>,
        #[pyo3(from_py_with = in_range)] length: u32,
    ) -> PyResult<()> {
        let Cache { held, cache } = cache.get();
        held.handle(&self.shared)?;
        let of = (Some(held.life()), Left::Nothing);
        let start = |session: &mut blocking::Session| Ok(session.start_truncate_cache(*cache, length));
        self.call(py, of, start, |session, pending| session.finish_free(pending)).map(|_| ())
    }

    /// A cache's tokens, as the server has them: `[blocks, layers, 2, kv_heads, 64, head_dim]`, of which the last block's may mean nothing.
    fn get_cache<'py>(&self, py: Python<'py>, cache: &Bound<'_, Cache>) -> PyResult<Bound<'py, PyBytes>> {
        let held = &cache.get().held;
        let handle = held.handle(&self.shared)?;
        let (shared, life) = (self.shared.clone(), Some(held.life()));
        let describe = move || shared.with(life, |session| session.describe(handle));
        let bytes = aside(py, "genie-describe", describe, |_| Ok(()))??.what.spec.bytes();
        let start = |session: &mut blocking::Session| session.start_get(handle, 0, bytes);
        let got = self.call(py, (life, Left::Bytes), start, |session, pending| session.finish_get(pending))?;
        Ok(PyBytes::new(py, &got.what))
    }

    /// The same tensor on another device of the server; it does not pass this process.
    fn copy(
        &self,
        py: Python<'_>,
        tensor: &Bound<'_, Tensor>,
        #[pyo3(from_py_with = in_range)] device: u16,
    ) -> PyResult<Tensor> {
        let Tensor { held, tensor } = tensor.get();
        held.handle(&self.shared)?;
        let of = (Some(held.life()), Left::Tensor);
        let start = |session: &mut blocking::Session| Ok(session.start_copy(tensor, device));
        let Made { what: copy, life } = self.call(py, of, start, |session, pending| session.finish_put(pending))?;
        Ok(Tensor::new(&self.shared, copy, life))
    }

    /// Runs a binding. Bit i of `wanted`: output i comes back; of `keep`: it stays as a tensor. Without `wanted`, all that are not kept.
    #[pyo3(signature = (binding, inputs=None, wanted=None, keep=0, position=None))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        binding: &Bound<'py, Binding>,
        inputs: Option<&Bound<'py, PyDict>>,
        #[pyo3(from_py_with = in_range)] wanted: Option<u64>,
        #[pyo3(from_py_with = in_range)] keep: u64,
        #[pyo3(from_py_with = in_range)] position: Option<u32>,
    ) -> PyResult<Bound<'py, PyList>> {
        let bound = binding.get();
        bound.held.handle(&self.shared)?;
        let (binding, inputs) = (bound.binding, Inputs::of(&bound.ports, inputs)?);
        let tensors = inputs.residents(&self.shared)?;
        let wanted = match wanted {
            Some(wanted) => wanted,
            None => bound.ports.all_outputs()? & !keep,
        };
        let (arrays, options) = (inputs.arrays, RunOptions { position, wanted, keep });
        let Made { what: mut outputs, life } = self.call(
            py,
            (Some(bound.held.life()), Left::Outputs),
            |session| {
                let residents: Vec<_> = tensors.iter().map(|(node, tensor)| (*node, tensor)).collect();
                let arrays: Vec<_> = arrays.iter().map(input).collect();
                session.start_run_with(binding, &arrays, &residents, options)
            },
            |session, pending| session.finish_run(pending),
        )?;
        outputs.values.sort_by_key(|value| match value {
            Value::Inline { index, .. } => (*index, false),
            Value::Resident { index, .. } => (*index, true),
        });
        // All are taken before one can fail: what stayed on the server is freed with what holds it.
        let values: Vec<_> = outputs.values.into_iter().map(|value| self.value(py, value, life)).collect();
        PyList::new(py, values.into_iter().collect::<PyResult<Vec<_>>>()?)
    }

    /// The server's devices: index, name, model, capability, bytes in all, bytes free.
    fn devices(&self, py: Python<'_>) -> PyResult<Vec<Device>> {
        let start = |session: &mut blocking::Session| Ok(session.start_devices());
        let devices =
            self.call(py, (None, Left::Nothing), start, |session, pending| session.finish_devices(pending))?;
        let devices = devices.what;
        let one = |d: client::DeviceInfo| (d.index, d.name, d.model, d.capability, d.total_bytes, d.free_bytes);
        Ok(devices.into_iter().map(one).collect())
    }

    /// The server's counters.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let start = |session: &mut blocking::Session| Ok(session.start_stats());
        let stats = self.call(py, (None, Left::Nothing), start, |session, pending| session.finish_stats(pending))?;
        let stats = stats.what;
        let all = PyDict::new(py);
        stats.into_iter().try_for_each(|(name, value)| all.set_item(name, value))?;
        Ok(all)
    }

    /// Bytes sent and received so far, headers included.
    fn traffic(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        Ok(self.with(py, None, |session| Ok(session.traffic()))?.what)
    }

    /// Seconds of an empty round trip.
    fn ping(&self, py: Python<'_>) -> PyResult<f64> {
        let began = Instant::now();
        let mut echo = Vec::new();
        self.call(
            py,
            (None, Left::Nothing),
            |session| Ok(session.start_echo(&[])),
            |session, pending| session.finish_echo(pending, &mut echo),
        )?;
        Ok(began.elapsed().as_secs_f64())
    }
}

impl Session {
    fn cache(&self, Made { what: cache, life }: Made<client::Cache>) -> Cache {
        Cache { held: Held::new(&self.shared, cache.0, life), cache }
    }

    fn value<'py>(&self, py: Python<'py>, value: Value, life: u64) -> PyResult<Bound<'py, PyAny>> {
        match value {
            Value::Inline { dtype, dims, data, .. } => {
                let spec = memory::spec(dtype, &dims)?;
                memory::array(py, Arc::new(Block::of_vec(data, spec)?))
            }
            Value::Resident { tensor, .. } => Ok(Bound::new(py, Tensor::new(&self.shared, tensor, life))?.into_any()),
        }
    }
}
