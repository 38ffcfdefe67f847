//! Convolutions, pools and batch norms against the reference: random shapes and values, seeded.

use std::collections::HashMap;
use std::sync::Arc;

use genie_executor::device::cpu::{CpuDevice, Isa};
use genie_executor::device::{Device, DeviceError, HostTensor, Row};
use genie_graph::{DType, Dim, GraphBuilder, InputRole, NodeId, Op, PoolKind, Symbol, TensorType};
use genie_transport::memory::Region;

use crate::case::{Case, Source, run};
use crate::reference::Tensor;
use crate::run::floats;
use crate::support::tensor;

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const B: Dim = Dim::Symbol(Symbol::Batch);

fn pair(source: &mut Source, most: usize) -> [u32; 2] {
    [(); 2].map(|()| source.size(most) as u32)
}

/// A convolution of groups that see and make so many channels, with everything else drawn.
fn convolution(seed: u64, groups: u64, seen: u64, made: u64) {
    let mut case = Case::new(seed);
    let source = &mut case.source;
    let [x, w, bias] = [(); 3].map(|()| FLOATS[source.below(3)]);
    let kernel = pair(source, 4);
    let (stride, dilation) = (pair(source, 3), pair(source, 3));
    let padding = [(); 4].map(|()| source.below(4) as u32);
    let size = |axis: usize, more: u64| {
        let reach = dilation[axis] * (kernel[axis] - 1) + 1;
        u64::from(reach.saturating_sub(padding[axis] + padding[axis + 2])).max(1) + more
    };
    let image = [size(0, source.size(9)), size(1, source.size(14))];
    let images = if source.below(2) == 0 { B } else { source.size(3).into() };
    case.argument(x, &[images, (groups * seen).into(), image[0].into(), image[1].into()]);
    case.weight(w, &[groups * made, seen, kernel[0].into(), kernel[1].into()].map(dim));
    if case.source.below(2) == 0 {
        case.weight(bias, &[(groups * made).into()]);
    }
    case.check_within(Op::Conv2d { stride, padding, dilation, groups: groups as u32 }, 8.0);
}

fn dim(size: u64) -> Dim {
    size.into()
}

#[test]
fn convolutions() {
    for seed in 0..60 {
        let mut source = Case::new(seed).source;
        convolution(seed, 1, source.size(9), source.size(20));
    }
}

#[test]
fn convolutions_in_groups() {
    for seed in 0..60 {
        let mut source = Case::new(seed).source;
        convolution(seed, 2 + source.below(3) as u64, source.size(4), source.size(7));
    }
}

#[test]
fn convolutions_of_each_channel_by_itself() {
    for seed in 0..40 {
        let mut source = Case::new(seed).source;
        convolution(seed, source.size(20), 1, source.size(2));
    }
}

/// Channels by themselves: cut into several bands, in whole vectors and parts of them, and with windows of too many elements or
/// planes too wide for a band.
#[test]
fn large_convolutions_of_each_channel_by_itself() {
    for (channels, made, kernel, image, stride, dilation) in [
        (3, 1, [3, 3], [200, 170], [1, 1], [1, 1]),
        (2, 2, [5, 3], [150, 161], [2, 2], [1, 2]),
        (4, 1, [7, 9], [60, 131], [1, 3], [2, 1]),
        (2, 3, [9, 8], [20, 30], [1, 1], [1, 1]),
        (2, 1, [2, 2], [3, 20_000], [1, 1], [1, 1]),
    ] {
        let mut case = Case::new(11);
        case.argument(DType::F32, &[B, dim(channels), dim(image[0]), dim(image[1])]);
        case.weight(DType::F32, &[channels * made, 1, kernel[0], kernel[1]].map(dim));
        case.weight(DType::F32, &[dim(channels * made)]);
        let op = Op::Conv2d { stride, padding: [1, 2, 3, 1], dilation, groups: channels as u32 };
        case.check_within(op, 8.0);
    }
}

/// Many elements a window and many channels: several panels deep, several wide, and shared by channels.
#[test]
fn large_convolutions() {
    for (channels, out, kernel, side, stride) in
        [(40, 70, 3, 9, 1), (70, 33, 3, 15, 2), (300, 65, 1, 7, 1), (3, 5, 7, 40, 2)]
    {
        let mut case = Case::new(7);
        case.argument(DType::F32, &[B, dim(channels), dim(side), dim(side)]);
        case.weight(DType::F32, &[out, channels, kernel, kernel].map(dim)).weight(DType::F32, &[dim(out)]);
        let around = (kernel / 2) as u32;
        let op = Op::Conv2d { stride: [stride; 2], padding: [around; 4], dilation: [1; 2], groups: 1 };
        case.check_within(op, 32.0);
    }
}

/// A NaN or an infinity reaches the windows that hold it, and no other.
#[test]
fn not_a_number_stays_in_its_windows() {
    for (groups, out) in [(1, 6), (2, 4), (2, 12)] {
        for (seed, odd) in (0..).zip([f64::NAN, f64::INFINITY, f64::NEG_INFINITY]) {
            let mut case = Case::new(seed);
            case.sizes.batch = 2;
            let mut x: Vec<f64> = (0..2 * 4 * 7 * 9).map(|_| case.source.real()).collect();
            for at in [0, 62, 300, 503] {
                x[at] = odd;
            }
            case.given(DType::F32, &[B, dim(4), dim(7), dim(9)], x.clone());
            case.weight(DType::F32, &[out, 4 / groups, 3, 3].map(dim));
            let op = Op::Conv2d { stride: [1, 2], padding: [1, 0, 2, 1], dilation: [1; 2], groups: groups as u32 };
            case.check_within(op, 8.0);
            for kind in [PoolKind::Max, PoolKind::Average] {
                let mut case = Case::new(seed);
                case.sizes.batch = 2;
                case.given(DType::F32, &[B, dim(4), dim(7), dim(9)], x.clone());
                let (kernel, stride, padding) = ([3, 2], [2, 1], [1, 1, 2, 0]);
                case.check(Op::Pool { kind, kernel, stride, padding, count_padding: true });
            }
        }
    }
}

#[test]
fn pools() {
    for seed in 0..60 {
        for kind in [PoolKind::Max, PoolKind::Average] {
            let mut case = Case::new(seed);
            let source = &mut case.source;
            let kernel = pair(source, 5);
            let stride = pair(source, 4);
            let padding = std::array::from_fn(|side| source.below(kernel[side % 2] as usize) as u32);
            let size = |axis: usize, more: u64| {
                u64::from(kernel[axis].saturating_sub(padding[axis] + padding[axis + 2])).max(1) + more - 1
            };
            let image = [size(0, source.size(9)), size(1, source.size(20))];
            let (dtype, channels) = (FLOATS[source.below(3)], source.size(4));
            let images = if source.below(2) == 0 { B } else { source.size(3).into() };
            let count_padding = source.below(2) == 0;
            case.argument(dtype, &[images, channels.into(), image[0].into(), image[1].into()]);
            case.check(Op::Pool { kind, kernel, stride, padding, count_padding });
        }
    }
    // All of a plane in one window, which is larger than the plane.
    for count_padding in [false, true] {
        let mut case = Case::new(1);
        let op = Op::Pool {
            kind: PoolKind::Average,
            kernel: [70, 90],
            stride: [1, 2],
            padding: [20, 30, 6, 5],
            count_padding,
        };
        case.argument(DType::F32, &[B, dim(3), dim(50), dim(61)]).check_within(op, 2.0);
    }
}

/// Padding is never the largest, not even beside numbers below all others.
#[test]
fn padding_is_no_maximum() {
    let op = |padding| Op::Pool { kind: PoolKind::Max, kernel: [2, 2], stride: [1, 1], padding, count_padding: true };
    for value in [-5.0, f64::NEG_INFINITY] {
        Case::new(0).given(DType::F32, &[1, 1, 3, 3].map(dim), vec![value; 9]).check(op([1, 1, 1, 1]));
    }
}

#[test]
fn batch_norms() {
    for seed in 0..40 {
        let mut case = Case::new(seed);
        let rank = 2 + case.source.below(4);
        let mut dims = case.source.dims(rank);
        if case.source.below(2) == 0 {
            dims[0] = B;
        }
        let Dim::Fixed(channels) = dims[1] else { unreachable!() };
        let types = [(); 5].map(|()| FLOATS[case.source.below(3)]);
        case.argument(types[0], &dims);
        for &dtype in &types[1..4] {
            case.weight(dtype, &[channels.into()]);
        }
        let variance = (0..channels).map(|_| case.source.real().abs()).collect();
        case.given(types[4], &[channels.into()], variance);
        case.check_within(Op::BatchNorm { eps: 1e-3 }, 2.0);
    }
    // No variance at all, one below 0, and numbers that are none.
    let odd = vec![1.0, f64::NAN, f64::INFINITY, 2.0, -3.0, 0.5, 7.0, f64::NEG_INFINITY];
    let (ones, variance) = (vec![1.0; 4], vec![0.0, 1.0, -1.0, 0.25]);
    let mut case = Case::new(0);
    case.given(DType::F32, &[2, 4].map(dim), odd);
    for _ in 0..3 {
        case.given(DType::F32, &[dim(4)], ones.clone());
    }
    case.given(DType::F32, &[dim(4)], variance).check(Op::BatchNorm { eps: 0.0 });
}

/// An image gives the same bits whatever others run with it, and on however many threads.
#[test]
fn images_are_unharmed_by_others_in_their_batch() {
    let (channels, side) = (12, 11);
    for groups in [1, 4, 12] {
        let mut b = GraphBuilder::new("net");
        let f32s = |dims: &[Dim]| TensorType::new(DType::F32, dims.iter().copied());
        let x = b.input("x", InputRole::Argument, f32s(&[B, dim(channels), dim(side), dim(side)])).unwrap();
        let w = b.input("w", InputRole::Weight, f32s(&[12, channels / groups, 3, 3].map(dim))).unwrap();
        let op = Op::Conv2d { stride: [1, 2], padding: [1; 4], dilation: [1; 2], groups: groups as u32 };
        let y = b.push(op, &[x, w]).unwrap();
        let kind = PoolKind::Average;
        let pool = Op::Pool { kind, kernel: [3; 2], stride: [2; 2], padding: [1; 4], count_padding: false };
        let y = b.push(pool, &[y]).unwrap();
        b.output("y", y);
        let graph = Arc::new(b.finish().unwrap());
        let mut source = Case::new(groups).source;
        let mut reals = |count: u64| (0..count).map(|_| source.real() as f32).collect::<Vec<f32>>();
        let images: Vec<HostTensor> =
            (0..5).map(|_| tensor(&[1, channels, side, side], &reals(channels * side * side))).collect();
        let w = reals(12 * channels / groups * 9).iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        let weights = [Region::copy_of(&w).into()];
        for isa in Isa::available() {
            let together = |threads: usize, images: &[HostTensor]| {
                let program = CpuDevice::with_isa(0, threads, 1 << 26, isa).unwrap().load(Arc::clone(&graph)).unwrap();
                let mut outputs: Vec<Vec<HostTensor>> = images.iter().map(|_| Vec::new()).collect();
                let rows = images.iter().zip(&mut outputs);
                let mut rows: Vec<Row<'_>> =
                    rows.map(|(x, outputs)| Row::new(std::slice::from_ref(x), outputs, 1)).collect();
                program.run(&weights, &mut rows).unwrap();
                outputs.into_iter().map(|mut o| floats(&o.remove(0))).collect::<Vec<_>>()
            };
            let alone: Vec<Vec<f32>> = images.iter().flat_map(|x| together(1, std::slice::from_ref(x))).collect();
            for threads in 1..=3 {
                assert_eq!(together(threads, &images), alone, "{groups} groups, {threads} threads");
            }
        }
    }
}

/// What a panel is for: the matrix of all windows is never there.
#[test]
fn windows_need_little_memory() {
    let mut b = GraphBuilder::new("conv");
    let ty = |dims: &[u64]| TensorType::new(DType::F32, dims.iter().map(|&d| dim(d)));
    let x = b.input("x", InputRole::Argument, ty(&[1, 8, 64, 64])).unwrap();
    let w = b.input("w", InputRole::Weight, ty(&[8, 8, 7, 7])).unwrap();
    let op = Op::Conv2d { stride: [1; 2], padding: [3; 4], dilation: [1; 2], groups: 1 };
    let y = b.push(op, &[x, w]).unwrap();
    b.output("y", y);
    let graph = Arc::new(b.finish().unwrap());
    let ones = |dims: &[usize]| Tensor::new(DType::F32, dims, vec![1.0; dims.iter().product()]);
    let values = HashMap::from([(NodeId(0), ones(&[1, 8, 64, 64])), (NodeId(1), ones(&[8, 8, 7, 7]))]);
    // Images in and out take 256 KiB, the windows would take 6 MiB.
    let device = CpuDevice::new(0, 2, 1 << 20).unwrap();
    let y = floats(&run(&device, &graph, &values));
    assert_eq!((y[0], y[32 * 64 + 32]), (4.0 * 4.0 * 8.0, 7.0 * 7.0 * 8.0));
}

/// Attributes that a hostile graph may have: windows that reach far beyond the image are looked at only where it is.
#[test]
fn windows_that_reach_far_beyond_the_image() {
    const FAR: u32 = 1 << 31;
    let conv = |kernel: [u64; 2], stride, padding, dilation| {
        let mut case = Case::new(5);
        case.far = true;
        case.argument(DType::F32, &[B, dim(2), dim(3), dim(4)])
            .weight(DType::F32, &[5, 2, kernel[0], kernel[1]].map(dim));
        case.check(Op::Conv2d { stride, padding, dilation, groups: 1 });
        let mut case = Case::new(6);
        case.far = true;
        case.argument(DType::F32, &[B, dim(2), dim(3), dim(4)])
            .weight(DType::F32, &[2, 1, kernel[0], kernel[1]].map(dim));
        case.check(Op::Conv2d { stride, padding, dilation, groups: 2 });
    };
    conv([1, 1], [u32::MAX; 2], [0; 4], [u32::MAX; 2]);
    conv([2, 2], [1, 2], [FAR, 0, 0, FAR], [FAR; 2]);
    conv([2, 1], [u32::MAX, 1], [u32::MAX, 0, u32::MAX, 0], [1, 1]);
    let mut b = GraphBuilder::new("pool");
    let x = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [1, 1, 2, 2].map(dim))).unwrap();
    for (kind, name) in [(PoolKind::Max, "max"), (PoolKind::Average, "average")] {
        let (kernel, padding) = ([u32::MAX; 2], [u32::MAX - 1; 4]);
        let y = b.push(Op::Pool { kind, kernel, stride: [u32::MAX; 2], padding, count_padding: false }, &[x]).unwrap();
        b.output(name, y);
    }
    let program = CpuDevice::new(0, 2, 1 << 24).unwrap().load(Arc::new(b.finish().unwrap())).unwrap();
    let arguments = [tensor(&[1, 1, 2, 2], &[1.0, 2.0, 3.0, 6.0])];
    let mut outputs = Vec::new();
    program.run(&[], &mut [Row::new(&arguments, &mut outputs, 3)]).unwrap();
    // The first window ends at the first row and column, the second begins at the second.
    assert_eq!(outputs[0], tensor(&[1, 1, 2, 2], &[1.0, 2.0, 3.0, 6.0]));
    assert_eq!(outputs[1], outputs[0]);
}

#[test]
fn images_larger_than_any_memory() {
    for side in [1 << 15, 1 << 29] {
        let mut b = GraphBuilder::new("large");
        let x = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [B, dim(1), dim(1), dim(1)])).unwrap();
        let op = Op::Conv2d { stride: [1; 2], padding: [side; 4], dilation: [1; 2], groups: 1 };
        let w = b.input("w", InputRole::Weight, TensorType::new(DType::F16, [1; 4].map(dim))).unwrap();
        let y = b.push(op, &[x, w]).unwrap();
        b.output("y", y);
        let program = CpuDevice::new(0, 1, 1 << 24).unwrap().load(Arc::new(b.finish().unwrap())).unwrap();
        for images in [1, 1 << 10] {
            let arguments = [tensor(&[images, 1, 1, 1], &vec![0.0; images as usize])];
            let mut outputs = Vec::new();
            let row = Row::new(&arguments, &mut outputs, 1);
            let error = program.run(&[Region::copy_of(&[0; 2]).into()], &mut [row]).unwrap_err();
            assert!(matches!(error, DeviceError::OutOfMemory(_) | DeviceError::Sizes(_)), "{error}");
        }
    }
}
