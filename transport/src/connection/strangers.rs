//! Lanes that have not said who they are.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::peer::Driver;

/// All of a server's. They have a limit of their own: whoever opens lane after lane and says nothing takes no place from a
/// connection. Past the limit the lane goes that has been a stranger for longest: one that has something to say has said it long
/// before.
#[derive(Default)]
pub(super) struct Strangers {
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    last: u64,
    /// Those that were not told to go, oldest first.
    waiting: BTreeMap<u64, (Arc<dyn Driver>, Arc<AtomicBool>)>,
    /// Those that were told to go, and have not gone.
    going: usize,
}

/// A lane's place among the strangers, until it is dropped.
pub(super) struct Stranger {
    strangers: Arc<Strangers>,
    number: u64,
    displaced: Arc<AtomicBool>,
}

impl Strangers {
    /// One more. `None`: so many are about to go already that it cannot wait for them.
    pub(super) fn arrive(self: &Arc<Self>, driver: Arc<dyn Driver>, most: usize) -> Option<Stranger> {
        let mut all = self.lock();
        if all.waiting.len() + all.going >= most.saturating_mul(2) {
            return None;
        }
        let mut gone = None;
        if all.waiting.len() >= most {
            gone = all.waiting.pop_first();
            all.going += usize::from(gone.is_some());
        }
        all.last += 1;
        let (number, displaced) = (all.last, Arc::new(AtomicBool::new(false)));
        all.waiting.insert(number, (driver, displaced.clone()));
        drop(all);
        if let Some((_, (driver, displaced))) = gone {
            displaced.store(true, Ordering::Release);
            driver.wake();
        }
        Some(Stranger { strangers: self.clone(), number, displaced })
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stranger {
    /// Whether it has to make room for others.
    pub(super) fn is_displaced(&self) -> bool {
        self.displaced.load(Ordering::Acquire)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut all = self.strangers.lock();
        if all.waiting.remove(&self.number).is_none() {
            all.going = all.going.saturating_sub(1);
        }
    }
}

impl std::fmt::Debug for Strangers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Strangers").field("waiting", &self.lock().waiting.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Driver for Nobody {
        fn wake(&self) {}
    }

    #[test]
    fn the_oldest_makes_room_and_counts_until_it_is_gone() {
        let strangers = Arc::<Strangers>::default();
        let arrive = || strangers.arrive(Arc::new(Nobody), 2);
        let (first, second, third) = (arrive().unwrap(), arrive().unwrap(), arrive().unwrap());
        assert!(first.is_displaced() && !second.is_displaced() && !third.is_displaced());
        let fourth = arrive().unwrap();
        assert!(second.is_displaced() && !third.is_displaced());
        assert!(arrive().is_none(), "two wait, and two are going");
        drop(first);
        let fifth = arrive().unwrap();
        assert!(third.is_displaced());
        drop((second, third, fourth, fifth));
        let all = strangers.lock();
        assert!(all.waiting.is_empty() && all.going == 0);
    }
}
