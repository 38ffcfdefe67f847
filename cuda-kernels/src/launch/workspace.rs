//! Where blocks that share sums leave their parts, and what of a GPU decides how sums are cut up.

use crate::view::{Address, Check, LaunchError, View};

/// What of a GPU decides how a product is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Multiprocessors.
    pub sms: u32,
    /// Bytes of shared memory that a block may ask for (compute capability 7.5: 64 KiB, 8.0: 163 KiB, 9.0: 227 KiB).
    pub shared: u32,
}

/// Blocks that shall run on a multiprocessor at a time.
pub(crate) const RESIDENT: u64 = 2;
/// Most parts that a sum is cut into for the sake of more blocks.
pub(crate) const MOST_SPLITS: u64 = 8;
/// Counters of a workspace, 4 bytes each: a tile has one.
pub(crate) const COUNTERS: u64 = 1 << 16;

/// Bytes at a workspace's beginning that must be zero before its first use, and are so again after every launch.
///
/// Launches that may run at the same time need a workspace each; otherwise one, as large as the largest that is needed, serves
/// all.
pub const ZEROED_BYTES: u64 = COUNTERS * 4;

impl Machine {
    pub(crate) fn check(self, check: Check) -> Result<(), LaunchError> {
        check.size("sms", self.sms.into(), self.sms > 0, "the GPU's number of multiprocessors")
    }

    /// Parts that `tiles` tiles' sums are cut into, so that all multiprocessors have something to do.
    pub(crate) fn splits(self, tiles: u64) -> u64 {
        (RESIDENT * u64::from(self.sms) / tiles.max(1)).clamp(1, MOST_SPLITS)
    }
}

/// Bytes of a workspace for so many `tiles` of `floats` sums, each in so many `splits`; 0 if there is one.
pub(crate) fn bytes(check: Check, tiles: u64, splits: u64, floats: u64) -> Result<u64, LaunchError> {
    if splits <= 1 {
        return Ok(0);
    }
    check.size("tiles", tiles, tiles <= COUNTERS, "at most 65536 where the sums are cut into parts")?;
    Ok(check.product("workspace", &[tiles, splits, floats, 4])? + ZEROED_BYTES)
}

/// Addresses of the counters and of the parts in a workspace of at least `needed` bytes.
pub(crate) fn addresses(check: Check, workspace: View, needed: u64) -> Result<(Address, Address), LaunchError> {
    check.size("workspace", workspace.bytes(), workspace.bytes() >= needed, "at least what workspace_bytes says")?;
    check.aligned("workspace", workspace, 16)?;
    Ok((workspace.at, workspace.at.wrapping_add(ZEROED_BYTES)))
}
