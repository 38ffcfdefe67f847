//! What a graph may not exceed. The decoder refuses the counts, the verifier all of them.

/// Nodes in a graph.
pub const MAX_NODES: usize = 65_536;
/// Nodes that one node reads.
pub const MAX_NODE_INPUTS: usize = 64;
/// Outputs of a graph.
pub const MAX_OUTPUTS: usize = 1_024;
/// Bytes of UTF-8 in the name of a graph, an input or an output.
pub const MAX_NAME_BYTES: usize = 256;
/// Size of one fixed dimension.
pub const MAX_DIM: u64 = 1 << 40;
/// Bytes of one tensor, its symbols counted as 1.
pub const MAX_TENSOR_BYTES: u64 = i64::MAX as u64;
