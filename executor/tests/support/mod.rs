//! What tests and benches of devices share.

pub(crate) mod models;

use std::sync::Arc;

use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::{Device, HostTensor, KvCache, KvSpec, Loaded, Row};
use genie_graph::{DType, InputRole};
use genie_transport::memory::Region;

use models::Model;

/// A model loaded on a CPU device.
pub(crate) struct Runner {
    pub(crate) device: Arc<CpuDevice>,
    pub(crate) program: Arc<dyn Loaded>,
    pub(crate) weights: Vec<Region>,
    pub(crate) spec: KvSpec,
}

/// One session of a runner.
pub(crate) struct Session {
    pub(crate) cache: KvCache,
    pub(crate) arguments: Vec<HostTensor>,
    pub(crate) outputs: Vec<HostTensor>,
}

impl Runner {
    pub(crate) fn new(device: CpuDevice, model: Model) -> Self {
        let cache = model.graph.inputs().iter().find(|i| i.role == InputRole::KvCache).unwrap();
        let spec = KvSpec::of(&cache.ty).unwrap();
        let device = Arc::new(device);
        let program = device.load(Arc::new(model.graph)).unwrap();
        Self { device, program, weights: model.weights, spec }
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
        Row { arguments: &self.arguments, caches: vec![&mut self.cache], outputs: &mut self.outputs, wanted }
    }
}

pub(crate) fn tensor(dims: &[u64], values: &[f32]) -> HostTensor {
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    HostTensor { dtype: Some(DType::F32), dims: dims.to_vec(), data }
}
