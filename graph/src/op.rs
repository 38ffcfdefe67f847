//! The op set.

use crate::kinds::{ArgReduceKind, BinaryKind, CompareKind, CumulativeKind, RandomKind, ScatterKind, UnaryKind};
use crate::types::{DType, Dim};

/// What an input is for; the server fills some by itself and batches rows by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum InputRole {
    /// A tensor given with each run (or bound once).
    Argument = 0,
    /// An immutable resident, bound once.
    Weight = 1,
    /// A KV cache, bound once, appended to by [`Op::Attention`]. Type: the block layout that `Op::Attention` documents.
    KvCache = 2,
    /// Token ids `i32 [Batch, Sequence]`; `generate` feeds each sampled token back here.
    Tokens = 3,
    /// `i32 [Batch, Sequence]`: cache length + 0, 1, ...; filled by the server.
    Positions = 4,
    /// `f32 [Batch, 2]`: temperature, top-p. Temperature 0 is greedy.
    SamplingReal = 5,
    /// `i64 [Batch, 2]`: top-k (0: off), seed.
    SamplingInt = 6,
}

/// How a rotary embedding pairs the elements of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RopeStyle {
    /// Element i with i + d/2 (transformers' Llama).
    Half = 0,
    /// Element 2i with 2i + 1 (the RoFormer paper, GGUF's Llama).
    Interleaved = 1,
}

/// How a linear layer's weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LinearLayout {
    /// `[out, in]` (PyTorch's `nn.Linear`).
    OutIn = 0,
    /// `[in, out]` (GPT-2's `Conv1D`).
    InOut = 1,
}

/// What a reduction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ReduceKind {
    /// Sum.
    Sum = 0,
    /// Arithmetic mean (floats).
    Mean = 1,
    /// Maximum; NaN if any element is.
    Max = 2,
    /// Minimum; NaN if any element is.
    Min = 3,
    /// Product.
    Prod = 4,
}

/// A block format of GGUF: 32 numbers that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum QuantFormat {
    /// 34 bytes: scale d (f16), then 32 signed bytes q; the numbers are `q * d`.
    Q8_0 = 0,
    /// 18 bytes: scale d (f16), then 16 bytes whose low nibbles q are numbers 0..16 and whose high ones are 16..32; the
    /// numbers are `(q - 8) * d`.
    Q4_0 = 1,
    /// 20 bytes: scale d and least m (f16 both), then nibbles as in Q4_0; the numbers are `q * d + m`.
    Q4_1 = 2,
}

impl QuantFormat {
    /// Every format, in codec order.
    pub const ALL: [Self; 3] = [Self::Q8_0, Self::Q4_0, Self::Q4_1];

    /// Numbers in a block.
    pub const BLOCK: u64 = 32;

    /// Bytes that a block takes.
    pub const fn block_bytes(self) -> u64 {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
        }
    }
}

/// What a pool makes of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PoolKind {
    /// The largest; NaN if any element is. Padding is never the largest.
    Max = 0,
    /// Arithmetic mean. Padding counts as zeros, in the divisor only if the op says so.
    Average = 1,
}

/// One operation. Floating-point ops accumulate in f32 whatever the element type. A device that does several ops at once may leave out
/// the roundings between them.
///
/// Shapes: `..` stands for any leading dimensions. "Float" is f32, f16 or bf16; the result has the first input's type
/// unless said otherwise. Linear, MatMul, Embedding, Conv2d and the norms accept weights of another float type than the
/// activation; the result has the activation's. Images are `[N, C, H, W]` with fixed C, H and W; N is fixed or the batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A value from outside. No inputs; the node's declared type is the input's type.
    Input {
        /// Unique within the graph.
        name: String,
        /// What it is for.
        role: InputRole,
    },
    /// All zeros, of the node's declared type (fixed or symbolic dims; no inputs).
    Zeros,
    /// All ones.
    Ones,
    /// Every element is `value` (integers: truncated towards zero, must fit; bool: 0 or 1).
    Full {
        /// The value.
        value: f64,
    },
    /// `start + i * step`, rank 1, computed in f64 and converted as [`Op::Cast`] does; not bool.
    Arange {
        /// First element.
        start: f64,
        /// Increment.
        step: f64,
    },
    /// Uniform in [0, 1), float: element i is word i % 4 of Philox4x32-10 with key `seed` and counter i / 4, as
    /// [`crate::random::fill_uniform`] has it.
    Rand {
        /// Key of the generator.
        seed: u64,
    },
    /// Standard normal, float, by Box-Muller over the same words, as [`crate::random::fill_normal`] has it.
    Randn {
        /// Key of the generator.
        seed: u64,
    },

    /// table `[V, H]` float, ids `[..]` i32/i64 -> `[.., H]` of `dtype`. An id outside 0..V is a run-time error.
    Embedding {
        /// Float type of the result.
        dtype: DType,
    },
    /// a `[.., M, K]`, b `[.., K, N]` (same leading dims, or b of rank 2) -> `[.., M, N]`. Floats.
    MatMul,
    /// x `[.., K]`, weight per `layout`, optional bias `[N]` as third input -> `[.., N]`. Sums are in f32. With a bf16 weight, a
    /// device may round x to bf16 first, as matrix units do.
    Linear {
        /// How the weight is stored.
        layout: LinearLayout,
    },
    /// Elementwise with NumPy broadcasting (a symbol broadcasts with itself and with 1). Same type on both sides, any
    /// but bool; integers wrap.
    Add,
    /// See [`Op::Add`].
    Sub,
    /// See [`Op::Add`].
    Mul,
    /// See [`Op::Add`]; integers truncate, and dividing one by zero is a run-time error.
    Div,
    /// x `[.., H]`, weight `[H]` -> x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019).
    RmsNorm {
        /// Added under the root.
        eps: f32,
    },
    /// x `[.., H]`, weight `[H]`, bias `[H]` (Ba et al. 2016).
    LayerNorm {
        /// Added under the root.
        eps: f32,
    },
    /// x `[B, S, heads * head_dim]`, positions `i32 [B, S]`, optional inverse frequencies `f32 [head_dim / 2]`
    /// (replacing theta^(-2i/head_dim)). (Su et al. 2021.)
    Rope {
        /// Base of the frequencies.
        theta: f32,
        /// Elements a head, even.
        head_dim: u32,
        /// Pairing.
        style: RopeStyle,
    },
    /// Gaussian error linear unit; `tanh`: the tanh approximation (GPT-2's gelu_new), else by erf.
    Gelu {
        /// Which form.
        tanh: bool,
    },
    /// x * sigmoid(x).
    Silu,
    /// max(x, 0).
    Relu,
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// |x|, floats and signed integers (which wrap).
    Abs,
    /// -x, floats and signed integers (which wrap).
    Neg,
    /// e^x.
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// Softmax of floats over `axis` (negative: from the end).
    Softmax {
        /// The axis.
        axis: i32,
    },
    /// q `[B, S, heads * head_dim]`, k and v `[B, S, kv_heads * head_dim]`, optional cache -> `[B, S, heads * head_dim]`.
    /// Row s of batch b sees positions 0..=len\[b\]+s (causal), else all of this step's too. With a cache (an input of role
    /// KvCache), k and v are first appended at len\[b\] in layer `layer`; the cache's length grows by S once per run.
    ///
    /// Cache type: `float [Position, layers, 2, kv_heads, BLOCK, head_dim]` where dimension 0 counts blocks of
    /// [`Op::KV_BLOCK`] tokens and index 2 is 0 for keys, 1 for values. A batch row has a cache of its own.
    Attention {
        /// Which layer of the cache.
        layer: u32,
        /// Query heads, a multiple of kv_heads.
        heads: u32,
        /// Key/value heads.
        kv_heads: u32,
        /// Elements a head.
        head_dim: u32,
        /// Factor on q.k.
        scale: f32,
        /// Whether later positions are hidden.
        causal: bool,
    },
    /// Same elements, new shape. At most one dimension may be [`Op::INFER`] and is worked out from the fixed ones; the
    /// symbols must be those of x, in the same order.
    Reshape {
        /// The new dimensions.
        dims: Vec<Dim>,
    },
    /// Dimensions in a new order.
    Transpose {
        /// Output dimension i is input dimension `perm[i]`.
        perm: Vec<u32>,
    },
    /// `x[start:end:step]` along `axis`; negative bounds count from the end, `end` None is the dimension's end. On a
    /// symbolic dimension only the whole range or the last n (`start` = -n, `end` None), by steps of 1, can be taken.
    /// Bounds outside the dimension and empty results are errors: nothing is clamped.
    Slice {
        /// The axis.
        axis: i32,
        /// First index.
        start: i64,
        /// One past the last.
        end: Option<i64>,
        /// At least 1.
        step: u64,
    },
    /// One or more inputs joined along `axis` (a fixed dimension in all).
    Concat {
        /// The axis.
        axis: i32,
    },
    /// Reduction over `axes` (all if empty), of any type but bool, of which there are only the maximum (any) and the minimum (all);
    /// mean: floats. Integer sums and products wrap.
    Reduce {
        /// What is computed.
        kind: ReduceKind,
        /// Over which axes.
        axes: Vec<i32>,
        /// Whether reduced axes stay as 1.
        keep_dims: bool,
    },
    /// Index of the largest element along `axis` -> i32 without that axis; the first of equals. Any type but bool; NaN
    /// is never the largest.
    ArgMax {
        /// The axis.
        axis: i32,
    },
    /// logits `float [B, V]`, `f32 [B, 2]` (temperature, top-p), `i64 [B, 2]` (top-k, seed), positions `i32 [B, S]` ->
    /// `i32 [B]`. The draw is Philox4x32-10 with key seed and counter = the row's last position, so that a seed gives the
    /// same tokens on every device, in every batch and after every replay.
    Sample,
    /// Element type conversion (float to integer truncates and saturates; to bool: non-zero).
    Cast {
        /// The new type.
        to: DType,
    },
    /// x `[V, ..]`, ids `[..]` i32/i64 -> rows of x. Out of range is a run-time error.
    Gather,
    /// x u8 `[.., W]`, blocks as GGUF stores them (W fixed, a multiple of the block's bytes) -> `[.., W / block bytes * 32]`
    /// of `to`. Each number is worked out in f32, one rounding an operation, then converted. Bytes are not checked: a scale
    /// that is NaN or infinite gives such numbers.
    ///
    /// A device may read the blocks where the result is used instead of storing it: a [`Op::Linear`] of layout
    /// [`LinearLayout::OutIn`] over a quantised weight, with the same bits, or of the numbers before they are rounded to `to`. Rows of a quantised table are taken by
    /// [`Op::Gather`] first.
    Dequantize {
        /// How the blocks are laid out.
        format: QuantFormat,
        /// Float type of the result.
        to: DType,
    },
    /// x `[N, C, H, W]` float, weight `[O, C / groups, kh, kw]`, optional bias `[O]` as third input -> `[N, O, H', W']` with
    /// H' = (H + top + bottom - dilation * (kh - 1) - 1) / stride + 1, rounded down, and W' alike. Output channel o sees the
    /// input channels of its group. Padding is zeros; what an infinite weight makes of it is the device's.
    Conv2d {
        /// Rows and columns from one window to the next; at least 1.
        stride: [u32; 2],
        /// Rows and columns of zeros around x: top, left, bottom, right.
        padding: [u32; 4],
        /// Rows and columns from one element of a window to the next; at least 1.
        dilation: [u32; 2],
        /// Divides C and O.
        groups: u32,
    },
    /// x `[N, C, ..]` with fixed C; weight, bias, mean and variance each `[C]` -> (x - mean) / sqrt(variance + eps) * weight +
    /// bias, a channel each: the inference form (Ioffe and Szegedy 2015).
    BatchNorm {
        /// Added under the root.
        eps: f32,
    },
    /// x `[N, C, H, W]` float -> `[N, C, H', W']` with H' = (H + top + bottom - kernel) / stride + 1, rounded down, and W'
    /// alike. Every window has an element of x, for padding is smaller than the kernel.
    Pool {
        /// What is computed.
        kind: PoolKind,
        /// Rows and columns of a window; at least 1.
        kernel: [u32; 2],
        /// Rows and columns from one window to the next; at least 1.
        stride: [u32; 2],
        /// Rows and columns around x: top, left, bottom, right; each smaller than the kernel.
        padding: [u32; 4],
        /// Whether an average divides by the whole window's elements, not only by those of x.
        count_padding: bool,
    },
    /// x `[V, ..]`, ids `[n]` i32/i64, updates `[n, ..]` of x's type -> x with row `ids[i]` replaced by row i of updates; of
    /// equal ids the last counts. An id outside 0..V is a run-time error.
    Scatter,
    /// A function of each element: [`UnaryKind`] says which, and of which types.
    Unary {
        /// Which function.
        kind: UnaryKind,
    },
    /// A function of two elements of one type, with NumPy broadcasting as [`Op::Add`]: [`BinaryKind`] says which, and of which types.
    Binary {
        /// Which function.
        kind: BinaryKind,
    },
    /// Elements of one type compared, with NumPy broadcasting -> bool. Any type.
    Compare {
        /// How.
        kind: CompareKind,
    },
    /// condition bool, a and b of one type, any -> a where the condition is true, else b. All three broadcast as NumPy has it.
    Where,
    /// x repeated to `dims` by NumPy's rules: from the right, dimensions are those of x, or x has 1, or none.
    Broadcast {
        /// The new dimensions.
        dims: Vec<Dim>,
    },
    /// What comes of all elements up to each along `axis`, of any type but bool. Floats are carried in f32 or wider.
    Cumulative {
        /// What is carried.
        kind: CumulativeKind,
        /// The axis.
        axis: i32,
    },
    /// The indices that put each row along `axis` in order -> i64 of x's shape. Any type. Equals stay in their order; NaN is above
    /// everything, false below true.
    ArgSort {
        /// The axis.
        axis: i32,
        /// The largest first.
        descending: bool,
    },
    /// x, ids i32/i64 of x's rank, elsewhere than along `axis` not larger (a symbol: the same) -> of ids' shape: the element of x at
    /// each id's own index, but along `axis` at the id. An id outside the axis is a run-time error, negative ones among them.
    TakeAlong {
        /// The axis.
        axis: i32,
    },
    /// x, ids as for [`Op::TakeAlong`], updates of ids' shape and x's type -> x, with each update applied to the element at its own
    /// index, but along `axis` at its id. An id outside the axis is a run-time error.
    ScatterAlong {
        /// The axis.
        axis: i32,
        /// What an update does.
        kind: ScatterKind,
    },
    /// Index of the largest or smallest element along `axis` -> i64. Any type. Unlike for [`Op::ArgMax`], NaN is found before all
    /// else.
    ArgReduce {
        /// Which element.
        kind: ArgReduceKind,
        /// The axis.
        axis: i32,
        /// Whether the axis stays as 1.
        keep_dims: bool,
    },
    /// i64 `[2]` (key, first block; their bits are taken as unsigned) -> `dtype` `dims`: the words of Philox4x32-10 with that key from
    /// that block on, as [`crate::random`] has it. With first block 0 that is what [`Op::Rand`] and [`Op::Randn`] of this seed make.
    Random {
        /// What is made of the words.
        kind: RandomKind,
        /// Element type of the result.
        dtype: DType,
        /// Shape of the result.
        dims: Vec<Dim>,
    },
    /// Elements in the opposite order along `axes` (all if empty).
    Flip {
        /// Along which axes.
        axes: Vec<i32>,
    },
    /// x with elements of `value` around it. Each list has a number a dimension; where either is not 0, the dimension is fixed.
    Pad {
        /// How many before.
        before: Vec<u32>,
        /// How many after.
        after: Vec<u32>,
        /// What they are; must be one of the type's numbers, as for [`Op::Full`].
        value: f64,
    },
}

impl Op {
    /// Tokens in one block of a KV cache.
    pub const KV_BLOCK: u64 = 64;

    /// The dimension of an [`Op::Reshape`] that is to be inferred; no tensor can have it.
    pub const INFER: Dim = Dim::Fixed(u64::MAX);

    /// The name that dumps and errors use.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Input { .. } => "input",
            Self::Zeros => "zeros",
            Self::Ones => "ones",
            Self::Full { .. } => "full",
            Self::Arange { .. } => "arange",
            Self::Rand { .. } => "rand",
            Self::Randn { .. } => "randn",
            Self::Embedding { .. } => "embedding",
            Self::MatMul => "matmul",
            Self::Linear { .. } => "linear",
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
            Self::Div => "div",
            Self::RmsNorm { .. } => "rms_norm",
            Self::LayerNorm { .. } => "layer_norm",
            Self::Rope { .. } => "rope",
            Self::Gelu { .. } => "gelu",
            Self::Silu => "silu",
            Self::Relu => "relu",
            Self::Sigmoid => "sigmoid",
            Self::Tanh => "tanh",
            Self::Abs => "abs",
            Self::Neg => "neg",
            Self::Exp => "exp",
            Self::Log => "log",
            Self::Sqrt => "sqrt",
            Self::Softmax { .. } => "softmax",
            Self::Attention { .. } => "attention",
            Self::Reshape { .. } => "reshape",
            Self::Transpose { .. } => "transpose",
            Self::Slice { .. } => "slice",
            Self::Concat { .. } => "concat",
            Self::Reduce { .. } => "reduce",
            Self::ArgMax { .. } => "argmax",
            Self::Sample => "sample",
            Self::Cast { .. } => "cast",
            Self::Gather => "gather",
            Self::Dequantize { .. } => "dequantize",
            Self::Conv2d { .. } => "conv2d",
            Self::BatchNorm { .. } => "batch_norm",
            Self::Pool { .. } => "pool",
            Self::Scatter => "scatter",
            Self::Unary { .. } => "unary",
            Self::Binary { .. } => "binary",
            Self::Compare { .. } => "compare",
            Self::Where => "where",
            Self::Broadcast { .. } => "broadcast",
            Self::Cumulative { .. } => "cumulative",
            Self::ArgSort { .. } => "argsort",
            Self::TakeAlong { .. } => "take_along",
            Self::ScatterAlong { .. } => "scatter_along",
            Self::ArgReduce { .. } => "arg_reduce",
            Self::Random { .. } => "random",
            Self::Flip { .. } => "flip",
            Self::Pad { .. } => "pad",
        }
    }

    /// Whether the node's type is declared (inputs and creation ops) rather than inferred from what it reads.
    pub const fn is_declared(&self) -> bool {
        matches!(
            self,
            Self::Input { .. }
                | Self::Zeros
                | Self::Ones
                | Self::Full { .. }
                | Self::Arange { .. }
                | Self::Rand { .. }
                | Self::Randn { .. }
        )
    }
}
