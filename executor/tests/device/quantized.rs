//! Blocks of quantised numbers: as floats, inside products, and as rows of tables.

use std::collections::HashMap;
use std::sync::Arc;

use genie_executor::device::cpu::{CpuDevice, Isa};
use genie_executor::device::{Device, DeviceError, Row};
use genie_graph::{DType, Dim, GraphBuilder, InputRole, LinearLayout, NodeId, Op, QuantFormat, Symbol, TensorType};
use genie_transport::memory::Region;
use half::f16;

use crate::case::{Case, Source, run};
use crate::reference::Tensor;
use crate::support::tensor;

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const OUT_IN: Op = Op::Linear { layout: LinearLayout::OutIn };
const B: Dim = Dim::Symbol(Symbol::Batch);
const S: Dim = Dim::Symbol(Symbol::Sequence);

/// Bytes of `count` blocks with scales about 1/16.
fn blocks(source: &mut Source, format: QuantFormat, count: usize) -> Vec<f64> {
    let mut bytes = Vec::new();
    for _ in 0..count {
        let start = bytes.len();
        bytes.extend((0..format.block_bytes()).map(|_| source.below(256) as f64));
        for field in 0..if format == QuantFormat::Q4_1 { 2 } else { 1 } {
            let scale = f16::from_f64(source.real() / 16.0).to_le_bytes();
            bytes[start + 2 * field..][..2].copy_from_slice(&scale.map(f64::from));
        }
    }
    bytes
}

fn numbers(format: QuantFormat, to: DType) -> Op {
    Op::Dequantize { format, to }
}

#[test]
fn blocks_become_floats() {
    for seed in 0..20 {
        for format in QuantFormat::ALL {
            let mut case = Case::new(seed);
            let to = FLOATS[case.source.below(3)];
            let (rows, across) = (case.source.size(9), case.source.size(70));
            let dims = [rows.into(), (across * format.block_bytes()).into()];
            let bytes = blocks(&mut case.source, format, (rows * across) as usize);
            case.given(DType::U8, &dims, bytes).check(numbers(format, to));
        }
    }
}

/// Any 16 bits as scale and as least: to the bit what the products and sums in f32 give, subnormal, infinite and NaN.
#[test]
fn every_scale_gives_the_bits_of_the_formula() {
    let scales: Vec<u16> = (0..=u16::MAX).step_by(7).chain([0x7C00, 0xFC00, 0x7E00, 0x0001, 0x8001, 0x03FF]).collect();
    for format in QuantFormat::ALL {
        let mut bytes: Vec<u8> = Vec::new();
        let mut expected: Vec<f32> = Vec::new();
        for (i, &scale) in scales.iter().enumerate() {
            let least = scales[(i * 31 + 5) % scales.len()];
            let (d, m) = (f16::from_bits(scale).to_f32(), f16::from_bits(least).to_f32());
            let q: Vec<u8> = (0..32).map(|k| (i * 11 + k * 29) as u8).collect();
            bytes.extend(scale.to_le_bytes());
            if format == QuantFormat::Q4_1 {
                bytes.extend(least.to_le_bytes());
            }
            match format {
                QuantFormat::Q8_0 => bytes.extend(&q),
                _ => bytes.extend((0..16).map(|k| q[k] & 15 | (q[k + 16] & 15) << 4)),
            }
            expected.extend(q.iter().map(|&q| match format {
                QuantFormat::Q8_0 => f32::from(q as i8) * d,
                QuantFormat::Q4_0 => (f32::from(q & 15) - 8.0) * d,
                QuantFormat::Q4_1 => f32::from(q & 15) * d + m,
            }));
        }
        let mut b = GraphBuilder::new("blocks");
        let ty = TensorType::new(DType::U8, [(scales.len() as u64).into(), format.block_bytes().into()]);
        let x = b.input("x", InputRole::Weight, ty).unwrap();
        let y = b.push(numbers(format, DType::F32), &[x]).unwrap();
        b.output("y", y);
        let graph = Arc::new(b.finish().unwrap());
        for isa in Isa::available() {
            let program = CpuDevice::with_isa(0, 2, 1 << 24, isa).unwrap().load(Arc::clone(&graph)).unwrap();
            let mut outputs = Vec::new();
            let row = Row::new(&[], &mut outputs, 1);
            program.run(&[Region::copy_of(&bytes).into()], &mut [row]).unwrap();
            for (i, (got, &expected)) in outputs[0].data.as_chunks::<4>().0.iter().zip(&expected).enumerate() {
                let got = f32::from_le_bytes(*got);
                let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
                assert!(same, "{format:?} {isa:?}: number {i} is {got:e}, not {expected:e}");
            }
        }
    }
}

#[test]
fn products_read_blocks() {
    for seed in 0..20 {
        for format in QuantFormat::ALL {
            let mut case = Case::new(seed);
            let (across, n) = (case.source.size(7), case.source.size(50));
            let [x, to, bias] = [(); 3].map(|()| FLOATS[case.source.below(3)]);
            let w = blocks(&mut case.source, format, (n * across) as usize);
            case.argument(x, &[B, S, (32 * across).into()]);
            case.given(DType::U8, &[n.into(), (across * format.block_bytes()).into()], w);
            let with_bias = case.source.below(2) == 0;
            if with_bias {
                case.weight(bias, &[n.into()]);
            }
            let with_residual = case.source.below(2) == 0;
            case.argument(x, &[B, S, n.into()]);
            case.check_graph(&(format, to), 8.0, |b, ids| {
                let w = b.push(numbers(format, to), &[ids[1]]).unwrap();
                let mut inputs = vec![ids[0], w];
                inputs.extend(with_bias.then(|| ids[2]));
                let y = b.push(OUT_IN, &inputs).unwrap();
                if with_residual { b.push(Op::Add, &[*ids.last().unwrap(), y]).unwrap() } else { y }
            });
        }
    }
}

/// A product of `[n, k]` blocks with `rows` rows; `stored`: the floats are an output too, and so must be there.
fn product(format: QuantFormat, to: DType, [n, k]: [u64; 2], stored: bool) -> Arc<genie_graph::VerifiedGraph> {
    let mut b = GraphBuilder::new("product");
    let x = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [B, k.into()])).unwrap();
    let dims = [n.into(), (k / 32 * format.block_bytes()).into()];
    let w = b.input("w", InputRole::Weight, TensorType::new(DType::U8, dims)).unwrap();
    let floats = b.push(numbers(format, to), &[w]).unwrap();
    let y = b.push(OUT_IN, &[x, floats]).unwrap();
    b.output("y", y);
    if stored {
        b.output("floats", floats);
    }
    Arc::new(b.finish().unwrap())
}

#[test]
fn a_product_of_blocks_has_the_bits_of_one_of_floats() {
    for (seed, format) in (0..).zip(QuantFormat::ALL) {
        for to in FLOATS {
            for rows in [1, 2, 7, 40] {
                let mut case = Case::new(seed);
                let (n, k) = (37, 160);
                let w = blocks(&mut case.source, format, (n * k / 32) as usize);
                let w_dims = [n as usize, w.len() / n as usize];
                let x = (0..rows * k).map(|_| case.source.real()).collect();
                let values = HashMap::from([
                    (NodeId(0), Tensor::new(DType::F32, &[rows as usize, k as usize], x)),
                    (NodeId(1), Tensor::new(DType::U8, &w_dims, w)),
                ]);
                for isa in Isa::available() {
                    let device = CpuDevice::with_isa(0, 2, 1 << 24, isa).unwrap();
                    let [packed, stored] =
                        [false, true].map(|stored| run(&device, &product(format, to, [n, k], stored), &values));
                    assert_eq!(packed, stored, "{format:?} {to} {rows} rows");
                }
            }
        }
    }
}

/// What quantising is for: the floats of a weight are never all there.
#[test]
fn the_floats_of_a_weight_need_no_memory() {
    let (n, k) = (2048, 512);
    for format in QuantFormat::ALL {
        let device = CpuDevice::new(0, 2, 1 << 20).unwrap();
        let weights = [Region::copy_of(&vec![0; (n * k / 32 * format.block_bytes()) as usize]).into()];
        let run = |stored: bool| {
            let program = device.load(product(format, DType::F32, [n, k], stored)).unwrap();
            let mut outputs = Vec::new();
            let arguments = [tensor(&[3, k], &vec![1.0; 3 * k as usize])];
            let row = Row::new(&arguments, &mut outputs, 1);
            program.run(&weights, &mut [row]).map(|()| outputs.remove(0))
        };
        assert_eq!(run(false), Ok(tensor(&[3, n], &vec![0.0; 3 * n as usize])));
        assert!(matches!(run(true), Err(DeviceError::OutOfMemory(_))), "4 MiB of floats do not fit 1 MiB");
    }
}

/// A tied embedding: one table of blocks gives rows to the first layer and is the last layer's weight.
#[test]
fn one_table_of_blocks_serves_rows_and_products() {
    for seed in 0..12 {
        for format in QuantFormat::ALL {
            let mut case = Case::new(seed);
            let (rows, across) = (1 + case.source.size(40), case.source.size(4));
            let to = FLOATS[case.source.below(3)];
            let table = blocks(&mut case.source, format, (rows * across) as usize);
            let count = (case.sizes.batch * case.sizes.sequence) as usize;
            let ids = (0..count).map(|_| case.source.below(rows as usize) as f64).collect();
            case.given(DType::U8, &[rows.into(), (across * format.block_bytes()).into()], table);
            case.given(DType::I32, &[B, S], ids);
            case.check_graph(&(format, to), 8.0, |b, ids| {
                let taken = b.push(Op::Gather, &[ids[0], ids[1]]).unwrap();
                let x = b.push(numbers(format, to), &[taken]).unwrap();
                let w = b.push(numbers(format, to), &[ids[0]]).unwrap();
                b.push(OUT_IN, &[x, w]).unwrap()
            });
        }
    }
}

/// Where something else reads the floats as well, or reads them as no weight, they are stored.
#[test]
fn blocks_that_others_read_are_stored() {
    for format in QuantFormat::ALL {
        let mut case = Case::new(3);
        let bytes = blocks(&mut case.source, format, 32 * 3);
        case.given(DType::U8, &[32.into(), 3.into(), format.block_bytes().into()], bytes);
        case.argument(DType::F32, &[5.into(), 96.into()]);
        case.check_graph(&format, 8.0, |b, ids| {
            let floats = b.push(numbers(format, DType::F32), &[ids[0]]).unwrap();
            let w = b.push(Op::Reshape { dims: vec![32.into(), 96.into()] }, &[floats]).unwrap();
            let y = b.push(OUT_IN, &[ids[1], w]).unwrap();
            b.push(Op::Linear { layout: LinearLayout::InOut }, &[y, w]).unwrap()
        });
        let mut case = Case::new(4);
        let bytes = blocks(&mut case.source, format, 32);
        case.given(DType::U8, &[32.into(), format.block_bytes().into()], bytes);
        case.check_graph(&format, 8.0, |b, ids| {
            let w = b.push(numbers(format, DType::F16), &[ids[0]]).unwrap();
            let square = b.push(OUT_IN, &[w, w]).unwrap();
            b.push(OUT_IN, &[square, w]).unwrap()
        });
    }
}
