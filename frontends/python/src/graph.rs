//! `_native.Graph`: writes SRGs.

use genie_graph::{
    Annotation, DType, GraphBuilder, InputRole, Modality, NodeId, Phase, Residency, Shape, Sizes, TensorType,
    VerifiedGraph, VerifyError, decode, verify,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::errors::{bad_input, in_range};
use crate::{dtype, ops};

/// Builds a graph node by node; each is checked as it is added.
#[pyclass(module = "genie._native")]
pub(crate) struct Graph {
    builder: GraphBuilder,
    annotation: Annotation,
    nodes: u32,
}

/// A node of a graph, by its place there.
#[pyclass(frozen, module = "genie._native")]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    ty: TensorType,
}

#[pymethods]
impl Node {
    fn __index__(&self) -> u32 {
        self.id.0
    }

    #[getter]
    fn id(&self) -> u32 {
        self.id.0
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.ty.dtype.name()
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let dims = self.ty.shape.0.iter().map(|dim| dtype::shown(py, dim)).collect::<PyResult<Vec<_>>>()?;
        PyTuple::new(py, dims)
    }

    fn __repr__(&self) -> String {
        format!("<genie.Node {}: {}>", self.id, self.ty)
    }
}

/// What a caller names a node by: itself, or its number.
pub(crate) fn node(given: &Bound<'_, PyAny>) -> PyResult<NodeId> {
    match given.cast::<Node>() {
        Ok(node) => Ok(node.get().id),
        Err(_) => {
            given.extract().map(NodeId).map_err(|_| bad_input("an op reads nodes of its graph, or their numbers"))
        }
    }
}

fn refused(error: &VerifyError) -> PyErr {
    bad_input(error.to_string())
}

/// The name of an enum's value, as Python writes it: `kv_cache`, too.
fn named<T: Copy + std::fmt::Display>(what: &str, name: &str, all: &[T]) -> PyResult<T> {
    let dashed = name.replace('_', "-");
    all.iter().copied().find(|value| value.to_string() == dashed).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(ToString::to_string).collect();
        bad_input(format!("'{name}' is no {what}: write one of {}", names.join(", ")))
    })
}

const ROLES: [InputRole; 7] = [
    InputRole::Argument,
    InputRole::Weight,
    InputRole::KvCache,
    InputRole::Tokens,
    InputRole::Positions,
    InputRole::SamplingReal,
    InputRole::SamplingInt,
];
const PHASES: [Phase; 5] = [Phase::Unknown, Phase::Prefill, Phase::Decode, Phase::Vision, Phase::Fusion];
const RESIDENCIES: [Residency; 4] = [Residency::Activation, Residency::Weight, Residency::KvCache, Residency::Output];
const MODALITIES: [Modality; 4] = [Modality::None, Modality::Text, Modality::Vision, Modality::Audio];

impl Graph {
    pub(crate) fn verified(&self) -> PyResult<VerifiedGraph> {
        self.builder.clone().finish().map_err(|error| refused(&error))
    }

    fn made(&mut self, id: Result<NodeId, VerifyError>) -> PyResult<Node> {
        let id = id.map_err(|error| refused(&error))?;
        self.nodes += 1;
        Ok(Node { id, ty: self.builder.ty(id).clone() })
    }

    fn check(&self, node: NodeId) -> PyResult<NodeId> {
        if node.0 < self.nodes { Ok(node) } else { Err(bad_input(format!("the graph has no node {node}"))) }
    }
}

/// An encoded graph, checked.
pub(crate) fn verified(bytes: &[u8]) -> PyResult<VerifiedGraph> {
    let graph = decode(bytes).map_err(|error| bad_input(error.to_string()))?;
    verify(graph).map_err(|error| refused(&error))
}

#[pymethods]
impl Graph {
    #[new]
    #[pyo3(signature = (name="graph"))]
    fn new(name: &str) -> Self {
        Self { builder: GraphBuilder::new(name), annotation: Annotation::default(), nodes: 0 }
    }

    /// Adds an input.
    #[pyo3(signature = (name, dtype, dims, role="argument"))]
    fn input(&mut self, name: &str, dtype: &Bound<'_, PyAny>, dims: &Bound<'_, PyAny>, role: &str) -> PyResult<Node> {
        let ty = TensorType { dtype: dtype::dtype(dtype)?, shape: Shape(dtype::dims(dims, false)?) };
        let id = self.builder.input(name, named("role of an input", role, &ROLES)?, ty);
        self.made(id)
    }

    /// Adds an op that reads earlier nodes.
    #[pyo3(signature = (name, *inputs, **attributes))]
    fn op(
        &mut self,
        name: &str,
        inputs: &Bound<'_, PyTuple>,
        attributes: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Node> {
        let inputs = inputs.iter().map(|input| node(&input)).collect::<PyResult<Vec<_>>>()?;
        let (op, created) = ops::read(name, attributes)?;
        let id = match created {
            None => self.builder.push(op, &inputs),
            Some(ty) if inputs.is_empty() => self.builder.create(op, ty),
            Some(_) => return Err(bad_input(format!("{name} reads no nodes"))),
        };
        self.made(id)
    }

    /// Makes a node a named result.
    fn output(&mut self, name: &str, node: &Bound<'_, PyAny>) -> PyResult<()> {
        let node = self.check(self::node(node)?)?;
        self.builder.output(name, node);
        Ok(())
    }

    /// Says what the nodes that follow are for; what is left out stays as it was.
    #[pyo3(signature = (*, phase=None, residency=None, modality=None))]
    fn annotate(&mut self, phase: Option<&str>, residency: Option<&str>, modality: Option<&str>) -> PyResult<()> {
        let mut annotation = self.annotation;
        if let Some(phase) = phase {
            annotation.phase = named("phase", phase, &PHASES)?;
        }
        if let Some(residency) = residency {
            annotation.residency = named("residency", residency, &RESIDENCIES)?;
        }
        if let Some(modality) = modality {
            annotation.modality = named("modality", modality, &MODALITIES)?;
        }
        self.annotation = annotation;
        self.builder.annotate(annotation);
        Ok(())
    }

    /// The graph in its binary form, after all of it was checked.
    fn encode<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.verified()?.encode()))
    }

    /// The graph as text.
    fn dump(&self) -> PyResult<String> {
        Ok(self.verified()?.dump())
    }

    /// What a run costs, for these sizes: floating-point operations, and bytes read and written.
    #[pyo3(signature = (*, batch=1, sequence=1, position=0))]
    fn cost(
        &self,
        #[pyo3(from_py_with = in_range)] batch: u64,
        #[pyo3(from_py_with = in_range)] sequence: u64,
        #[pyo3(from_py_with = in_range)] position: u64,
    ) -> PyResult<(u64, u64)> {
        let cost = self.verified()?.total_cost(&Sizes { batch, sequence, position });
        Ok((cost.flops, cost.bytes))
    }

    fn __len__(&self) -> usize {
        self.nodes as usize
    }
}

/// An encoded graph as text.
#[pyfunction]
pub(crate) fn dump(encoded: &[u8]) -> PyResult<String> {
    Ok(verified(encoded)?.dump())
}

/// The type of a creation op.
pub(crate) fn declared(dtype: DType, dims: Vec<genie_graph::Dim>) -> TensorType {
    TensorType { dtype, shape: Shape(dims) }
}
