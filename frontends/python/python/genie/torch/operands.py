"""From what torch gives an operation to nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from . import build
from .dtypes import FLOATS, NAMES, name_of
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
    if dtype in FLOATS:
        value = float(value)
    elif dtype == "bool":
        value = bool(value)
    else:
        value = wrapped(int(value), dtype)
    return build.number(value, dtype, device)


def wrapped(value: int, dtype: str) -> int:
    """An integer as its type holds it."""
    bits = {"i64": 64, "i32": 32, "u8": 8}[dtype]
    value &= (1 << bits) - 1
    return value - (1 << bits) if dtype != "u8" and value >> (bits - 1) else value


def with_number(dtype: str, number: bool | int | float) -> str:
    """The type that torch gives a tensor of this type and a number: the tensor's, unless the number is of a higher kind."""
    if dtype in FLOATS or number.__class__ is bool:
        return dtype
    if number.__class__ is float:
        return name_of(torch.get_default_dtype())
    return "i64" if dtype == "bool" else dtype


def promoted(*values: Any) -> str:
    """The type that torch gives a result of these operands."""
    first = values[0]
    if isinstance(first, RemoteTensor):
        dtype = first._storage.node.dtype
        for value in values[1:]:
            if isinstance(value, RemoteTensor):
                if value._storage.node.dtype != dtype:
                    break
            elif value.__class__ not in _NUMBERS or with_number(dtype, value) != dtype:
                break
        else:
            return dtype
    return _promoted(values)


_NUMBERS: frozenset[Any] = frozenset((bool, int, float))


def _promoted(values: Sequence[Any]) -> str:
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


def both(a: Any, b: Any, dtype: str | None = None) -> tuple[Node, Node]:
    """Two operands in the type that torch promotes them to, or in the one given."""
    if isinstance(a, RemoteTensor):
        x = node_of(a)
        if isinstance(b, RemoteTensor):
            y = node_of(b)
            if x.dtype == y.dtype and x.device == y.device and (dtype is None or dtype == x.dtype):
                return x, y
        elif b.__class__ in _NUMBERS:
            kind = dtype or with_number(x.dtype, b)
            return build.cast(x, kind), scalar(b, kind, x.device)
    device = device_among((a, b))
    dtype = dtype or promoted(a, b)
    return operand(a, dtype, device), operand(b, dtype, device)


def floating(dtype: str) -> str:
    """The type of a result that is no integer."""
    return dtype if dtype in ("f32", "f16", "bf16") else name_of(torch.get_default_dtype())


def integers(values: Sequence[int], shape: tuple[int, ...], device: int) -> Node:
    """Indices that are known here, on their way to the server."""
    import struct

    if not values:
        return build.empty(shape, "i64", device)
    return host(struct.pack(f"<{len(values)}q", *values), shape, "i64", device)
