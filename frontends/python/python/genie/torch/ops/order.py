"""What is found by putting elements in order, and what is the same among them."""

from __future__ import annotations

from typing import Any

import torch

from .. import build
from ..dispatch import HANDLERS
from ..dtypes import NAMES, is_float, name_of
from ..node import Node
from ..operands import device_among, operand, promoted, scalar
from ..tensor import RemoteTensor, node_of, wrap
from .index import nonzero
from .transfer import download


def _position(x: Node, axis: int) -> Node:
    """Each element's index along an axis, in x's shape."""
    rank = len(x.shape)
    ids = build.arange(0, 1, x.shape[axis], "i64", x.device)
    return build.expand(build.reshape(ids, tuple(x.shape[axis] if i == axis else 1 for i in range(rank))), x.shape)


# ---- the extreme so far


def _running(name: str, kind: str) -> None:
    @HANDLERS.add(f"{name}.default")
    def apply(self: RemoteTensor, dim: int) -> Any:
        x = node_of(self)
        axis = build.axis_of(dim, len(x.shape))
        result = getattr(torch.return_types, name)
        if not x.shape or not x.numel:
            return result((wrap(x), wrap(build.full(x.shape, 0, "i64", x.device))))
        wide = build.cast(x, "u8") if x.dtype == "bool" else x
        values = build.cumulative(kind, wide, axis)
        # An element that is what has been reached is where it was reached; the latest such place counts.
        here = build.compare("eq", wide, values)
        if is_float(x.dtype):
            here = build.binary("bit_or", here, build.unary("is_nan", wide, "bool"))
        at = build.cumulative("max", build.where(here, _position(x, axis), scalar(0, "i64", x.device)), axis)
        return result((wrap(build.cast(values, x.dtype)), wrap(at)))


_running("cummax", "max")
_running("cummin", "min")


# ---- the k-th


def _kth(x: Node, at: Node, axis: int, keep: bool) -> tuple[Node, Node]:
    """The elements at these places of the order along an axis (of x's shape, but 1 there), and where they come from."""
    order = build.argsort(x, axis, False)
    where = build.take_along(order, at, axis)
    values = build.take_along(x, where, axis)
    shape = build.reduced_shape(x.shape, (axis,), keep)
    return build.reshape(values, shape), build.reshape(where, shape)


def _one(x: Node, axis: int) -> tuple[int, ...]:
    return tuple(1 if i == axis else n for i, n in enumerate(x.shape))


@HANDLERS.add("kthvalue.default")
def kthvalue(self: RemoteTensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    x = node_of(self)
    axis = build.axis_of(dim, len(x.shape))
    if not 1 <= k <= (x.shape[axis] if x.shape else 1):
        raise RuntimeError("kthvalue(): selected number k out of range for dimension " + str(axis))
    if not x.shape:
        return torch.return_types.kthvalue((wrap(x), wrap(build.full((), 0, "i64", x.device))))
    at = build.full(_one(x, axis), k - 1, "i64", x.device)
    values, where = _kth(x, at, axis, keepdim)
    return torch.return_types.kthvalue((wrap(values), wrap(where)))


def _median_along(x: Node, axis: int, keep: bool, skip_nan: bool) -> tuple[Node, Node]:
    size = x.shape[axis]
    if not size:
        raise IndexError(f"median(): Expected reduction dim {axis} to have non-zero size.")
    at = build.full(_one(x, axis), (size - 1) // 2, "i64", x.device)
    if not is_float(x.dtype):
        return _kth(x, at, axis, keep)
    # NaN is last in the order: without them the middle is that of what remains, with one of them it is the first of them.
    missing = build.unary("is_nan", x, "bool")
    count = build.sub(scalar(size, "i64", x.device), build.reduce("sum", build.cast(missing, "i64"), (axis,), True))
    if skip_nan:
        middle = build.binary("floor_divide", build.sub(count, scalar(1, "i64", x.device)), scalar(2, "i64", x.device))
        at = build.binary("maximum", middle, scalar(0, "i64", x.device))
    else:
        at = build.where(build.compare("lt", count, scalar(size, "i64", x.device)), count, at)
    return _kth(x, at, axis, keep)


def _median(name: str, skip_nan: bool) -> None:
    @HANDLERS.add(f"{name}.default")
    def of_all(self: RemoteTensor) -> RemoteTensor:
        x = node_of(self)
        if not x.numel:
            return wrap(build.full((), float("nan"), x.dtype, x.device))
        return wrap(_median_along(build.reshape(x, (x.numel,)), 0, False, skip_nan)[0])

    @HANDLERS.add(f"{name}.dim")
    def along(self: RemoteTensor, dim: int, keepdim: bool = False) -> Any:
        x = node_of(self)
        axis = build.axis_of(dim, len(x.shape))
        result = getattr(torch.return_types, name)
        if not x.shape:
            return result((wrap(x), wrap(build.full((), 0, "i64", x.device))))
        return result(tuple(wrap(v) for v in _median_along(x, axis, keepdim, skip_nan)))


_median("median", False)
_median("nanmedian", True)


@HANDLERS.add("mode.default")
def mode(self: RemoteTensor, dim: int = -1, keepdim: bool = False) -> Any:
    x = node_of(self)
    axis = build.axis_of(dim, len(x.shape))
    if not x.shape:
        return torch.return_types.mode((wrap(x), wrap(build.full((), 0, "i64", x.device))))
    if not x.shape[axis]:
        raise IndexError(f"mode(): Expected reduction dim {axis} to have non-zero size.")
    order = build.argsort(x, axis, False)
    ordered = build.take_along(x, order, axis)
    # How long the run of equals is that ends at each place; the first of the longest runs is that of the smallest value.
    at = _position(x, axis)
    begins = build.pad(
        _differs(ordered, axis), [int(i == axis) for i in range(len(x.shape))], [0] * len(x.shape), True
    )
    start = build.cumulative("max", build.where(begins, at, scalar(0, "i64", x.device)), axis)
    longest = build.arg_reduce("max", build.sub(at, start), axis, True)
    shape = build.reduced_shape(x.shape, (axis,), keepdim)
    values, where = (build.reshape(build.take_along(v, longest, axis), shape) for v in (ordered, order))
    return torch.return_types.mode((wrap(values), wrap(where)))


def _differs(x: Node, axis: int) -> Node:
    """Whether each element but the first is another than the one before it."""
    size = x.shape[axis]
    return build.compare("ne", build.slice_axis(x, axis, 1, size), build.slice_axis(x, axis, 0, size - 1))


# ---- quantiles


def _quantile(self: RemoteTensor, q: Any, dim: int | None, keepdim: bool, interpolation: str, skip_nan: bool) -> RemoteTensor:
    x = node_of(self)
    if interpolation not in ("linear", "lower", "higher", "midpoint", "nearest"):
        raise RuntimeError("quantile() interpolation must be one of linear, lower, higher, midpoint or nearest, but got " + interpolation)
    if not x.numel:
        raise RuntimeError("quantile() input tensor must be non-empty")
    if not isinstance(q, torch.Tensor) and not 0 <= q <= 1:
        raise RuntimeError(f"quantile() q values must be in the range [0, 1] but got {q}")
    rank = len(x.shape)
    axis = 0 if dim is None else build.axis_of(dim, rank)
    line = build.reshape(x, (x.numel,)) if dim is None or not rank else build.transpose(x, [*(i for i in range(rank) if i != axis), axis])
    last, n = len(line.shape) - 1, line.shape[-1]
    ordered = build.take_along(line, build.argsort(line, last, False), last)
    asked = operand(q, "f32", x.device)
    count, outer = asked.numel, line.shape[:-1]
    # Where in the order each is: without NaN, or at the end where there is one.
    missing = build.unary("is_nan", line, "bool")
    if skip_nan:
        present = build.reduce("sum", build.cast(build.unary("not", missing), "f32"), (last,), True)
        most = build.binary("maximum", build.sub(present, scalar(1, "f32", x.device)), scalar(0, "f32", x.device))
        at = build.mul(build.reshape(asked, (count,)), most)
    else:
        at = build.expand(build.reshape(build.mul(asked, scalar(n - 1, "f32", x.device)), (count,)), (*outer, count))
        at = build.where(build.reduce("max", missing, (last,), True), scalar(n - 1, "f32", x.device), at)
    if interpolation == "nearest":
        at = build.unary("round", at)
    below = build.unary("ceil" if interpolation == "higher" else "floor", at)
    made = build.take_along(ordered, build.cast(below, "i64"), last)
    if interpolation in ("linear", "midpoint"):
        above = build.take_along(ordered, build.cast(build.unary("ceil", at), "i64"), last)
        weight = build.cast(build.sub(at, below), x.dtype) if interpolation == "linear" else scalar(0.5, x.dtype, x.device)
        made = node_of(torch.ops.aten.lerp.Tensor(wrap(made), wrap(above), wrap(weight)))
    kept = build.reduced_shape(x.shape, range(rank) if dim is None else (axis,) if rank else (), keepdim)
    if not asked.shape:
        return wrap(build.reshape(made, kept))
    return wrap(build.reshape(build.transpose(made, (last, *range(last))), (count, *kept)))


def _register_quantile(name: str, skip_nan: bool) -> None:
    @HANDLERS.whole(f"{name}.default", f"{name}.scalar")
    def apply(
        self: RemoteTensor, q: Any, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear"
    ) -> RemoteTensor:
        return _quantile(self, q, dim, keepdim, interpolation, skip_nan)


_register_quantile("quantile", False)
_register_quantile("nanquantile", True)


# ---- searching


def _searched(edges: Node, values: Node, out_int32: bool, right: bool) -> RemoteTensor:
    """How many edges (`[.., n]`, in order) lie before each value (`[.., m]`, or any shape if edges has one dimension)."""
    dtype = "i32" if out_int32 else "i64"
    n = edges.shape[-1]
    if 0 in values.shape or not n:
        return wrap(build.full(values.shape, 0, dtype, values.device))
    shape = (*(1 for _ in values.shape), n) if len(edges.shape) == 1 else (*edges.shape[:-1], 1, n)
    value = build.reshape(values, (*values.shape, 1))
    # As torch orders: NaN lies after everything.
    before = build.compare("le" if right else "lt", build.reshape(edges, shape), value)
    if is_float(values.dtype):
        before = build.binary("bit_or", before, build.unary("is_nan", value, "bool"))
    return wrap(build.reduce("sum", build.cast(before, dtype), (len(values.shape),)))


def _side(right: bool, side: str | None) -> bool:
    if side not in (None, "left", "right"):
        raise RuntimeError(f"torch.searchsorted(): side can only be 'left' or 'right' but got {side}")
    if side == "left" and right:
        raise RuntimeError("torch.searchsorted(): side and right can't be set to opposites, got side of left while right was True")
    return right or side == "right"


@HANDLERS.add("searchsorted.Tensor", "searchsorted.Scalar")
def searchsorted(
    sorted_sequence: RemoteTensor, self: Any, *, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Any = None
) -> RemoteTensor:
    dtype, device = promoted(sorted_sequence, self), device_among((sorted_sequence, self))
    edges, values = operand(sorted_sequence, dtype, device), operand(self, dtype, device)
    if sorter is not None:
        edges = build.take_along(edges, node_of(sorter), len(edges.shape) - 1)
    return _searched(edges, values, out_int32, _side(right, side))


@HANDLERS.add("bucketize.Tensor", "bucketize.Scalar")
def bucketize(self: Any, boundaries: RemoteTensor, *, out_int32: bool = False, right: bool = False) -> RemoteTensor:
    return searchsorted(boundaries, self, out_int32=out_int32, right=right)


@HANDLERS.add("isin.Tensor_Tensor", "isin.Tensor_Scalar", "isin.Scalar_Tensor")
def isin(elements: Any, test_elements: Any, *, assume_unique: bool = False, invert: bool = False) -> RemoteTensor:
    dtype, device = promoted(elements, test_elements), device_among((elements, test_elements))
    x, tests = operand(elements, dtype, device), operand(test_elements, dtype, device)
    if 0 in x.shape or 0 in tests.shape:
        return wrap(build.full(x.shape, invert, "bool", device))
    same = build.compare("eq", build.reshape(x, (*x.shape, 1)), build.reshape(tests, (tests.numel,)))
    found = build.reduce("max", same, (len(x.shape),))
    return wrap(build.unary("not", found) if invert else found)


# ---- what is the same: how many there are is asked of the server


def _groups(differs: Node, count: int) -> tuple[Node, Node, Node]:
    """Of a sequence, by whether each but the first differs from the one before: its groups' numbers, first places and lengths."""
    device = differs.device
    begins = build.pad(differs, (1,), (0,), True)
    number = build.sub(build.cumulative("sum", build.cast(begins, "i64"), 0), scalar(1, "i64", device))
    first = node_of(nonzero(wrap(begins)))
    first = build.reshape(first, (first.shape[0],))
    ends = build.concat([build.slice_axis(first, 0, 1, first.shape[0]), build.full((1,), count, "i64", device)], 0)
    return number, first, build.sub(ends, first)


def _rows(x: Node, dim: int | None) -> tuple[Node, int]:
    if dim is None:
        return build.reshape(x, (x.numel, 1)), 0
    axis = build.axis_of(dim, len(x.shape))
    moved = build.transpose(x, [axis, *(i for i in range(len(x.shape)) if i != axis)])
    return build.reshape(moved, (x.shape[axis], x.numel // max(1, x.shape[axis]))), axis


def _unique(self: RemoteTensor, dim: int | None, order: bool, inverse: bool, counts: bool) -> tuple[RemoteTensor, ...]:
    x = node_of(self)
    nothing = wrap(build.empty((0,), "i64", x.device))
    if not x.numel:
        return wrap(build.empty((0,), x.dtype, x.device) if dim is None else x), nothing, nothing
    rows, axis = _rows(x, dim)
    n, width = rows.shape
    ids: Node | None = None
    if order:
        # By the first column, then the next: sorted by the last one first, as the sort is stable.
        for column in reversed(range(width)):
            keys = build.reshape(build.slice_axis(rows, 1, column, column + 1), (n,))
            keys = keys if ids is None else build.gather(keys, ids)
            step = build.argsort(keys, 0, False)
            ids = step if ids is None else build.gather(ids, step)
    ordered = rows if ids is None else build.gather(rows, ids)
    number, first, lengths = _groups(build.reduce("max", _differs(ordered, 0), (1,)), n)
    kept = build.gather(ordered, first)
    if dim is None:
        values = build.reshape(kept, (first.shape[0],))
    else:
        outer = [n for i, n in enumerate(x.shape) if i != axis]
        values = build.reshape(kept, (first.shape[0], *outer))
        values = build.transpose(values, [*range(1, axis + 1), 0, *range(axis + 1, len(x.shape))])
    back = number if ids is None else build.scatter_along(number, ids, number, 0)
    shown = wrap(build.reshape(back, x.shape if dim is None else (n,))) if inverse else nothing
    return wrap(values), shown, wrap(lengths) if counts else nothing


@HANDLERS.add("_unique2.default")
def unique(self: RemoteTensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False) -> Any:  # noqa: A002
    return _unique(self, None, True, return_inverse, return_counts)


@HANDLERS.add("_unique.default")
def unique_values(self: RemoteTensor, sorted: bool = True, return_inverse: bool = False) -> Any:  # noqa: A002: torch's name
    return _unique(self, None, True, return_inverse, False)[:2]


@HANDLERS.add("unique_dim.default")
def unique_dim(self: RemoteTensor, dim: int, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False) -> Any:  # noqa: A002
    return _unique(self, dim, True, return_inverse, return_counts)


@HANDLERS.add("unique_consecutive.default")
def unique_consecutive(self: RemoteTensor, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None) -> Any:
    return _unique(self, dim, False, return_inverse, return_counts)


@HANDLERS.add("unique_dim_consecutive.default")
def unique_dim_consecutive(self: RemoteTensor, dim: int, return_inverse: bool = False, return_counts: bool = False) -> Any:
    return _unique(self, dim, False, return_inverse, return_counts)


@HANDLERS.add("repeat_interleave.Tensor")
def repeat_interleave(repeats: RemoteTensor, *, output_size: int | None = None) -> RemoteTensor:
    times = build.cast(node_of(repeats), "i64")
    if not times.numel:
        return wrap(build.empty((0,), NAMES[repeats.dtype], times.device))
    ends = build.cumulative("sum", times, 0)
    size = output_size
    if size is None:
        size = int(download(build.slice_axis(ends, 0, times.numel - 1, times.numel)).item())
    # The place of each is how many ends it has passed.
    at = build.reshape(build.arange(0, 1, size, "i64", times.device), (size, 1))
    if not size:
        return wrap(build.empty((0,), NAMES[repeats.dtype], times.device))
    passed = build.compare("le", build.reshape(ends, (1, times.numel)), at)
    return wrap(build.cast(build.reduce("sum", build.cast(passed, "i64"), (1,)), name_of(repeats.dtype)))


def _edges(low: Any, high: Any, bins: int, x: Node) -> tuple[Node, Node]:
    """Bounds for bins: those given, or the smallest and largest element."""
    if low == 0 and high == 0 and x.numel:
        flat = build.reshape(x, (x.numel,))
        a, b = build.reduce("min", flat, (0,)), build.reduce("max", flat, (0,))
    else:
        a, b = scalar(low, x.dtype, x.device), scalar(high, x.dtype, x.device)
    same, one = build.compare("eq", a, b), scalar(1, x.dtype, x.device)
    return build.where(same, build.sub(a, one), a), build.where(same, build.add(b, one), b)


@HANDLERS.add("histc.default")
def histc(self: RemoteTensor, bins: int = 100, min: Any = 0, max: Any = 0) -> RemoteTensor:  # noqa: A002: torch's names
    x = node_of(self)
    if bins <= 0:
        raise RuntimeError("bins must be > 0")
    counts = build.full((bins,), 0, x.dtype, x.device)
    if not x.numel:
        return wrap(counts)
    low, high = _edges(min, max, bins, x)
    flat = build.reshape(x, (x.numel,))
    inside = build.binary("bit_and", build.compare("ge", flat, low), build.compare("le", flat, high))
    width = build.sub(high, low)
    at = build.div(build.mul(build.sub(flat, low), scalar(bins, x.dtype, x.device)), width)
    at = build.cast(build.where(inside, at, scalar(0, x.dtype, x.device)), "i64")
    at = build.binary("minimum", at, scalar(bins - 1, "i64", x.device))
    return wrap(build.scatter_along(counts, at, build.cast(inside, x.dtype), 0, "add"))


@HANDLERS.add("bincount.default")
def bincount(self: RemoteTensor, weights: RemoteTensor | None = None, minlength: int = 0) -> RemoteTensor:
    x = build.cast(node_of(self), "i64")
    # Of weights that are no float32, torch makes float64.
    dtype = "i64" if weights is None else name_of(weights.dtype if weights.dtype == torch.float32 else torch.float64)
    if not x.numel:
        return wrap(build.full((minlength,), 0, dtype, x.device))
    size = max(minlength, int(download(build.reduce("max", x, (0,))).item()) + 1)
    ones = build.full(x.shape, 1, dtype, x.device) if weights is None else node_of(weights)
    return wrap(build.scatter_along(build.full((size,), 0, dtype, x.device), x, ones, 0, "add"))

