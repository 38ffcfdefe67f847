//! `POST /execute_subgraph`: several ops, of which one's result comes back.

use std::collections::{HashMap, HashSet};

use genie_graph::{GraphBuilder, NodeId, VerifiedGraph};
use genie_tensor_files::{Contents, Format, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::Failure;
use crate::execute::declare;
use crate::form::Part;
use crate::kwargs::Kwargs;
use crate::ops;
use crate::request::{Files, Reply, Work};

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
    kwargs: Option<Map<String, Value>>,
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

/// A tensor of the request, and its name if it came with one.
struct Given {
    name: Option<String>,
    tensor: Tensor,
}

/// An op that there is, with what it reads.
struct Step<'a> {
    id: String,
    op: ops::Found<'a>,
    inputs: Vec<String>,
    kwargs: Kwargs,
}

/// What a form of this endpoint asks for.
pub(crate) fn read_form(parts: &[Part], files: &mut Files<'_>) -> Result<Work, Failure> {
    let mut request = None;
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
            "tensors" => {}
            other => {
                let detail = "the fields are 'request' and 'tensors'";
                return Err(Failure::fields(format!("'{}' is unknown: {detail}", other.escape_debug())));
            }
        }
    }
    let Request { operations, input_tensors, output_id, device } =
        request.ok_or_else(|| Failure::fields("the field 'request' is missing: JSON with operations and output_id"))?;
    let steps = steps(&operations)?;
    let (mut format, mut tensors) = (None, Vec::new());
    for part in parts.iter().filter(|part| part.name == "tensors") {
        let (one, contents) = files.read(&part.data)?;
        format.get_or_insert(one);
        match contents {
            Contents::One(tensor) => tensors.push(Given { name: None, tensor }),
            Contents::List(all) => tensors.extend(all.into_iter().map(|tensor| Given { name: None, tensor })),
            Contents::Dict(entries) => {
                tensors.extend(entries.into_iter().map(|(name, tensor)| Given { name: Some(name), tensor }));
            }
        }
        if tensors.len() > files.tensors() {
            return Err(Failure::too_large(format!("there are more than {} tensors", files.tensors())));
        }
    }
    let places = places(input_tensors.as_ref(), &tensors)?;
    let (graph, inputs) = write(&steps, &output_id.text(), &tensors, &places)?;
    Ok(Work { graph, inputs, device, reply: Reply { format: format.unwrap_or(Format::Pt), name: None } })
}

/// The ops, before any file is read for them.
fn steps(operations: &[Operation]) -> Result<Vec<Step<'_>>, Failure> {
    if operations.len() > MAX_OPERATIONS {
        return Err(Failure::fields(format!("there are more than {MAX_OPERATIONS} operations")));
    }
    operations.iter().map(step).collect()
}

fn step(operation: &Operation) -> Result<Step<'_>, Failure> {
    let inputs: Vec<_> = operation.inputs.iter().map(Id::text).collect();
    let kwargs = Kwargs(operation.kwargs.clone().unwrap_or_default());
    let id = operation.op_id.text();
    let op = ops::find(&operation.operation).and_then(|op| op.check(inputs.len(), &kwargs).map(|()| op));
    Ok(Step { op: op.map_err(|failure| of_step(&id, failure))?, id, inputs, kwargs })
}

fn of_step(id: &str, failure: Failure) -> Failure {
    // The end of a detail is cut, and it is what matters here.
    let shown: String = id.chars().take(64).collect();
    Failure { detail: format!("operation '{}': {}", shown.escape_debug(), failure.detail), ..failure }
}

/// Writes the graph, with as many inputs as it reads: each once, whatever ids it has.
fn write(
    steps: &[Step<'_>],
    output: &str,
    tensors: &[Given],
    places: &HashMap<String, usize>,
) -> Result<(VerifiedGraph, Vec<Tensor>), Failure> {
    // The inputs are the first nodes, in the order in which they are read first.
    let (mut seen, mut used) = (HashSet::new(), Vec::new());
    for place in steps.iter().flat_map(|step| &step.inputs).filter_map(|id| places.get(id)) {
        if seen.insert(*place) {
            used.push(*place);
        }
    }
    let inputs: Vec<_> =
        used.iter().filter_map(|place| tensors.get(*place)).map(|given| given.tensor.clone()).collect();
    let mut graph = GraphBuilder::new("subgraph");
    let declared: HashMap<_, _> = used.into_iter().zip(declare(&mut graph, &inputs)?).collect();
    let mut nodes: HashMap<&str, NodeId> = HashMap::new();
    for (id, place) in places {
        if let Some(node) = declared.get(place) {
            nodes.insert(id, *node);
        }
    }
    for step in steps {
        let shown = step.id.escape_debug();
        let known = |input: &String| {
            let missing = || {
                let detail = "which is neither a tensor nor an operation before it";
                Failure::fields(format!("operation '{shown}' reads '{}', {detail}", input.escape_debug()))
            };
            nodes.get(input.as_str()).copied().ok_or_else(missing)
        };
        let read = step.inputs.iter().map(known).collect::<Result<Vec<_>, _>>()?;
        let node = step.op.build(&mut graph, &read, &step.kwargs).map_err(|failure| of_step(&step.id, failure))?;
        if places.contains_key(&step.id) || nodes.insert(&step.id, node).is_some() {
            return Err(Failure::fields(format!("the id '{shown}' is given twice")));
        }
    }
    let result = nodes.get(output).copied().filter(|_| !places.contains_key(output));
    let missing =
        || Failure::fields(format!("'output_id' is '{}', but no operation has that id", output.escape_debug()));
    graph.output("result", result.ok_or_else(missing)?);
    let graph = graph.finish().map_err(|error| Failure::fields(error.to_string()))?;
    Ok((graph, inputs))
}

/// The place of each input among the tensors, by its id.
fn places(inputs: Option<&InputTensors>, tensors: &[Given]) -> Result<HashMap<String, usize>, Failure> {
    // A tensor without a name is called by its place.
    let name = |place: usize, given: &Given| given.name.clone().unwrap_or_else(|| place.to_string());
    let mut places = HashMap::new();
    let mut set = |id: String, place: usize| match places.insert(id.clone(), place) {
        None => Ok(()),
        Some(_) => Err(Failure::fields(format!("two tensors have the id '{}'", id.escape_debug()))),
    };
    match inputs {
        None => tensors.iter().enumerate().try_for_each(|(place, given)| set(name(place, given), place))?,
        Some(InputTensors::Order(ids)) => {
            if ids.len() != tensors.len() {
                let detail = format!("'input_tensors' has {} ids, but 'tensors' has {}", ids.len(), tensors.len());
                return Err(Failure::fields(detail));
            }
            // Files keep names, and not always the order in which they were given.
            let names: HashMap<_, _> =
                (0..).zip(tensors).filter_map(|(place, given)| Some((given.name.as_deref()?, place))).collect();
            let by_name = names.len() == tensors.len() && ids.iter().all(|id| names.contains_key(id.text().as_str()));
            for (place, id) in ids.iter().map(Id::text).enumerate() {
                let place = names.get(id.as_str()).copied().filter(|_| by_name).unwrap_or(place);
                set(id, place)?;
            }
        }
        Some(InputTensors::Names(names)) => {
            let known: HashMap<_, _> =
                tensors.iter().enumerate().rev().map(|(place, given)| (name(place, given), place)).collect();
            for (id, name) in names {
                let place = known.get(&name.text()).copied().or_else(|| match name {
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

#[cfg(test)]
#[path = "subgraph_tests.rs"]
mod tests;
