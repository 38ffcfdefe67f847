//! What the library finds for a product.

use std::ffi::{c_int, c_void};

use cudarc::cublaslt::sys::{cublasLtMatmulAlgo_t, cublasLtMatmulHeuristicResult_t, cublasStatus_t as Status};

use crate::descriptors::{Description, Preference};
use crate::settings::Refuses;
use crate::shape::Shape;
use crate::state::{Answer, Library, NO_WAY, answer, can, check, give, id, mistake};

/// What addresses are multiples of at most, as far as it matters.
const MOST_ALIGNED: u64 = 256;
/// Bytes of workspace that a product takes where it gets as many.
const WORKSPACE_BYTES: u64 = 64 << 10;
/// What an algorithm of this library begins with.
const MARK: u64 = u64::from_le_bytes(*b"stand-in");
/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`: what has parts writes them to the workspace.
const PARTS_IN_WORKSPACE: u32 = 2;

/// An algorithm, as the program has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Algorithm {
    /// [`Shape::number`].
    pub(crate) product: u64,
    pub(crate) workspace: u64,
    /// Of A, B, C, D and the bias.
    pub(crate) aligned: [u64; 5],
}

impl Algorithm {
    pub(crate) fn read(of: &cublasLtMatmulAlgo_t) -> Answer<Self> {
        let [mark, product, workspace, aligned @ ..] = of.data;
        check(mark == MARK, "an algorithm that is not of this library")?;
        Ok(Self { product, workspace, aligned })
    }

    fn written(self) -> cublasLtMatmulAlgo_t {
        let [a, b, c, d, bias] = self.aligned;
        cublasLtMatmulAlgo_t { data: [MARK, self.product, self.workspace, a, b, c, d, bias] }
    }
}

/// What an address is a multiple of. Of none, all.
pub(crate) fn aligned(at: u64) -> u64 {
    if at == 0 { MOST_ALIGNED } else { MOST_ALIGNED.min(1 << at.trailing_zeros()) }
}

impl Library {
    pub(crate) fn description(&self, description: *mut c_void) -> Answer<Description> {
        self.descriptions.get(&id(description)).copied().ok_or_else(|| mistake("there is no such description"))
    }

    /// What a description and four layouts come to.
    pub(crate) fn shape(&self, description: &Description, layouts: [*mut c_void; 4]) -> Answer<Shape> {
        let [Some(a), Some(b), Some(c), Some(d)] = layouts.map(|layout| self.layouts.get(&id(layout)).copied()) else {
            return Err(mistake("there is no such layout"));
        };
        Shape::new(description, [a, b, c, d])
    }

    fn find(&self, shape: &Shape, bias: u64, preference: &Preference) -> Answer<Algorithm> {
        can(match self.settings.refuses {
            Refuses::All => false,
            Refuses::More => !shape.does_more(),
            _ => true,
        })?;
        let [a, b, c, d] = preference.aligned.map(|aligned| u64::from(aligned).min(MOST_ALIGNED));
        let bias = aligned(bias);
        can([a, b].iter().all(|&a| a >= shape.kind.bytes()) && [c, d, bias].iter().all(|&a| a >= shape.result.bytes()))?;
        let in_parts = preference.schemes & PARTS_IN_WORKSPACE != 0;
        let workspace = if in_parts { preference.workspace.min(WORKSPACE_BYTES) } else { 0 };
        Ok(Algorithm { product: shape.number(), workspace, aligned: [a, b, c, d, bias] })
    }
}

/// # Safety
/// `wanted` results can be written, and a number.
#[unsafe(export_name = "cublasLtMatmulAlgoGetHeuristic")]
unsafe extern "C" fn heuristic(
    handle: *mut c_void,
    description: *mut c_void,
    a: *mut c_void,
    b: *mut c_void,
    c: *mut c_void,
    d: *mut c_void,
    preference: *mut c_void,
    wanted: c_int,
    results: *mut cublasLtMatmulHeuristicResult_t,
    count: *mut c_int,
) -> Status {
    answer("cublasLtMatmulAlgoGetHeuristic", |library| {
        library.handle(handle)?;
        check(wanted > 0 && !results.is_null() && !count.is_null(), "no room for a result")?;
        // SAFETY: as the caller has it.
        unsafe { give(count, 0) }?;
        let description = library.description(description)?;
        let shape = library.shape(&description, [a, b, c, d])?;
        let preference =
            library.preferences.get(&id(preference)).ok_or_else(|| mistake("there is no such preference"))?;
        let algorithm = library.find(&shape, description.bias, preference)?;
        let state = match library.settings.refuses {
            Refuses::Silently => return Ok(()),
            Refuses::Found => NO_WAY,
            _ => Status::CUBLAS_STATUS_SUCCESS,
        };
        let result = cublasLtMatmulHeuristicResult_t {
            algo: algorithm.written(),
            workspaceSize: algorithm.workspace as usize,
            state,
            wavesCount: 1.0,
            reserved: [0; 4],
        };
        // SAFETY: as the caller has it.
        unsafe { give(results, result).and_then(|()| give(count, 1)) }
    })
}
