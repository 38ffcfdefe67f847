//! Quotas: memory is charged before it is allocated, and the charge lives exactly as long as the memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one session (or the names of the server) may hold, and holds.
#[derive(Debug)]
pub(crate) struct Account {
    quota: AtomicU64,
    used: AtomicU64,
}

/// The account does not allow it; nothing was charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OverQuota {
    pub(crate) wanted: u64,
    pub(crate) used: u64,
    pub(crate) quota: u64,
}

impl Account {
    pub(crate) fn new(quota: u64) -> Arc<Self> {
        Arc::new(Self { quota: AtomicU64::new(quota), used: AtomicU64::new(0) })
    }

    pub(crate) fn quota(&self) -> u64 {
        self.quota.load(Ordering::Acquire)
    }

    /// From now on it may hold so much; what it holds already, it holds.
    pub(crate) fn set_quota(&self, quota: u64) {
        self.quota.store(quota, Ordering::Release);
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Charges `bytes`, or nothing.
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64) -> Result<Charge, OverQuota> {
        let quota = self.quota();
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= quota);
        match self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits) {
            Ok(_) => Ok(Charge { account: self.clone(), bytes }),
            Err(used) => Err(OverQuota { wanted: bytes, used, quota }),
        }
    }
}

/// Bytes charged to an account, given back on drop.
#[derive(Debug)]
pub(crate) struct Charge {
    account: Arc<Account>,
    bytes: u64,
}

impl Charge {
    /// The account that it is charged to.
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Changes it to `bytes`. Shrinking never fails; growing may, and then nothing changes.
    pub(crate) fn resize(&mut self, bytes: u64) -> Result<(), OverQuota> {
        if bytes > self.bytes {
            let mut more = self.account.charge(bytes - self.bytes)?;
            more.bytes = 0;
        } else {
            self.account.used.fetch_sub(self.bytes - bytes, Ordering::AcqRel);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Host memory that a request takes while it is in progress: arguments, and outputs that come back. Small requests take it
/// for nothing, so that a session whose quota is used up can still decode; how many there may be is bounded by the credits.
#[derive(Debug)]
pub(crate) struct HostMemory {
    bytes: u64,
    paid: Option<Charge>,
}

/// What a request has for nothing.
const FREE_BYTES: u64 = 64 << 10;

impl HostMemory {
    /// So many bytes, charged to the account.
    pub(crate) fn new(account: &Arc<Account>, bytes: u64) -> Result<Self, OverQuota> {
        let mut memory = Self { bytes: 0, paid: None };
        memory.add(account, bytes)?;
        Ok(memory)
    }

    /// So many bytes more, or an error and no more.
    pub(crate) fn add(&mut self, account: &Arc<Account>, bytes: u64) -> Result<(), OverQuota> {
        let sum = self.bytes.saturating_add(bytes);
        match &mut self.paid {
            Some(paid) => paid.resize(sum)?,
            None if sum > FREE_BYTES => self.paid = Some(account.charge(sum)?),
            None => {}
        }
        self.bytes = sum;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_end_with_what_they_stand_for() {
        let account = Account::new(100);
        let mut a = account.charge(60).unwrap();
        assert_eq!(account.charge(41).unwrap_err(), OverQuota { wanted: 41, used: 60, quota: 100 });
        assert!(account.charge(u64::MAX).is_err(), "the sum overflows");
        a.resize(100).unwrap();
        assert!(a.resize(101).is_err());
        assert_eq!(account.used(), 100);
        a.resize(10).unwrap();
        assert_eq!(account.used(), 10);
        drop(a);
        assert_eq!(account.used(), 0);
    }

    #[test]
    fn host_memory_counts_as_a_whole_once_it_is_much() {
        let account = Account::new(2 * FREE_BYTES);
        let mut memory = HostMemory::new(&account, FREE_BYTES).unwrap();
        assert_eq!(account.used(), 0);
        memory.add(&account, 1).unwrap();
        assert_eq!(account.used(), FREE_BYTES + 1);
        assert!(memory.add(&account, FREE_BYTES).is_err());
        assert!(memory.add(&account, u64::MAX).is_err());
        assert_eq!(account.used(), FREE_BYTES + 1);
        drop(memory);
        assert_eq!(account.used(), 0);
    }
}
