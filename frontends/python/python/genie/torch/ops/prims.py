"""What torch's own decompositions are made of. Each is one of the operations that there are, under another name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._prims  # noqa: F401: defines them

from .. import build
from ..dispatch import HANDLERS, aten
from ..dtypes import name_of
from ..tensor import RemoteTensor, node_of, wrap
from .creation import index_of
from .pointwise import where
from .transfer import item, to_copy

#: The same, with the same arguments: its name there, and aten's.
_SAME = {
    "bessel_i0": "i0", "erf_inv": "erfinv", "rev": "flip", "shift_left": "bitwise_left_shift.Tensor",
    "shift_right_arithmetic": "bitwise_right_shift.Tensor", "view_of": "alias", "transpose": "permute",
    "squeeze": "squeeze.dims", "conj": "alias", "conj_physical": "alias", "real": "alias", "fill": "fill.Scalar",
    "as_strided": "as_strided", "as_strided_scatter": "as_strided_scatter", "cat": "cat", "clone": "clone", "reshape": "reshape",
    "copy_to": "copy_", "pow": "pow.Tensor_Tensor",
} | {
    name: name for name in (
        "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "bitwise_not", "ceil", "cos", "cosh", "digamma", "erf", "erfc", "exp",
        "exp2", "expm1", "floor", "isfinite", "lgamma", "log", "log10", "log1p", "log2", "neg", "reciprocal", "round", "rsqrt", "sign",
        "signbit", "sin", "sinh", "sqrt", "tan", "tanh", "trunc", "atan2", "fmax", "fmin", "hypot", "maximum", "minimum",
        "nextafter",
    )
} | {
    name: f"{name}.Tensor" for name in (
        "add", "bitwise_and", "bitwise_or", "bitwise_xor", "eq", "fmod", "ge", "gt", "le", "lt", "mul", "ne", "remainder", "sub",
    )
}  # fmt: skip


def _prim(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        found = getattr(getattr(torch.ops.prims, name, None), "default", None)
        if found is not None:
            HANDLERS[found] = handler
        return handler

    return register


for _name, _aten in _SAME.items():
    _packet, _, _overload = _aten.partition(".")
    _prim(_name)(getattr(getattr(aten, _packet), _overload or "default"))


@_prim("div")
def div(self: Any, other: Any) -> Any:
    whole = not self.dtype.is_floating_point
    return aten.div.Tensor_mode(self, other, rounding_mode="trunc") if whole else aten.div.Tensor(self, other)


@_prim("convert_element_type")
def convert(a: RemoteTensor, dtype: torch.dtype) -> Any:
    return to_copy(a, dtype=dtype)


@_prim("device_put")
def device_put(a: torch.Tensor, device: Any, non_blocking: bool = False) -> Any:
    return to_copy(a, device=device)


_prim("item")(item)
_prim("where")(where)


@_prim("broadcast_in_dim")
def broadcast_in_dim(a: RemoteTensor, shape: Sequence[int], broadcast_dimensions: Sequence[int]) -> Any:
    placed = [1] * len(shape)
    for size, axis in zip(a.shape, broadcast_dimensions):
        placed[axis] = size
    return aten.expand.default(aten.view.default(a, placed), list(shape))


@_prim("collapse_view")
@_prim("collapse")
def collapse(a: RemoteTensor, start: int, end: int) -> Any:
    return aten.flatten.using_ints(a, start, end)


@_prim("split_dim")
def split_dim(a: RemoteTensor, dim: int, outer_length: int) -> Any:
    return aten.view.default(a, [*a.shape[:dim], outer_length, a.shape[dim] // outer_length, *a.shape[dim + 1 :]])


def _reduction(name: str) -> None:
    @_prim(name)
    def apply(inp: RemoteTensor, dims: Sequence[int] | None, *, output_dtype: Any = None) -> Any:
        x = node_of(inp)
        if output_dtype is not None:
            x = build.cast(x, name_of(output_dtype))
        kind = {"amax": "max", "amin": "min"}.get(name, name)
        return wrap(build.reduce(kind, x, tuple(range(len(x.shape))) if dims is None else tuple(sorted(dims))))


for _name in ("sum", "prod", "amax", "amin"):
    _reduction(_name)


@_prim("var")
def var(inp: RemoteTensor, dims: Sequence[int] | None, correction: float | None = 1, *, output_dtype: Any = None) -> Any:
    return aten.var.correction(inp, dims, correction=correction)


@_prim("iota")
def iota(length: int, *, start: int, step: int, dtype: torch.dtype, device: Any, requires_grad: bool) -> RemoteTensor:
    return wrap(build.arange(start, step, length, name_of(dtype), index_of(device)))


@_prim("full")
def full(shape: Sequence[int], fill_value: Any, *, dtype: torch.dtype, device: Any, requires_grad: bool) -> Any:
    return aten.full.default(list(shape), fill_value, dtype=dtype, device=device)


@_prim("full_like")
def full_like(a: torch.Tensor, fill_value: Any, *, dtype: torch.dtype, device: Any, requires_grad: bool) -> Any:
    return aten.full.default(list(a.shape), fill_value, dtype=dtype, device=device)


@_prim("scalar_tensor")
def scalar_tensor(s: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Any:
    return aten.scalar_tensor.default(s, dtype=dtype, device=device)


@_prim("empty_strided")
@_prim("empty_permuted")
def empty(shape: Sequence[int], order: Sequence[int], *, dtype: torch.dtype, device: Any, requires_grad: bool) -> Any:
    return aten.full.default(list(shape), 0, dtype=dtype, device=device)


@_prim("copy_strided")
def copy_strided(a: RemoteTensor, stride: Sequence[int]) -> RemoteTensor:
    return wrap(node_of(a))

