//! What ops are written with.

use genie_graph::{DType, Dim, GraphBuilder, NodeId, Op, Shape, TensorType, VerifyError};

use crate::error::Failure;
use crate::kwargs::{Kwargs, Number};

/// One use of an op.
pub(crate) struct Call<'a> {
    pub(super) name: &'a str,
    /// It was named as PyTorch's own operator.
    pub(super) native: bool,
    pub(super) graph: &'a mut GraphBuilder,
    pub(super) inputs: &'a [NodeId],
    pub(super) kwargs: &'a Kwargs,
}

/// A tensor, and the dimension of it that an op goes along.
pub(super) struct Along {
    pub(super) x: NodeId,
    pub(super) axis: i32,
    /// It had no dimensions: PyTorch takes 0 and -1 then, too.
    pub(super) bare: bool,
}

impl Call<'_> {
    fn failure(&self, error: &VerifyError) -> Failure {
        match error {
            // The node's number is the door's own affair.
            VerifyError::Op { source, .. } => Failure::fields(format!("'{}' {source}", self.name)),
            VerifyError::Type { source, .. } => Failure::fields(format!("'{}': {source}", self.name)),
            other => Failure::fields(format!("'{}': {other}", self.name)),
        }
    }

    pub(super) fn refuse(&self, detail: &str) -> Failure {
        Failure::fields(format!("'{}' {detail}", self.name))
    }

    pub(super) fn push(&mut self, op: Op, inputs: &[NodeId]) -> Result<NodeId, Failure> {
        self.graph.push(op, inputs).map_err(|error| self.failure(&error))
    }

    /// A node of the graph that is filled where it is used.
    pub(super) fn create(&mut self, op: Op, dtype: DType, dims: &[u64]) -> Result<NodeId, Failure> {
        let ty = TensorType { dtype, shape: Shape::fixed(dims) };
        self.graph.create(op, ty).map_err(|error| self.failure(&error))
    }

    /// A number as an element of this type, without dimensions.
    pub(super) fn constant(&mut self, number: Number, dtype: DType) -> Result<NodeId, Failure> {
        self.filled(number, dtype, &[])
    }

    /// Elements of a number.
    pub(super) fn filled(&mut self, number: Number, dtype: DType, dims: &[u64]) -> Result<NodeId, Failure> {
        let value = match number {
            Number::Bool(value) => f64::from(u8::from(value)),
            Number::Float(value) => value,
            Number::Int(value) if dtype == DType::I64 && (value as f64) as i128 != i128::from(value) => {
                // Only a part of it fits a float: it is put together from two that do.
                let [high, low] = [value >> 32, value & 0xffff_ffff].map(|part| Op::Full { value: part as f64 });
                let high = self.create(high, dtype, &[])?;
                let shift = self.create(Op::Full { value: 4_294_967_296.0 }, dtype, &[])?;
                let high = self.push(Op::Mul, &[high, shift])?;
                let low = self.create(low, dtype, dims)?;
                return self.push(Op::Add, &[high, low]);
            }
            Number::Int(value) => value as f64,
        };
        let value = if dtype == DType::Bool { f64::from(u8::from(value != 0.0)) } else { value };
        self.create(Op::Full { value }, dtype, dims)
    }

    /// Input `i`; there are as many as the table says at the least.
    pub(super) fn input(&self, i: usize) -> Result<NodeId, Failure> {
        let missing = || Failure::fields(format!("'{}' takes more tensors than there are", self.name));
        self.inputs.get(i).copied().ok_or_else(missing)
    }

    /// The first input, as elements of the type that `dtype` names; else of the one that sums have, if it is `widened`: PyTorch adds
    /// and multiplies integers as i64.
    pub(super) fn input_as(&mut self, widened: bool) -> Result<NodeId, Failure> {
        let x = self.input(0)?;
        match self.kwargs.dtype("dtype")? {
            Some(dtype) => self.cast(x, dtype),
            None if widened && !self.dtype(x).is_float() => self.cast(x, DType::I64),
            None => Ok(x),
        }
    }

    pub(super) fn dtype(&self, node: NodeId) -> DType {
        self.graph.ty(node).dtype
    }

    /// Its dimensions: there are no symbols in the door's graphs.
    pub(super) fn dims(&self, node: NodeId) -> Vec<u64> {
        let shape = &self.graph.ty(node).shape;
        shape.0.iter().map(|dim| if let Dim::Fixed(n) = dim { *n } else { 1 }).collect()
    }

    /// The node as elements of this type.
    pub(super) fn cast(&mut self, node: NodeId, to: DType) -> Result<NodeId, Failure> {
        if self.dtype(node) == to { Ok(node) } else { self.push(Op::Cast { to }, &[node]) }
    }

    /// The node as floats: PyTorch makes f32 of integers.
    pub(super) fn float(&mut self, node: NodeId) -> Result<NodeId, Failure> {
        if self.dtype(node).is_float() { Ok(node) } else { self.cast(node, DType::F32) }
    }

    /// What it is, as a result of its own.
    pub(super) fn same(&mut self, node: NodeId) -> Result<NodeId, Failure> {
        let to = self.dtype(node);
        self.push(Op::Cast { to }, &[node])
    }

    /// A dimension of a tensor of this rank, counted from either end. Without any it is the one that there would be.
    pub(super) fn axis(&self, axis: i64, rank: usize) -> Result<usize, Failure> {
        let ranks = rank.max(1);
        let from_start = if axis < 0 { axis.checked_add(ranks as i64) } else { Some(axis) };
        let axis = from_start.and_then(|axis| usize::try_from(axis).ok()).filter(|axis| *axis < ranks);
        axis.ok_or_else(|| {
            let detail = format!("the tensor has {rank} dimension(s), and not the one that is asked for");
            Failure::fields(format!("'{}': {detail}", self.name))
        })
    }

    /// `x` with a dimension to go along.
    pub(super) fn along(&mut self, x: NodeId, axis: i64) -> Result<Along, Failure> {
        let rank = self.dims(x).len();
        // A rank is at most 8.
        let axis = self.axis(axis, rank)? as i32;
        let bare = rank == 0;
        let x = if bare { self.reshape(x, &[1])? } else { x };
        Ok(Along { x, axis, bare })
    }

    /// An op along a dimension, which keeps the shape.
    pub(super) fn keep_along(
        &mut self,
        along: &Along,
        op: impl FnOnce(i32) -> Op,
        more: &[NodeId],
    ) -> Result<NodeId, Failure> {
        let y = self.push(op(along.axis), &[&[along.x], more].concat())?;
        if along.bare { self.reshape(y, &[]) } else { Ok(y) }
    }

    pub(super) fn reshape(&mut self, node: NodeId, dims: &[u64]) -> Result<NodeId, Failure> {
        let dims = dims.iter().map(|&dim| dim.into()).collect();
        self.push(Op::Reshape { dims }, &[node])
    }

    /// The node repeated to these dimensions.
    pub(super) fn broadcast(&mut self, node: NodeId, dims: &[u64]) -> Result<NodeId, Failure> {
        if self.dims(node) == dims {
            return Ok(node);
        }
        self.push(Op::Broadcast { dims: dims.iter().map(|&dim| dim.into()).collect() }, &[node])
    }

    /// The dimensions that a keyword argument says: a size.
    pub(super) fn size(&self, key: &str) -> Result<Option<Vec<u64>>, Failure> {
        let Some(size) = self.kwargs.ints(key)? else { return Ok(None) };
        let negative = |_| self.refuse(&format!("takes no negative dimension in '{key}'"));
        size.into_iter().map(|dim| u64::try_from(dim).map_err(negative)).collect::<Result<_, _>>().map(Some)
    }
}

/// The dimensions that two broadcast to, as NumPy has it.
pub(super) fn broadcast(a: &[u64], b: &[u64]) -> Option<Vec<u64>> {
    let rank = a.len().max(b.len());
    let dim = |dims: &[u64], i: usize| match (i + dims.len()).checked_sub(rank) {
        Some(place) => dims.get(place).copied(),
        None => Some(1),
    };
    (0..rank)
        .map(|i| match (dim(a, i)?, dim(b, i)?) {
            (a, b) if a == b || b == 1 => Some(a),
            (1, b) => Some(b),
            _ => None,
        })
        .collect()
}
