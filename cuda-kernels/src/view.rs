//! Tensors in a GPU's memory, as launches take them.

use genie_graph::DType;

/// An address in a GPU's memory (on the CPU stand-in: in this process's).
pub type Address = u64;

/// A row-major tensor in a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Where its first element is.
    pub at: Address,
    /// Element type.
    pub dtype: DType,
    /// Elements.
    pub elements: u64,
}

impl View {
    /// A view of `elements` of `dtype` at `at`.
    pub const fn new(at: Address, dtype: DType, elements: u64) -> Self {
        Self { at, dtype, elements }
    }

    /// Bytes that it takes.
    pub const fn bytes(&self) -> u64 {
        self.elements.saturating_mul(self.dtype.bytes())
    }

    /// Whether its address is a multiple of `bytes`.
    pub const fn is_aligned(&self, bytes: u64) -> bool {
        self.at.is_multiple_of(bytes)
    }
}

/// Why a launch was not made: a mistake of whoever planned it. Nothing ran.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// A tensor of an element type that the kernel does not take.
    #[error("`{kernel}` takes no {what} of type {dtype}")]
    Type {
        /// The kernel's family.
        kernel: &'static str,
        /// Which tensor.
        what: &'static str,
        /// Its type.
        dtype: DType,
    },
    /// A tensor with another number of elements than the sizes make.
    #[error("`{kernel}` needs {expected} elements of {what}, but the tensor has {got}")]
    Elements {
        /// The kernel's family.
        kernel: &'static str,
        /// Which tensor.
        what: &'static str,
        /// What the sizes make.
        expected: u64,
        /// What there is.
        got: u64,
    },
    /// A tensor whose address is not a multiple of its element.
    #[error("`{kernel}`: {what} at {at:#x} is not aligned to {bytes} bytes")]
    Alignment {
        /// The kernel's family.
        kernel: &'static str,
        /// Which tensor.
        what: &'static str,
        /// Its address.
        at: Address,
        /// What the address must be a multiple of.
        bytes: u64,
    },
    /// A size that the kernel does not take.
    #[error("`{kernel}`: {what} is {got}, but must be {expected}")]
    Size {
        /// The kernel's family.
        kernel: &'static str,
        /// Which size.
        what: &'static str,
        /// Its value.
        got: u64,
        /// What it may be.
        expected: &'static str,
    },
}

/// Checks for one kernel family's launches: each names the tensor or size that it is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check(pub(crate) &'static str);

impl Check {
    /// Number of elements and alignment to the element.
    pub(crate) fn tensor(self, what: &'static str, view: View, elements: u64) -> Result<(), LaunchError> {
        if view.elements != elements {
            return Err(LaunchError::Elements { kernel: self.0, what, expected: elements, got: view.elements });
        }
        self.aligned(what, view, view.dtype.bytes())
    }

    pub(crate) fn aligned(self, what: &'static str, view: View, bytes: u64) -> Result<(), LaunchError> {
        if view.is_aligned(bytes) {
            return Ok(());
        }
        Err(LaunchError::Alignment { kernel: self.0, what, at: view.at, bytes })
    }

    pub(crate) fn wrong_type(self, what: &'static str, dtype: DType) -> LaunchError {
        LaunchError::Type { kernel: self.0, what, dtype }
    }

    pub(crate) fn same_type(self, what: &'static str, view: View, as_in: View) -> Result<(), LaunchError> {
        if view.dtype == as_in.dtype { Ok(()) } else { Err(self.wrong_type(what, view.dtype)) }
    }

    /// The address of a fault word: a u64.
    pub(crate) fn fault(self, at: Address) -> Result<(), LaunchError> {
        self.size("the fault word's address", at, at != 0, "that of a u64")?;
        self.aligned("the fault word", View::new(at, DType::I64, 1), 8)
    }

    /// A product of sizes; none is so large that it overflows in a tensor that exists.
    pub(crate) fn product(self, what: &'static str, sizes: &[u64]) -> Result<u64, LaunchError> {
        let product = sizes.iter().try_fold(1_u64, |p, &s| p.checked_mul(s));
        product.ok_or(LaunchError::Size { kernel: self.0, what, got: u64::MAX, expected: "under 2^64 elements" })
    }

    pub(crate) fn size(
        self,
        what: &'static str,
        got: u64,
        fits: bool,
        expected: &'static str,
    ) -> Result<(), LaunchError> {
        if fits { Ok(()) } else { Err(LaunchError::Size { kernel: self.0, what, got, expected }) }
    }
}
