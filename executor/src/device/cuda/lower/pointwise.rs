//! Ops that treat each element by itself, in many kinds; elements repeated, bordered, turned round, taken by index.

use genie_cuda_kernels::launch::{self, copy::Strided, pairs::Operand};
use genie_graph::{BinaryKind, CompareKind, RandomKind, UnaryKind};

use super::super::plan::V;
use super::layout::all;
use super::{Lowering, Made, axis_of, bits, contiguous, one, product};

impl Lowering<'_> {
    pub(super) fn function(&mut self, kind: UnaryKind) -> Option<()> {
        let x = self.operand(0)?;
        let rounds = matches!(kind, UnaryKind::Floor | UnaryKind::Ceil | UnaryKind::Round | UnaryKind::Trunc);
        if rounds && !self.values[x.0].dtype.is_float() {
            return self.set(Made::Value(x));
        }
        self.emit([x], move |at, y| one(launch::functions::function(kind, at.view(x), at.view(y))))
    }

    pub(super) fn combine(&mut self, kind: BinaryKind) -> Option<()> {
        let (a_dims, b_dims) = (self.input_dims(0)?, self.input_dims(1)?);
        let count = product(&self.dims(self.at)?)?;
        let (a, b) = (self.operand(0)?, self.operand(1)?);
        // The kernel takes a word in any case; only integers divide by zero.
        let word = self.fault(None, count)?;
        self.emit([a, b], move |at, y| {
            let (a, b) = (Operand { view: at.view(a), dims: &a_dims }, Operand { view: at.view(b), dims: &b_dims });
            one(launch::pairs::combine(kind, a, b, at.view(y), at.view(word).at))
        })
    }

    pub(super) fn compare(&mut self, kind: CompareKind) -> Option<()> {
        let (a_dims, b_dims) = (self.input_dims(0)?, self.input_dims(1)?);
        let (a, b) = (self.operand(0)?, self.operand(1)?);
        self.emit([a, b], move |at, y| {
            let (a, b) = (Operand { view: at.view(a), dims: &a_dims }, Operand { view: at.view(b), dims: &b_dims });
            one(launch::pairs::compare(kind, a, b, at.view(y)))
        })
    }

    pub(super) fn choose(&mut self) -> Option<()> {
        let [condition, a, b] = [self.spread(0)?, self.spread(1)?, self.spread(2)?];
        self.emit([condition, a, b], move |at, y| {
            one(launch::pairs::choose(at.view(condition), at.view(a), at.view(b), at.view(y)))
        })
    }

    /// The node's input with all elements of the result, or with one.
    fn spread(&mut self, input: usize) -> Option<V> {
        let (from, dims) = (self.input_dims(input)?, self.dims(self.at)?);
        let (x, count) = (self.operand(input)?, product(&dims)?);
        if [1, count].contains(&product(&from)?) {
            return Some(x);
        }
        let y = self.temporary(self.values[x.0].dtype, count)?;
        self.repeat(x, &from, y, dims)?;
        Some(y)
    }

    pub(super) fn broadcast(&mut self) -> Option<()> {
        let (from, dims) = (self.input_dims(0)?, self.dims(self.at)?);
        let x = self.operand(0)?;
        if product(&from)? == product(&dims)? {
            return self.set(Made::Value(x));
        }
        let y = self.result()?;
        self.repeat(x, &from, y, dims)
    }

    /// `y [dims]` is x, of dimensions `from`, repeated NumPy's way.
    fn repeat(&mut self, x: V, from: &[u64], y: V, dims: Vec<u64>) -> Option<()> {
        let (own, to, lead) = (contiguous(from), contiguous(&dims), dims.len().checked_sub(from.len())?);
        let stride = |i: usize| i.checked_sub(lead).filter(|&k| from[k] != 1).map_or(0, |k| own[k]);
        let strides: Vec<u64> = (0..dims.len()).map(stride).collect();
        self.step([x], y, move |at, y| {
            let from = Strided { view: at.view(x), start: 0, strides: &strides };
            one(launch::copy::copy(&dims, from, Strided { view: at.view(y), start: 0, strides: &to }))
        })
    }

    pub(super) fn pad(&mut self, before: &[u32], value: f64) -> Option<()> {
        let (from, dims) = (self.input_dims(0)?, self.dims(self.at)?);
        let x = self.operand(0)?;
        if from == dims {
            return self.set(Made::Value(x));
        }
        let bits = bits(self.values[x.0].dtype, value);
        let (own, strides) = (contiguous(&from), contiguous(&dims));
        let start = before.iter().zip(&strides).map(|(&b, stride)| u64::from(b) * stride).sum();
        self.emit([x], move |at, y| {
            let (x, y) = (at.view(x), at.view(y));
            let border = launch::create::fill(y, bits)?;
            let inside = Strided { view: y, start, strides: &strides };
            let copy = launch::copy::copy(&from, Strided { view: x, start: 0, strides: &own }, inside)?;
            all(Ok(border.into_iter().chain(copy).collect()))
        })
    }

    pub(super) fn flip(&mut self, axes: &[i32]) -> Option<()> {
        let dims = self.dims(self.at)?;
        let named = |axis: usize| axes.is_empty() || axes.iter().any(|&a| axis_of(a, dims.len()) == Some(axis));
        let flipped: Vec<bool> = (0..dims.len()).map(named).collect();
        let x = self.operand(0)?;
        self.emit([x], move |at, y| one(launch::copy::flip(&dims, &flipped, at.view(x), at.view(y))))
    }

    pub(super) fn take_along(&mut self, axis: i32) -> Option<()> {
        let (dims, id_dims) = (self.input_dims(0)?, self.input_dims(1)?);
        let axis = axis_of(axis, dims.len())?;
        let (x, ids) = (self.operand(0)?, self.operand(1)?);
        let word = self.fault(Some((ids, dims[axis])), product(&id_dims)?)?;
        self.emit([x, ids], move |at, y| {
            let (x, ids) = (Operand { view: at.view(x), dims: &dims }, Operand { view: at.view(ids), dims: &id_dims });
            one(launch::take::take(axis, x, ids, at.view(y), at.view(word).at))
        })
    }

    pub(super) fn random(&mut self, kind: RandomKind) -> Option<()> {
        let key = self.operand(0)?;
        self.emit([key], move |at, y| one(launch::create::random_by(kind, at.view(key), at.view(y))))
    }
}
