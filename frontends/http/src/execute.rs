//! `POST /execute`: one op.

use bytes::Bytes;
use genie_graph::{GraphBuilder, InputRole, NodeId, Shape, TensorType, VerifyError};
use genie_tensor_files::{Contents, Format, Tensor};
use serde_json::Value;

use crate::error::Failure;
use crate::form::Part;
use crate::kwargs::Kwargs;
use crate::ops;
use crate::request::{Files, Reply, Work};

/// Bytes of all fields that are no files. Parsed, JSON takes many times its bytes.
const MAX_TEXT: usize = 64 << 10;

/// What a form of this endpoint asks for.
pub(crate) fn read_form(parts: &[Part], files: &mut Files<'_>) -> Result<Work, Failure> {
    let form = Form::read(parts)?;
    let operation = form.operation.as_deref();
    let operation = operation.ok_or_else(|| Failure::fields("the field 'operation' is missing: the name of an op"))?;
    let op = ops::find(operation)?;
    let wanted = match form.format.as_deref() {
        None => None,
        Some(name) => Some(format_of(name)?),
    };
    if form.tensors.is_empty() && op.takes_tensors() {
        return Err(Failure::fields("the field 'tensor_file' is missing: a .pt, .npy or .safetensors file"));
    }
    op.check(form.tensors.len(), &form.kwargs)?;
    let (mut inputs, mut reply) = (Vec::new(), None);
    for (field, data) in &form.tensors {
        let (format, name, tensor) = one(field, data, files)?;
        reply.get_or_insert(Reply { format, name });
        inputs.push(tensor);
    }
    let mut reply = reply.unwrap_or(Reply { format: Format::Pt, name: None });
    if let Some(wanted) = wanted.filter(|wanted| *wanted != reply.format) {
        reply = Reply { format: wanted, name: None };
    }
    let mut graph = GraphBuilder::new("execute");
    let nodes = declare(&mut graph, &inputs)?;
    let output = op.build(&mut graph, &nodes, &form.kwargs)?;
    graph.output("result", output);
    let graph = graph.finish().map_err(|error| Failure::fields(error.to_string()))?;
    Ok(Work { graph, inputs, device: form.device, reply })
}

/// The fields, of whose files none is read yet.
#[derive(Default)]
struct Form<'a> {
    operation: Option<String>,
    device: Option<String>,
    format: Option<String>,
    kwargs: Kwargs,
    /// In the order of the op: by name and data.
    tensors: Vec<(&'a str, &'a Bytes)>,
}

impl<'a> Form<'a> {
    fn read(parts: &'a [Part]) -> Result<Self, Failure> {
        let mut form = Self::default();
        let (mut files, mut text) = (Vec::new(), 0);
        for part in parts {
            let name = part.name.as_str();
            if let Some(number) = tensor_number(name) {
                files.push((number?, name, &part.data));
                continue;
            }
            if part.is_file {
                let detail =
                    "a field with a file is 'tensor_file', or 'tensor_file_2' and so on for the ops that take several";
                return Err(Failure::fields(format!("'{}' is unknown: {detail}", name.escape_debug())));
            }
            text += name.len() + part.data.len();
            if text > MAX_TEXT {
                return Err(Failure::too_large(format!("the fields that are no files have over {MAX_TEXT} bytes")));
            }
            match name {
                "operation" => set(&mut form.operation, name, part.text()?)?,
                "device" => set(&mut form.device, name, part.text()?)?,
                "format" => set(&mut form.format, name, part.text()?)?,
                "kwargs" => match serde_json::from_str(part.text()?) {
                    Ok(Value::Object(object)) => form.kwargs.set_all(object)?,
                    Ok(Value::Null) => {}
                    _ => return Err(Failure::fields("'kwargs' must be a JSON object")),
                },
                name => form.kwargs.set_text(name, part.text()?)?,
            }
        }
        // Those of one number stay in the order in which they came.
        files.sort_by_key(|(number, ..)| *number);
        for two in files.windows(2) {
            if let [(a, first, _), (b, second, _)] = two
                && a == b
                && !(*first == BARE && *second == BARE)
            {
                return Err(Failure::fields(format!("'{first}' and '{second}' are the same place")));
            }
        }
        form.tensors = files.into_iter().map(|(_, name, data)| (name, data)).collect();
        Ok(form)
    }
}

/// The field of the first tensor, or of several in the order in which they come.
const BARE: &str = "tensor_file";

/// The place of a tensor among all, if the field is that of one: `tensor_file` is the first.
fn tensor_number(name: &str) -> Option<Result<u32, Failure>> {
    let number = name.strip_prefix(BARE)?;
    if number.is_empty() {
        return Some(Ok(1));
    }
    let number = number.strip_prefix('_').unwrap_or(number);
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let too_large = |_| Failure::fields("the number behind 'tensor_file' is too large");
    digits.then(|| number.parse().map_err(too_large))
}

fn format_of(name: &str) -> Result<Format, Failure> {
    let known = [Format::Pt, Format::Npy, Format::Safetensors];
    let found = known.into_iter().find(|format| format.extension() == name);
    found.ok_or_else(|| Failure::fields("'format' must be one of pt, npy and safetensors"))
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

/// The tensor of a file that holds one, and its name there.
fn one(field: &str, data: &Bytes, files: &mut Files<'_>) -> Result<(Format, Option<String>, Tensor), Failure> {
    let (format, contents) = files.read(data)?;
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
    let detail = format!("'{field}' holds {count} tensors by name or in a list, but must hold one tensor");
    Err(Failure::fields(detail))
}

#[cfg(test)]
#[path = "execute_tests.rs"]
mod tests;
