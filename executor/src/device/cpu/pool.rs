//! Pools: a number for each window of a plane.

use std::ops::Range;

use genie_graph::PoolKind;

use super::lanes::{Kernel, Lanes};
use super::plan::V;
use super::step::Context;
use super::team::Share;
use super::windows::Windows;

/// y `[planes, H', W']` of the windows over x `[planes, H, W]`, f32 both.
pub(super) struct Pool {
    pub(super) kind: PoolKind,
    pub(super) windows: Windows,
    /// Whether an average divides by the whole window's elements.
    pub(super) count_padding: bool,
    pub(super) x: V,
    pub(super) y: V,
    pub(super) planes: usize,
}

impl Pool {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.x);
        write(self.y);
    }

    /// Members share the rows of all planes.
    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        let [[height, width], [down, across]] = [self.windows.image, self.windows.out];
        for at in share.split(self.planes * down, 1) {
            // SAFETY: x and y have `planes` planes of these sizes, and a row of y is one member's.
            unsafe {
                context.isa.run(PoolRow {
                    step: self,
                    x: context.get::<f32>(self.x).add(at / down * height * width),
                    y: context.get_mut::<f32>(self.y).add(at * across),
                    row: at % down,
                });
            }
        }
    }
}

/// Demands: `x` is valid for a plane, `y` for the output row `row` of it.
struct PoolRow<'a> {
    step: &'a Pool,
    x: *const f32,
    y: *mut f32,
    row: usize,
}

impl Kernel for PoolRow<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        let windows = &self.step.windows;
        let [kernel_rows, kernel_columns] = windows.kernel;
        let rows = windows.inside(0, self.row);
        for column in 0..windows.out[1] {
            let columns = windows.inside(1, column);
            let counted = match self.step.count_padding {
                true => kernel_rows as f64 * kernel_columns as f64,
                false => rows.len() as f64 * columns.len() as f64,
            };
            // SAFETY: as the struct demands; `inside` gives rows and columns of the plane.
            unsafe {
                *self.y.add(column) = match self.step.kind {
                    PoolKind::Max => self.fold(&rows, columns, f32::NEG_INFINITY, |max, x| {
                        // Whatever is compared with a NaN, it stays.
                        if x > max || x.is_nan() { x } else { max }
                    }),
                    // Wider than the f32 that is asked for, as reductions are.
                    PoolKind::Average => (self.fold(&rows, columns, 0.0, |sum, x| sum + f64::from(x)) / counted) as f32,
                };
            }
        }
    }
}

impl PoolRow<'_> {
    #[inline(always)]
    unsafe fn fold<A>(&self, rows: &Range<usize>, columns: Range<usize>, init: A, f: impl Fn(A, f32) -> A) -> A {
        let mut a = init;
        for row in rows.clone() {
            for column in columns.clone() {
                // SAFETY: as the caller's.
                a = f(a, unsafe { *self.x.add(row * self.step.windows.image[1] + column) });
            }
        }
        a
    }
}
