//! Ops that move elements without changing them.

use super::super::constants::number;
use super::super::fill::Fill;
use super::super::strided::{StridedCopy, Walk, broadcast, contiguous};
use super::{Lowering, axis_of, product};

impl Lowering<'_> {
    pub(super) fn transpose(&mut self, perm: &[u32]) -> Option<()> {
        let x = self.input_dims(0)?;
        let steps = contiguous(&x);
        let perm: Vec<usize> = perm.iter().map(|&p| p as usize).collect();
        if perm.iter().filter(|&&p| x[p] != 1).is_sorted() {
            return self.set(self.operand(0)?);
        }
        let strides: Vec<usize> = perm.iter().map(|&p| steps[p]).collect();
        let dims = self.dims(self.at)?;
        self.copy(&dims, &strides, 0)
    }

    pub(super) fn slice(&mut self, axis: i32, start: i64, step: u64) -> Option<()> {
        let x = self.input_dims(0)?;
        let dims = self.dims(self.at)?;
        if x == dims {
            return self.set(self.operand(0)?);
        }
        let axis = axis_of(axis, x.len())?;
        let size = i64::try_from(x[axis]).ok()?;
        let first = usize::try_from(if start < 0 { start.checked_add(size)? } else { start }).ok()?;
        let mut strides = contiguous(&x);
        let offset = first.checked_mul(strides[axis])?;
        // A step beyond the dimension takes one element: the stride is never used.
        strides[axis] = strides[axis].saturating_mul(usize::try_from(step).ok()?);
        self.copy(&dims, &strides, offset)
    }

    pub(super) fn concat(&mut self, axis: i32) -> Option<()> {
        let inputs = self.graph.nodes[self.at.0 as usize].inputs.len();
        if inputs == 1 {
            return self.set(self.operand(0)?);
        }
        let y = self.result()?;
        let strides = contiguous(&self.dims(self.at)?);
        let axis = axis_of(axis, strides.len())?;
        let mut offset = 0;
        for i in 0..inputs {
            let dims = self.input_dims(i)?;
            let x = self.operand(i)?;
            let walk = Walk::new(&dims, [&contiguous(&dims), &strides], [0, offset]);
            self.push(StridedCopy { x, y, element_bytes: self.element_bytes(x), walk })?;
            offset += dims[axis] * strides[axis];
        }
        Some(())
    }

    /// The node's result is made of elements of its first operand that lie `strides` apart.
    pub(super) fn copy(&mut self, dims: &[usize], strides: &[usize], offset: usize) -> Option<()> {
        let (x, y) = (self.operand(0)?, self.result()?);
        let walk = Walk::new(dims, [strides, &contiguous(dims)], [offset, 0]);
        self.push(StridedCopy { x, y, element_bytes: self.element_bytes(x), walk })
    }

    pub(super) fn broadcast(&mut self) -> Option<()> {
        let (from, dims) = (self.input_dims(0)?, self.dims(self.at)?);
        if product(&from)? == product(&dims)? {
            return self.set(self.operand(0)?);
        }
        self.copy(&dims, &broadcast(&from, &dims), 0)
    }

    pub(super) fn flip(&mut self, axes: &[i32]) -> Option<()> {
        let dims = self.dims(self.at)?;
        let mut strides = contiguous(&dims);
        let mut offset = 0;
        for axis in 0..dims.len() {
            let flipped = axes.is_empty() || axes.iter().any(|&a| axis_of(a, dims.len()) == Some(axis));
            if flipped && dims[axis] > 1 {
                offset += (dims[axis] - 1) * strides[axis];
                strides[axis] = strides[axis].wrapping_neg();
            }
        }
        if offset == 0 {
            return self.set(self.operand(0)?);
        }
        self.copy(&dims, &strides, offset)
    }

    pub(super) fn pad(&mut self, before: &[u32], value: f64) -> Option<()> {
        let (from, dims) = (self.input_dims(0)?, self.dims(self.at)?);
        let x = self.operand(0)?;
        if from == dims {
            return self.set(x);
        }
        let (element_bytes, y) = (self.element_bytes(x), self.result()?);
        let bits = number(self.values[y.0].dtype, value);
        self.push(Fill { y, element_bytes, bits, count: product(&dims)? })?;
        let strides = contiguous(&dims);
        let offset = before.iter().zip(&strides).map(|(&b, s)| b as usize * s).sum();
        let walk = Walk::new(&from, [&contiguous(&from), &strides], [0, offset]);
        self.push(StridedCopy { x, y, element_bytes, walk })
    }
}
