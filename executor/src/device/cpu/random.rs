//! Random numbers whose key each run brings.

use genie_graph::{RandomKind, random};

use super::plan::V;
use super::step::Context;
use super::team::Share;

/// Elements that members take as one: whole blocks of words.
const GRAIN: usize = 256;

/// `count` samples, f32 or (bits) i64, of the stream that the two words of `key` name.
pub(super) struct Random {
    pub(super) kind: RandomKind,
    pub(super) key: V,
    pub(super) y: V,
    pub(super) count: usize,
}

impl Random {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.key);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        let mine = share.split(self.count, GRAIN);
        if mine.is_empty() {
            return;
        }
        // SAFETY: the key has two elements, y has `count` of the kind's type, and the members' parts do not overlap.
        unsafe {
            let [key, start] = [0, 1].map(|i| (*context.get::<i64>(self.key).add(i)).cast_unsigned());
            let first = mine.start as u64;
            let floats = || std::slice::from_raw_parts_mut(context.get_mut::<f32>(self.y).add(mine.start), mine.len());
            match self.kind {
                RandomKind::Uniform => random::fill_uniform_from(key, start, first, floats()),
                RandomKind::Normal => random::fill_normal_from(key, start, first, floats()),
                RandomKind::Bits => {
                    let y = context.get_mut::<i64>(self.y).add(mine.start);
                    random::fill_bits_from(key, start, first, std::slice::from_raw_parts_mut(y, mine.len()));
                }
            }
        }
    }
}
