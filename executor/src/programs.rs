//! Programs, and programs joined with what they run on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use genie_graph::{DType, Dim, InputDecl, InputRole, Phase, Symbol, TensorType, VerifiedGraph};
use genie_transport::wire::{Argument, Arguments, BindEntry, ContentHash, ErrorCode, HandleSpan, RemoteError};

use crate::account::Charge;
use crate::buffers::Buffers;
use crate::caches::Cache;
use crate::device::{HostTensor, KvSpec, Loaded, Memory};
use crate::error::fail;
use crate::residents::{Content, Tensor};
use crate::scheduler::{Class, Pace};
use crate::session::{Object, Session};

/// Caches that one program may have.
const CACHES: usize = 16;

/// A verified graph, planned for a device. Sessions that define the same graph share it.
pub(crate) struct Program {
    pub(crate) graph: Arc<VerifiedGraph>,
    pub(crate) loaded: Arc<dyn Loaded>,
    pub(crate) device: u16,
    pub(crate) class: Class,
    /// How fast it runs prompts.
    pub(crate) pace: Pace,
    /// Place of each input by node id.
    places: HashMap<u32, Place>,
    /// Indices into the graph's inputs, by what the inputs are for.
    weights: Vec<usize>,
    pub(crate) caches: Vec<usize>,
    pub(crate) arguments: Vec<usize>,
    /// The argument that takes tokens.
    pub(crate) tokens: Option<usize>,
    /// The output that gives the next token: the first `i32 [Batch]`.
    pub(crate) sampled: Option<usize>,
    /// Sets of weights that bindings of it have, so that equal sets are the same set.
    sets: Mutex<Vec<Weak<WeightSet>>>,
    /// Tokens of a run, where the graph fixes them.
    pub(crate) step: Option<u64>,
}

/// Where an input's value comes from; with its index among its like.
#[derive(Clone, Copy, Debug)]
enum Place {
    Weight(usize),
    Cache(usize),
    Argument(usize),
    Positions,
}

/// The weights that a binding runs with. Runs with the same set can run as one batch.
pub(crate) struct WeightSet {
    pub(crate) memory: Vec<Memory>,
}

/// A program joined with residents and fixed arguments.
pub(crate) struct Binding {
    pub(crate) program: Arc<Program>,
    pub(crate) weights: Arc<WeightSet>,
    /// In the program's order.
    pub(crate) caches: Vec<Arc<Cache>>,
    /// Indices into `caches`, by the caches' numbers: the order in which they are taken.
    pub(crate) turns: Vec<usize>,
    /// Where each argument comes from, in the program's order.
    pub(crate) sources: Vec<Source>,
    /// Buffers of a run that has ended: with a cache there is one run at a time.
    pub(crate) spare: Mutex<Option<Box<Buffers>>>,
    /// What the session pays for as long as the binding holds it.
    _held: Vec<Arc<Content>>,
    _charge: Charge,
}

/// Where an argument comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// With each run.
    Run,
    /// Fixed when it was bound.
    Fixed(HostTensor),
    /// A resident, read as it is when the run begins.
    Resident(Arc<Tensor>),
}

impl Program {
    /// A program of a graph that a device has planned.
    pub(crate) fn new(
        graph: Arc<VerifiedGraph>,
        loaded: Arc<dyn Loaded>,
        device: u16,
    ) -> Result<Arc<Self>, RemoteError> {
        let mut places = HashMap::new();
        let (mut weights, mut caches, mut arguments, mut tokens) = (Vec::new(), Vec::new(), Vec::new(), None);
        for (i, input) in graph.inputs().iter().enumerate() {
            let (place, list) = match input.role {
                InputRole::Weight => (Place::Weight(weights.len()), &mut weights),
                InputRole::KvCache => (Place::Cache(caches.len()), &mut caches),
                InputRole::Positions => {
                    places.insert(input.node.0, Place::Positions);
                    continue;
                }
                role => {
                    if role == InputRole::Tokens {
                        tokens.get_or_insert(arguments.len());
                    }
                    (Place::Argument(arguments.len()), &mut arguments)
                }
            };
            list.push(i);
            places.insert(input.node.0, place);
        }
        if caches.len() > CACHES {
            return Err(fail(
                ErrorCode::BadGraph,
                format!("{} KV caches; at most {CACHES} are supported", caches.len()),
            ));
        }
        let is_token = |ty: &TensorType| ty.dtype == DType::I32 && ty.shape.0[..] == [Dim::Symbol(Symbol::Batch)];
        let sampled =
            graph.outputs.iter().position(|o| graph.nodes.get(o.node.0 as usize).is_some_and(|n| is_token(&n.ty)));
        let class = match graph.phase() {
            Phase::Decode => Class::Decode,
            _ => Class::Prefill,
        };
        let sets = Mutex::default();
        let pace = Pace::default();
        let step = graph.fixed_step();
        Ok(Arc::new(Self {
            step,
            graph,
            loaded,
            device,
            class,
            pace,
            places,
            weights,
            caches,
            arguments,
            tokens,
            sampled,
            sets,
        }))
    }

    /// The graph's content hash, as the wire has it.
    pub(crate) fn hash(&self) -> ContentHash {
        ContentHash(self.graph.hash().0)
    }

    /// What is declared of an argument.
    pub(crate) fn argument(&self, index: usize) -> Option<&InputDecl> {
        self.graph.inputs().get(*self.arguments.get(index)?)
    }

    /// The argument with this node id.
    pub(crate) fn argument_at(&self, node: u32) -> Result<usize, RemoteError> {
        match self.places.get(&node) {
            Some(Place::Argument(index)) => Ok(*index),
            Some(Place::Positions) => Err(bad(format!("input {node} takes positions, which the server fills in"))),
            Some(_) => Err(bad(format!("input {node} takes a resident: bind it"))),
            None => Err(bad(format!("node {node} is not an input of the program"))),
        }
    }

    /// What the cache input at a node must be.
    pub(crate) fn cache_spec(&self, node: u32) -> Result<KvSpec, RemoteError> {
        let Some(Place::Cache(_)) = self.places.get(&node) else {
            return Err(bad(format!("node {node} is not a KV cache of the program")));
        };
        let input = self.graph.inputs().iter().find(|i| i.node.0 == node);
        input.and_then(|i| KvSpec::of(&i.ty)).ok_or_else(|| bad(format!("input {node} has not the type of a KV cache")))
    }

    /// The weights of a bind that names all of them by spans, in the order of their node ids; nothing where it has no spans.
    pub(crate) fn weight_entries(
        &self,
        spans: &[HandleSpan],
        epoch: u64,
    ) -> Result<impl Iterator<Item = BindEntry>, RemoteError> {
        let (named, all) = (spans.iter().map(|span| u64::from(span.count)).sum::<u64>(), self.weights.len());
        if !spans.is_empty() && named != all as u64 {
            let message =
                format!("the spans name {named} weights, but the program has {all}: name all of them, or none");
            return Err(bad(message));
        }
        // The verifier lists inputs in the order of their nodes.
        let inputs = self.weights.iter().filter_map(|&input| self.graph.inputs().get(input));
        let handles = spans.iter().flat_map(move |span| span.handles(epoch));
        Ok(inputs.zip(handles).map(|(input, handle)| BindEntry { input: input.node.0, handle }))
    }

    fn share(&self, memory: Vec<Memory>) -> Arc<WeightSet> {
        let is_same = |set: &WeightSet| {
            let mut pairs = set.memory.iter().zip(&memory);
            set.memory.len() == memory.len() && pairs.all(|(a, b)| a.address() == b.address() && a.len() == b.len())
        };
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        sets.retain(|set| set.strong_count() > 0);
        if let Some(set) = sets.iter().filter_map(Weak::upgrade).find(|set| is_same(set)) {
            return set;
        }
        let set = Arc::new(WeightSet { memory });
        sets.push(Arc::downgrade(&set));
        set
    }
}

impl Binding {
    /// Joins a program with a session's residents and with arguments that stay the same for every run.
    ///
    /// Every weight and every cache must be bound, each input once. A private resident that is bound as a weight counts as it
    /// is now, whatever is put into it later; one that is bound as an argument is read anew by each run.
    pub(crate) fn new(
        session: &Session,
        program: Arc<Program>,
        bound: &[BindEntry],
        fixed: Arguments<'_>,
    ) -> Result<Arc<Self>, RemoteError> {
        let mut weights: Vec<Option<Arc<Content>>> = vec![None; program.weights.len()];
        let mut caches: Vec<Option<Arc<Cache>>> = vec![None; program.caches.len()];
        let mut sources: Vec<Source> = program.arguments.iter().map(|_| Source::Run).collect();
        for entry in bound {
            let object = session.object(entry.handle)?;
            let place = program.places.get(&entry.input).copied();
            let decl = program.graph.inputs().iter().find(|i| i.node.0 == entry.input);
            let (Some(place), Some(decl)) = (place, decl) else {
                return Err(bad(format!("node {} is not an input of the program", entry.input)));
            };
            match (place, object) {
                (Place::Weight(i), Object::Tensor(tensor)) => {
                    fits(&program, decl, &tensor)?;
                    let content = match decl.ty.dtype {
                        // Indices are checked, and then used: the client must not change them in between.
                        DType::I32 | DType::I64 => tensor.own_content()?,
                        _ => tensor.content(),
                    };
                    set(&mut weights[i], content, decl)?;
                }
                (Place::Cache(i), Object::Cache(cache)) => {
                    cache_fits(&program, decl, &cache)?;
                    set(&mut caches[i], cache, decl)?;
                }
                (Place::Argument(i), Object::Tensor(tensor)) => {
                    fits(&program, decl, &tensor)?;
                    bind_source(&mut sources[i], Source::Resident(tensor), decl)?;
                }
                (Place::Positions, _) => {
                    return Err(bad(format!("input `{}` takes positions, which the server fills in", decl.name)));
                }
                (Place::Cache(_), _) => return Err(wrong_type(decl, "a KV cache")),
                (_, _) => return Err(wrong_type(decl, "a tensor")),
            }
        }
        let mut fixed_bytes = 0;
        for argument in fixed.iter() {
            let (index, tensor) = inline(&argument)?;
            let i = program.argument_at(u32::from(index))?;
            let Some(decl) = program.argument(i) else { continue };
            fits_type(decl, tensor.dtype, &tensor.dims)?;
            fixed_bytes += tensor.data.len() as u64;
            bind_source(&mut sources[i], Source::Fixed(tensor), decl)?;
        }
        let held = all(&program, &program.weights, weights)?;
        let caches = all(&program, &program.caches, caches)?;
        let mut turns: Vec<usize> = (0..caches.len()).collect();
        turns.sort_by_key(|&i| caches[i].number);
        if turns.windows(2).any(|pair| caches[pair[0]].number == caches[pair[1]].number) {
            return Err(bad("one KV cache is bound to two inputs".to_owned()));
        }
        let charge = session.account.charge(fixed_bytes)?;
        let weights = program.share(held.iter().map(|content| content.memory.clone()).collect());
        let spare = Mutex::default();
        Ok(Arc::new(Self { program, weights, caches, turns, sources, spare, _held: held, _charge: charge }))
    }

    /// Whether two bindings have the same caches, in whatever order.
    pub(crate) fn shares_caches(&self, other: &Self) -> bool {
        let numbers = |b: &Self| b.turns.iter().map(|&i| b.caches[i].number).collect::<Vec<_>>();
        numbers(self) == numbers(other)
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("name", &self.graph.name).field("device", &self.device).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Binding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Binding").field("program", &self.program).finish_non_exhaustive()
    }
}

/// Sizes of symbols, as far as they are known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    pub(crate) batch: Option<u64>,
    pub(crate) sequence: Option<u64>,
    pub(crate) position: Option<u64>,
}

impl Known {
    /// Learns from an argument's dimensions; an error says what does not fit the declared type.
    pub(crate) fn unify(&mut self, decl: &InputDecl, dtype: DType, dims: &[u64]) -> Result<(), RemoteError> {
        let shape = &decl.ty.shape.0;
        let fits = dtype == decl.ty.dtype
            && dims.len() == shape.len()
            && shape.iter().zip(dims).all(|(dim, &size)| match dim {
                Dim::Fixed(n) => *n == size,
                Dim::Symbol(symbol) => {
                    let known = match symbol {
                        Symbol::Batch => &mut self.batch,
                        Symbol::Sequence => &mut self.sequence,
                        Symbol::Position => &mut self.position,
                    };
                    *known.get_or_insert(size) == size
                }
            });
        if fits {
            return Ok(());
        }
        let ty = &decl.ty;
        Err(bad(format!("input `{}` takes {} {}, but got {dtype} {dims:?}", decl.name, ty.dtype, ty.shape)))
    }
}

/// What is wrong with an argument.
pub(crate) fn bad(message: String) -> RemoteError {
    fail(ErrorCode::BadArgument, message)
}

/// An argument that came with its bytes.
fn inline(argument: &Argument<'_>) -> Result<(u16, HostTensor), RemoteError> {
    match argument {
        Argument::Inline { index, dtype, dims, data } => {
            let tensor = HostTensor { dtype: Some(*dtype), dims: dims.as_slice().to_vec(), data: data.to_vec() };
            Ok((*index, tensor))
        }
        Argument::Resident { .. } => {
            Err(bad("a fixed argument names a tensor: name it among the residents".to_owned()))
        }
        Argument::TokenOf { .. } => Err(bad("another run's token is fixed for none: give it with the run".to_owned())),
    }
}

fn set<T>(place: &mut Option<T>, value: T, decl: &InputDecl) -> Result<(), RemoteError> {
    if place.is_some() {
        return Err(twice(decl));
    }
    *place = Some(value);
    Ok(())
}

fn bind_source(place: &mut Source, value: Source, decl: &InputDecl) -> Result<(), RemoteError> {
    if !matches!(place, Source::Run) {
        return Err(twice(decl));
    }
    *place = value;
    Ok(())
}

fn twice(decl: &InputDecl) -> RemoteError {
    bad(format!("input `{}` is bound twice", decl.name))
}

fn wrong_type(decl: &InputDecl, wanted: &str) -> RemoteError {
    fail(ErrorCode::WrongType, format!("input `{}` takes {wanted}, but the handle names something else", decl.name))
}

/// Every value, or which input was left out.
fn all<T>(program: &Program, inputs: &[usize], values: Vec<Option<T>>) -> Result<Vec<T>, RemoteError> {
    let mut found = Vec::with_capacity(values.len());
    for (value, &input) in values.into_iter().zip(inputs) {
        let name = program.graph.inputs().get(input).map_or("", |i| &i.name);
        found.push(value.ok_or_else(|| bad(format!("input `{name}` is not bound")))?);
    }
    Ok(found)
}

/// Whether a tensor can be this input.
pub(crate) fn fits(program: &Program, decl: &InputDecl, tensor: &Tensor) -> Result<(), RemoteError> {
    if tensor.device != program.device {
        let (there, here) = (tensor.device, program.device);
        return Err(bad(format!("input `{}` is on device {there}, the program on {here}: copy it there", decl.name)));
    }
    fits_type(decl, Some(tensor.spec.dtype()), tensor.spec.dims())
}

fn fits_type(decl: &InputDecl, dtype: Option<DType>, dims: &[u64]) -> Result<(), RemoteError> {
    let dtype = dtype.ok_or_else(|| bad(format!("input `{}` has no element type", decl.name)))?;
    Known::default().unify(decl, dtype, dims)
}

fn cache_fits(program: &Program, decl: &InputDecl, cache: &Cache) -> Result<(), RemoteError> {
    if cache.device != program.device {
        let (there, here) = (cache.device, program.device);
        return Err(bad(format!("cache `{}` is on device {there}, the program on {here}", decl.name)));
    }
    match KvSpec::of(&decl.ty) {
        Some(spec) if spec == cache.spec => Ok(()),
        Some(spec) => Err(bad(format!("cache `{}` must be of {spec}, but is of {}", decl.name, cache.spec))),
        None => Err(bad(format!("input `{}` has not the type of a KV cache", decl.name))),
    }
}
