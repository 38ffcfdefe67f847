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


def view(name: str) -> Callable[[Steps], Steps]:
    """Registers a view. The function gets its tensor, what torch makes of its shadow, and the arguments; it gives the steps."""

    def register(steps: Steps) -> Steps:
        packet, _, overload = name.partition(".")
        func = getattr(getattr(aten, packet), overload or "default")

        def handler(self: RemoteTensor, *args: Any, **kwargs: Any) -> RemoteTensor:
            like = func(shadow(self), *args, **kwargs)
            return view_of(self, like, *steps(self, like, *args, **kwargs))

        HANDLERS.add(name)(handler)
        return steps

    return register


@view("view.default")
@view("_unsafe_view.default")
@view("unsqueeze.default")
@view("squeeze.default")
@view("squeeze.dim")
@view("squeeze.dims")
@view("_reshape_alias.default")
def _reshaped(self: RemoteTensor, like: torch.Tensor, *_: Any, **__: Any) -> Sequence[Step]:
    return [Reshape(tuple(like.shape))] if like.shape != self.shape else []


@view("alias.default")
@view("detach.default")
@view("lift_fresh.default")
def _same(self: RemoteTensor, like: torch.Tensor) -> Sequence[Step]:
    return []


@view("expand.default")
def _expanded(self: RemoteTensor, like: torch.Tensor, *_: Any, **__: Any) -> Sequence[Step]:
    return [Expand(tuple(like.shape))] if like.shape != self.shape else []


@view("permute.default")
def _permuted(self: RemoteTensor, like: torch.Tensor, dims: Sequence[int]) -> Sequence[Step]:
    return [Permute([build.axis_of(d, self.dim()) for d in dims])]


@view("transpose.int")
def _transposed(self: RemoteTensor, like: torch.Tensor, dim0: int, dim1: int) -> Sequence[Step]:
    rank = self.dim()
    perm = list(range(rank))
    if rank:
        a, b = build.axis_of(dim0, rank), build.axis_of(dim1, rank)
        perm[a], perm[b] = b, a
    return [Permute(perm)]


@view("t.default")
def _t(self: RemoteTensor, like: torch.Tensor) -> Sequence[Step]:
    return [Permute((1, 0))] if self.dim() == 2 else []


@view("slice.Tensor")
def _sliced(
    self: RemoteTensor, like: torch.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Sequence[Step]:
    axis = build.axis_of(dim, self.dim())
    first, last, _ = slice(start, end, step).indices(self.shape[axis])
    return [Slice(axis, first, max(first, last), step)]


@view("select.int")
def _selected(self: RemoteTensor, like: torch.Tensor, dim: int, index: int) -> Sequence[Step]:
    axis = build.axis_of(dim, self.dim())
    at = index % self.shape[axis]
    return [Slice(axis, at, at + 1, 1), Reshape(tuple(like.shape))]


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


def _row_major(shape: Sequence[int]) -> list[int]:
    strides, stride = [0] * len(shape), 1
    for i in range(len(shape) - 1, -1, -1):
        strides[i] = stride
        stride *= shape[i]
    return strides


@HANDLERS.add("as_strided.default")
def as_strided(self: RemoteTensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> RemoteTensor:
    # It looks at the memory, not at what the tensor shows of it.
    offset = self.storage_offset() if storage_offset is None else storage_offset
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


def _in_place(name: str) -> None:
    packet, _, overload = name.partition(".")
    viewed = getattr(getattr(aten, packet), overload or "default")

    @HANDLERS.add(f"{packet}_.{overload or 'default'}")
    def apply(self: RemoteTensor, *args: Any, **kwargs: Any) -> RemoteTensor:
        return adopt(self, viewed(self, *args, **kwargs))


for _name in ("as_strided", "squeeze", "squeeze.dim", "squeeze.dims", "t", "transpose.int", "unsqueeze"):
    _in_place(_name)


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
def split(self: RemoteTensor, split_size: int, dim: int = 0) -> list[torch.Tensor]:
    axis = build.axis_of(dim, self.dim())
    size = self.shape[axis]
    if split_size < 0 or (split_size == 0 and size):
        raise RuntimeError(f"split expects split_size be non-negative, but got split_size={split_size}")
    starts = range(0, size, split_size) if size else [0]
    return [aten.slice.Tensor(self, axis, at, min(size, at + split_size)) for at in starts]


@HANDLERS.add("split_with_sizes.default")
def split_with_sizes(self: RemoteTensor, split_sizes: Sequence[int], dim: int = 0) -> list[torch.Tensor]:
    axis = build.axis_of(dim, self.dim())
    if sum(split_sizes) != self.shape[axis]:
        raise RuntimeError(
            f"split_with_sizes expects split_sizes to sum exactly to {self.shape[axis]} (input tensor's size at dimension "
            f"{dim}), but got split_sizes={list(split_sizes)}"
        )
    out, at = [], 0
    for size in split_sizes:
        out.append(aten.slice.Tensor(self, axis, at, at + size))
        at += size
    return out


@HANDLERS.whole("tensor_split.tensor_indices_or_sections")
def tensor_split(self: RemoteTensor, tensor_indices_or_sections: torch.Tensor, dim: int = 0) -> list[torch.Tensor]:
    # Where to split is asked of the server: the sizes of tensors are known here.
    where = tensor_indices_or_sections.tolist()
    return aten.tensor_split(self, where, dim)


@HANDLERS.add("unbind.int")
def unbind(self: RemoteTensor, dim: int = 0) -> list[torch.Tensor]:
    axis = build.axis_of(dim, self.dim())
    return [aten.select.int(self, axis, i) for i in range(self.shape[axis])]


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
        return aten.alias(self)
    raise NotImplementedError(
        f"remote_accelerator does not look at {self.dtype} as {dtype}: .to({dtype}) converts the numbers; x.cpu().view(dtype) has the bits"
    )


