//! `POST /execute_subgraph`: several ops, of which one's result comes back.

use std::collections::HashMap;

use genie_graph::{GraphBuilder, NodeId};
use genie_tensor_files::{Contents, Format, Limits, Tensor, read};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::Failure;
use crate::execute::declare;
use crate::form::Part;
use crate::kwargs::Kwargs;
use crate::ops;
use crate::request::{Reply, Work};

/// Bytes of the JSON.
const MAX_JSON: usize = 1 << 20;
/// Ops of one request.
const MAX_OPERATIONS: usize = 4096;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    operations: Vec<Operation>,
    #[serde(default)]
    input_tensors: Option<InputTensors>,
    output_id: Id,
    #[serde(default)]
    device: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Operation {
    op_id: Id,
    operation: String,
    inputs: Vec<Id>,
    #[serde(default)]
    kwargs: Map<String, Value>,
}

/// A number or a word: 3 and "3" are the same.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Number(i64),
    Word(String),
}

/// Which tensor is which.
#[derive(Deserialize)]
#[serde(untagged)]
enum InputTensors {
    /// The ids of the tensors, in their order.
    Order(Vec<Id>),
    /// By id: its name in the file, or its place.
    Names(HashMap<String, Id>),
}

impl Id {
    fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Word(word) => word.clone(),
        }
    }
}

/// What a form of this endpoint asks for.
pub(crate) fn read_form(parts: &[Part], limits: &Limits) -> Result<Work, Failure> {
    let (mut request, mut format) = (None, None);
    let mut tensors = Vec::new();
    for part in parts {
        match part.name.as_str() {
            "request" => {
                if part.data.len() > MAX_JSON {
                    return Err(Failure::too_large(format!("'request' has over {MAX_JSON} bytes")));
                }
                let parsed: Request = serde_json::from_slice(&part.data)
                    .map_err(|error| Failure::fields(format!("'request' is not what it should be: {error}")))?;
                if request.replace(parsed).is_some() {
                    return Err(Failure::fields("'request' is given twice"));
                }
            }
            "tensors" => {
                let (one, contents) = read(&part.data, limits)?;
                format.get_or_insert(one);
                add(&mut tensors, contents);
                if tensors.len() > limits.tensors {
                    return Err(Failure::too_large(format!("there are more than {} tensors", limits.tensors)));
                }
            }
            other => {
                let detail = "the fields are 'request' and 'tensors'";
                return Err(Failure::fields(format!("'{}' is unknown: {detail}", other.escape_debug())));
            }
        }
    }
    let request =
        request.ok_or_else(|| Failure::fields("the field 'request' is missing: JSON with operations and output_id"))?;
    let format =
        format.ok_or_else(|| Failure::fields("the field 'tensors' is missing: a .pt, .npy or .safetensors file"))?;
    write(&request, tensors, format)
}

/// Adds what a file holds. A tensor without a name is called by its place.
fn add(tensors: &mut Vec<(String, Tensor)>, contents: Contents) {
    let first = tensors.len();
    match contents {
        Contents::One(tensor) => tensors.push((first.to_string(), tensor)),
        Contents::List(all) => {
            tensors.extend((first..).zip(all).map(|(place, tensor)| (place.to_string(), tensor)));
        }
        Contents::Dict(entries) => tensors.extend(entries),
    }
}

/// Writes the graph, with as many inputs as it reads.
fn write(request: &Request, tensors: Vec<(String, Tensor)>, format: Format) -> Result<Work, Failure> {
    if request.operations.len() > MAX_OPERATIONS {
        return Err(Failure::fields(format!("there are more than {MAX_OPERATIONS} operations")));
    }
    let places = places(request.input_tensors.as_ref(), &tensors)?;
    // The inputs are the first nodes, in the order in which they are read first.
    let mut used: Vec<(String, Tensor)> = Vec::new();
    let mut nodes: HashMap<String, NodeId> = HashMap::new();
    for id in request.operations.iter().flat_map(|operation| &operation.inputs).map(Id::text) {
        let Some((_, tensor)) = places.get(&id).and_then(|place| tensors.get(*place)) else { continue };
        if !nodes.contains_key(&id) {
            // Its node is known when it is declared.
            nodes.insert(id.clone(), NodeId(0));
            used.push((id, tensor.clone()));
        }
    }
    let (ids, inputs): (Vec<_>, Vec<_>) = used.into_iter().unzip();
    let mut graph = GraphBuilder::new("subgraph");
    for (id, node) in ids.into_iter().zip(declare(&mut graph, &inputs)?) {
        nodes.insert(id, node);
    }
    for operation in &request.operations {
        let id = operation.op_id.text();
        let shown = id.escape_debug();
        let known = |input: &Id| {
            let input = input.text();
            let missing = || {
                let detail = "which is neither a tensor nor an operation before it";
                Failure::fields(format!("operation '{shown}' reads '{}', {detail}", input.escape_debug()))
            };
            nodes.get(&input).copied().ok_or_else(missing)
        };
        let read = operation.inputs.iter().map(known).collect::<Result<Vec<_>, _>>()?;
        let built = ops::build(&mut graph, &operation.operation, &read, &Kwargs(operation.kwargs.clone()));
        let node = built
            .map_err(|failure| Failure { detail: format!("operation '{shown}': {}", failure.detail), ..failure })?;
        if places.contains_key(&id) || nodes.insert(id.clone(), node).is_some() {
            return Err(Failure::fields(format!("the id '{shown}' is given twice")));
        }
    }
    let output = request.output_id.text();
    let result = nodes.get(&output).copied().filter(|_| !places.contains_key(&output));
    let missing =
        || Failure::fields(format!("'output_id' is '{}', but no operation has that id", output.escape_debug()));
    graph.output("result", result.ok_or_else(missing)?);
    let graph = graph.finish().map_err(|error| Failure::fields(error.to_string()))?;
    Ok(Work { graph, inputs, device: request.device.clone(), reply: Reply { format, name: None } })
}

/// The place of each input among the tensors, by its id.
fn places(inputs: Option<&InputTensors>, tensors: &[(String, Tensor)]) -> Result<HashMap<String, usize>, Failure> {
    let by_name = |name: &str| tensors.iter().position(|(other, _)| other == name);
    let mut places = HashMap::new();
    let mut set = |id: String, place: usize| match places.insert(id.clone(), place) {
        None => Ok(()),
        Some(_) => Err(Failure::fields(format!("two tensors have the id '{}'", id.escape_debug()))),
    };
    match inputs {
        None => tensors.iter().enumerate().try_for_each(|(place, (name, _))| set(name.clone(), place))?,
        Some(InputTensors::Order(ids)) => {
            if ids.len() != tensors.len() {
                let detail = format!("'input_tensors' has {} ids, but 'tensors' has {}", ids.len(), tensors.len());
                return Err(Failure::fields(detail));
            }
            ids.iter().enumerate().try_for_each(|(place, id)| set(id.text(), place))?;
        }
        Some(InputTensors::Names(names)) => {
            for (id, name) in names {
                let place = by_name(&name.text()).or_else(|| match name {
                    Id::Number(place) => usize::try_from(*place).ok().filter(|place| *place < tensors.len()),
                    Id::Word(_) => None,
                });
                let missing = || Failure::fields(format!("'tensors' holds no '{}'", name.text().escape_debug()));
                set(id.clone(), place.ok_or_else(missing)?)?;
            }
        }
    }
    Ok(places)
}
