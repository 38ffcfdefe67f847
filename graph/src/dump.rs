//! Text for people: logs, errors, `genie explain`. Not a format to parse.

use std::fmt::{Display, Formatter, Result};

use crate::graph::{Graph, Node, NodeId};
use crate::op::{InputRole, Op};
use crate::types::{Annotation, Dim, Modality, Phase, Residency, Shape, Symbol, TensorType};

impl Graph {
    /// One line a node: id, type, op, inputs, attributes, annotation.
    pub fn dump(&self) -> String {
        self.to_string()
    }
}

impl Display for Graph {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "graph {:?} {{", self.name)?;
        for (i, node) in self.nodes.iter().enumerate() {
            writeln!(f, "  %{i} = {node}")?;
        }
        for output in &self.outputs {
            writeln!(f, "  return {:?}: {}", output.name, output.node)?;
        }
        f.write_str("}\n")
    }
}

impl Display for Node {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{}(", self.op.name())?;
        for (i, input) in self.inputs.iter().enumerate() {
            write!(f, "{}{input}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str(")")?;
        attributes(&self.op, f)?;
        write!(f, ": {}", self.ty)?;
        annotation(&self.annotation, f)
    }
}

fn attributes(op: &Op, f: &mut Formatter<'_>) -> Result {
    match op {
        Op::Input { name, role } => write!(f, " name={name:?} role={role}"),
        Op::Full { value } => write!(f, " value={value}"),
        Op::Arange { start, step } => write!(f, " start={start} step={step}"),
        Op::Rand { seed } | Op::Randn { seed } => write!(f, " seed={seed}"),
        Op::Embedding { dtype } => write!(f, " dtype={dtype}"),
        Op::Linear { layout } => write!(f, " layout={layout:?}"),
        Op::RmsNorm { eps } | Op::LayerNorm { eps } | Op::BatchNorm { eps } => write!(f, " eps={eps:e}"),
        Op::Rope { theta, head_dim, style } => write!(f, " theta={theta} head_dim={head_dim} style={style:?}"),
        Op::Gelu { tanh } => write!(f, " tanh={tanh}"),
        Op::Softmax { axis } | Op::Concat { axis } | Op::ArgMax { axis } | Op::TakeAlong { axis } => {
            write!(f, " axis={axis}")
        }
        Op::Attention { layer, heads, kv_heads, head_dim, scale, causal } => write!(
            f,
            " layer={layer} heads={heads} kv_heads={kv_heads} head_dim={head_dim} scale={scale} causal={causal}"
        ),
        Op::Reshape { dims } | Op::Broadcast { dims } => {
            f.write_str(" dims=")?;
            list(dims, f)
        }
        Op::Transpose { perm } => {
            f.write_str(" perm=")?;
            list(perm, f)
        }
        Op::Slice { axis, start, end, step } => {
            write!(f, " axis={axis} [{start}:")?;
            if let Some(end) = end {
                write!(f, "{end}")?;
            }
            write!(f, ":{step}]")
        }
        Op::Reduce { kind, axes, keep_dims } => {
            write!(f, " kind={kind:?} axes=")?;
            list(axes, f)?;
            write!(f, " keep_dims={keep_dims}")
        }
        Op::Cast { to } => write!(f, " to={to}"),
        Op::Dequantize { format, to } => write!(f, " format={format:?} to={to}"),
        Op::Conv2d { stride, padding, dilation, groups } => {
            write!(f, " stride={stride:?} padding={padding:?} dilation={dilation:?} groups={groups}")
        }
        Op::Pool { kind, kernel, stride, padding, count_padding } => write!(
            f,
            " kind={kind:?} kernel={kernel:?} stride={stride:?} padding={padding:?} count_padding={count_padding}"
        ),
        Op::Unary { kind } => write!(f, " kind={kind:?}"),
        Op::Binary { kind } => write!(f, " kind={kind:?}"),
        Op::Compare { kind } => write!(f, " kind={kind:?}"),
        Op::Cumulative { kind, axis } => write!(f, " kind={kind:?} axis={axis}"),
        Op::ArgSort { axis, descending } => write!(f, " axis={axis} descending={descending}"),
        Op::ScatterAlong { axis, kind } => write!(f, " axis={axis} kind={kind:?}"),
        Op::ArgReduce { kind, axis, keep_dims } => write!(f, " kind={kind:?} axis={axis} keep_dims={keep_dims}"),
        Op::Random { kind, dtype, dims } => {
            write!(f, " kind={kind:?} dtype={dtype} dims=")?;
            list(dims, f)
        }
        Op::Flip { axes } => {
            f.write_str(" axes=")?;
            list(axes, f)
        }
        Op::Pad { before, after, value } => write!(f, " before={before:?} after={after:?} value={value}"),
        Op::Zeros
        | Op::Ones
        | Op::MatMul
        | Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::Silu
        | Op::Relu
        | Op::Sigmoid
        | Op::Tanh
        | Op::Abs
        | Op::Neg
        | Op::Exp
        | Op::Log
        | Op::Sqrt
        | Op::Sample
        | Op::Gather
        | Op::Scatter
        | Op::Where => Ok(()),
    }
}

/// Only what differs from the default, so that a plain node stays a short line.
fn annotation(annotation: &Annotation, f: &mut Formatter<'_>) -> Result {
    if *annotation == Annotation::default() {
        return Ok(());
    }
    f.write_str("  #")?;
    if annotation.phase != Phase::default() {
        write!(f, " phase={}", annotation.phase)?;
    }
    if annotation.residency != Residency::default() {
        write!(f, " residency={}", annotation.residency)?;
    }
    if annotation.modality != Modality::default() {
        write!(f, " modality={}", annotation.modality)?;
    }
    Ok(())
}

fn list<T: Display>(items: &[T], f: &mut Formatter<'_>) -> Result {
    f.write_str("[")?;
    for (i, item) in items.iter().enumerate() {
        write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
    }
    f.write_str("]")
}

impl Display for NodeId {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "%{}", self.0)
    }
}

impl Display for Dim {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            d if *d == Op::INFER => f.write_str("-1"),
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Symbol(s) => write!(f, "{s}"),
        }
    }
}

impl Display for Shape {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        list(&self.0, f)
    }
}

impl Display for TensorType {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{} {}", self.dtype, self.shape)
    }
}

/// Gives an enum's variants their names in text.
macro_rules! names {
    ($($ty:ident { $($variant:ident = $name:literal),+ $(,)? })+) => {$(
        impl Display for $ty {
            fn fmt(&self, f: &mut Formatter<'_>) -> Result {
                f.pad(match self {
                    $(Self::$variant => $name,)+
                })
            }
        }
    )+};
}

names! {
    Symbol { Batch = "batch", Sequence = "sequence", Position = "position" }
    Phase { Unknown = "unknown", Prefill = "prefill", Decode = "decode", Vision = "vision", Fusion = "fusion" }
    Residency { Activation = "activation", Weight = "weight", KvCache = "kv-cache", Output = "output" }
    Modality { None = "none", Text = "text", Vision = "vision", Audio = "audio" }
    InputRole {
        Argument = "argument",
        Weight = "weight",
        KvCache = "kv-cache",
        Tokens = "tokens",
        Positions = "positions",
        SamplingReal = "sampling-real",
        SamplingInt = "sampling-int",
    }
}

#[cfg(test)]
mod tests {
    use crate::example::{B, model, n};
    use crate::{CumulativeKind, DType, GraphBuilder, InputRole, Op, QuantFormat, TensorType, UnaryKind};

    #[test]
    fn a_dump_reads_well() {
        let text = model().dump();
        for line in [
            "graph \"example\" {",
            "  %0 = input() name=\"tokens\" role=tokens: i32 [batch, sequence]  # phase=decode modality=text",
            "  %3 = input() name=\"embed\" role=weight: bf16 [16, 8]  # phase=decode residency=weight modality=text",
            "  %4 = embedding(%3, %0) dtype=f32: f32 [batch, sequence, 8]  # phase=decode modality=text",
            "  return \"next\": %50",
            "}",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
        assert!(text.contains(" dims=[batch, -1]: f32 [batch, 8]") && text.contains(" axis=1 [-1::1]: "), "{text}");
    }

    #[test]
    fn windows_and_formats_are_shown() {
        let mut g = GraphBuilder::new("g");
        let x = g.input("x", InputRole::Argument, TensorType::new(DType::U8, [B, n(1), n(4), n(18)])).unwrap();
        let x = g.push(Op::Dequantize { format: QuantFormat::Q4_0, to: DType::F32 }, &[x]).unwrap();
        let w = g.input("w", InputRole::Weight, TensorType::new(DType::F32, [n(2), n(1), n(3), n(3)])).unwrap();
        let op = Op::Conv2d { stride: [2, 1], padding: [0, 1, 0, 1], dilation: [1, 1], groups: 1 };
        let y = g.push(op, &[x, w]).unwrap();
        g.output("y", y);
        let text = g.finish().unwrap().dump();
        for line in [
            "  %1 = dequantize(%0) format=Q4_0 to=f32: f32 [batch, 1, 4, 32]",
            "  %3 = conv2d(%1, %2) stride=[2, 1] padding=[0, 1, 0, 1] dilation=[1, 1] groups=1: f32 [batch, 2, 1, 32]",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn kinds_and_axes_are_shown() {
        let mut g = GraphBuilder::new("g");
        let x = g.input("x", InputRole::Argument, TensorType::new(DType::F32, [B, n(4)])).unwrap();
        let y = g.push(Op::Unary { kind: UnaryKind::Sin }, &[x]).unwrap();
        let y = g.push(Op::Cumulative { kind: CumulativeKind::Max, axis: -1 }, &[y]).unwrap();
        let y = g.push(Op::Pad { before: vec![0, 1], after: vec![0, 2], value: 0.5 }, &[y]).unwrap();
        let y = g.push(Op::Broadcast { dims: vec![n(2), B, n(7)] }, &[y]).unwrap();
        let y = g.push(Op::ArgSort { axis: 0, descending: true }, &[y]).unwrap();
        g.output("y", y);
        let text = g.finish().unwrap().dump();
        for line in [
            "  %1 = unary(%0) kind=Sin: f32 [batch, 4]",
            "  %2 = cumulative(%1) kind=Max axis=-1: f32 [batch, 4]",
            "  %3 = pad(%2) before=[0, 1] after=[0, 2] value=0.5: f32 [batch, 7]",
            "  %4 = broadcast(%3) dims=[2, batch, 7]: f32 [2, batch, 7]",
            "  %5 = argsort(%4) axis=0 descending=true: i64 [2, batch, 7]",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
    }
}
