//! Norms: by themselves, with the conversion behind them, and as the beginning of products of few rows.

use genie_cuda_kernels::launch;
use genie_cuda_kernels::launch::epilogue::Prologue;
use genie_cuda_kernels::launch::matvec::MOST_ROWS;
use genie_graph::{DType, NodeId, Op};

use super::super::plan::{At, V};
use super::{Lowering, one, rows_and_width};

/// A norm that a product does itself.
#[derive(Clone, Copy)]
pub(super) enum Norm {
    None,
    Rms { eps: f32, weight: V },
    Layer { eps: f32, weight: V, bias: V },
}

impl Norm {
    pub(super) fn at(self, at: &At<'_>) -> Prologue {
        match self {
            Self::None => Prologue::None,
            Self::Rms { eps, weight } => Prologue::RmsNorm { eps, weight: at.view(weight) },
            Self::Layer { eps, weight, bias } => {
                Prologue::LayerNorm { eps, weight: at.view(weight), bias: at.view(bias) }
            }
        }
    }

    pub(super) fn reads(self) -> impl Iterator<Item = V> {
        let [weight, bias] = match self {
            Self::None => [None, None],
            Self::Rms { weight, .. } => [Some(weight), None],
            Self::Layer { weight, bias, .. } => [Some(weight), Some(bias)],
        };
        weight.into_iter().chain(bias)
    }
}

/// The rows that a product of few takes.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) x: V,
    pub(super) norm: Norm,
    /// What the normalised elements are rounded to.
    pub(super) rounded: DType,
}

impl Lowering<'_> {
    /// A norm, or the conversion behind one, which gives both.
    pub(super) fn norm(&mut self) -> Option<()> {
        let graph = self.graph;
        let converted = self.fusions.reader(self.at).is_some_and(|reader| self.norm_of(reader) == Some(self.at));
        if converted || self.is_taken_along(self.at) {
            return Some(());
        }
        let node = &graph.nodes[self.norm_of(self.at)?.0 as usize];
        let (Op::RmsNorm { eps } | Op::LayerNorm { eps }) = node.op else { return None };
        let (rows, width) = rows_and_width(&self.dims(self.at)?)?;
        let (x, weight) = (self.value_of(*node.inputs.first()?)?, self.value_of(*node.inputs.get(1)?)?);
        let bias = match node.inputs.get(2) {
            Some(&bias) => Some(self.value_of(bias)?),
            None => None,
        };
        let reads = [x, weight].into_iter().chain(bias);
        self.emit(reads, move |at, y| {
            let weight = at.view(weight);
            let norm = match bias {
                None => launch::norm::Norm::Rms { weight },
                Some(bias) => launch::norm::Norm::Layer { weight, bias: at.view(bias) },
            };
            one(launch::norm::norm(norm, rows, width, eps, at.view(x), None, at.view(y)))
        })
    }

    /// What a product of few rows reads: its input, or that of the norm before it.
    pub(super) fn normed(&mut self, id: NodeId) -> Option<Rows> {
        let graph = self.graph;
        let rounded = graph.nodes[id.0 as usize].ty.dtype;
        let normed = self.rows_of(id);
        if self.of_node[id.0 as usize].is_some() || !self.is_taken_along(normed) {
            return Some(Rows { x: self.value_of(id)?, norm: Norm::None, rounded });
        }
        let node = &graph.nodes[self.norm_of(normed)?.0 as usize];
        let (x, weight) = (self.value_of(*node.inputs.first()?)?, self.value_of(*node.inputs.get(1)?)?);
        let norm = match node.op {
            Op::RmsNorm { eps } => Norm::Rms { eps, weight },
            Op::LayerNorm { eps } => Norm::Layer { eps, weight, bias: self.value_of(*node.inputs.get(2)?)? },
            _ => return None,
        };
        Some(Rows { x, norm, rounded })
    }

    /// The norm that a node is, or that it alone reads and converts to another float type.
    pub(super) fn norm_of(&self, id: NodeId) -> Option<NodeId> {
        let node = &self.graph.nodes[id.0 as usize];
        let is_norm = |id: NodeId| matches!(self.op(id), Op::RmsNorm { .. } | Op::LayerNorm { .. });
        match (&node.op, &node.inputs[..]) {
            (Op::Cast { to }, &[norm]) => {
                (to.is_float() && is_norm(norm) && self.fusions.reader(norm) == Some(id)).then_some(norm)
            }
            _ => is_norm(id).then_some(id),
        }
    }

    /// The node whose rows these are: what is before a reshape that leaves them as wide as they were.
    pub(super) fn rows_of(&self, id: NodeId) -> NodeId {
        self.reshaped(id).unwrap_or(id)
    }

    /// What a node only gives other dimensions, the last of which stays.
    fn reshaped(&self, id: NodeId) -> Option<NodeId> {
        let node = &self.graph.nodes[id.0 as usize];
        let (Op::Reshape { .. }, &[before]) = (&node.op, &node.inputs[..]) else { return None };
        let width = |id: NodeId| self.dims(id)?.last().copied();
        (width(before)? == width(id)?).then_some(before)
    }

    /// Whether this is a norm, perhaps converted, that every product which reads it, maybe through a reshape, does itself.
    pub(super) fn is_taken_along(&self, id: NodeId) -> bool {
        let Some(norm) = self.norm_of(id) else { return false };
        let node = &self.graph.nodes[norm.0 as usize];
        let few = self.dims(id).and_then(|dims| rows_and_width(&dims)).is_some_and(|(rows, _)| rows <= MOST_ROWS);
        let is_taken = match (&node.op, &node.inputs[..]) {
            (Op::RmsNorm { .. }, _) => true,
            // The kernel reads both as one type.
            (Op::LayerNorm { .. }, &[_, weight, bias]) => {
                self.graph.nodes[weight.0 as usize].ty.dtype == self.graph.nodes[bias.0 as usize].ty.dtype
            }
            _ => false,
        };
        few && is_taken
            && self.fusions.all_readers(id, |reader| {
                let through = || self.fusions.all_readers(reader, |last| self.multiplies(last, reader));
                self.multiplies(reader, id) || self.reshaped(reader) == Some(id) && through()
            })
    }

    /// Whether a node is a product of these rows, and reads them as nothing else.
    fn multiplies(&self, reader: NodeId, rows: NodeId) -> bool {
        let reader = &self.graph.nodes[reader.0 as usize];
        matches!(reader.op, Op::Linear { .. })
            && reader.inputs.iter().position(|&input| input == rows) == Some(0)
            && reader.inputs.iter().filter(|&&input| input == rows).count() == 1
    }
}
