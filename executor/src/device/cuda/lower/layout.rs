//! Ops that move elements, and ops along an axis.

use genie_cuda_kernels::launch::{self, copy::Strided, gather::Scatter, reduce::Axis};
use genie_cuda_kernels::{Launch, LaunchError};
use genie_graph::{DType, Op, ReduceKind};

use super::super::plan::{At, Step, V, Work};
use super::{Lowering, Made, around, axis_of, contiguous, one, product};

/// Launches as the work of a step.
pub(super) fn all(launches: Result<Vec<Launch>, LaunchError>) -> Result<Vec<Work>, LaunchError> {
    Ok(launches?.into_iter().map(Work::launch).collect())
}

impl Lowering<'_> {
    pub(super) fn gather(&mut self) -> Option<()> {
        let rows = self.input_dims(0)?;
        let count = product(&self.input_dims(1)?)?;
        let (&bound, row) = rows.split_first()?;
        let width = product(row)?;
        let (table, ids) = (self.operand(0)?, self.operand(1)?);
        let word = self.fault(Some((ids, bound)), count)?;
        self.emit([table, ids], move |at, y| {
            let (table, ids, y, word) = (at.view(table), at.view(ids), at.view(y), at.view(word).at);
            one(if table.dtype == y.dtype {
                launch::gather::gather(table, bound, width, ids, y, word)
            } else {
                launch::gather::embedding(table, bound, width, ids, y, word)
            })
        })
    }

    pub(super) fn scatter(&mut self) -> Option<()> {
        let rows = self.input_dims(0)?;
        let count = product(&self.input_dims(1)?)?;
        let (&bound, row) = rows.split_first()?;
        let width = product(row)?;
        let (x, ids, updates) = (self.operand(0)?, self.operand(1)?, self.operand(2)?);
        let scratch = self.temporary(DType::I32, bound)?;
        let word = self.fault(Some((ids, bound)), count)?;
        self.emit([x, ids, updates, scratch], move |at, y| {
            all(launch::gather::scatter(Scatter {
                x: at.view(x),
                bound,
                width,
                ids: at.view(ids),
                updates: at.view(updates),
                y: at.view(y),
                scratch: at.view(scratch),
                fault: at.view(word).at,
            }))
        })
    }

    pub(super) fn transpose(&mut self, perm: &[usize]) -> Option<()> {
        let x = self.input_dims(0)?;
        if perm.iter().filter(|&&p| x[p] != 1).is_sorted() {
            let x = self.operand(0)?;
            return self.set(Made::Value(x));
        }
        let steps = contiguous(&x);
        let strides: Vec<u64> = perm.iter().map(|&p| steps[p]).collect();
        let x = self.operand(0)?;
        self.copy(x, 0, strides)
    }

    pub(super) fn slice(&mut self, axis: i32, start: i64, step: u64) -> Option<()> {
        let x = self.input_dims(0)?;
        let dims = self.dims(self.at)?;
        let value = self.operand(0)?;
        if x == dims {
            return self.set(Made::Value(value));
        }
        let axis = axis_of(axis, x.len())?;
        let size = i64::try_from(x[axis]).ok()?;
        let first = u64::try_from(if start < 0 { start.checked_add(size)? } else { start }).ok()?;
        if axis + 1 == x.len() && step == 1 {
            // Who can reads the columns where they lie.
            return self.set(Made::Columns { of: value, start: first, stride: x[axis] });
        }
        let mut strides = contiguous(&x);
        let offset = first.checked_mul(strides[axis])?;
        // A step beyond the dimension takes one element: the stride is never used.
        strides[axis] = strides[axis].saturating_mul(step);
        self.copy(value, offset, strides)
    }

    /// Columns of a wider value, as a value of their own.
    pub(super) fn copy_columns(&mut self, of: V, start: u64, stride: u64) -> Option<()> {
        let dims = self.dims(self.at)?;
        let mut wide = dims;
        *wide.last_mut()? = stride;
        self.copy(of, start, contiguous(&wide))
    }

    pub(super) fn concat(&mut self, axis: i32) -> Option<()> {
        if self.inputs() == 1 {
            let x = self.operand(0)?;
            return self.set(Made::Value(x));
        }
        let whole = self.dims(self.at)?;
        let strides = contiguous(&whole);
        let axis = axis_of(axis, strides.len())?;
        let mut parts = Vec::with_capacity(self.inputs());
        let mut offset = 0;
        for i in 0..self.inputs() {
            let dims = self.input_dims(i)?;
            let x = self.operand(i)?;
            let length = dims[axis] * strides[axis];
            parts.push((x, dims, offset));
            offset += length;
        }
        let reads: Vec<V> = parts.iter().map(|part| part.0).collect();
        self.emit(reads, move |at, y| {
            let mut work = Vec::with_capacity(parts.len());
            for (x, dims, start) in &parts {
                let from = Strided { view: at.view(*x), start: 0, strides: &contiguous(dims) };
                let to = Strided { view: at.view(y), start: *start, strides: &strides };
                work.extend(launch::copy::copy(dims, from, to)?.map(Work::launch));
            }
            Ok(work)
        })
    }

    /// The node's result is made of elements of `x` that lie `strides` apart.
    fn copy(&mut self, x: V, start: u64, strides: Vec<u64>) -> Option<()> {
        let dims = self.dims(self.at)?;
        let own = contiguous(&dims);
        self.emit([x], move |at, y| {
            let from = Strided { view: at.view(x), start, strides: &strides };
            one(launch::copy::copy(&dims, from, Strided { view: at.view(y), start: 0, strides: &own }))
        })
    }

    pub(super) fn softmax(&mut self, axis: i32) -> Option<()> {
        let axis = axis_over(&self.dims(self.at)?, axis)?;
        let x = self.operand(0)?;
        let bytes = launch::softmax::softmax_scratch(self.values[x.0].dtype, axis).ok()?;
        let scratch = self.temporary(DType::U8, bytes)?;
        self.emit([x, scratch], move |at, y| {
            all(launch::softmax::softmax(at.view(x), axis, at.view(y), at.view(scratch)))
        })
    }

    pub(super) fn argmax(&mut self, axis: i32) -> Option<()> {
        let axis = axis_over(&self.input_dims(0)?, axis)?;
        let x = self.operand(0)?;
        let bytes = launch::argmax::argmax_scratch(self.values[x.0].dtype, axis).ok()?;
        let scratch = self.temporary(DType::U8, bytes)?;
        self.emit([x, scratch], move |at, y| {
            all(launch::argmax::argmax(at.view(x), axis, at.view(y), at.view(scratch)))
        })
    }

    /// Over several axes that do not lie beside each other the elements are first put in another order.
    pub(super) fn reduce(&mut self, kind: ReduceKind, axes: &[i32]) -> Option<()> {
        let dims = self.input_dims(0)?;
        let mut x = self.operand(0)?;
        let reduced: Vec<bool> = match axes {
            [] => vec![true; dims.len()],
            axes => {
                let mut reduced = vec![false; dims.len()];
                for &axis in axes {
                    reduced[axis_of(axis, dims.len())?] = true;
                }
                reduced
            }
        };
        let counts = |i: &usize| dims[*i] != 1;
        let over: Vec<usize> = (0..dims.len()).filter(|&i| reduced[i]).filter(counts).collect();
        let kept: Vec<usize> = (0..dims.len()).filter(|&i| !reduced[i]).filter(counts).collect();
        let length = over.iter().try_fold(1_u64, |p, &i| p.checked_mul(dims[i]))?;
        let together = match (over.first(), over.last()) {
            (Some(first), Some(last)) => !kept.iter().any(|i| (first..last).contains(&i)),
            _ => true,
        };
        let axis = if together {
            let first = over.first().copied().unwrap_or(dims.len());
            let outer = kept.iter().filter(|&&i| i < first).try_fold(1_u64, |p, &i| p.checked_mul(dims[i]))?;
            let inner = kept.iter().filter(|&&i| i > first).try_fold(1_u64, |p, &i| p.checked_mul(dims[i]))?;
            Axis { outer, length, inner }
        } else {
            let order: Vec<usize> = kept.iter().chain(&over).copied().collect();
            let steps = contiguous(&dims);
            let strides: Vec<u64> = order.iter().map(|&i| steps[i]).collect();
            let ordered: Vec<u64> = order.iter().map(|&i| dims[i]).collect();
            let y = self.temporary(self.values[x.0].dtype, self.values[x.0].elements)?;
            let own = contiguous(&ordered);
            let from = x;
            self.steps.push(Step::new([from, y], move |at: &At<'_>| {
                let from = Strided { view: at.view(from), start: 0, strides: &strides };
                one(launch::copy::copy(&ordered, from, Strided { view: at.view(y), start: 0, strides: &own }))
            }));
            x = y;
            Axis { outer: kept.iter().try_fold(1_u64, |p, &i| p.checked_mul(dims[i]))?, length, inner: 1 }
        };
        let bytes = launch::reduce::reduce_scratch(self.values[x.0].dtype, axis).ok()?;
        let scratch = self.temporary(DType::U8, bytes)?;
        self.emit([x, scratch], move |at, y| {
            all(launch::reduce::reduce(kind, at.view(x), axis, at.view(y), at.view(scratch)))
        })
    }

    /// Whether the node is this op: for who asks about others.
    pub(super) fn op(&self, id: genie_graph::NodeId) -> &Op {
        &self.graph.nodes[id.0 as usize].op
    }
}

fn axis_over(dims: &[u64], axis: i32) -> Option<Axis> {
    let (outer, length, inner) = around(dims, axis)?;
    Some(Axis { outer, length, inner })
}
