use std::collections::BTreeSet;

use genie_graph::DType::{self, Bool, F16, F32, I32, I64, U8};
use genie_graph::{Graph, InputRole, Op, Shape, TensorType};
use serde_json::{Value, json};

use super::*;

type Shaped = (DType, &'static [u64]);
/// Names of ops, what they are given, and what each of them makes.
type Case<'a> = (&'a [&'a str], &'a [Shaped], Value, (DType, Vec<u64>));

/// The graph of an op.
fn graph(name: &str, inputs: &[Shaped], kwargs: &Value) -> Result<Graph, Failure> {
    let mut graph = GraphBuilder::new("test");
    let mut nodes = Vec::new();
    for (i, (dtype, dims)) in inputs.iter().enumerate() {
        let ty = TensorType { dtype: *dtype, shape: Shape::fixed(dims) };
        nodes.push(graph.input(&format!("x{i}"), InputRole::Argument, ty).unwrap());
    }
    let Value::Object(kwargs) = kwargs.clone() else { panic!("an object") };
    let node = find(name)?.build(&mut graph, &nodes, &Kwargs(kwargs))?;
    graph.output("y", node);
    Ok((*graph.finish().unwrap()).clone())
}

/// The type of what an op makes.
fn made(name: &str, inputs: &[Shaped], kwargs: &Value) -> Result<(DType, Vec<u64>), Failure> {
    let graph = graph(name, inputs, kwargs)?;
    let ty = &graph.nodes[graph.outputs[0].node.0 as usize].ty;
    Ok((ty.dtype, ty.shape.0.iter().map(|dim| if let genie_graph::Dim::Fixed(n) = dim { *n } else { 0 }).collect()))
}

#[test]
fn every_op_makes_what_pytorch_makes() {
    const X: Shaped = (F32, &[2, 3]);
    const IDS: Shaped = (I64, &[4]);
    const IMAGE: Shaped = (F32, &[1, 4, 8, 8]);
    let f = |dims: &[u64]| (F32, dims.to_vec());
    let cases: &[Case<'_>] = &[
        (
            &["relu", "silu", "swish", "gelu", "abs", "neg", "negative", "aten::relu", "torch.relu"],
            &[X],
            json!({}),
            f(&[2, 3]),
        ),
        (&["sigmoid", "tanh", "exp", "log", "sqrt"], &[(I32, &[5])], json!({}), f(&[5])),
        (
            &[
                "sin",
                "cos",
                "tan",
                "asin",
                "arcsin",
                "acos",
                "arccos",
                "atan",
                "arctan",
                "sinh",
                "cosh",
                "asinh",
                "arcsinh",
                "acosh",
                "arccosh",
                "atanh",
                "arctanh",
                "erf",
                "erfc",
                "erfinv",
                "lgamma",
                "digamma",
                "expm1",
                "log1p",
                "log2",
                "log10",
                "exp2",
                "rsqrt",
                "reciprocal",
                "i0",
            ],
            &[(Bool, &[5])],
            json!({}),
            f(&[5]),
        ),
        (
            &["floor", "ceil", "round", "trunc", "fix", "sign", "sgn", "sin", "abs"],
            &[(F16, &[5])],
            json!({}),
            (F16, vec![5]),
        ),
        (
            &["floor", "ceil", "sign", "relu", "abs", "absolute", "neg", "bitwise_not"],
            &[(U8, &[5])],
            json!({}),
            (U8, vec![5]),
        ),
        (&["relu", "abs", "neg", "round"], &[(I64, &[])], json!({}), (I64, vec![])),
        (&["sign", "abs", "bitwise_not", "logical_not"], &[(Bool, &[2])], json!({}), (Bool, vec![2])),
        (&["isnan", "isinf", "isfinite", "logical_not"], &[(I64, &[2, 1])], json!({}), (Bool, vec![2, 1])),
        (&["isnan", "isinf", "isfinite", "logical_not"], &[(F16, &[])], json!({}), (Bool, vec![])),
        (
            &["torch.nn.functional.relu", "aten.relu.default", "torch.ops.aten.relu.default"],
            &[X],
            json!({}),
            f(&[2, 3]),
        ),
        (&["gelu"], &[X], json!({"approximate": "tanh"}), f(&[2, 3])),
        (&["add", "sub", "subtract", "aten::add.Tensor"], &[X, (F32, &[3])], json!({"alpha": 2}), f(&[2, 3])),
        (&["mul", "multiply", "add"], &[(I64, &[2]), (F16, &[2])], json!({}), (F16, vec![2])),
        (&["mul"], &[(F16, &[2]), (DType::BF16, &[2])], json!({}), f(&[2])),
        (&["add"], &[(Bool, &[2]), (U8, &[2])], json!({}), (U8, vec![2])),
        (&["mul", "add", "sub"], &[(I32, &[2])], json!({"other": 3}), (I32, vec![2])),
        (&["mul", "add"], &[(I32, &[2])], json!({"other": 0.5}), f(&[2])),
        (&["add"], &[(Bool, &[2])], json!({"other": 3}), (I64, vec![2])),
        (&["add", "mul", "maximum"], &[(Bool, &[2]), (Bool, &[2])], json!({}), (Bool, vec![2])),
        (&["add", "mul"], &[(I32, &[2])], json!({"other": true}), (I32, vec![2])),
        // Without dimensions a tensor counts only where no other is of its kind.
        (&["add", "mul", "div", "pow"], &[(F16, &[5]), (F32, &[])], json!({}), (F16, vec![5])),
        (&["add", "mul", "pow"], &[(I64, &[]), (I32, &[5])], json!({}), (I32, vec![5])),
        (&["add", "mul"], &[(I64, &[]), (U8, &[])], json!({}), (I64, vec![])),
        (&["add", "mul"], &[(I32, &[5]), (F16, &[])], json!({}), (F16, vec![5])),
        (&["add", "mul", "div", "sub"], &[(F16, &[])], json!({"other": 0.5}), (F16, vec![])),
        (&["add", "sub"], &[(F16, &[3]), (F16, &[3])], json!({"alpha": 0.1}), (F16, vec![3])),
        (&["div", "divide", "true_divide"], &[(I32, &[2]), (I32, &[2])], json!({}), f(&[2])),
        (&["div"], &[(I32, &[2]), (I32, &[2])], json!({"rounding_mode": "trunc"}), (I32, vec![2])),
        (&["div"], &[X, X], json!({"rounding_mode": "trunc"}), f(&[2, 3])),
        (&["div"], &[(I32, &[2])], json!({"other": 2, "rounding_mode": "floor"}), (I32, vec![2])),
        (
            &[
                "pow",
                "floor_divide",
                "remainder",
                "fmod",
                "maximum",
                "minimum",
                "atan2",
                "arctan2",
                "hypot",
                "copysign",
            ],
            &[X, (F32, &[3])],
            json!({}),
            f(&[2, 3]),
        ),
        (&["atan2", "copysign"], &[(I32, &[2]), (I32, &[2])], json!({}), f(&[2])),
        (&["pow"], &[(I32, &[2])], json!({"exponent": 2}), (I32, vec![2])),
        (&["pow"], &[(I32, &[2])], json!({"exponent": -0.5}), f(&[2])),
        (&["floor_divide", "remainder", "fmod", "maximum"], &[(I32, &[2])], json!({"other": 3}), (I32, vec![2])),
        (
            &["bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift"],
            &[(U8, &[2]), (I32, &[3, 1])],
            json!({}),
            (I32, vec![3, 2]),
        ),
        (
            &[
                "eq",
                "ne",
                "not_equal",
                "lt",
                "less",
                "le",
                "less_equal",
                "gt",
                "greater",
                "ge",
                "greater_equal",
                "logical_and",
                "logical_or",
                "logical_xor",
            ],
            &[X, (Bool, &[3])],
            json!({}),
            (Bool, vec![2, 3]),
        ),
        (&["eq", "lt", "aten::gt.Scalar"], &[(I64, &[3])], json!({"other": 0.5}), (Bool, vec![3])),
        (&["where"], &[(Bool, &[2, 1]), (F16, &[3]), (I64, &[])], json!({}), (F16, vec![2, 3])),
        (&["where"], &[(U8, &[2]), (F16, &[2])], json!({"other": 0}), (F16, vec![2])),
        (&["where"], &[(Bool, &[2]), (I32, &[2])], json!({"input": 0.5}), f(&[2])),
        (&["where"], &[(Bool, &[2])], json!({"input": 1, "other": 2}), (I64, vec![2])),
        (&["masked_fill"], &[X, (Bool, &[3])], json!({"value": "-inf"}), f(&[2, 3])),
        (&["clamp", "clip"], &[(I32, &[3])], json!({"min": 0, "max": 5}), (I32, vec![3])),
        (&["clamp"], &[(I32, &[3])], json!({"max": 5.5}), f(&[3])),
        (&["to", "cast"], &[X], json!({"dtype": "float16"}), (F16, vec![2, 3])),
        (&["matmul", "mm"], &[X, (F32, &[3, 5])], json!({}), f(&[2, 5])),
        (&["bmm"], &[(F32, &[7, 2, 3]), (F32, &[7, 3, 5])], json!({}), f(&[7, 2, 5])),
        (&["matmul"], &[(F32, &[3]), (F32, &[3])], json!({}), f(&[])),
        (&["matmul"], &[(F32, &[3]), (F32, &[3, 5])], json!({}), f(&[5])),
        (&["matmul"], &[(F32, &[7, 2, 3]), (F32, &[3])], json!({}), f(&[7, 2])),
        (&["matmul"], &[(F32, &[3]), (F32, &[7, 3, 5])], json!({}), f(&[7, 5])),
        (&["matmul"], &[(F32, &[4, 1, 2, 3]), (F32, &[6, 3, 5])], json!({}), f(&[4, 6, 2, 5])),
        (&["matmul"], &[(F32, &[2, 3]), (F32, &[6, 3, 5])], json!({}), f(&[6, 2, 5])),
        (&["linear"], &[X, (F32, &[5, 3]), (F32, &[5])], json!({}), f(&[2, 5])),
        (&["layer_norm"], &[X, (F32, &[3]), (F32, &[3])], json!({"normalized_shape": [3], "eps": 1e-6}), f(&[2, 3])),
        (&["layer_norm", "rms_norm"], &[X], json!({}), f(&[2, 3])),
        (&["embedding", "torch.nn.functional.embedding"], &[IDS, (F32, &[10, 6])], json!({}), f(&[4, 6])),
        // PyTorch's own operator has the table first.
        (&["aten::embedding", "torch.embedding"], &[(F32, &[10, 6]), IDS], json!({}), f(&[4, 6])),
        (&["softmax"], &[X], json!({"dim": -1}), f(&[2, 3])),
        (&["sum", "mean", "prod", "max", "amax", "min", "amin"], &[X], json!({}), f(&[])),
        (&["sum", "mean", "max"], &[X], json!({"dim": [0], "keepdim": true}), f(&[1, 3])),
        (&["sum", "prod"], &[(Bool, &[2, 3])], json!({"dim": -1}), (I64, vec![2])),
        (&["max"], &[(U8, &[2, 3])], json!({"dim": 1}), (U8, vec![2])),
        (&["argmax"], &[X], json!({}), (I64, vec![])),
        (&["argmax"], &[X], json!({"keepdim": true}), (I64, vec![1, 1])),
        (&["argmax"], &[X], json!({"dim": -1, "keepdim": true}), (I64, vec![2, 1])),
        (&["argmax", "argmin"], &[X], json!({"dim": 0}), (I64, vec![3])),
        (&["argmin"], &[(Bool, &[2, 3])], json!({}), (I64, vec![])),
        (&["max", "min"], &[X, (F32, &[3])], json!({}), f(&[2, 3])),
        (&["sum", "mean", "prod"], &[(I32, &[2])], json!({"dim": 0, "dtype": "float16"}), (F16, vec![])),
        (&["softmax", "cumsum"], &[(I32, &[2])], json!({"dim": 0, "dtype": "float16"}), (F16, vec![2])),
        (&["any", "all"], &[X], json!({"dim": 1}), (Bool, vec![2])),
        (&["any", "all"], &[(U8, &[2])], json!({}), (U8, vec![])),
        // 0 and -1 are dimensions of a tensor that has none.
        (&["sum", "amax", "mean", "softmax", "cumsum", "sort"], &[(F32, &[])], json!({"dim": -1}), f(&[])),
        (&["argmax", "argsort"], &[(F32, &[])], json!({"dim": 0}), (I64, vec![])),
        (&["cumsum", "cumprod"], &[(U8, &[2, 3])], json!({"dim": 1}), (I64, vec![2, 3])),
        (&["cumprod"], &[(F16, &[2, 3])], json!({"dim": -2}), (F16, vec![2, 3])),
        (&["sort"], &[(Bool, &[2, 3])], json!({"descending": 1, "stable": true}), (Bool, vec![2, 3])),
        (&["argsort"], &[X], json!({"dim": 0}), (I64, vec![2, 3])),
        (&["gather"], &[X, (I64, &[1, 5])], json!({"dim": 1}), f(&[1, 5])),
        (&["gather"], &[(F32, &[]), (I64, &[])], json!({"dim": 0}), f(&[])),
        (&["take_along_dim"], &[X, (I64, &[1, 5])], json!({"dim": 1}), f(&[2, 5])),
        (&["take_along_dim"], &[(F32, &[1, 3]), (I32, &[4, 2])], json!({"dim": -1}), f(&[4, 2])),
        (&["take_along_dim"], &[X, (I64, &[2, 2])], json!({}), f(&[4])),
        (&["transpose", "t"], &[X], json!({}), f(&[3, 2])),
        (&["t"], &[(F32, &[3])], json!({}), f(&[3])),
        (&["transpose"], &[(F32, &[])], json!({"dim0": 0, "dim1": -1}), f(&[])),
        (&["expand", "broadcast_to"], &[(F32, &[2, 1])], json!({"size": [4, -1, 3]}), f(&[4, 2, 3])),
        (&["broadcast_to"], &[(F32, &[])], json!({"shape": [2]}), f(&[2])),
        (&["flip"], &[X], json!({"dims": [0, -1]}), f(&[2, 3])),
        (&["flip"], &[(F32, &[])], json!({"dims": [0]}), f(&[])),
        (&["pad", "torch.nn.functional.pad"], &[X], json!({"pad": [1, 2, 0, 3], "value": -1}), f(&[5, 6])),
        (&["pad"], &[X], json!({"pad": [], "mode": "constant"}), f(&[2, 3])),
        (&["reshape"], &[(F32, &[1])], json!({"shape": []}), f(&[])),
        (&["zeros", "ones"], &[], json!({"size": [2, 3]}), f(&[2, 3])),
        (&["zeros"], &[], json!({"size": [], "dtype": "bool"}), (Bool, vec![])),
        (&["full"], &[], json!({"size": 3, "fill_value": 7}), (I64, vec![3])),
        (&["full"], &[], json!({"size": 3, "fill_value": true}), (Bool, vec![3])),
        (&["full"], &[], json!({"size": 3, "fill_value": "inf"}), f(&[3])),
        (&["arange"], &[], json!({"end": 5}), (I64, vec![5])),
        (&["arange"], &[], json!({"start": 1, "end": -1, "step": -0.5}), f(&[4])),
        (&["eye"], &[], json!({"n": 2, "m": 3}), f(&[2, 3])),
        (&["eye"], &[], json!({"n": 2, "dtype": "int64"}), (I64, vec![2, 2])),
        (&["zeros_like", "ones_like"], &[(U8, &[3])], json!({}), (U8, vec![3])),
        (&["full_like"], &[(U8, &[3])], json!({"fill_value": 0.5, "dtype": "float32"}), f(&[3])),
        (&["transpose"], &[IMAGE], json!({"dim0": -1, "dim1": 1}), f(&[1, 8, 8, 4])),
        (&["permute"], &[(F32, &[2, 3, 4])], json!({"dims": [2, 0, -2]}), f(&[4, 2, 3])),
        (&["reshape", "view"], &[X], json!({"shape": [3, -1]}), f(&[3, 2])),
        (&["flatten"], &[IMAGE], json!({"start_dim": 1}), f(&[1, 256])),
        (&["flatten"], &[(F32, &[])], json!({}), f(&[1])),
        (&["squeeze"], &[IMAGE], json!({}), f(&[4, 8, 8])),
        (&["squeeze"], &[IMAGE], json!({"dim": 1}), f(&[1, 4, 8, 8])),
        (&["unsqueeze"], &[X], json!({"dim": -1}), f(&[2, 3, 1])),
        (&["slice"], &[X], json!({"dim": 1, "start": -2, "end": 99}), f(&[2, 2])),
        (&["narrow"], &[X], json!({"dim": 1, "start": 1, "length": 1}), f(&[2, 1])),
        (&["cat", "concat", "concatenate"], &[X, X], json!({"dim": -1}), f(&[2, 6])),
        (&["cat"], &[(F16, &[1, 3]), (I64, &[1, 3])], json!({"dim": 1}), (F16, vec![1, 6])),
        (&["stack"], &[(F16, &[]), (F32, &[])], json!({}), f(&[2])),
        (&["stack"], &[X, X, X], json!({"dim": -1}), f(&[2, 3, 3])),
        (&["stack"], &[X, X], json!({}), f(&[2, 2, 3])),
        (&["index_select"], &[X, IDS], json!({"dim": 0}), f(&[4, 3])),
        (
            &["conv2d"],
            &[IMAGE, (F32, &[6, 2, 3, 3]), (F32, &[6])],
            json!({"padding": 1, "stride": [2, 2], "groups": 2}),
            f(&[1, 6, 4, 4]),
        ),
        (&["batch_norm"], &[IMAGE, (F32, &[4]), (F32, &[4]), (F32, &[4]), (F32, &[4])], json!({}), f(&[1, 4, 8, 8])),
        (&["max_pool2d"], &[IMAGE], json!({"kernel_size": 2}), f(&[1, 4, 4, 4])),
        (
            &["avg_pool2d"],
            &[IMAGE],
            json!({"kernel_size": [3, 3], "stride": 1, "padding": 1, "count_include_pad": false}),
            f(&[1, 4, 8, 8]),
        ),
    ];
    let mut tried = BTreeSet::new();
    for (names, inputs, kwargs, expected) in cases {
        for name in *names {
            assert_eq!(made(name, inputs, kwargs).as_ref(), Ok(expected), "{name} {kwargs}");
            tried.insert(*name);
        }
    }
    let untried: Vec<_> = names().into_iter().filter(|name| !tried.contains(name)).collect();
    assert!(untried.is_empty(), "{untried:?}");
}

/// The page lists each op by its first name, with what it takes.
#[test]
fn the_documentation_has_all_ops() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/http.md");
    let page = std::fs::read_to_string(page).unwrap();
    for def in all() {
        // There is one mode.
        let kwargs = def.kwargs.iter().filter(|name| !matches!(**name, "mode"));
        for name in def.names.iter().take(1).chain(kwargs) {
            assert!(page.contains(&format!("`{name}`")), "{name} of {:?}", def.names);
        }
    }
}

#[test]
fn what_an_op_does_not_take_is_said() {
    const X: Shaped = (F32, &[2, 3]);
    for (name, inputs, kwargs, words) in [
        ("relu", &[X, X][..], json!({}), "takes 1 tensor(s), not 2"),
        ("cat", &[], json!({}), "takes 1 to 64"),
        ("relu", &[X], json!({"dim": 1}), "takes no argument 'dim'; it takes: none"),
        ("softmax", &[X], json!({"axis": 1}), "it takes: dim"),
        ("softmax", &[X], json!({"dim": 2}), "has 2 dimension(s)"),
        ("softmax", &[X], json!({"dim": "x"}), "'dim' must be an integer"),
        ("softmax", &[(I32, &[3])], json!({}), "must be f32, f16 or bf16"),
        ("sum", &[X], json!({"dim": 5}), "has 2 dimension(s)"),
        ("sum", &[(F32, &[])], json!({"dim": 1}), "has 0 dimension(s)"),
        ("relu", &[(Bool, &[1])], json!({}), "takes no bool"),
        ("sub", &[(Bool, &[1]), (Bool, &[1])], json!({}), "is bool but must be"),
        ("bitwise_and", &[X, X], json!({}), "an integer type or bool"),
        ("pow", &[(I32, &[1])], json!({"exponent": -1}), "no integers to a negative power"),
        ("add", &[(U8, &[1])], json!({"other": 300}), "cannot hold"),
        ("where", &[X, X, X], json!({}), "a condition of bool"),
        ("where", &[(Bool, &[1]), X], json!({}), "a tensor or a number: 'other'"),
        ("where", &[(Bool, &[1]), X, X], json!({"other": 1}), "and not more"),
        ("clamp", &[X], json!({}), "needs 'min' or 'max'"),
        ("max", &[X, X], json!({"dim": 1}), "of one tensor, not of two"),
        ("cumsum", &[X], json!({}), "needs 'dim'"),
        ("gather", &[X, (I64, &[3, 1])], json!({"dim": 1}), "must be at most"),
        ("take_along_dim", &[X, (I64, &[3])], json!({"dim": 1}), "indices of as many dimensions"),
        ("take_along_dim", &[X, (I64, &[3, 1])], json!({"dim": 1}), "that broadcast with the tensor"),
        ("expand", &[X], json!({"size": [3]}), "as many dimensions as the tensor has, or more"),
        ("expand", &[X], json!({"size": [-1, 2, 3]}), "-1 for a dimension that there is"),
        ("expand", &[X], json!({"size": [2, 4]}), "do not broadcast"),
        ("pad", &[X], json!({"pad": [1]}), "two numbers in 'pad'"),
        ("pad", &[X], json!({"pad": [1, 1, 1, 1, 1, 1]}), "'pad' is for 3"),
        ("pad", &[X], json!({"pad": [-1, 0]}), "no negative number"),
        ("pad", &[X], json!({"pad": [1, 0], "mode": "reflect"}), "takes 'constant'"),
        ("zeros", &[], json!({"size": [-1]}), "no negative dimension in 'size'"),
        ("zeros", &[], json!({"size": [0]}), "must not be empty"),
        ("full", &[], json!({"size": [1]}), "needs 'fill_value'"),
        ("arange", &[], json!({"end": 0}), "an element at the least"),
        ("arange", &[], json!({"end": 5, "step": 0}), "an element at the least"),
        ("arange", &[], json!({"start": 9_007_199_254_740_993_i64, "end": i64::MAX}), "numbers up to 2^53"),
        ("matmul", &[(F32, &[]), X], json!({}), "takes tensors with dimensions"),
        ("matmul", &[(F32, &[2, 2, 3]), (F32, &[5, 3, 1])], json!({}), "leading dimensions broadcast"),
        ("add", &[X], json!({}), "a second tensor, or a number as 'other'"),
        ("add", &[X, X], json!({"other": 1}), "a second tensor, or a number as 'other'"),
        ("add", &[X, (F32, &[4])], json!({}), "do not broadcast"),
        ("add", &[(I32, &[4]), (I32, &[4])], json!({"alpha": 0.5}), "an integer for 'alpha'"),
        ("div", &[X, X], json!({"rounding_mode": "up"}), "takes 'trunc' or 'floor'"),
        ("to", &[X], json!({}), "needs 'dtype'"),
        ("to", &[X], json!({"dtype": "float64"}), "'dtype' must be one of"),
        ("gelu", &[X], json!({"approximate": "erf"}), "'none' or 'tanh'"),
        ("matmul", &[X, X], json!({}), "must be"),
        ("layer_norm", &[X], json!({"normalized_shape": [2, 3]}), "can be [3]"),
        ("layer_norm", &[(F32, &[])], json!({}), "takes a tensor with dimensions"),
        ("transpose", &[(F32, &[1, 2, 3])], json!({}), "needs 'dim0' and 'dim1'"),
        ("permute", &[X], json!({"dims": [0, 0]}), "attribute perm"),
        ("reshape", &[X], json!({"shape": [4]}), "number of elements"),
        ("reshape", &[X], json!({"shape": [-2]}), "no negative dimension but -1"),
        ("flatten", &[X], json!({"start_dim": 1, "end_dim": 0}), "'start_dim' before 'end_dim'"),
        ("slice", &[X], json!({"step": -1}), "a positive 'step'"),
        ("slice", &[X], json!({"start": 2}), "leaves nothing"),
        ("narrow", &[X], json!({"dim": 0, "start": i64::MAX, "length": 2}), "takes a 'start' from 0 on"),
        ("index_select", &[X, (I64, &[1])], json!({"dim": 1}), "'dim' can be 0"),
        ("unsqueeze", &[X], json!({"dim": i64::MIN}), "has 3 dimension(s)"),
        ("conv2d", &[X, X], json!({"stride": -1}), "'stride' must be"),
        ("conv2d", &[X, X], json!({"groups": -1}), "number of 'groups'"),
        ("max_pool2d", &[X], json!({}), "needs 'kernel_size'"),
    ] {
        let failure = made(name, inputs, &kwargs).unwrap_err();
        assert_eq!(failure.status, 422, "{name}");
        assert!(failure.detail.contains(words), "{name}: {}", failure.detail);
    }
    for odd in ["", "system", "aten::", "input", "relu\u{1b}[0m", &"x".repeat(10_000)] {
        let failure = made(odd, &[X], &json!({})).unwrap_err();
        assert_eq!(failure.status, 400);
        assert!(failure.detail.len() < 600 && !failure.detail.contains('\u{1b}'), "{}", failure.detail);
        assert!(failure.more.unwrap().1.as_array().unwrap().contains(&json!("relu")));
    }
}

/// Batch norm by the name of PyTorch's own operator took its weight for the mean.
#[test]
fn operands_are_in_the_order_of_the_name_that_is_used() {
    let channels: [Shaped; 5] = [(F32, &[1, 4, 8, 8]), (F32, &[4]), (F32, &[4]), (F32, &[4]), (F32, &[4])];
    for (name, order) in [
        ("batch_norm", [0, 3, 4, 1, 2]),
        ("torch.nn.functional.batch_norm", [0, 3, 4, 1, 2]),
        ("torch.batch_norm", [0, 1, 2, 3, 4]),
        ("aten::batch_norm", [0, 1, 2, 3, 4]),
        ("aten.batch_norm.default", [0, 1, 2, 3, 4]),
    ] {
        let graph = graph(name, &channels, &json!({})).unwrap();
        assert_eq!(graph.nodes.last().unwrap().inputs, order.map(NodeId), "{name}");
    }
}

/// Numbers of 2^53 and more were rounded to the next float.
#[test]
fn a_large_integer_is_the_number_that_was_asked_for() {
    for number in [9_007_199_254_740_993, -9_007_199_254_740_993, i64::MAX, i64::MIN + 1, (1 << 53) + 1, 7, i64::MIN] {
        let graph = graph("add", &[(I64, &[1])], &json!({"other": number})).unwrap();
        // The constants, worked out as the ops do it.
        let mut values: Vec<i64> = Vec::new();
        for node in &graph.nodes {
            let read = |i: usize| values[node.inputs[i].0 as usize];
            values.push(match node.op {
                Op::Input { .. } => 0,
                Op::Full { value } => {
                    assert!(value as i64 as f64 == value);
                    value as i64
                }
                Op::Mul => read(0).wrapping_mul(read(1)),
                Op::Add => read(0).wrapping_add(read(1)),
                ref other => panic!("{other:?}"),
            });
        }
        assert_eq!(values.last(), Some(&number));
    }
}

/// A product by `alpha` was rounded before it was added; a factor was rounded to the type of the halves that it multiplies.
#[test]
fn halves_are_rounded_where_pytorch_rounds_them() {
    let types = |name: &str, inputs: &[Shaped], kwargs: Value| {
        let graph = graph(name, inputs, &kwargs).unwrap();
        let node = |node: &&genie_graph::Node| matches!(node.op, Op::Full { .. } | Op::Add | Op::Mul | Op::Div);
        graph.nodes.iter().filter(node).map(|node| (node.op.name(), node.ty.dtype)).collect::<Vec<_>>()
    };
    const HALF: Shaped = (F16, &[2]);
    assert_eq!(types("add", &[HALF], json!({"other": 0.1})), [("full", F16), ("add", F16)]);
    assert_eq!(types("mul", &[HALF], json!({"other": 0.1})), [("full", F32), ("mul", F32)]);
    assert_eq!(types("div", &[HALF, (F32, &[])], json!({})), [("div", F32)]);
    assert_eq!(types("mul", &[(F32, &[]), HALF], json!({})), [("mul", F16)]);
    assert_eq!(types("add", &[HALF, HALF], json!({"alpha": 0.1})), [("full", F16), ("mul", F32), ("add", F32)]);
}
