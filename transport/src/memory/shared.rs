//! Memory that two processes map.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags};

use super::aligned::{Aligned, LARGE};
use super::slab::ALIGN;

/// A file in memory, mapped. It can neither shrink nor grow, so that no access to the mapping can fault: its seals say so, and
/// are checked on a file that came from somebody else.
///
/// Both sides may write it at any time. So nothing here gives a reference to its bytes: they are copied out, or read through
/// pointers by those who can live with bytes that change.
#[derive(Debug)]
pub struct SharedMemory {
    /// To be passed on; not kept of what came from the other side.
    file: Option<File>,
    map: Aligned,
    len: usize,
    /// How far its pages were joined to large ones.
    joined: AtomicUsize,
}

/// Why a descriptor from the other side is not taken as shared memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotShared {
    /// Another kind of file could fault, block, or be cut short under the mapping.
    #[error("the descriptor is no file in memory: pass one made by memfd_create, without huge pages of its own")]
    Kind,
    /// It could be cut short under the mapping.
    #[error(
        "the memory is not sealed against shrinking and growing: add F_SEAL_SHRINK and F_SEAL_GROW before it is passed"
    )]
    Unsealed,
    /// Its size is not what was said.
    #[error("the memory has {found} bytes, {said} were said")]
    Size {
        /// What it has.
        found: u64,
        /// What the other side said.
        said: u64,
    },
    /// The system refuses.
    #[error("the memory cannot be mapped: {0}")]
    Io(#[from] io::Error),
}

/// What [`rustix::fs::fstatfs`] calls files in memory; those in huge pages of their own have another number.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

impl SharedMemory {
    /// New memory of `len` bytes (a whole number of pages), zeroed.
    ///
    /// # Errors
    /// The system has no memory or no descriptor left.
    pub fn new(len: usize) -> io::Result<Self> {
        let file = rustix::fs::memfd_create(c"genie", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, len as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let file = File::from(file);
        let memory = Self { map: Aligned::new(&file, len)?, file: Some(file), len, joined: AtomicUsize::new(0) };
        // Streaming through large pages is faster. A kernel that has none says so, and need not have.
        #[cfg(target_os = "linux")]
        if len >= LARGE {
            memory.advise(0..len, libc::MADV_HUGEPAGE);
        }
        Ok(memory)
    }

    /// Takes memory that the other side made, once everything that could make an access fault is ruled out.
    ///
    /// # Errors
    /// [`NotShared`].
    pub fn adopt(file: OwnedFd, len: u64) -> Result<Self, NotShared> {
        let status = rustix::fs::fstat(&file).map_err(io::Error::from)?;
        let regular = rustix::fs::FileType::from_raw_mode(status.st_mode) == rustix::fs::FileType::RegularFile;
        let system = rustix::fs::fstatfs(&file).map_err(io::Error::from)?.f_type;
        if !regular || system != TMPFS_MAGIC {
            return Err(NotShared::Kind);
        }
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(|_| NotShared::Unsealed)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(NotShared::Unsealed);
        }
        // Sealed, its size is what it will be.
        let found = u64::try_from(status.st_size).unwrap_or(0);
        let wanted = usize::try_from(len).ok().filter(|n| n.is_multiple_of(ALIGN) && *n > 0);
        let Some(wanted) = wanted.filter(|_| found == len) else { return Err(NotShared::Size { found, said: len }) };
        let file = File::from(file);
        Ok(Self { map: Aligned::new(&file, wanted)?, file: None, len: wanted, joined: AtomicUsize::new(0) })
    }

    /// Makes all of its pages present, and large ones where the system has them: slow, and then no access waits for a page.
    pub fn populate(&self) {
        // Neither is needed for anything but speed.
        #[cfg(target_os = "linux")]
        self.advise(0..self.len, libc::MADV_POPULATE_WRITE);
        self.join(self.len);
    }

    /// Joins the next `bytes` of its pages to large ones, where they are present and the system has large ones: those of shared memory
    /// only for who asks for them this way. It takes longer than to write them, and is for memory that is written again and again, a
    /// little each time.
    pub fn join(&self, bytes: usize) {
        let from = self.joined.load(Ordering::Relaxed);
        let to = from.saturating_add(bytes).min(self.len);
        self.joined.store(to, Ordering::Relaxed);
        // A large page that was begun the last time is joined once the rest of it is asked for.
        let (from, to) = (from / LARGE * LARGE, to / LARGE * LARGE);
        #[cfg(target_os = "linux")]
        if from < to {
            self.advise(from..to, libc::MADV_COLLAPSE);
        }
    }

    /// Advice about a range of whole pages within this mapping, that changes no byte of it.
    #[cfg(target_os = "linux")]
    fn advise(&self, range: Range<usize>, advice: libc::c_int) {
        debug_assert!(range.end <= self.len);
        // SAFETY: the range is within this mapping, and the advice given here changes no byte.
        let done = unsafe { libc::madvise(self.start().as_ptr().add(range.start).cast(), range.len(), advice) };
        if done != 0 {
            // Slower, and nothing else.
            tracing::trace!(advice, error = %io::Error::last_os_error(), "advice about memory was not taken");
        }
    }

    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte; valid for [`Self::len`] bytes for as long as this lives. Page-aligned.
    #[inline]
    pub fn start(&self) -> NonNull<u8> {
        self.map.start()
    }

    /// A number in it that both sides change. `None`: it does not lie within, on a multiple of 4.
    pub fn counter(&self, offset: usize) -> Option<&AtomicU32> {
        if !offset.is_multiple_of(4) || offset.checked_add(4).is_none_or(|end| end > self.len) {
            return None;
        }
        // SAFETY: aligned and within the mapping, which lives as long as the reference; any bits are a number, and all who use
        // it, use it atomically.
        Some(unsafe { AtomicU32::from_ptr(self.start().as_ptr().add(offset).cast()) })
    }

    /// The same of 64 bits, on a multiple of 8.
    fn counter64(&self, offset: usize) -> Option<&AtomicU64> {
        if !offset.is_multiple_of(8) || offset.checked_add(8).is_none_or(|end| end > self.len) {
            return None;
        }
        // SAFETY: as in `counter`.
        Some(unsafe { AtomicU64::from_ptr(self.start().as_ptr().add(offset).cast()) })
    }

    /// Copies bytes to it, while nobody else is to touch them there; what is read by somebody who does, is spoilt. Whether they
    /// lie within.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let within = offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len);
        if within {
            // SAFETY: within the mapping, which lives as long as `self`; private memory and the mapping do not overlap.
            unsafe { self.start().as_ptr().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
        within
    }

    /// Copies bytes out of it; where somebody writes them meanwhile, any bits may come. Whether they lie within.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        let within = offset.checked_add(into.len()).is_some_and(|end| end <= self.len);
        if within {
            // SAFETY: within the mapping, which lives as long as `self`; private memory and the mapping do not overlap.
            unsafe { into.as_mut_ptr().copy_from_nonoverlapping(self.start().as_ptr().add(offset), into.len()) };
        }
        within
    }

    /// The descriptor, to be passed on. `None`: it came from the other side, and the mapping is all that is left of it.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(File::as_fd)
    }
}

/// Shared memory for tensors: the bytes, and behind them a page that counts who uses them.
///
/// A client takes a use for every request that passes some of the bytes to the server; the server gives it back when the
/// resident they became is gone, or the request has failed. Until then the client does not write them. A server that counts
/// wrongly, or a client that writes all the same, harms that client alone.
///
/// Uses that nobody gives back, since their server is gone, the client forgets, and an era begins. Should that server come to give
/// some back all the same, it finds another era than they were taken in, and they are not taken for those of the next.
#[derive(Debug)]
pub struct SharedBytes {
    /// Before the memory: what is attached goes before it is unmapped.
    attached: Attached,
    memory: SharedMemory,
    len: usize,
    /// Of the uses that this side takes, or gives back.
    era: AtomicU32,
}

/// What devices have to do with shared memory, and which: those that made nothing of it are not asked again.
#[derive(Default)]
struct Attached(Mutex<Vec<(usize, Option<Attachment>)>>);

/// What a device keeps with shared memory. It is dropped just before that is unmapped.
pub type Attachment = Box<dyn Send + Sync>;

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Attached")
    }
}

/// How often it is tried to give a use back while the other side changes the count: one that never stops harms itself.
const TRIES: u32 = 10_000;

impl SharedBytes {
    /// Memory for `len` bytes, and the page of the count.
    ///
    /// # Errors
    /// As [`SharedMemory::new`]; or so many bytes do not fit this machine.
    pub fn new(len: usize) -> io::Result<Self> {
        let whole = len.max(1).checked_next_multiple_of(ALIGN).and_then(|n| n.checked_add(ALIGN));
        let whole = whole.filter(|&n| isize::try_from(n).is_ok()).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = SharedMemory::new(whole)?;
        Ok(Self { attached: Attached::default(), memory, len, era: AtomicU32::new(0) })
    }

    /// The other side's: `len` bytes of file, the last page of them the count. Uses of this era are given back.
    ///
    /// # Errors
    /// As [`SharedMemory::adopt`].
    pub fn adopt(file: OwnedFd, len: u64, era: u32) -> Result<Self, NotShared> {
        let memory = SharedMemory::adopt(file, len)?;
        let bytes = memory.len().checked_sub(ALIGN).filter(|&n| n > 0);
        let len = bytes.ok_or(NotShared::Size { found: len, said: 0 })?;
        Ok(Self { attached: Attached::default(), memory, len, era: AtomicU32::new(era) })
    }

    /// The era of its uses.
    pub fn era(&self) -> u32 {
        self.era.load(Ordering::Acquire)
    }

    /// Keeps what `make` gives, once for each `by`, until just before the memory is unmapped: a device's knowledge of it.
    pub fn attach(&self, by: usize, make: impl FnOnce() -> Option<Attachment>) {
        let mut all = self.attached.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.iter().all(|(known, _)| *known != by) {
            all.push((by, make()));
        }
    }

    /// The memory that holds them.
    pub fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.memory.start()
    }

    /// One more use.
    pub fn take_use(&self) {
        if let Some(uses) = self.uses() {
            uses.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// One use less, where there is one.
    pub fn give_use_back(&self) {
        if let Some(uses) = self.uses() {
            let era = self.era();
            let mut now = uses.load(Ordering::Acquire);
            for _ in 0..TRIES {
                // The other side may have written any number there.
                if now >> 32 != u64::from(era) || now as u32 == 0 {
                    return;
                }
                match uses.compare_exchange_weak(now, now - 1, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => return,
                    Err(other) => now = other,
                }
            }
        }
    }

    /// No uses: those who had any are gone, and what they still give back is of an era before.
    pub fn forget_uses(&self) {
        if let Some(uses) = self.uses() {
            let era = self.era().wrapping_add(1);
            self.era.store(era, Ordering::Release);
            uses.store(u64::from(era) << 32, Ordering::Release);
        }
    }

    /// Whether the other side may read the bytes now.
    pub fn is_used(&self) -> bool {
        self.uses().is_none_or(|uses| uses.load(Ordering::Acquire) as u32 != 0)
    }

    /// How many there are, and above that their era.
    fn uses(&self) -> Option<&AtomicU64> {
        self.memory.counter64(self.memory.len().checked_sub(ALIGN)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn duplicate(memory: &SharedMemory) -> OwnedFd {
        memory.fd().unwrap().try_clone_to_owned().unwrap()
    }

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let ours = SharedMemory::new(2 * ALIGN).unwrap();
        let theirs = SharedMemory::adopt(duplicate(&ours), 2 * ALIGN as u64).unwrap();
        ours.counter(ALIGN).unwrap().store(7, Ordering::Release);
        assert_eq!(theirs.counter(ALIGN).unwrap().load(Ordering::Acquire), 7);
        assert!(ours.write(ALIGN - 2, &[1, 2, 3]));
        let mut seen = [0; 3];
        assert!(theirs.read(ALIGN - 2, &mut seen) && seen == [1, 2, 3]);
        assert!(!ours.write(2 * ALIGN - 2, &seen) && !ours.read(usize::MAX, &mut seen));
        assert!(ours.counter(2 * ALIGN).is_none() && ours.counter(1).is_none() && ours.counter(usize::MAX).is_none());
    }

    /// Pages in large ones within this mapping, as the system counts them.
    fn joined(memory: &SharedMemory) -> Option<u64> {
        let start = format!("{:x}-", memory.start().as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let line = lines.find(|line| line.starts_with("ShmemPmdMapped:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
    }

    /// None ever was: mappings lay at any page, and steps of less than a large page passed over each of them.
    #[test]
    fn pages_are_joined_by_steps_of_any_size() {
        let len = 3 * LARGE + ALIGN;
        for step in [LARGE / 2, LARGE, LARGE + ALIGN, usize::MAX] {
            let memory = SharedMemory::new(len).unwrap();
            assert!(memory.write(0, &vec![7; len]));
            // SAFETY: the first large page of this mapping; joining changes no byte.
            let can = unsafe { libc::madvise(memory.start().as_ptr().cast(), LARGE, libc::MADV_COLLAPSE) } == 0;
            if !can {
                // A kernel before 6.1, or one without large pages, or no large page is free now.
                return;
            }
            (0..7).for_each(|_| memory.join(step));
            let mut seen = vec![0; len];
            assert!(memory.read(0, &mut seen) && seen.iter().all(|&b| b == 7));
            let joined = joined(&memory);
            assert!(joined.is_none_or(|bytes| bytes >= LARGE as u64), "step {step}: {joined:?} of {len}");
        }
    }

    #[test]
    fn only_sealed_memory_of_the_size_that_was_said_is_taken() {
        let ours = SharedMemory::new(2 * ALIGN).unwrap();
        for said in [0, 1, ALIGN as u64, 3 * ALIGN as u64, u64::MAX] {
            assert!(matches!(SharedMemory::adopt(duplicate(&ours), said), Err(NotShared::Size { .. })), "{said}");
        }
        for seals in [SealFlags::empty(), SealFlags::SHRINK, SealFlags::GROW] {
            let file = rustix::fs::memfd_create(c"test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
            rustix::fs::ftruncate(&file, ALIGN as u64).unwrap();
            rustix::fs::fcntl_add_seals(&file, seals).unwrap();
            assert!(matches!(SharedMemory::adopt(file, ALIGN as u64), Err(NotShared::Unsealed)));
        }
        // One that can never be sealed.
        let file = rustix::fs::memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, ALIGN as u64).unwrap();
        assert!(matches!(SharedMemory::adopt(file, ALIGN as u64), Err(NotShared::Unsealed)));
    }

    #[test]
    fn other_files_are_not_taken() {
        let mut file = tempfile();
        file.write_all(&[0; ALIGN]).unwrap();
        assert!(matches!(SharedMemory::adopt(file.into(), ALIGN as u64), Err(NotShared::Kind | NotShared::Unsealed)));
        let (read, _write) = io::pipe().unwrap();
        assert!(matches!(SharedMemory::adopt(read.into(), ALIGN as u64), Err(NotShared::Kind)));
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(SharedMemory::adopt(socket.into(), ALIGN as u64), Err(NotShared::Kind)));
        let zero = File::open("/dev/zero").unwrap();
        assert!(SharedMemory::adopt(zero.into(), ALIGN as u64).is_err());
    }

    fn tempfile() -> File {
        let path = std::env::temp_dir().join(format!("genie-shared-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    #[test]
    fn uses_are_counted_across_both_mappings() {
        let ours = SharedBytes::new(5000).unwrap();
        let whole = ours.memory().len() as u64;
        let theirs = SharedBytes::adopt(duplicate(ours.memory()), whole, ours.era()).unwrap();
        assert!(theirs.len() >= ours.len());
        assert!(!ours.is_used());
        ours.take_use();
        assert!(theirs.is_used());
        theirs.give_use_back();
        assert!(!ours.is_used());
        // Given back once too often: there is no use all the same.
        theirs.give_use_back();
        assert!(!ours.is_used());
        ours.take_use();
        ours.take_use();
        ours.forget_uses();
        assert!(!theirs.is_used());
    }

    #[test]
    fn what_is_attached_is_made_once_and_goes_before_the_memory() {
        use std::sync::Arc;
        use std::sync::atomic::AtomicBool;
        struct Device(Arc<AtomicBool>);
        impl Drop for Device {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Release);
            }
        }
        let (bytes, gone) = (SharedBytes::new(5000).unwrap(), Arc::new(AtomicBool::new(false)));
        bytes.attach(1, || Some(Box::new(Device(gone.clone()))));
        bytes.attach(2, || None);
        bytes.attach(1, || panic!("it knows the memory"));
        bytes.attach(2, || panic!("it said that it makes nothing of it"));
        assert!(!gone.load(Ordering::Acquire));
        drop(bytes);
        assert!(gone.load(Ordering::Acquire));
    }

    /// A server that was taken for gone gave its uses back after all, when the next had some: the client wrote what that one read.
    #[test]
    fn a_use_of_an_era_before_is_no_use_of_this_one() {
        let ours = SharedBytes::new(5000).unwrap();
        let whole = ours.memory().len() as u64;
        let adopted = |era| SharedBytes::adopt(duplicate(ours.memory()), whole, era).unwrap();
        let first = adopted(ours.era());
        ours.take_use();
        ours.forget_uses();
        let second = adopted(ours.era());
        ours.take_use();
        first.give_use_back();
        assert!(ours.is_used(), "by the second");
        second.give_use_back();
        assert!(!ours.is_used());
    }
}
