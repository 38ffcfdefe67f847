//! Comparisons, and choices by what they say.

use genie_graph::{CompareKind, DType};

use super::apply::zip;
use super::convert::Flag;
use super::lanes::{Kernel, Lanes};
use super::plan::V;
use super::step::Context;
use super::strided::Walk;
use super::team::Share;

/// Elements that members take as one.
const GRAIN: usize = 1024;

/// `y = a kind b`, bool, with broadcasting: `walk` has the dimensions of y and the strides of a and b. f32, i64, i32, u8 or bool; y is
/// contiguous.
pub(super) struct Compare {
    pub(super) kind: CompareKind,
    pub(super) dtype: DType,
    pub(super) a: V,
    pub(super) b: V,
    pub(super) y: V,
    pub(super) walk: Walk<2>,
}

impl Compare {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.a);
        read(self.b);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's; `dtype` is the type of a and b.
        unsafe {
            match self.dtype {
                DType::I64 => self.elements::<i64>(context, share),
                DType::I32 => self.elements::<i32>(context, share),
                DType::U8 => self.elements::<u8>(context, share),
                DType::Bool => self.elements::<Flag>(context, share),
                _ => self.elements::<f32>(context, share),
            }
        }
    }

    unsafe fn elements<T: Copy + PartialOrd>(&self, context: &Context<'_>, share: Share) {
        let (a, b, y) = (context.get::<T>(self.a), context.get::<T>(self.b), context.get_mut::<bool>(self.y));
        self.walk.runs(share.split(self.walk.count(), GRAIN), |at, count, [from_a, from_b], [step_a, step_b]| {
            // SAFETY: the walk's offsets lie within a and b, and its count is y's; the members' parts do not overlap.
            unsafe {
                let (a, b) = ((a.add(from_a), step_a), (b.add(from_b), step_b));
                context.isa.run(Run { kind: self.kind, a, b, y: y.add(at), count });
            }
        });
    }
}

/// Demands what [`zip`] does.
struct Run<T> {
    kind: CompareKind,
    a: (*const T, usize),
    b: (*const T, usize),
    y: *mut bool,
    count: usize,
}

impl<T: Copy + PartialOrd> Kernel for Run<T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        let Self { kind, a, b, y, count } = self;
        // SAFETY: as the struct demands.
        unsafe {
            match kind {
                CompareKind::Eq => zip(a, b, y, count, |a, b| a == b),
                CompareKind::Ne => zip(a, b, y, count, |a, b| a != b),
                CompareKind::Lt => zip(a, b, y, count, |a, b| a < b),
                CompareKind::Le => zip(a, b, y, count, |a, b| a <= b),
                CompareKind::Gt => zip(a, b, y, count, |a, b| a > b),
                CompareKind::Ge => zip(a, b, y, count, |a, b| a >= b),
            }
        }
    }
}

/// `y = if condition { a } else { b }` with broadcasting: `walk` has the dimensions of y and the strides of the other three. Elements of
/// any type; y is contiguous.
pub(super) struct Choose {
    pub(super) condition: V,
    pub(super) a: V,
    pub(super) b: V,
    pub(super) y: V,
    pub(super) element_bytes: usize,
    pub(super) walk: Walk<3>,
}

impl Choose {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        [self.condition, self.a, self.b].into_iter().for_each(read);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's; elements of this size are as many bytes, whatever they mean.
        unsafe {
            match self.element_bytes {
                1 => self.elements::<u8>(context, share),
                2 => self.elements::<u16>(context, share),
                4 => self.elements::<u32>(context, share),
                _ => self.elements::<u64>(context, share),
            }
        }
    }

    unsafe fn elements<T: Copy>(&self, context: &Context<'_>, share: Share) {
        let (condition, y) = (context.get::<Flag>(self.condition), context.get_mut::<T>(self.y));
        let (a, b) = (context.get::<T>(self.a), context.get::<T>(self.b));
        self.walk.runs(share.split(self.walk.count(), GRAIN), |at, count, [from_c, from_a, from_b], steps| {
            // SAFETY: the walk's offsets lie within the operands, and its count is y's; the members' parts do not overlap.
            unsafe {
                let (condition, a, b) = (condition.add(from_c), a.add(from_a), b.add(from_b));
                context.isa.run(Pick { condition, a, b, y: y.add(at), count, steps });
            }
        });
    }
}

/// Demands: `y` is valid for `count`, the others for as many elements `steps` apart, and `y` overlaps none.
struct Pick<T> {
    condition: *const Flag,
    a: *const T,
    b: *const T,
    y: *mut T,
    count: usize,
    steps: [usize; 3],
}

impl<T: Copy> Kernel for Pick<T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: as the struct demands. The common steps have loops of their own, which the compiler makes vectors of.
        unsafe {
            match self.steps {
                [1, 1, 1] => self.each([1, 1, 1]),
                [1, 1, 0] => self.each([1, 1, 0]),
                [1, 0, 1] => self.each([1, 0, 1]),
                [1, 0, 0] => self.each([1, 0, 0]),
                steps => self.each(steps),
            }
        }
    }
}

impl<T: Copy> Pick<T> {
    #[inline(always)]
    unsafe fn each(&self, [step_c, step_a, step_b]: [usize; 3]) {
        let Self { condition, a, b, y, count, .. } = *self;
        // SAFETY: as the struct demands.
        (0..count).for_each(|i| unsafe {
            // Both are read, so that no branch is needed.
            let (a, b) = (*a.add(i * step_a), *b.add(i * step_b));
            y.add(i).write(if (*condition.add(i * step_c)).holds() { a } else { b });
        });
    }
}
