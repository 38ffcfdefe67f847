//! One op at a time on the device and by the reference, on every instruction set and several numbers of threads.

use std::collections::HashMap;
use std::sync::Arc;

use genie_executor::device::cpu::{CpuDevice, Isa};
use genie_executor::device::{Device, DeviceError, HostTensor, Kept, Row};
use genie_graph::{
    DType, Dim, GraphBuilder, InputRole, Node, NodeId, Op, Sizes, Symbol, TensorType, VerifiedGraph, random,
};

use crate::reference::{Tensor, concrete, evaluate};
use crate::stand_in::gpu;
use crate::support::place;

/// A stream of numbers for one case.
pub(crate) struct Source {
    pub(crate) seed: u64,
    drawn: u128,
}

impl Source {
    fn word(&mut self) -> u32 {
        self.drawn += 1;
        random::philox(self.seed, self.drawn)[0]
    }

    /// One of 0..n.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.word() as usize % n
    }

    pub(crate) fn size(&mut self, most: usize) -> u64 {
        1 + self.below(most) as u64
    }

    pub(crate) fn real(&mut self) -> f64 {
        f64::from(random::uniform_f32(self.word())) * 4.0 - 2.0
    }

    pub(crate) fn dims(&mut self, rank: usize) -> Vec<Dim> {
        (0..rank).map(|_| self.size(7).into()).collect()
    }

    pub(crate) fn value(&mut self, dtype: DType) -> f64 {
        match dtype {
            DType::Bool => self.below(2) as f64,
            DType::U8 => self.below(20) as f64,
            DType::I32 | DType::I64 => self.below(41) as f64 - 20.0,
            _ => self.real(),
        }
    }
}

/// A graph of one op whose inputs are all arguments (or as given), run and compared.
pub(crate) struct Case {
    pub(crate) source: Source,
    pub(crate) sizes: Sizes,
    inputs: Vec<(TensorType, InputRole, Option<Vec<f64>>)>,
    /// Sizes are such as a GPU may refuse.
    pub(crate) far: bool,
}

impl Case {
    pub(crate) fn new(seed: u64) -> Self {
        let mut source = Source { seed, drawn: 0 };
        let sizes = Sizes { batch: source.size(3), sequence: source.size(5), position: 0 };
        Self { source, sizes, inputs: Vec::new(), far: false }
    }

    pub(crate) fn argument(&mut self, dtype: DType, dims: &[Dim]) -> &mut Self {
        self.inputs.push((TensorType::new(dtype, dims.iter().copied()), InputRole::Argument, None));
        self
    }

    pub(crate) fn weight(&mut self, dtype: DType, dims: &[Dim]) -> &mut Self {
        self.inputs.push((TensorType::new(dtype, dims.iter().copied()), InputRole::Weight, None));
        self
    }

    pub(crate) fn given(&mut self, dtype: DType, dims: &[Dim], values: Vec<f64>) -> &mut Self {
        self.inputs.push((TensorType::new(dtype, dims.iter().copied()), InputRole::Argument, Some(values)));
        self
    }

    /// Runs the op on one, two and three threads and every instruction set, and compares.
    pub(crate) fn check(&mut self, op: Op) {
        self.check_within(op, 1.0);
    }

    pub(crate) fn check_within(&mut self, op: Op, slack: f64) {
        let push =
            |b: &mut GraphBuilder, ids: &[NodeId]| b.push(op.clone(), ids).unwrap_or_else(|e| panic!("{op:?} {e}"));
        self.check_graph(&op, slack, push);
    }

    /// As [`Case::check_within`], but for what `push` makes of the inputs.
    pub(crate) fn check_graph(
        &mut self,
        what: &dyn std::fmt::Debug,
        slack: f64,
        push: impl FnOnce(&mut GraphBuilder, &[NodeId]) -> NodeId,
    ) {
        let mut builder = GraphBuilder::new("case");
        let (mut ids, mut values) = (Vec::new(), HashMap::new());
        for (i, (ty, role, given)) in self.inputs.iter().enumerate() {
            let id = builder.input(&format!("x{i}"), *role, ty.clone()).unwrap();
            let dims = concrete(&ty.shape.0, &self.sizes);
            let count = dims.iter().product();
            let data = match given {
                Some(values) => values.clone(),
                None => (0..count).map(|_| self.source.value(ty.dtype)).collect(),
            };
            ids.push(id);
            values.insert(id, Tensor::new(ty.dtype, &dims, data));
        }
        let y = push(&mut builder, &ids);
        builder.output("y", y);
        let graph = Arc::new(builder.finish().unwrap());
        let expected = &evaluate(&graph, &self.sizes, &values, &mut vec![])[0];
        for isa in Isa::available() {
            let mut first: Option<HostTensor> = None;
            for threads in 1..=3 {
                let device = CpuDevice::with_isa(0, threads, 1 << 28, isa).unwrap();
                litter(&device);
                let got = run(&device, &graph, &values);
                compare(what, &Tensor::from_host(&got), expected, slack);
                if let Some(first) = &first {
                    assert_eq!(first.data, got.data, "{what:?}: {threads} threads give other bits than one");
                }
                if threads == 2 {
                    let kept = run_in_place(&device, &graph, &values, &got);
                    assert_eq!(kept, got.data, "{what:?}: residents give other bits");
                }
                first.get_or_insert(got);
            }
        }
        let device = gpu();
        if let Some(op) = graph.nodes.iter().find_map(without_kernel) {
            let refused = device.load(Arc::clone(&graph)).err();
            assert_eq!(refused, Some(DeviceError::NoKernel { device: "cuda:0".to_owned(), op }), "{what:?}");
            return;
        }
        litter(&device);
        // The reference rounds both factors of a product to bf16 where one of them is, and blocks to floats; the GPU need not.
        let product = graph.nodes.iter().any(|n| matches!(n.op, Op::Linear { .. } | Op::MatMul));
        let rounded = |n: &Node| n.ty.dtype == DType::BF16 || matches!(n.op, Op::Dequantize { .. });
        let mixed = product && graph.nodes.iter().any(rounded);
        let slack = match expected.dtype {
            DType::F32 if mixed => 500.0 * slack,
            _ if mixed => 20.0 * slack,
            _ => slack,
        };
        match try_run(&device, &graph, &values) {
            Ok(got) => compare(what, &Tensor::from_host(&got), expected, slack),
            Err(DeviceError::Sizes(_)) if self.far => {}
            Err(error) => panic!("{what:?}: {error}"),
        }
    }
}

/// What a GPU says of an op that it has no kernel for.
fn without_kernel(node: &Node) -> Option<&'static str> {
    const LACKING: [&str; 4] = ["cumulative", "argsort", "scatter_along", "arg_reduce"];
    match &node.op {
        Op::Reduce { .. } if node.ty.dtype == DType::Bool => Some("reduce of bool"),
        op => LACKING.into_iter().find(|&name| name == op.name()),
    }
}

pub(crate) fn run(device: &dyn Device, graph: &Arc<VerifiedGraph>, values: &HashMap<NodeId, Tensor>) -> HostTensor {
    try_run(device, graph, values).unwrap()
}

fn try_run(
    device: &dyn Device,
    graph: &Arc<VerifiedGraph>,
    values: &HashMap<NodeId, Tensor>,
) -> Result<HostTensor, DeviceError> {
    let program = device.load(Arc::clone(graph)).unwrap();
    let (mut weights, mut arguments) = (Vec::new(), Vec::new());
    for input in graph.inputs() {
        let host = values[&input.node].to_host();
        match input.role {
            InputRole::Weight => weights.push(place(device, &host.data)),
            _ => arguments.push(host),
        }
    }
    let mut outputs = Vec::new();
    let row = Row::new(&arguments, &mut outputs, u64::MAX);
    program.run(&weights, &mut [row])?;
    Ok(outputs.remove(0))
}

/// As [`run`], but with all arguments in the device's memory, where the output stays, too: its bytes, which are as many as
/// those of `output`.
fn run_in_place(
    device: &dyn Device,
    graph: &Arc<VerifiedGraph>,
    values: &HashMap<NodeId, Tensor>,
    output: &HostTensor,
) -> Vec<u8> {
    let program = device.load(Arc::clone(graph)).unwrap();
    let (mut weights, mut arguments, mut residents) = (Vec::new(), Vec::new(), Vec::new());
    for input in graph.inputs() {
        let host = values[&input.node].to_host();
        let memory = place(device, &host.data);
        match input.role {
            InputRole::Weight => weights.push(memory),
            _ => {
                residents.push(Some(memory));
                arguments.push(HostTensor { data: Vec::new(), ..host });
            }
        }
    }
    let mut space = device.allocate(output.data.len() as u64).unwrap();
    space.write(0, &vec![0xEE; output.data.len()]).unwrap();
    let mut outputs = Vec::new();
    let kept = vec![Kept { output: 0, space: &mut space }];
    let row = Row { residents: &residents, kept, ..Row::new(&arguments, &mut outputs, 0) };
    program.run(&weights, &mut [row]).unwrap();
    space.freeze().to_host().unwrap().to_vec()
}

pub(crate) fn compare(what: &dyn std::fmt::Debug, got: &Tensor, expected: &Tensor, slack: f64) {
    assert_eq!((got.dtype, &got.dims), (expected.dtype, &expected.dims), "{what:?}");
    let relative = slack
        * match got.dtype {
            DType::F32 => 2e-5,
            DType::F16 => 2e-3,
            DType::BF16 => 1.6e-2,
            _ => 0.0,
        };
    for (i, (&g, &e)) in got.data.iter().zip(&expected.data).enumerate() {
        let same = g == e || (g.is_nan() && e.is_nan()) || (g - e).abs() <= relative * (e.abs() + 0.1 * slack);
        assert!(same, "{what:?} {} {:?}: element {i} is {g}, not {e}", got.dtype, got.dims);
    }
}

/// Leaves bytes in the memory that runs work in: what an op forgets to write would show, as it would to another session.
fn litter(device: &dyn Device) {
    const BYTES: u64 = 1 << 18;
    let mut builder = GraphBuilder::new("litter");
    let ty = TensorType::new(DType::U8, [Dim::Symbol(Symbol::Batch), BYTES.into()]);
    let x = builder.input("x", InputRole::Argument, ty).unwrap();
    let y = builder.push(Op::Concat { axis: 1 }, &[x, x]).unwrap();
    builder.output("y", y);
    let program = device.load(Arc::new(builder.finish().unwrap())).unwrap();
    let arguments = [HostTensor { dtype: Some(DType::U8), dims: vec![1, BYTES], data: vec![0xC5; BYTES as usize] }];
    let mut outputs = Vec::new();
    program.run(&[], &mut [Row::new(&arguments, &mut outputs, 0)]).unwrap();
}
