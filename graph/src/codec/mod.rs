//! The stable binary form of a graph: what goes over the wire and what the content hash is of.
//!
//! All integers are little-endian. A graph has exactly one encoding, and `encode(decode(x)) == x` for all that decodes.
//! In the tables, `n x T` is n values of T after each other.
//!
//! ```text
//! graph   bytes  what
//!             4  "GSRG"
//!             2  version, 1
//!             2  reserved, 0
//!          text  name, at most 256 bytes
//!             4  number of nodes, at most 65,536
//!      n x node
//!             4  number of outputs, at most 1,024
//!    n x output
//!
//! text        4  number of bytes
//!             n  UTF-8
//!
//! node        1  op code, see below
//!             1  number of attributes
//! n x attribute  in the order given below
//!             4  number of inputs, at most 64
//!         n x 4  ids of nodes
//!             1  element type: f32 0, f16 1, bf16 2, i64 3, i32 4, u8 5, bool 6
//!          dims  shape
//!             1  phase: unknown 0, prefill 1, decode 2, vision 3, fusion 4
//!             1  residency: activation 0, weight 1, kv-cache 2, output 3
//!             1  modality: none 0, text 1, vision 2, audio 3
//!
//! dims        4  number of dimensions, at most 8
//!       n x dim
//!
//! dim         1  0: fixed, 1: symbol
//!        8 or 1  size, or symbol: batch 0, sequence 1, position 2
//!
//! output   text  name, at most 256 bytes
//!             4  id of a node
//!
//! attribute   1  type
//!             n  value: bool 1: a byte, 0 or 1 - u32 2 - i32 3 - u64 4 - i64 5 - f32 6 - f64 7 (IEEE 754 bits) -
//!                code 8: a byte - text 9 - dims 10 - list of u32 11, list of i32 12: a count of 4 bytes, at most 8,
//!                and the values - optional i64 13: a bool and, if it is 1, an i64
//! ```
//!
//! Ops, with the types of their attributes:
//!
//! ```text
//!  0  input       name text, role code
//!  1  zeros
//!  2  ones
//!  3  full        value f64
//!  4  arange      start f64, step f64
//!  5  rand        seed u64
//!  6  randn       seed u64
//!  7  embedding   dtype code
//!  8  matmul
//!  9  linear      layout code
//! 10  add
//! 11  sub
//! 12  mul
//! 13  div
//! 14  rms_norm    eps f32
//! 15  layer_norm  eps f32
//! 16  rope        theta f32, head_dim u32, style code
//! 17  gelu        tanh bool
//! 18  silu
//! 19  relu
//! 20  sigmoid
//! 21  tanh
//! 22  abs
//! 23  neg
//! 24  exp
//! 25  log
//! 26  sqrt
//! 27  softmax     axis i32
//! 28  attention   layer u32, heads u32, kv_heads u32, head_dim u32, scale f32, causal bool
//! 29  reshape     dims dims
//! 30  transpose   perm list of u32
//! 31  slice       axis i32, start i64, end optional i64, step u64
//! 32  concat      axis i32
//! 33  reduce      kind code, axes list of i32, keep_dims bool
//! 34  argmax      axis i32
//! 35  sample
//! 36  cast        to code
//! 37  gather
//! 38  dequantize  format code, to code
//! 39  conv2d      stride list of 2 u32, padding list of 4 u32, dilation list of 2 u32, groups u32
//! 40  batch_norm  eps f32
//! 41  pool        kind code, kernel list of 2 u32, stride list of 2 u32, padding list of 4 u32, count_padding bool
//! 42  scatter
//! 43  unary          kind code
//! 44  binary         kind code
//! 45  compare        kind code
//! 46  where
//! 47  broadcast      dims dims
//! 48  cumulative     kind code, axis i32
//! 49  argsort        axis i32, descending bool
//! 50  take_along     axis i32
//! 51  scatter_along  axis i32, kind code
//! 52  arg_reduce     kind code, axis i32, keep_dims bool
//! 53  random         kind code, dtype code, dims dims
//! 54  flip           axes list of i32
//! 55  pad            before list of u32, after list of u32, value f64
//! ```
//!
//! Codes: role: argument 0, weight 1, kv-cache 2, tokens 3, positions 4, sampling-real 5, sampling-int 6; style: half 0,
//! interleaved 1; layout: out-in 0, in-out 1; kind of a reduction: sum 0, mean 1, max 2, min 3, prod 4; kind of a pool: max 0,
//! average 1; format: q8_0 0, q4_0 1, q4_1 2; dtype and to: as element types; kinds of the ops from 43 on: the place in
//! the enumeration's `ALL` ([`crate::UnaryKind`], ...), to which new ones are appended. The four numbers of a padding are top, left,
//! bottom, right. New ops are appended, and a reader that lacks one says so: an op's encoding never changes. The dimension -1 of a reshape is the fixed size 2^64 - 1.

mod decode;
mod encode;
mod error;

pub use decode::decode;
pub use encode::encode;
pub use error::DecodeError;

const MAGIC: [u8; 4] = *b"GSRG";
const VERSION: u16 = 1;

/// Attribute types, as the byte before the value.
mod tag {
    pub(super) const BOOL: u8 = 1;
    pub(super) const U32: u8 = 2;
    pub(super) const I32: u8 = 3;
    pub(super) const U64: u8 = 4;
    pub(super) const I64: u8 = 5;
    pub(super) const F32: u8 = 6;
    pub(super) const F64: u8 = 7;
    pub(super) const CODE: u8 = 8;
    pub(super) const TEXT: u8 = 9;
    pub(super) const DIMS: u8 = 10;
    pub(super) const U32S: u8 = 11;
    pub(super) const I32S: u8 = 12;
    pub(super) const OPTIONAL_I64: u8 = 13;

    /// The type's name in errors.
    pub(super) fn name(tag: u8) -> &'static str {
        match tag {
            BOOL => "bool",
            U32 => "u32",
            I32 => "i32",
            U64 => "u64",
            I64 => "i64",
            F32 => "f32",
            F64 => "f64",
            CODE => "code",
            TEXT => "text",
            DIMS => "dims",
            U32S => "list of u32",
            I32S => "list of i32",
            OPTIONAL_I64 => "optional i64",
            _ => "no known type",
        }
    }
}

/// Op names by code; an op's place here never changes.
const OPS: [&str; 56] = [
    "input",
    "zeros",
    "ones",
    "full",
    "arange",
    "rand",
    "randn",
    "embedding",
    "matmul",
    "linear",
    "add",
    "sub",
    "mul",
    "div",
    "rms_norm",
    "layer_norm",
    "rope",
    "gelu",
    "silu",
    "relu",
    "sigmoid",
    "tanh",
    "abs",
    "neg",
    "exp",
    "log",
    "sqrt",
    "softmax",
    "attention",
    "reshape",
    "transpose",
    "slice",
    "concat",
    "reduce",
    "argmax",
    "sample",
    "cast",
    "gather",
    "dequantize",
    "conv2d",
    "batch_norm",
    "pool",
    "scatter",
    "unary",
    "binary",
    "compare",
    "where",
    "broadcast",
    "cumulative",
    "argsort",
    "take_along",
    "scatter_along",
    "arg_reduce",
    "random",
    "flip",
    "pad",
];

#[cfg(test)]
mod tests;
