//! What tests and benches of devices share.
#![allow(dead_code, unreachable_pub)] // Each takes what it needs.

pub mod models;

use std::sync::Arc;

use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::{Device, DeviceError, HostTensor, KvCache, KvSpec, Loaded, Row};
use genie_graph::{DType, InputRole};
use genie_transport::memory::Region;

use models::Model;

/// A model loaded on a CPU device.
pub struct Runner {
    pub device: Arc<CpuDevice>,
    pub program: Arc<dyn Loaded>,
    pub weights: Vec<Region>,
    pub spec: KvSpec,
}

/// One session of a runner.
pub struct Session {
    pub cache: KvCache,
    pub arguments: Vec<HostTensor>,
    pub outputs: Vec<HostTensor>,
}

impl Runner {
    pub fn new(device: CpuDevice, model: Model) -> Self {
        let cache = model.graph.inputs().iter().find(|i| i.role == InputRole::KvCache).unwrap();
        let spec = KvSpec::of(&cache.ty).unwrap();
        let device = Arc::new(device);
        let program = device.load(Arc::new(model.graph)).unwrap();
        Self { device, program, weights: model.weights, spec }
    }

    pub fn session(&self) -> Session {
        let arguments = vec![
            HostTensor { dtype: Some(DType::I32), dims: vec![1, 0], data: Vec::new() },
            tensor(&[1, 2], &[0.0_f32, 1.0]),
            HostTensor { dtype: Some(DType::I64), dims: vec![1, 2], data: vec![0; 16] },
        ];
        Session { cache: self.device.cache(self.spec).unwrap(), arguments, outputs: Vec::new() }
    }

    /// Runs all sessions as one batch, each with its tokens.
    pub fn step(&self, sessions: &mut [&mut Session], wanted: u64) -> Result<(), DeviceError> {
        let mut rows: Vec<Row<'_>> = sessions.iter_mut().map(|s| s.row(wanted)).collect();
        self.program.run(&self.weights, &mut rows)
    }
}

impl Session {
    pub fn feed(&mut self, tokens: &[i32]) {
        let to = &mut self.arguments[0];
        to.dims[1] = tokens.len() as u64;
        to.data.clear();
        tokens.iter().for_each(|t| to.data.extend_from_slice(&t.to_le_bytes()));
    }

    pub fn row(&mut self, wanted: u64) -> Row<'_> {
        Row { arguments: &self.arguments, caches: vec![&mut self.cache], outputs: &mut self.outputs, wanted }
    }

    pub fn token(&self) -> i32 {
        i32::from_le_bytes(self.outputs[0].data[..4].try_into().unwrap())
    }

    pub fn logits(&self) -> Vec<f32> {
        floats(&self.outputs[1])
    }
}

pub fn tensor(dims: &[u64], values: &[f32]) -> HostTensor {
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    HostTensor { dtype: Some(DType::F32), dims: dims.to_vec(), data }
}

pub fn floats(tensor: &HostTensor) -> Vec<f32> {
    tensor.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}
