//! Rows of a table replaced by index.

use genie_graph::NodeId;

use super::plan::V;
use super::step::{Context, Fault};
use super::team::Share;

/// `y = x`, but row `ids[i]` is row i of updates, for rows of `row_bytes`; of equal ids the last counts.
pub(super) struct Scatter {
    pub(super) x: V,
    /// i64 if `wide`, else i32.
    pub(super) ids: V,
    pub(super) wide: bool,
    pub(super) updates: V,
    pub(super) y: V,
    /// Rows of the table.
    pub(super) bound: usize,
    pub(super) row_bytes: usize,
    /// Ids.
    pub(super) count: usize,
    /// Ids that a batch row has.
    pub(super) per_row: usize,
    pub(super) node: NodeId,
}

impl Scatter {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        [self.x, self.ids, self.updates].into_iter().for_each(read);
        write(self.y);
    }

    /// Each member makes rows of its own, so that the order of updates needs no agreement: it looks through all ids for theirs.
    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        let mine = share.split(self.bound, 1);
        let row_bytes = self.row_bytes;
        let y = context.get_mut::<u8>(self.y);
        // SAFETY: x and y have `bound` rows, updates one for each of the `count` ids; rows of y are within this member's.
        unsafe {
            let at = mine.start * row_bytes;
            std::ptr::copy_nonoverlapping(context.get::<u8>(self.x).add(at), y.add(at), mine.len() * row_bytes);
            for i in 0..self.count {
                let index = if self.wide {
                    *context.get::<i64>(self.ids).add(i)
                } else {
                    i64::from(*context.get::<i32>(self.ids).add(i))
                };
                match usize::try_from(index) {
                    Ok(row) if mine.contains(&row) => {
                        let update = context.get::<u8>(self.updates).add(i * row_bytes);
                        std::ptr::copy_nonoverlapping(update, y.add(row * row_bytes), row_bytes);
                    }
                    Ok(row) if row < self.bound => {}
                    _ if share.index == 0 => {
                        let fault = Fault::Index { op: "scatter", index, bound: self.bound };
                        context.failure.note(i / self.per_row, self.node, fault);
                    }
                    _ => {}
                }
            }
        }
    }
}
