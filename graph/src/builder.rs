//! What frontends write graphs with.

use crate::graph::{Graph, Node, NodeId, Output};
use crate::infer::{InferError, infer};
use crate::op::{InputRole, Op};
use crate::types::{Annotation, Residency, TensorType};
use crate::verify::{VerifiedGraph, VerifyError, check_declared, verify};

/// Builds a graph node by node; each is checked and its type inferred as it is pushed.
///
/// ```
/// use genie_graph::{DType, GraphBuilder, InputRole, Op, Symbol, TensorType};
/// # fn main() -> Result<(), genie_graph::VerifyError> {
/// let mut g = GraphBuilder::new("square");
/// let x = g.input("x", InputRole::Argument, TensorType::new(DType::F32, [Symbol::Batch.into(), 3.into()]))?;
/// let y = g.push(Op::Mul, &[x, x])?;
/// g.output("y", y);
/// let graph = g.finish()?;
/// assert_eq!(graph.inputs()[0].name, "x");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct GraphBuilder {
    graph: Graph,
    annotation: Annotation,
}

impl GraphBuilder {
    /// An empty graph of this name.
    pub fn new(name: &str) -> Self {
        let graph = Graph { name: name.to_owned(), nodes: Vec::new(), outputs: Vec::new() };
        Self { graph, annotation: Annotation::default() }
    }

    /// Sets the annotation of the nodes that follow. Inputs take their residency from their role instead.
    pub fn annotate(&mut self, annotation: Annotation) -> &mut Self {
        self.annotation = annotation;
        self
    }

    /// Appends an op that reads earlier nodes.
    ///
    /// # Errors
    /// An input that is not there, or inputs or attributes that the op does not take. The graph is as it was.
    pub fn push(&mut self, op: Op, inputs: &[NodeId]) -> Result<NodeId, VerifyError> {
        let (node, name) = (self.next(), op.name());
        let mut types = Vec::with_capacity(inputs.len());
        for &input in inputs {
            let read = self.graph.nodes.get(input.0 as usize);
            types.push(&read.ok_or(VerifyError::UnknownInput { node, op: name, input })?.ty);
        }
        let ty = infer(&op, &types).map_err(|source| VerifyError::Op { node, op: name, source })?;
        Ok(self.append(op, inputs, ty, self.annotation))
    }

    /// Appends an input. Its residency follows from its role.
    ///
    /// # Errors
    /// A name that is empty or too long, or a type that the role does not have. (That names are unique is checked by
    /// [`GraphBuilder::finish`].)
    pub fn input(&mut self, name: &str, role: InputRole, ty: TensorType) -> Result<NodeId, VerifyError> {
        let residency = match role {
            InputRole::Weight => Residency::Weight,
            InputRole::KvCache => Residency::KvCache,
            _ => Residency::Activation,
        };
        let op = Op::Input { name: name.to_owned(), role };
        check_declared(self.next(), &op, &ty)?;
        Ok(self.append(op, &[], ty, Annotation { residency, ..self.annotation }))
    }

    /// Appends a creation op (`Zeros` to `Randn`) that makes a tensor of this type.
    ///
    /// # Errors
    /// Another op, or a type that the op cannot make.
    pub fn create(&mut self, op: Op, ty: TensorType) -> Result<NodeId, VerifyError> {
        let node = self.next();
        if !op.is_declared() {
            let source =
                InferError::Attribute { name: "type", reason: "is inferred for this op: use `push`".to_owned() };
            return Err(VerifyError::Op { node, op: op.name(), source });
        }
        check_declared(node, &op, &ty)?;
        Ok(self.append(op, &[], ty, self.annotation))
    }

    /// The type of a node.
    ///
    /// # Panics
    /// If `node` did not come from this builder.
    pub fn ty(&self, node: NodeId) -> &TensorType {
        &self.graph.nodes[node.0 as usize].ty
    }

    /// Makes a node a named result of the graph.
    pub fn output(&mut self, name: &str, node: NodeId) {
        self.graph.outputs.push(Output { name: name.to_owned(), node });
    }

    /// Verifies the whole.
    ///
    /// # Errors
    /// As [`verify`].
    pub fn finish(self) -> Result<VerifiedGraph, VerifyError> {
        verify(self.graph)
    }

    /// The id of the node that comes next. (A graph too large for ids is refused by `finish` long before they repeat.)
    fn next(&self) -> NodeId {
        NodeId(self.graph.nodes.len() as u32)
    }

    fn append(&mut self, op: Op, inputs: &[NodeId], ty: TensorType, annotation: Annotation) -> NodeId {
        let id = self.next();
        self.graph.nodes.push(Node { op, inputs: inputs.to_vec(), ty, annotation });
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DType, Phase};

    #[test]
    fn mistakes_are_seen_where_they_are_made() {
        let mut g = GraphBuilder::new("g");
        let f32s = |n: u64| TensorType::new(DType::F32, [n.into()]);
        let a = g.create(Op::Ones, f32s(3)).unwrap();
        let b = g.input("b", InputRole::Weight, f32s(4)).unwrap();
        assert!(matches!(g.push(Op::Add, &[a, b]), Err(VerifyError::Op { node: NodeId(2), op: "add", .. })));
        assert!(matches!(
            g.push(Op::Neg, &[NodeId(9)]),
            Err(VerifyError::UnknownInput { node: NodeId(2), op: "neg", input: NodeId(9) })
        ));
        assert!(g.push(Op::Zeros, &[]).is_err());
        assert!(g.create(Op::Neg, f32s(3)).is_err());
        assert!(g.create(Op::Zeros, f32s(0)).is_err());
        assert!(g.input("", InputRole::Argument, f32s(1)).is_err());
        let c = g.push(Op::Neg, &[a]).unwrap();
        assert_eq!((c, g.ty(c)), (NodeId(2), &f32s(3)));
    }

    #[test]
    fn annotations_follow_the_setting_and_the_role() {
        let mut g = GraphBuilder::new("g");
        let ty = TensorType::new(DType::F32, [3.into()]);
        g.annotate(Annotation { phase: Phase::Vision, ..Annotation::default() });
        let w = g.input("w", InputRole::Weight, ty.clone()).unwrap();
        let x = g.input("x", InputRole::Argument, ty).unwrap();
        let y = g.push(Op::Add, &[x, w]).unwrap();
        g.output("y", y);
        let g = g.finish().unwrap();
        let residencies: Vec<_> = g.nodes.iter().map(|n| n.annotation.residency).collect();
        assert_eq!(residencies, [Residency::Weight, Residency::Activation, Residency::Activation]);
        assert!(g.nodes.iter().all(|n| n.annotation.phase == Phase::Vision));
        assert_eq!(g.phase(), Phase::Vision);
    }
}
