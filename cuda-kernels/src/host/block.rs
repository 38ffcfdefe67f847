//! One block: its threads as coroutines, its barriers and exchanges, its shared memory.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::HashMap;
use std::ffi::c_void;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

use super::{HostError, MOST_SHARED, shuffle};
use crate::kernel::Launch;

const WARP: usize = 32;
/// Bytes that one lane can give another in one exchange: the twin of `host_from_lane` in `cuda_on_host.h`.
const EXCHANGED: usize = 16;
const STACK: usize = 256 << 10;
/// What nobody wrote: NaN as any float, -1 as any integer.
const POISON: u8 = 0xFF;

/// What a kernel can ask about itself: the twin of `HostThread` in `cuda_on_host.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct HostThread {
    thread: [u32; 3],
    block: [u32; 3],
    block_dim: [u32; 3],
    grid_dim: [u32; 3],
    dynamic_shared: *mut u8,
}

/// Why a thread stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// It waits for all of its block.
    Block,
    /// It waits for these lanes of its warp.
    Warp(u32),
    /// It has come to its end.
    End,
}

/// A copy that has not arrived.
struct Copy {
    to: *mut u8,
    from: *const u8,
    bytes: usize,
    valid: usize,
}

impl Copy {
    /// # Safety
    /// Its addresses are those of memory of its sizes, aside from `from` where nothing is valid.
    unsafe fn arrive(&self) {
        // SAFETY: as the caller's.
        unsafe {
            if self.valid > 0 {
                std::ptr::copy_nonoverlapping(self.from, self.to, self.valid);
            }
            self.to.add(self.valid).write_bytes(0, self.bytes - self.valid);
        }
    }
}

/// What a coroutine and its scheduler share about one thread.
struct Thread {
    info: HostThread,
    posted: [u8; EXCHANGED],
    received: [[u8; EXCHANGED]; WARP],
    /// Groups of asynchronous copies, oldest first; the last is not committed yet.
    copies: Vec<Vec<Copy>>,
    /// Copies arrive as soon as they are asked for: what others still read there is lost.
    early: bool,
}

type Fibre = Coroutine<*mut Thread, Wait, (), DefaultStack>;

/// A coroutine that runs kernel after kernel.
struct Runner {
    fibre: Fibre,
}

impl Runner {
    fn new() -> Self {
        let stack = DefaultStack::new(STACK).expect("memory for a coroutine's stack");
        let fibre = Coroutine::with_stack(stack, |yielder: &Yielder<*mut Thread, Wait>, _: *mut Thread| {
            loop {
                YIELDER.set(yielder);
                let (kernel, params) = KERNEL.get().expect("a kernel runs");
                // SAFETY: `run`'s caller answers for what the parameters point to.
                unsafe { kernel(params) };
                yielder.suspend(Wait::End);
            }
        });
        Self { fibre }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // SAFETY: what its stack holds is a kernel's frames, which own nothing, and references to thread-locals.
        unsafe { self.fibre.force_reset() };
    }
}

type Entry = unsafe extern "C" fn(*const c_void);

thread_local! {
    static RUNNERS: RefCell<Vec<Runner>> = const { RefCell::new(Vec::new()) };
    static KERNEL: Cell<Option<(Entry, *const c_void)>> = const { Cell::new(None) };
    static YIELDER: Cell<*const Yielder<*mut Thread, Wait>> = const { Cell::new(std::ptr::null()) };
    static CURRENT: Cell<*mut Thread> = const { Cell::new(std::ptr::null_mut()) };
    static SHARED: UnsafeCell<Shared> = UnsafeCell::new(Shared::default());
}

/// A block's shared memory: first what the launch asked for, then the arrays of the source as they are met.
#[derive(Default)]
struct Shared {
    bytes: Vec<u128>,
    used: usize,
    places: HashMap<usize, usize>,
}

impl Shared {
    fn reset(&mut self, dynamic: usize) -> *mut u8 {
        self.bytes.resize(MOST_SHARED as usize / size_of::<u128>() + 1, 0);
        self.bytes.fill(u128::from_ne_bytes([POISON; 16]));
        self.places.clear();
        self.used = dynamic.next_multiple_of(16);
        self.bytes.as_mut_ptr().cast()
    }

    fn place(&mut self, place: usize, bytes: usize) -> *mut u8 {
        let used = &mut self.used;
        let at = *self.places.entry(place).or_insert_with(|| {
            let at = *used;
            *used += bytes.next_multiple_of(16);
            at
        });
        // A kernel that wants more would not be launched by a GPU. There is nobody to answer an error to inside of one.
        if self.used > MOST_SHARED as usize {
            eprintln!("a kernel's arrays in shared memory take {} bytes", self.used);
            std::process::abort();
        }
        // SAFETY: within `bytes`, as was just checked.
        unsafe { self.bytes.as_mut_ptr().cast::<u8>().add(at) }
    }
}

/// Runs one block.
///
/// # Safety
/// As [`super::run`].
pub(super) unsafe fn run(launch: &Launch, block: [u32; 3], seed: u64) -> Result<(), HostError> {
    let [dx, dy, _] = launch.block;
    let count = launch.block.iter().product::<u32>() as usize;
    // SAFETY: no kernel runs on this thread now, and only kernels and this function use it.
    let dynamic_shared = SHARED.with(|shared| unsafe { &mut *shared.get() }.reset(launch.shared as usize));
    let mut threads: Vec<Thread> = (0..count)
        .map(|i| {
            let n = i as u32;
            let info = HostThread {
                thread: [n % dx, n / dx % dy, n / (dx * dy)],
                block,
                block_dim: launch.block,
                grid_dim: launch.grid,
                dynamic_shared,
            };
            let (posted, received) = ([POISON; EXCHANGED], [[POISON; EXCHANGED]; WARP]);
            Thread { info, posted, received, copies: vec![Vec::new()], early: seed % 4 == 2 }
        })
        .collect();
    KERNEL.set(Some((launch.kernel.host, launch.params().as_ptr().cast())));
    RUNNERS.with_borrow_mut(|runners| {
        while runners.len() < count {
            runners.push(Runner::new());
        }
        let ended = schedule(&mut runners[..count], &mut threads, seed);
        ended.map_err(|waiting| {
            // They stand in the middle of a kernel: nothing can run on them again.
            runners.clear();
            HostError::Stuck { kernel: launch.kernel.name, block, waiting }
        })
    })
}

/// Runs the threads to their ends; else says who waits for whom.
///
/// Each warp in turn goes as far as it gets without the others, so that one which needs a barrier of the block, and has none, finds
/// what the others have not written yet; with every fourth seed all warps go in step instead.
fn schedule(runners: &mut [Runner], threads: &mut [Thread], seed: u64) -> Result<(), String> {
    let count = runners.len();
    let mut waits: Vec<Option<Wait>> = vec![None; count];
    let mut round = seed;
    let in_step = seed % 4 == 3;
    loop {
        let warps = count.div_ceil(WARP);
        let mut any = false;
        for warp in shuffle::order(warps as u64, round).map(|warp| warp as usize * WARP) {
            let all = warp..count.min(warp + WARP);
            let (runners, threads, waits) = (&mut runners[all.clone()], &mut threads[all.clone()], &mut waits[all]);
            loop {
                resume(runners, threads, waits, round);
                round = next_round(round);
                if in_step || !release_warp(waits, threads) {
                    break;
                }
            }
        }
        if waits.iter().all(|&wait| wait == Some(Wait::End)) {
            return Ok(());
        }
        if in_step {
            for (waits, threads) in waits.chunks_mut(WARP).zip(threads.chunks_mut(WARP)) {
                any |= release_warp(waits, threads);
            }
        }
        if !any && waits.iter().all(|wait| matches!(wait, Some(Wait::Block | Wait::End))) {
            waits.iter_mut().filter(|wait| **wait == Some(Wait::Block)).for_each(|wait| *wait = None);
            any = true;
        }
        if !any {
            return Err(describe(&waits));
        }
    }
}

/// The first two orders stay what they are: forwards and backwards.
fn next_round(round: u64) -> u64 {
    if round < 2 { round } else { round.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) | 2 }
}

/// Runs those threads of a warp that wait for nothing, until they wait.
fn resume(runners: &mut [Runner], threads: &mut [Thread], waits: &mut [Option<Wait>], round: u64) {
    for i in shuffle::order(runners.len() as u64, round).map(|i| i as usize) {
        if waits[i].is_some() {
            continue;
        }
        let thread: *mut Thread = &raw mut threads[i];
        CURRENT.set(thread);
        waits[i] = Some(match runners[i].fibre.resume(thread) {
            CoroutineResult::Yield(wait) => wait,
            CoroutineResult::Return(()) => Wait::End,
        });
    }
}

/// Lets go of the lanes of a warp that wait for each other and are all there, each with what the others posted.
fn release_warp(waits: &mut [Option<Wait>], threads: &mut [Thread]) -> bool {
    let mut any = false;
    for first in 0..waits.len() {
        let Some(Wait::Warp(mask)) = waits[first] else { continue };
        let lanes = || (0..WARP).filter(|lane| mask >> lane & 1 == 1);
        let there =
            |lane: usize| matches!(waits.get(lane), Some(Some(Wait::End)) | None) || waits[lane] == waits[first];
        if mask >> first & 1 == 0 || !lanes().all(there) {
            continue;
        }
        let mut all = [[POISON; EXCHANGED]; WARP];
        lanes()
            .filter(|&lane| waits.get(lane) == Some(&waits[first]))
            .for_each(|lane| all[lane] = threads[lane].posted);
        for lane in lanes() {
            if waits.get(lane) == Some(&Some(Wait::Warp(mask))) {
                threads[lane].received = all;
                waits[lane] = None;
            }
        }
        any = true;
    }
    any
}

fn describe(waits: &[Option<Wait>]) -> String {
    let mut said: Vec<(Wait, Vec<usize>)> = Vec::new();
    for (i, wait) in waits.iter().enumerate() {
        let Some(wait) = *wait else { continue };
        match said.iter_mut().find(|(other, _)| *other == wait) {
            Some((_, who)) => who.push(i),
            None => said.push((wait, vec![i])),
        }
    }
    let one = |(wait, who): &(Wait, Vec<usize>)| {
        let what = match wait {
            Wait::Block => "at the block's barrier".to_owned(),
            Wait::Warp(mask) => format!("for lanes {mask:#010x} of their warp"),
            Wait::End => "ended".to_owned(),
        };
        format!("{} threads from {} on {what}", who.len(), who[0])
    };
    said.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The thread that runs now.
fn current() -> &'static mut Thread {
    // SAFETY: only kernels come here, through the functions below, while `schedule` runs their thread, and it does not look at
    // the thread meanwhile. No two of these references live at a time: none is kept across a `suspend`.
    unsafe { &mut *CURRENT.get() }
}

fn suspend(wait: Wait) {
    let (me, yielder) = (CURRENT.get(), YIELDER.get());
    // SAFETY: each coroutine sets its own before its kernel starts, and the lines below set it again after others ran.
    unsafe { &*yielder }.suspend(wait);
    CURRENT.set(me);
    YIELDER.set(yielder);
}

#[unsafe(no_mangle)]
extern "C" fn genie_host_thread() -> *const HostThread {
    &raw const current().info
}

#[unsafe(no_mangle)]
extern "C" fn genie_host_block_barrier() {
    suspend(Wait::Block);
}

#[unsafe(no_mangle)]
extern "C" fn genie_host_warp_barrier(mask: u32) {
    suspend(Wait::Warp(mask));
}

/// # Safety
/// `value` points to `bytes` bytes, no more than [`EXCHANGED`].
#[unsafe(no_mangle)]
unsafe extern "C" fn genie_host_exchange(mask: u32, value: *const u8, bytes: u32) -> *const u8 {
    let me = current();
    let count = (bytes as usize).min(EXCHANGED);
    // SAFETY: as the caller has it.
    me.posted[..count].copy_from_slice(unsafe { std::slice::from_raw_parts(value, count) });
    suspend(Wait::Warp(mask));
    current().received.as_ptr().cast()
}

#[unsafe(no_mangle)]
extern "C" fn genie_host_shared(place: *const c_void, bytes: u64) -> *mut c_void {
    // SAFETY: kernels run one at a time on this thread, and the reference ends here.
    SHARED.with(|shared| unsafe { &mut *shared.get() }.place(place as usize, bytes as usize).cast())
}

#[unsafe(no_mangle)]
extern "C" fn genie_host_copy_async(to: *mut u8, from: *const u8, bytes: u32, valid: u32) {
    let copy = Copy { to, from, bytes: bytes as usize, valid: valid.min(bytes) as usize };
    let me = current();
    if me.early {
        // SAFETY: the kernel gave the addresses for so many bytes.
        unsafe { copy.arrive() };
    } else if let Some(open) = me.copies.last_mut() {
        open.push(copy);
    }
}

#[unsafe(no_mangle)]
extern "C" fn genie_host_copy_commit() {
    current().copies.push(Vec::new());
}

/// # Safety
/// The addresses of this thread's copies still are what they were.
#[unsafe(no_mangle)]
unsafe extern "C" fn genie_host_copy_wait(groups: u32) {
    let copies = &mut current().copies;
    let committed = copies.len() - 1;
    for copy in copies.drain(..committed.saturating_sub(groups as usize)).flatten() {
        // SAFETY: as the caller's.
        unsafe { copy.arrive() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(count: usize) -> Vec<Thread> {
        let info = HostThread {
            thread: [0; 3],
            block: [0; 3],
            block_dim: [0; 3],
            grid_dim: [0; 3],
            dynamic_shared: std::ptr::null_mut(),
        };
        (0..count)
            .map(|lane| Thread {
                info,
                posted: [lane as u8; EXCHANGED],
                received: [[0; EXCHANGED]; WARP],
                copies: vec![],
                early: false,
            })
            .collect()
    }

    #[test]
    fn lanes_go_on_when_all_of_the_mask_wait() {
        let mut threads = threads(4);
        let mut waits = vec![Some(Wait::Warp(0b0011)), None, Some(Wait::Warp(0b1100)), Some(Wait::Warp(0b1100))];
        assert!(release_warp(&mut waits, &mut threads));
        assert_eq!(waits, [Some(Wait::Warp(0b0011)), None, None, None]);
        assert_eq!(threads[2].received[3], [3; EXCHANGED]);
        assert_eq!(threads[2].received[0], [POISON; EXCHANGED]);
        // A lane that has ended is waited for no more; one at another barrier is.
        waits = vec![Some(Wait::Warp(0b0011)), Some(Wait::End), Some(Wait::Warp(0b1100)), Some(Wait::Block)];
        assert!(release_warp(&mut waits, &mut threads));
        assert!(!release_warp(&mut waits, &mut threads));
        assert!(describe(&waits).contains("1 threads from 3 on at the block's barrier"));
    }
}
