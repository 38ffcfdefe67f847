//! The hash of an upload, from its slices as they pass.
//!
//! BLAKE3 hashes a tree: a slice of a power of two of its chunks, on a multiple of its size, is a subtree, whose value needs nothing of
//! the others. So slices are hashed in whatever order they come, while they are in the host's memory anyway, and nothing is read back
//! from the device.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use genie_transport::memory::Region;
use genie_transport::wire::ContentHash;

/// Does something elsewhere, or on the caller's thread where there are no others.
pub(crate) type Elsewhere = Arc<dyn Fn(Box<dyn FnOnce() + Send>) + Send + Sync>;

/// Slices that wait to be hashed, each of which keeps its memory: who brings more hashes one itself.
const WAITING: usize = 8;

/// See the module.
pub(crate) struct Hashing {
    state: Mutex<State>,
    /// A slice that was being hashed is.
    hashed: Condvar,
    elsewhere: Elsewhere,
    slice_bytes: u64,
}

struct State {
    slices: Vec<Slice>,
    waiting: VecDeque<Job>,
    running: usize,
}

#[derive(Clone, Copy, Default)]
struct Slice {
    /// Counts how often it came: what came last counts.
    came: u64,
    /// The value of its subtree, and of which coming it is.
    value: Option<(u64, ChainingValue)>,
}

struct Job {
    index: usize,
    came: u64,
    bytes: Region,
}

impl Hashing {
    /// Of a transfer of `total` bytes. `None`: its slices are no subtrees, or all of it is one slice.
    pub(crate) fn new(total: u64, slice_bytes: u32, elsewhere: Elsewhere) -> Option<Arc<Self>> {
        let slice_bytes = u64::from(slice_bytes);
        let is_subtree = slice_bytes.is_power_of_two() && slice_bytes >= blake3::CHUNK_LEN as u64;
        let count = usize::try_from(total.div_ceil(slice_bytes.max(1))).ok()?;
        (is_subtree && count > 1).then(|| {
            let state = State { slices: vec![Slice::default(); count], waiting: VecDeque::new(), running: 0 };
            Arc::new(Self { state: Mutex::new(state), hashed: Condvar::new(), elsewhere, slice_bytes })
        })
    }

    /// A slice came, to be hashed from [`Self::go_on`] on. It may come again: the last counts.
    pub(crate) fn take(&self, offset: u64, bytes: Region) {
        let index = usize::try_from(offset / self.slice_bytes).unwrap_or(usize::MAX);
        let mut state = self.lock();
        let Some(slice) = state.slices.get_mut(index) else { return };
        slice.came += 1;
        let came = slice.came;
        state.waiting.push_back(Job { index, came, bytes });
    }

    /// Sees to it that a slice that was taken is hashed.
    pub(crate) fn go_on(self: &Arc<Self>) {
        if self.lock().waiting.len() > WAITING {
            self.hash_one();
        } else {
            let all = self.clone();
            (self.elsewhere)(Box::new(move || _ = all.hash_one()));
        }
    }

    /// The hash of the whole, once every slice came. Hashes what still waits. `None`: some never came.
    pub(crate) fn finish(&self) -> Option<ContentHash> {
        while self.hash_one() {}
        let mut state = self.lock();
        while state.running > 0 {
            state = self.hashed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let value = |slice: &Slice| slice.value.filter(|(came, _)| *came == slice.came).map(|(_, value)| value);
        let values = state.slices.iter().map(value).collect::<Option<Vec<_>>>()?;
        drop(state);
        let (left, right) = values.split_at_checked(left_of(values.len()))?;
        Some(ContentHash(*merge_subtrees_root(&merged(left)?, &merged(right)?, Mode::Hash).as_bytes()))
    }

    /// Whether a slice waited, and was hashed.
    fn hash_one(&self) -> bool {
        let mut state = self.lock();
        let Some(Job { index, came, bytes }) = state.waiting.pop_front() else { return false };
        state.running += 1;
        drop(state);
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(index as u64 * self.slice_bytes).update(&bytes);
        let value = hasher.finalize_non_root();
        // Its memory goes first: others wait for it.
        drop(bytes);
        let mut state = self.lock();
        state.running -= 1;
        if let Some(slice) = state.slices.get_mut(index)
            && slice.came == came
        {
            slice.value = Some((came, value));
        }
        drop(state);
        self.hashed.notify_all();
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many of so many slices are the left part of their tree: the largest power of two that leaves some.
fn left_of(slices: usize) -> usize {
    slices.div_ceil(2).next_power_of_two()
}

/// The value of the tree over these subtrees; `None` of none.
fn merged(values: &[ChainingValue]) -> Option<ChainingValue> {
    match values {
        [] => None,
        [one] => Some(*one),
        more => {
            let (left, right) = more.split_at_checked(left_of(more.len()))?;
            Some(merge_subtrees_non_root(&merged(left)?, &merged(right)?, Mode::Hash))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u64) -> Vec<u8> {
        (0..n as u64).map(|i| ((i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }

    fn hashing(total: usize, slice: u32) -> Option<Arc<Hashing>> {
        Hashing::new(total as u64, slice, Arc::new(|work| work()))
    }

    fn bring(hashing: &Arc<Hashing>, offset: u64, bytes: &[u8]) {
        hashing.take(offset, Region::copy_of(bytes));
        hashing.go_on();
    }

    #[test]
    fn slices_in_any_order_hash_to_what_the_whole_does() {
        for slice in [1024, 4096] {
            for slices in 2..40 {
                for short in [0, 1, slice - 1] {
                    let bytes = noise((slices * slice - short) as usize, u64::from(slices));
                    let hashing = hashing(bytes.len(), slice).unwrap();
                    let mut parts: Vec<_> = bytes.chunks(slice as usize).enumerate().collect();
                    parts.rotate_left(slices as usize / 3);
                    parts.iter().for_each(|(i, part)| bring(&hashing, *i as u64 * u64::from(slice), part));
                    assert_eq!(hashing.finish(), Some(ContentHash::of(&bytes)), "{slices} of {slice} less {short}");
                }
            }
        }
    }

    #[test]
    fn what_came_last_counts_and_what_is_missing_is_noticed() {
        let (bytes, wrong) = (noise(10_000, 1), noise(4096, 2));
        // Work that is never done elsewhere is done at the end.
        let hashing = Hashing::new(10_000, 4096, Arc::new(drop)).unwrap();
        bring(&hashing, 4096, &wrong);
        bring(&hashing, 0, &bytes[..4096]);
        assert_eq!(hashing.finish(), None);
        bring(&hashing, 8192, &bytes[8192..]);
        assert_ne!(hashing.finish(), Some(ContentHash::of(&bytes)));
        bring(&hashing, 4096, &bytes[4096..8192]);
        assert_eq!(hashing.finish(), Some(ContentHash::of(&bytes)));
    }

    #[test]
    fn slices_that_are_no_subtrees_are_left_alone() {
        assert!(hashing(10_000, 4096).is_some());
        for (total, slice) in [(10_000, 5120), (10_000, 512), (4096, 4096), (0, 4096), (10, 0)] {
            assert!(hashing(total, slice).is_none(), "{total} {slice}");
        }
    }

    #[test]
    fn few_wait_at_a_time() {
        let hashing = Hashing::new(64 << 10, 1024, Arc::new(drop)).unwrap();
        for i in 0..64 {
            bring(&hashing, i << 10, &[i as u8; 1024]);
            assert!(hashing.lock().waiting.len() <= WAITING);
        }
    }
}
