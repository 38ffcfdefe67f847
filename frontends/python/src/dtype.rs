//! Element types and dimensions, as Python's libraries call them.

use genie_graph::{DType, Dim, Op, Symbol};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

use crate::errors::{bad_input, in_range};

/// An element type: Genie's name for it, NumPy's or PyTorch's, or an object of theirs that has such a name.
pub(crate) fn dtype(given: &Bound<'_, PyAny>) -> PyResult<DType> {
    let name = match given.cast::<PyType>() {
        Ok(class) => class.name()?.to_string(),
        Err(_) => given.str()?.to_string(),
    };
    let short = match name.strip_prefix("torch.").unwrap_or(&name) {
        "float32" | "float" => "f32",
        "float16" | "half" => "f16",
        "bfloat16" => "bf16",
        "int64" | "long" => "i64",
        "int32" => "i32",
        "uint8" => "u8",
        "bool_" => "bool",
        other => other,
    };
    DType::from_name(short)
        .ok_or_else(|| bad_input(format!("'{name}' is no element type here: use f32, f16, bf16, i64, i32, u8 or bool")))
}

/// Dimensions of a graph's node: numbers, or `"batch"`, `"sequence"`, `"position"`; -1 where `infer` allows it.
pub(crate) fn dims(given: &Bound<'_, PyAny>, infer: bool) -> PyResult<Vec<Dim>> {
    given.try_iter()?.map(|one| dim(&one?, infer)).collect()
}

fn dim(given: &Bound<'_, PyAny>, infer: bool) -> PyResult<Dim> {
    if let Ok(name) = given.cast::<PyString>() {
        let name = name.to_string();
        let symbol = Symbol::ALL.into_iter().find(|s| s.to_string() == name);
        return symbol.map(Dim::Symbol).ok_or_else(|| {
            bad_input(format!("'{name}' is no dimension: write a number, 'batch', 'sequence' or 'position'"))
        });
    }
    match in_range::<i64>(given)? {
        -1 if infer => Ok(Op::INFER),
        n => u64::try_from(n).map(Dim::Fixed).map_err(|_| bad_input(format!("a dimension cannot be {n}"))),
    }
}

/// As Python sees a dimension.
pub(crate) fn shown<'py>(py: Python<'py>, dim: &Dim) -> PyResult<Bound<'py, PyAny>> {
    match dim {
        Dim::Fixed(n) => Ok(n.into_pyobject(py)?.into_any()),
        Dim::Symbol(symbol) => Ok(symbol.to_string().into_pyobject(py)?.into_any()),
    }
}
