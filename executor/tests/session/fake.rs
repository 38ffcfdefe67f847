//! A device that counts instead of computing, and fails when it is told to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use genie_executor::device::{
    Device, DeviceError, DeviceInfo, HostTensor, KvCache, KvSpec, Loaded, Memory, Row, Space,
};
use genie_graph::{DType, Op, VerifiedGraph};
use genie_transport::memory::{OutOfMemory, Pool};

use crate::graphs::VOCABULARY;

/// Remembers the sizes of the batches that it ran.
pub(crate) struct Fake {
    index: u32,
    pool: Pool,
    control: Arc<Control>,
}

#[derive(Default)]
pub(crate) struct Control {
    /// Rows and sequence length of each run.
    pub(crate) runs: Mutex<Vec<(usize, u64)>>,
    /// The next runs panic.
    pub(crate) panics: AtomicBool,
    /// The next questions about the device panic: outside of any run.
    pub(crate) info_panics: AtomicBool,
    /// A row that was given this token fails its run.
    pub(crate) poison: Mutex<Option<i32>>,
    /// Runs of more tokens find no memory.
    pub(crate) room: Mutex<Option<u64>>,
}

impl Fake {
    pub(crate) fn new(index: u32, memory: u64) -> (Arc<Self>, Arc<Control>) {
        let control = Arc::new(Control::default());
        (Arc::new(Self { index, pool: Pool::new(memory), control: control.clone() }), control)
    }
}

impl Device for Fake {
    fn info(&self) -> DeviceInfo {
        assert!(!self.control.info_panics.load(Ordering::Relaxed), "told to panic");
        DeviceInfo {
            index: self.index,
            name: format!("fake:{}", self.index),
            model: "abacus".to_owned(),
            total_bytes: self.pool.limit(),
            free_bytes: self.pool.limit() - self.pool.used(),
            capability: "counting".to_owned(),
        }
    }

    fn allocate(&self, bytes: u64) -> Result<Space, DeviceError> {
        Ok(Space::Host(self.pool.take(bytes as usize)?))
    }

    fn reads_host_memory(&self) -> bool {
        true
    }

    fn cache(&self, spec: KvSpec) -> Result<KvCache, DeviceError> {
        KvCache::new(spec, Arc::new(self.pool.clone()))
    }

    fn load(&self, graph: Arc<VerifiedGraph>) -> Result<Arc<dyn Loaded>, DeviceError> {
        if graph.nodes.iter().any(|n| n.op == Op::Sqrt) {
            return Err(DeviceError::Unsupported { op: Op::Sqrt.name().to_owned() });
        }
        Ok(Arc::new(Program { pool: self.pool.clone(), control: self.control.clone() }))
    }
}

struct Program {
    pool: Pool,
    control: Arc<Control>,
}

impl Loaded for Program {
    fn run(&self, _weights: &[Memory], rows: &mut [Row<'_>]) -> Result<(), DeviceError> {
        assert!(!self.control.panics.load(Ordering::Relaxed), "told to panic");
        let sequence = rows[0].arguments[0].dims.get(1).copied().unwrap_or(1);
        self.control.runs.lock().unwrap().push((rows.len(), sequence));
        if self.control.room.lock().unwrap().is_some_and(|most| sequence > most) {
            return Err(OutOfMemory { wanted: sequence, used: 0, limit: 0 }.into());
        }
        let poison = *self.control.poison.lock().unwrap();
        for (at, row) in rows.iter().enumerate() {
            if tokens(row).any(|t| Some(t) == poison) {
                return Err(DeviceError::Row { row: at, reason: "poisoned".to_owned() });
            }
        }
        let grown = rows.iter().map(|row| self.grown(row)).collect::<Result<Vec<_>, _>>()?;
        for (row, grown) in rows.iter_mut().zip(grown) {
            match grown {
                Some((length, slabs, all)) => {
                    row.caches[0].import(length, slabs)?;
                    let logits: Vec<f32> = (0..VOCABULARY).map(|v| (v + length) as f32).collect();
                    *row.outputs = vec![
                        output(DType::I32, &[1], next_token(&all).to_le_bytes().to_vec()),
                        output(DType::F32, &[1, VOCABULARY], logits.iter().flat_map(|l| l.to_le_bytes()).collect()),
                    ];
                }
                None => {
                    let x = &row.arguments[0];
                    let bound = row.residents.first().and_then(Option::as_ref);
                    let bytes = bound.map_or_else(|| x.data.clone(), |memory| memory.to_host().unwrap().to_vec());
                    let relu = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap()).max(0.0).to_le_bytes();
                    let data = bytes.chunks(4).flat_map(relu).collect();
                    *row.outputs = vec![output(DType::F32, &x.dims, data)];
                }
            }
            for kept in &mut row.kept {
                kept.space.write(0, &row.outputs[kept.output].data)?;
            }
        }
        Ok(())
    }
}

/// Length, blocks, and all tokens of a cache.
type Grown = (u64, Vec<Space>, Vec<i32>);

impl Program {
    /// The row's cache with its tokens appended.
    fn grown(&self, row: &Row<'_>) -> Result<Option<Grown>, DeviceError> {
        let Some(cache) = row.caches.first() else { return Ok(None) };
        let mut all = read(cache);
        all.extend(tokens(row));
        let block = cache.spec().block_bytes().unwrap();
        let slabs = all.chunks(Op::KV_BLOCK as usize).map(|tokens| {
            let mut slab = self.pool.take(block)?;
            slab.fill(0);
            tokens.iter().enumerate().for_each(|(i, t)| slab[i * 16..i * 16 + 4].copy_from_slice(&t.to_le_bytes()));
            Ok::<_, DeviceError>(Space::Host(slab))
        });
        let slabs = slabs.collect::<Result<Vec<_>, _>>()?;
        Ok(Some((all.len() as u64, slabs, all)))
    }
}

/// What the device answers to these tokens.
pub(crate) fn next_token(tokens: &[i32]) -> i32 {
    let sum =
        tokens.iter().enumerate().fold(7_i64, |sum, (i, &t)| (sum * 31 + i64::from(t) * (i as i64 + 3)) % 1_000_003);
    (sum % VOCABULARY as i64) as i32
}

/// What `n` steps after a prompt give.
pub(crate) fn continuation(prompt: &[i32], n: usize) -> Vec<i32> {
    let mut all = prompt.to_vec();
    for _ in 0..n {
        all.push(next_token(&all));
    }
    all.split_off(prompt.len())
}

fn read(cache: &KvCache) -> Vec<i32> {
    let token = |b: &[u8]| i32::from_le_bytes(b[..4].try_into().unwrap());
    let block = |segment: &Memory| {
        let bytes = segment.to_host().unwrap();
        bytes[..Op::KV_BLOCK as usize * 16].chunks(16).map(token).collect::<Vec<_>>()
    };
    cache.segments().iter().flat_map(block).take(cache.len() as usize).collect()
}

fn tokens<'a>(row: &'a Row<'_>) -> impl Iterator<Item = i32> + 'a {
    let of = row.arguments.iter().find(|a| a.dtype == Some(DType::I32));
    of.into_iter().flat_map(|a| a.data.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())))
}

fn output(dtype: DType, dims: &[u64], data: Vec<u8>) -> HostTensor {
    HostTensor { dtype: Some(dtype), dims: dims.to_vec(), data }
}
