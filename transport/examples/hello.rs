//! From nothing to a remote tensor: the program of docs/guide/rust.md.
//!
//! `cargo run --release -p genie-transport --example hello -- tcp://127.0.0.1:7070`

use std::error::Error;

use bytes::Bytes;
use genie_graph::{DType, Dim, GraphBuilder, InputRole, Op, TensorType};
use genie_transport::client::blocking::Session;
use genie_transport::client::{BindInputs, ConnectOptions, PutOptions, RunOptions, Value};
use genie_transport::wire::TensorSpec;

fn main() -> Result<(), Box<dyn Error>> {
    let uri = std::env::args().nth(1).ok_or("usage: hello URI")?;
    println!("{:?}", run(&uri)?);
    Ok(())
}

/// Puts four numbers, has the server square those above zero, and gives what comes back.
pub(crate) fn run(uri: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut session = Session::connect(&uri.parse()?, ConnectOptions::default())?;

    // A tensor that lives on the server. Its bytes are sent from where they lie.
    let numbers = [-1.0_f32, 2.0, -3.0, 4.0];
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let x = session.put(&TensorSpec::new(DType::F32, &[4])?, Bytes::from(bytes), PutOptions::default())?;

    // A graph, which the server verifies and plans once.
    let mut graph = GraphBuilder::new("hello");
    let input = graph.input("x", InputRole::Argument, TensorType::new(DType::F32, [Dim::from(4)]))?;
    let positive = graph.push(Op::Relu, &[input])?;
    let squared = graph.push(Op::Mul, &[positive, positive])?;
    graph.output("squared", squared);
    let program = session.define(0, &graph.finish()?.encode())?;

    // A run: one request, which names the program's binding and the tensor.
    let binding = session.bind(&program, &BindInputs::default())?;
    let outputs = session.run_with(binding, &[], &[(0, &x)], RunOptions::default())?;
    let [Value::Inline { data, .. }] = &outputs.values[..] else { return Err("one output was wanted back".into()) };
    let back = data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();

    session.free(x.handle)?;
    session.close()?;
    Ok(back)
}
