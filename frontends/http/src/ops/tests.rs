use std::collections::BTreeSet;

use genie_graph::DType::{self, Bool, F16, F32, I32, I64, U8};
use genie_graph::InputRole;
use serde_json::{Value, json};

use super::*;

type Shaped = (DType, &'static [u64]);
/// Names of ops, what they are given, and what each of them makes.
type Case<'a> = (&'a [&'a str], &'a [Shaped], Value, (DType, Vec<u64>));

/// The type of what an op makes.
fn made(name: &str, inputs: &[Shaped], kwargs: &Value) -> Result<(DType, Vec<u64>), Failure> {
    let mut graph = GraphBuilder::new("test");
    let mut nodes = Vec::new();
    for (i, (dtype, dims)) in inputs.iter().enumerate() {
        let ty = TensorType { dtype: *dtype, shape: Shape::fixed(dims) };
        nodes.push(graph.input(&format!("x{i}"), InputRole::Argument, ty).unwrap());
    }
    let Value::Object(kwargs) = kwargs.clone() else { panic!("an object") };
    let node = build(&mut graph, name, &nodes, &Kwargs(kwargs))?;
    let ty = graph.ty(node).clone();
    graph.output("y", node);
    graph.finish().unwrap();
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
        (&["gelu"], &[X], json!({"approximate": "tanh"}), f(&[2, 3])),
        (&["add", "sub", "subtract", "aten::add.Tensor"], &[X, (F32, &[3])], json!({"alpha": 2}), f(&[2, 3])),
        (&["mul", "multiply", "add"], &[(I64, &[2]), (F16, &[2])], json!({}), (F16, vec![2])),
        (&["mul"], &[(F16, &[2]), (DType::BF16, &[2])], json!({}), f(&[2])),
        (&["add"], &[(Bool, &[2]), (U8, &[2])], json!({}), (U8, vec![2])),
        (&["mul", "add", "sub"], &[(I32, &[2])], json!({"other": 3}), (I32, vec![2])),
        (&["mul", "add"], &[(I32, &[2])], json!({"other": 0.5}), f(&[2])),
        (&["add"], &[(Bool, &[2])], json!({"other": 3}), (I64, vec![2])),
        (&["div", "divide", "true_divide"], &[(I32, &[2]), (I32, &[2])], json!({}), f(&[2])),
        (&["div"], &[(I32, &[2]), (I32, &[2])], json!({"rounding_mode": "trunc"}), (I32, vec![2])),
        (&["to", "cast"], &[X], json!({"dtype": "float16"}), (F16, vec![2, 3])),
        (&["matmul", "mm"], &[X, (F32, &[3, 5])], json!({}), f(&[2, 5])),
        (&["bmm"], &[(F32, &[7, 2, 3]), (F32, &[7, 3, 5])], json!({}), f(&[7, 2, 5])),
        (&["linear"], &[X, (F32, &[5, 3]), (F32, &[5])], json!({}), f(&[2, 5])),
        (&["layer_norm"], &[X, (F32, &[3]), (F32, &[3])], json!({"normalized_shape": [3], "eps": 1e-6}), f(&[2, 3])),
        (&["layer_norm", "rms_norm"], &[X], json!({}), f(&[2, 3])),
        (&["embedding"], &[IDS, (F32, &[10, 6])], json!({}), f(&[4, 6])),
        (&["softmax"], &[X], json!({"dim": -1}), f(&[2, 3])),
        (&["sum", "mean", "prod", "max", "amax", "min", "amin"], &[X], json!({}), f(&[])),
        (&["sum", "mean", "max"], &[X], json!({"dim": [0], "keepdim": true}), f(&[1, 3])),
        (&["sum", "prod"], &[(Bool, &[2, 3])], json!({"dim": -1}), (I64, vec![2])),
        (&["max"], &[(U8, &[2, 3])], json!({"dim": 1}), (U8, vec![2])),
        (&["argmax"], &[X], json!({}), (I64, vec![])),
        (&["argmax"], &[X], json!({"keepdim": true}), (I64, vec![1, 1])),
        (&["argmax"], &[X], json!({"dim": -1, "keepdim": true}), (I64, vec![2, 1])),
        (&["argmax"], &[X], json!({"dim": 0}), (I64, vec![3])),
        (&["transpose", "t"], &[X], json!({}), f(&[3, 2])),
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

#[test]
fn what_an_op_does_not_take_is_said() {
    const X: Shaped = (F32, &[2, 3]);
    for (name, inputs, kwargs, words) in [
        ("relu", &[X, X][..], json!({}), "takes 1 tensor(s), not 2"),
        ("cat", &[], json!({}), "takes 1 to 64"),
        ("relu", &[X], json!({"dim": 1}), "takes no argument 'dim'; it takes: none"),
        ("softmax", &[X], json!({"axis": 1}), "it takes: dim"),
        ("softmax", &[X], json!({"dim": 2}), "attribute axis is 2"),
        ("softmax", &[X], json!({"dim": "x"}), "'dim' must be a dimension"),
        ("softmax", &[(I32, &[3])], json!({}), "must be f32, f16 or bf16"),
        ("sum", &[X], json!({"dim": 5}), "has 2 dimension(s)"),
        ("add", &[X], json!({}), "a second tensor, or a number as 'other'"),
        ("add", &[X, X], json!({"other": 1}), "a second tensor, or a number as 'other'"),
        ("add", &[X, (F32, &[4])], json!({}), "do not broadcast"),
        ("add", &[(I32, &[4]), (I32, &[4])], json!({"alpha": 0.5}), "an integer for 'alpha'"),
        ("div", &[X, X], json!({"rounding_mode": "floor"}), "takes 'trunc'"),
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
