//! Windows over images, and norms of channels.

use genie_graph::PoolKind;

use super::super::conv::Conv2d;
use super::super::norm::BatchNorm;
use super::super::pool::Pool;
use super::super::windows::Windows;
use super::{DType, Lowering, product};

impl Lowering<'_> {
    pub(super) fn conv2d(
        &mut self,
        stride: [u32; 2],
        padding: [u32; 4],
        dilation: [u32; 2],
        groups: u32,
    ) -> Option<()> {
        let [images, channels, height, width] = self.input_dims(0)?[..] else { return None };
        let [out, seen, rows, columns] = self.input_dims(1)?[..] else { return None };
        let [_, _, down, across] = self.dims(self.at)?[..] else { return None };
        let windows = Windows {
            image: [height, width],
            kernel: [rows, columns],
            stride: pair(stride)?,
            before: pair([padding[0], padding[1]])?,
            dilation: pair(dilation)?,
            out: [down, across],
        };
        let groups = channels.checked_div(seen).filter(|&g| usize::try_from(groups) == Ok(g))?;
        let made = out / groups;
        let (x, weight) = (self.f32_operand(0)?, self.f32_operand(1)?);
        let inputs = self.graph.nodes[self.at.0 as usize].inputs.len();
        let bias = if inputs == 3 { Some(self.f32_operand(2)?) } else { None };
        let mut step = Conv2d { x, weight, bias, y: x, panel: None, windows, images, groups, seen, made };
        step.panel = match step.panel_bytes().checked_mul(self.members)? {
            0 => None,
            bytes => Some(self.temporary(DType::U8, bytes)?),
        };
        self.float_step(|y| {
            step.y = y;
            step.into()
        })
    }

    pub(super) fn pool(
        &mut self,
        kind: PoolKind,
        kernel: [u32; 2],
        stride: [u32; 2],
        padding: [u32; 4],
        count_padding: bool,
    ) -> Option<()> {
        let [images, channels, height, width] = self.input_dims(0)?[..] else { return None };
        let [_, _, down, across] = self.dims(self.at)?[..] else { return None };
        let windows = Windows {
            image: [height, width],
            kernel: pair(kernel)?,
            stride: pair(stride)?,
            before: pair([padding[0], padding[1]])?,
            dilation: [1, 1],
            out: [down, across],
        };
        let (x, planes) = (self.f32_operand(0)?, images.checked_mul(channels)?);
        self.float_step(|y| Pool { kind, windows, count_padding, x, y, planes }.into())
    }

    pub(super) fn batch_norm(&mut self, eps: f32) -> Option<()> {
        let dims = self.input_dims(0)?;
        let [images, channels, inner @ ..] = &dims[..] else { return None };
        let (images, channels, inner) = (*images, *channels, product(inner)?);
        let x = self.f32_operand(0)?;
        let (weight, bias) = (self.f32_operand(1)?, self.f32_operand(2)?);
        let (mean, variance) = (self.f32_operand(3)?, self.f32_operand(4)?);
        self.float_step(|y| BatchNorm { x, weight, bias, mean, variance, y, images, channels, inner, eps }.into())
    }
}

fn pair(values: [u32; 2]) -> Option<[usize; 2]> {
    Some([usize::try_from(values[0]).ok()?, usize::try_from(values[1]).ok()?])
}
