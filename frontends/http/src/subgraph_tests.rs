use genie_graph::{DType, Op};
use genie_tensor_files::write;
use serde_json::json;

use super::*;

/// Bytes of these numbers, as many as the number says.
fn bytes(count: u8) -> Tensor {
    Tensor { dtype: DType::U8, dims: vec![count.into()], data: vec![count; count.into()].into() }
}

fn work(request: &Value, format: Format, contents: &Contents) -> Result<Work, Failure> {
    let file =
        Part { name: "tensors".to_owned(), is_file: true, data: write(format, contents).unwrap().concat().into() };
    let request = Part { name: "request".to_owned(), is_file: false, data: request.to_string().into() };
    read_form(&[file, request], &mut Files::new(1 << 20, &mut |_| true))
}

fn named(names: &[(&str, u8)]) -> Contents {
    Contents::Dict(names.iter().map(|(name, count)| ((*name).to_owned(), bytes(*count))).collect())
}

fn lengths(work: Result<Work, Failure>) -> Vec<u64> {
    work.unwrap_or_else(|failure| panic!("{}", failure.detail)).inputs.iter().map(|tensor| tensor.dims[0]).collect()
}

/// safetensors' save_file sorts: ids that were the names of the tensors got each other's.
#[test]
fn ids_that_are_the_names_of_the_file_mean_those_tensors() {
    let ask = |inputs: Value| {
        let operations = json!([{"op_id": "y", "operation": "cat", "inputs": [inputs[0], inputs[1]]}]);
        json!({"operations": operations, "input_tensors": inputs, "output_id": "y"})
    };
    let file = named(&[("w", 2), ("x", 1)]);
    for format in [Format::Safetensors, Format::Pt] {
        assert_eq!(lengths(work(&ask(json!(["x", "w"])), format, &file)), [1, 2]);
        assert_eq!(lengths(work(&ask(json!(["w", "x"])), format, &file)), [2, 1]);
    }
    // By other ids the place counts, and numbers may be names, too.
    assert_eq!(lengths(work(&ask(json!(["x", "b"])), Format::Pt, &file)), [2, 1]);
    assert_eq!(lengths(work(&ask(json!([7, 5])), Format::Pt, &named(&[("5", 1), ("7", 2)]))), [2, 1]);
    let list = Contents::List(vec![bytes(1), bytes(2)]);
    assert_eq!(lengths(work(&ask(json!([1, 0])), Format::Pt, &list)), [1, 2]);
}

/// A tensor under thousands of ids was put as many times.
#[test]
fn a_tensor_is_an_input_once_whatever_ids_it_has() {
    let ids: Vec<_> = (0..64).map(|i| format!("id{i}")).collect();
    let inputs: Map<_, _> = ids.iter().map(|id| (id.clone(), json!("x"))).collect();
    let operations = json!([{"op_id": 1, "operation": "cat", "inputs": ids, "kwargs": null}]);
    let request = json!({"operations": operations, "input_tensors": inputs, "output_id": 1});
    let work = work(&request, Format::Pt, &named(&[("x", 3), ("w", 2)])).map_err(|failure| failure.detail).unwrap();
    assert_eq!(work.inputs.len(), 1);
    let cat = work.graph.nodes.last().unwrap();
    assert!(matches!(cat.op, Op::Concat { .. }) && cat.inputs.len() == 64);
}

#[test]
fn operations_are_looked_at_before_files_are_read() {
    let file = Part { name: "tensors".to_owned(), is_file: true, data: "no file".into() };
    for (operation, status) in [
        (json!({"op_id": "a", "operation": "what", "inputs": []}), 400),
        (json!({"op_id": "a", "operation": "relu", "inputs": [1, 2]}), 422),
        (json!({"op_id": "a", "operation": "relu", "inputs": [1], "kwargs": {"dim": 1}}), 422),
    ] {
        let request = json!({"operations": [operation], "output_id": "a"}).to_string();
        let request = Part { name: "request".to_owned(), is_file: false, data: request.into() };
        let failure = read_form(&[file.clone(), request], &mut Files::new(0, &mut |_| true)).err().unwrap();
        assert_eq!(failure.status, status);
        assert!(failure.detail.starts_with("operation 'a': "), "{}", failure.detail);
    }
}
