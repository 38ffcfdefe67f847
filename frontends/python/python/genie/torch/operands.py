"""From what torch gives an operation to nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from . import build
from .dtypes import NAMES, name_of
from .node import Node, host
from .tensor import RemoteTensor, node_of


def device_among(values: Sequence[Any]) -> int:
    """The device that the remote tensors among the values are on.

    Raises RuntimeError where they are on several.
    """
    found: int | None = None
    for value in values:
        if isinstance(value, RemoteTensor):
            index = value._storage.node.device
            if found is None:
                found = index
            elif found != index:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, "
                    f"remote_accelerator:{found} and remote_accelerator:{index}"
                )
    if found is None:
        raise RuntimeError("no tensor of remote_accelerator is among the operands")
    return found


def operand(value: Any, dtype: str, device: int) -> Node:
    """A tensor or number as a node of this type.

    A number is a scalar. So is a CPU tensor without dimensions, as on any device of torch; other CPU tensors are refused.
    """
    if isinstance(value, RemoteTensor):
        return build.cast(node_of(value), dtype)
    if isinstance(value, torch.Tensor):
        if value.dim():
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"remote_accelerator:{device} and {value.device}: move one of them with .to()"
            )
        value = value.item()
    if isinstance(value, complex):
        raise NotImplementedError("remote_accelerator has no complex numbers: keep real and imaginary parts in two tensors")
    return scalar(value, dtype, device)


def scalar(value: bool | int | float, dtype: str, device: int) -> Node:
    """A number as a node of this type, converted as torch does it."""
    if dtype == "bool":
        value = bool(value)
    elif dtype in ("i64", "i32", "u8"):
        value = wrapped(int(value), dtype)
    else:
        value = float(value)
    return Node("full", (("value", value),), (), (), dtype, device)


def wrapped(value: int, dtype: str) -> int:
    """An integer as its type holds it."""
    bits = {"i64": 64, "i32": 32, "u8": 8}[dtype]
    value &= (1 << bits) - 1
    return value - (1 << bits) if dtype != "u8" and value >> (bits - 1) else value


def promoted(*values: Any) -> str:
    """The type that torch gives a result of these operands."""
    if len(values) == 1:
        return name_of(values[0].dtype)
    dtype = torch.result_type(values[0], values[1])
    if len(values) > 2:
        # torch's rule is by category: dimensioned tensors, scalars, numbers. A stand-in carries what is known so far.
        for value in values[2:]:
            dimensioned = any(isinstance(v, torch.Tensor) and v.dim() for v in values[:2])
            known = torch.empty((1,) if dimensioned else (), dtype=dtype, device="meta")
            dtype = torch.result_type(known, value)
    return name_of(dtype)


def floating(dtype: str) -> str:
    """The type of a result that is no integer."""
    return dtype if dtype in ("f32", "f16", "bf16") else NAMES[torch.get_default_dtype()]


def integers(values: Sequence[int], shape: tuple[int, ...], device: int) -> Node:
    """Indices that are known here, on their way to the server."""
    import struct

    if not values:
        return build.empty(shape, "i64", device)
    return host(struct.pack(f"<{len(values)}q", *values), shape, "i64", device)
