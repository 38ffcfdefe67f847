//! Tensors that stay on the server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use genie_transport::memory::{Region, Slab, copy_counted};
use genie_transport::wire::{ContentHash, ErrorCode, RemoteError, TensorSpec};

use crate::account::Charge;
use crate::error::fail;

/// A resident as one session has it.
///
/// Its bytes are replaced as a whole and never written in place while anybody else can read them, so that no reader ever sees
/// a mixture of old and new: a reader takes the [`Content`] of one moment and keeps it.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) device: u16,
    pub(crate) spec: TensorSpec,
    /// What a weight hashes to. Weights are immutable and shared between sessions.
    pub(crate) weight: Option<ContentHash>,
    content: Mutex<Arc<Content>>,
}

/// Bytes, and the quota that is charged for as long as somebody of the session holds them.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) region: Region,
    /// Differs between any two contents: tells whether bytes that were read earlier are still those.
    pub(crate) version: u64,
    charge: Charge,
}

impl Content {
    pub(crate) fn new(region: Region, charge: Charge) -> Arc<Self> {
        Arc::new(Self { region, version: next_version(), charge })
    }
}

fn next_version() -> u64 {
    static VERSIONS: AtomicU64 = AtomicU64::new(1);
    VERSIONS.fetch_add(1, Ordering::Relaxed)
}

impl Tensor {
    pub(crate) fn new(device: u16, spec: TensorSpec, weight: Option<ContentHash>, content: Arc<Content>) -> Arc<Self> {
        Arc::new(Self { device, spec, weight, content: Mutex::new(content) })
    }

    /// Its bytes as they are now.
    pub(crate) fn content(&self) -> Arc<Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its bytes as they are now, in memory that no client can write: where they lie in a client's, it gets a copy of its own
    /// for good.
    pub(crate) fn own_content(&self) -> Result<Arc<Content>, RemoteError> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        if content.region.is_peer_writable() {
            let bytes = content.region.len();
            let charge = content.charge.account().charge(bytes as u64)?;
            let message = || format!("no memory for a copy of {bytes} bytes: free tensors");
            let mut slab = Slab::try_zeroed(bytes).ok_or_else(|| fail(ErrorCode::OutOfMemory, message()))?;
            copy_counted(&mut slab, &content.region);
            *content = Content::new(slab.freeze(), charge);
        }
        Ok(content.clone())
    }

    /// Whether bytes `offset..offset + length` may be replaced.
    pub(crate) fn may_replace(&self, offset: u64, length: u64) -> Result<(), RemoteError> {
        if self.weight.is_some() {
            return Err(fail(
                ErrorCode::WrongType,
                "weights are immutable: put the changed tensor as a private resident",
            ));
        }
        range_within(offset, length, self.spec.bytes())
    }

    /// Replaces all bytes.
    pub(crate) fn replace(&self, content: Arc<Content>) {
        let old = std::mem::replace(&mut *self.content.lock().unwrap_or_else(PoisonError::into_inner), content);
        // Dropped after the lock: giving memory back may take long.
        drop(old);
    }

    /// Replaces the bytes from `offset` on, which [`Self::may_replace`] has allowed. Where nobody else reads the old bytes they
    /// are written in place; else `allocate` gives memory for a copy.
    pub(crate) fn write(
        &self,
        offset: u64,
        bytes: &[u8],
        allocate: impl FnOnce(u64) -> Result<Slab, RemoteError>,
    ) -> Result<(), RemoteError> {
        let start = usize::try_from(offset).map_err(|_| out_of_range(offset, bytes.len() as u64, self.spec.bytes()))?;
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        if content.region.len().checked_sub(start).is_none_or(|left| left < bytes.len()) {
            return Err(out_of_range(offset, bytes.len() as u64, self.spec.bytes()));
        }
        let range = start..start + bytes.len();
        let charge_bytes = content.region.len() as u64;
        let alone = Arc::get_mut(&mut content)
            .map(|content| std::mem::replace(&mut content.region, Region::from_owner([0_u8; 0])))
            .map(Region::try_thaw);
        match alone {
            // Whoever comes in between waits for the lock: nobody sees the emptied content.
            Some(Ok(mut slab)) => {
                copy_counted(&mut slab[range], bytes);
                if let Some(content) = Arc::get_mut(&mut content) {
                    content.region = slab.freeze();
                    content.version = next_version();
                }
                Ok(())
            }
            other => {
                if let (Some(Err(region)), Some(content)) = (other, Arc::get_mut(&mut content)) {
                    content.region = region;
                }
                let charge = content.charge.account().charge(charge_bytes)?;
                let mut slab = allocate(charge_bytes)?;
                copy_counted(&mut slab[..range.start], &content.region[..range.start]);
                copy_counted(&mut slab[range.end..], &content.region[range.end..]);
                copy_counted(&mut slab[range], bytes);
                *content = Content::new(slab.freeze(), charge);
                Ok(())
            }
        }
    }
}

/// Whether `offset..offset + length` lies within `total` bytes.
pub(crate) fn range_within(offset: u64, length: u64, total: u64) -> Result<(), RemoteError> {
    match offset.checked_add(length) {
        Some(end) if end <= total => Ok(()),
        _ => Err(out_of_range(offset, length, total)),
    }
}

fn out_of_range(offset: u64, length: u64, total: u64) -> RemoteError {
    fail(ErrorCode::OutOfRange, format!("{length} bytes from byte {offset} on do not lie within a tensor of {total}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Account;
    use genie_graph::DType;

    fn tensor(account: &Arc<Account>) -> Arc<Tensor> {
        let content = Content::new(Region::copy_of(&[1; 8]), account.charge(8).unwrap());
        Tensor::new(0, TensorSpec::new(DType::U8, &[8]).unwrap(), None, content)
    }

    fn slab(n: u64) -> Result<Slab, RemoteError> {
        Ok(Slab::zeroed(n as usize))
    }

    #[test]
    fn a_reader_keeps_the_bytes_of_its_moment() {
        let account = Account::new(100);
        let tensor = tensor(&account);
        let before = tensor.content();
        tensor.write(2, &[9; 3], slab).unwrap();
        assert_eq!(&*before.region, &[1; 8]);
        assert_eq!(&*tensor.content().region, &[1, 1, 9, 9, 9, 1, 1, 1]);
        assert_eq!(account.used(), 16, "both are held, both are charged");
        drop(before);
        assert_eq!(account.used(), 8);
        tensor.write(0, &[7], |_| panic!("nobody else reads: written in place")).unwrap();
        assert_eq!(tensor.content().region[0], 7);
    }

    #[test]
    fn a_copy_that_cannot_be_made_changes_nothing() {
        let account = Account::new(12);
        let tensor = tensor(&account);
        let reader = tensor.content();
        assert_eq!(tensor.write(0, &[9], slab).unwrap_err().code, ErrorCode::OverQuota);
        let region = reader.region.clone();
        drop(reader);
        assert_eq!(tensor.write(0, &[9], slab).unwrap_err().code, ErrorCode::OverQuota, "a send still reads it");
        assert_eq!((&*tensor.content().region, account.used()), (&[1; 8][..], 8));
        drop(region);
        assert_eq!(tensor.write(8, &[9], slab).unwrap_err().code, ErrorCode::OutOfRange);
        assert_eq!(tensor.may_replace(u64::MAX, 2).unwrap_err().code, ErrorCode::OutOfRange);
    }
}
