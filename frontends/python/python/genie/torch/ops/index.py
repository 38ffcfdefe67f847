"""Reading and writing elements by index, joining, and patterns of positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .. import build
from ..dispatch import HANDLERS
from ..dtypes import NAMES, name_of
from ..node import Node
from ..operands import device_among, operand, promoted, scalar
from ..tensor import RemoteTensor, node_of, wrap, write
from .transfer import download


def counted(ids: Node, size: int) -> Node:
    """Indices from the front: negative ones count from the end. The server refuses those outside."""
    ids = build.cast(ids, "i64")
    negative = build.compare("lt", ids, scalar(0, "i64", ids.device))
    return build.where(negative, build.add(ids, scalar(size, "i64", ids.device)), ids)


def _ids(value: Any, device: int) -> Node:
    if not isinstance(value, RemoteTensor) and isinstance(value, torch.Tensor):
        # torch lets indices be on the CPU.
        from .transfer import upload

        return upload(value, NAMES[value.dtype], device)
    return operand(value, name_of(value.dtype), device)


def _positions(self: RemoteTensor, indices: Sequence[Any]) -> list[Node | None]:
    """Indices an axis each; masks become the positions where they hold, which asks the server how many there are."""
    device = self._storage.node.device
    out: list[Node | None] = []
    for index in indices:
        if index is None:
            out.append(None)
            continue
        ids = _ids(index, device)
        if ids.dtype not in ("bool", "u8"):
            out.append(ids)
            continue
        at = len(out)
        if tuple(ids.shape) != tuple(self.shape[at : at + len(ids.shape)]):
            raise IndexError(
                f"The shape of the mask {list(ids.shape)} at index 0 does not match the shape of the indexed tensor {list(self.shape)} at index {at}"
            )
        found = node_of(nonzero(wrap(ids)))
        out += [build.reshape(build.slice_axis(found, 1, i, i + 1), found.shape[:1]) for i in range(len(ids.shape))]
    return out


def _joint(x: Node, positions: Sequence[Node | None]) -> tuple[list[int], Node, tuple[int, ...], bool]:
    """Advanced indices as one: the axes, the index into the flattened axes, its shape, and whether the axes stand together."""
    axes = [axis for axis, ids in enumerate(positions) if ids is not None]
    shape = build.broadcast_shapes(*(positions[axis].shape for axis in axes))  # type: ignore[union-attr]
    joint: Node | None = None
    for axis in axes:
        ids = counted(positions[axis], x.shape[axis])  # type: ignore[arg-type]
        # Each is checked against its own axis: the joint one may be in range where it is not.
        ids = build.gather(build.arange(0, 1, x.shape[axis], "i64", x.device), ids) if len(axes) > 1 and x.shape[axis] else ids
        ids = build.expand(ids, shape)
        joint = ids if joint is None else build.add(build.mul(joint, scalar(x.shape[axis], "i64", x.device)), ids)
    assert joint is not None
    together = axes == list(range(axes[0], axes[-1] + 1))
    return axes, joint, shape, together


@HANDLERS.add("index.Tensor", "_unsafe_index.Tensor")
def index(self: RemoteTensor, indices: Sequence[Any]) -> RemoteTensor:
    x, positions = node_of(self), _positions(self, indices)
    if all(ids is None for ids in positions):
        return wrap(x)
    axes, joint, shape, together = _joint(x, positions)
    rest = [i for i in range(len(x.shape)) if i not in axes]
    sizes = [x.shape[axis] for axis in axes]
    if 0 in sizes and 0 not in shape:
        raise IndexError("index is out of bounds for dimension with size 0")
    rows = build.reshape(build.transpose(x, [*axes, *rest]), (math.prod(sizes), *(x.shape[i] for i in rest)))
    taken = build.gather(rows, joint)
    if together and axes[0]:
        # The new dimensions stand where the indexed ones stood.
        first, count = axes[0], len(shape)
        perm = [*range(count, count + first), *range(count), *range(count + first, count + len(rest))]
        taken = build.transpose(taken, perm)
    return wrap(taken)


def _indexed_put(self: RemoteTensor, indices: Sequence[Any], values: Any, accumulate: bool) -> Node:
    x = node_of(self)
    if len(indices) == 1 and indices[0].dtype == torch.bool and values.dim() == 0 and isinstance(indices[0], RemoteTensor):
        # One value wherever a mask holds: nobody needs to know where that is.
        mask = node_of(indices[0])
        if mask.shape == x.shape[: len(mask.shape)]:
            new = operand(values, x.dtype, x.device)
            mask = build.reshape(mask, (*mask.shape, *(1 for _ in x.shape[len(mask.shape) :])))
            return build.where(mask, build.add(x, new) if accumulate else new, x)
    positions = _positions(self, indices)
    new = operand(values, x.dtype, x.device)
    if all(ids is None for ids in positions):
        return build.add(x, new) if accumulate else build.expand(new, x.shape)
    axes, joint, shape, together = _joint(x, positions)
    rest = [i for i in range(len(x.shape)) if i not in axes]
    order = [*axes, *rest]
    outer = tuple(x.shape[i] for i in rest)
    first = axes[0] if together else 0
    # The values come in the shape that reading gives.
    shown = (*outer[:first], *shape, *outer[first:])
    new = build.expand(new, shown)
    new = build.transpose(new, [*range(first, first + len(shape)), *range(first), *range(first + len(shape), len(shown))])
    count, width = math.prod(shape), math.prod(outer)
    if not count or not width:
        return x
    rows = build.reshape(build.transpose(x, order), (math.prod(x.shape[axis] for axis in axes), width))
    ids = build.expand(build.reshape(joint, (count, 1)), (count, width))
    made = build.scatter_along(rows, ids, build.reshape(new, (count, width)), 0, "add" if accumulate else "set")
    back = [0] * len(order)
    for i, p in enumerate(order):
        back[p] = i
    return build.transpose(build.reshape(made, tuple(x.shape[i] for i in order)), back)


@HANDLERS.add("index_put.default", "_unsafe_index_put.default")
def index_put(self: RemoteTensor, indices: Sequence[Any], values: Any, accumulate: bool = False) -> RemoteTensor:
    return wrap(_indexed_put(self, indices, values, accumulate))


@HANDLERS.add("index_put_.default", "_index_put_impl_.default")
def index_put_in(self: RemoteTensor, indices: Sequence[Any], values: Any, accumulate: bool = False, unsafe: bool = False) -> RemoteTensor:
    return write(self, _indexed_put(self, indices, values, accumulate))


@HANDLERS.add("index_select.default")
def index_select(self: RemoteTensor, dim: int, index: RemoteTensor) -> RemoteTensor:
    x = node_of(self)
    ids = _ids(index, x.device)
    if not x.shape:
        return wrap(x)
    return wrap(build.take(x, build.reshape(ids, (ids.numel,)), build.axis_of(dim, len(x.shape))))


def _along(self: RemoteTensor, dim: int, index: RemoteTensor) -> tuple[Node, Node, int]:
    x = node_of(self)
    ids, axis = _ids(index, x.device), build.axis_of(dim, len(x.shape))
    if not x.shape:
        x = build.reshape(x, (1,))
    if not ids.shape:
        ids = build.reshape(ids, (1,) * len(x.shape))
    return x, ids, axis


@HANDLERS.add("gather.default")
def gather(self: RemoteTensor, dim: int, index: RemoteTensor, *, sparse_grad: bool = False) -> RemoteTensor:
    x, ids, axis = _along(self, dim, index)
    return wrap(build.reshape(build.take_along(x, ids, axis), tuple(index.shape)))


_KINDS = {"add": "add", "sum": "add", "multiply": "mul", "prod": "mul", "amax": "max", "amin": "min"}


def _scattered(self: RemoteTensor, dim: int, index: RemoteTensor, src: Any, kind: str) -> RemoteTensor:
    x, ids, axis = _along(self, dim, index)
    if isinstance(src, RemoteTensor):
        new = node_of(src)
        if new.dtype != x.dtype:
            raise RuntimeError("scatter(): Expected self.dtype to be equal to src.dtype")
        new = new if len(new.shape) == len(x.shape) else build.reshape(new, (1,) * len(x.shape))
        for i, size in enumerate(ids.shape):
            new = build.slice_axis(new, i, 0, size) if 0 not in ids.shape else new
    else:
        new = build.expand(operand(src, x.dtype, x.device), ids.shape)
    return wrap(build.reshape(build.scatter_along(x, ids, new, axis, kind), tuple(self.shape)))


@HANDLERS.add("scatter.src", "scatter.value")
def scatter(self: RemoteTensor, dim: int, index: RemoteTensor, src: Any) -> RemoteTensor:
    return _scattered(self, dim, index, src, "set")


@HANDLERS.add("scatter.reduce", "scatter.value_reduce")
def scatter_by(self: RemoteTensor, dim: int, index: RemoteTensor, src: Any, *, reduce: str) -> RemoteTensor:
    return _scattered(self, dim, index, src, _KINDS[reduce])


@HANDLERS.add("scatter_add.default")
def scatter_add(self: RemoteTensor, dim: int, index: RemoteTensor, src: Any) -> RemoteTensor:
    return _scattered(self, dim, index, src, "add")


@HANDLERS.add("index_add.default")
def index_add(self: RemoteTensor, dim: int, index: RemoteTensor, source: RemoteTensor, *, alpha: Any = 1) -> RemoteTensor:
    x = node_of(self)
    new = build.cast(node_of(source), x.dtype)
    if alpha != 1:
        new = build.binary("bit_and" if x.dtype == "bool" else "mul", new, scalar(alpha, x.dtype, x.device))
    return wrap(_rows(x, dim, index, new, "add"))


@HANDLERS.add("index_copy.default")
def index_copy(self: RemoteTensor, dim: int, index: RemoteTensor, source: RemoteTensor) -> RemoteTensor:
    x = node_of(self)
    return wrap(_rows(x, dim, index, node_of(source), "set"))


@HANDLERS.add("index_fill.int_Scalar", "index_fill.int_Tensor")
def index_fill(self: RemoteTensor, dim: int, index: RemoteTensor, value: Any) -> RemoteTensor:
    x = node_of(self)
    ids = _ids(index, x.device)
    axis = build.axis_of(dim, len(x.shape))
    shape = tuple(ids.numel if i == axis else size for i, size in enumerate(x.shape)) if x.shape else ()
    return wrap(_rows(x, dim, index, build.expand(operand(value, x.dtype, x.device), shape), "set"))


def _rows(x: Node, dim: int, index: RemoteTensor, new: Node, kind: str) -> Node:
    ids = _ids(index, x.device)
    axis, shape = build.axis_of(dim, len(x.shape)), x.shape
    if not shape:
        x, new = build.reshape(x, (1,)), build.reshape(new, (1,))
    ids = build.reshape(counted(ids, x.shape[axis]), tuple(ids.numel if i == axis else 1 for i in range(len(x.shape))))
    new = build.reshape(new, tuple(ids.shape[axis] if i == axis else size for i, size in enumerate(x.shape)))
    return build.reshape(build.scatter_along(x, build.expand(ids, new.shape), new, axis, kind), shape)


@HANDLERS.add("take.default")
def take(self: RemoteTensor, index: RemoteTensor) -> RemoteTensor:
    x = node_of(self)
    return wrap(build.gather(build.reshape(x, (x.numel,)), counted(_ids(index, x.device), x.numel)))


# ---- whose shape depends on values: the server is asked how many there are


@HANDLERS.add("nonzero.default")
def nonzero(self: RemoteTensor) -> RemoteTensor:
    from .pointwise import truth

    x = truth(node_of(self))
    rank, n = len(x.shape), x.numel
    if not n:
        return wrap(build.empty((0, rank), "i64", x.device))
    flat = build.reshape(x, (n,))
    count = int(download(build.reduce("sum", build.cast(flat, "i64"), (0,))).item())
    if not rank:
        return wrap(build.empty((count, 0), "i64", x.device))
    # Where it holds comes first, in order: the sort is stable.
    at = build.slice_axis(build.argsort(build.cast(flat, "u8"), 0, True), 0, 0, count)
    if not count:
        return wrap(build.empty((0, rank), "i64", x.device))
    columns = []
    for size in reversed(x.shape):
        long = scalar(size, "i64", x.device)
        columns.append(build.reshape(build.binary("remainder", at, long), (count, 1)))
        at = build.binary("floor_divide", at, long)
    return wrap(build.concat(columns[::-1], 1))


@HANDLERS.add("masked_select.default")
def masked_select(self: RemoteTensor, mask: RemoteTensor) -> RemoteTensor:
    x, chosen = node_of(self), node_of(mask)
    if chosen.dtype != "bool":
        raise RuntimeError("masked_select: expected BoolTensor for mask")
    shape = build.broadcast_shapes(x.shape, chosen.shape)
    return index(wrap(build.expand(x, shape)), [wrap(build.expand(chosen, shape))]) if shape else _chosen_scalar(x, chosen)


def _chosen_scalar(x: Node, chosen: Node) -> RemoteTensor:
    return index(wrap(build.reshape(x, (1,))), [wrap(build.reshape(chosen, (1,)))])


# ---- joining and turning


@HANDLERS.add("cat.default")
def cat(tensors: Sequence[RemoteTensor], dim: int = 0) -> RemoteTensor:
    dtype, device = promoted(*tensors), device_among(tensors)
    nodes = [operand(tensor, dtype, device) for tensor in tensors]
    if len(nodes) > 1 or nodes[0].shape == (0,):
        # Of old, tensors without elements of any shape may be among them.
        nodes = [node for node in nodes if node.shape != (0,)]
    if not nodes:
        return wrap(build.empty((0,), dtype, device))
    if any(not node.shape for node in nodes):
        raise RuntimeError("zero-dimensional tensor (at position 0) cannot be concatenated")
    first = nodes[0]
    axis = build.axis_of(dim, len(first.shape))
    for node in nodes[1:]:
        if len(node.shape) != len(first.shape):
            raise RuntimeError(f"Tensors must have same number of dimensions: got {len(first.shape)} and {len(node.shape)}")
        for i, (a, b) in enumerate(zip(first.shape, node.shape)):
            if i != axis and a != b:
                raise RuntimeError(
                    f"Sizes of tensors must match except in dimension {axis}. Expected size {a} but got size {b} for tensor number 1 in the list."
                )
    return wrap(build.concat(nodes, axis))


@HANDLERS.add("flip.default")
def flip(self: RemoteTensor, dims: Sequence[int]) -> RemoteTensor:
    x = node_of(self)
    return wrap(build.flip(x, build.axes_of(dims, len(x.shape)) if dims and x.shape else ()))


@HANDLERS.add("roll.default")
def roll(self: RemoteTensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> RemoteTensor:
    x = node_of(self)
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not x.numel:
        return wrap(x)
    if not dims:
        if len(shifts) != 1:
            raise RuntimeError(f"shifts and dimensions must align. shifts: {len(shifts)}, dims:0")
        made = _rolled(build.reshape(x, (x.numel,)), shifts[0], 0)
        return wrap(build.reshape(made, x.shape))
    if len(shifts) != len(dims):
        raise RuntimeError(f"shifts and dimensions must align. shifts: {len(shifts)}, dims:{len(dims)}")
    for shift, dim in zip(shifts, dims):
        x = _rolled(x, shift, build.axis_of(dim, len(x.shape)))
    return wrap(x)


def _rolled(x: Node, shift: int, axis: int) -> Node:
    size = x.shape[axis]
    at = -shift % size
    return build.concat([build.slice_axis(x, axis, at, size), build.slice_axis(x, axis, 0, at)], axis)


@HANDLERS.add("repeat.default")
def repeat(self: RemoteTensor, repeats: Sequence[int]) -> RemoteTensor:
    x = node_of(self)
    extra = len(repeats) - len(x.shape)
    if extra < 0:
        raise RuntimeError("Number of dimensions of repeat dims can not be smaller than number of dimensions of tensor")
    shape = (1,) * extra + x.shape
    out = tuple(n * r for n, r in zip(shape, repeats))
    if 0 in out:
        return wrap(build.empty(out, x.dtype, x.device))
    x = build.reshape(x, shape)
    for axis, times in enumerate(repeats):
        if times > 1:
            x = build.concat([x] * times, axis) if x.shape[axis] > 1 else build.expand(x, (*x.shape[:axis], times, *x.shape[axis + 1 :]))
    return wrap(x)


@HANDLERS.add("constant_pad_nd.default")
def constant_pad(self: RemoteTensor, pad: Sequence[int], value: Any = 0) -> RemoteTensor:
    x = node_of(self)
    if len(pad) % 2 or len(pad) // 2 > len(x.shape):
        raise RuntimeError("Length of pad must be even and at most twice the number of dimensions of the input")
    before, after = [0] * len(x.shape), [0] * len(x.shape)
    for i in range(len(pad) // 2):
        axis, size = len(x.shape) - 1 - i, x.shape[-1 - i]
        first, last = pad[2 * i], pad[2 * i + 1]
        if size + first + last < 0:
            raise RuntimeError(f"The input size {size}, plus negative padding {first} and {last} resulted in a negative output size")
        before[axis], after[axis] = max(0, first), max(0, last)
        # What a negative padding takes away may be part of what another one adds.
        x = build.slice_axis(x, axis, min(size, max(0, -first)), max(0, size - max(0, -last)))
    return wrap(build.pad(x, before, after, value))


def _triangle(name: str, op: str) -> None:
    @HANDLERS.add(f"{name}.default")
    def apply(self: RemoteTensor, diagonal: int = 0) -> RemoteTensor:
        x = node_of(self)
        if len(x.shape) < 2:
            raise RuntimeError(f"{name}: input tensor must have at least 2 dimensions")
        n, m = x.shape[-2:]
        rows, columns = build.arange(0, 1, n, "i64", x.device), build.arange(-diagonal, 1, m, "i64", x.device)
        if 0 in x.shape:
            return wrap(x)
        kept = build.compare(op, build.reshape(columns, (1, m)), build.reshape(rows, (n, 1)))
        return wrap(build.where(kept, x, scalar(0, x.dtype, x.device)))


_triangle("tril", "le")
_triangle("triu", "ge")


# ---- in place, through views: the rest of what a view shows stays


def _through(name: str, view: Any) -> None:
    """Registers what gives a copy of a tensor with what a view of it shows replaced."""

    @HANDLERS.add(f"{name}.default")
    def apply(self: RemoteTensor, src: RemoteTensor, *args: Any, **kwargs: Any) -> RemoteTensor:
        made = wrap(node_of(self))
        view(made, *args, **kwargs).copy_(src)
        return made


_through("slice_scatter", lambda x, *a, **k: torch.ops.aten.slice.Tensor(x, *a, **k))
_through("select_scatter", lambda x, *a, **k: torch.ops.aten.select.int(x, *a, **k))
_through("diagonal_scatter", lambda x, *a, **k: torch.ops.aten.diagonal.default(x, *a, **k))
_through("as_strided_scatter", lambda x, *a, **k: torch.ops.aten.as_strided.default(x, *a, **k))
