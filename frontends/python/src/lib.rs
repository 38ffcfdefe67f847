//! The extension module `genie._native`: what the Python package `genie` is made of.
//!
//! | module | what it holds |
//! |---|---|
//! | `memory` | `Block`: memory that Python's objects and transfers share; `_native.Memory`, its buffer protocol |
//! | `buffer` over `protocol`, `dlpack` | the two ways in which memory comes in and goes out without a copy |
//! | `shared`, `cancel` | one session for many threads; what ends a call from outside |
//! | `session`, `held` | `_native.Session`; tensors, programs and bindings that it has on the server |
//! | `graph`, `ops` | `_native.Graph`: writes SRGs |
//! | `model`, `files` | models, and files of tensors |
//!
//! No session's lock is ever taken by a thread that is attached to Python: all others would wait for Python as long as bytes are moved.
//! Nothing of Python's is done under that lock either; what was sent is given back when it is free.

mod buffer;
mod cancel;
mod connect;
mod dlpack;
mod dtype;
mod errors;
mod files;
mod graph;
mod held;
mod memory;
mod model;
mod ops;
mod protocol;
mod session;
mod shared;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("Memory", memory::class(py)?)?;
    module.add_class::<session::Session>()?;
    module.add_class::<held::Tensor>()?;
    module.add_class::<held::Program>()?;
    module.add_class::<held::Binding>()?;
    module.add_class::<held::Cache>()?;
    module.add_class::<graph::Graph>()?;
    module.add_class::<graph::Node>()?;
    module.add_function(wrap_pyfunction!(memory::memory, module)?)?;
    module.add_function(wrap_pyfunction!(memory::describe, module)?)?;
    module.add_function(wrap_pyfunction!(dlpack::to_dlpack, module)?)?;
    module.add_function(wrap_pyfunction!(graph::dump, module)?)?;
    module.add_class::<cancel::Cancel>()?;
    module.add_class::<model::Model>()?;
    module.add_class::<model::Tokens>()?;
    module.add_function(wrap_pyfunction!(shared::after_fork, module)?)?;
    module.add_function(wrap_pyfunction!(model::load_model, module)?)?;
    module.add_function(wrap_pyfunction!(files::load_tensors, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
