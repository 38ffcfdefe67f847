//! Ops on images.

use genie_cuda_kernels::launch::batch_norm::{BatchNorm, batch_norm};
use genie_cuda_kernels::launch::conv::{Conv, Tensors, conv2d};
use genie_cuda_kernels::launch::pool::{Pool, Pooling, pool};
use genie_graph::{Op, PoolKind};

use super::{Lowering, one, product};

impl Lowering<'_> {
    pub(super) fn convolution(&mut self) -> Option<()> {
        let &Op::Conv2d { stride, padding, dilation, groups } = self.op(self.at) else { return None };
        let [images, channels, height, width] = self.input_dims(0)?[..] else { return None };
        let [outputs, _, rows, columns] = self.input_dims(1)?[..] else { return None };
        let conv = Conv {
            images,
            channels,
            size: [height, width],
            outputs,
            kernel: [rows, columns],
            stride: stride.map(u64::from),
            padding: padding.map(u64::from),
            dilation: dilation.map(u64::from),
            groups: u64::from(groups),
        };
        let conv = tamed(conv)?;
        conv.output_size().ok()?;
        let (x, weight) = (self.operand(0)?, self.operand(1)?);
        let bias = if self.inputs() == 3 { Some(self.operand(2)?) } else { None };
        self.emit([x, weight].into_iter().chain(bias), move |at, y| {
            let bias = bias.map(|bias| at.view(bias));
            let tensors = Tensors { x: at.view(x), weight: at.view(weight), bias, y: at.view(y) };
            one(conv2d(&conv, tensors, None, at.sms))
        })
    }

    pub(super) fn batch_norm(&mut self, eps: f32) -> Option<()> {
        let dims = self.dims(self.at)?;
        let [images, channels, inner @ ..] = &dims[..] else { return None };
        let sizes = [*images, *channels, product(inner)?];
        let x = self.operand(0)?;
        let [weight, bias, mean, variance] = [self.operand(1)?, self.operand(2)?, self.operand(3)?, self.operand(4)?];
        self.emit([x, weight, bias, mean, variance], move |at, y| {
            let tensors = BatchNorm {
                x: at.view(x),
                weight: at.view(weight),
                bias: at.view(bias),
                mean: at.view(mean),
                variance: at.view(variance),
                y: at.view(y),
            };
            one(batch_norm(sizes, eps, &tensors, None))
        })
    }

    pub(super) fn pool(&mut self) -> Option<()> {
        let &Op::Pool { kind, kernel, stride, padding, count_padding } = self.op(self.at) else { return None };
        let [images, channels, height, width] = self.input_dims(0)?[..] else { return None };
        let sizes = Pool {
            planes: images.checked_mul(channels)?,
            size: [height, width],
            kernel: kernel.map(u64::from),
            stride: stride.map(u64::from),
            padding: padding.map(u64::from),
        };
        let pooling = match kind {
            PoolKind::Max => Pooling::Max,
            PoolKind::Average => Pooling::Average { count_padding },
        };
        let x = self.operand(0)?;
        self.emit([x], move |at, y| one(pool(pooling, &sizes, at.view(x), at.view(y))))
    }
}

/// The same convolution where steps are of any length that are never taken: beyond the image, or within a window of one element.
fn tamed(mut conv: Conv) -> Option<Conv> {
    for axis in 0..2 {
        let padded = conv.size[axis].checked_add(conv.padding[axis])?.checked_add(conv.padding[axis + 2])?;
        if conv.kernel[axis] == 1 {
            conv.dilation[axis] = 1;
        }
        conv.stride[axis] = conv.stride[axis].min(padded);
    }
    Some(conv)
}
