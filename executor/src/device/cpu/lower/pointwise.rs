//! Ops that treat each element by itself, and random numbers.

use genie_graph::{BinaryKind, CompareKind, RandomKind, UnaryKind};

use super::super::binary::Combine;
use super::super::compare::{Choose, Compare};
use super::super::random::Random;
use super::super::strided::{Walk, broadcast};
use super::super::unary::Map;
use super::{Lowering, product};

impl Lowering<'_> {
    pub(super) fn unary(&mut self, kind: UnaryKind) -> Option<()> {
        let rounds = matches!(kind, UnaryKind::Floor | UnaryKind::Ceil | UnaryKind::Round | UnaryKind::Trunc);
        let count = product(&self.dims(self.at)?)?;
        let (x, dtype) = self.number_operand(0)?;
        if rounds && !dtype.is_float() {
            return self.set(x);
        }
        self.number_step(|y| Map { kind, dtype, x, y, count }.into())
    }

    pub(super) fn combine(&mut self, kind: BinaryKind) -> Option<()> {
        let dims = self.dims(self.at)?;
        let walk = self.pairs(&dims)?;
        let (per_row, node) = (self.per_row(self.at, product(&dims)?), self.at);
        if kind == BinaryKind::Nextafter {
            // What comes next depends on the type: no way leads through f32.
            let (a, b) = (self.operand(0)?, self.operand(1)?);
            let (dtype, y) = (self.values[a.0].dtype, self.result()?);
            return self.push(Combine { kind, dtype, a, b, y, walk, per_row, node });
        }
        let ((a, dtype), (b, _)) = (self.number_operand(0)?, self.number_operand(1)?);
        self.number_step(|y| Combine { kind, dtype, a, b, y, walk, per_row, node }.into())
    }

    pub(super) fn compare(&mut self, kind: CompareKind) -> Option<()> {
        let walk = self.pairs(&self.dims(self.at)?)?;
        let ((a, dtype), (b, _)) = (self.number_operand(0)?, self.number_operand(1)?);
        let y = self.result()?;
        self.push(Compare { kind, dtype, a, b, y, walk })
    }

    pub(super) fn choose(&mut self) -> Option<()> {
        let dims = self.dims(self.at)?;
        let read = [0, 1, 2].map(|i| self.input_dims(i).map(|from| broadcast(&from, &dims)));
        let [Some(condition), Some(a), Some(b)] = read else { return None };
        let walk = Walk::new(&dims, [&condition, &a, &b], [0; 3]);
        let (condition, a, b) = (self.operand(0)?, self.operand(1)?, self.operand(2)?);
        let (element_bytes, y) = (self.element_bytes(a), self.result()?);
        self.push(Choose { condition, a, b, y, element_bytes, walk })
    }

    pub(super) fn random(&mut self, kind: RandomKind) -> Option<()> {
        let (key, count) = (self.operand(0)?, product(&self.dims(self.at)?)?);
        self.number_step(|y| Random { kind, key, y, count }.into())
    }

    /// A walk over two operands that broadcast to `dims`.
    pub(super) fn pairs(&self, dims: &[usize]) -> Option<Walk<2>> {
        let (a, b) = (self.input_dims(0)?, self.input_dims(1)?);
        Some(Walk::new(dims, [&broadcast(&a, dims), &broadcast(&b, dims)], [0, 0]))
    }
}
