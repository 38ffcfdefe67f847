//! Steps of one token a row, whose attention appends to the cache on its way: bit for bit what appending first gives.

use genie_cuda_kernels::View;
use genie_cuda_kernels::launch::attention::{
    Append, Attention, Cache, Gpu, Heads, New, Rope, Strided, append, decode, decode_scratch,
};
use genie_graph::{DType, RopeStyle};

use super::support::{Tensor, run_over};
use DType::{BF16, F16, F32};

const BLOCK: usize = 64;
const LAYERS: usize = 2;
const LAYER: usize = 1;
const H200: Gpu = Gpu { sms: 132, shared: 227 << 10 };
const T4: Gpu = Gpu { sms: 40, shared: 64 << 10 };

/// A step.
#[derive(Clone, Debug)]
struct Step {
    heads: Heads,
    lens: Vec<i32>,
    dtype: DType,
    cache_dtype: DType,
    /// What pairs of elements are turned, and whether positions are others than the places in the cache.
    rope: Option<(RopeStyle, bool)>,
    /// Elements between the tokens of q, k and v, which are columns of one tensor.
    gap: usize,
    /// Blocks that the tables have room for, if not what the longest row needs and one more.
    max_blocks: Option<usize>,
    gpu: Gpu,
}

/// What a step reads, and does not write.
struct Inputs {
    qkv: Tensor,
    frequencies: Tensor,
    positions: Tensor,
    lens: Tensor,
}

impl Step {
    fn new((group, kv_heads, head_dim): (u32, u32, u32), lens: &[i32], dtype: DType, cache_dtype: DType) -> Self {
        let heads = Heads { heads: group * kv_heads, kv_heads, head_dim };
        let lens = lens.to_vec();
        Self { heads, lens, dtype, cache_dtype, rope: None, gap: 0, max_blocks: None, gpu: H200 }
    }

    fn widths(&self) -> (usize, usize) {
        let d = self.heads.head_dim as usize;
        (self.heads.heads as usize * d, self.heads.kv_heads as usize * d)
    }

    fn max_blocks(&self) -> usize {
        let longest = self.lens.iter().map(|&len| len.max(0) as usize + 1).max().unwrap_or(1);
        self.max_blocks.unwrap_or(longest.div_ceil(BLOCK) + 1)
    }

    fn inputs(&self) -> Inputs {
        let ((q, kv), rows) = (self.widths(), self.lens.len());
        let half = self.heads.head_dim as usize / 2;
        let frequencies: Vec<f64> = (0..half).map(|i| 10_000_f64.powf(-(i as f64) / half as f64)).collect();
        Inputs {
            qkv: Tensor::random(self.dtype, rows * (q + 2 * kv + self.gap), 1.5, 3),
            frequencies: Tensor::new(F32, &frequencies),
            positions: Tensor::new(DType::I32, &(0..rows).map(|row| (row * 7919 + 5) as f64).collect::<Vec<_>>()),
            lens: Tensor::new(DType::I32, &self.lens.iter().map(|&len| f64::from(len)).collect::<Vec<_>>()),
        }
    }

    /// The caches' blocks one after another, with history where there is some and NaN elsewhere, and behind them the results.
    fn memory(&self) -> Vec<u8> {
        let (q, kv) = self.widths();
        let mut bytes = vec![];
        for (row, &len) in self.lens.iter().enumerate() {
            for block in 0..self.blocks_of(len) {
                let seed = (row * 1000 + block) as u64;
                let mut values = Tensor::random(self.cache_dtype, LAYERS * 2 * kv * BLOCK, 1.0, seed).values();
                let d = self.heads.head_dim as usize;
                for (i, value) in values.iter_mut().enumerate() {
                    if block * BLOCK + i / d % BLOCK >= len as usize {
                        *value = f64::NAN;
                    }
                }
                bytes.extend_from_slice(Tensor::new(self.cache_dtype, &values).bytes());
            }
        }
        // Blocks begin at multiples of 16, where the memory ends at a page's end.
        let results = self.lens.len() * q * self.dtype.bytes() as usize;
        bytes.extend(vec![0xFF; results.next_multiple_of(16)]);
        bytes
    }

    fn blocks_of(&self, len: i32) -> usize {
        usize::try_from(len).map_or(0, |len| (len + 1).div_ceil(BLOCK).min(self.max_blocks()))
    }

    /// What the memory holds after the step: with `new`, by attention alone.
    fn run(&self, inputs: &Inputs, as_new: bool) -> Vec<u8> {
        let ((q_width, kv), rows) = (self.widths(), self.lens.len());
        let bytes = self.memory();
        let mut memory = Tensor::new(DType::U8, &bytes.iter().map(|&byte| f64::from(byte)).collect::<Vec<_>>());
        let block_bytes = LAYERS * 2 * kv * BLOCK * self.cache_dtype.bytes() as usize;
        let mut next = memory.at();
        let mut table = vec![];
        for &len in &self.lens {
            // Where there is no block, an address that faults.
            let mut row = vec![16.0; self.max_blocks()];
            for place in row.iter_mut().take(self.blocks_of(len)) {
                *place = next as f64;
                next += block_bytes as u64;
            }
            table.extend(row);
        }
        let table = Tensor::new(DType::I64, &table);
        let cache = Cache {
            blocks: table.view(),
            max_blocks: self.max_blocks() as u32,
            lens: inputs.lens.view(),
            dtype: self.cache_dtype,
            layer: LAYER as u32,
        };
        let columns = |from: usize| {
            let all = inputs.qkv.view();
            let at = all.at + from as u64 * self.dtype.bytes();
            let view = View::new(at, self.dtype, all.elements - from as u64);
            Strided { view, stride: (q_width + 2 * kv + self.gap) as u64 }
        };
        let (q, k, v) = (columns(0), columns(q_width), columns(q_width + kv));
        let rope = self.rope.map(|(style, own)| Rope {
            style,
            frequencies: inputs.frequencies.view(),
            positions: own.then(|| inputs.positions.view()),
        });
        let (batch, heads) = (rows as u32, self.heads);
        let scale = 1.0 / (heads.head_dim as f32).sqrt();
        let y = View::new(next, self.dtype, (rows * q_width) as u64);
        let attention = Attention { batch, tokens: 1, heads, scale, causal: true, q, y };
        let scratch = decode_scratch(batch, 1, heads, cache.max_blocks);
        let partials = Tensor::poisoned(F32, scratch.partials as usize);
        let arrived = Tensor::new(DType::I32, &vec![0.0; scratch.arrived as usize]);
        let attend = |attention: &Attention, new: Option<&New>| {
            decode(attention, &cache, new, partials.view(), arrived.view(), self.gpu).expect("a launch")
        };
        if as_new {
            run_over(&[attend(&attention, Some(&New { k, v, rope }))], &mut memory);
        } else {
            let dense = Tensor::poisoned(self.dtype, rows * q_width);
            let turned = Strided::dense(dense.view(), q_width as u64);
            let q = rope.map(|_| (q, dense.view()));
            let first = Append { batch, tokens: 1, heads, k, v, cache, rope, q };
            let attention = if rope.is_some() { Attention { q: turned, ..attention } } else { attention };
            run_over(&[append(&first).expect("a launch"), attend(&attention, None)], &mut memory);
        }
        assert!(arrived.values().iter().all(|&n| n == 0.0), "{self:?}: counters are not left as they were");
        memory.bytes().to_vec()
    }

    fn check(&self) {
        let inputs = self.inputs();
        let (one, two) = (self.run(&inputs, true), self.run(&inputs, false));
        let first = one.iter().zip(&two).position(|(a, b)| a != b);
        assert_eq!(first, None, "{self:?}: byte {first:?} differs");
        assert!(self.lens.iter().all(|&len| len < 0) || one != self.memory(), "{self:?}: nothing was written");
    }
}

#[test]
fn on_matrix_units_with_and_without_rotation() {
    let ropes = [None, Some((RopeStyle::Half, false)), Some((RopeStyle::Interleaved, true))];
    for (heads, lens, dtype) in [
        ((1, 2, 64), vec![0, 63, 64, 300], F16),
        ((4, 2, 128), vec![127, -1, 128], BF16),
        ((7, 1, 32), vec![189, 1], BF16),
        ((8, 1, 80), vec![130], F16),
        ((2, 1, 24), vec![62], BF16),
        ((20, 1, 16), vec![70, 5], F16),
        ((1, 1, 256), vec![140], BF16),
    ] {
        for rope in ropes {
            Step { rope, ..Step::new(heads, &lens, dtype, dtype) }.check();
        }
    }
    let step = Step { rope: Some((RopeStyle::Half, true)), ..Step::new((4, 1, 128), &[200], F16, F16) };
    Step { gpu: T4, ..step.clone() }.check();
    // One block does all chunks, one after another.
    Step { gpu: Gpu { sms: 1, ..H200 }, lens: vec![700, 3, 130], ..step }.check();
}

/// However many blocks share the chunks: fewer than there are groups of queries, and as many as there may be chunks.
#[test]
fn grids_of_any_size_give_the_same_bits() {
    for (dtype, heads) in [(BF16, (4, 3, 64)), (F32, (1, 4, 64))] {
        let step = Step { max_blocks: Some(16), ..Step::new(heads, &[700, 3, 64, -1, 130], dtype, dtype) };
        let inputs = step.inputs();
        let of = |sms| Step { gpu: Gpu { sms, ..H200 }, ..step.clone() }.run(&inputs, true);
        let one = of(1);
        assert!(one != step.memory() && [2, 5, 13, 50, 132].into_iter().all(|sms| of(sms) == one), "{step:?}");
    }
}

#[test]
fn in_f32_from_any_type_to_any() {
    let ropes = [None, Some((RopeStyle::Half, true)), Some((RopeStyle::Interleaved, false))];
    for (heads, lens, dtype, cache_dtype) in [
        ((1, 2, 64), vec![0, 63, 64, 300], F32, F32),
        ((3, 1, 128), vec![299], F32, F16),
        ((4, 2, 64), vec![127, -1, 128], F32, BF16),
        ((7, 1, 32), vec![189, 1], F16, BF16),
        ((9, 1, 256), vec![126], F32, F32),
        ((1, 1, 34), vec![5, 190], BF16, F32),
        ((5, 1, 6), vec![129], F16, F16),
    ] {
        for rope in ropes {
            Step { rope, gpu: T4, ..Step::new(heads, &lens, dtype, cache_dtype) }.check();
        }
    }
    Step::new((1, 1, 33), &[64, 7], BF16, F16).check();
}

#[test]
fn columns_of_a_wider_tensor_at_any_place() {
    for gap in [8, 4, 1] {
        for dtype in [F16, F32] {
            Step { gap, ..Step::new((2, 2, 64), &[62, 130], dtype, dtype) }.check();
        }
    }
}

/// More blocks than there are chunks: the last, with fewer blocks than the others, has the new key.
#[test]
fn a_long_row_has_the_new_key_in_its_last_chunk() {
    for len in [64 * 128 - 1, 64 * 128, 64 * 133 + 7] {
        Step::new((1, 1, 32), &[len, 1], F16, F16).check();
    }
}

#[test]
fn past_the_table_nothing_is_appended_and_nothing_new_is_seen() {
    for dtype in [F16, F32] {
        for len in [127, 128, 200, i32::MAX] {
            let step = Step { max_blocks: Some(2), ..Step::new((2, 1, 64), &[len, 3], dtype, dtype) };
            step.check();
        }
    }
}

#[test]
fn infinities_of_the_new_value_are_seen_and_no_others_are_made() {
    for dtype in [BF16, F32] {
        let step = Step::new((2, 1, 64), &[70, 0], dtype, dtype);
        let mut inputs = step.inputs();
        let mut values = inputs.qkv.values();
        values[192] = f64::INFINITY;
        values[192 + 5] = f64::NEG_INFINITY;
        inputs.qkv = Tensor::new(dtype, &values);
        assert!(step.run(&inputs, true) == step.run(&inputs, false), "{step:?}");
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let step = Step::new((2, 1, 64), &[5], F16, F16);
    let inputs = step.inputs();
    let heads = step.heads;
    let table = Tensor::new(DType::I64, &[16.0]);
    let lens = inputs.lens.view();
    let cache = Cache { blocks: table.view(), max_blocks: 1, lens, dtype: F16, layer: 0 };
    let q = Strided { view: inputs.qkv.view(), stride: 256 };
    let y = Tensor::poisoned(F16, 256);
    let view = |elements| View::new(y.view().at, F16, elements);
    let good = Attention { batch: 1, tokens: 1, heads, scale: 1.0, causal: true, q, y: view(128) };
    let from = |at: usize| Strided { view: View::new(q.view.at + 2 * at as u64, F16, 64), stride: 256 };
    let new = New { k: from(128), v: from(192), rope: None };
    let partials = Tensor::poisoned(F32, 100_000);
    let arrived = Tensor::new(DType::I32, &[0.0; 64]);
    let made = |attention: &Attention, new: New| {
        decode(attention, &cache, Some(&new), partials.view(), arrived.view(), H200).map_err(|error| error.to_string())
    };
    assert!(made(&good, new).is_ok_and(|launch| launch.is_some()));
    let refused = |attention, new| made(attention, new).expect_err("it is wrong");
    let two = Attention { tokens: 2, y: view(256), q: Strided { stride: 128, ..q }, ..good };
    let near = |k: Strided| Strided { stride: 64, view: View::new(k.view.at, F16, 128) };
    assert!(refused(&two, New { k: near(from(0)), v: near(from(64)), rope: None }).contains("tokens is 2"));
    assert!(refused(&good, New { v: Strided { stride: 300, ..new.v }, ..new }).contains("stride of v"));
    let wide = Strided { view: View { dtype: F32, ..new.k.view }, ..new.k };
    assert!(refused(&good, New { k: wide, ..new }).contains('k'));
    let short = Strided { view: View { elements: 63, ..new.k.view }, ..new.k };
    assert!(refused(&good, New { k: short, ..new }).contains("elements of k"));
    let frequencies = View { elements: 31, ..inputs.frequencies.view() };
    let rope = Some(Rope { style: RopeStyle::Half, frequencies, positions: None });
    assert!(refused(&good, New { rope, ..new }).contains("elements of frequencies"));
}
