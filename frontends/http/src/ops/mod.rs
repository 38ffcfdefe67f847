//! Ops by the names that PyTorch has for them, and how each is written as a graph.
//!
//! A family of ops is a module with a table; a new op is a line in one of them. [`Call`] is what the lines are written with.

mod call;
mod compare;
mod create;
mod elementwise;
mod image;
mod layout;
mod matrix;
mod order;
mod promote;
mod reduce;
mod unary;

use axum::http::StatusCode;
use genie_graph::{GraphBuilder, NodeId};

use crate::error::Failure;
use crate::kwargs::Kwargs;

use call::Call;

/// An op as clients name it.
pub(crate) struct Def {
    /// Its name, and others for it.
    pub(crate) names: &'static [&'static str],
    /// How many tensors it takes: at the least, at the most.
    pub(crate) inputs: (usize, usize),
    /// The keyword arguments that it takes.
    pub(crate) kwargs: &'static [&'static str],
    /// Writes it.
    pub(crate) build: fn(&mut Call<'_>) -> Result<NodeId, Failure>,
}

/// As many as a graph takes.
const MANY: usize = 64;

const TABLES: [&[Def]; 9] = [
    unary::TABLE,
    elementwise::TABLE,
    compare::TABLE,
    matrix::TABLE,
    reduce::TABLE,
    order::TABLE,
    layout::TABLE,
    image::TABLE,
    create::TABLE,
];

/// What may stand before a name, the longest first, and whether it is that of PyTorch's own operators: a few of those have their
/// tensors in another order than the functions for networks, which a bare name stands for.
const PREFIXES: [(&str, bool); 5] =
    [("torch.nn.functional.", false), ("torch.ops.aten.", true), ("aten::", true), ("aten.", true), ("torch.", true)];

fn all() -> impl Iterator<Item = &'static Def> {
    TABLES.into_iter().flatten()
}

/// The names of all ops, in order.
pub(crate) fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = all().flat_map(|def| def.names).copied().collect();
    names.sort_unstable();
    names
}

/// An op that was asked for by a name that it has.
#[derive(Clone, Copy)]
pub(crate) struct Found<'a> {
    def: &'static Def,
    name: &'a str,
    /// By the name of PyTorch's own operator.
    native: bool,
}

/// The op of this name.
///
/// # Errors
/// 400 with the list of ops for one that there is not.
pub(crate) fn find(operation: &str) -> Result<Found<'_>, Failure> {
    // As PyTorch's dispatcher writes them: aten::add.Tensor, torch.relu.
    let prefixed = PREFIXES.iter().find_map(|(prefix, native)| Some((operation.strip_prefix(prefix)?, *native)));
    let (name, native) = prefixed.unwrap_or((operation, false));
    let name = name.split_once('.').map_or(name, |(name, _overload)| name);
    match all().find(|def| def.names.contains(&name)) {
        Some(def) => Ok(Found { def, name, native }),
        None => {
            let shown: String = operation.chars().take(64).collect();
            let detail = format!("there is no op '{}'; the list of ops is in 'operations'", shown.escape_debug());
            let more = Some(("operations", names().into()));
            Err(Failure { more, ..Failure::new(StatusCode::BAD_REQUEST, detail) })
        }
    }
}

impl Found<'_> {
    /// Whether it takes any tensors.
    pub(crate) fn takes_tensors(&self) -> bool {
        self.def.inputs.0 > 0
    }

    /// Whether it takes so many tensors, and arguments of these names.
    ///
    /// # Errors
    /// 422: it does not.
    pub(crate) fn check(&self, inputs: usize, kwargs: &Kwargs) -> Result<(), Failure> {
        let Self { def, name, .. } = self;
        let (least, most) = def.inputs;
        if !(least..=most).contains(&inputs) {
            let wanted = if least == most { least.to_string() } else { format!("{least} to {most}") };
            return Err(Failure::fields(format!("'{name}' takes {wanted} tensor(s), not {inputs}")));
        }
        if let Some(odd) = kwargs.0.keys().find(|key| !def.kwargs.contains(&key.as_str())) {
            let takes = if def.kwargs.is_empty() { "none".to_owned() } else { def.kwargs.join(", ") };
            let odd = odd.escape_debug();
            return Err(Failure::fields(format!("'{name}' takes no argument '{odd}'; it takes: {takes}")));
        }
        Ok(())
    }

    /// Writes it, of these nodes, into a graph.
    ///
    /// # Errors
    /// 422 for arguments that it does not take.
    pub(crate) fn build(
        &self,
        graph: &mut GraphBuilder,
        inputs: &[NodeId],
        kwargs: &Kwargs,
    ) -> Result<NodeId, Failure> {
        self.check(inputs.len(), kwargs)?;
        (self.def.build)(&mut Call { name: self.name, native: self.native, graph, inputs, kwargs })
    }
}

#[cfg(test)]
mod tests;
