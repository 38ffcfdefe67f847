//! Addresses from before a revival.
//!
//! The driver hands out addresses again that somebody still has from before, and gives back later. Giving those back must not free
//! what is there now.

use std::collections::HashMap;

use crate::view::Address;

/// Addresses that were lent before a revival, and how often each is still to be given back.
#[derive(Debug, Default)]
pub(super) struct Stale(HashMap<Address, u32>);

impl Stale {
    /// What is at these addresses is lost.
    pub(super) fn add(&mut self, lost: impl IntoIterator<Item = Address>) {
        lost.into_iter().for_each(|at| *self.0.entry(at).or_insert(0) += 1);
    }

    /// An address is given back: whether that is one from before, so that nothing is to be freed. If it was lent before a revival and
    /// again since, then the first of the two that come back frees nothing, whoever that is: the other comes when neither uses the
    /// memory.
    pub(super) fn give_back(&mut self, at: Address) -> bool {
        let Some(times) = self.0.get_mut(&at) else { return false };
        *times -= 1;
        if *times == 0 {
            self.0.remove(&at);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::Stale;

    #[test]
    fn what_was_never_lost_is_not_stale() {
        let mut stale = Stale::default();
        stale.add([256]);
        assert!(!stale.give_back(512));
    }

    #[test]
    fn an_address_comes_back_as_often_as_it_was_lost() {
        let mut stale = Stale::default();
        stale.add([256, 512]);
        stale.add([256]);
        let came = [256, 256, 256, 512, 512].map(|at| stale.give_back(at));
        assert_eq!(came, [true, true, false, true, false]);
    }
}
