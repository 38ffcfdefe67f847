//! What the matrix products do to their input rows before, and to their sums after.

use bytemuck::{Pod, Zeroable};
use genie_graph::DType;

use crate::view::{Address, Check, LaunchError, View};

/// A function of each sum. The codes are those of `epilogue.cuh`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Activation {
    /// The sum itself.
    #[default]
    None = 0,
    /// max(x, 0); NaN stays.
    Relu = 1,
    /// x * sigmoid(x).
    Silu = 2,
    /// By the error function.
    Gelu = 3,
    /// By the hyperbolic tangent.
    GeluTanh = 4,
    /// 1 / (1 + e^-x).
    Sigmoid = 5,
    /// Hyperbolic tangent.
    Tanh = 6,
}

/// `y = activation(sum + bias) * factor + residual`, in f32, rounded once to y's type.
///
/// A factor or a residual that is y itself is of y's type.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue {
    /// `[n]`, a float type of its own.
    pub bias: Option<View>,
    /// After the bias.
    pub activation: Activation,
    /// As y in shape, of a float type of its own. May be y itself.
    pub factor: Option<View>,
    /// As y in shape, of a float type of its own. May be y itself.
    pub residual: Option<View>,
}

/// Twin of `Epilogue` in `epilogue.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct EpilogueParams {
    pub(crate) bias: Address,
    pub(crate) factor: Address,
    pub(crate) residual: Address,
    pub(crate) activation: u32,
    pub(crate) bias_type: u32,
    pub(crate) factor_type: u32,
    pub(crate) residual_type: u32,
}

impl Epilogue {
    /// Types and sizes for a result `y` of `n` columns, which has its number of elements.
    pub(crate) fn params(&self, check: Check, y: View, n: u64) -> Result<EpilogueParams, LaunchError> {
        let all =
            [("bias", self.bias, n), ("factor", self.factor, y.elements), ("residual", self.residual, y.elements)];
        for (what, tensor, elements) in all {
            let Some(tensor) = tensor else { continue };
            if !tensor.dtype.is_float() {
                return Err(check.wrong_type(what, tensor.dtype));
            }
            check.tensor(what, tensor, elements)?;
            if tensor.at == y.at && y.elements > 0 {
                check.same_type(what, tensor, y)?;
            }
        }
        let code = |tensor: Option<View>| type_code(tensor.map_or(DType::F32, |tensor| tensor.dtype));
        Ok(EpilogueParams {
            bias: address(self.bias),
            factor: address(self.factor),
            residual: address(self.residual),
            activation: self.activation as u32,
            bias_type: code(self.bias),
            factor_type: code(self.factor),
            residual_type: code(self.residual),
        })
    }
}

impl EpilogueParams {
    /// The same for the part of the result that begins so many elements behind.
    pub(crate) fn behind(mut self, elements: u64) -> Self {
        for (tensor, code) in [(&mut self.factor, self.factor_type), (&mut self.residual, self.residual_type)] {
            let bytes = if code == type_code(DType::F32) { 4 } else { 2 };
            *tensor += if *tensor == 0 { 0 } else { elements * bytes };
        }
        self
    }
}

/// What is done to each row of x first, in f32.
#[derive(Clone, Copy, Debug, Default)]
pub enum Prologue {
    /// Nothing.
    #[default]
    None,
    /// `x / sqrt(mean(x^2) + eps) * weight`.
    RmsNorm {
        /// Added under the root.
        eps: f32,
        /// `[k]`, any float type.
        weight: View,
    },
    /// `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`.
    LayerNorm {
        /// Added under the root.
        eps: f32,
        /// `[k]`, any float type.
        weight: View,
        /// `[k]`, of the weight's type.
        bias: View,
    },
}

/// What a kernel gets of a [`Prologue`].
pub(crate) struct NormParams {
    /// Code of `Norm` in `rows.cuh`.
    pub(crate) norm: u32,
    pub(crate) weight: Address,
    pub(crate) bias: Address,
    pub(crate) dtype: u32,
    pub(crate) eps: f32,
    /// Weight and bias begin at multiples of 16 bytes.
    pub(crate) aligned: bool,
}

impl Prologue {
    /// Types and sizes for rows of `k` elements.
    pub(crate) fn params(&self, check: Check, k: u64) -> Result<NormParams, LaunchError> {
        let (norm, eps, weight, bias) = match *self {
            Self::None => {
                return Ok(NormParams { norm: 0, weight: 0, bias: 0, dtype: 0, eps: 0.0, aligned: true });
            }
            Self::RmsNorm { eps, weight } => (1, eps, weight, None),
            Self::LayerNorm { eps, weight, bias } => (2, eps, weight, Some(bias)),
        };
        if !weight.dtype.is_float() {
            return Err(check.wrong_type("norm weight", weight.dtype));
        }
        check.tensor("norm weight", weight, k)?;
        if let Some(bias) = bias {
            check.same_type("norm bias", bias, weight)?;
            check.tensor("norm bias", bias, k)?;
        }
        Ok(NormParams {
            norm,
            weight: weight.at,
            bias: address(bias),
            dtype: type_code(weight.dtype),
            eps,
            aligned: weight.is_aligned(16) && bias.is_none_or(|bias| bias.is_aligned(16)),
        })
    }
}

/// Where a tensor is; 0 stands for none.
pub(crate) fn address(view: Option<View>) -> Address {
    view.map_or(0, |view| view.at)
}

/// The code of `FloatType` in `epilogue.cuh`.
pub(crate) fn type_code(dtype: DType) -> u32 {
    u32::from(dtype.code())
}
