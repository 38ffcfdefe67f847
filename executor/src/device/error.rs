//! What can go wrong on a device.

use genie_graph::{DType, NodeId, SizeError};
use genie_transport::memory::OutOfMemory;

/// Why a device did not do what it was asked. Whatever the variant, but for [`Self::Lost`], nothing took effect: no cache grew, no
/// resident changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No memory left for what was asked.
    #[error("the device is out of memory: {0}")]
    OutOfMemory(#[from] OutOfMemory),
    /// The device has no such op.
    #[error("the device has no op `{op}`; run the program on a device that has it")]
    Unsupported {
        /// The op's name.
        op: String,
    },
    /// Another device has the op, this one lacks it so far.
    #[error("{device} has no kernel for `{op}` yet: run this graph on a cpu device")]
    NoKernel {
        /// The device's name.
        device: String,
        /// The op's name.
        op: &'static str,
    },
    /// A number of things that does not agree with the program.
    #[error("row {row}: {got} {what} given, but the program takes {expected}")]
    Count {
        /// Which row of the batch (0 for what belongs to the whole batch).
        row: usize,
        /// What was counted: `arguments`, `weights`, `caches`.
        what: &'static str,
        /// How many the program takes.
        expected: usize,
        /// How many there were.
        got: usize,
    },
    /// An argument of another element type than declared.
    #[error("row {row}: argument `{name}` is {got}, but the program declares {expected}; convert it")]
    ArgumentType {
        /// Which row.
        row: usize,
        /// The input's name.
        name: String,
        /// What the program declares.
        expected: DType,
        /// What was given (`nothing` where no type was).
        got: String,
    },
    /// An argument of another shape than declared.
    #[error("row {row}: argument `{name}` has dimensions {got:?}, but the program declares {expected}")]
    ArgumentShape {
        /// Which row.
        row: usize,
        /// The input's name.
        name: String,
        /// What the program declares, with the sizes found so far.
        expected: String,
        /// What was given.
        got: Vec<u64>,
    },
    /// An argument whose bytes do not agree with its dimensions.
    #[error("row {row}: argument `{name}` has {got} bytes, but its dimensions make {expected}")]
    ArgumentBytes {
        /// Which row.
        row: usize,
        /// The input's name.
        name: String,
        /// Bytes that the dimensions make.
        expected: u64,
        /// Bytes given.
        got: u64,
    },
    /// A weight of the wrong number of bytes.
    #[error("weight `{name}` has {got} bytes, but the program declares {expected}; was it uploaded in another type?")]
    WeightBytes {
        /// The input's name.
        name: String,
        /// Bytes of the declared type.
        expected: u64,
        /// Bytes given.
        got: u64,
    },
    /// A weight in memory that its element type cannot be read from.
    #[error("weight `{name}` does not start at a multiple of its element's {bytes} bytes; allocate it on the device")]
    Misaligned {
        /// The input's name.
        name: String,
        /// Bytes of an element.
        bytes: u64,
    },
    /// A cache made for another model.
    #[error(
        "row {row}: cache `{name}` was made for {got}, but the program declares {expected}; make one for this program"
    )]
    CacheSpec {
        /// Which row.
        row: usize,
        /// The input's name.
        name: String,
        /// What the program declares.
        expected: String,
        /// What the cache is.
        got: String,
    },
    /// Rows of different sequence lengths, or a row of several sequences with one cache.
    #[error("row {row}: {reason}")]
    Row {
        /// Which row.
        row: usize,
        /// What does not fit, and what to do.
        reason: String,
    },
    /// An index read at run time that lies outside its table.
    #[error("row {row}: index {index} given to node {} (`{op}`) is outside 0..{bound}", node.0)]
    IndexOutOfRange {
        /// Which row.
        row: usize,
        /// The node that used it.
        node: NodeId,
        /// The node's op.
        op: &'static str,
        /// The index.
        index: i64,
        /// One past the largest index that is valid.
        bound: u64,
    },
    /// An integer was divided by zero.
    #[error("row {row}: node {} divides an integer by zero", node.0)]
    DivisionByZero {
        /// Which row.
        row: usize,
        /// The node that did.
        node: NodeId,
    },
    /// Sizes that the program cannot be run with.
    #[error(transparent)]
    Sizes(#[from] SizeError),
    /// A cache's blocks did not have the size that its spec says.
    #[error(
        "a cache of {tokens} tokens takes {expected_blocks} blocks of {block_bytes} bytes, but block {block} has {got}"
    )]
    CacheImport {
        /// Tokens that the cache should hold.
        tokens: u64,
        /// Blocks that they take.
        expected_blocks: usize,
        /// Bytes a block.
        block_bytes: u64,
        /// The first block that is missing, one too many, or of another size.
        block: usize,
        /// Its bytes (0: missing).
        got: u64,
    },
    /// A device name that is not understood.
    #[error(
        "`{text}` is no device: write `auto`, `cpu`, `cpu*8` (eight CPU devices), `cuda` (every GPU) or `cuda:0,cuda:2` (these)"
    )]
    Name {
        /// What was written.
        text: String,
    },
    /// A GPU was asked for, and there is none to be had.
    #[error("no GPU can be used: {reason}")]
    NoGpu {
        /// Why, and what to do.
        reason: String,
    },
    /// The operating system refused a thread.
    #[error("the device could not start its {threads} threads: {reason}; give it fewer")]
    Threads {
        /// Threads wanted.
        threads: usize,
        /// What the system said.
        reason: String,
    },
    /// The host has no memory for what passes through it.
    #[error("the server's host has no memory for {wanted} bytes: free tensors, or ask for less at a time")]
    NoHostMemory {
        /// Bytes asked for.
        wanted: u64,
    },
    /// The device failed, and everything in its memory is lost. Unlike for other variants, residents are gone.
    #[error("the device failed ({reason}), and all that was on it is lost: open a session anew, and upload again")]
    Lost {
        /// What went wrong, as far as the device knows.
        reason: String,
    },
    /// The GPU, or its driver, refused something.
    #[error("{0}")]
    Gpu(String),
    /// A bug in the device: a kernel ended by a panic.
    #[error("a kernel of the device failed; the run was given up ({0})")]
    Internal(String),
}

impl DeviceError {
    /// The row of the batch that is to blame, where one is.
    pub(crate) fn row(&self) -> Option<usize> {
        match self {
            // The weights are the batch's, not a row's.
            Self::Count { what: "weights", .. } => None,
            Self::Count { row, .. }
            | Self::ArgumentType { row, .. }
            | Self::ArgumentShape { row, .. }
            | Self::ArgumentBytes { row, .. }
            | Self::CacheSpec { row, .. }
            | Self::Row { row, .. }
            | Self::IndexOutOfRange { row, .. }
            | Self::DivisionByZero { row, .. } => Some(*row),
            _ => None,
        }
    }
}
