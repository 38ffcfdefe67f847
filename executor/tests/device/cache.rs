//! KV caches: forks, truncation, export and import, memory.

use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::{Device, DeviceError, KvSpec, Memory, Space};
use genie_graph::DType;
use genie_transport::memory::Slab;

use crate::support::Runner;
use crate::support::models::llama;
use crate::tiny::TINY;

const SPEC: KvSpec = KvSpec { layers: 2, kv_heads: 3, head_dim: 5, dtype: DType::F16 };

fn runner() -> Runner {
    Runner::new(CpuDevice::new(0, 2, 1 << 28).unwrap(), llama(&TINY))
}

fn tokens(n: i32) -> Vec<i32> {
    (0..n).map(|i| i * 11 % 97).collect()
}

fn bytes(memory: &Memory) -> Vec<u8> {
    memory.to_host().unwrap().to_vec()
}

fn used(device: &CpuDevice) -> u64 {
    device.info().total_bytes - device.info().free_bytes
}

#[test]
fn a_fork_and_its_origin_go_their_own_ways() {
    let runner = runner();
    for prefix in [10, 63, 64, 65, 130] {
        let mut origin = runner.session();
        runner.feed(&mut origin, &tokens(prefix));
        let mut fork = runner.session();
        fork.cache = origin.cache.fork();
        let mut plain = runner.session();
        runner.feed(&mut plain, &tokens(prefix));

        let by_origin = runner.feed(&mut origin, &[1]);
        let by_fork = runner.feed(&mut fork, &[2]);
        assert_ne!(by_origin, by_fork);
        assert_eq!(runner.feed(&mut plain, &[2]), by_fork);
        assert_eq!(runner.feed(&mut fork, &[9]), runner.feed(&mut plain, &[9]));
        assert_eq!(origin.cache.len(), u64::from(prefix.unsigned_abs()) + 1);
        // What the fork appended is nowhere in the origin.
        let mut plain = runner.session();
        runner.feed(&mut plain, &tokens(prefix));
        assert_eq!(runner.feed(&mut plain, &[1]), by_origin);
        assert_eq!(runner.feed(&mut origin, &[3]), runner.feed(&mut plain, &[3]));
    }
}

#[test]
fn a_fork_costs_one_block_when_it_appends() {
    let device = CpuDevice::new(0, 1, 1 << 28).unwrap();
    let mut origin = device.cache(SPEC).unwrap();
    let block = SPEC.block_bytes().unwrap() as u64;
    assert_eq!(block, 2 * 2 * 3 * 64 * 5 * 2);
    let blocks = |n: u64| (0..n).map(|_| Space::Host(Slab::zeroed(block as usize))).collect::<Vec<_>>();
    origin.import(150, blocks(3)).unwrap();
    assert_eq!(origin.bytes(), 3 * block);
    let mut fork = origin.fork();
    assert_eq!((fork.len(), used(&device)), (150, 0));
    assert_eq!(fork.growth(1), block);
    assert_eq!(fork.growth(64), 2 * block);
    fork.reserve(1).unwrap();
    assert!((block..2 * block).contains(&used(&device)), "one block was copied");
    assert_eq!(fork.growth(1), 0);
    // A fork at a block's end copies nothing.
    origin.truncate(128);
    let mut fork = origin.fork();
    assert_eq!(fork.growth(64), block);
    fork.reserve(64).unwrap();
    assert_eq!(origin.growth(0), 0);
}

#[test]
fn truncating_goes_back_in_time() {
    let runner = runner();
    let mut session = runner.session();
    runner.feed(&mut session, &tokens(70));
    let next = runner.feed(&mut session, &[4]);
    runner.feed(&mut session, &tokens(100));
    session.cache.truncate(70);
    assert_eq!(session.cache.len(), 70);
    assert_eq!(session.cache.bytes(), 2 * runner.spec.block_bytes().unwrap() as u64);
    assert_eq!(runner.feed(&mut session, &[4]), next);
    session.cache.truncate(1000);
    assert_eq!(session.cache.len(), 71);
    session.cache.truncate(0);
    assert!(session.cache.is_empty());
    assert_eq!(session.cache.bytes(), 0);
}

#[test]
fn what_is_exported_can_be_imported_elsewhere() {
    let (here, there) = (runner(), runner());
    let mut session = here.session();
    here.feed(&mut session, &tokens(100));
    let segments = session.cache.segments();
    assert_eq!(segments.len(), 2);
    let before: Vec<Vec<u8>> = segments.iter().map(bytes).collect();
    let next = here.feed(&mut session, &[8]);
    // Appending left the exported memory alone.
    assert!(segments.iter().zip(&before).all(|(now, before)| bytes(now) == *before));

    let mut moved = there.session();
    let copies = before.iter().map(|bytes| {
        let mut space = there.device.allocate(bytes.len() as u64).unwrap();
        space.write(0, bytes).unwrap();
        space
    });
    moved.cache.import(100, copies.collect()).unwrap();
    assert_eq!(there.feed(&mut moved, &[8]), next);
}

#[test]
fn imports_of_the_wrong_size_change_nothing() {
    let device = CpuDevice::new(0, 1, 1 << 28).unwrap();
    let mut cache = device.cache(SPEC).unwrap();
    let bytes = SPEC.block_bytes().unwrap();
    let wrong: [(u64, &[usize], usize); 4] =
        [(65, &[bytes], 1), (64, &[bytes, bytes], 1), (64, &[bytes - 1], 0), (1, &[], 0)];
    for (len, sizes, block) in wrong {
        let slabs = sizes.iter().map(|&n| Space::Host(Slab::zeroed(n))).collect();
        let error = cache.import(len, slabs).unwrap_err();
        assert!(matches!(error, DeviceError::CacheImport { block: b, .. } if b == block), "{error}");
        assert!(cache.is_empty());
    }
    cache.import(0, vec![]).unwrap();
}

#[test]
fn without_memory_nothing_changes() {
    let block = SPEC.block_bytes().unwrap() as u64;
    let device = CpuDevice::new(0, 1, 3 * block + 4096 * 3).unwrap();
    let mut cache = device.cache(SPEC).unwrap();
    cache.reserve(64).unwrap();
    let held = used(&device);
    for tokens in [64 * 5, u64::MAX, u64::MAX / 2] {
        assert!(matches!(cache.reserve(tokens), Err(DeviceError::OutOfMemory(_))));
        assert_eq!((cache.len(), cache.bytes(), used(&device)), (0, block, held));
    }
    drop(cache);
    assert_eq!(used(&device), 0);
}

/// Pools hand out used memory; a session must not find in it what another left.
#[test]
fn blocks_are_clean() {
    let runner = runner();
    let mut slab = runner.device.allocate(runner.spec.block_bytes().unwrap() as u64).unwrap();
    let len = slab.len() as usize;
    slab.write(0, &vec![0xAB; len]).unwrap();
    drop(slab);
    let mut session = runner.session();
    runner.feed(&mut session, &[1]);
    let segments = session.cache.segments();
    for token in
        bytes(&segments[0]).chunks_exact(6 * 4).enumerate().filter(|(i, _)| i % 64 != 0).map(|(_, token)| token)
    {
        assert!(token.iter().all(|&byte| byte == 0));
    }
}
