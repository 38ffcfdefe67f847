"""Pools, and other windows over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import build
from ..dispatch import HANDLERS, widened
from ..dtypes import is_float
from ..node import Node
from ..operands import integers, scalar
from ..tensor import RemoteTensor, node_of, wrap

Sizes = tuple[int, ...]


def per_axis(values: Any, rank: int) -> Sizes:
    """A number an axis, from one for all or one each."""
    values = [values] if isinstance(values, int) else list(values)
    return tuple(values * rank if len(values) == 1 else values)


def _steps(stride: Any, kernel: Sizes) -> Sizes:
    return kernel if stride is None or (not isinstance(stride, int) and not len(stride)) else per_axis(stride, len(kernel))


def _batched(self: RemoteTensor, rank: int) -> tuple[Node, bool]:
    x = node_of(self)
    if len(x.shape) not in (rank + 1, rank + 2):
        raise RuntimeError(f"Expected {rank + 1}D or {rank + 2}D input, but got {list(x.shape)}")
    return (build.reshape(x, (1, *x.shape)), True) if len(x.shape) == rank + 1 else (x, False)


def _counts(sizes: Sequence[int], kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil: bool) -> Sizes:
    return tuple(_count(*one, ceil) for one in zip(sizes, kernel, stride, padding, dilation))


def _count(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    """Windows along an axis: with `ceil` the last may reach behind the padding, but begins before it."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-span // stride) if ceil else span // stride) + 1
    if ceil and (count - 1) * stride >= size + padding:
        count -= 1
    if count < 1:
        raise RuntimeError(f"Given input size {size}, calculated output size {count}: Output size is too small")
    return count


def windows(x: Node, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, count: Sizes, fill: Any) -> Node:
    """x `[N, C, sizes]` -> `[N, C, counts, elements of a window]`; what lies outside is `fill`."""
    rank = len(kernel)
    reach = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(count, stride, dilation, kernel)]
    after = [max(0, r - p - size) for r, p, size in zip(reach, padding, x.shape[2:])]
    x = build.pad(x, (0, 0, *padding), (0, 0, *after), fill)
    for i in range(rank):
        axis = 2 + i
        begin, step = build.arange(0, stride[i], count[i], "i64", x.device), build.arange(0, dilation[i], kernel[i], "i64", x.device)
        ids = build.add(build.reshape(begin, (count[i], 1)), build.reshape(step, (1, kernel[i])))
        x = build.take(x, build.reshape(ids, (count[i] * kernel[i],)), axis)
    shape: list[int] = list(x.shape[:2])
    for n, k in zip(count, kernel):
        shape += [n, k]
    x = build.reshape(x, tuple(shape))
    perm = [0, 1, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2)]
    return build.reshape(build.transpose(x, perm), (*x.shape[:2], *count, math.prod(kernel)))


def _strides(sizes: Sequence[int]) -> list[int]:
    out, stride = [0] * len(sizes), 1
    for i in range(len(sizes) - 1, -1, -1):
        out[i], stride = stride, stride * sizes[i]
    return out


# ---- the largest


def _found(x: Node, local: Node, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> Node:
    """Indices into each image, from those into windows `[N, C, counts]`."""
    device, rank = x.device, len(kernel)
    total: Node | None = None
    for i, (within, across) in enumerate(zip(_strides(kernel), _strides(x.shape[2:]))):
        step = build.binary("floor_divide", local, scalar(within, "i64", device))
        step = build.binary("remainder", step, scalar(kernel[i], "i64", device))
        begin = build.arange(-padding[i], stride[i], local.shape[2 + i], "i64", device)
        begin = build.reshape(begin, tuple(local.shape[2 + i] if j == i else 1 for j in range(rank)))
        at = build.mul(build.add(build.mul(step, scalar(dilation[i], "i64", device)), begin), scalar(across, "i64", device))
        total = at if total is None else build.add(total, at)
    assert total is not None
    return total


def _max_pool(self: RemoteTensor, rank: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> Any:
    x, alone = _batched(self, rank)
    kernel, padding, dilation = (per_axis(v, rank) for v in (kernel_size, padding, dilation))
    stride = _steps(stride, kernel)
    if any(2 * p > k for p, k in zip(padding, kernel)):
        raise RuntimeError(f"pad should be at most half of effective kernel size, but got pad={padding[0]} and kernel_size={kernel[0]}")
    count = _counts(x.shape[2:], kernel, stride, padding, dilation, ceil)
    least = -math.inf if is_float(x.dtype) else 0 if x.dtype == "u8" else -(1 << (63 if x.dtype == "i64" else 31))
    if 0 in x.shape:
        values = build.empty((*x.shape[:2], *count), x.dtype, x.device)
        where = build.empty(values.shape, "i64", x.device)
    else:
        # Where the largest are is for the way back mostly: what nobody reads does not run.
        shown = windows(x, kernel, stride, padding, dilation, count, least)
        local = build.arg_reduce("max", shown, rank + 2)
        where = _found(x, local, kernel, stride, padding, dilation)
        end = [max(p, (n - 1) * s + k - size - p) for n, s, k, size, p in zip(count, stride, kernel, x.shape[2:], padding)]
        if rank == 2 and set(dilation) == {1} and is_float(x.dtype) and all(e < k for e, k in zip(end, kernel)):
            values = build.pool("max", x, kernel, stride, (*padding, *end), False)  # type: ignore[arg-type]
            values = build.slice_axis(build.slice_axis(values, 2, 0, count[0]), 3, 0, count[1])
        else:
            values = build.reduce("max", shown, (rank + 2,))
    return tuple(wrap(build.reshape(v, v.shape[1:]) if alone else v) for v in (values, where))


def _register_max_pool(rank: int) -> None:
    @HANDLERS.add(f"max_pool{rank}d_with_indices.default")
    def apply(
        self: RemoteTensor, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> Any:
        return _max_pool(self, rank, kernel_size, stride, padding, dilation, ceil_mode)


for _rank in (2, 3):
    _register_max_pool(_rank)


@HANDLERS.add("max_pool2d_with_indices_backward.default")
def max_pool2d_backward(grad_output: RemoteTensor, self: RemoteTensor, *rest: Any) -> RemoteTensor:
    x, grad, where = node_of(self), node_of(grad_output), node_of(rest[-1])
    outer, inner = x.shape[:-2], math.prod(x.shape[-2:])
    rows = math.prod(outer)
    flat = build.full((rows, inner), 0, x.dtype, x.device)
    shape = (rows, math.prod(grad.shape[-2:]))
    made = build.scatter_along(flat, build.reshape(where, shape), build.reshape(grad, shape), 1, "add")
    return wrap(build.reshape(made, x.shape))


# ---- the mean


def _avg_pool(
    self: RemoteTensor, rank: int, kernel_size: Any, stride: Any, padding: Any, ceil: bool, counted: bool, divisor: int | None
) -> RemoteTensor:
    x, alone = _batched(self, rank)
    kernel, padding = per_axis(kernel_size, rank), per_axis(padding, rank)
    stride = _steps(stride, kernel)
    if any(2 * p > k for p, k in zip(padding, kernel)):
        raise RuntimeError(f"pad should be at most half of kernel size, but got pad={padding[0]} and kernel_size={kernel[0]}")
    count = _counts(x.shape[2:], kernel, stride, padding, (1,) * rank, ceil)
    reach = [(n - 1) * s + k for n, s, k in zip(count, stride, kernel)]
    within = all(r <= n + 2 * p for r, n, p in zip(reach, x.shape[2:], padding))
    if 0 in x.shape:
        made = build.empty((*x.shape[:2], *count), x.dtype, x.device)
    elif rank == 2 and within and is_float(x.dtype) and not divisor:
        made = build.pool("average", x, kernel, stride, (*padding, *padding), counted)  # type: ignore[arg-type]
        made = build.slice_axis(build.slice_axis(made, 2, 0, count[0]), 3, 0, count[1])
    else:
        sums = build.reduce("sum", windows(x, kernel, stride, padding, (1,) * rank, count, 0), (rank + 2,))
        if divisor:
            made = build.div(sums, scalar(divisor, x.dtype, x.device))
        else:
            made = build.div(sums, build.cast(_divisors(x, kernel, stride, padding, count, counted), x.dtype))
    return wrap(build.reshape(made, made.shape[1:]) if alone else made)


def _divisors(x: Node, kernel: Sizes, stride: Sizes, padding: Sizes, count: Sizes, counted: bool) -> Node:
    """How many elements each window has: those behind the padding never count, those of the padding if asked for."""
    rank, made = len(kernel), build.full((), 1, "i64", x.device)
    for i in range(rank):
        size, pad = x.shape[2 + i], padding[i] if counted else 0
        begins = [n * stride[i] - padding[i] for n in range(count[i])]
        spans = [min(b + kernel[i], size + pad) - max(b, -pad) for b in begins]
        along = integers(spans, tuple(count[i] if j == i else 1 for j in range(rank)), x.device)
        made = build.mul(made, along)
    return made


def _register_avg_pool(rank: int) -> None:
    @HANDLERS.add(f"avg_pool{rank}d.default")
    def apply(
        self: RemoteTensor,
        kernel_size: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> RemoteTensor:
        return _avg_pool(self, rank, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


for _rank in (1, 2, 3):
    _register_avg_pool(_rank)


# ---- as many windows as are asked for


@HANDLERS.add("_adaptive_avg_pool2d.default", "_adaptive_avg_pool3d.default")
@widened
def adaptive_avg_pool(self: RemoteTensor, output_size: Sequence[int]) -> RemoteTensor:
    x = node_of(self)
    lead = len(x.shape) - len(output_size)
    for i, n in enumerate(output_size):
        axis, size = lead + i, x.shape[lead + i]
        if n == size:
            continue
        if n and size % n == 0:
            shape = (*x.shape[:axis], n, size // n, *x.shape[axis + 1 :])
            x = build.reduce("mean", build.reshape(x, shape), (axis + 1,))
            continue
        parts = []
        for k in range(n):
            part = build.slice_axis(x, axis, k * size // n, -(-(k + 1) * size // n))
            parts.append(build.reduce("mean", part, (axis,), True))
        x = build.concat(parts, axis) if parts else build.empty((*x.shape[:axis], 0, *x.shape[axis + 1 :]), x.dtype, x.device)
    return wrap(x)


@HANDLERS.add("adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def adaptive_max_pool(self: RemoteTensor, output_size: Sequence[int]) -> tuple[RemoteTensor, RemoteTensor]:
    rank = len(output_size)
    x, alone = _batched(self, rank)
    sizes = x.shape[2:]
    if 0 in x.shape or 0 in output_size:
        shape = (*x.shape[:2], *output_size)
        made = build.empty(shape, x.dtype, x.device), build.empty(shape, "i64", x.device)
        return tuple(wrap(build.reshape(v, v.shape[1:]) if alone else v) for v in made)  # type: ignore[return-value]
    # Which element of its image each is, beside its value; a window that is shorter than the longest has its last one several times.
    index = build.reshape(build.arange(0, 1, math.prod(sizes), "i64", x.device), (1, 1, *sizes))
    longest = []
    for i, (n, size) in enumerate(zip(output_size, sizes)):
        begins = [k * size // n for k in range(n)]
        ends = [-(-(k + 1) * size // n) for k in range(n)]
        most = max(b - a for a, b in zip(begins, ends))
        longest.append(most)
        ids = integers([min(a + j, b - 1) for a, b in zip(begins, ends) for j in range(most)], (n * most,), x.device)
        x, index = build.take(x, ids, 2 + i), build.take(index, ids, 2 + i)
    split = [size for n, most in zip(output_size, longest) for size in (n, most)]
    perm = [0, 1, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2)]
    width = math.prod(longest)
    x, index = (
        build.reshape(build.transpose(build.reshape(v, (*v.shape[:2], *split)), perm), (*v.shape[:2], *output_size, width)) for v in (x, index)
    )
    at = build.arg_reduce("max", x, rank + 2, True)
    values = build.take_along(x, at, rank + 2)
    where = build.take_along(build.expand(index, x.shape), at, rank + 2)
    shape = (*x.shape[:2], *output_size)
    return tuple(wrap(build.reshape(v, shape[1:] if alone else shape)) for v in (values, where))  # type: ignore[return-value]


# ---- windows themselves


@HANDLERS.add("im2col.default")
def im2col(
    self: RemoteTensor, kernel_size: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> RemoteTensor:
    x, alone = _batched(self, 2)
    kernel, dilation, padding, stride = (per_axis(v, 2) for v in (kernel_size, dilation, padding, stride))
    count = _counts(x.shape[2:], kernel, stride, padding, dilation, False)
    shape = (x.shape[0], x.shape[1] * math.prod(kernel), math.prod(count))
    if 0 in x.shape:
        return wrap(build.empty(shape[1:] if alone else shape, x.dtype, x.device))
    made = build.transpose(windows(x, kernel, stride, padding, dilation, count, 0), (0, 1, 4, 2, 3))
    return wrap(build.reshape(made, shape[1:] if alone else shape))


# ---- images


def _nearest(name: str, rank: int, middle: float) -> None:
    @HANDLERS.add(f"{name}{rank}d.default")
    def apply(self: RemoteTensor, output_size: Sequence[int], *scales: float | None) -> RemoteTensor:
        x = node_of(self)
        for i, n in enumerate(output_size):
            size, scale = x.shape[2 + i], scales[i] if i < len(scales) else None
            step = 1 / scale if scale else size / n
            if size != n or step != 1:
                ids = [min(size - 1, int((k + middle) * step)) for k in range(n)]
                x = build.take(x, integers(ids, (n,), x.device), 2 + i)
        return wrap(x)


for _rank in (1, 2, 3):
    _nearest("upsample_nearest", _rank, 0.0)
    # From the middle of each element, as other libraries do it.
    _nearest("_upsample_nearest_exact", _rank, 0.5)
