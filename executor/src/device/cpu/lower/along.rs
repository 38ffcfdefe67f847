//! Ops along an axis.

use genie_graph::{ArgReduceKind, CumulativeKind, ScatterKind};

use super::super::along::{Ids, ScatterAlong, TakeAlong};
use super::super::plan::V;
use super::super::scan::{Extreme, Rows, Scan};
use super::super::sort::Order;
use super::super::strided::{StridedCopy, Walk, contiguous};
use super::{DType, Lowering, around, axis_of, product};

impl Lowering<'_> {
    pub(super) fn cumulative(&mut self, kind: CumulativeKind, axis: i32) -> Option<()> {
        let rows = rows(&self.dims(self.at)?, axis)?;
        let (x, dtype) = self.number_operand(0)?;
        self.number_step(|y| Scan { kind, dtype, x, y, rows }.into())
    }

    pub(super) fn arg_reduce(&mut self, kind: ArgReduceKind, axis: i32) -> Option<()> {
        let rows = rows(&self.input_dims(0)?, axis)?;
        let (x, dtype) = self.number_operand(0)?;
        let y = self.result()?;
        self.push(Extreme { kind, dtype, x, y, rows })
    }

    pub(super) fn argsort(&mut self, axis: i32, descending: bool) -> Option<()> {
        let (outer, length, inner) = around(&self.dims(self.at)?, axis)?;
        let (x, dtype) = self.number_operand(0)?;
        let y = self.result()?;
        let rows = outer.checked_mul(inner)?;
        if inner == 1 {
            return self.push(Order { dtype, x, y, rows, length, descending });
        }
        // Rows are sorted where they lie in one piece.
        let count = rows.checked_mul(length)?;
        let (gathered, order) = (self.temporary(dtype, count)?, self.temporary(DType::I64, count)?);
        self.swap(x, gathered, [outer, length, inner])?;
        self.push(Order { dtype, x: gathered, y: order, rows, length, descending })?;
        self.swap(order, y, [outer, inner, length])
    }

    /// `y [a, c, b]` of `x [a, b, c]`.
    fn swap(&mut self, x: V, y: V, [a, b, c]: [usize; 3]) -> Option<()> {
        let to = [a, c, b];
        let walk = Walk::new(&to, [&[b * c, 1, c], &contiguous(&to)], [0, 0]);
        self.push(StridedCopy { x, y, element_bytes: self.element_bytes(x), walk })
    }

    pub(super) fn take_along(&mut self, axis: i32) -> Option<()> {
        let from = self.input_dims(0)?;
        let axis = axis_of(axis, from.len())?;
        let mut strides = contiguous(&from);
        let ids = self.ids(from[axis], strides[axis])?;
        strides[axis] = 0;
        let walk = Walk::new(&self.dims(self.at)?, [&strides], [0]);
        let x = self.operand(0)?;
        let (element_bytes, y) = (self.element_bytes(x), self.result()?);
        self.push(TakeAlong { x, ids, y, element_bytes, walk })
    }

    pub(super) fn scatter_along(&mut self, axis: i32, kind: ScatterKind) -> Option<()> {
        let (dims, id_dims) = (self.dims(self.at)?, self.input_dims(1)?);
        let axis = axis_of(axis, dims.len())?;
        let (strides, id_strides) = (contiguous(&dims), contiguous(&id_dims));
        let ids = self.ids(dims[axis], strides[axis])?;
        let others = |of: &[usize]| (0..of.len()).filter(|&i| i != axis).map(|i| of[i]).collect::<Vec<_>>();
        let walk = Walk::new(&others(&id_dims), [&others(&id_strides), &others(&strides)], [0, 0]);
        // What replaces needs no arithmetic.
        let (x, updates) = match kind {
            ScatterKind::Set => (self.operand(0)?, self.operand(2)?),
            _ => (self.number_operand(0)?.0, self.number_operand(2)?.0),
        };
        let (dtype, count) = (self.values[x.0].dtype, product(&dims)?);
        let is_result = dtype == self.graph.nodes[self.at.0 as usize].ty.dtype;
        let y = if is_result { self.result()? } else { self.temporary(dtype, count)? };
        let whole = Walk::new(&[count], [&[1], &[1]], [0, 0]);
        self.push(StridedCopy { x, y, element_bytes: self.element_bytes(x), walk: whole })?;
        let (length, ids_stride) = (id_dims[axis], id_strides[axis]);
        self.push(ScatterAlong { kind, dtype, ids, updates, y, walk, length, ids_stride })?;
        if is_result {
            return Some(());
        }
        let result = self.result()?;
        self.convert(y, result)
    }

    /// The node's second input as ids along an axis of the first.
    fn ids(&self, bound: usize, stride: usize) -> Option<Ids> {
        let (ids, node) = (self.operand(1)?, &self.graph.nodes[self.at.0 as usize]);
        let per_row = self.per_row(*node.inputs.get(1)?, product(&self.input_dims(1)?)?);
        let wide = self.values[ids.0].dtype == DType::I64;
        Some(Ids { ids, wide, bound, stride, per_row, node: self.at, op: node.op.name() })
    }
}

fn rows(dims: &[usize], axis: i32) -> Option<Rows> {
    let (outer, length, inner) = around(dims, axis)?;
    Some(Rows { outer, length, inner })
}
