//! Launches of each kernel family, with shapes, types and alignment checked. A launch that would touch no element is `None`.

pub mod ahead;
pub mod argmax;
pub mod attention;
pub mod batch_norm;
pub mod binary;
pub mod cast;
pub mod checksum;
pub mod conv;
pub mod copy;
pub mod create;
pub mod dequant;
pub mod elementwise;
pub mod epilogue;
pub mod functions;
pub mod gather;
pub mod gemm;
pub mod matvec;
pub mod norm;
pub mod pairs;
pub mod pool;
pub mod reduce;
pub mod rope;
pub mod sample;
pub mod softmax;
pub mod take;
pub mod weight;
pub mod workspace;

mod axis;
mod floats;
mod strided;
