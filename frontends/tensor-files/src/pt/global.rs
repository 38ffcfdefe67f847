//! The names that a pickle of tensors may use. There are no others: what a file asks for beside them is refused.

use genie_graph::DType;

use crate::ReadError;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `torch._utils._rebuild_tensor`: storage, offset, size, stride.
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v2`: the same, requires_grad, hooks, and perhaps metadata.
    RebuildTensorV2,
    /// `torch._utils._rebuild_tensor_v3`: the same, element type, and perhaps metadata.
    RebuildTensorV3,
    /// `torch._utils._rebuild_parameter`: a tensor, requires_grad, hooks.
    RebuildParameter,
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch.FloatStorage`, ...: a storage of such elements. `None`: of bytes, and the tensor says of what.
    Storage(Option<DType>),
    /// `torch.float32`, ...
    Element(DType),
}

impl Global {
    /// What this name stands for.
    ///
    /// # Errors
    /// Another name; it says which.
    pub(super) fn find(module: &str, name: &str) -> Result<Self, ReadError> {
        let refused = || ReadError::refused(format!("'{module}.{name}'"));
        Ok(match (module, name) {
            ("torch._utils", "_rebuild_tensor") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensorV2,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensorV3,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => Self::Storage(None),
            ("torch" | "torch.cuda", storage) if storage.ends_with("Storage") => Self::Storage(Some(match storage {
                "FloatStorage" => DType::F32,
                "HalfStorage" => DType::F16,
                "BFloat16Storage" => DType::BF16,
                "LongStorage" => DType::I64,
                "IntStorage" => DType::I32,
                "ByteStorage" => DType::U8,
                "BoolStorage" => DType::Bool,
                "DoubleStorage" => return Err(ReadError::dtype("f64 (torch.DoubleStorage)")),
                "ShortStorage"
                | "CharStorage"
                | "ComplexFloatStorage"
                | "ComplexDoubleStorage"
                | "QInt8Storage"
                | "QUInt8Storage"
                | "QInt32Storage" => return Err(ReadError::dtype(format!("torch.{storage}"))),
                _ => return Err(refused()),
            })),
            ("torch", element) => Self::Element(match element {
                "float32" => DType::F32,
                "float16" => DType::F16,
                "bfloat16" => DType::BF16,
                "int64" => DType::I64,
                "int32" => DType::I32,
                "uint8" => DType::U8,
                "bool" => DType::Bool,
                "float64" => return Err(ReadError::dtype("f64 (torch.float64)")),
                "int8" | "int16" | "uint16" | "uint32" | "uint64" | "complex32" | "complex64" | "complex128"
                | "float8_e4m3fn" | "float8_e5m2" | "float8_e4m3fnuz" | "float8_e5m2fnuz" | "float8_e8m0fnu"
                | "float4_e2m1fn_x2" => return Err(ReadError::dtype(format!("torch.{element}"))),
                _ => return Err(refused()),
            }),
            _ => return Err(refused()),
        })
    }
}
