//! Programs: defined, bound and run.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use genie_transport::client::{BindInputs, Binding, Cache, Input, Outputs, Program, RunOptions, Value};
use genie_transport::wire::{ContentHash, Handle, TensorSpec};

use crate::arguments::{Place, bytes, device, dims, dtype, optional, slice};
use crate::core::Core;
use crate::generate::{cache, genie_cache};
use crate::graph::{genie_graph, verified};
use crate::handles::Table;
use crate::session::{genie_session, sessions};
use crate::status::{Failure, entry, genie_error, genie_status};
use crate::tensor::{self, genie_tensor, genie_tensor_info};

/// A graph that the server has verified and planned. Freed by `genie_program_free`.
pub struct genie_program {
    _opaque: [u8; 0],
}

/// A program joined with what it reads: what runs. Freed by `genie_binding_free`.
pub struct genie_binding {
    _opaque: [u8; 0],
}

/// What a run gave. Freed by `genie_outputs_free`.
pub struct genie_outputs {
    _opaque: [u8; 0],
}

/// An input of a graph, and the tensor or cache on the server that it is bound to: one of the two, the other NULL.
#[repr(C)]
pub struct genie_bound {
    /// The input's node.
    pub input: u32,
    /// Zero.
    pub reserved: u32,
    /// A tensor: a weight, or an argument that each run reads as it then is.
    pub tensor: *const genie_tensor,
    /// A KV cache.
    pub cache: *const genie_cache,
}

/// An input of a graph, and its value, which goes with the request.
#[repr(C)]
pub struct genie_argument {
    /// The input's node: at most 65535.
    pub input: u32,
    /// Its elements: a `genie_dtype`.
    pub dtype: i32,
    /// How many dimensions.
    pub rank: usize,
    /// Outermost first.
    pub dims: *const u64,
    /// The elements, row-major.
    pub data: *const c_void,
}

/// How a binding runs. NULL instead of it: the first output comes back, whatever the cache's length.
#[repr(C)]
pub struct genie_run_options {
    /// Bit i: output i comes back.
    pub wanted: u64,
    /// Bit i: output i stays on the server, as a tensor.
    pub keep: u64,
    /// Not 0: the run fails if the cache has not `position` tokens.
    pub check_position: u32,
    /// See `check_position`.
    pub position: u32,
    /// Zeros.
    pub reserved: [u64; 2],
}

/// One output of a run.
#[repr(C)]
pub struct genie_output {
    /// Which output of the graph.
    pub index: u32,
    /// Zero.
    pub reserved: u32,
    /// The elements, row-major, `info.bytes` of them, if it came back: the outputs' own, valid until `genie_outputs_free`. NULL if it stayed
    /// on the server: `genie_outputs_take` gives its tensor.
    pub data: *const c_void,
    /// What it is.
    pub info: genie_tensor_info,
}

pub(crate) struct Defined {
    pub(crate) core: Arc<Core>,
    pub(crate) program: Program,
}

pub(crate) struct Bound {
    pub(crate) core: Arc<Core>,
    pub(crate) binding: Binding,
}

struct Ran {
    core: Arc<Core>,
    device: u16,
    position: u32,
    values: Vec<Given>,
}

enum Given {
    Here {
        index: u16,
        spec: TensorSpec,
        data: Vec<u8>,
    },
    /// `None` once C has it.
    There {
        index: u16,
        spec: TensorSpec,
        tensor: Mutex<Option<genie_transport::client::Tensor>>,
    },
}

static PROGRAMS: Table<Defined> = Table::new(4, "genie_program");
static BINDINGS: Table<Bound> = Table::new(5, "genie_binding");
static OUTPUTS: Table<Ran> = Table::new(6, "genie_outputs");

pub(crate) fn program(program: *const genie_program) -> Result<Arc<Defined>, Failure> {
    PROGRAMS.get(program)
}

pub(crate) fn binding(binding: *const genie_binding) -> Result<Arc<Bound>, Failure> {
    BINDINGS.get(binding)
}

/// Outputs, as C's.
pub(crate) fn add_outputs(core: &Arc<Core>, outputs: Outputs) -> Result<*mut genie_outputs, Failure> {
    let give = |value| {
        Ok(match value {
            Value::Inline { index, dtype, dims, data } => {
                Given::Here { index, spec: TensorSpec::new(dtype, &dims)?, data }
            }
            Value::Resident { index, tensor } => {
                Given::There { index, spec: tensor.spec.clone(), tensor: Mutex::new(Some(tensor)) }
            }
        })
    };
    let values = outputs.values.into_iter().map(give).collect::<Result<_, Failure>>()?;
    OUTPUTS.add(Ran { core: core.clone(), device: outputs.device, position: outputs.position, values })
}

/// What a run left on the server.
pub(crate) fn kept(outputs: &Outputs) -> impl Iterator<Item = Handle> {
    outputs.values.iter().filter_map(|value| match value {
        Value::Inline { .. } => None,
        Value::Resident { tensor, .. } => Some(tensor.handle),
    })
}

/// What goes with a request.
///
/// # Safety
/// What the pointers lead to is as the header says, and lives as long as the result.
pub(crate) unsafe fn arguments<'a>(start: *const genie_argument, count: usize) -> Result<Vec<Input<'a>>, Failure> {
    // SAFETY: the caller upholds it.
    let all = unsafe { slice(start, count, "arguments") }?;
    let one = |from: &genie_argument| {
        let index = u16::try_from(from.input);
        let index = index.map_err(|_| Failure::argument(format!("there is no input {}", from.input)))?;
        let dtype = dtype(from.dtype)?;
        // SAFETY: the caller upholds it.
        let dims = unsafe { dims(from.dims, from.rank) }?;
        let size = usize::try_from(TensorSpec::new(dtype, dims)?.bytes())
            .map_err(|_| Failure::argument("an argument is larger than any memory"))?;
        // SAFETY: the caller upholds it.
        Ok(Input { index, dtype, dims, data: unsafe { bytes(from.data, size, "an argument's data") }? })
    };
    all.iter().map(one).collect()
}

/// How to run.
///
/// # Safety
/// NULL, or initialised.
pub(crate) unsafe fn run_options(from: *const genie_run_options) -> Result<RunOptions, Failure> {
    // SAFETY: the caller upholds it.
    let Some(from) = unsafe { optional(from, "options") }? else { return Ok(RunOptions::default()) };
    if from.reserved != [0; 2] {
        return Err(Failure::argument("genie_run_options.reserved is not zero: begin with `= {0}`"));
    }
    let position = (from.check_position != 0).then_some(from.position);
    Ok(RunOptions { position, wanted: from.wanted, keep: from.keep })
}

/// Registers a graph with the server, for this device. `graph` stays the caller's, and can be defined on other sessions, too. `*program`
/// is the caller's, to be freed by `genie_program_free`. Errors: GENIE_ERROR_GRAPH with the verifier's words.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_define(
    session: *const genie_session,
    device: u32,
    graph: *const genie_graph,
    program: *mut *mut genie_program,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(program, "program") }?;
        define(session, device, &verified(graph)?.encode(), place)
    })
}

/// Registers an encoded graph of `size` bytes (`genie_graph_encode`, or another frontend's), as `genie_define`. `encoded` is read before
/// it returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_define_encoded(
    session: *const genie_session,
    device: u32,
    encoded: *const c_void,
    size: usize,
    program: *mut *mut genie_program,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results and for what is read.
        let (place, encoded) = unsafe { (Place::new(program, "program")?, bytes(encoded, size, "encoded")?) };
        define(session, device, encoded, place)
    })
}

fn define(
    session: *const genie_session,
    number: u32,
    encoded: &[u8],
    place: Place<*mut genie_program>,
) -> Result<(), Failure> {
    let (core, device) = (&sessions().get(session)?.core, device(number)?);
    let program = core.call(|s| Ok(s.start_define(device, encoded)), |s, pending| s.finish_define(pending))?;
    place.set(PROGRAMS.add(Defined { core: core.clone(), program })?);
    Ok(())
}

/// Registers a graph that the server has, by the 32 bytes of its hash (`genie_graph_hash`); GENIE_ERROR_NOT_FOUND if it has none: define
/// it then. `hash` is read before it returns. `*program` is the caller's, to be freed by `genie_program_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_define_known(
    session: *const genie_session,
    device: u32,
    hash: *const u8,
    program: *mut *mut genie_program,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results and for what is read: a hash has 32 bytes.
        let (place, hash) = unsafe { (Place::new(program, "program")?, slice(hash, 32, "hash")?) };
        let hash = hash.first_chunk().map(|hash| ContentHash(*hash)).ok_or_else(|| Failure::argument("hash"))?;
        let (core, device) = (&sessions().get(session)?.core, crate::arguments::device(device)?);
        let known = core.call(|s| Ok(s.start_define_known(device, hash)), |s, p| s.finish_define_known(p))?;
        let unknown = || Failure::new(genie_status::GENIE_ERROR_NOT_FOUND, "the server has no such graph: define it");
        place.set(PROGRAMS.add(Defined { core: core.clone(), program: known.ok_or_else(unknown)? })?);
        Ok(())
    })
}

/// Joins a program with `bound_count` tensors and caches of its session and `fixed_count` values that are the same in every run. What is
/// not bound goes with each run. All arrays are read before it returns; the tensors and caches stay the caller's, and may be freed: the
/// binding keeps what it needs of weights. `*binding` is the caller's, to be freed by `genie_binding_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_bind(
    program: *const genie_program,
    bound: *const genie_bound,
    bound_count: usize,
    fixed: *const genie_argument,
    fixed_count: usize,
    binding: *mut *mut genie_binding,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results and for what is read.
        let (place, bound, fixed) = unsafe {
            (Place::new(binding, "binding")?, slice(bound, bound_count, "bound")?, arguments(fixed, fixed_count)?)
        };
        let program = self::program(program)?;
        let core = &program.core;
        let residents = bound.iter().map(|b| Ok((b.input, resident(b, core)?))).collect::<Result<_, Failure>>()?;
        let inputs = BindInputs { weights: Vec::new(), residents, fixed };
        let bound = core.call(|s| s.start_bind(&program.program, &inputs), |s, pending| s.finish_bind(pending))?;
        place.set(BINDINGS.add(Bound { core: core.clone(), binding: bound })?);
        Ok(())
    })
}

fn resident(bound: &genie_bound, core: &Arc<Core>) -> Result<Handle, Failure> {
    if bound.reserved != 0 {
        return Err(Failure::argument("genie_bound.reserved is not zero: begin with `= {0}`"));
    }
    let (handle, theirs) = match (bound.tensor.is_null(), bound.cache.is_null()) {
        (false, true) => {
            let resident = tensor::get(bound.tensor)?;
            (resident.tensor.handle, resident.core.clone())
        }
        (true, false) => {
            let held = cache(bound.cache)?;
            let Cache(handle) = held.cache;
            (handle, held.core.clone())
        }
        _ => return Err(Failure::argument(format!("input {} is bound to a tensor or a cache: give one", bound.input))),
    };
    if !Arc::ptr_eq(&theirs, core) {
        return Err(Failure::argument(format!("input {} is bound to what another session has", bound.input)));
    }
    Ok(handle)
}

/// Runs a binding once, with `argument_count` inputs that were not bound, and waits for it. All arguments are read before it returns.
/// `*outputs` is the caller's, to be freed by `genie_outputs_free`. On an error of the server's no cache has grown.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_run(
    binding: *const genie_binding,
    arguments: *const genie_argument,
    argument_count: usize,
    options: *const genie_run_options,
    outputs: *mut *mut genie_outputs,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results and for what is read.
        let (place, inputs, options) = unsafe {
            (Place::new(outputs, "outputs")?, self::arguments(arguments, argument_count)?, run_options(options)?)
        };
        let bound = self::binding(binding)?;
        let run = |s: &mut genie_transport::client::blocking::Session| s.start_run(bound.binding, &inputs, options);
        let ran = bound.core.call(run, |s, pending| s.finish_run(pending))?;
        place.set(add_outputs(&bound.core, ran)?);
        Ok(())
    })
}

/// How many outputs a run gave, which device ran it, and the cache's length after it; each may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_outputs_count(
    outputs: *const genie_outputs,
    count: *mut usize,
    device: *mut u32,
    position: *mut u32,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        use crate::arguments::optional_place;
        // SAFETY: the header's rules for results.
        let (count, numbers) = unsafe {
            (
                optional_place(count, "count")?,
                [optional_place(device, "device")?, optional_place(position, "position")?],
            )
        };
        let ran = OUTPUTS.get(outputs)?;
        if let Some(count) = count {
            count.set(ran.values.len());
        }
        for (place, number) in numbers.into_iter().zip([ran.device.into(), ran.position]) {
            if let Some(place) = place {
                place.set(number);
            }
        }
        Ok(())
    })
}

/// One of a run's outputs: the i-th of those that were wanted or kept. `output->data` is the outputs' own, and valid until
/// `genie_outputs_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_outputs_at(
    outputs: *const genie_outputs,
    i: usize,
    output: *mut genie_output,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(output, "output") }?;
        let ran = OUTPUTS.get(outputs)?;
        let (index, spec, data) = match ran.at(i)? {
            Given::Here { index, spec, data } => (*index, spec, data.as_ptr().cast()),
            Given::There { index, spec, .. } => (*index, spec, std::ptr::null()),
        };
        place.set(genie_output { index: index.into(), reserved: 0, data, info: tensor::info(spec, ran.device) });
        Ok(())
    })
}

/// Takes an output that stayed on the server. `*tensor` is the caller's, to be freed by `genie_tensor_free`; what is not taken is freed
/// with the outputs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_outputs_take(
    outputs: *const genie_outputs,
    i: usize,
    tensor: *mut *mut genie_tensor,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(tensor, "tensor") }?;
        let ran = OUTPUTS.get(outputs)?;
        let Given::There { tensor, .. } = ran.at(i)? else {
            return Err(Failure::argument(format!("output {i} came back: it is no tensor of the server's")));
        };
        let taken = tensor.lock().unwrap_or_else(PoisonError::into_inner).take();
        let taken = taken.ok_or_else(|| Failure::argument(format!("output {i} was taken before")))?;
        place.set(tensor::add(&ran.core, taken)?);
        Ok(())
    })
}

impl Ran {
    fn at(&self, i: usize) -> Result<&Given, Failure> {
        let count = self.values.len();
        self.values.get(i).ok_or_else(|| Failure::argument(format!("there is no output {i}: the run gave {count}")))
    }
}

/// Frees a run's outputs, and on the server those that stayed there and were not taken. NULL is nothing, and is GENIE_OK.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_outputs_free(outputs: *mut genie_outputs, error: *mut genie_error) -> genie_status {
    entry(error, || {
        if outputs.is_null() {
            return Ok(());
        }
        let ran = OUTPUTS.remove(outputs)?;
        ran.values.iter().try_for_each(|given| {
            let Given::There { tensor, .. } = given else { return Ok(()) };
            let left = tensor.lock().unwrap_or_else(PoisonError::into_inner).take();
            left.map_or(Ok(()), |left| tensor::free(&ran.core, left.handle))
        })
    })
}

/// Frees a program, here and on the server; bindings of it go on. NULL is nothing, and so is one whose session is gone: GENIE_OK.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_program_free(program: *mut genie_program, error: *mut genie_error) -> genie_status {
    entry(error, || {
        if program.is_null() {
            return Ok(());
        }
        let defined = PROGRAMS.remove(program)?;
        tensor::free(&defined.core, defined.program.handle)
    })
}

/// Frees a binding, here and on the server. NULL is nothing, and so is one whose session is gone: GENIE_OK.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_binding_free(binding: *mut genie_binding, error: *mut genie_error) -> genie_status {
    entry(error, || {
        if binding.is_null() {
            return Ok(());
        }
        let bound = BINDINGS.remove(binding)?;
        let Binding(handle) = bound.binding;
        tensor::free(&bound.core, handle)
    })
}
