//! Elements by index along an axis.

use genie_graph::{DType, NodeId, ScatterKind};

use super::plan::V;
use super::step::{Context, Fault};
use super::strided::Walk;
use super::team::Share;

/// Elements that members take as one.
const GRAIN: usize = 256;

/// Ids along an axis: i64 if `wide`, else i32.
#[derive(Clone, Copy)]
pub(super) struct Ids {
    pub(super) ids: V,
    pub(super) wide: bool,
    /// Elements that the axis has.
    pub(super) bound: usize,
    /// Elements of the indexed tensor from one index to the next.
    pub(super) stride: usize,
    /// Ids that a batch row has.
    pub(super) per_row: usize,
    pub(super) node: NodeId,
    pub(super) op: &'static str,
}

impl Ids {
    /// Where id number `at` leads, counted in elements from index 0.
    #[inline]
    unsafe fn offset(&self, context: &Context<'_>, at: usize) -> Option<usize> {
        // SAFETY: as the caller's: there are more than `at` ids.
        let index = unsafe {
            if self.wide {
                *context.get::<i64>(self.ids).add(at)
            } else {
                (*context.get::<i32>(self.ids).add(at)).into()
            }
        };
        match usize::try_from(index) {
            Ok(i) if i < self.bound => Some(i * self.stride),
            _ => {
                let fault = Fault::Index { op: self.op, index, bound: self.bound };
                context.failure.note(at / self.per_row, self.node, fault);
                None
            }
        }
    }
}

/// `y[i] = x[i, but the id along the axis]`: `walk` has the dimensions of the ids and the strides of x, 0 along the axis.
pub(super) struct TakeAlong {
    pub(super) x: V,
    pub(super) ids: Ids,
    pub(super) y: V,
    pub(super) element_bytes: usize,
    pub(super) walk: Walk<1>,
}

impl TakeAlong {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.x);
        read(self.ids.ids);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's; elements of this size are as many bytes, whatever they mean.
        unsafe {
            match self.element_bytes {
                1 => self.take::<u8>(context, share),
                2 => self.take::<u16>(context, share),
                4 => self.take::<u32>(context, share),
                _ => self.take::<u64>(context, share),
            }
        }
    }

    unsafe fn take<T: Copy + Default>(&self, context: &Context<'_>, share: Share) {
        let (x, y) = (context.get::<T>(self.x), context.get_mut::<T>(self.y));
        self.walk.runs(share.split(self.walk.count(), GRAIN), |at, count, [from], [step]| {
            for i in 0..count {
                // SAFETY: the walk's offsets with a checked index lie within x; y has as many elements as there are ids.
                unsafe {
                    let offset = self.ids.offset(context, at + i);
                    y.add(at + i).write(offset.map_or(T::default(), |o| *x.add(from + i * step + o)));
                }
            }
        });
    }
}

/// Applies each update to the element of y that its id means; y is what is there before. Operand 0 of the walk is the ids and updates,
/// operand 1 is y; its dimensions are those of the ids but for the axis, along which there are `length` ids, `ids_stride` apart.
pub(super) struct ScatterAlong {
    pub(super) kind: ScatterKind,
    pub(super) dtype: DType,
    pub(super) ids: Ids,
    pub(super) updates: V,
    pub(super) y: V,
    pub(super) walk: Walk<2>,
    pub(super) length: usize,
    pub(super) ids_stride: usize,
}

impl ScatterAlong {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.ids.ids);
        read(self.updates);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's; `dtype` is the type of updates and y, of which a replacement needs to know the size alone.
        unsafe {
            match (self.kind, self.dtype.bytes()) {
                (ScatterKind::Set, 1) => self.apply(context, share, |_, u: u8| u),
                (ScatterKind::Set, 2) => self.apply(context, share, |_, u: u16| u),
                (ScatterKind::Set, 4) => self.apply(context, share, |_, u: u32| u),
                (ScatterKind::Set, _) => self.apply(context, share, |_, u: u64| u),
                _ => match self.dtype {
                    DType::I64 => self.integers(context, share, i64::wrapping_add, i64::wrapping_mul),
                    DType::I32 => self.integers(context, share, i32::wrapping_add, i32::wrapping_mul),
                    DType::U8 => self.integers(context, share, u8::wrapping_add, u8::wrapping_mul),
                    _ => self.floats(context, share),
                },
            }
        }
    }

    unsafe fn floats(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's.
        unsafe {
            match self.kind {
                ScatterKind::Set => self.apply(context, share, |_, u: f32| u),
                ScatterKind::Add => self.apply(context, share, |y: f32, u| y + u),
                ScatterKind::Mul => self.apply(context, share, |y: f32, u| y * u),
                // Written so that a NaN on either side stays.
                ScatterKind::Max => self.apply(context, share, |y: f32, u| if y >= u || y.is_nan() { y } else { u }),
                ScatterKind::Min => self.apply(context, share, |y: f32, u| if y <= u || y.is_nan() { y } else { u }),
            }
        }
    }

    unsafe fn integers<T: Copy + Ord>(
        &self,
        context: &Context<'_>,
        share: Share,
        add: fn(T, T) -> T,
        multiply: fn(T, T) -> T,
    ) {
        // SAFETY: as the caller's.
        unsafe {
            match self.kind {
                ScatterKind::Set => self.apply(context, share, |_, u: T| u),
                ScatterKind::Add => self.apply(context, share, add),
                ScatterKind::Mul => self.apply(context, share, multiply),
                ScatterKind::Max => self.apply(context, share, T::max),
                ScatterKind::Min => self.apply(context, share, T::min),
            }
        }
    }

    /// Each member has rows along the axis of its own, so that updates of one element come in order.
    unsafe fn apply<T: Copy>(&self, context: &Context<'_>, share: Share, f: impl Fn(T, T) -> T) {
        let (updates, y) = (context.get::<T>(self.updates), context.get_mut::<T>(self.y));
        self.walk.runs(share.split(self.walk.count(), 1), |_, count, [from, to], [step, step_y]| {
            for k in 0..self.length {
                for i in 0..count {
                    let at = from + i * step + k * self.ids_stride;
                    // SAFETY: `at` is one of the ids; the walk's offset with a checked index lies within y.
                    unsafe {
                        if let Some(offset) = self.ids.offset(context, at) {
                            let y = y.add(to + i * step_y + offset);
                            y.write(f(*y, *updates.add(at)));
                        }
                    }
                }
            }
        });
    }
}
