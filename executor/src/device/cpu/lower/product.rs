//! Products with matrices.

use genie_graph::{DType, LinearLayout, NodeId, Op, QuantFormat};

use super::super::linear::Linear;
use super::super::plan::V;
use super::{Lowering, product, rows_and_width};

impl Lowering<'_> {
    pub(super) fn matmul(&mut self) -> Option<()> {
        let (a, b) = (self.input_dims(0)?, self.input_dims(1)?);
        let [lead @ .., rows, k] = &a[..] else { return None };
        let n = *b.last()?;
        let w = self.operand(1)?;
        let (count, rows, w_step) = if b.len() == 2 {
            (1, product(lead)?.checked_mul(*rows)?, 0)
        } else {
            (product(lead)?, *rows, k.checked_mul(n)?)
        };
        let w_type = self.values[w.0].dtype;
        let (k, layout) = (*k, LinearLayout::InOut);
        let x = self.float_operand(0, Linear::activations(layout, w_type))?;
        let mut step = Linear {
            x,
            w,
            w_type,
            layout,
            packed: None,
            bias: None,
            residual: None,
            y: x,
            panel: None,
            rows,
            k,
            n,
            count,
            w_step,
        };
        step.panel = self.panel(&step)?;
        self.float_step(|y| {
            step.y = y;
            step.into()
        })
    }

    pub(super) fn linear(&mut self, layout: LinearLayout) -> Option<()> {
        let inputs = self.graph.nodes[self.at.0 as usize].inputs.len();
        let (rows, k) = rows_and_width(&self.input_dims(0)?)?;
        let n = *self.dims(self.at)?.last()?;
        let (w, w_type, packed) = self.linear_weight()?;
        let x = self.float_operand(0, Linear::activations(layout, w_type))?;
        let bias = if inputs == 3 { Some(self.f32_operand(2)?) } else { None };
        let mut step = Linear {
            x,
            w,
            w_type,
            layout,
            packed,
            bias,
            residual: None,
            y: x,
            panel: None,
            rows,
            k,
            n,
            count: 1,
            w_step: 0,
        };
        step.panel = self.panel(&step)?;
        if let Some((sum, other)) = self.fusions.residual.get(&self.at).copied() {
            step.residual = Some(self.of_node[other.0 as usize]?);
            step.y = self.temporary(DType::F32, rows.checked_mul(n)?)?;
            self.of_node[sum.0 as usize] = Some(step.y);
            self.push(step)
        } else {
            self.float_step(|y| {
                step.y = y;
                step.into()
            })
        }
    }

    /// Where the node's weight lies, the type of its numbers, and the format of their blocks where it is stored in such.
    fn linear_weight(&self) -> Option<(V, DType, Option<QuantFormat>)> {
        let &NodeId(weight) = self.graph.nodes[self.at.0 as usize].inputs.get(1)?;
        let node = &self.graph.nodes[weight as usize];
        match node.op {
            Op::Dequantize { format, to } if self.fusions.packed[weight as usize] => {
                let blocks = self.of_node[node.inputs.first()?.0 as usize]?;
                Some((blocks, to, Some(format)))
            }
            _ => {
                let w = self.operand(1)?;
                Some((w, self.values[w.0].dtype, None))
            }
        }
    }

    /// Working space for a product; `Some(None)` where it needs none.
    fn panel(&mut self, step: &Linear) -> Option<Option<V>> {
        match step.panel_bytes()?.checked_mul(self.members)? {
            0 => Some(None),
            bytes => Some(Some(self.temporary(DType::U8, bytes)?)),
        }
    }
}
