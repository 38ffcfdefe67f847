//! Tensors by name, server-wide.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use genie_transport::memory::Pool;
use genie_transport::wire::{ContentHash, ErrorCode, RemoteError, TensorSpec};

use crate::account::{Account, Charge};
use crate::device::Memory;
use crate::error::fail;
use crate::rights::owner_of;

/// Tensors by name.
///
/// Names belong to the server, not to a session: a named tensor outlives the session that put it, and every session of the
/// server's trust domain finds it. It is an immutable snapshot: another put with the same name replaces it at once and whole,
/// and who has a handle on the old one keeps the old bytes. Names are charged to an account of their owner's and to one of
/// all names. Where one is short, the least recently used name of the same owner that no session has a handle on is let go, never
/// another owner's; where the device's memory is, anybody's.
pub(crate) struct Names {
    account: Arc<Account>,
    inner: Mutex<NamesInner>,
}

#[derive(Default)]
struct NamesInner {
    tensors: HashMap<String, Named>,
    /// What each owner's names hold.
    owners: HashMap<String, Arc<Account>>,
    clock: u64,
}

/// A named tensor.
pub(crate) struct Named {
    pub(crate) device: u16,
    pub(crate) spec: TensorSpec,
    pub(crate) weight: Option<ContentHash>,
    pub(crate) memory: Memory,
    _charge: NameCharge,
    used: u64,
}

/// What a name costs: its owner, and all names together.
pub(crate) struct NameCharge {
    _own: Charge,
    _all: Charge,
}

impl Named {
    fn address(&self) -> u64 {
        self.memory.address()
    }
}

impl NamesInner {
    /// The account of an owner's names, which may hold `quota` bytes.
    fn account(&mut self, owner: &str, quota: u64) -> Arc<Account> {
        self.owners.retain(|_, account| account.used() > 0 || Arc::strong_count(account) > 1);
        let account = self.owners.entry(owner.into()).or_insert_with(|| Account::new(quota));
        account.set_quota(quota);
        account.clone()
    }

    /// How many names each memory has: a weight may have several.
    fn names_of(&self) -> HashMap<u64, usize> {
        let mut names = HashMap::new();
        self.tensors.values().for_each(|named| *names.entry(named.address()).or_insert(0) += 1);
        names
    }

    /// The tensors that no session has a handle on and nothing reads, with their names.
    fn idle(&self) -> impl Iterator<Item = (&String, &Named)> {
        let names = self.names_of();
        self.tensors.iter().filter(move |(_, named)| {
            let names = names.get(&named.address()).copied().unwrap_or(1);
            // The store of weights holds a weight, too.
            named.memory.holders() <= names + usize::from(named.weight.is_some())
        })
    }
}

impl Names {
    /// Names that together hold at most `quota` bytes.
    pub(crate) fn new(quota: u64) -> Self {
        Self { account: Account::new(quota), inner: Mutex::default() }
    }

    /// Charges a tensor that is to get the name `name`, after letting go of others of the same owner where that makes enough room.
    /// `quota`: what one session of the owner's may hold, which its names may hold besides.
    pub(crate) fn charge(&self, name: &str, bytes: u64, quota: Option<u64>) -> Result<NameCharge, RemoteError> {
        let owner = owner_of(name);
        let account = self.lock().account(owner, quota.unwrap_or(u64::MAX));
        loop {
            let charged = account.charge(bytes).map_err(|over| (over, "this token's"));
            let charged = charged.and_then(|own| match self.account.charge(bytes) {
                Ok(all) => Ok(NameCharge { _own: own, _all: all }),
                Err(over) => Err((over, "the server's")),
            });
            let (over, whose) = match charged {
                Ok(charge) => return Ok(charge),
                Err(over) => over,
            };
            let idle = {
                let inner = self.lock();
                let others = inner.idle().filter(|(other, _)| is_another_of(other, name));
                others.map(|(_, named)| named.memory.len()).fold(0, u64::saturating_add)
            };
            let enough = over.used.saturating_sub(idle).checked_add(bytes).is_some_and(|sum| sum <= over.quota);
            if !enough || self.evict_where(|other, _| is_another_of(other, name)).is_none() {
                let message = format!(
                    "{bytes} bytes wanted, but {whose} named tensors may take {}, and those that make no room take {}: put it \
                     without a name, or give more room for names",
                    over.quota,
                    over.used.saturating_sub(idle)
                );
                return Err(fail(ErrorCode::OverQuota, message));
            }
        }
    }

    /// Gives the tensor its name, from whatever had it.
    pub(crate) fn insert(
        &self,
        name: String,
        device: u16,
        spec: TensorSpec,
        weight: Option<ContentHash>,
        memory: Memory,
        charge: NameCharge,
    ) {
        let mut inner = self.lock();
        inner.clock += 1;
        let used = inner.clock;
        let old = inner.tensors.insert(name, Named { device, spec, weight, memory, _charge: charge, used });
        drop(inner);
        drop(old);
    }

    /// Shows the tensor with this name.
    pub(crate) fn find<T>(&self, name: &str, show: impl FnOnce(&Named) -> T) -> Option<T> {
        let mut inner = self.lock();
        inner.clock += 1;
        let now = inner.clock;
        let named = inner.tensors.get_mut(name)?;
        named.used = now;
        Some(show(named))
    }

    /// Bytes of a device's memory that [`Self::evict`] could free.
    pub(crate) fn evictable_bytes(&self, device: u16) -> u64 {
        let inner = self.lock();
        let idle = inner.idle().filter(|(_, named)| named.device == device);
        let memory: HashMap<u64, u64> = idle.map(|(_, named)| (named.address(), named.memory.len())).collect();
        memory.values().filter_map(|&bytes| Pool::charge(bytes)).sum()
    }

    /// Lets go of the least recently used name on a device whose tensor nobody has a handle on; the bytes that it had.
    pub(crate) fn evict(&self, device: u16) -> Option<u64> {
        self.evict_where(|_, named| named.device == device)
    }

    /// Lets go of every name on a device: what they named is lost.
    pub(crate) fn forget(&self, device: u16) {
        let mut inner = self.lock();
        let gone: Vec<_> = inner.tensors.extract_if(|_, named| named.device == device).collect();
        drop(inner);
        drop(gone);
    }

    /// Bytes charged for names.
    pub(crate) fn used(&self) -> u64 {
        self.account.used()
    }

    /// Lets go of the least recently used idle tensor that `may` go.
    fn evict_where(&self, may: impl Fn(&str, &Named) -> bool) -> Option<u64> {
        let mut inner = self.lock();
        let first = inner.idle().filter(|(name, named)| may(name, named)).min_by_key(|(_, named)| named.used);
        let name = first.map(|(name, _)| name.clone())?;
        inner.tensors.remove(&name).map(|named| named.memory.len())
    }

    fn lock(&self) -> MutexGuard<'_, NamesInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this is another name of the same owner.
fn is_another_of(other: &str, name: &str) -> bool {
    other != name && owner_of(other) == owner_of(name)
}
