"""Views: other tensors on the same memory. torch itself, on tensors without memory, says what their sizes and strides are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import build
from ..dispatch import HANDLERS, aten
from ..storage import Expand, Permute, Reshape, Slice, Step, Strided
from ..tensor import RemoteTensor, adopt, node_of, shadow, view_of, wrap

Steps = Callable[..., Sequence[Step]]
Handler = Callable[..., RemoteTensor]


def view(name: str) -> Callable[[Steps], Steps]:
    """Registers a view. The function gets its tensor, what torch makes of its shadow, and the arguments; it gives the steps."""

    def register(steps: Steps) -> Steps:
        HANDLERS.add(name)(_asked(name, steps))
        return steps

    return register


def _asked(name: str, steps: Steps) -> Handler:
    packet, _, overload = name.partition(".")
    func = getattr(getattr(aten, packet), overload or "default")

    def handler(self: RemoteTensor, *args: Any, **kwargs: Any) -> RemoteTensor:
        like = func(shadow(self), *args, **kwargs)
        return view_of(self, tuple(like.shape), like.stride(), like.storage_offset(), tuple(steps(self, like, *args, **kwargs)))

    return handler


def _reshaped(self: RemoteTensor, like: torch.Tensor, *_: Any, **__: Any) -> Sequence[Step]:
    return [Reshape(tuple(like.shape))] if like.shape != self.shape else []


for _name in ("squeeze.default", "squeeze.dim", "squeeze.dims", "_reshape_alias.default"):
    view(_name)(_reshaped)


@view("alias.default")
@view("detach.default")
@view("lift_fresh.default")
def _same(self: RemoteTensor, like: torch.Tensor) -> Sequence[Step]:
    return []


@view("permute.default")
def _permuted(self: RemoteTensor, like: torch.Tensor, dims: Sequence[int]) -> Sequence[Step]:
    return [Permute([build.axis_of(d, self.dim()) for d in dims])]


@view("t.default")
def _t(self: RemoteTensor, like: torch.Tensor) -> Sequence[Step]:
    return [Permute((1, 0))] if self.dim() == 2 else []


# ---- those that models take all the time: sizes and strides are worked out here, which takes a fifth of the time


def often(name: str) -> Callable[[Handler], Handler]:
    """Registers a view that works out by itself what it looks like. Where it cannot, or the arguments are wrong, torch is asked."""

    def register(handler: Handler) -> Handler:
        HANDLERS.add(name)(handler)
        return handler

    return register


_view_asked = _asked("view.default", _reshaped)


@often("view.default")
@often("_unsafe_view.default")
def reshaped(self: RemoteTensor, size: Sequence[int]) -> RemoteTensor:
    shape = tuple(self.shape)
    stride = _row_major(shape)
    if self.stride() != stride:
        return _view_asked(self, size)
    wanted = tuple(size)
    count = math.prod(shape)
    if -1 in wanted:
        known = -math.prod(wanted)
        if known <= 0 or count % known:
            return _view_asked(self, size)
        wanted = tuple(count // known if n == -1 else n for n in wanted)
    elif math.prod(wanted) != count:
        return _view_asked(self, size)
    return view_of(self, wanted, _row_major(wanted), 0, (Reshape(wanted),) if wanted != shape else ())


@often("transpose.int")
def transposed(self: RemoteTensor, dim0: int, dim1: int) -> RemoteTensor:
    size, stride = list(self.shape), list(self.stride())
    rank = len(size)
    a, b = build.axis_of(dim0, rank), build.axis_of(dim1, rank)
    if not rank or a == b:
        return view_of(self, tuple(size), tuple(stride), 0, ())
    perm = list(range(rank))
    for values in (perm, size, stride):
        values[a], values[b] = values[b], values[a]
    return view_of(self, tuple(size), tuple(stride), 0, (Permute(perm),))


@often("unsqueeze.default")
def unsqueezed(self: RemoteTensor, dim: int) -> RemoteTensor:
    size, stride = list(self.shape), list(self.stride())
    axis = build.axis_of(dim, len(size) + 1)
    stride.insert(axis, size[axis] * stride[axis] if axis < len(size) else 1)
    size.insert(axis, 1)
    shape = tuple(size)
    return view_of(self, shape, tuple(stride), 0, (Reshape(shape),))


@often("slice.Tensor")
def sliced(self: RemoteTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> RemoteTensor:
    size, stride = list(self.shape), list(self.stride())
    axis = build.axis_of(dim, len(size))
    if not size:
        raise RuntimeError("slice() cannot be applied to a 0-dim tensor.")
    if step <= 0:
        raise RuntimeError("slice step must be positive")
    first, last, _ = slice(start, end, step).indices(size[axis])
    last = max(first, last)
    count = -(-(last - first) // step)
    if count == size[axis]:
        return view_of(self, tuple(size), tuple(stride), 0, ())
    offset = first * stride[axis]
    size[axis], stride[axis] = count, stride[axis] * step
    return view_of(self, tuple(size), tuple(stride), offset, (Slice(axis, first, last, step),))


def _expanded(self: RemoteTensor, like: torch.Tensor, *_: Any, **__: Any) -> Sequence[Step]:
    return [Expand(tuple(like.shape))] if like.shape != self.shape else []


_expand_asked = _asked("expand.default", _expanded)


@often("expand.default")
def expanded(self: RemoteTensor, size: Sequence[int], *, implicit: bool = False) -> RemoteTensor:
    shape, stride = tuple(self.shape), self.stride()
    lead = len(size) - len(shape)
    wanted, strides = list(size), [0] * len(size)
    for i, n in enumerate(wanted):
        if i < lead:
            if n < 2:
                return _expand_asked(self, size)
        elif n in (-1, shape[i - lead]):
            wanted[i], strides[i] = shape[i - lead], stride[i - lead]
        elif shape[i - lead] != 1 or n < 0:
            return _expand_asked(self, size)
    made = tuple(wanted)
    return view_of(self, made, tuple(strides), 0, (Expand(made),) if made != shape else ())


@often("select.int")
def selected(self: RemoteTensor, dim: int, index: int) -> RemoteTensor:
    size, stride = list(self.shape), list(self.stride())
    if not size:
        raise IndexError("select() cannot be applied to a 0-dim tensor.")
    axis = build.axis_of(dim, len(size))
    if not -size[axis] <= index < size[axis]:
        raise IndexError(f"select(): index {index} out of range for tensor of size {size} at dimension {axis}")
    at = index % size[axis]
    offset = at * stride[axis]
    del size[axis], stride[axis]
    shape = tuple(size)
    return view_of(self, shape, tuple(stride), offset, (Slice(axis, at, at + 1, 1), Reshape(shape)))


# ---- others


@view("diagonal.default")
def _diagonal(self: RemoteTensor, like: torch.Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Sequence[Step]:
    # Along a flattened pair of dimensions it is a slice by steps.
    rank = self.dim()
    a, b = build.axis_of(dim1, rank), build.axis_of(dim2, rank)
    rest = [i for i in range(rank) if i not in (a, b)]
    outer = tuple(self.shape[i] for i in rest)
    rows, columns = self.shape[a], self.shape[b]
    count, first = like.shape[-1], (offset if offset >= 0 else -offset * columns)
    joined = Reshape((*outer, rows * columns))
    if not count:
        return [Permute([*rest, a, b]), joined, Slice(len(rest), 0, 0, 1)]
    return [Permute([*rest, a, b]), joined, Slice(len(rest), first, first + (count - 1) * (columns + 1) + 1, columns + 1)]


@view("unfold.default")
def _unfolded(self: RemoteTensor, like: torch.Tensor, dimension: int, size: int, step: int) -> Sequence[Step]:
    # Windows overlap: they are any elements of the tensor itself, which is in row-major order once it is made flat.
    strides, axis = _row_major(self.shape), build.axis_of(dimension, self.dim()) if self.dim() else 0
    if not self.dim():
        return [Reshape((1,)), Strided(tuple(like.shape), (1,) * like.dim(), 0)]
    windowed = [stride * step if i == axis else stride for i, stride in enumerate(strides)]
    return [Strided(tuple(like.shape), (*windowed, strides[axis]), 0)]


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    strides, stride = [], 1
    for size in reversed(shape):
        strides.append(stride)
        stride *= size or 1
    return tuple(reversed(strides))


@HANDLERS.add("as_strided.default")
def as_strided(self: RemoteTensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> RemoteTensor:
    # It looks at the memory, not at what the tensor shows of it.
    offset = int(self.storage_offset() if storage_offset is None else storage_offset)
    base = self._storage.node
    reach = offset + 1 + sum((n - 1) * s for n, s in zip(size, stride)) if all(size) else 0
    if reach > base.numel:
        raise RuntimeError(
            f"setStorage: sizes {list(size)}, strides {list(stride)}, storage offset {offset} are out of bounds for storage of {base.numel} elements"
        )
    like = torch.empty_strided(tuple(size), tuple(stride), dtype=self.dtype, device="meta")
    made = RemoteTensor(
        self._storage, (Strided(tuple(size), tuple(stride), offset),), tuple(size), self.dtype, base.device, like.stride(), offset
    )
    return made


# ---- in place: the tensor looks at its memory in another way


def _in_place(name: str, written: str | None = None) -> None:
    packet, _, overload = name.partition(".")
    viewed = getattr(getattr(aten, packet), overload or "default")

    @HANDLERS.add(written or f"{packet}_.{overload or 'default'}")
    def apply(self: RemoteTensor, *args: Any, **kwargs: Any) -> RemoteTensor:
        return adopt(self, viewed(self, *args, **kwargs))


for _name in ("as_strided", "squeeze", "squeeze.dim", "squeeze.dims", "t", "unsqueeze"):
    _in_place(_name)
# The one whose form in place has another overload.
_in_place("transpose.int", "transpose_.default")


@HANDLERS.add("resize_.default")
def resize_in(self: RemoteTensor, size: Sequence[int], *, memory_format: Any = None) -> RemoteTensor:
    x = node_of(self)
    count = math.prod(size)
    flat = build.reshape(x, (x.numel,))
    if count <= x.numel:
        flat = build.slice_axis(flat, 0, 0, count)
    else:
        flat = build.pad(flat, (0,), (count - x.numel,), 0)
    return adopt(self, wrap(build.reshape(flat, tuple(size))))


@HANDLERS.add("resize_as_.default")
def resize_as_in(self: RemoteTensor, the_template: torch.Tensor, *, memory_format: Any = None) -> RemoteTensor:
    return resize_in(self, tuple(the_template.shape))


@HANDLERS.add("set_.source_Tensor")
def set_in(self: RemoteTensor, source: RemoteTensor) -> RemoteTensor:
    return adopt(self, source)


# ---- several views at once


@HANDLERS.add("split.Tensor")
def split(self: RemoteTensor, split_size: int, dim: int = 0) -> list[RemoteTensor]:
    axis = build.axis_of(dim, self.dim())
    size = self.shape[axis]
    if split_size < 0 or (split_size == 0 and size):
        raise RuntimeError(f"split expects split_size be non-negative, but got split_size={split_size}")
    starts = range(0, size, split_size) if size else [0]
    return [sliced(self, axis, at, min(size, at + split_size)) for at in starts]


@HANDLERS.add("split_with_sizes.default")
def split_with_sizes(self: RemoteTensor, split_sizes: Sequence[int], dim: int = 0) -> list[RemoteTensor]:
    axis = build.axis_of(dim, self.dim())
    if sum(split_sizes) != self.shape[axis]:
        raise RuntimeError(
            f"split_with_sizes expects split_sizes to sum exactly to {self.shape[axis]} (input tensor's size at dimension "
            f"{dim}), but got split_sizes={list(split_sizes)}"
        )
    out: list[RemoteTensor] = []
    at = 0
    for size in split_sizes:
        out.append(sliced(self, axis, at, at + size))
        at += size
    return out


@HANDLERS.whole("tensor_split.tensor_indices_or_sections")
def tensor_split(self: RemoteTensor, tensor_indices_or_sections: torch.Tensor, dim: int = 0) -> list[RemoteTensor]:
    # Where to split is asked of the server: the sizes of tensors are known here.
    where = tensor_indices_or_sections.tolist()
    return list(aten.tensor_split(self, where, dim))


@HANDLERS.add("unbind.int")
def unbind(self: RemoteTensor, dim: int = 0) -> list[RemoteTensor]:
    axis = build.axis_of(dim, self.dim())
    return [selected(self, axis, i) for i in range(self.shape[axis])]


# ---- the same without sharing memory


def copied(name: str, viewed: Callable[..., Any]) -> None:
    """Registers the form of a view that has memory of its own."""

    def handler(*args: Any, **kwargs: Any) -> Any:
        made = viewed(*args, **kwargs)
        return [wrap(node_of(v)) for v in made] if isinstance(made, (list, tuple)) else wrap(node_of(made))

    HANDLERS.add(name)(handler)


for _name in (
    "alias", "as_strided", "detach", "diagonal", "expand", "permute", "select.int", "slice.Tensor", "split.Tensor", "split_with_sizes",
    "squeeze", "squeeze.dim", "squeeze.dims", "t", "transpose.int", "unbind.int", "unfold", "unsqueeze", "view",
):  # fmt: skip
    _packet, _, _overload = _name.partition(".")
    copied(f"{_packet}_copy.{_overload or 'default'}", getattr(getattr(aten, _packet), _overload or "default"))


@HANDLERS.add("view.dtype")
def view_dtype(self: RemoteTensor, dtype: torch.dtype) -> RemoteTensor:
    if dtype == self.dtype:
        return view_of(self, tuple(self.shape), self.stride(), 0, ())
    raise NotImplementedError(
        f"remote_accelerator does not look at {self.dtype} as {dtype}: .to({dtype}) converts the numbers; x.cpu().view(dtype) has the bits"
    )


