//! Ops by name, with their attributes as keyword arguments.

use genie_graph::{
    ArgReduceKind, BinaryKind, CompareKind, CumulativeKind, DType, LinearLayout, Op, PoolKind, QuantFormat, RandomKind,
    ReduceKind, RopeStyle, ScatterKind, TensorType, UnaryKind,
};
use pyo3::conversion::FromPyObjectOwned;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyDictMethods, PyString};

use crate::errors::bad_input;
use crate::{dtype, graph};

/// The op of this name; for one that makes a tensor from nothing also the tensor's type.
pub(crate) fn read(name: &str, given: Option<&Bound<'_, PyDict>>) -> PyResult<(Op, Option<TensorType>)> {
    let mut a = Attributes { op: name, given, read: Vec::new() };
    let op = op(name, &mut a)?;
    let created = op.is_declared().then(|| a.declared()).transpose()?;
    a.finish()?;
    Ok((op, created))
}

fn op(name: &str, a: &mut Attributes<'_, '_>) -> PyResult<Op> {
    Ok(match name {
        "zeros" => Op::Zeros,
        "ones" => Op::Ones,
        "full" => Op::Full { value: a.get("value")? },
        "arange" => Op::Arange { start: a.or("start", 0.0)?, step: a.or("step", 1.0)? },
        "rand" => Op::Rand { seed: a.get("seed")? },
        "randn" => Op::Randn { seed: a.get("seed")? },
        "embedding" => Op::Embedding { dtype: a.dtype("dtype")? },
        "matmul" => Op::MatMul,
        "linear" => Op::Linear { layout: a.one_of("layout", &LAYOUTS)? },
        "add" => Op::Add,
        "sub" => Op::Sub,
        "mul" => Op::Mul,
        "div" => Op::Div,
        "rms_norm" => Op::RmsNorm { eps: a.get("eps")? },
        "layer_norm" => Op::LayerNorm { eps: a.get("eps")? },
        "rope" => Op::Rope {
            theta: a.get("theta")?,
            head_dim: a.get("head_dim")?,
            style: a.one_of("style", &[("half", RopeStyle::Half), ("interleaved", RopeStyle::Interleaved)])?,
        },
        "gelu" => Op::Gelu { tanh: a.or("tanh", false)? },
        "silu" => Op::Silu,
        "relu" => Op::Relu,
        "sigmoid" => Op::Sigmoid,
        "tanh" => Op::Tanh,
        "abs" => Op::Abs,
        "neg" => Op::Neg,
        "exp" => Op::Exp,
        "log" => Op::Log,
        "sqrt" => Op::Sqrt,
        "softmax" => Op::Softmax { axis: a.get("axis")? },
        "attention" => Op::Attention {
            layer: a.or("layer", 0)?,
            heads: a.get("heads")?,
            kv_heads: a.get("kv_heads")?,
            head_dim: a.get("head_dim")?,
            scale: a.get("scale")?,
            causal: a.get("causal")?,
        },
        "reshape" => Op::Reshape { dims: dtype::dims(&a.any("dims")?, true)? },
        "transpose" => Op::Transpose { perm: a.get("perm")? },
        "slice" => Op::Slice {
            axis: a.get("axis")?,
            start: a.or("start", 0)?,
            end: a.or("end", None)?,
            step: a.or("step", 1)?,
        },
        "concat" => Op::Concat { axis: a.get("axis")? },
        "reduce" => Op::Reduce {
            kind: a.one_of("kind", &REDUCTIONS)?,
            axes: a.or("axes", Vec::new())?,
            keep_dims: a.or("keep_dims", false)?,
        },
        "argmax" => Op::ArgMax { axis: a.get("axis")? },
        "sample" => Op::Sample,
        "cast" => Op::Cast { to: a.dtype("to")? },
        "gather" => Op::Gather,
        "dequantize" => Op::Dequantize { format: a.one_of("format", &FORMATS)?, to: a.dtype("to")? },
        "conv2d" => Op::Conv2d {
            stride: a.or("stride", [1, 1])?,
            padding: a.or("padding", [0; 4])?,
            dilation: a.or("dilation", [1, 1])?,
            groups: a.or("groups", 1)?,
        },
        "batch_norm" => Op::BatchNorm { eps: a.get("eps")? },
        "pool" => Op::Pool {
            kind: a.one_of("kind", &[("max", PoolKind::Max), ("average", PoolKind::Average)])?,
            kernel: a.get("kernel")?,
            stride: a.get("stride")?,
            padding: a.or("padding", [0; 4])?,
            count_padding: a.or("count_padding", false)?,
        },
        "scatter" => Op::Scatter,
        "unary" => Op::Unary { kind: a.one_of("kind", UnaryKind::NAMED)? },
        "binary" => Op::Binary { kind: a.one_of("kind", BinaryKind::NAMED)? },
        "compare" => Op::Compare { kind: a.one_of("kind", CompareKind::NAMED)? },
        "where" => Op::Where,
        "broadcast" => Op::Broadcast { dims: dtype::dims(&a.any("dims")?, false)? },
        "cumulative" => Op::Cumulative { kind: a.one_of("kind", CumulativeKind::NAMED)?, axis: a.get("axis")? },
        "argsort" => Op::ArgSort { axis: a.get("axis")?, descending: a.or("descending", false)? },
        "take_along" => Op::TakeAlong { axis: a.get("axis")? },
        "scatter_along" => Op::ScatterAlong { axis: a.get("axis")?, kind: a.one_of("kind", ScatterKind::NAMED)? },
        "arg_reduce" => Op::ArgReduce {
            kind: a.one_of("kind", ArgReduceKind::NAMED)?,
            axis: a.get("axis")?,
            keep_dims: a.or("keep_dims", false)?,
        },
        "random" => Op::Random {
            kind: a.one_of("kind", RandomKind::NAMED)?,
            dtype: a.dtype("dtype")?,
            dims: dtype::dims(&a.any("dims")?, false)?,
        },
        "flip" => Op::Flip { axes: a.or("axes", Vec::new())? },
        "pad" => Op::Pad { before: a.get("before")?, after: a.get("after")?, value: a.or("value", 0.0)? },
        "input" => return Err(bad_input("inputs are added by Graph.input")),
        other => {
            return Err(bad_input(format!("there is no op '{other}': see docs/guide/python.md for those there are")));
        }
    })
}

const LAYOUTS: [(&str, LinearLayout); 2] = [("out_in", LinearLayout::OutIn), ("in_out", LinearLayout::InOut)];
const REDUCTIONS: [(&str, ReduceKind); 5] = [
    ("sum", ReduceKind::Sum),
    ("mean", ReduceKind::Mean),
    ("max", ReduceKind::Max),
    ("min", ReduceKind::Min),
    ("prod", ReduceKind::Prod),
];
const FORMATS: [(&str, QuantFormat); 3] =
    [("q8_0", QuantFormat::Q8_0), ("q4_0", QuantFormat::Q4_0), ("q4_1", QuantFormat::Q4_1)];

/// The keyword arguments of one op.
struct Attributes<'a, 'py> {
    op: &'a str,
    given: Option<&'a Bound<'py, PyDict>>,
    read: Vec<&'static str>,
}

impl<'py> Attributes<'_, 'py> {
    fn find(&mut self, name: &'static str) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.read.push(name);
        self.given.map_or(Ok(None), |given| given.get_item(name))
    }

    fn any(&mut self, name: &'static str) -> PyResult<Bound<'py, PyAny>> {
        let op = self.op;
        self.find(name)?.ok_or_else(|| bad_input(format!("{op} needs {name}=")))
    }

    fn get<T: FromPyObjectOwned<'py>>(&mut self, name: &'static str) -> PyResult<T> {
        let value = self.any(name)?;
        self.extract(name, &value)
    }

    fn or<T: FromPyObjectOwned<'py>>(&mut self, name: &'static str, otherwise: T) -> PyResult<T> {
        match self.find(name)? {
            Some(value) => self.extract(name, &value),
            None => Ok(otherwise),
        }
    }

    fn extract<T: FromPyObjectOwned<'py>>(&self, name: &str, value: &Bound<'py, PyAny>) -> PyResult<T> {
        value.extract().map_err(|error: T::Error| {
            let error: PyErr = error.into();
            bad_input(format!("{}: {name}={value} cannot be: {error}", self.op))
        })
    }

    fn dtype(&mut self, name: &'static str) -> PyResult<DType> {
        dtype::dtype(&self.any(name)?)
    }

    fn one_of<T: Copy>(&mut self, name: &'static str, all: &[(&str, T)]) -> PyResult<T> {
        let value = self.any(name)?;
        let text = value.cast::<PyString>().map(|text| text.to_string().to_lowercase()).unwrap_or_default();
        all.iter().find(|(known, _)| *known == text).map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
            bad_input(format!("{}: {name}={value} is none of {}", self.op, names.join(", ")))
        })
    }

    fn declared(&mut self) -> PyResult<TensorType> {
        let dtype = self.dtype("dtype")?;
        Ok(graph::declared(dtype, dtype::dims(&self.any("dims")?, false)?))
    }

    /// Nothing was given that the op does not have.
    fn finish(self) -> PyResult<()> {
        let Some(given) = self.given else {
            return Ok(());
        };
        for key in given.keys() {
            let key = key.to_string();
            if !self.read.iter().any(|read| *read == key) {
                let has = if self.read.is_empty() { "none".to_owned() } else { self.read.join(", ") };
                return Err(bad_input(format!("{} has no attribute '{key}': it has {has}", self.op)));
            }
        }
        Ok(())
    }
}
