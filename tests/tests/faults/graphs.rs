//! Graphs that cannot be, and runs of good ones that cannot.

use genie_graph::{
    DType, Dim, Graph, GraphBuilder, InputRole, NodeId, Op, Shape, TensorType, VerifiedGraph, decode, encode,
};
use genie_tests::answer::Told;
use genie_tests::graphs::{Tiny, VOCABULARY, WIDTH, relu, tiny};
use genie_tests::raw::Raw;
use genie_transport::wire::{
    Arguments, BindEntry, ErrorCode, Handle, PutBody, PutRequest, PutTarget, Request, ResidencyCode, TensorSpec,
};

use crate::scene::{Scene, refused};

fn plain(graph: &VerifiedGraph) -> Graph {
    decode(&graph.encode()).expect("it was encoded here")
}

/// Every one of these is refused, with these words.
fn refuses(graphs: &[Vec<u8>], words: &[&str]) {
    let mut scene = Scene::new();
    let (mut raw, ..) = scene.session();
    for graph in graphs {
        refused(raw.ask(&Request::Define { device: 0, graph }), ErrorCode::BadGraph, &["the graph is refused"]);
        refused(raw.ask(&Request::Define { device: 0, graph }), ErrorCode::BadGraph, words);
    }
    let good = relu().expect("a graph").encode();
    assert!(matches!(raw.ask(&Request::Define { device: 0, graph: &good }), Ok(Told::Program(..))));
    scene.is_unharmed();
}

#[test]
fn a_cycle() {
    let relu = relu().expect("a graph");
    let mut itself = plain(&relu);
    itself.nodes[1].inputs = vec![NodeId(1)];
    let mut both = plain(&relu);
    let mut second = both.nodes[1].clone();
    second.inputs = vec![NodeId(1)];
    both.nodes.push(second);
    both.nodes[1].inputs = vec![NodeId(2)];
    let mut nowhere = plain(&relu);
    nowhere.nodes[1].inputs = vec![NodeId(u32::MAX)];
    refuses(&[encode(&itself), encode(&both), encode(&nowhere)], &["node %1", "relu"]);
}

#[test]
fn bad_arity() {
    let mut none = plain(&relu().expect("a graph"));
    none.nodes[1].inputs.clear();
    let mut two = plain(&relu().expect("a graph"));
    two.nodes[1].inputs = vec![NodeId(0); 2];
    refuses(&[encode(&none), encode(&two)], &["node %1", "relu", "input"]);
}

#[test]
fn wrong_shapes() {
    let mut declared = plain(&relu().expect("a graph"));
    declared.nodes[1].ty.shape = Shape(vec![Dim::from(5)]);
    let mut dtype = plain(&relu().expect("a graph"));
    dtype.nodes[1].ty.dtype = DType::I64;
    refuses(&[encode(&declared), encode(&dtype)], &["node %1", "relu"]);
    let mut g = GraphBuilder::new("sum");
    let four = TensorType::new(DType::F32, [Dim::from(4)]);
    let a = g.input("a", InputRole::Argument, four.clone()).expect("an input");
    let b = g.input("b", InputRole::Argument, four).expect("an input");
    let sum = g.push(Op::Add, &[a, b]).expect("a sum");
    g.output("sum", sum);
    let mut apart = plain(&g.finish().expect("a graph"));
    apart.nodes[1].ty.shape = Shape(vec![Dim::from(3)]);
    refuses(&[encode(&apart)], &["node %2", "add"]);
}

#[test]
fn unknown_op() {
    let relu = relu().expect("a graph");
    let mut silu = plain(&relu);
    silu.nodes[1].op = Op::Silu;
    let (mut bytes, other) = (relu.encode(), encode(&silu));
    let at = bytes.iter().zip(&other).position(|(a, b)| a != b).expect("they differ in the op");
    bytes[at] = 200;
    refuses(&[bytes], &["node %1 has op code 200", "update the server"]);
}

#[test]
fn attribute_of_the_wrong_type() {
    let mut graph = plain(&relu().expect("a graph"));
    graph.nodes[1].op = Op::Softmax { axis: 0x0102_0304 };
    let mut bytes = encode(&graph);
    let at = bytes.windows(4).position(|w| w == 0x0102_0304_i32.to_le_bytes()).expect("the axis is there");
    // The byte before an attribute says its type: from i32 to u32.
    bytes[at - 1] -= 1;
    refuses(&[bytes], &["node %1 (softmax)", "attribute axis is u32 but must be i32"]);
}

#[test]
fn attribute_out_of_range() {
    let mut graph = plain(&relu().expect("a graph"));
    graph.nodes[1].op = Op::Softmax { axis: i32::MIN };
    refuses(&[encode(&graph)], &["node %1", "softmax"]);
}

#[test]
fn bytes_that_are_no_graph() {
    let whole = relu().expect("a graph").encode();
    let cut: Vec<_> = (0..whole.len()).map(|n| whole[..n].to_vec()).collect();
    refuses(&cut, &["graph"]);
    let mut many = whole;
    // The count of nodes, after magic, version, reserved, and a name of 4 bytes.
    many[16..20].copy_from_slice(&[0xff; 4]);
    refuses(&[many], &["nodes", "at most"]);
}

/// The tiny model, bound to a cache of its own.
fn bound(raw: &mut Raw, model: &Tiny) -> Handle {
    let target = PutTarget::New { device: 0, residency: ResidencyCode::Private, hash: None, name: None };
    let spec = TensorSpec::new(DType::F32, &[VOCABULARY, WIDTH]).expect("the table's shape");
    let content = Tiny::table_bytes();
    let put = Request::Put(PutRequest { target, spec, body: PutBody::Inline(&content) });
    let Ok(Told::Tensor { handle: table, .. }) = raw.ask(&put) else { panic!("no table") };
    let graph = model.graph.encode();
    let Ok(Told::Program(program, _)) = raw.ask(&Request::Define { device: 0, graph: &graph }) else {
        panic!("no program")
    };
    let create = Request::CacheCreate { program, input: model.cache, reserve: 0 };
    let Ok(Told::Tensor { handle: cache, .. }) = raw.ask(&create) else { panic!("no cache") };
    let entries = [(model.table, table), (model.cache, cache)].map(|(input, handle)| BindEntry { input, handle });
    let (count, fixed) = model.greedy();
    let arguments = Arguments::new(count, &fixed).expect("the fixed inputs");
    match raw.ask(&Request::Bind { program, bound: entries.to_vec(), weights: Vec::new(), arguments }) {
        Ok(Told::Bound(binding)) => binding,
        other => panic!("{other:?}"),
    }
}

fn run<'a>(binding: Handle, position: u32, arguments: &'a [u8]) -> Request<'a> {
    let arguments = Arguments::new(1, arguments).expect("one argument");
    Request::Run { binding, position: Some(position), wanted: 1, keep: 0, arguments }
}

#[test]
fn gather_index_out_of_range() {
    let mut scene = Scene::new();
    let (mut raw, ..) = scene.session();
    let model = tiny().expect("a model");
    let binding = bound(&mut raw, &model);
    let good = model.run_arguments(&[1, 2, 3]);
    assert!(matches!(raw.ask(&run(binding, 0, &good)), Ok(Told::Ran { position: 3, .. })));
    for bad in [VOCABULARY as i32, -1, i32::MAX, i32::MIN] {
        for tokens in [vec![bad], vec![1, bad, 2]] {
            let arguments = model.run_arguments(&tokens);
            refused(raw.ask(&run(binding, 3, &arguments)), ErrorCode::OutOfRange, &[&bad.to_string(), "16"]);
        }
    }
    // The cache has not grown.
    let next = model.run_arguments(&[4]);
    assert!(matches!(raw.ask(&run(binding, 3, &next)), Ok(Told::Ran { position: 4, .. })));
    scene.is_unharmed();
}

#[test]
fn arguments_that_do_not_fit() {
    let mut scene = Scene::new();
    let (mut raw, ..) = scene.session();
    let model = tiny().expect("a model");
    let binding = bound(&mut raw, &model);
    let none = Request::Run { binding, position: None, wanted: 1, keep: 0, arguments: Arguments::EMPTY };
    refused(raw.ask(&none), ErrorCode::BadArgument, &["input"]);
    let wide = {
        let mut out = Vec::new();
        genie_transport::wire::write_argument(&mut out, model.tokens, DType::F32, &[1, 1], &[0; 4]).expect("written");
        out
    };
    refused(raw.ask(&run(binding, 0, &wide)), ErrorCode::BadArgument, &["f32", "i32"]);
    let good = model.run_arguments(&[1]);
    refused(raw.ask(&run(binding, 5, &good)), ErrorCode::StalePosition, &["0", "5"]);
    assert!(matches!(raw.ask(&run(binding, 0, &good)), Ok(Told::Ran { position: 1, .. })));
    scene.is_unharmed();
}
