//! Ops as C writes them: a name, and attributes as text.
//!
//! Text, because an op's attributes are of several types and lengths, symbols among them, and a structure for each would be as many
//! structures as there are ops, none of which could ever grow.

use std::cell::Cell;
use std::str::FromStr;

use genie_graph::{
    ArgReduceKind, BinaryKind, CompareKind, CumulativeKind, DType, Dim, LinearLayout, Op, PoolKind, QuantFormat,
    RandomKind, ReduceKind, RopeStyle, ScatterKind, Symbol, UnaryKind,
};

use crate::status::Failure;

/// The op of this name with these attributes.
///
/// # Errors
/// No such op; an attribute that is missing, wrong, unknown to the op, or there twice.
pub(crate) fn op(name: &str, attributes: &str) -> Result<Op, Failure> {
    let a = Attributes::parse(name, attributes)?;
    let op = match name {
        "zeros" => Op::Zeros,
        "ones" => Op::Ones,
        "full" => Op::Full { value: a.number("value")? },
        "arange" => Op::Arange { start: a.or("start", 0.0)?, step: a.or("step", 1.0)? },
        "rand" => Op::Rand { seed: a.number("seed")? },
        "randn" => Op::Randn { seed: a.number("seed")? },
        "embedding" => Op::Embedding { dtype: a.one_of("dtype", DTYPES, Some("f32"))? },
        "matmul" => Op::MatMul,
        "linear" => Op::Linear {
            layout: a.one_of(
                "layout",
                &[("out-in", LinearLayout::OutIn), ("in-out", LinearLayout::InOut)],
                Some("out-in"),
            )?,
        },
        "add" => Op::Add,
        "sub" => Op::Sub,
        "mul" => Op::Mul,
        "div" => Op::Div,
        "rms_norm" => Op::RmsNorm { eps: a.number("eps")? },
        "layer_norm" => Op::LayerNorm { eps: a.number("eps")? },
        "rope" => Op::Rope {
            theta: a.or("theta", 10_000.0)?,
            head_dim: a.number("head_dim")?,
            style: a.one_of(
                "style",
                &[("half", RopeStyle::Half), ("interleaved", RopeStyle::Interleaved)],
                Some("half"),
            )?,
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
        "softmax" => Op::Softmax { axis: a.or("axis", -1)? },
        "attention" => Op::Attention {
            layer: a.or("layer", 0)?,
            heads: a.number("heads")?,
            kv_heads: a.number("kv_heads")?,
            head_dim: a.number("head_dim")?,
            scale: a.number("scale")?,
            causal: a.or("causal", true)?,
        },
        "reshape" => Op::Reshape { dims: a.list("dims", dim)?.ok_or_else(|| a.missing("dims"))? },
        "transpose" => Op::Transpose { perm: a.list("perm", parsed)?.ok_or_else(|| a.missing("perm"))? },
        "slice" => Op::Slice {
            axis: a.number("axis")?,
            start: a.or("start", 0)?,
            end: a.given("end")?,
            step: a.or("step", 1)?,
        },
        "concat" => Op::Concat { axis: a.number("axis")? },
        "reduce" => Op::Reduce {
            kind: a.one_of("kind", REDUCTIONS, None)?,
            axes: a.list("axes", parsed)?.unwrap_or_default(),
            keep_dims: a.or("keep_dims", false)?,
        },
        "argmax" => Op::ArgMax { axis: a.or("axis", -1)? },
        "sample" => Op::Sample,
        "cast" => Op::Cast { to: a.one_of("to", DTYPES, None)? },
        "gather" => Op::Gather,
        "dequantize" => {
            Op::Dequantize { format: a.one_of("format", FORMATS, None)?, to: a.one_of("to", DTYPES, Some("f32"))? }
        }
        "conv2d" => Op::Conv2d {
            stride: a.array("stride", [1; 2])?,
            padding: a.array("padding", [0; 4])?,
            dilation: a.array("dilation", [1; 2])?,
            groups: a.or("groups", 1)?,
        },
        "batch_norm" => Op::BatchNorm { eps: a.number("eps")? },
        "pool" => {
            let kernel = a.array("kernel", [0; 2])?;
            Op::Pool {
                kind: a.one_of("kind", &[("max", PoolKind::Max), ("average", PoolKind::Average)], None)?,
                kernel,
                stride: a.array("stride", kernel)?,
                padding: a.array("padding", [0; 4])?,
                count_padding: a.or("count_padding", false)?,
            }
        }
        "scatter" => Op::Scatter,
        "unary" => Op::Unary { kind: a.one_of("kind", UnaryKind::NAMED, None)? },
        "binary" => Op::Binary { kind: a.one_of("kind", BinaryKind::NAMED, None)? },
        "compare" => Op::Compare { kind: a.one_of("kind", CompareKind::NAMED, None)? },
        "where" => Op::Where,
        "broadcast" => Op::Broadcast { dims: a.list("dims", dim)?.ok_or_else(|| a.missing("dims"))? },
        "cumulative" => {
            Op::Cumulative { kind: a.one_of("kind", CumulativeKind::NAMED, None)?, axis: a.or("axis", -1)? }
        }
        "argsort" => Op::ArgSort { axis: a.or("axis", -1)?, descending: a.or("descending", false)? },
        "take_along" => Op::TakeAlong { axis: a.or("axis", -1)? },
        "scatter_along" => {
            Op::ScatterAlong { axis: a.or("axis", -1)?, kind: a.one_of("kind", ScatterKind::NAMED, None)? }
        }
        "arg_reduce" => Op::ArgReduce {
            kind: a.one_of("kind", ArgReduceKind::NAMED, None)?,
            axis: a.or("axis", -1)?,
            keep_dims: a.or("keep_dims", false)?,
        },
        "random" => Op::Random {
            kind: a.one_of("kind", RandomKind::NAMED, None)?,
            dtype: a.one_of("dtype", DTYPES, None)?,
            dims: a.list("dims", dim)?.ok_or_else(|| a.missing("dims"))?,
        },
        "flip" => Op::Flip { axes: a.list("axes", parsed)?.unwrap_or_default() },
        "pad" => Op::Pad {
            before: a.list("before", parsed)?.ok_or_else(|| a.missing("before"))?,
            after: a.list("after", parsed)?.ok_or_else(|| a.missing("after"))?,
            value: a.or("value", 0.0)?,
        },
        "input" => return Err(Failure::argument("inputs are made by genie_graph_input")),
        _ => return Err(Failure::argument(format!("there is no op \"{name}\": docs/guide/c.md lists them"))),
    };
    a.all_used()?;
    Ok(op)
}

const DTYPES: &[(&str, DType)] = &[
    ("f32", DType::F32),
    ("f16", DType::F16),
    ("bf16", DType::BF16),
    ("i64", DType::I64),
    ("i32", DType::I32),
    ("u8", DType::U8),
    ("bool", DType::Bool),
];

const REDUCTIONS: &[(&str, ReduceKind)] = &[
    ("sum", ReduceKind::Sum),
    ("mean", ReduceKind::Mean),
    ("max", ReduceKind::Max),
    ("min", ReduceKind::Min),
    ("prod", ReduceKind::Prod),
];

const FORMATS: &[(&str, QuantFormat)] =
    &[("q8_0", QuantFormat::Q8_0), ("q4_0", QuantFormat::Q4_0), ("q4_1", QuantFormat::Q4_1)];

/// A dimension: a number, a symbol, or -1 for the one that is worked out.
fn dim(text: &str) -> Option<Dim> {
    match text {
        "-1" => Some(Op::INFER),
        "batch" => Some(Symbol::Batch.into()),
        "sequence" => Some(Symbol::Sequence.into()),
        "position" => Some(Symbol::Position.into()),
        number => number.parse().ok().map(Dim::Fixed),
    }
}

fn parsed<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// `name=value name=value`, each to be asked for.
struct Attributes<'a> {
    op: &'a str,
    all: Vec<(&'a str, &'a str, Cell<bool>)>,
}

impl<'a> Attributes<'a> {
    fn parse(op: &'a str, text: &'a str) -> Result<Self, Failure> {
        let mut all: Vec<(&str, &str, Cell<bool>)> = Vec::new();
        for word in text.split_ascii_whitespace() {
            let pair = word.split_once('=');
            let (name, value) =
                pair.ok_or_else(|| Failure::argument(format!("{op}: \"{word}\" is no attribute: write name=value")))?;
            if all.iter().any(|(known, ..)| *known == name) {
                return Err(Failure::argument(format!("{op}: {name} is given twice")));
            }
            all.push((name, value, Cell::new(false)));
        }
        Ok(Self { op, all })
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        let (_, value, used) = self.all.iter().find(|(known, ..)| *known == name)?;
        used.set(true);
        Some(value)
    }

    fn given<T: FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.wrong(name, text))
    }

    fn number<T: FromStr>(&self, name: &str) -> Result<T, Failure> {
        self.given(name)?.ok_or_else(|| self.missing(name))
    }

    fn or<T: FromStr>(&self, name: &str, default: T) -> Result<T, Failure> {
        Ok(self.given(name)?.unwrap_or(default))
    }

    fn one_of<T: Copy>(&self, name: &str, choices: &[(&str, T)], default: Option<&str>) -> Result<T, Failure> {
        let text = self.text(name).or(default).ok_or_else(|| self.missing(name))?;
        let chosen = choices.iter().find(|(choice, _)| *choice == text);
        let names = || choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        chosen
            .map(|(_, value)| *value)
            .ok_or_else(|| Failure::argument(format!("{}: {name}={text} is none of {}", self.op, names())))
    }

    fn list<T>(&self, name: &str, one: impl Fn(&str) -> Option<T>) -> Result<Option<Vec<T>>, Failure> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let all = text.split(',').filter(|part| !text.is_empty() || !part.is_empty()).map(one).collect::<Option<_>>();
        all.map(Some).ok_or_else(|| self.wrong(name, text))
    }

    fn array<const N: usize>(&self, name: &str, default: [u32; N]) -> Result<[u32; N], Failure> {
        let Some(list) = self.list(name, parsed)? else { return Ok(default) };
        let found = list.len();
        list.try_into().map_err(|_| Failure::argument(format!("{}: {name} has {found} numbers, not {N}", self.op)))
    }

    fn all_used(&self) -> Result<(), Failure> {
        match self.all.iter().find(|(.., used)| !used.get()) {
            None => Ok(()),
            Some((name, ..)) => Err(Failure::argument(format!("{} has no attribute {name}", self.op))),
        }
    }

    fn missing(&self, name: &str) -> Failure {
        Failure::argument(format!("{} needs {name}=", self.op))
    }

    fn wrong(&self, name: &str, text: &str) -> Failure {
        Failure::argument(format!("{}: {name}={text} cannot be read", self.op))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every op that the codec knows can be written, with an example.
    #[test]
    fn every_op_has_a_name_here() {
        let examples = [
            ("full", "value=1.5"),
            ("rand", "seed=18446744073709551615"),
            ("randn", "seed=0"),
            ("rms_norm", "eps=1e-5"),
            ("layer_norm", "eps=1e-5"),
            ("rope", "head_dim=8"),
            ("attention", "heads=4 kv_heads=2 head_dim=8 scale=0.35"),
            ("reshape", "dims=batch,-1"),
            ("transpose", "perm=1,0"),
            ("slice", "axis=0"),
            ("concat", "axis=0"),
            ("reduce", "kind=sum"),
            ("cast", "to=f16"),
            ("dequantize", "format=q4_1"),
            ("batch_norm", "eps=1e-3"),
            ("pool", "kind=max kernel=2,2"),
            ("unary", "kind=is_nan"),
            ("binary", "kind=floor_divide"),
            ("compare", "kind=le"),
            ("broadcast", "dims=batch,4"),
            ("cumulative", "kind=sum"),
            ("scatter_along", "kind=set axis=0"),
            ("arg_reduce", "kind=max"),
            ("random", "kind=normal dtype=f32 dims=2,3"),
            ("pad", "before=0,1 after=0,2"),
        ];
        // The table of the codec's documentation is the list of all ops.
        let table = include_str!("../../../graph/src/codec/mod.rs");
        let numbered = |line: &'static str| {
            let mut words = line.strip_prefix("//! ")?.split_ascii_whitespace();
            words.next()?.parse::<u8>().ok()?;
            words.next()
        };
        let after = table.split("//!  0  input").nth(1).expect("the table begins with input");
        let names: Vec<_> = after.lines().take_while(|line| !line.contains("```")).filter_map(numbered).collect();
        assert!(names.len() >= 42, "{names:?}");
        for name in names {
            let attributes = examples.iter().find(|(op, _)| *op == name).map_or("", |(_, text)| text);
            assert_eq!(op(name, attributes).unwrap().name(), name);
        }
    }

    #[test]
    fn attributes_are_what_they_say() {
        let dims = vec![Symbol::Batch.into(), Op::INFER, Dim::Fixed(3)];
        assert_eq!(op("reshape", " dims=batch,-1,3 ").unwrap(), Op::Reshape { dims });
        let wanted = Op::Reduce { kind: ReduceKind::Mean, axes: vec![0, -1], keep_dims: true };
        assert_eq!(op("reduce", "keep_dims=true axes=0,-1 kind=mean").unwrap(), wanted);
        assert_eq!(op("slice", "axis=1 start=-2").unwrap(), Op::Slice { axis: 1, start: -2, end: None, step: 1 });
        let pool =
            Op::Pool { kind: PoolKind::Max, kernel: [3, 2], stride: [3, 2], padding: [0; 4], count_padding: false };
        assert_eq!(op("pool", "kind=max kernel=3,2").unwrap(), pool);
        assert_eq!(op("reshape", "dims=").unwrap(), Op::Reshape { dims: Vec::new() }, "one element, rank 0");
        for (name, bad) in [
            ("relu", "axis=1"),
            ("softmax", "axis"),
            ("softmax", "axis=x"),
            ("softmax", "axis=1 axis=1"),
            ("cast", ""),
            ("cast", "to=f64"),
            ("conv2d", "stride=1"),
            ("conv2d", "padding=1,1"),
            ("transpose", "perm=0,,1"),
            ("input", ""),
            ("quux", ""),
        ] {
            assert!(op(name, bad).is_err(), "{name} {bad}");
        }
    }
}
