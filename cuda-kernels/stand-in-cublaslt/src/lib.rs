//! A stand-in for cuBLASLt, as the library that programs load: `libcublasLt.so.13`.
//!
//! `genie_cuda_kernels::gpu::cuda` has it do matrix products. This library has the functions that Genie calls, and does what they say on
//! the CPU, over the stand-in for the driver (`stand-in-driver`): products are put into its streams, recorded in its graphs, and done when
//! these come to them. Over another driver it does not start.
//!
//! **It proves nothing about cuBLASLt.** It knows what that one's documentation and header say, as its writer read them. What it can show
//! is that a program keeps the rules below. A rule that is broken is an error, as the library's, and a line on stderr that begins with
//! `stand-in cuBLASLt: mistake:`.
//!
//! # Rules
//! - A handle is of the context that was current when it was made, and is used in no other. Handles and descriptors are never used twice,
//!   and are looked up: one that is gone is an error and not a crash.
//! - An attribute has as many bytes as its type, and a value that its type has. Attributes that Genie does not set are unknown here.
//! - Matrices are column-major; a leading dimension is at least the rows; sizes, batches and transposes fit each other; the batches of a
//!   result do not overlap.
//! - Sums and factors are f32; both factors have one type, C and D have that type or f32, a bias has D's.
//! - What is found for a product is for its types, sizes, layouts and epilogue, for addresses that are multiples of what the preference
//!   says (for a bias: of what its address was a multiple of then), and for as much workspace as it says, at a multiple of 256.
//! - C is D, with one layout, or lies apart from it, and is read where beta is not 0 alone. Factors lie apart from D.
//! - All that is touched lies in allocations of the GPU whose context is current.
//! - A product's kernels are loaded when it is first put into a stream, which the driver calls unsafe where something is recorded.
//!
//! The workspace is filled with NaN by each product that has one. Sums are added one after another, in the same order whatever the rows.
//!
//! Not here: other types, orders, pointer modes and epilogues than these; algorithms but for one.
//!
//! # Settings
//! Variables of the environment: `src/settings.rs` has the list.

mod compute;
mod descriptors;
mod driver;
mod heuristic;
mod matmul;
mod settings;
mod shape;
mod state;

/// How a line about a broken rule begins.
const MISTAKE: &str = "stand-in cuBLASLt: mistake:";
