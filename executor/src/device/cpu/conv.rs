//! Convolutions of images.
//!
//! Each image's group of channels is a product: the weight's rows with a matrix that has a column for each window and a row for
//! each element of one. Its panels are packed from the image as they are needed; it is never all there. Where too few rows would
//! use a panel, channels by themselves go another way (`depthwise`), and rows of the image are added up directly for all else. Every output is summed over channels and then over the
//! window in order, whatever the number of images and threads.

use super::axpy::Matrix;
use super::depthwise::{Band, Bands};
use super::lanes::{Kernel, Lanes};
use super::panels::{PANEL, Pack, Panels, WIDEST, width};
use super::plan::V;
use super::step::Context;
use super::team::Share;
use super::windows::Windows;

/// With fewer output channels a group, packing a panel costs more than it saves.
const FEWEST_PACKED: usize = 4;

/// Output channels that a member takes at least, where a product is divided between members by these too.
const CHANNELS: usize = 16;

/// x f32 `[images, groups * seen, H, W]`, weight f32 `[groups * made, seen, kh, kw]` -> y f32 `[images, groups * made, H', W']`.
pub(super) struct Conv2d {
    pub(super) x: V,
    pub(super) weight: V,
    /// f32 `[groups * made]`.
    pub(super) bias: Option<V>,
    pub(super) y: V,
    /// [`Conv2d::panel_bytes`] for each member.
    pub(super) panel: Option<V>,
    pub(super) windows: Windows,
    pub(super) images: usize,
    pub(super) groups: usize,
    /// Input channels of a group.
    pub(super) seen: usize,
    /// Output channels of a group.
    pub(super) made: usize,
}

impl Conv2d {
    /// Bytes of working space that a member needs.
    pub(super) fn panel_bytes(&self) -> usize {
        if self.made < FEWEST_PACKED && self.bands().is_none() { 0 } else { PANEL * size_of::<f32>() }
    }

    /// How channels are cut, where each is taken by itself.
    fn bands(&self) -> Option<Bands> {
        if self.made < FEWEST_PACKED && self.seen == 1 { Bands::of(&self.windows) } else { None }
    }

    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        [Some(self.x), Some(self.weight), self.bias].into_iter().flatten().for_each(read);
        [Some(self.y), self.panel].into_iter().flatten().for_each(write);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's.
        unsafe {
            match (self.panel, self.bands()) {
                (Some(panel), Some(bands)) => self.channels(context, share, panel, bands),
                (Some(panel), None) => self.products(context, share, panel),
                (None, _) => self.rows(context, share),
            }
        }
    }

    /// Members share the windows of all images and groups and, where these are few, the output channels as well.
    unsafe fn products(&self, context: &Context<'_>, share: Share, panel: V) {
        let [height, width] = self.windows.image;
        let (columns, k) = (self.windows.out[0] * self.windows.out[1], self.seen * self.windows.taps());
        let blocks = columns.div_ceil(WIDEST);
        let matrices = self.images * self.groups;
        let wanted = (4 * share.count).div_ceil(matrices.saturating_mul(blocks));
        let parts = wanted.min(self.made.div_ceil(CHANNELS));
        let channels = self.made.div_ceil(parts);
        for at in share.split(matrices * blocks * parts, 1) {
            let (matrix, block, part) = (at / parts / blocks, at / parts % blocks, at % parts);
            let first = (part * channels).min(self.made);
            let (start, group) = (block * WIDEST, matrix % self.groups);
            // Of the output's channels, those of all images counted through.
            let (out, own) = (matrix * self.made + first, group * self.made + first);
            // SAFETY: the values have the sizes that the planner took from the graph, and each member a panel.
            unsafe {
                context.isa.run(Product {
                    windows: &self.windows,
                    image: context.get::<f32>(self.x).add(matrix * self.seen * height * width),
                    bias: self.bias.map_or(std::ptr::null(), |bias| context.get::<f32>(bias).add(own)),
                    panels: Panels {
                        x: context.get::<f32>(self.weight).add(own * k),
                        y: context.get_mut::<f32>(self.y).add(out * columns),
                        rows: channels.min(self.made - first),
                        k,
                        n: columns,
                        panel: context.get_mut::<f32>(panel).add(share.index * PANEL),
                    },
                    start,
                    end: (start + WIDEST).min(columns),
                });
            }
        }
    }

    /// Members share the bands of all output channels.
    unsafe fn channels(&self, context: &Context<'_>, share: Share, panel: V, bands: Bands) {
        let ([height, width], [down, across]) = (self.windows.image, self.windows.out);
        let (out, cuts) = (self.groups * self.made, down.div_ceil(bands.rows));
        for at in share.split(self.images * out * cuts, 1) {
            let (plane, first) = (at / cuts, at % cuts * bands.rows);
            let channel = plane % out;
            // SAFETY: the values have the sizes that the planner took from the graph, and each member a panel.
            unsafe {
                context.isa.run(Band {
                    windows: &self.windows,
                    bands,
                    x: context.get::<f32>(self.x).add(plane / self.made * height * width),
                    weight: context.get::<f32>(self.weight).add(channel * self.windows.taps()),
                    bias: self.bias_of(context, channel),
                    y: context.get_mut::<f32>(self.y).add((plane * down + first) * across),
                    first,
                    rows: bands.rows.min(down - first),
                    panel: context.get_mut::<f32>(panel).add(share.index * PANEL),
                });
            }
        }
    }

    /// An output channel's bias.
    unsafe fn bias_of(&self, context: &Context<'_>, channel: usize) -> f32 {
        // SAFETY: as the caller's: there is one for each channel.
        self.bias.map_or(0.0, |bias| unsafe { *context.get::<f32>(bias).add(channel) })
    }

    /// Members share the output's rows.
    unsafe fn rows(&self, context: &Context<'_>, share: Share) {
        let ([height, width], [down, across]) = (self.windows.image, self.windows.out);
        let channels = self.groups * self.made;
        for at in share.split(self.images * channels * down, 1) {
            let (row, channel, image) = (at % down, at / down % channels, at / down / channels);
            let group = image * self.groups + channel / self.made;
            // SAFETY: the values have the sizes that the planner took from the graph.
            unsafe {
                context.isa.run(Direct {
                    windows: &self.windows,
                    seen: self.seen,
                    image: context.get::<f32>(self.x).add(group * self.seen * height * width),
                    weight: context.get::<f32>(self.weight).add(channel * self.seen * self.windows.taps()),
                    bias: self.bias_of(context, channel),
                    y: context.get_mut::<f32>(self.y).add(at * across),
                    row,
                });
            }
        }
    }
}

/// The windows `start..end` of a group's channels. Demands: `image` is valid for the channels that the group sees, `bias` (or null)
/// for a number a row of `panels`, and `panels` has what it demands.
struct Product<'a> {
    windows: &'a Windows,
    image: *const f32,
    bias: *const f32,
    panels: Panels,
    start: usize,
    end: usize,
}

impl Kernel for Product<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        let Panels { y, rows, n, .. } = self.panels;
        // SAFETY: as the struct demands: where windows are single elements, the image is the matrix.
        unsafe {
            if self.windows.are_elements() {
                self.columns::<S>(&Matrix { w: self.image, n });
            } else {
                self.columns::<S>(&Unfolded { windows: self.windows, image: self.image });
            }
            if !self.bias.is_null() {
                for row in 0..rows {
                    let bias = *self.bias.add(row);
                    (self.start..self.end).for_each(|column| *y.add(row * n + column) += bias);
                }
            }
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    unsafe fn columns<S: Lanes>(&self, matrix: &impl Pack) {
        let mut start = self.start;
        while start < self.end {
            let count = (self.end - start).min(width::<S>());
            // SAFETY: as the caller's.
            unsafe { self.panels.columns::<S>(matrix, start, count) };
            start += count;
        }
    }
}

/// The matrix of an image's windows: row k is element k of each, channels first; column n is window n. Demands: `image` is valid for
/// the channels that are asked for.
struct Unfolded<'a> {
    windows: &'a Windows,
    image: *const f32,
}

impl Pack for Unfolded<'_> {
    #[inline(always)]
    unsafe fn row<S: Lanes>(&self, k: usize, start: usize, count: usize, to: *mut f32) {
        let windows = self.windows;
        let ([height, width_in], across, taps) = (windows.image, windows.out[1], windows.taps());
        let (channel, tap) = (k / taps, k % taps);
        let (i, j) = (tap / windows.kernel[1], tap % windows.kernel[1]);
        let (reaching, stride) = (windows.reaching(1, j), windows.stride[1]);
        // SAFETY: `place` and `reaching` give rows and columns of the image alone; what is written ends at `width`.
        unsafe {
            let plane = self.image.add(channel * height * width_in);
            let (mut row, mut column, mut done) = (start / across, start % across, 0);
            while done < count {
                let run = (across - column).min(count - done);
                let to = to.add(done);
                match windows.place(0, row, i) {
                    None => to.write_bytes(0, run),
                    Some(place) => {
                        let first = reaching.start.clamp(column, column + run);
                        let end = reaching.end.clamp(first, column + run);
                        to.write_bytes(0, first - column);
                        to.add(end - column).write_bytes(0, column + run - end);
                        if first < end {
                            let at = first * stride + j * windows.dilation[1] - windows.before[1];
                            let from = plane.add(place * width_in + at);
                            let to = to.add(first - column);
                            if stride == 1 {
                                std::ptr::copy_nonoverlapping(from, to, end - first);
                            } else {
                                (0..end - first).for_each(|x| *to.add(x) = *from.add(x * stride));
                            }
                        }
                    }
                }
                done += run;
                row += 1;
                column = 0;
            }
            to.add(count).write_bytes(0, width::<S>() - count);
        }
    }
}

/// One row of one output channel. Demands: `image` and `weight` are valid for the `seen` channels, `y` for a row of outputs that is the
/// caller's own.
struct Direct<'a> {
    windows: &'a Windows,
    seen: usize,
    image: *const f32,
    weight: *const f32,
    bias: f32,
    y: *mut f32,
    row: usize,
}

impl Kernel for Direct<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        let Self { windows, y, .. } = self;
        let ([height, width], [rows, columns]) = (windows.image, windows.kernel);
        let stride = windows.stride[1];
        // SAFETY: as the struct demands; `place` and `reaching` give rows and columns of the image alone.
        unsafe {
            y.write_bytes(0, windows.out[1]);
            for (channel, i) in (0..self.seen).flat_map(|channel| (0..rows).map(move |i| (channel, i))) {
                let Some(place) = windows.place(0, self.row, i) else { continue };
                let line = self.image.add((channel * height + place) * width);
                for j in 0..columns {
                    let weight = *self.weight.add((channel * rows + i) * columns + j);
                    let reached = windows.reaching(1, j);
                    if reached.is_empty() {
                        continue;
                    }
                    let from = line.add(reached.start * stride + j * windows.dilation[1] - windows.before[1]);
                    let (to, count) = (y.add(reached.start), reached.len());
                    // A loop of its own for the common stride, which the compiler makes vectors of.
                    if stride == 1 {
                        (0..count).for_each(|x| *to.add(x) += weight * *from.add(x));
                    } else {
                        (0..count).for_each(|x| *to.add(x) += weight * *from.add(x * stride));
                    }
                }
            }
            (0..windows.out[1]).for_each(|x| *y.add(x) += self.bias);
        }
    }
}
