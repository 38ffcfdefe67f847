//! What can be wrong with the bytes of a graph.

use super::VERSION;
use crate::graph::NodeId;

/// Why bytes are not a graph. Nothing of them has been used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// They end too early.
    #[error("the graph ends at byte {offset}, where {wanted} more were to come; it was cut off")]
    Truncated {
        /// Where they end.
        offset: usize,
        /// How many bytes the next field has.
        wanted: usize,
    },
    /// They go on after the graph.
    #[error("{count} byte(s) follow the graph's end; send exactly one graph")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// They do not start as a graph does.
    #[error("this is not a graph: it does not start with \"GSRG\"")]
    Magic,
    /// A version of the format that this build does not know.
    #[error("the graph is in version {found} of the format; this build reads version {VERSION}: update the older side")]
    Version {
        /// The version.
        found: u16,
    },
    /// A reserved field that is not 0.
    #[error("a reserved field at byte {offset} is not 0; the sender is newer or broken")]
    Reserved {
        /// Where.
        offset: usize,
    },
    /// A count over its limit.
    #[error("the graph has {found} {what} at byte {offset}; at most {max} are supported")]
    Limit {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
        /// The count.
        found: u32,
        /// Where.
        offset: usize,
    },
    /// A name that is not UTF-8.
    #[error("the name at byte {offset} is not UTF-8")]
    Utf8 {
        /// Where.
        offset: usize,
    },
    /// A byte that stands for nothing.
    #[error("byte {offset} is {found}, which is no {what}")]
    Code {
        /// What it should be.
        what: &'static str,
        /// The byte.
        found: u8,
        /// Where.
        offset: usize,
    },
    /// An op that this build does not know.
    #[error("node {node} has op code {code}, which this build does not know; update the server")]
    UnknownOp {
        /// The node.
        node: NodeId,
        /// The code.
        code: u8,
    },
    /// An op with too few or too many attributes.
    #[error("node {node} ({op}) has {found} attribute(s), which is not what the op takes")]
    AttributeCount {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// How many it has.
        found: u8,
    },
    /// An attribute of the wrong type.
    #[error("node {node} ({op}): attribute {attribute} is {found} but must be {expected}")]
    AttributeType {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// The attribute.
        attribute: &'static str,
        /// Its type.
        expected: &'static str,
        /// The type that was sent.
        found: &'static str,
    },
    /// An attribute whose value stands for nothing.
    #[error("node {node} ({op}): attribute {attribute} has the value {found}, which it does not know")]
    AttributeValue {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// The attribute.
        attribute: &'static str,
        /// The byte.
        found: u8,
    },
    /// A list of another length than the attribute has.
    #[error("node {node} ({op}): attribute {attribute} has {found} value(s) but must have {expected}")]
    AttributeLength {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// The attribute.
        attribute: &'static str,
        /// How many it must have.
        expected: usize,
        /// How many it has.
        found: usize,
    },
}
