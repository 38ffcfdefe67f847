//! Rows of a table by index.

use genie_graph::NodeId;

use super::plan::V;
use super::step::{Context, Fault};
use super::team::Share;

/// `y[i] = table[ids[i]]` for rows of `row_bytes`.
pub(super) struct Gather {
    pub(super) table: V,
    /// i64 if `wide`, else i32.
    pub(super) ids: V,
    pub(super) wide: bool,
    pub(super) y: V,
    /// Rows of the table.
    pub(super) bound: usize,
    pub(super) row_bytes: usize,
    /// Ids.
    pub(super) count: usize,
    /// Ids that a batch row has.
    pub(super) per_row: usize,
    pub(super) node: NodeId,
    pub(super) op: &'static str,
}

impl Gather {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.table);
        read(self.ids);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        for i in share.split(self.count, 1) {
            // SAFETY: `ids` has `count` elements; the index is checked before it is used; y has a row for each id.
            unsafe {
                let index = if self.wide {
                    *context.get::<i64>(self.ids).add(i)
                } else {
                    i64::from(*context.get::<i32>(self.ids).add(i))
                };
                let y = context.get_mut::<u8>(self.y).add(i * self.row_bytes);
                match usize::try_from(index) {
                    Ok(row) if row < self.bound => {
                        let x = context.get::<u8>(self.table).add(row * self.row_bytes);
                        std::ptr::copy_nonoverlapping(x, y, self.row_bytes);
                    }
                    _ => {
                        let fault = Fault::Index { op: self.op, index, bound: self.bound };
                        context.failure.note(i / self.per_row, self.node, fault);
                        y.write_bytes(0, self.row_bytes);
                    }
                }
            }
        }
    }
}
