//! The second factor of a matrix product, as it is stored.

use genie_graph::{DType, LinearLayout, QuantFormat};

use crate::view::{Check, LaunchError, View};

/// A matrix of `n` columns by `k` elements of each sum: `[n, k]` or `[k, n]`, row-major. Blocks lie along k, so quantised weights
/// are `[n, k]`, and k is a multiple of [`QuantFormat::BLOCK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Where it is.
    pub view: View,
    /// Blocks whose bytes the view counts ([`DType::U8`]); none: floats of the view's type.
    pub format: Option<QuantFormat>,
    /// Which way its rows lie.
    pub layout: LinearLayout,
    /// Whether it is nobody's result: no kernel that may still run when a launch begins writes it. It may be read before they have
    /// ended (see [`crate::gpu::Gpu::launch_behind`]).
    pub constant: bool,
}

impl Weight {
    /// Floats, row-major.
    pub const fn plain(view: View, layout: LinearLayout) -> Self {
        Self { view, format: None, layout, constant: false }
    }

    /// Rows of blocks, one a column of the result.
    pub const fn quantised(view: View, format: QuantFormat) -> Self {
        Self { view, format: Some(format), layout: LinearLayout::OutIn, constant: false }
    }

    /// The same, [`Self::constant`] or not.
    pub const fn with_constant(self, constant: bool) -> Self {
        Self { constant, ..self }
    }

    /// Type, size and alignment; `matrices` of them lie one after another.
    pub(crate) fn check(&self, check: Check, matrices: u64, n: u64, k: u64) -> Result<(), LaunchError> {
        let view = self.view;
        let Some(format) = self.format else {
            if !view.dtype.is_float() {
                return Err(check.wrong_type("weight", view.dtype));
            }
            return check.tensor("weight", view, check.product("weight", &[matrices, n, k])?);
        };
        if view.dtype != DType::U8 {
            return Err(check.wrong_type("quantised weight", view.dtype));
        }
        check.size(
            "layout",
            self.layout as u64,
            self.layout == LinearLayout::OutIn,
            "OutIn (0) for quantised weights",
        )?;
        check.size("k", k, k.is_multiple_of(QuantFormat::BLOCK), "a multiple of 32, the block of quantised weights")?;
        let bytes = check.product("weight", &[matrices, n, k / QuantFormat::BLOCK, format.block_bytes()])?;
        check.tensor("weight", view, bytes)?;
        check.aligned("quantised weight", view, 16)
    }

    /// The code of `quantised.cuh`.
    pub(crate) fn code(&self) -> u32 {
        match self.format {
            None => u32::from(self.view.dtype.code()),
            Some(QuantFormat::Q8_0) => 3,
            Some(QuantFormat::Q4_0) => 4,
            Some(QuantFormat::Q4_1) => 5,
        }
    }
}
