//! Arguments that are residents and outputs that stay: on every device the same as bytes that come and go, without passing the host.

use std::sync::Arc;

use genie_cuda_kernels::gpu::{GpuError, HostGpu, HostSettings};
use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::cuda::CudaDevice;
use genie_executor::device::{Device, DeviceError, HostTensor, Kept, Loaded, Memory, Row, Space};
use genie_graph::{DType, Dim, GraphBuilder, InputRole, Op, Symbol, TensorType, VerifiedGraph};
use genie_transport::memory::{Region, Regions, SharedBytes};

use crate::run::floats;
use crate::stand_in::gpu;
use crate::support::{place, tensor};

const B: Dim = Dim::Symbol(Symbol::Batch);

fn devices() -> [Arc<dyn Device>; 2] {
    [Arc::new(CpuDevice::new(0, 2, 1 << 28).unwrap()), Arc::new(gpu())]
}

/// A GPU on this CPU that tells what passed through the host.
fn watched() -> (HostGpu, CudaDevice) {
    let host = HostGpu::new(HostSettings { total_bytes: 1 << 28, seed: 5, ..HostSettings::default() });
    let device = CudaDevice::with_staging(0, Arc::new(host.clone()), None, 4 << 20).unwrap();
    (host, device)
}

/// Arguments x and y of `f32 [batch, columns]`; outputs x + y, its relu, and x itself.
fn graph(columns: u64) -> Arc<VerifiedGraph> {
    let mut b = GraphBuilder::new("sums");
    let mut input =
        |name| b.input(name, InputRole::Argument, TensorType::new(DType::F32, [B, columns.into()])).unwrap();
    let (x, y) = (input("x"), input("y"));
    let sum = b.push(Op::Add, &[x, y]).unwrap();
    let relu = b.push(Op::Relu, &[sum]).unwrap();
    b.output("sum", sum);
    b.output("relu", relu);
    b.output("x", x);
    Arc::new(b.finish().unwrap())
}

/// Values that differ from place to place and from seed to seed, of both signs.
fn values(batch: u64, columns: u64, seed: u64) -> HostTensor {
    let value = |i: u64| ((i * 37 + seed * 101) % 64) as f32 - 31.5;
    tensor(&[batch, columns], &(0..batch * columns).map(value).collect::<Vec<_>>())
}

/// The tensor without its bytes, as it stands beside a resident.
fn described(tensor: &HostTensor) -> HostTensor {
    HostTensor { data: Vec::new(), ..tensor.clone() }
}

fn bytes(memory: &Memory) -> Vec<u8> {
    memory.to_host().unwrap().to_vec()
}

fn plain(program: &dyn Loaded, arguments: &[HostTensor]) -> Vec<HostTensor> {
    let mut outputs = Vec::new();
    program.run(&[], &mut [Row::new(arguments, &mut outputs, u64::MAX)]).unwrap();
    outputs
}

/// Runs one row with x as a resident and y as it is; what it kept of all outputs.
fn run_kept(device: &dyn Device, program: &dyn Loaded, x: (&HostTensor, Memory), y: &HostTensor) -> Vec<Memory> {
    let bytes = y.data.len() as u64;
    let mut spaces: Vec<Space> = (0..3).map(|_| device.allocate(bytes).unwrap()).collect();
    let kept = spaces.iter_mut().enumerate().map(|(output, space)| Kept { output, space }).collect();
    let (arguments, residents) = ([described(x.0), y.clone()], [Some(x.1)]);
    let mut outputs = Vec::new();
    let row = Row { residents: &residents, kept, ..Row::new(&arguments, &mut outputs, 0) };
    program.run(&[], &mut [row]).unwrap();
    assert!(outputs.iter().all(|output| output.data.is_empty()), "none was wanted");
    spaces.into_iter().map(Space::freeze).collect()
}

#[test]
fn what_is_kept_goes_on_as_an_argument() {
    for device in devices() {
        // Columns that make rows of no round number of bytes, one of them a whole vector's.
        for columns in [1, 5, 33, 1000] {
            let program = device.load(graph(columns)).unwrap();
            let (mut x, y) = (values(2, columns, 1), values(2, columns, 2));
            let mut memory = place(&*device, &x.data);
            // More runs than a plan takes until it is one graph.
            for step in 0..5 {
                let expected = plain(&*program, &[x.clone(), y.clone()]);
                let kept = run_kept(&*device, &*program, (&x, memory), &y);
                for (kept, expected) in kept.iter().zip(&expected) {
                    assert_eq!(bytes(kept), expected.data, "{columns} columns, step {step}");
                }
                x = expected[step % 2].clone();
                memory = kept[step % 2].clone();
            }
        }
    }
}

#[test]
fn rows_with_residents_and_without_are_one_batch() {
    const COLUMNS: u64 = 7;
    for (device, elsewhere) in devices().into_iter().zip(devices().into_iter().rev()) {
        let program = device.load(graph(COLUMNS)).unwrap();
        let batches = [1, 3, 2, 1];
        let all: Vec<[HostTensor; 2]> =
            batches.iter().zip(0..).map(|(&n, i)| [values(n, COLUMNS, 2 * i), values(n, COLUMNS, 2 * i + 1)]).collect();
        let expected: Vec<_> = all.iter().map(|arguments| plain(&*program, arguments)).collect();
        // Of the rows' arguments these are: the device's own, bytes of the host, another device's, none.
        let own = |tensor: &HostTensor| Some(place(&*device, &tensor.data));
        let residents = [
            vec![own(&all[0][0]), own(&all[0][1])],
            vec![None, Some(Memory::Host(Region::copy_of(&all[1][1].data)))],
            vec![Some(place(&*elsewhere, &all[2][0].data)), own(&all[2][1])],
            vec![],
        ];
        let arguments: Vec<Vec<HostTensor>> = all
            .iter()
            .zip(&residents)
            .map(|(row, residents)| {
                let of = |i: usize| residents.get(i).and_then(Option::as_ref);
                (0..2).map(|i| of(i).map_or_else(|| row[i].clone(), |_| described(&row[i]))).collect()
            })
            .collect();
        // What the first row keeps is the device's, the second's another's, the third's the first output twice; all want the relu.
        let space = |device: &dyn Device, row: usize| device.allocate(all[row][0].data.len() as u64).unwrap();
        let mut spaces = [
            vec![(0, space(&*device, 0)), (1, space(&*device, 0))],
            vec![(0, space(&*elsewhere, 1)), (2, space(&*elsewhere, 1))],
            vec![(0, space(&*device, 2)), (0, space(&*device, 2))],
            vec![],
        ];
        for _ in 0..4 {
            let mut outputs = vec![Vec::new(); 4];
            let mut rows: Vec<Row<'_>> = (arguments.iter().zip(&residents).zip(&mut outputs).zip(&mut spaces))
                .map(|(((arguments, residents), outputs), spaces)| {
                    let kept = spaces.iter_mut().map(|(output, space)| Kept { output: *output, space }).collect();
                    Row { residents, kept, ..Row::new(arguments, outputs, 2) }
                })
                .collect();
            program.run(&[], &mut rows).unwrap();
            for (outputs, expected) in outputs.iter().zip(&expected) {
                assert_eq!(outputs[1], expected[1]);
                assert!(outputs[0].data.is_empty() && outputs[2].data.is_empty());
            }
        }
        for (spaces, expected) in spaces.into_iter().zip(&expected) {
            for (output, space) in spaces {
                assert_eq!(bytes(&space.freeze()), expected[output].data);
            }
        }
    }
}

/// 16 MiB in, 16 MiB out, and in again.
#[test]
fn nothing_of_them_passes_the_host() {
    const COLUMNS: u64 = 4 << 20;
    let mut b = GraphBuilder::new("relu");
    let x = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [B, COLUMNS.into()])).unwrap();
    let y = b.push(Op::Relu, &[x]).unwrap();
    b.output("y", y);
    let graph = Arc::new(b.finish().unwrap());
    let (host, device) = watched();
    let program = device.load(graph).unwrap();
    let x = values(1, COLUMNS, 1);
    let mut memory = place(&device, &x.data);
    let before = host.host_bytes();
    for _ in 0..4 {
        let mut space = device.allocate(4 * COLUMNS).unwrap();
        let (arguments, residents) = ([described(&x)], [Some(memory)]);
        let mut outputs = Vec::new();
        let kept = vec![Kept { output: 0, space: &mut space }];
        let row = Row { residents: &residents, kept, ..Row::new(&arguments, &mut outputs, 0) };
        program.run(&[], &mut [row]).unwrap();
        memory = space.freeze();
    }
    assert_eq!(host.host_bytes(), before);
    assert_eq!(host.replays(), 2, "other memory each time, and one graph all the same");
    let expected: Vec<f32> = floats(&x).into_iter().map(|x| x.max(0.0)).collect();
    assert!(bytes(&memory) == tensor(&[1, COLUMNS], &expected).data);
}

#[test]
fn memory_that_does_not_fit_is_refused() {
    for device in devices() {
        let program = device.load(graph(3)).unwrap();
        let x = values(1, 3, 1);
        let run = |memory: Memory, (output, bytes): (usize, u64)| {
            let mut space = device.allocate(bytes).unwrap();
            let (arguments, residents) = ([x.clone(), described(&x)], [None, Some(memory)]);
            let mut outputs = Vec::new();
            let kept = vec![Kept { output, space: &mut space }];
            program.run(&[], &mut [Row { residents: &residents, kept, ..Row::new(&arguments, &mut outputs, 0) }])
        };
        let good = || place(&*device, &x.data);
        assert_eq!(run(good(), (0, 12)), Ok(()));
        for (kept, says) in [((0, 11), "give as many"), ((1, 13), "give as many"), ((3, 12), "no output 3")] {
            let error = run(good(), kept).unwrap_err();
            assert!(matches!(&error, DeviceError::Row { row: 0, reason } if reason.contains(says)), "{error}");
        }
        let error = run(place(&*device, &[0; 16]), (0, 12)).unwrap_err();
        assert!(matches!(error, DeviceError::ArgumentBytes { row: 0, expected: 12, got: 16, .. }), "{error}");
    }
}

/// Indices in memory that a client shares, and may change at any moment: they are used as they were checked.
#[test]
fn what_a_client_shares_is_an_argument() {
    let mut b = GraphBuilder::new("rows");
    let table = b.input("table", InputRole::Argument, TensorType::new(DType::F32, [4.into(), 2.into()])).unwrap();
    let ids = b.input("ids", InputRole::Argument, TensorType::new(DType::I64, [B])).unwrap();
    let rows = b.push(Op::Gather, &[table, ids]).unwrap();
    b.output("rows", rows);
    let graph = Arc::new(b.finish().unwrap());
    let regions = Regions::default();
    let shared = SharedBytes::new(4096).unwrap();
    let file = shared.memory().fd().unwrap().try_clone_to_owned().unwrap();
    regions.share(1, file, shared.memory().len() as u64, shared.era());
    for device in devices() {
        let program = device.load(graph.clone()).unwrap();
        let table = values(4, 2, 1);
        let arguments = [described(&table), HostTensor { dtype: Some(DType::I64), dims: vec![3], data: vec![] }];
        for (ids, expected) in [([3_i64, 0, 2], Ok([6, 7, 0, 1, 4, 5])), ([1, 9, 0], Err(9))] {
            assert!(shared.memory().write(0, ids.map(i64::to_le_bytes).as_flattened()));
            let passed = Memory::from(regions.passed(1, 0, 24).unwrap());
            assert!(passed.is_peer_writable());
            let residents = [Some(place(&*device, &table.data)), Some(passed)];
            let mut outputs = Vec::new();
            let row = Row { residents: &residents, ..Row::new(&arguments, &mut outputs, 1) };
            let got = program.run(&[], &mut [row]);
            match (got, expected) {
                (Ok(()), Ok(expected)) => {
                    assert_eq!(floats(&outputs[0]), expected.map(|i| floats(&table)[i]));
                }
                (Err(DeviceError::IndexOutOfRange { index, bound: 4, .. }), Err(expected)) => {
                    assert_eq!(index, expected)
                }
                (got, _) => panic!("{got:?}"),
            }
        }
    }
}

#[test]
fn what_is_from_before_a_loss_is_refused() {
    let (host, device) = watched();
    let (old, mut kept_before) = (place(&device, &[0; 12]), device.allocate(12).unwrap());
    host.fail(GpuError::Fault { during: "a test", reason: "it is one".to_owned() });
    old.to_host().unwrap_err();
    device.revive().unwrap();
    let program = device.load(graph(3)).unwrap();
    let x = values(1, 3, 1);
    let (arguments, mut outputs) = ([x.clone(), x], Vec::new());
    let residents = [Some(old)];
    let row = Row { residents: &residents, ..Row::new(&arguments, &mut outputs, 1) };
    assert!(matches!(program.run(&[], &mut [row]), Err(DeviceError::Lost { .. })));
    let kept = vec![Kept { output: 0, space: &mut kept_before }];
    let row = Row { kept, ..Row::new(&arguments, &mut outputs, 1) };
    assert!(matches!(program.run(&[], &mut [row]), Err(DeviceError::Lost { .. })));
    program.run(&[], &mut [Row::new(&arguments, &mut outputs, 1)]).unwrap();
    assert_eq!(device.loss(), None, "the GPU of now has not failed");
}
