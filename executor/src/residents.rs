//! Tensors that stay on the server.

use std::sync::{Arc, Mutex, PoisonError};

use genie_transport::memory::{Region, Slab};
use genie_transport::wire::{ContentHash, ErrorCode, RemoteError, TensorSpec};

use crate::account::Charge;
use crate::device::{DeviceError, Memory, Space};
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
    pub(crate) memory: Memory,
    charge: Charge,
}

impl Content {
    pub(crate) fn new(memory: Memory, charge: Charge) -> Arc<Self> {
        Arc::new(Self { memory, charge })
    }
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
        if content.memory.is_peer_writable() {
            let bytes = content.memory.len();
            let charge = content.charge.account().charge(bytes)?;
            let message = || format!("no memory for a copy of {bytes} bytes: free tensors");
            let slab = usize::try_from(bytes).ok().and_then(Slab::try_zeroed);
            let mut slab = slab.ok_or_else(|| fail(ErrorCode::OutOfMemory, message()))?;
            content.memory.read(0, &mut slab)?;
            *content = Content::new(slab.freeze().into(), charge);
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

    /// Replaces `length` bytes from `offset` on, which [`Self::may_replace`] has allowed this session: `fill` writes them. Where nobody else
    /// reads the old bytes they are written in place; else `allocate` gives memory for a copy.
    pub(crate) fn write(
        &self,
        session: u64,
        (offset, length): (u64, u64),
        mut fill: impl FnMut(&mut Space) -> Result<(), DeviceError>,
        allocate: impl FnOnce(u64) -> Result<Space, RemoteError>,
    ) -> Result<(), RemoteError> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        let total = content.memory.len();
        range_within(offset, length, total)?;
        let end = offset + length;
        let alone = Arc::get_mut(&mut content)
            .map(|content| std::mem::replace(&mut content.memory, Region::from_owner([0_u8; 0]).into()))
            .map(|memory| memory.try_thaw(session));
        match alone {
            // Whoever comes in between waits for the lock: nobody sees the emptied content.
            Some(Ok(mut space)) => {
                let written = fill(&mut space);
                if let Some(content) = Arc::get_mut(&mut content) {
                    content.memory = space.freeze();
                }
                Ok(written?)
            }
            other => {
                if let (Some(Err(memory)), Some(content)) = (other, Arc::get_mut(&mut content)) {
                    content.memory = memory;
                }
                let charge = content.charge.account().charge(total)?;
                let mut space = allocate(total)?;
                for (at, kept) in [(0, 0..offset), (end, end..total)] {
                    if let Some(kept) = content.memory.slice(kept).filter(|kept| !kept.is_empty()) {
                        space.copy(at, &kept)?;
                    }
                }
                fill(&mut space)?;
                *content = Content::new(space.freeze(), charge);
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
        let content = Content::new(Region::copy_of(&[1; 8]).into(), account.charge(8).unwrap());
        Tensor::new(0, TensorSpec::new(DType::U8, &[8]).unwrap(), None, content)
    }

    fn space(n: u64) -> Result<Space, RemoteError> {
        Ok(Space::Host(Slab::zeroed(n as usize)))
    }

    fn write(
        tensor: &Tensor,
        offset: u64,
        bytes: &[u8],
        allocate: fn(u64) -> Result<Space, RemoteError>,
    ) -> Result<(), RemoteError> {
        tensor.write(1, (offset, bytes.len() as u64), |space| space.write(offset, bytes), allocate)
    }

    #[test]
    fn a_reader_keeps_the_bytes_of_its_moment() {
        let account = Account::new(100);
        let tensor = tensor(&account);
        let before = tensor.content();
        write(&tensor, 2, &[9; 3], space).unwrap();
        assert_eq!(before.memory.host().unwrap()[..], [1; 8]);
        assert_eq!(tensor.content().memory.host().unwrap()[..], [1, 1, 9, 9, 9, 1, 1, 1]);
        assert_eq!(account.used(), 16, "both are held, both are charged");
        drop(before);
        assert_eq!(account.used(), 8);
        write(&tensor, 0, &[7], |_| panic!("nobody else reads: written in place")).unwrap();
        assert_eq!(tensor.content().memory.host().unwrap()[0], 7);
    }

    #[test]
    fn a_copy_that_cannot_be_made_changes_nothing() {
        let account = Account::new(12);
        let tensor = tensor(&account);
        let reader = tensor.content();
        assert_eq!(write(&tensor, 0, &[9], space).unwrap_err().code, ErrorCode::OverQuota);
        let memory = reader.memory.clone();
        drop(reader);
        assert_eq!(write(&tensor, 0, &[9], space).unwrap_err().code, ErrorCode::OverQuota, "a send still reads it");
        assert_eq!((&tensor.content().memory.host().unwrap()[..], account.used()), (&[1; 8][..], 8));
        drop(memory);
        assert_eq!(write(&tensor, 8, &[9], space).unwrap_err().code, ErrorCode::OutOfRange);
        assert_eq!(tensor.may_replace(u64::MAX, 2).unwrap_err().code, ErrorCode::OutOfRange);
    }
}
