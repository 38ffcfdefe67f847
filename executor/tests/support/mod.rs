//! What tests and benches of devices share.

pub(crate) mod models;

use std::sync::Arc;

use genie_executor::device::{Device, HostTensor, KvCache, KvSpec, Loaded, Memory, Row};
use genie_graph::{DType, InputRole};

use models::Model;

/// A model loaded on a device.
pub(crate) struct Runner {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) program: Arc<dyn Loaded>,
    pub(crate) weights: Vec<Memory>,
    pub(crate) spec: KvSpec,
}

/// One session of a runner.
pub(crate) struct Session {
    pub(crate) cache: KvCache,
    pub(crate) arguments: Vec<HostTensor>,
    pub(crate) outputs: Vec<HostTensor>,
}

impl Runner {
    pub(crate) fn new(device: impl Device, model: Model) -> Self {
        let cache = model.graph.inputs().iter().find(|i| i.role == InputRole::KvCache).unwrap();
        let spec = KvSpec::of(&cache.ty).unwrap();
        let device: Arc<dyn Device> = Arc::new(device);
        let program = device.load(Arc::new(model.graph)).unwrap();
        let weights = model.weights.iter().map(|bytes| place(&*device, bytes)).collect();
        Self { device, program, weights, spec }
    }

    pub(crate) fn session(&self) -> Session {
        let arguments = vec![
            HostTensor { dtype: Some(DType::I32), dims: vec![1, 0], data: Vec::new() },
            tensor(&[1, 2], &[0.0_f32, 1.0]),
            HostTensor { dtype: Some(DType::I64), dims: vec![1, 2], data: vec![0; 16] },
        ];
        Session { cache: self.device.cache(self.spec).unwrap(), arguments, outputs: Vec::new() }
    }
}

impl Session {
    /// The tokens of the next step.
    pub(crate) fn feed(&mut self, tokens: &[i32]) {
        let to = &mut self.arguments[0];
        to.dims[1] = tokens.len() as u64;
        to.data.clear();
        tokens.iter().for_each(|t| to.data.extend_from_slice(&t.to_le_bytes()));
    }

    pub(crate) fn row(&mut self, wanted: u64) -> Row<'_> {
        Row { caches: vec![&mut self.cache], ..Row::new(&self.arguments, &mut self.outputs, wanted) }
    }
}

/// These bytes in the device's memory.
pub(crate) fn place(device: &dyn Device, bytes: &[u8]) -> Memory {
    let mut space = device.allocate(bytes.len() as u64).expect("memory for a weight");
    space.write(0, bytes).expect("a weight can be written");
    space.freeze()
}

pub(crate) fn tensor(dims: &[u64], values: &[f32]) -> HostTensor {
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    HostTensor { dtype: Some(DType::F32), dims: dims.to_vec(), data }
}
