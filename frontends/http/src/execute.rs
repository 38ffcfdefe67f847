//! `POST /execute`: one op.

use genie_graph::{GraphBuilder, InputRole, NodeId, Shape, TensorType, VerifyError};
use genie_tensor_files::{Contents, Format, Limits, Tensor, read};
use serde_json::Value;

use crate::error::Failure;
use crate::form::Part;
use crate::kwargs::Kwargs;
use crate::ops;
use crate::request::{Reply, Work};

/// What a form of this endpoint asks for.
pub(crate) fn read_form(parts: &[Part], limits: &Limits) -> Result<Work, Failure> {
    let (mut operation, mut device, mut kwargs) = (None, None, Kwargs::default());
    let (mut inputs, mut reply) = (Vec::new(), None);
    for part in parts {
        let name = part.name.as_str();
        if is_tensor(name) {
            let (format, named, tensor) = one(part, limits)?;
            reply.get_or_insert(Reply { format, name: named });
            inputs.push(tensor);
        } else if part.is_file {
            let detail =
                "a field with a file is 'tensor_file', or 'tensor_file_2' and so on for the ops that take several";
            return Err(Failure::fields(format!("'{}' is unknown: {detail}", name.escape_debug())));
        } else {
            match name {
                "operation" => set(&mut operation, name, part.text()?)?,
                "device" => set(&mut device, name, part.text()?)?,
                "kwargs" => match serde_json::from_str(part.text()?) {
                    Ok(Value::Object(object)) => kwargs.set_all(object)?,
                    _ => return Err(Failure::fields("'kwargs' must be a JSON object")),
                },
                name => kwargs.set_text(name, part.text()?)?,
            }
        }
    }
    let operation = operation.ok_or_else(|| Failure::fields("the field 'operation' is missing: the name of an op"))?;
    let reply =
        reply.ok_or_else(|| Failure::fields("the field 'tensor_file' is missing: a .pt, .npy or .safetensors file"))?;
    let mut graph = GraphBuilder::new("execute");
    let nodes = declare(&mut graph, &inputs)?;
    let output = ops::build(&mut graph, &operation, &nodes, &kwargs)?;
    graph.output("result", output);
    let graph = graph.finish().map_err(|error| Failure::fields(error.to_string()))?;
    Ok(Work { graph, inputs, device, reply })
}

/// Makes tensors the inputs of a graph.
///
/// # Errors
/// 422: a shape that no graph has.
pub(crate) fn declare(graph: &mut GraphBuilder, tensors: &[Tensor]) -> Result<Vec<NodeId>, Failure> {
    let input = |(i, tensor): (usize, &Tensor)| {
        let ty = TensorType { dtype: tensor.dtype, shape: Shape::fixed(&tensor.dims) };
        let declared = graph.input(&format!("x{i}"), InputRole::Argument, ty);
        declared.map_err(|error| {
            // The node's number is the door's own affair.
            let reason = match error {
                VerifyError::Type { source, .. } => source.to_string(),
                other => other.to_string(),
            };
            Failure::fields(format!("tensor {i} cannot be taken: {reason}"))
        })
    };
    tensors.iter().enumerate().map(input).collect()
}

fn set(place: &mut Option<String>, name: &str, text: &str) -> Result<(), Failure> {
    match place.replace(text.trim().to_owned()) {
        None => Ok(()),
        Some(_) => Err(Failure::fields(format!("'{name}' is given twice"))),
    }
}

/// `tensor_file`, and with a number behind it.
fn is_tensor(name: &str) -> bool {
    let number = name.strip_prefix("tensor_file").map(|rest| rest.strip_prefix('_').unwrap_or(rest));
    number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The tensor of a file that holds one, and its name there.
fn one(part: &Part, limits: &Limits) -> Result<(Format, Option<String>, Tensor), Failure> {
    let (format, contents) = read(&part.data, limits)?;
    let count = match contents {
        Contents::One(tensor) => return Ok((format, None, tensor)),
        Contents::Dict(mut entries) if format == Format::Safetensors && entries.len() == 1 => {
            let entry = entries.pop();
            let (name, tensor) = entry.ok_or_else(|| Failure::fields("the file holds no tensor"))?;
            return Ok((format, Some(name), tensor));
        }
        Contents::Dict(entries) => entries.len(),
        Contents::List(tensors) => tensors.len(),
    };
    let detail =
        format!("'{}' holds {count} tensors by name or in a list, but must hold one tensor", part.name.escape_debug());
    Err(Failure::fields(detail))
}
