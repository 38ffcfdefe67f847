//! Appending to the cache, with and without a rotary embedding.

use genie_cuda_kernels::View;
use genie_cuda_kernels::launch::attention::{Append, Cache, Heads, Rope, Strided, append};
use genie_graph::{DType, RopeStyle};

use super::support::{FLOATS, Tensor, assert_close, precision, rounded, run, run_over};

const BLOCK: usize = 64;
const LAYERS: usize = 2;

/// A step's tensors: q, k and v are columns of one.
struct Step {
    heads: Heads,
    tokens: usize,
    lens: Vec<i32>,
    qkv: Tensor,
    stride: usize,
    blocks: Vec<Tensor>,
    table: Tensor,
    lens_there: Tensor,
    max_blocks: usize,
}

impl Step {
    fn new(heads: Heads, tokens: usize, lens: &[i32], dtype: DType, cache_dtype: DType, gap: usize) -> Self {
        let (q, kv) = widths(heads);
        let stride = q + 2 * kv + gap;
        let qkv = Tensor::random(dtype, lens.len() * tokens * stride, 2.0, tokens as u64);
        let longest = lens.iter().map(|&len| len.max(0) as usize + tokens).max().unwrap_or(1);
        let max_blocks = longest.div_ceil(BLOCK);
        let block = || Tensor::poisoned(cache_dtype, LAYERS * 2 * kv * BLOCK);
        let blocks: Vec<Tensor> = (0..lens.len() * max_blocks).map(|_| block()).collect();
        let addresses: Vec<f64> = blocks.iter().map(|block| block.view().at as f64).collect();
        let lens_there = Tensor::new(DType::I32, &lens.iter().map(|&len| f64::from(len)).collect::<Vec<_>>());
        let table = Tensor::new(DType::I64, &addresses);
        Self { heads, tokens, lens: lens.to_vec(), qkv, stride, blocks, table, lens_there, max_blocks }
    }

    fn columns(&self, from: usize) -> Strided {
        let all = self.qkv.view();
        let at = all.at + from as u64 * all.dtype.bytes();
        Strided { view: View::new(at, all.dtype, all.elements - from as u64), stride: self.stride as u64 }
    }

    fn append(&self, layer: u32, rope: Option<Rope>) -> Append {
        let (q, kv) = widths(self.heads);
        Append {
            batch: self.lens.len() as u32,
            tokens: self.tokens as u32,
            heads: self.heads,
            k: self.columns(q),
            v: self.columns(q + kv),
            cache: Cache {
                blocks: self.table.view(),
                max_blocks: self.max_blocks as u32,
                lens: self.lens_there.view(),
                dtype: self.blocks[0].dtype,
                layer,
            },
            rope,
            q: None,
        }
    }

    fn run(&mut self, append_this: &Append) {
        run(append(append_this), &mut self.blocks.iter_mut().collect::<Vec<_>>());
    }

    /// Each row's blocks must hold `keys(row, token)` and `values(row, token)`, `[kv_heads * head_dim]` each, and nothing else.
    fn check(&self, what: &str, layer: usize, expected: impl Fn(usize, usize, usize) -> Vec<f64>, relative: f64) {
        let (_, kv) = widths(self.heads);
        let d = self.heads.head_dim as usize;
        for (row, &len) in self.lens.iter().enumerate() {
            for block in 0..self.max_blocks {
                let mut wanted = vec![f64::NAN; LAYERS * 2 * kv * BLOCK];
                for token in 0..self.tokens {
                    // A row of negative length is not in use.
                    let Ok(before) = usize::try_from(len) else { continue };
                    let at = before + token;
                    if at / BLOCK != block {
                        continue;
                    }
                    for which in 0..2 {
                        for (head, from) in expected(row, token, which).chunks(d).enumerate() {
                            let heads = self.heads.kv_heads as usize;
                            let to = (((layer * 2 + which) * heads + head) * BLOCK + at % BLOCK) * d;
                            wanted[to..to + d].copy_from_slice(from);
                        }
                    }
                }
                let got = self.blocks[row * self.max_blocks + block].values();
                assert_close(&format!("{what}, row {row}, block {block}"), &got, &wanted, relative, relative);
            }
        }
    }

    /// Columns of a token, as the tensor holds them.
    fn token(&self, row: usize, token: usize, from: usize, width: usize) -> Vec<f64> {
        let at = (row * self.tokens + token) * self.stride + from;
        self.qkv.values()[at..at + width].to_vec()
    }
}

fn widths(heads: Heads) -> (usize, usize) {
    ((heads.heads * heads.head_dim) as usize, (heads.kv_heads * heads.head_dim) as usize)
}

/// What turning every head of `x` gives.
fn turned(x: &[f64], frequencies: &[f64], position: f64, style: RopeStyle) -> Vec<f64> {
    let half = frequencies.len();
    let mut y = x.to_vec();
    for (x, y) in x.chunks(2 * half).zip(y.chunks_mut(2 * half)) {
        for (i, frequency) in frequencies.iter().enumerate() {
            // The angle is f32's, as in the graph's definition.
            let (s, c) = f64::from(position as f32 * *frequency as f32).sin_cos();
            let (a, b) = if style == RopeStyle::Half { (i, i + half) } else { (2 * i, 2 * i + 1) };
            (y[a], y[b]) = (x[a] * c - x[b] * s, x[b] * c + x[a] * s);
        }
    }
    y
}

#[test]
fn every_type_becomes_every_other() {
    for dtype in FLOATS {
        for cache_dtype in FLOATS {
            for (heads, kv_heads, head_dim, tokens, lens, gap) in
                [(4, 2, 64, 1, vec![0, 63, 64], 0), (3, 3, 5, 70, vec![61, -1], 0), (2, 1, 80, 3, vec![62], 1)]
            {
                let heads = Heads { heads, kv_heads, head_dim };
                let mut step = Step::new(heads, tokens, &lens, dtype, cache_dtype, gap);
                let this = step.append(1, None);
                step.run(&this);
                let (q, kv) = widths(heads);
                let expected = |row, token, which| rounded(cache_dtype, &step.token(row, token, q + which * kv, kv));
                step.check(&format!("{dtype} to {cache_dtype}"), 1, expected, 0.0);
            }
        }
    }
}

#[test]
fn keys_and_queries_are_turned() {
    for style in [RopeStyle::Half, RopeStyle::Interleaved] {
        for dtype in FLOATS {
            for (head_dim, own_positions, in_place, gap) in
                [(64, false, false, 0), (64, true, true, 0), (10, false, true, 0), (24, true, false, 2)]
            {
                let heads = Heads { heads: 4, kv_heads: 2, head_dim };
                let lens = [60, 0, -1];
                let tokens = 6;
                let mut step = Step::new(heads, tokens, &lens, dtype, dtype, gap);
                let (q_width, kv) = widths(heads);
                let half = head_dim as usize / 2;
                let frequencies: Vec<f64> = (0..half).map(|i| 10_000_f64.powf(-(i as f64) / half as f64)).collect();
                let frequencies = Tensor::new(DType::F32, &frequencies);
                let chosen: Vec<f64> = (0..3 * tokens).map(|i| (i * 7919 % 131_072) as f64).collect();
                let positions = Tensor::new(DType::I32, &chosen);
                // In place, q is dense and by itself.
                let mut q = Tensor::random(dtype, 3 * tokens * q_width, 1.0, 9);
                let before = if in_place { q.values() } else { vec![] };
                let mut out = Tensor::poisoned(dtype, 3 * tokens * q_width);
                let place = if in_place { q.view() } else { out.view() };
                let from = if in_place { Strided::dense(q.view(), q_width as u64) } else { step.columns(0) };
                let rope =
                    Rope { style, frequencies: frequencies.view(), positions: own_positions.then(|| positions.view()) };
                let this = Append { q: Some((from, place)), ..step.append(0, Some(rope)) };
                if in_place {
                    // It reads what it writes: a second time it would turn what is turned.
                    run_over(&[append(&this).expect("a launch that can be made")], &mut q);
                } else {
                    let mut outputs: Vec<&mut Tensor> = step.blocks.iter_mut().collect();
                    outputs.push(&mut out);
                    run(append(&this), &mut outputs);
                }
                let what = format!("{style:?}, {dtype}, head_dim {head_dim}");
                let position = |row: usize, token: usize| {
                    if own_positions { chosen[row * tokens + token] } else { f64::from(lens[row]) + token as f64 }
                };
                let table = frequencies.values();
                let expected = |row: usize, token: usize, which: usize| {
                    let x = step.token(row, token, q_width + which * kv, kv);
                    if which == 1 { x } else { turned(&x, &table, position(row, token), style) }
                };
                step.check(&what, 0, expected, 2.0 * precision(dtype));
                let results = if in_place { q.values() } else { out.values() };
                for (at, got) in results.chunks(q_width).enumerate() {
                    let (row, token) = (at / tokens, at % tokens);
                    let x = if in_place {
                        before[at * q_width..][..q_width].to_vec()
                    } else {
                        step.token(row, token, 0, q_width)
                    };
                    let unused = if in_place { x.clone() } else { vec![f64::NAN; q_width] };
                    let wanted = if lens[row] < 0 { unused } else { turned(&x, &table, position(row, token), style) };
                    let error = 2.0 * precision(dtype);
                    assert_close(&format!("q, {what}, token {at}"), got, &wanted, error, 2.0 * error);
                }
                q.poison();
            }
        }
    }
}

/// A length that lies, or a table that is too short: what does not fit is not written.
#[test]
fn nothing_is_written_past_the_table() {
    let heads = Heads { heads: 1, kv_heads: 1, head_dim: 8 };
    let mut step = Step::new(heads, 5, &[60], DType::F16, DType::F16, 0);
    step.lens_there = Tensor::new(DType::I32, &[126.0]);
    step.lens = vec![126];
    let this = step.append(0, None);
    step.run(&this);
    step.tokens = 2;
    let expected = |row, token, which: usize| step.token(row, token, 8 + which * 8, 8);
    step.check("past the end", 0, expected, 0.0);
    step.lens_there = Tensor::new(DType::I32, &[f64::from(i32::MAX)]);
    let this = step.append(0, None);
    step.run(&this);
    assert!(step.blocks.iter().all(|block| block.bytes().iter().all(|&byte| byte == 0xFF)));
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let heads = Heads { heads: 2, kv_heads: 1, head_dim: 8 };
    let step = Step::new(heads, 5, &[0], DType::F16, DType::F32, 0);
    let good = step.append(0, None);
    assert!(append(&good).is_ok_and(|launch| launch.is_some()));
    assert!(append(&Append { tokens: 0, ..good }).is_ok_and(|launch| launch.is_none()));
    let refused = |this: Append| append(&this).expect_err("it is wrong").to_string();
    assert!(refused(Append { tokens: 6, ..good }).contains("elements of k"));
    assert!(refused(Append { batch: 2, ..good }).contains("elements of blocks"));
    let narrow = Strided { stride: 7, ..good.k };
    assert!(refused(Append { k: narrow, ..good }).contains("width"));
    let odd = Heads { head_dim: 3, ..heads };
    let frequencies = Tensor::new(DType::F32, &[1.0; 4]);
    let rope = Rope { style: RopeStyle::Half, frequencies: frequencies.view(), positions: None };
    assert!(refused(Append { heads: odd, rope: Some(rope), ..good }).contains("even"));
    assert!(append(&Append { rope: Some(rope), ..good }).is_ok());
    let short = Rope { frequencies: View { elements: 3, ..frequencies.view() }, ..rope };
    assert!(refused(Append { rope: Some(short), ..good }).contains("elements of frequencies"));
    let integers = Strided { view: View { dtype: DType::I32, ..good.k.view }, ..good.k };
    assert!(refused(Append { k: integers, ..good }).contains("takes no k"));
}
