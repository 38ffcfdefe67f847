//! What windows over images and norms of channels are.

use genie_graph::PoolKind;

use super::Tensor;

/// Where windows lie: the numbers of rows, then those of columns.
pub(super) struct Windows {
    pub(super) kernel: [usize; 2],
    pub(super) stride: [u32; 2],
    pub(super) padding: [u32; 4],
    pub(super) dilation: [u32; 2],
}

impl Windows {
    /// Each element of the window at output row and column `at` that lies in an image of `[height, width]`: its place in the
    /// kernel and in the image.
    fn elements(&self, at: [usize; 2], image: [usize; 2]) -> Vec<[usize; 2]> {
        let mut inside = Vec::new();
        for (tap, i, k) in (0..self.kernel[0] * self.kernel[1]).map(|e| (e, e / self.kernel[1], e % self.kernel[1])) {
            let place = |axis: usize, element: usize| {
                let start = at[axis] * self.stride[axis] as usize + element * self.dilation[axis] as usize;
                start.checked_sub(self.padding[axis] as usize).filter(|&p| p < image[axis])
            };
            if let (Some(row), Some(column)) = (place(0, i), place(1, k)) {
                inside.push([tap, row * image[1] + column]);
            }
        }
        inside
    }
}

pub(super) fn conv2d(windows: &Windows, dims: &[usize], x: &[&Tensor]) -> Vec<f64> {
    let (image, weight) = (x[0], x[1]);
    let [channels, height, width] = image.dims[1..] else { unreachable!() };
    let (out, seen) = (dims[1], weight.dims[1]);
    let taps = windows.kernel[0] * windows.kernel[1];
    let groups = channels / seen;
    let element = |e: usize| {
        let (column, row) = (e % dims[3], e / dims[3] % dims[2]);
        let (o, n) = (e / dims[3] / dims[2] % out, e / dims[3] / dims[2] / out);
        let inside = windows.elements([row, column], [height, width]);
        let mut sum = 0.0;
        for c in 0..seen {
            let plane = (n * channels + o / (out / groups) * seen + c) * height * width;
            for &[tap, place] in &inside {
                sum += weight.data[(o * seen + c) * taps + tap] * image.data[plane + place];
            }
        }
        sum + x.get(2).map_or(0.0, |bias| bias.data[o])
    };
    (0..dims.iter().product()).map(element).collect()
}

pub(super) fn pool(kind: PoolKind, windows: &Windows, count_padding: bool, dims: &[usize], x: &Tensor) -> Vec<f64> {
    let image = [x.dims[2], x.dims[3]];
    let element = |e: usize| {
        let (column, row, plane) = (e % dims[3], e / dims[3] % dims[2], e / dims[3] / dims[2]);
        let inside = windows.elements([row, column], image);
        let window: Vec<f64> = inside.iter().map(|[_, place]| x.data[plane * image[0] * image[1] + place]).collect();
        let count = if count_padding { windows.kernel[0] * windows.kernel[1] } else { window.len() };
        match kind {
            PoolKind::Max if window.iter().any(|v| v.is_nan()) => f64::NAN,
            PoolKind::Max => window.into_iter().fold(f64::NEG_INFINITY, f64::max),
            PoolKind::Average => window.into_iter().sum::<f64>() / count as f64,
        }
    };
    (0..dims.iter().product()).map(element).collect()
}

pub(super) fn batch_norm(eps: f32, x: &[&Tensor]) -> Vec<f64> {
    let inner: usize = x[0].dims[2..].iter().product();
    let normed = |(e, &v): (usize, &f64)| {
        let c = e / inner % x[0].dims[1];
        let [weight, bias, mean, variance] = [1, 2, 3, 4].map(|i: usize| x[i].data[c]);
        (v - mean) / (variance + f64::from(eps)).sqrt() * weight + bias
    };
    x[0].data.iter().enumerate().map(normed).collect()
}
