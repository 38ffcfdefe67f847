//! What a session has on the server.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use genie_graph::{Dim, InputRole, VerifiedGraph};
use genie_transport::client;
use genie_transport::wire::Handle;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use crate::dtype;
use crate::errors::bad_input;
use crate::graph::Node;
use crate::shared::{Shared, Stop};

/// A handle that is freed when nobody refers to it any more.
pub(crate) struct Held {
    pub(crate) shared: Arc<Shared>,
    handle: Handle,
    /// The session's, when it was made.
    life: u64,
    freed: AtomicBool,
}

impl Held {
    pub(crate) fn new(shared: &Arc<Shared>, handle: Handle, life: u64) -> Self {
        Self { shared: shared.clone(), handle, life, freed: AtomicBool::new(false) }
    }

    pub(crate) fn life(&self) -> u64 {
        self.life
    }

    /// The handle, for a call on this session.
    pub(crate) fn handle(&self, session: &Arc<Shared>) -> PyResult<Handle> {
        if !Arc::ptr_eq(&self.shared, session) {
            return Err(bad_input("this belongs to another session: each has its own tensors, programs and bindings"));
        }
        if self.freed.load(Ordering::Acquire) {
            return Err(bad_input("this was freed: upload it again"));
        }
        if self.life != session.life() {
            return Err(Stop::Lost.into());
        }
        Ok(self.handle)
    }

    /// Frees it with the next call, or soon.
    fn free(&self) {
        if !self.freed.swap(true, Ordering::AcqRel) {
            self.shared.free_later(self.life, self.handle);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.free();
    }
}

/// A tensor that lives on the server. Freed there when nothing refers to it any more.
#[pyclass(frozen, module = "genie._native")]
pub(crate) struct Tensor {
    pub(crate) held: Held,
    pub(crate) tensor: client::Tensor,
}

impl Tensor {
    pub(crate) fn new(shared: &Arc<Shared>, tensor: client::Tensor, life: u64) -> Self {
        Self { held: Held::new(shared, tensor.handle, life), tensor }
    }
}

#[pymethods]
impl Tensor {
    #[getter]
    fn dtype(&self) -> &'static str {
        self.tensor.spec.dtype().name()
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.tensor.spec.dims())
    }

    #[getter]
    fn nbytes(&self) -> u64 {
        self.tensor.spec.bytes()
    }

    #[getter]
    fn device(&self) -> u16 {
        self.tensor.device
    }

    /// Frees it, whatever refers to it still.
    fn free(&self) {
        self.held.free();
    }

    fn __repr__(&self) -> String {
        let (spec, device) = (&self.tensor.spec, self.tensor.device);
        let dims: Vec<_> = spec.dims().iter().map(u64::to_string).collect();
        format!("<genie.Tensor {} [{}] on device {device}>", spec.dtype(), dims.join(", "))
    }
}

/// A KV cache on the server.
#[pyclass(frozen, module = "genie._native")]
pub(crate) struct Cache {
    pub(crate) held: Held,
    pub(crate) cache: client::Cache,
}

/// An input or output of a program.
pub(crate) struct Port {
    pub(crate) node: u32,
    pub(crate) name: String,
    role: InputRole,
    dtype: genie_graph::DType,
    dims: Vec<Dim>,
}

/// A graph that the server has verified and planned.
#[pyclass(frozen, module = "genie._native")]
pub(crate) struct Program {
    pub(crate) held: Held,
    pub(crate) program: client::Program,
    pub(crate) ports: Arc<Ports>,
    pub(crate) device: u16,
}

/// What goes into a program, and what comes out.
pub(crate) struct Ports {
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
}

impl Ports {
    pub(crate) fn of(graph: &VerifiedGraph) -> Self {
        let input = |decl: &genie_graph::InputDecl| Port {
            node: decl.node.0,
            name: decl.name.clone(),
            role: decl.role,
            dtype: decl.ty.dtype,
            dims: decl.ty.shape.0.clone(),
        };
        let output = |output: &genie_graph::Output| {
            let ty = &graph.nodes[output.node.0 as usize].ty;
            let (dtype, dims) = (ty.dtype, ty.shape.0.clone());
            Port { node: output.node.0, name: output.name.clone(), role: InputRole::Argument, dtype, dims }
        };
        Self { inputs: graph.inputs().iter().map(input).collect(), outputs: graph.outputs.iter().map(output).collect() }
    }

    fn output_names(&self) -> Vec<String> {
        self.outputs.iter().map(|output| output.name.clone()).collect()
    }

    /// A mask of all outputs.
    pub(crate) fn all_outputs(&self) -> PyResult<u64> {
        let count = self.outputs.len() as u32;
        match u64::BITS.checked_sub(count) {
            Some(unused) => Ok(u64::MAX.checked_shr(unused).unwrap_or(0)),
            None => Err(bad_input(format!(
                "the program has {count} outputs, of which a run gives some of the first 64: say which are wanted"
            ))),
        }
    }

    /// Bytes of each output where these symbols have these sizes; `None` where others are among its dimensions.
    fn output_bytes(&self, symbols: &HashMap<String, u64>) -> Vec<Option<u64>> {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(n) => Some(*n),
            Dim::Symbol(symbol) => symbols.get(&symbol.to_string()).copied(),
        };
        let bytes =
            |port: &Port| port.dims.iter().try_fold(port.dtype.bytes(), |bytes, dim| bytes.checked_mul(size(dim)?));
        self.outputs.iter().map(bytes).collect()
    }

    /// The node of an input: by its number, its node or its name.
    pub(crate) fn input(&self, key: &Bound<'_, PyAny>) -> PyResult<u32> {
        if let Ok(node) = key.extract::<u32>() {
            return Ok(node);
        }
        if let Ok(node) = key.cast::<Node>() {
            return Ok(node.get().id.0);
        }
        let name =
            key.cast::<PyString>().map_err(|_| bad_input("inputs go by number, by node or by name"))?.to_string();
        let input = self.inputs.iter().find(|input| input.name == name);
        input.map(|input| input.node).ok_or_else(|| {
            let names: Vec<_> = self.inputs.iter().map(|input| input.name.as_str()).collect();
            bad_input(format!("the program has no input '{name}': it has {}", names.join(", ")))
        })
    }
}

type Described<'py> = (String, u32, String, &'static str, Bound<'py, PyTuple>);

fn described<'py>(py: Python<'py>, ports: &[Port]) -> PyResult<Vec<Described<'py>>> {
    let one = |port: &Port| {
        let dims = port.dims.iter().map(|dim| dtype::shown(py, dim)).collect::<PyResult<Vec<_>>>()?;
        Ok((port.name.clone(), port.node, port.role.to_string(), port.dtype.name(), PyTuple::new(py, dims)?))
    };
    ports.iter().map(one).collect()
}

#[pymethods]
impl Program {
    /// Name, node, role, element type and dimensions of each input.
    #[getter]
    fn inputs<'py>(&self, py: Python<'py>) -> PyResult<Vec<Described<'py>>> {
        described(py, &self.ports.inputs)
    }

    /// The names of the outputs, in order.
    #[getter]
    fn outputs(&self) -> Vec<String> {
        self.ports.output_names()
    }

    /// Bytes of each output; `None` where they depend on the run.
    #[getter]
    fn output_bytes(&self) -> Vec<Option<u64>> {
        self.ports.output_bytes(&HashMap::new())
    }

    /// The same in a run where these symbols have these sizes.
    fn output_bytes_of(&self, symbols: HashMap<String, u64>) -> Vec<Option<u64>> {
        self.ports.output_bytes(&symbols)
    }

    #[getter]
    fn device(&self) -> u16 {
        self.device
    }

    /// BLAKE3 of the graph's encoding, in hexadecimal digits.
    #[getter]
    fn hash(&self) -> String {
        self.program.hash.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A program joined with residents: what runs.
#[pyclass(frozen, module = "genie._native")]
pub(crate) struct Binding {
    pub(crate) held: Held,
    pub(crate) binding: client::Binding,
    pub(crate) ports: Arc<Ports>,
    /// What it reads is not freed before it.
    pub(crate) _uses: Vec<Py<PyAny>>,
}

#[pymethods]
impl Binding {
    /// The names of the program's outputs, in order.
    #[getter]
    fn outputs(&self) -> Vec<String> {
        self.ports.output_names()
    }
}
