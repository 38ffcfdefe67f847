//! Matrix products by cuBLASLt.
//!
//! Its matrices are column-major, so a row-major matrix is its transpose to it: c = a x b is asked for as c' = b' x a'.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{self, cublasStatus_t as Status};
use cudarc::driver::sys as driver;
use genie_graph::DType;

use super::super::{GpuError, Operands, Product, WeightLayout};
use super::live::pointer;
use super::pool::Pool;
use crate::view::{Address, View};

/// Scratch memory for products: what the library's own documentation asks for on the largest GPUs.
const WORKSPACE_BYTES: u64 = 32 << 20;
/// Products that are remembered. Prefills come in many lengths.
const MOST_PLANS: usize = 1024;

/// Where a sum is cut in parts, the parts are f32 (`CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`), not of the result's type, and are added
/// in one order.
const SUMS_OF_PARTS: u32 = 2;

/// The library, with what it said about products so far.
///
/// All products of a context go through one stream, one after another, so that they can share the scratch memory. A recorded one has its
/// address, which stays what it is as long as the context lives.
pub(super) struct Products {
    handle: sys::cublasLtHandle_t,
    workspace: Address,
    /// None: there is no way to do it.
    plans: HashMap<Key, Option<Plan>>,
}

// SAFETY: the library's handles belong to no thread. `Products` is used with a lock held, by threads whose context is current.
unsafe impl Send for Products {}

/// What a plan depends on: the sizes, what is there, and what the addresses of c, a, b, of what is added and of the bias are multiples of.
/// Of the bias the library takes that from its address, when it is asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    product: Product,
    aligned: [u32; 4],
    /// None: no bias.
    bias: Option<u32>,
}

/// What the address of a bias must be a multiple of: what the library reads of it at once.
const BIAS_ALIGNMENT: u64 = 16;

/// How a product is done.
struct Plan {
    description: Description,
    first: Layout,
    second: Layout,
    result: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
}

impl Products {
    /// The library, if there is one.
    pub(super) fn new(pool: &Pool) -> Result<Option<Self>, GpuError> {
        let version = match products_library() {
            Ok(version) => version,
            Err(reason) => {
                tracing::warn!("{reason}: matrix products run on Genie's own kernels");
                return Ok(None);
            }
        };
        let handle = match result::create_handle() {
            Ok(handle) => handle,
            Err(CublasError(status)) => {
                tracing::warn!(?status, "cuBLASLt does not start: matrix products run on Genie's own kernels");
                return Ok(None);
            }
        };
        tracing::info!("cuBLASLt {version} does matrix products");
        let workspace = pool.keep(WORKSPACE_BYTES);
        if workspace.is_err() {
            // SAFETY: it was just made, and nobody else has it.
            let _ = unsafe { result::destroy_handle(handle) };
        }
        Ok(Some(Self { handle, workspace: workspace?, plans: HashMap::new() }))
    }

    /// Gives everything back, but for the scratch memory, which goes with its pool.
    ///
    /// # Safety
    /// The context is current, and nothing that was put into its streams is still to be done.
    pub(super) unsafe fn destroy(mut self) {
        self.plans.clear();
        // SAFETY: nobody else has it.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }

    /// Puts a product into a stream; false if there is no way.
    ///
    /// # Safety
    /// The operands are live until it is done, nobody else uses `c` meanwhile, and the stream runs in one order with those of all other
    /// products of this context.
    pub(super) unsafe fn multiply(
        &mut self,
        stream: driver::CUstream,
        product: &Product,
        operands: &Operands,
    ) -> Result<bool, GpuError> {
        let (handle, workspace) = (self.handle, pointer(self.workspace));
        let Operands { a, b, c, added, bias } = *operands;
        if bias.is_some_and(|bias| !bias.at.is_multiple_of(BIAS_ALIGNMENT)) {
            return Ok(false);
        }
        let Some(plan) = self.plan(product, operands) else { return Ok(false) };
        if plan.description.set_bias(bias).is_err() {
            return Ok(false);
        }
        let one = 1.0_f32;
        let more = if added.is_some() { 1.0_f32 } else { 0.0 };
        // SAFETY: descriptors and handle are live; the factors are read before it returns; the views are as large as the layouts say
        // (`Product::check`), and the scratch memory as the plan says.
        let done = unsafe {
            result::matmul(
                handle,
                plan.description.0,
                (&raw const one).cast(),
                (&raw const more).cast(),
                pointer(b.at),
                plan.first.0,
                pointer(a.at),
                plan.second.0,
                pointer(added.unwrap_or(c).at),
                plan.result.0,
                pointer(c.at),
                plan.result.0,
                &plan.algorithm,
                workspace,
                plan.workspace,
                stream.cast(),
            )
        };
        match done {
            Ok(()) => Ok(true),
            // It took up nothing: not asked again.
            Err(
                refusal @ CublasError(
                    Status::CUBLAS_STATUS_NOT_SUPPORTED
                    | Status::CUBLAS_STATUS_ARCH_MISMATCH
                    | Status::CUBLAS_STATUS_INVALID_VALUE,
                ),
            ) => {
                let key = Key::new(product, operands);
                told(&key, &refusal);
                self.plans.insert(key, None);
                Ok(false)
            }
            // Nor here: it loads its kernels when they are first wanted, and there may be room for that later.
            Err(CublasError(status @ Status::CUBLAS_STATUS_ALLOC_FAILED)) => {
                tracing::warn!(
                    ?status,
                    ?product,
                    "cuBLASLt has no memory for a product: it runs on Genie's own kernels this time"
                );
                Ok(false)
            }
            Err(CublasError(status)) => {
                let reason = format!("cuBLASLt says {status:?} to {product:?}");
                Err(GpuError::Refused { during: "a matrix product", reason })
            }
        }
    }

    fn plan(&mut self, product: &Product, operands: &Operands) -> Option<&Plan> {
        let key = Key::new(product, operands);
        if self.plans.len() >= MOST_PLANS && !self.plans.contains_key(&key) {
            self.plans.clear();
        }
        let (handle, bias) = (self.handle, operands.bias);
        let plan = || Plan::new(handle, &key, bias).inspect_err(|refusal| told(&key, refusal)).ok();
        self.plans.entry(key).or_insert_with(plan).as_ref()
    }
}

/// The library's functions that are called here.
const FUNCTIONS: [&str; 14] = [
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtGetVersion",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
    "cublasLtMatrixLayoutSetAttribute",
];

/// Why a library does no products.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoProducts {
    /// The system has none.
    #[error("no cuBLASLt here (libcublasLt.so.13 was not found)")]
    NotFound,
    /// It has one of before CUDA 12.
    #[error("the cuBLASLt here is too old: it has {version}, and 12 is needed")]
    TooOld {
        /// What it has: `11.8.0`.
        version: String,
    },
    /// It has one that is none, or of another age.
    #[error("the cuBLASLt here has no {function}")]
    Lacks {
        /// The function that it lacks.
        function: &'static str,
    },
}

/// The version of cuBLASLt, which does products of many rows: `13.0.0`.
///
/// # Errors
/// [`NoProducts`]; Genie's own kernels do them then.
pub fn products_library() -> Result<String, NoProducts> {
    // SAFETY: opening the library runs what it does when it is loaded, which asks nothing of this process.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoProducts::NotFound);
    }
    // SAFETY: as above.
    let library = unsafe { sys::culib() };
    // Each that is called must be there: calling one that is not is a panic.
    // SAFETY: an address, which is used for nothing.
    let lacks = |name: &&str| unsafe { library.get::<*const c_void>(name.as_bytes()) }.is_err();
    if let Some(function) = FUNCTIONS.into_iter().find(lacks) {
        return Err(NoProducts::Lacks { function });
    }
    // SAFETY: it was just seen that the library has it, and it takes nothing.
    let number = unsafe { sys::cublasLtGetVersion() };
    let version = format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100);
    // Names of the library are tried without a number first, and then down to those of CUDA 11.
    if number < 12_00_00 {
        return Err(NoProducts::TooOld { version });
    }
    Ok(version)
}

/// Says once for each product what the library has no way for. What it refuses to do besides is done behind a bare product; a bare one
/// that it refuses runs on Genie's own kernels, which are slower.
fn told(key: &Key, CublasError(status): &CublasError) {
    let product = &key.product;
    if (product.gelu || key.bias.is_some()) && *status == Status::CUBLAS_STATUS_NOT_SUPPORTED {
        tracing::debug!(?status, ?product, "cuBLASLt does this product's rest not along");
    } else {
        tracing::warn!(?status, ?product, "cuBLASLt has no way for a product: it runs on Genie's own kernels");
    }
}

impl Key {
    fn new(product: &Product, operands: &Operands) -> Self {
        let of = |view: View, step: u64| {
            // Each of a batch is aligned as the first one is, and as the step is.
            let bits = view.at | (if product.batch > 1 { step.wrapping_mul(view.dtype.bytes()) } else { 0 });
            1 << bits.trailing_zeros().min(8)
        };
        let Operands { a, b, c, added, bias } = *operands;
        // Nothing added is the result itself, times 0.
        let added = added.unwrap_or(c);
        let aligned = [of(c, product.c_step), of(a, product.a_step), of(b, product.b_step), of(added, product.c_step)];
        Self { product: *product, aligned, bias: bias.map(|bias| of(bias, 0)) }
    }
}

impl Plan {
    /// What the library holds best. An error means that there is no way. `bias` is one of those that it is for.
    fn new(handle: sys::cublasLtHandle_t, key: &Key, bias: Option<View>) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;

        let Product { dtype, c_type, layout, m, n, k, batch, a_step, b_step, c_step, gelu } = key.product;
        let (kind, c_kind) = (kind_of(dtype)?, kind_of(c_type)?);
        let (rows, columns, transposed) = match layout {
            WeightLayout::OutIn => (k, n, true),
            WeightLayout::InOut => (n, k, false),
        };
        let description = Description::new(transposed, gelu, key.bias.is_some())?;
        description.set_bias(bias)?;
        let first = Layout::new(kind, rows, columns, batch, b_step)?;
        let second = Layout::new(kind, k, m, batch, a_step)?;
        let result = Layout::new(c_kind, n, m, batch, c_step)?;
        let wishes = Wishes::new()?;
        wishes.set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE_BYTES)?;
        wishes.set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &SUMS_OF_PARTS)?;
        let [of_c, of_a, of_b, of_added] = &key.aligned;
        wishes.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, of_b)?;
        wishes.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, of_a)?;
        wishes.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_added)?;
        wishes.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_c)?;
        let mut best = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        let mut found = 0;
        // SAFETY: all descriptors are live; at most one answer is written, and how many.
        let asked = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                description.0,
                first.0,
                second.0,
                result.0,
                result.0,
                wishes.0,
                1,
                best.as_mut_ptr(),
                &mut found,
            )
        };
        asked.result()?;
        if found == 0 {
            return Err(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED));
        }
        // SAFETY: one answer was written; before, it was all zeros, which is a value of each field, too.
        let best = unsafe { best.assume_init() };
        best.state.result()?;
        Ok(Self { description, first, second, result, algorithm: best.algo, workspace: best.workspaceSize })
    }
}

fn kind_of(dtype: DType) -> Result<sys::cudaDataType, CublasError> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::F16 => Ok(sys::cudaDataType::CUDA_R_16F),
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        _ => Err(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED)),
    }
}

/// What is computed: sums and factors in f32. f32 is not rounded to TF32.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    /// `gelu` is the one by the hyperbolic tangent: the library has no other. A bias is of the result's type, which is what it is taken
    /// for unless another is named.
    fn new(transposed: bool, gelu: bool, bias: bool) -> Result<Self, CublasError> {
        use sys::cublasLtEpilogue_t as Epilogue;

        let sums = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let new = Self(result::create_matmul_desc(sums, sys::cudaDataType::CUDA_R_32F)?);
        // `cublasOperation_t`: 0 as it is, 1 transposed.
        let operation = i32::from(transposed);
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: the descriptor is live, and the attribute is of four bytes.
        unsafe { result::set_matmul_desc_attribute(new.0, attribute, bytes_of(&operation), size_of::<i32>()) }?;
        let epilogue = match (gelu, bias) {
            (false, false) => return Ok(new),
            (false, true) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
            (true, false) => Epilogue::CUBLASLT_EPILOGUE_GELU,
            (true, true) => Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
        };
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE;
        // SAFETY: the descriptor is live, and the attribute is this enum.
        unsafe { result::set_matmul_desc_attribute(new.0, attribute, bytes_of(&epilogue), size_of::<Epilogue>()) }?;
        Ok(new)
    }

    /// Where the bias of the next product is, if it has one.
    fn set_bias(&self, bias: Option<View>) -> Result<(), CublasError> {
        let Some(View { at, .. }) = bias else { return Ok(()) };
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        // SAFETY: the descriptor is live, and the attribute is an address of the GPU.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, bytes_of(&at), size_of::<Address>()) }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: `new` made it, and nobody else has it. It is memory of the host's, which no product reads once it was put.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// A column-major matrix without gaps, or a batch of them.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(kind: sys::cudaDataType, rows: u64, columns: u64, batch: u64, step: u64) -> Result<Self, CublasError> {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;

        let too_large = |_| CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED);
        let leading = i64::try_from(rows).map_err(too_large)?;
        let (batch, step) = (i32::try_from(batch).map_err(too_large)?, i64::try_from(step).map_err(too_large)?);
        let new = Self(result::create_matrix_layout(kind, rows, columns, leading)?);
        let (count, between) =
            (Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET);
        // SAFETY: the layout is live, and the attribute is an i32.
        unsafe { result::set_matrix_layout_attribute(new.0, count, bytes_of(&batch), size_of::<i32>()) }?;
        // SAFETY: as above, an i64.
        unsafe { result::set_matrix_layout_attribute(new.0, between, bytes_of(&step), size_of::<i64>()) }?;
        Ok(new)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: as for `Description`.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What an algorithm must be content with.
struct Wishes(sys::cublasLtMatmulPreference_t);

impl Wishes {
    fn new() -> Result<Self, CublasError> {
        Ok(Self(result::create_matmul_pref()?))
    }

    /// `T` is the attribute's type: u64 for the scratch memory, u32 for the others.
    fn set<T>(&self, wish: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<(), CublasError> {
        // SAFETY: the descriptor is live, and the library checks that the attribute has as many bytes.
        unsafe { result::set_matmul_pref_attribute(self.0, wish, bytes_of(value), size_of::<T>()) }
    }
}

impl Drop for Wishes {
    fn drop(&mut self) {
        // SAFETY: as for `Description`.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn bytes_of<T>(value: &T) -> *const c_void {
    std::ptr::from_ref(value).cast()
}
