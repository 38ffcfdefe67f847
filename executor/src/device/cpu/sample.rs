//! Drawing the next token.

use std::sync::PoisonError;

use super::plan::V;
use super::step::Context;
use super::team::Share;

/// logits f32 `[rows, width]`, real f32 `[rows, 2]`, int i64 `[rows, 2]`, positions i32 `[rows, tokens]` -> i32 `[rows]`: see
/// [`genie_graph::Op::Sample`].
pub(super) struct Sample {
    pub(super) logits: V,
    pub(super) real: V,
    pub(super) int: V,
    pub(super) positions: V,
    pub(super) y: V,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) tokens: usize,
}

impl Sample {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        [self.logits, self.real, self.int, self.positions].into_iter().for_each(read);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        let mine = share.split(self.rows, 1);
        if mine.is_empty() {
            return;
        }
        let Some(space) = context.members.get(share.index) else { return };
        // Nobody else takes this member's space: the lock is free.
        let mut space = space.lock().unwrap_or_else(PoisonError::into_inner);
        for row in mine {
            // SAFETY: the values have the sizes that the planner took from the graph.
            unsafe {
                let logits =
                    std::slice::from_raw_parts(context.get::<f32>(self.logits).add(row * self.width), self.width);
                let real = context.get::<f32>(self.real).add(row * 2);
                let int = context.get::<i64>(self.int).add(row * 2);
                let position = *context.get::<i32>(self.positions).add((row + 1) * self.tokens - 1);
                let token = genie_graph::sample_row(
                    logits,
                    *real,
                    *real.add(1),
                    *int,
                    (*int.add(1)).cast_unsigned(),
                    u64::try_from(position).unwrap_or_default(),
                    &mut space.candidates,
                );
                context.get_mut::<u32>(self.y).add(row).write(token);
            }
        }
    }
}
