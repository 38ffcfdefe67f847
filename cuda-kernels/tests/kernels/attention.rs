//! Attention, against a plain sum over keys in f64.

use genie_cuda_kernels::launch::attention::{
    Attention, Cache, Gpu, Heads, Source, Strided, decode, decode_scratch, prefill,
};
use genie_cuda_kernels::{Launch, View};
use genie_graph::DType;

use super::support::{Tensor, assert_close, precision, run};

pub(crate) const BLOCK: usize = 64;
const H200: Gpu = Gpu { sms: 132, shared: 227 << 10 };
/// A GPU of compute capability 7.5: fewer warps, less on its way.
const T4: Gpu = Gpu { sms: 40, shared: 64 << 10 };

/// An attention with random inputs.
struct Case {
    heads: Heads,
    tokens: usize,
    causal: bool,
    scale: f32,
    lens: Vec<i32>,
    dtype: DType,
    cache_dtype: DType,
    /// q, k and v are columns of one tensor, with as many elements more between tokens.
    gap: usize,
    seed: u64,
}

/// Its tensors.
struct Made {
    qkv: Tensor,
    y: Tensor,
    /// Here so that the table's addresses stay good.
    _blocks: Vec<Tensor>,
    table: Tensor,
    lens: Tensor,
    /// Keys and values by row of the batch, `[tokens in all, kv_heads, head_dim]`.
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
    max_blocks: usize,
}

const LAYERS: usize = 2;
const LAYER: u32 = 1;

impl Case {
    fn new(heads: (u32, u32, u32), tokens: usize, lens: &[i32], dtype: DType, cache_dtype: DType) -> Self {
        let (group, kv_heads, head_dim) = heads;
        let heads = Heads { heads: group * kv_heads, kv_heads, head_dim };
        let scale = 1.0 / (head_dim as f32).sqrt();
        let seed = u64::from(group) * 7 + tokens as u64 * 31 + u64::from(head_dim);
        Self { heads, tokens, causal: true, scale, lens: lens.to_vec(), dtype, cache_dtype, gap: 0, seed }
    }

    fn widths(&self) -> (usize, usize) {
        let d = self.heads.head_dim as usize;
        (self.heads.heads as usize * d, self.heads.kv_heads as usize * d)
    }

    fn stride(&self) -> usize {
        let (q, kv) = self.widths();
        q + 2 * kv + self.gap
    }

    /// Inputs, and caches that hold this step's tokens already. What nobody has written holds NaN.
    fn make(&self, spare_blocks: usize) -> Made {
        self.make_from(self.random_qkv(), spare_blocks)
    }

    fn random_qkv(&self) -> Tensor {
        let (batch, (q_width, _)) = (self.lens.len(), self.widths());
        let random = Tensor::random(self.dtype, batch * self.tokens * self.stride(), 1.0, self.seed);
        // Larger queries: weights that differ.
        let mut values = random.values();
        for token in values.chunks_mut(self.stride()) {
            token[..q_width].iter_mut().for_each(|x| *x *= 2.0);
        }
        Tensor::new(self.dtype, &values)
    }

    fn make_from(&self, qkv: Tensor, spare_blocks: usize) -> Made {
        let (q_width, kv_width) = self.widths();
        let (kv_heads, d) = (self.heads.kv_heads as usize, self.heads.head_dim as usize);
        let stride = self.stride();
        let all = qkv.values();
        let longest = self.lens.iter().map(|&len| len.max(0) as usize + self.tokens).max().unwrap_or(1);
        let max_blocks = longest.div_ceil(BLOCK) + spare_blocks;
        let (mut blocks, mut table) = (vec![], vec![]);
        let (mut keys, mut values) = (vec![], vec![]);
        for (row, &len) in self.lens.iter().enumerate() {
            let before = len.max(0) as usize;
            // The same history whatever the batch: a row can be compared with itself in another.
            let of = |which: usize| {
                let seed = self.seed ^ (before as u64 * 77 + which as u64 * 5);
                let mut history = Tensor::random(self.cache_dtype, before * kv_width, 1.0, seed).values();
                for token in 0..self.tokens {
                    let at = (row * self.tokens + token) * stride + q_width + which * kv_width;
                    history.extend(Tensor::new(self.cache_dtype, &all[at..at + kv_width]).values());
                }
                history
            };
            let (k, v) = (of(0), of(1));
            for block in 0..max_blocks {
                let mut content = vec![f64::NAN; LAYERS * 2 * kv_width * BLOCK];
                for (which, from) in [&k, &v].into_iter().enumerate() {
                    for token in (block * BLOCK..(block + 1) * BLOCK).take_while(|&t| t < before + self.tokens) {
                        for head in 0..kv_heads {
                            let to = (((LAYER as usize * 2 + which) * kv_heads + head) * BLOCK + token % BLOCK) * d;
                            let at = (token * kv_heads + head) * d;
                            content[to..to + d].copy_from_slice(&from[at..at + d]);
                        }
                    }
                }
                if len >= 0 && block * BLOCK < before + self.tokens {
                    let tensor = Tensor::new(self.cache_dtype, &content);
                    table.push(tensor.view().at as f64);
                    blocks.push(tensor);
                } else {
                    // No block: an address that faults.
                    table.push(16.0);
                }
            }
            keys.push(k);
            values.push(v);
        }
        let y = Tensor::poisoned(self.dtype, self.lens.len() * self.tokens * q_width);
        let lens = Tensor::new(DType::I32, &self.lens.iter().map(|&l| f64::from(l)).collect::<Vec<_>>());
        Made { qkv, y, _blocks: blocks, table: Tensor::new(DType::I64, &table), lens, keys, values, max_blocks }
    }

    fn part(&self, made: &Made, offset: usize) -> Strided {
        let all = made.qkv.view();
        let view = View::new(all.at + offset as u64 * self.dtype.bytes(), self.dtype, all.elements - offset as u64);
        Strided { view, stride: self.stride() as u64 }
    }

    fn attention(&self, made: &Made) -> Attention {
        Attention {
            batch: self.lens.len() as u32,
            tokens: self.tokens as u32,
            heads: self.heads,
            scale: self.scale,
            causal: self.causal,
            q: self.part(made, 0),
            y: made.y.view(),
        }
    }

    fn cache(&self, made: &Made) -> Cache {
        Cache {
            blocks: made.table.view(),
            max_blocks: made.max_blocks as u32,
            lens: made.lens.view(),
            dtype: self.cache_dtype,
            layer: LAYER,
        }
    }

    /// Results, NaN (what outputs hold before) for rows that are not in use.
    fn expected(&self, made: &Made) -> Vec<f64> {
        let (heads, d) = (self.heads.heads as usize, self.heads.head_dim as usize);
        let (kv_heads, stride) = (self.heads.kv_heads as usize, self.stride());
        let q = made.qkv.values();
        let mut y = vec![];
        for (row, &len) in self.lens.iter().enumerate() {
            for token in 0..self.tokens {
                for head in 0..heads {
                    if len < 0 {
                        y.extend(vec![f64::NAN; d]);
                        continue;
                    }
                    let seen = len as usize + if self.causal { token + 1 } else { self.tokens };
                    let q = &q[(row * self.tokens + token) * stride + head * d..][..d];
                    let kv = |all: &[f64], key: usize| {
                        let at = (key * kv_heads + head / (heads / kv_heads)) * d;
                        all[at..at + d].to_vec()
                    };
                    let score = |key| -> f64 {
                        let k = kv(&made.keys[row], key);
                        q.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>() * f64::from(self.scale)
                    };
                    let scores: Vec<f64> = (0..seen).map(score).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    let mut sums = vec![0.0; d];
                    for (key, weight) in weights.iter().enumerate() {
                        let v = kv(&made.values[row], key);
                        sums.iter_mut().zip(v).for_each(|(sum, v)| *sum += weight * v);
                    }
                    y.extend(sums.iter().map(|sum| sum / total));
                }
            }
        }
        y
    }

    /// On matrix units a weight is rounded to the keys' type; otherwise f32 rounds sums of products of some size.
    fn check(&self, what: &str, made: &Made) {
        let rounded = if self.dtype == self.cache_dtype { precision(self.dtype) } else { 0.0 };
        let largest = made.values.iter().flatten().filter(|v| v.is_finite()).fold(1.0, |a: f64, b| a.max(b.abs()));
        let absolute = largest * rounded.max(2e-5) * 0.75;
        let what = format!("{what}: {self}");
        assert_close(&what, &made.y.values(), &self.expected(made), precision(self.dtype), absolute);
    }

    fn prefill(&self, gpu: Gpu) {
        let mut made = self.make(0);
        let launch = prefill(&self.attention(&made), &Source::Cached(self.cache(&made)), gpu);
        run(launch, &mut [&mut made.y]);
        self.check("prefill", &made);
    }

    fn fresh(&self) {
        let mut made = self.make(0);
        let (q, kv) = self.widths();
        let source = Source::Fresh { k: self.part(&made, q), v: self.part(&made, q + kv) };
        run(prefill(&self.attention(&made), &source, H200), &mut [&mut made.y]);
        self.check("fresh", &made);
    }

    fn decode(&self, spare_blocks: usize, gpu: Gpu) -> Tensor {
        self.decode_made(self.make(spare_blocks), gpu)
    }

    fn decode_made(&self, mut made: Made, gpu: Gpu) -> Tensor {
        let scratch = decode_scratch(self.lens.len() as u32, self.tokens as u32, self.heads, made.max_blocks as u32);
        let partials = Tensor::poisoned(F32, scratch.partials as usize);
        let arrived = Tensor::new(DType::I32, &vec![0.0; scratch.arrived as usize]);
        let launch = decode(&self.attention(&made), &self.cache(&made), None, partials.view(), arrived.view(), gpu);
        run(launch, &mut [&mut made.y]);
        self.check("decode", &made);
        assert!(arrived.values().iter().all(|&n| n == 0.0), "counters are not left as they were");
        made.y
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { heads, tokens, causal, lens, dtype, cache_dtype, .. } = self;
        write!(f, "{heads:?}, {tokens} tokens over {lens:?}, causal {causal}, {dtype} over {cache_dtype}")
    }
}

use DType::{BF16, F16, F32};

#[test]
fn prefill_on_matrix_units() {
    for (heads, tokens, lens, dtype) in [
        ((1, 2, 64), 130, vec![0, 70], F16),
        ((3, 1, 64), 47, vec![300, 5, 64], BF16),
        ((4, 1, 128), 33, vec![63], BF16),
        ((7, 1, 32), 9, vec![0, 128, -1], F16),
        ((8, 1, 80), 5, vec![100], BF16),
        ((1, 1, 96), 65, vec![1], F16),
        ((2, 1, 256), 20, vec![40], F16),
        ((1, 1, 256), 1, vec![64], BF16),
        ((1, 1, 40), 64, vec![0], BF16),
        ((1, 3, 8), 3, vec![61, 62], F16),
    ] {
        Case::new(heads, tokens, &lens, dtype, dtype).prefill(H200);
    }
    for (heads, tokens, lens) in [((1, 1, 128), 70, vec![30]), ((2, 1, 256), 40, vec![0])] {
        Case::new(heads, tokens, &lens, F16, F16).prefill(T4);
    }
}

#[test]
fn prefill_in_f32() {
    for (heads, tokens, lens, dtype, cache_dtype) in [
        ((1, 2, 64), 67, vec![0, 70], F32, F32),
        ((3, 1, 128), 13, vec![130, 5], F32, F16),
        ((8, 1, 256), 9, vec![33], F32, BF16),
        ((7, 1, 32), 5, vec![64, -1], F16, F32),
        ((4, 1, 20), 33, vec![31], BF16, F16),
        ((1, 1, 33), 40, vec![64], F32, F32),
        ((1, 1, 5), 3, vec![2], F16, F16),
        ((2, 1, 100), 20, vec![50], BF16, BF16),
    ] {
        Case::new(heads, tokens, &lens, dtype, cache_dtype).prefill(T4);
    }
}

#[test]
fn without_a_cache() {
    for (heads, tokens, rows, dtype) in [
        ((1, 2, 64), 70, 2, F16),
        ((4, 1, 128), 20, 1, BF16),
        ((2, 1, 256), 37, 1, BF16),
        ((3, 2, 80), 50, 1, F16),
        ((1, 2, 64), 65, 1, F32),
        ((2, 1, 72), 1, 3, F32),
        ((2, 1, 30), 40, 1, BF16),
    ] {
        for causal in [false, true] {
            let case = Case { causal, ..Case::new(heads, tokens, &vec![0; rows], dtype, dtype) };
            case.fresh();
        }
    }
}

#[test]
fn every_token_sees_all_where_nothing_is_hidden() {
    for (dtype, cache_dtype) in [(F16, F16), (F32, BF16)] {
        let case = Case { causal: false, ..Case::new((2, 1, 64), 20, &[50, 0], dtype, cache_dtype) };
        case.prefill(H200);
        let case = Case { causal: false, ..Case::new((4, 1, 32), 5, &[61, 200], dtype, cache_dtype) };
        case.decode(0, H200);
    }
}

#[test]
fn decode_on_matrix_units() {
    for (heads, tokens, lens, dtype) in [
        ((1, 2, 64), 1, vec![0, 63, 64, 300], F16),
        ((3, 1, 64), 1, vec![299], BF16),
        ((4, 2, 128), 1, vec![127, -1, 128], BF16),
        ((7, 1, 32), 3, vec![189, 1], F16),
        ((8, 1, 80), 4, vec![126, 250], BF16),
        ((1, 1, 96), 8, vec![5, 190], F16),
        ((4, 1, 256), 2, vec![140], F16),
        ((1, 1, 16), 33, vec![100], BF16),
    ] {
        Case::new(heads, tokens, &lens, dtype, dtype).decode(1, H200);
    }
    Case::new((4, 1, 128), 2, &[200], F16, F16).decode(0, T4);
    // Few blocks, each with many chunks one after another.
    Case::new((4, 2, 64), 1, &[700, 3, 130], F16, F16).decode(0, Gpu { sms: 1, ..H200 });
    // No room for two tiles of this size: it goes another way.
    Case::new((1, 1, 256), 1, &[130], F16, F16).decode(0, T4);
}

#[test]
fn decode_in_f32() {
    for (heads, tokens, lens, dtype, cache_dtype) in [
        ((1, 2, 64), 1, vec![0, 63, 64, 300], F32, F32),
        ((3, 1, 128), 1, vec![299], F32, F16),
        ((4, 2, 128), 1, vec![127, -1, 128], F32, BF16),
        ((7, 1, 32), 3, vec![189, 1], F16, BF16),
        ((8, 1, 256), 1, vec![126], F32, F32),
        ((1, 1, 33), 8, vec![5, 190], BF16, F32),
        ((5, 1, 6), 2, vec![129], F16, F16),
    ] {
        Case::new(heads, tokens, &lens, dtype, cache_dtype).decode(1, T4);
    }
    Case::new((4, 2, 64), 1, &[700, 3, 130], F32, F16).decode(0, Gpu { sms: 1, ..H200 });
}

#[test]
fn columns_of_a_wider_tensor_at_any_place() {
    // Gaps of 8 keep packs of 16 bytes aligned, of 4 those of 8, and of 1 none.
    for gap in [8, 4, 1] {
        for dtype in [F16, F32] {
            let case = Case { gap, ..Case::new((2, 2, 64), 3, &[62, 130], dtype, dtype) };
            case.prefill(H200);
            case.decode(0, H200);
            Case { lens: vec![0, 0], ..case }.fresh();
        }
    }
}

/// A row gives the same bits alone, next to others, and with a table that has room for more.
#[test]
fn a_row_does_not_depend_on_its_batch() {
    for (dtype, cache_dtype) in [(BF16, BF16), (F32, F16)] {
        for (len, others) in [(290, [3, 640]), (20, [700, -1])] {
            let alone = Case::new((4, 2, 64), 2, &[len], dtype, cache_dtype);
            let together =
                Case { lens: vec![others[0], len, others[1]], ..Case::new((4, 2, 64), 2, &[], dtype, cache_dtype) };
            let first = alone.decode(0, H200);
            let row = first.bytes().len();
            for spare_blocks in [0, 1, 200] {
                // The same tokens in the middle row.
                let middle = alone.random_qkv().values();
                let all = [middle.clone(), middle.clone(), middle].concat();
                let made = together.make_from(Tensor::new(dtype, &all), spare_blocks);
                let y = together.decode_made(made, Gpu { sms: 1 + spare_blocks as u32, ..H200 });
                assert!(y.bytes()[row..2 * row] == *first.bytes(), "{alone} differs in {together}");
            }
        }
    }
}

/// More blocks than there are chunks: each has several, and the last may have fewer.
#[test]
fn a_long_row_has_chunks_of_several_blocks() {
    for len in [64 * 128 - 1, 64 * 133 + 7] {
        Case::new((1, 1, 32), 1, &[len, 1], F16, F16).decode(0, H200);
    }
}

/// Values that some tokens must not see hide nothing from those that may: a weight of zero times infinity would be NaN. And
/// scores: of minus infinity alone there is no weight, of infinity none that is a number.
#[test]
fn infinities_and_nan_stay_where_they_are_seen() {
    for (dtype, cache_dtype) in [(F16, F16), (BF16, BF16), (F32, F32)] {
        for (len, few) in [(0, false), (60, false), (60, true), (130, true)] {
            let tokens = if few { 6 } else { 40 };
            let case = Case::new((2, 1, 64), tokens, &[len], dtype, cache_dtype);
            let stride = case.stride();
            let mut values = case.random_qkv().values();
            let (k, v) = (128, 192);
            values[2 * stride + v] = f64::INFINITY;
            values[4 * stride + v] = f64::NEG_INFINITY;
            values[4 * stride + v + 7] = f64::NAN;
            values[5 * stride + v + 63] = f64::INFINITY;
            let made = case.make_from(Tensor::new(dtype, &values), 0);
            check_either(&case, made, few);
            // Scores: all of a head's first query minus infinity, of another NaN, of another far apart.
            let mut values = case.random_qkv().values();
            for d in 0..64 {
                values[stride + d] = if d == 0 { f64::NEG_INFINITY } else { 0.0 };
                values[2 * stride + d] *= 1e3;
            }
            values[3 * stride + 64] = f64::NAN;
            values[3 * stride + k] = f64::NAN;
            // A key whose score is minus infinity for about half of the queries, and infinity for the others.
            values[k + 1] = f64::NEG_INFINITY;
            let made = case.make_from(Tensor::new(dtype, &values), 0);
            check_either(&case, made, few);
        }
    }
}

fn check_either(case: &Case, mut made: Made, few: bool) {
    if few {
        case.decode_made(made, H200);
        return;
    }
    run(prefill(&case.attention(&made), &Source::Cached(case.cache(&made)), H200), &mut [&mut made.y]);
    case.check("strange values", &made);
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let case = Case::new((2, 1, 64), 3, &[5], F16, F16);
    let made = case.make(0);
    let (good, cache) = (case.attention(&made), case.cache(&made));
    let refused = |attention: &Attention, cache: Cache| {
        let error = prefill(attention, &Source::Cached(cache), H200).expect_err("it is wrong");
        error.to_string()
    };
    let heads = |heads, kv_heads, head_dim| Heads { heads, kv_heads, head_dim };
    assert!(refused(&Attention { heads: heads(3, 2, 64), ..good }, cache).contains("multiple of kv_heads"));
    assert!(refused(&Attention { heads: heads(2, 1, 257), ..good }, cache).contains("1 to 256"));
    assert!(refused(&Attention { heads: heads(0, 0, 64), ..good }, cache).contains("kv_heads is 0"));
    assert!(refused(&Attention { tokens: 4, ..good }, cache).contains("elements of q"));
    assert!(refused(&Attention { tokens: u32::MAX, ..good }, cache).contains("tokens"));
    assert!(refused(&good, Cache { dtype: DType::I32, ..cache }).contains("the cache"));
    assert!(refused(&good, Cache { max_blocks: 0, ..cache }).contains("max_blocks"));
    assert!(refused(&good, Cache { max_blocks: 9, ..cache }).contains("elements of blocks"));
    let short = View { elements: good.y.elements - 1, ..good.y };
    assert!(refused(&Attention { y: short, ..good }, cache).contains("elements of y"));
    let odd = View { at: good.y.at + 1, ..good.y };
    assert!(refused(&Attention { y: odd, ..good }, cache).contains("aligned"));
    let scratch = decode_scratch(1, 3, good.heads, cache.max_blocks);
    let view = |dtype, elements| View::new(64, dtype, elements);
    let with = |partials, arrived| decode(&good, &cache, None, view(F32, partials), view(DType::I32, arrived), H200);
    assert!(with(scratch.partials, scratch.arrived).is_ok_and(|launch| launch.is_some()));
    assert!(with(scratch.partials - 1, scratch.arrived).is_err());
    assert!(with(scratch.partials, scratch.arrived - 1).is_err());
    let nothing = Attention { tokens: 0, y: View { elements: 0, ..good.y }, ..good };
    let launch: Option<Launch> = prefill(&nothing, &Source::Cached(cache), H200).expect("there is nothing to do");
    assert!(launch.is_none());
}
