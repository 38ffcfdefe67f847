//! Ops by the names that PyTorch has for them, and how each is written as a graph.
//!
//! A family of ops is a module with a table; a new op is a line in one of them.

mod elementwise;
mod image;
mod layout;
mod matrix;
mod reduce;

use axum::http::StatusCode;
use genie_graph::{DType, GraphBuilder, NodeId, Op, Shape, TensorType};

use crate::error::Failure;
use crate::kwargs::Kwargs;

/// An op as clients name it.
pub(crate) struct Def {
    /// Its name, and others for it.
    pub(crate) names: &'static [&'static str],
    /// How many tensors it takes: at the least, at the most.
    pub(crate) inputs: (usize, usize),
    /// The keyword arguments that it takes.
    pub(crate) kwargs: &'static [&'static str],
    /// Writes it.
    pub(crate) build: fn(&mut Call<'_>) -> Result<NodeId, Failure>,
}

/// As many as a graph takes.
const MANY: usize = 64;

const TABLES: [&[Def]; 5] = [elementwise::TABLE, matrix::TABLE, reduce::TABLE, layout::TABLE, image::TABLE];

fn all() -> impl Iterator<Item = &'static Def> {
    TABLES.into_iter().flatten()
}

/// The names of all ops, in order.
pub(crate) fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = all().flat_map(|def| def.names).copied().collect();
    names.sort_unstable();
    names
}

/// Writes an op that reads these nodes into a graph.
///
/// # Errors
/// 400 with the list of ops for one that there is not; 422 for arguments that it does not take.
pub(crate) fn build(
    graph: &mut GraphBuilder,
    operation: &str,
    inputs: &[NodeId],
    kwargs: &Kwargs,
) -> Result<NodeId, Failure> {
    // As PyTorch's dispatcher writes them: aten::add.Tensor, torch.relu.
    let name = operation.strip_prefix("aten::").or_else(|| operation.strip_prefix("torch.")).unwrap_or(operation);
    let name = name.split_once('.').map_or(name, |(name, _overload)| name);
    let Some(def) = all().find(|def| def.names.contains(&name)) else {
        let shown: String = operation.chars().take(64).collect();
        let detail = format!("there is no op '{}'; the list of ops is in 'operations'", shown.escape_debug());
        let more = Some(("operations", names().into()));
        return Err(Failure { status: StatusCode::BAD_REQUEST, detail, more });
    };
    let (least, most) = def.inputs;
    if !(least..=most).contains(&inputs.len()) {
        let wanted = if least == most { least.to_string() } else { format!("{least} to {most}") };
        return Err(Failure::fields(format!("'{name}' takes {wanted} tensor(s), not {}", inputs.len())));
    }
    if let Some(odd) = kwargs.0.keys().find(|key| !def.kwargs.contains(&key.as_str())) {
        let takes = if def.kwargs.is_empty() { "none".to_owned() } else { def.kwargs.join(", ") };
        return Err(Failure::fields(format!("'{name}' takes no argument '{}'; it takes: {takes}", odd.escape_debug())));
    }
    (def.build)(&mut Call { name, graph, inputs, kwargs })
}

/// One use of an op.
pub(crate) struct Call<'a> {
    name: &'a str,
    graph: &'a mut GraphBuilder,
    pub(crate) inputs: &'a [NodeId],
    pub(crate) kwargs: &'a Kwargs,
}

impl Call<'_> {
    fn failure(&self, error: &genie_graph::VerifyError) -> Failure {
        use genie_graph::VerifyError;
        match error {
            // The node's number is the door's own affair.
            VerifyError::Op { source, .. } => Failure::fields(format!("'{}' {source}", self.name)),
            VerifyError::Type { source, .. } => Failure::fields(format!("'{}': {source}", self.name)),
            other => Failure::fields(format!("'{}': {other}", self.name)),
        }
    }

    fn push(&mut self, op: Op, inputs: &[NodeId]) -> Result<NodeId, Failure> {
        self.graph.push(op, inputs).map_err(|error| self.failure(&error))
    }

    /// A node of the graph that is filled where it is used.
    fn create(&mut self, op: Op, dtype: DType, dims: &[u64]) -> Result<NodeId, Failure> {
        let ty = TensorType { dtype, shape: Shape::fixed(dims) };
        self.graph.create(op, ty).map_err(|error| self.failure(&error))
    }

    /// Input `i`; there are as many as the table says at the least.
    fn input(&self, i: usize) -> Result<NodeId, Failure> {
        let missing = || Failure::fields(format!("'{}' takes more tensors than there are", self.name));
        self.inputs.get(i).copied().ok_or_else(missing)
    }

    fn dtype(&self, node: NodeId) -> DType {
        self.graph.ty(node).dtype
    }

    /// Its dimensions: there are no symbols in the door's graphs.
    fn dims(&self, node: NodeId) -> Vec<u64> {
        let shape = &self.graph.ty(node).shape;
        shape.0.iter().map(|dim| if let genie_graph::Dim::Fixed(n) = dim { *n } else { 1 }).collect()
    }

    /// The node as elements of this type.
    fn cast(&mut self, node: NodeId, to: DType) -> Result<NodeId, Failure> {
        if self.dtype(node) == to { Ok(node) } else { self.push(Op::Cast { to }, &[node]) }
    }

    /// A dimension of a tensor of this rank, counted from either end.
    fn axis(&self, axis: i64, rank: usize) -> Result<usize, Failure> {
        let from_start = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
        let axis = from_start.and_then(|axis| usize::try_from(axis).ok()).filter(|axis| *axis < rank);
        axis.ok_or_else(|| {
            Failure::fields(format!(
                "'{}': the tensor has {rank} dimension(s), and not the one that is asked for",
                self.name
            ))
        })
    }

    fn reshape(&mut self, node: NodeId, dims: &[u64]) -> Result<NodeId, Failure> {
        let dims = dims.iter().map(|&dim| dim.into()).collect();
        self.push(Op::Reshape { dims }, &[node])
    }

    fn refuse(&self, detail: &str) -> Failure {
        Failure::fields(format!("'{}' {detail}", self.name))
    }
}

#[cfg(test)]
mod tests;
