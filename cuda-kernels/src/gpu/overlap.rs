//! Whether kernels that begin before those before them have ended compute the same on a GPU: tried when it is opened, as everything
//! rests on it.

use genie_graph::{DType, LinearLayout};

use super::{Gpu, GpuError, Stream};
use crate::kernel::Launch;
use crate::launch::create::{fill, randn};
use crate::launch::elementwise::{Unary, unary};
use crate::launch::epilogue::{Epilogue, Prologue};
use crate::launch::matvec::Matvec;
use crate::launch::weight::Weight;
use crate::launch::workspace::{Machine, ZEROED_BYTES};
use crate::view::{Address, View};

/// Says 0 where kernels shall run one after another.
#[cfg(feature = "cuda")]
const VARIABLE: &str = "GENIE_CUDA_OVERLAP";

/// Elements of the vector that goes through the chain, for each multiprocessor and in all: so many columns are a tile for each, and
/// a few microseconds' work.
const COLUMNS: u64 = 32;
const LEAST_WIDTH: u64 = 256;
const MOST_WIDTH: u64 = 4096;
/// Products in the chain. Each has a kernel of one block behind it, and needs all of what that one wrote.
const PRODUCTS: usize = 12;
/// How often the chain is replayed.
const REPLAYS: usize = 2;

/// Whether it is wanted: it is, unless the environment says `GENIE_CUDA_OVERLAP=0`.
#[cfg(feature = "cuda")]
pub(super) fn is_wanted() -> bool {
    std::env::var_os(VARIABLE).is_none_or(|value| value != "0")
}

/// Puts a chain of kernels, each of which needs what the one before it wrote, into the kernels' stream: one after another, right
/// behind each other ([`Gpu::launch_behind`]), and so in a graph. Whether all gave the same bytes.
///
/// # Errors
/// [`GpuError`]: it could not be tried. A sticky one has ended everything on the GPU.
pub fn try_overlap(gpu: &dyn Gpu) -> Result<bool, GpuError> {
    let chain = Chain::new(gpu)?;
    // SAFETY: what the launches touch is the chain's, which waits for them before it goes.
    let apart = chain.result(|launch, _| unsafe { gpu.launch(Stream::Compute, launch) })?;
    let behind = |launch: &Launch, first: bool| {
        // SAFETY: as above; all but the first follow a launch.
        unsafe { if first { gpu.launch(Stream::Compute, launch) } else { gpu.launch_behind(Stream::Compute, launch) } }
    };
    let mut same = chain.result(behind)? == apart;
    let graph = gpu.capture(&mut || chain.put(behind))?;
    for _ in 0..REPLAYS {
        chain.spoil()?;
        // SAFETY: as above.
        unsafe { gpu.replay(&graph) }?;
        same &= chain.fetch()? == apart;
    }
    Ok(same)
}

/// The chain and what it works on.
struct Chain<'a> {
    gpu: &'a dyn Gpu,
    memory: Address,
    /// What goes through it, at its beginning and its end.
    x: View,
    begin: Launch,
    links: Vec<Launch>,
}

impl<'a> Chain<'a> {
    fn new(gpu: &'a dyn Gpu) -> Result<Self, GpuError> {
        let width = (COLUMNS * u64::from(gpu.properties().multiprocessors)).clamp(LEAST_WIDTH, MOST_WIDTH);
        let (square, row) = (width * width * 2, width * 2);
        let machine = Machine { sms: gpu.properties().multiprocessors, shared: gpu.properties().shared_bytes };
        let floats = |at: Address, elements: u64| View::new(at, DType::BF16, elements);
        let product = |at: Address| {
            let weight = Weight::plain(floats(at, width * width), LinearLayout::OutIn).with_constant(true);
            let (x, y) = (floats(at + square, width), floats(at + square + row, width));
            let norm = Prologue::RmsNorm { eps: 1e-6, weight: floats(at + square + 2 * row, width) };
            Matvec {
                x,
                x_as: DType::BF16,
                y,
                weight,
                gate: None,
                prologue: norm,
                epilogue: Epilogue::default(),
                ahead: None,
                rows: 1,
                n: width,
                k: width,
            }
        };
        let workspace = product(0).workspace_bytes(machine)?;
        let bytes = square + 3 * row + workspace;
        let memory = gpu.allocate(bytes)?;
        let made = || {
            let product = product(memory);
            let workspace = View::new(memory + square + 3 * row, DType::U8, workspace);
            let back = unary(Unary::Neg, product.y, product.x)?;
            let links = product.launches(workspace, machine)?.into_iter().chain([back]).flatten().collect::<Vec<_>>();
            let ones = fill(floats(memory + square + 2 * row, width), 0x3F80)?;
            let constants = [randn(1, product.weight.view)?, ones].into_iter().flatten().collect::<Vec<_>>();
            let begin = randn(2, product.x)?.ok_or_else(|| refused("there is nothing to begin with"))?;
            let links = (0..PRODUCTS).flat_map(|_| links.iter().copied()).collect();
            Ok::<_, GpuError>((Self { gpu, memory, x: product.x, begin, links }, constants))
        };
        let (chain, constants) = made().inspect_err(|_| {
            // SAFETY: it was just allocated, and nothing uses it.
            unsafe { gpu.free(memory) }
        })?;
        let zeroed = workspace.min(ZEROED_BYTES);
        // SAFETY: all of it lies in the chain's memory.
        unsafe { gpu.fill(Stream::Compute, memory + square + 3 * row, 0, zeroed) }?;
        // SAFETY: as above.
        constants.iter().try_for_each(|launch| unsafe { gpu.launch(Stream::Compute, launch) })?;
        Ok(chain)
    }

    /// Puts it into the stream, each launch by `put`, which is told whether it is the first.
    fn put(&self, put: impl Fn(&Launch, bool) -> Result<(), GpuError>) -> Result<(), GpuError> {
        put(&self.begin, true)?;
        self.links.iter().try_for_each(|launch| put(launch, false))
    }

    /// What comes out at its end.
    fn result(&self, put: impl Fn(&Launch, bool) -> Result<(), GpuError>) -> Result<Vec<u8>, GpuError> {
        self.spoil()?;
        self.put(put)?;
        self.fetch()
    }

    /// Leaves nothing of an earlier result.
    fn spoil(&self) -> Result<(), GpuError> {
        // SAFETY: the memory is the chain's.
        unsafe { self.gpu.fill(Stream::Compute, self.x.at, 0xFF, 2 * self.x.bytes()) }
    }

    fn fetch(&self) -> Result<Vec<u8>, GpuError> {
        let mut bytes = vec![0; self.x.bytes() as usize];
        // SAFETY: both are there until it is done, which is waited for here.
        unsafe { self.gpu.copy_out(Stream::Compute, bytes.as_mut_ptr(), self.x.at, bytes.len()) }?;
        if let Err(error) = self.wait() {
            // The GPU may still write there.
            std::mem::forget(bytes);
            return Err(error);
        }
        Ok(bytes)
    }

    fn wait(&self) -> Result<(), GpuError> {
        let now = self.gpu.event()?;
        self.gpu.record(Stream::Compute, &now)?;
        self.gpu.synchronize(&now)
    }
}

impl Drop for Chain<'_> {
    fn drop(&mut self) {
        // SAFETY: it came from this GPU, and no other stream uses it.
        unsafe { self.gpu.free(self.memory) };
    }
}

fn refused(reason: &str) -> GpuError {
    GpuError::Refused { during: "trying kernels that overlap", reason: reason.to_owned() }
}
