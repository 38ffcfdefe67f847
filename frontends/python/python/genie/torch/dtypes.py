"""Element types: torch's beside the server's."""

import torch

#: torch's type to the server's name of it.
NAMES: dict[torch.dtype, str] = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "bool",
}
#: The other way.
TYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in NAMES.items()}
#: Bytes of an element.
BYTES: dict[str, int] = {"f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "u8": 1, "bool": 1}
FLOATS = frozenset(("f32", "f16", "bf16"))
INTEGERS = frozenset(("i64", "i32", "u8"))

_NEAREST = {
    torch.float64: "float32",
    torch.complex64: "two float32 tensors, real and imaginary",
    torch.complex128: "two float32 tensors, real and imaginary",
    torch.int8: "int32",
    torch.int16: "int32",
    torch.uint16: "int32",
    torch.uint32: "int64",
    torch.uint64: "int64",
}


def name_of(dtype: torch.dtype) -> str:
    """The server's name of a type.

    Raises NotImplementedError, with the nearest type that works, where the server has none.
    """
    name = NAMES.get(dtype)
    if name is None:
        raise NotImplementedError(
            f"remote_accelerator has no {dtype}: use {_NEAREST.get(dtype, 'float32')} "
            f"(it has {', '.join(str(d).removeprefix('torch.') for d in NAMES)})"
        )
    return name


def is_float(name: str) -> bool:
    """Whether the server's type of this name is a floating-point one."""
    return name in FLOATS
