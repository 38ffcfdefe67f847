//! ggml's tensor types.

use genie_graph::{DType, QuantFormat};

/// The tensor types that are read. Blocks lie along the innermost dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GgmlType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    BF16,
    /// 32 elements: f16 scale, 4-bit values less 8.
    Q4_0,
    /// 32 elements: f16 scale, f16 minimum, 4-bit values.
    Q4_1,
    /// 32 elements: f16 scale, signed bytes.
    Q8_0,
    /// 256 elements: 6-bit values less 32, 16 signed scales of 16 elements each, f16 scale of the scales.
    Q6K,
}

impl GgmlType {
    /// Every type that is read.
    pub const ALL: [Self; 7] = [Self::F32, Self::F16, Self::BF16, Self::Q4_0, Self::Q4_1, Self::Q8_0, Self::Q6K];

    /// The type with this code in a file.
    pub fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            14 => Self::Q6K,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// The element type, where a block is one element.
    pub const fn element(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 | Self::Q6K => None,
        }
    }

    /// The format of its blocks, where graphs can read them as they are.
    pub const fn blocks(self) -> Option<QuantFormat> {
        match self {
            Self::Q8_0 => Some(QuantFormat::Q8_0),
            Self::Q4_0 => Some(QuantFormat::Q4_0),
            Self::Q4_1 => Some(QuantFormat::Q4_1),
            Self::F32 | Self::F16 | Self::BF16 | Self::Q6K => None,
        }
    }

    /// Elements a block.
    pub const fn block_elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
            Self::Q6K => 256,
        }
    }

    /// Bytes a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Bytes of a tensor with these dimensions (outermost first). `None` where one is 0, the product overflows, or the
    /// innermost is not whole blocks.
    pub fn bytes_of(self, dims: &[u64]) -> Option<u64> {
        let (block, bytes) = (self.block_elements() as u64, self.block_bytes() as u64);
        let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d).filter(|&n| n > 0))?;
        if dims.last()? % block != 0 {
            return None;
        }
        (elements / block).checked_mul(bytes)
    }
}

/// ggml's name of any type code, for messages.
pub(super) fn name_of_code(code: u32) -> String {
    let name = match code {
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return format!("type {other}"),
    };
    name.to_owned()
}
