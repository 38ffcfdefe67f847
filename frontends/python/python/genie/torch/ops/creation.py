"""Tensors from nothing: they are made on the server."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import build
from ..device import current_device
from ..dispatch import HANDLERS, LIBRARY, AnyHandler
from ..dtypes import FLOATS, NAMES, name_of
from ..node import Node
from ..operands import integers, wrapped
from ..tensor import RemoteTensor, wrap


def factory(*names: str) -> Callable[[AnyHandler], AnyHandler]:
    """Registers what makes a tensor where no operand says that it is ours, but `device=` does."""

    def register(function: AnyHandler) -> AnyHandler:
        for name in names:
            LIBRARY.impl(name, function, "PrivateUse1")
        return HANDLERS.add(*(name if "." in name else f"{name}.default" for name in names))(function)

    return register


def index_of(device: Any) -> int:
    """The index that `device=` names."""
    index = None if device is None else torch.device(device).index
    return current_device() if index is None else index


def kind_of(dtype: torch.dtype | None) -> str:
    """The type that `dtype=` names."""
    return name_of(dtype or torch.get_default_dtype())


@factory("empty.memory_format")
def empty(size: Sequence[int], *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None, memory_format: Any = None) -> RemoteTensor:
    return wrap(build.full(tuple(size), 0, kind_of(dtype), index_of(device)))


@factory("empty_strided")
def empty_strided(size: Sequence[int], stride: Sequence[int], *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    # What is on the server is in row-major order, whatever order is asked for.
    return wrap(build.full(tuple(size), 0, kind_of(dtype), index_of(device)))


@factory("zeros")
def zeros(size: Sequence[int], *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    return wrap(build.full(tuple(size), 0, kind_of(dtype), index_of(device)))


@factory("ones")
def ones(size: Sequence[int], *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    return wrap(build.full(tuple(size), 1, kind_of(dtype), index_of(device)))


def _of_value(value: Any) -> torch.dtype:
    if isinstance(value, bool):
        return torch.bool
    return torch.int64 if isinstance(value, int) else torch.get_default_dtype()


@factory("full")
def full(size: Sequence[int], fill_value: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    return wrap(build.full(tuple(size), fill_value, kind_of(dtype or _of_value(fill_value)), index_of(device)))


@factory("scalar_tensor")
def scalar_tensor(s: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    return wrap(build.full((), s, kind_of(dtype), index_of(device)))


def _range(start: Any, end: Any, step: Any, dtype: Any, device: Any) -> Node:
    whole = all(isinstance(v, int) for v in (start, end, step))
    kind = name_of(dtype or (torch.int64 if whole else torch.get_default_dtype()))
    if step == 0:
        raise RuntimeError("step must be nonzero")
    if (end - start) * step < 0:
        raise RuntimeError("upper bound and lower bound inconsistent with step sign")
    count = -(-(end - start) // step) if whole else math.ceil((end - start) / step)
    return build.arange(start, step, int(count), kind, index_of(device))


@factory("arange")
def arange(end: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    return wrap(_range(0, end, 1, dtype, device))


@factory("arange.start")
def arange_from(start: Any, end: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    return wrap(_range(start, end, 1, dtype, device))


@factory("arange.start_step")
def arange_by(start: Any, end: Any, step: Any = 1, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    return wrap(_range(start, end, step, dtype, device))


@factory("linspace")
def linspace(start: Any, end: Any, steps: int, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    kind, index = kind_of(dtype), index_of(device)
    if steps < 0:
        raise RuntimeError("number of steps must be non-negative")
    if kind not in FLOATS:
        values = _spaced(start, end, steps)
        return wrap(build.cast(integers([wrapped(int(value), kind) for value in values], (steps,), index), kind))
    if steps < 2:
        return wrap(build.full((steps,), start, kind, index))
    # From both ends, as torch does it, so that the last element is `end`.
    step, half = (end - start) / (steps - 1), steps // 2
    up = build.arange(float(start), step, half, "f32", index)
    down = build.flip(build.arange(float(end), -step, steps - half, "f32", index), [0])
    return wrap(build.cast(build.concat([up, down], 0), kind))


def _spaced(start: Any, end: Any, steps: int) -> list[float]:
    """For whole numbers: each is cut off, so that it must be exact before."""
    start, end = int(start), int(end)
    step = (end - start) / (steps - 1) if steps > 1 else 0
    return [start + step * i if i < steps // 2 or steps == 1 else end - step * (steps - i - 1) for i in range(steps)]


@factory("linspace.Tensor_Tensor", "linspace.Tensor_Scalar", "linspace.Scalar_Tensor")
def linspace_between(start: Any, end: Any, steps: int, **options: Any) -> RemoteTensor:
    first, last = _numbers(start, end)
    return linspace(first, last, steps, **options)


@factory("logspace")
def logspace(
    start: Any, end: Any, steps: int, base: float = 10.0, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> RemoteTensor:
    kind, index = kind_of(dtype), index_of(device)
    if kind not in FLOATS:
        values = [wrapped(int(base**power), kind) for power in _spaced(start, end, steps)]
        return wrap(build.cast(integers(values, (steps,), index), kind))
    powers = build.cast(linspace(start, end, steps, dtype=dtype, device=device)._storage.node, "f32")
    made = build.binary("pow", build.full((), base, "f32", powers.device), powers)
    return wrap(build.cast(made, kind_of(dtype)))


@factory("logspace.Tensor_Tensor", "logspace.Tensor_Scalar", "logspace.Scalar_Tensor")
def logspace_between(start: Any, end: Any, steps: int, base: float = 10.0, **options: Any) -> RemoteTensor:
    first, last = _numbers(start, end)
    return logspace(first, last, steps, base, **options)


def _numbers(*values: Any) -> list[Any]:
    for value in values:
        if isinstance(value, torch.Tensor) and value.dim():
            raise RuntimeError(f"linspace only supports 0-dimensional start and end tensors, but got a tensor with {value.dim()} dimension(s).")
    return [value.item() if isinstance(value, torch.Tensor) else value for value in values]


@factory("eye")
def eye(n: int, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    return rectangle(n, n, dtype=dtype, device=device)


@factory("eye.m")
def rectangle(n: int, m: int, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    index = index_of(device)
    rows, columns = (build.arange(0, 1, k, "i64", index) for k in (n, m))
    return wrap(build.cast(build.compare("eq", build.reshape(rows, (n, 1)), build.reshape(columns, (1, m))), kind_of(dtype)))


def _triangle(name: str) -> None:
    @factory(name)
    def apply(
        row: int, col: int, offset: int = 0, *, dtype: Any = torch.int64, layout: Any = None, device: Any = None, pin_memory: Any = None
    ) -> RemoteTensor:
        from .transfer import upload

        kind = name_of(dtype or torch.int64)
        # torch counts them here: how many there are is known only then.
        return wrap(upload(getattr(torch, name)(row, col, offset), kind, index_of(device)))


_triangle("tril_indices")
_triangle("triu_indices")


# ---- like another tensor


def _like(value: Any) -> Callable[..., RemoteTensor]:
    def like(
        self: torch.Tensor, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None, memory_format: Any = None
    ) -> RemoteTensor:
        if device is not None and torch.device(device).type != "remote_accelerator":
            return torch.full(self.shape, value, dtype=dtype or self.dtype, device=device)  # type: ignore[return-value]
        index = self.device.index if device is None else index_of(device)
        return wrap(build.full(tuple(self.shape), value, name_of(dtype or self.dtype), index))

    return like


for _name, _value in {"empty_like.default": 0, "zeros_like.default": 0, "ones_like.default": 1}.items():
    HANDLERS.add(_name)(_like(_value))


@HANDLERS.add("full_like.default")
def full_like(self: torch.Tensor, fill_value: Any, **options: Any) -> RemoteTensor:
    return _like(fill_value)(self, **options)


def _new(value: Any) -> Callable[..., RemoteTensor]:
    def new(
        self: torch.Tensor, size: Sequence[int], *_: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
    ) -> RemoteTensor:
        if device is not None and torch.device(device).type != "remote_accelerator":
            return torch.full(tuple(size), value, dtype=dtype or self.dtype, device=device)  # type: ignore[return-value]
        index = self.device.index if device is None else index_of(device)
        return wrap(build.full(tuple(size), value, name_of(dtype or self.dtype), index))

    return new


for _name, _value in {"new_empty.default": 0, "new_zeros.default": 0, "new_ones.default": 1, "new_empty_strided.default": 0}.items():
    HANDLERS.add(_name)(_new(_value))


@HANDLERS.add("new_full.default")
def new_full(self: torch.Tensor, size: Sequence[int], fill_value: Any, **options: Any) -> RemoteTensor:
    return _new(fill_value)(self, size, **options)


@HANDLERS.add("fill_.Scalar", "fill_.Tensor")
def fill_in(self: RemoteTensor, value: Any) -> RemoteTensor:
    from ..operands import operand
    from ..tensor import write

    return write(self, operand(value, NAMES[self.dtype], self._storage.node.device))


@HANDLERS.add("zero_.default")
def zero_in(self: RemoteTensor) -> RemoteTensor:
    return fill_in(self, 0)


@HANDLERS.add("fill.Scalar", "fill.Tensor")
def fill(self: RemoteTensor, value: Any) -> RemoteTensor:
    from ..operands import operand

    return wrap(build.expand(operand(value, NAMES[self.dtype], self._storage.node.device), tuple(self.shape)))
