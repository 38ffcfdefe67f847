"""Reductions, scans and orders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .. import build
from ..dispatch import HANDLERS
from ..dtypes import NAMES, is_float, name_of
from ..node import Node
from ..operands import floating, scalar
from ..tensor import RemoteTensor, node_of, wrap
from .pointwise import truth

Axes = Sequence[int] | int | None


def flat(x: Node) -> Node:
    """All elements in one dimension."""
    return build.reshape(x, (x.numel,))


def _summed(self: RemoteTensor, dtype: torch.dtype | None) -> Node:
    """In the type that sums and products have: integers and bool become int64."""
    x = node_of(self)
    if dtype is not None:
        return build.cast(x, name_of(dtype))
    return x if is_float(x.dtype) else build.cast(x, "i64")


@HANDLERS.add("sum.default")
def total(self: RemoteTensor, *, dtype: Any = None) -> RemoteTensor:
    x = _summed(self, dtype)
    return wrap(build.reduce("sum", x, range(len(x.shape))))


@HANDLERS.add("sum.dim_IntList")
def sums(self: RemoteTensor, dim: Axes, keepdim: bool = False, *, dtype: Any = None) -> RemoteTensor:
    x = _summed(self, dtype)
    return wrap(build.reduce("sum", x, build.axes_of(dim, len(x.shape)), keepdim))


def mean_of(x: Node, axes: Sequence[int], keep: bool) -> Node:
    """The mean, NaN of nothing."""
    if 0 in x.shape:
        return build.full(build.reduced_shape(x.shape, axes, keep), math.nan, x.dtype, x.device)
    return build.reduce("mean", x, axes, keep)


@HANDLERS.add("mean.default")
def mean(self: RemoteTensor, *, dtype: Any = None) -> RemoteTensor:
    return means(self, None, dtype=dtype)


@HANDLERS.add("mean.dim")
def means(self: RemoteTensor, dim: Axes, keepdim: bool = False, *, dtype: Any = None) -> RemoteTensor:
    x = build.cast(node_of(self), name_of(dtype or self.dtype))
    if not is_float(x.dtype):
        raise RuntimeError(
            "mean(): could not infer output dtype. Input dtype must be either a floating point or complex dtype. "
            f"Got: {str(self.dtype).removeprefix('torch.')}"
        )
    return wrap(mean_of(x, build.axes_of(dim, len(x.shape)), keepdim))


@HANDLERS.add("prod.default")
def product(self: RemoteTensor, *, dtype: Any = None) -> RemoteTensor:
    x = _summed(self, dtype)
    return wrap(build.reduce("prod", x, range(len(x.shape))))


@HANDLERS.add("prod.dim_int")
def products(self: RemoteTensor, dim: int, keepdim: bool = False, *, dtype: Any = None) -> RemoteTensor:
    x = _summed(self, dtype)
    return wrap(build.reduce("prod", x, _one(x, dim), keepdim))


def _one(x: Node, dim: int) -> tuple[int, ...]:
    axis = build.axis_of(dim, len(x.shape))
    return (axis,) if x.shape else ()


def _check_not_empty(x: Node, axes: Sequence[int], name: str) -> None:
    if any(x.shape[axis] == 0 for axis in axes):
        raise IndexError(f"{name}(): Expected reduction dim {axes[0]} to have non-zero size.")


def _extreme(kind: str) -> None:
    @HANDLERS.add(f"a{kind}.default")
    def over(self: RemoteTensor, dim: Axes = (), keepdim: bool = False) -> RemoteTensor:
        x = node_of(self)
        axes = build.axes_of(dim, len(x.shape))
        _check_not_empty(x, axes, f"a{kind}")
        return wrap(build.reduce(kind, x, axes, keepdim))

    @HANDLERS.add(f"{kind}.default")
    def of_all(self: RemoteTensor) -> RemoteTensor:
        x = node_of(self)
        if not x.numel:
            raise RuntimeError(f"{kind}(): Expected reduction dim to be specified for input.numel() == 0. Specify the reduction dim with the 'dim' argument.")
        return wrap(build.reduce(kind, x, range(len(x.shape))))

    @HANDLERS.add(f"{kind}.dim")
    def with_indices(self: RemoteTensor, dim: int, keepdim: bool = False) -> Any:
        x = node_of(self)
        axes = _one(x, dim)
        _check_not_empty(x, axes, kind)
        values = build.reduce(kind, x, axes, keepdim)
        where = build.arg_reduce(kind, x, axes[0], keepdim) if axes else build.full((), 0, "i64", x.device)
        return getattr(torch.return_types, kind)((wrap(values), wrap(where)))

    @HANDLERS.add(f"arg{kind}.default")
    def where(self: RemoteTensor, dim: int | None = None, keepdim: bool = False) -> RemoteTensor:
        x = node_of(self)
        if dim is None:
            if not x.numel:
                raise IndexError(f"arg{kind}(): Expected reduction dim to be specified for input.numel() == 0.")
            made = build.arg_reduce(kind, flat(x), 0)
            return wrap(build.reshape(made, (1,) * len(x.shape)) if keepdim else made)
        axes = _one(x, dim)
        _check_not_empty(x, axes, f"arg{kind}")
        return wrap(build.arg_reduce(kind, x, axes[0], keepdim) if axes else build.full((), 0, "i64", x.device))


_extreme("max")
_extreme("min")


@HANDLERS.add("aminmax.default")
def aminmax(self: RemoteTensor, *, dim: int | None = None, keepdim: bool = False) -> Any:
    x = node_of(self)
    axes = build.axes_of(dim, len(x.shape)) if dim is None else _one(x, dim)
    _check_not_empty(x, axes, "aminmax")
    keep = keepdim
    return torch.return_types.aminmax((wrap(build.reduce("min", x, axes, keep)), wrap(build.reduce("max", x, axes, keep))))


def _quantifier(name: str, kind: str) -> None:
    def reduced(self: RemoteTensor, dim: Axes, keep: bool) -> RemoteTensor:
        x = truth(node_of(self))
        axes = build.axes_of(dim, len(x.shape))
        shape = build.reduced_shape(x.shape, axes, keep)
        if 0 in x.shape and 0 not in shape:
            made = build.full(shape, name == "all", "bool", x.device)
        else:
            made = build.reduce(kind, x, axes, keep)
        return wrap(build.cast(made, "u8") if self.dtype == torch.uint8 else made)

    @HANDLERS.add(f"{name}.default")
    def of_all(self: RemoteTensor) -> RemoteTensor:
        return reduced(self, None, False)

    @HANDLERS.add(f"{name}.dim")
    def along(self: RemoteTensor, dim: int, keepdim: bool = False) -> RemoteTensor:
        return reduced(self, dim if self.dim() else None, keepdim)

    @HANDLERS.add(f"{name}.dims")
    def over(self: RemoteTensor, dim: Axes = None, keepdim: bool = False) -> RemoteTensor:
        if dim is not None and not dim:
            made = truth(node_of(self))
            return wrap(build.cast(made, "u8") if self.dtype == torch.uint8 else made)
        return reduced(self, dim, keepdim)


_quantifier("all", "min")
_quantifier("any", "max")


@HANDLERS.add("count_nonzero.dim_IntList")
def count_nonzero(self: RemoteTensor, dim: Axes) -> RemoteTensor:
    x = build.cast(truth(node_of(self)), "i64")
    return wrap(build.reduce("sum", x, build.axes_of(dim, len(x.shape))))


@HANDLERS.add("count_nonzero.default")
def count_all_nonzero(self: RemoteTensor, dim: int | None = None) -> RemoteTensor:
    return count_nonzero(self, None if dim is None else [dim])


# ---- spread


def variance(x: Node, axes: Sequence[int], keep: bool, correction: float) -> tuple[Node, Node]:
    """Variance and mean of floats."""
    count = math.prod(x.shape[axis] for axis in axes)
    middle = mean_of(x, axes, True)
    off = build.sub(x, middle)
    squares = build.reduce("sum", build.mul(off, off), axes, keep)
    made = build.div(squares, scalar(max(0.0, count - correction), x.dtype, x.device))
    return made, build.reshape(middle, made.shape)


def _spread(name: str, root: bool) -> None:
    def values(self: RemoteTensor, dim: Axes, correction: Any, keepdim: bool) -> tuple[Node, Node]:
        x = node_of(self)
        if not is_float(x.dtype):
            raise RuntimeError(f"{name}: input must be floating point or complex, but got {self.dtype}")
        wide = build.cast(x, "f32")
        made, middle = variance(wide, build.axes_of(dim, len(x.shape)), keepdim, 1 if correction is None else correction)
        made = build.unary("sqrt", made) if root else made
        return build.cast(made, x.dtype), build.cast(middle, x.dtype)

    @HANDLERS.add(f"{name}.correction")
    def apply(self: RemoteTensor, dim: Axes = None, *, correction: Any = None, keepdim: bool = False) -> RemoteTensor:
        return wrap(values(self, dim, correction, keepdim)[0])

    @HANDLERS.add(f"{name}_mean.correction")
    def with_mean(self: RemoteTensor, dim: Axes = None, *, correction: Any = None, keepdim: bool = False) -> tuple[RemoteTensor, ...]:
        return tuple(wrap(v) for v in values(self, dim, correction, keepdim))


_spread("var", False)
_spread("std", True)

# ---- scans


def _scan(name: str, kind: str) -> None:
    @HANDLERS.add(f"{name}.default")
    def apply(self: RemoteTensor, dim: int, *, dtype: Any = None) -> RemoteTensor:
        x = _summed(self, dtype)
        axis = build.axis_of(dim, len(x.shape))
        return wrap(build.cumulative(kind, x, axis) if x.shape else x)


_scan("cumsum", "sum")
_scan("cumprod", "prod")


@HANDLERS.add("logcumsumexp.default")
def logcumsumexp(self: RemoteTensor, dim: int) -> RemoteTensor:
    x = node_of(self)
    axis = build.axis_of(dim, len(x.shape))
    if not x.shape or not x.numel:
        return wrap(x)
    wide = build.cast(x, "f32")
    most = build.reduce("max", wide, (axis,), True)
    most = build.where(build.unary("is_finite", most, "bool"), most, scalar(0, "f32", x.device))
    sums = build.cumulative("sum", build.unary("exp", build.sub(wide, most)), axis)
    return wrap(build.cast(build.add(build.unary("log", sums), most), x.dtype))


# ---- order


@HANDLERS.add("sort.stable")
def sort_stable(self: RemoteTensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    x = node_of(self)
    axis = build.axis_of(dim, len(x.shape))
    if not x.shape:
        return torch.return_types.sort((wrap(x), wrap(build.full((), 0, "i64", x.device))))
    order = build.argsort(x, axis, descending)
    return torch.return_types.sort((wrap(build.take_along(x, order, axis)), wrap(order)))


@HANDLERS.add("sort.default")
def sort(self: RemoteTensor, dim: int = -1, descending: bool = False) -> Any:
    return sort_stable(self, dim=dim, descending=descending)


@HANDLERS.add("argsort.stable")
def argsort(self: RemoteTensor, *, stable: bool = False, dim: int = -1, descending: bool = False) -> RemoteTensor:
    where: RemoteTensor = sort_stable(self, dim=dim, descending=descending)[1]
    return where


@HANDLERS.add("topk.default")
def topk(self: RemoteTensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:  # noqa: A002: torch's name
    x = node_of(self)
    axis = build.axis_of(dim, len(x.shape))
    if not x.shape:
        return torch.return_types.topk((wrap(x), wrap(build.full((), 0, "i64", x.device))))
    if not 0 <= k <= x.shape[axis]:
        raise RuntimeError("selected index k out of range")
    order = build.slice_axis(build.argsort(x, axis, largest), axis, 0, k)
    return torch.return_types.topk((wrap(build.take_along(x, order, axis)), wrap(order)))


@HANDLERS.add("_softmax.default")
def softmax(self: RemoteTensor, dim: int, half_to_float: bool) -> RemoteTensor:
    x = node_of(self)
    if half_to_float:
        x = build.cast(x, "f32")
    axis = build.axis_of(dim, len(x.shape))
    return wrap(build.softmax(x, axis) if x.shape else build.full((), 1, x.dtype, x.device))


@HANDLERS.add("_log_softmax.default")
def log_softmax(self: RemoteTensor, dim: int, half_to_float: bool) -> RemoteTensor:
    x = node_of(self)
    dtype = "f32" if half_to_float else x.dtype
    if not x.shape:
        return wrap(build.full((), 0, dtype, x.device))
    axis = (build.axis_of(dim, len(x.shape)),)
    x = build.cast(x, "f32")
    off = build.sub(x, build.reduce("max", x, axis, True))
    sum_ = build.reduce("sum", build.unary("exp", off), axis, True)
    return wrap(build.cast(build.sub(off, build.unary("log", sum_)), dtype))


@HANDLERS.add("logsumexp.default")
def logsumexp(self: RemoteTensor, dim: Axes, keepdim: bool = False) -> RemoteTensor:
    x = build.cast(node_of(self), floating(NAMES[self.dtype]))
    axes = build.axes_of(dim, len(x.shape))
    if 0 in x.shape:
        return wrap(build.full(build.reduced_shape(x.shape, axes, keepdim), -math.inf, x.dtype, x.device))
    most = build.reduce("max", x, axes, True)
    # Of infinities there is no difference.
    infinite = build.unary("is_inf", most, "bool")
    most = build.where(infinite, scalar(0, x.dtype, x.device), most)
    sum_ = build.reduce("sum", build.unary("exp", build.sub(x, most)), axes, keepdim)
    return wrap(build.add(build.unary("log", sum_), build.reshape(most, sum_.shape)))
