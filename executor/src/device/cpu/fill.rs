//! One number everywhere.

use super::plan::V;
use super::step::Context;
use super::team::Share;

/// Elements that members take as one.
const GRAIN: usize = 4096;

/// `count` elements of y become the first `element_bytes` of `bits`.
pub(super) struct Fill {
    pub(super) y: V,
    pub(super) element_bytes: usize,
    pub(super) bits: [u8; 8],
    pub(super) count: usize,
}

impl Fill {
    pub(super) fn touches(&self, _read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        let size = self.element_bytes;
        let mine = share.split(self.count, GRAIN);
        // SAFETY: y has `count` elements of this size, and the members' parts do not overlap.
        let y = unsafe {
            std::slice::from_raw_parts_mut(context.get_mut::<u8>(self.y).add(mine.start * size), mine.len() * size)
        };
        y.chunks_exact_mut(size).for_each(|element| element.copy_from_slice(&self.bits[..size]));
    }
}
