"""Writing to elements by index, where several writes meet."""

from __future__ import annotations

import math
from typing import Any

from .. import build
from ..dispatch import HANDLERS, widened
from ..dtypes import is_float
from ..node import Node
from ..operands import device_among, operand, scalar
from ..tensor import RemoteTensor, node_of, wrap
from .index import _along, _ids, counted, nonzero

_KINDS = {"sum": "add", "prod": "mul", "mean": "add", "amax": "max", "amin": "min"}
#: What changes nothing, by kind: NaN and infinities of floats are no less than that.
_NOTHING = {"add": 0.0, "mul": 1.0, "max": float("-inf"), "min": float("inf")}
_BOUNDS = {"i64": (-(1 << 63), (1 << 63) - 1), "i32": (-(1 << 31), (1 << 31) - 1), "u8": (0, 255)}


def _neutral(kind: str, x: Node) -> Node:
    value: Any = _NOTHING[kind]
    if not is_float(x.dtype) and kind in ("max", "min"):
        value = _BOUNDS[x.dtype][kind == "min"]
    return scalar(value, x.dtype, x.device)


def _reduced(x: Node, ids: Node, new: Node, axis: int, reduce: str, include_self: bool) -> Node:
    """x with what `new` has for each element put together with it, or in its place."""
    kind, kept = _KINDS[reduce], x.dtype
    if kept == "bool":
        x, new = build.cast(x, "u8"), build.cast(new, "u8")
    if 0 in ids.shape:
        return build.cast(x, kept)
    ones = build.full(ids.shape, 1, "i64", x.device)
    count: Node | None = None
    if reduce == "mean" or not include_self:
        count = build.scatter_along(build.full(x.shape, 0, "i64", x.device), ids, ones, axis, "add")
    start = x
    if count is not None and not include_self:
        start = build.where(build.compare("gt", count, scalar(0, "i64", x.device)), _neutral(kind, x), x)
    made = build.scatter_along(start, ids, new, axis, kind)
    if reduce == "mean" and count is not None:
        most = build.add(count, scalar(1, "i64", x.device)) if include_self else build.binary("maximum", count, scalar(1, "i64", x.device))
        divisor = build.cast(most, x.dtype)
        made = build.div(made, divisor) if is_float(x.dtype) else build.binary("floor_divide", made, divisor)
    return build.cast(made, kept)


@HANDLERS.add("scatter_reduce.two")
@widened
def scatter_reduce(
    self: RemoteTensor, dim: int, index: RemoteTensor, src: RemoteTensor, reduce: str, *, include_self: bool = True
) -> RemoteTensor:
    x, ids, axis = _along(self, dim, index)
    new = node_of(src)
    new = new if len(new.shape) == len(x.shape) else build.reshape(new, (1,) * len(x.shape))
    if 0 not in ids.shape:
        for i, size in enumerate(ids.shape):
            new = build.slice_axis(new, i, 0, size)
    return wrap(build.reshape(_reduced(x, ids, new, axis, reduce, include_self), tuple(self.shape)))


@HANDLERS.add("index_reduce.default")
@widened
def index_reduce(
    self: RemoteTensor, dim: int, index: RemoteTensor, source: RemoteTensor, reduce: str, *, include_self: bool = True
) -> RemoteTensor:
    x, new = node_of(self), node_of(source)
    axis, shape = build.axis_of(dim, len(x.shape)), x.shape
    if not shape:
        x, new = build.reshape(x, (1,)), build.reshape(new, (1,))
    ids = counted(_ids(index, x.device), x.shape[axis])
    ids = build.reshape(ids, tuple(ids.numel if i == axis else 1 for i in range(len(x.shape))))
    new = build.reshape(new, tuple(ids.shape[axis] if i == axis else size for i, size in enumerate(x.shape)))
    return wrap(build.reshape(_reduced(x, build.expand(ids, new.shape), new, axis, reduce, include_self), shape))


@HANDLERS.add("put.default")
def put(self: RemoteTensor, index: RemoteTensor, source: RemoteTensor, accumulate: bool = False) -> RemoteTensor:
    x, new = node_of(self), node_of(source)
    if new.dtype != x.dtype:
        raise RuntimeError(f"put_(): self and source expected to have the same dtype, but got self.dtype = {self.dtype} and source.dtype = {source.dtype}")
    ids = counted(_ids(index, x.device), x.numel)
    if not ids.numel:
        return wrap(x)
    flat = build.reshape(x, (x.numel,))
    ids, new = build.reshape(ids, (ids.numel,)), build.reshape(new, (ids.numel,))
    return wrap(build.reshape(build.scatter_along(flat, ids, new, 0, "add" if accumulate else "set"), x.shape))


@HANDLERS.add("masked_scatter.default")
def masked_scatter(self: RemoteTensor, mask: RemoteTensor, source: RemoteTensor) -> RemoteTensor:
    device = device_among((self, mask, source))
    x, chosen, new = node_of(self), operand(mask, "bool", device), node_of(source)
    if new.dtype != x.dtype:
        raise RuntimeError("masked_scatter: expected self and source to have same dtypes")
    shape = build.broadcast_shapes(x.shape, chosen.shape)
    if 0 in shape:
        return wrap(build.expand(x, shape))
    # The n-th place where the mask holds takes the n-th element. Where it does not hold, any will do.
    flat = build.reshape(build.expand(chosen, shape), (math.prod(shape),))
    at = build.sub(build.cumulative("sum", build.cast(flat, "i64"), 0), scalar(1, "i64", device))
    taken = build.gather(build.reshape(new, (new.numel,)), build.where(flat, at, scalar(0, "i64", device)))
    return wrap(build.where(build.expand(chosen, shape), build.reshape(taken, shape), x))


@HANDLERS.add("nonzero_static.default")
def nonzero_static(self: RemoteTensor, *, size: int, fill_value: int = -1) -> RemoteTensor:
    found = node_of(nonzero(self))
    count, rank = found.shape
    if count >= size:
        return wrap(build.slice_axis(found, 0, 0, size))
    return wrap(build.pad(found, (0, 0), (size - count, 0), fill_value))

