//! Genie's client for C, and for whatever calls C.
//!
//! `include/genie.h` is made from the declarations here, and is the documentation of every function. What it says of all of them is
//! kept in four places: [`status`] lets no panic out and turns failures into numbers and words, [`handles`] knows which pointers are
//! alive, [`arguments`] checks what C says before it is used, and [`core`] lets many threads use one session.

// Names and comments are those of the header.
#![allow(non_camel_case_types, clippy::missing_safety_doc, clippy::enum_variant_names, clippy::too_many_arguments)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::panic))]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("an object's number fits the pointers of 64-bit machines alone");

mod arguments;
mod caller;
mod core;
pub mod generate;
pub mod graph;
mod handles;
pub mod memory;
pub mod model;
mod ops;
pub mod pending;
pub mod program;
pub mod session;
pub mod status;
pub mod tensor;
