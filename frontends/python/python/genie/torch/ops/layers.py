"""Layers: norms, embeddings, convolutions, pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import build
from ..dispatch import HANDLERS, widened
from ..dtypes import is_float
from ..node import Node
from ..operands import scalar
from ..tensor import RemoteTensor, node_of, wrap
from .index import _ids
from .pool import Sizes, per_axis


def _constant(shape: Sequence[int], value: float, like: Node) -> Node:
    return build.full(tuple(shape), value, like.dtype, like.device)


def _given(tensor: RemoteTensor | None, shape: Sequence[int], value: float, like: Node) -> Node:
    return _constant(shape, value, like) if tensor is None else node_of(tensor)


def _normalised(x: Node, shape: tuple[int, ...], weight: RemoteTensor | None, bias: RemoteTensor | None, eps: float) -> tuple[Node, Node]:
    """The result, and x with the dimensions of `shape` as one."""
    if x.shape[len(x.shape) - len(shape) :] != shape:
        raise RuntimeError(
            f"Given normalized_shape={list(shape)}, expected input with shape [*, {', '.join(map(str, shape))}], but got input of "
            f"size{list(x.shape)}"
        )
    rows = build.reshape(x, (*x.shape[: len(x.shape) - len(shape)], math.prod(shape)))
    scale, shift = (build.reshape(_given(t, shape, value, x), rows.shape[-1:]) for t, value in ((weight, 1), (bias, 0)))
    if eps >= 0:
        return build.reshape(build.layer_norm(rows, scale, shift, eps), x.shape), rows
    # The graph's own operation has no eps below zero, which torch lets pass.
    wide, axis = build.cast(rows, "f32"), (len(rows.shape) - 1,)
    off = build.sub(wide, build.reduce("mean", wide, axis, True))
    spread = build.add(build.reduce("mean", build.mul(off, off), axis, True), scalar(eps, "f32", x.device))
    made = build.mul(build.mul(off, build.unary("rsqrt", spread)), build.cast(scale, "f32"))
    return build.reshape(build.cast(build.add(made, build.cast(shift, "f32")), x.dtype), x.shape), rows


@HANDLERS.whole("layer_norm.default")
def layer_norm(
    input: RemoteTensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: RemoteTensor | None = None,
    bias: RemoteTensor | None = None,
    eps: float = 1e-05,
    cudnn_enable: bool = True,
) -> RemoteTensor:
    return wrap(_normalised(node_of(input), tuple(normalized_shape), weight, bias, eps)[0])


@HANDLERS.add("native_layer_norm.default")
def native_layer_norm(
    input: RemoteTensor, normalized_shape: Sequence[int], weight: RemoteTensor | None, bias: RemoteTensor | None, eps: float  # noqa: A002
) -> tuple[RemoteTensor, ...]:
    x, shape = node_of(input), tuple(normalized_shape)
    made, rows = _normalised(x, shape, weight, bias, eps)
    outer, width = rows.shape[:-1], rows.shape[-1]
    # Mean and deviation are for the way back; nobody else reads them, and what nobody reads does not run.
    axis = (len(rows.shape) - 1,)
    wide = build.cast(rows, "f32")
    middle = build.reduce("mean", wide, axis, True) if width else wide
    off = build.sub(wide, middle)
    spread = build.reduce("mean", build.mul(off, off), axis, True) if width else wide
    inverse = build.unary("rsqrt", build.add(spread, scalar(eps, "f32", x.device)))
    statistics = (build.reshape(t, (*outer, *(1 for _ in shape))) if width else t for t in (middle, inverse))
    return wrap(made), *(wrap(build.cast(t, x.dtype)) for t in statistics)


@HANDLERS.add("native_group_norm.default")
def group_norm(
    input: RemoteTensor, weight: RemoteTensor | None, bias: RemoteTensor | None, N: int, C: int, HxW: int, group: int, eps: float  # noqa: A002, N803
) -> tuple[RemoteTensor, ...]:
    x = node_of(input)
    width = C // group * HxW
    rows = build.cast(build.reshape(x, (N, group, width)), "f32")
    middle = build.reduce("mean", rows, (2,), True)
    off = build.sub(rows, middle)
    inverse = build.unary("rsqrt", build.add(build.reduce("mean", build.mul(off, off), (2,), True), scalar(eps, "f32", x.device)))
    made = build.reshape(build.mul(off, inverse), (N, C, HxW))
    if weight is not None:
        made = build.mul(made, build.cast(build.reshape(node_of(weight), (1, C, 1)), "f32"))
    if bias is not None:
        made = build.add(made, build.cast(build.reshape(node_of(bias), (1, C, 1)), "f32"))
    made = build.cast(made, x.dtype)
    statistics = (build.cast(build.reshape(t, (N, group)), x.dtype) for t in (middle, inverse))
    return wrap(build.reshape(made, x.shape)), *(wrap(t) for t in statistics)


@HANDLERS.add("native_batch_norm.default")
def batch_norm(
    input: RemoteTensor,  # noqa: A002
    weight: RemoteTensor | None,
    bias: RemoteTensor | None,
    running_mean: RemoteTensor | None,
    running_var: RemoteTensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[RemoteTensor, ...]:
    from .reduction import variance

    x = node_of(input)
    channels = x.shape[1] if len(x.shape) > 1 else 1
    nothing = wrap(build.empty((0,), "f32", x.device))
    if not x.numel:
        return wrap(x), nothing, nothing
    scale, shift = (_given(t, (channels,), value, x) for t, value in ((weight, 1), (bias, 0)))
    if not training:
        made = build.batch_norm(x, scale, shift, node_of(running_mean), node_of(running_var), eps)  # type: ignore[arg-type]
        return wrap(made), nothing, nothing
    axes = tuple(i for i in range(len(x.shape)) if i != 1)
    count = x.numel // channels
    wide = build.cast(x, "f32")
    spread, middle = variance(wide, axes, False, 0)
    kept = scale.dtype
    made = build.cast(build.batch_norm(wide, build.cast(scale, "f32"), build.cast(shift, "f32"), middle, spread, eps), x.dtype)
    for running, now in ((running_mean, middle), (running_var, build.mul(spread, scalar(count / max(1, count - 1), "f32", x.device)))):
        if running is not None:
            running.mul_(1 - momentum).add_(wrap(now), alpha=momentum)
    inverse = build.unary("rsqrt", build.add(spread, scalar(eps, "f32", x.device)))
    return wrap(made), wrap(build.cast(middle, kept)), wrap(build.cast(inverse, kept))


@HANDLERS.whole("batch_norm.default")
def batch_norm_whole(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled):  # type: ignore[no-untyped-def]  # noqa: A002, ANN001, ANN201
    if not training and (running_mean is None or running_var is None):
        raise RuntimeError("Expected running_mean and running_var to be defined in evaluation mode")
    return batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)[0]


@HANDLERS.add("_batch_norm_with_update.default")
def batch_norm_with_update(input, weight, bias, running_mean, running_var, momentum, eps):  # type: ignore[no-untyped-def]  # noqa: A002, ANN001, ANN201
    made = batch_norm(input, weight, bias, running_mean, running_var, True, momentum, eps)
    return *made, wrap(build.empty((0,), "u8", node_of(input).device))


@HANDLERS.add("_native_batch_norm_legit.default")
def batch_norm_legit(input, weight, bias, running_mean, running_var, training, momentum, eps):  # type: ignore[no-untyped-def]  # noqa: A002, ANN001, ANN201
    return batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)


@HANDLERS.add("_native_batch_norm_legit.no_stats")
def batch_norm_no_stats(input, weight, bias, training, momentum, eps):  # type: ignore[no-untyped-def]  # noqa: A002, ANN001, ANN201
    return batch_norm(input, weight, bias, None, None, True, momentum, eps)


@HANDLERS.add("_native_batch_norm_legit_no_training.default")
def batch_norm_inference(input, weight, bias, running_mean, running_var, momentum, eps):  # type: ignore[no-untyped-def]  # noqa: A002, ANN001, ANN201
    return batch_norm(input, weight, bias, running_mean, running_var, False, momentum, eps)


@HANDLERS.add("embedding.default")
def embedding(
    weight: RemoteTensor, indices: RemoteTensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> RemoteTensor:
    table = node_of(weight)
    ids = _ids(indices, table.device)
    if len(table.shape) != 2:
        raise RuntimeError("'weight' must be 2-D")
    return wrap(build.embedding(table, ids) if is_float(table.dtype) else build.gather(table, ids))


@HANDLERS.add("embedding_renorm.default")
def embedding_renorm(self: RemoteTensor, indices: RemoteTensor, max_norm: float, norm_type: float) -> RemoteTensor:
    from .products import norm_of

    table = node_of(self)
    ids, rows = _ids(indices, table.device), table.shape[0]
    if not ids.numel:
        return wrap(table)
    flat = build.reshape(ids, (ids.numel,))
    asked = build.full((rows,), 0, "i64", table.device)
    asked = build.scatter_along(asked, flat, build.full(flat.shape, 1, "i64", table.device), 0)
    length = norm_of(table, norm_type)
    most = scalar(max_norm, table.dtype, table.device)
    long = build.binary("bit_and", build.compare("gt", length, most), build.cast(asked, "bool"))
    factor = build.div(most, build.add(length, scalar(1e-7, table.dtype, table.device)))
    factor = build.where(long, factor, scalar(1, table.dtype, table.device))
    return wrap(build.mul(table, build.reshape(factor, (rows, 1))))


@HANDLERS.add("_embedding_bag.default", "_embedding_bag_forward_only.default")
@widened
def embedding_bag(
    weight: RemoteTensor,
    indices: RemoteTensor,
    offsets: RemoteTensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: RemoteTensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[RemoteTensor, ...]:
    table, ids, starts = node_of(weight), _ids(indices, node_of(weight).device), build.cast(node_of(offsets), "i64")
    device, n, width = table.device, ids.numel, table.shape[1]
    bags = starts.numel - int(include_last_offset)
    starts = build.slice_axis(starts, 0, 0, bags)
    if not bags or not n:
        sizes = build.full((bags,), 0, "i64", device)
        return wrap(build.full((bags, width), 0, table.dtype, device)), wrap(build.empty((0,), "i64", device)), wrap(sizes), wrap(sizes)
    rows = build.embedding(table, ids)
    if per_sample_weights is not None:
        rows = build.mul(rows, build.reshape(node_of(per_sample_weights), (n, 1)))
    # The bag of each index is the last one that begins before it.
    place = build.reshape(build.arange(0, 1, n, "i64", device), (n, 1))
    begun = build.compare("le", build.reshape(starts, (1, bags)), place)
    bag = build.sub(build.reduce("sum", build.cast(begun, "i64"), (1,)), scalar(1, "i64", device))
    counts = build.full((n,), 1, "i64", device)
    nothing = -math.inf if mode == 2 else 0.0
    if padding_idx >= 0:
        real = build.compare("ne", build.cast(ids, "i64"), scalar(padding_idx, "i64", device))
        counts = build.cast(real, "i64")
        rows = build.where(build.reshape(real, (n, 1)), rows, scalar(nothing, rows.dtype, device))
    sizes = build.scatter_along(build.full((bags,), 0, "i64", device), bag, counts, 0, "add")
    where = build.expand(build.reshape(bag, (n, 1)), (n, width))
    made = build.scatter_along(build.full((bags, width), nothing, rows.dtype, device), where, rows, 0, "max" if mode == 2 else "add")
    if mode:
        filled = build.reshape(sizes, (bags, 1))
        if mode == 1:
            made = build.div(made, build.cast(build.binary("maximum", filled, scalar(1, "i64", device)), made.dtype))
        else:
            made = build.where(build.compare("gt", filled, scalar(0, "i64", device)), made, scalar(0, made.dtype, device))
    return wrap(made), wrap(bag), wrap(sizes), wrap(sizes)


# ---- convolutions


@HANDLERS.add("convolution.default", "_convolution.default", "convolution_overrideable.default")
def convolution(
    input: RemoteTensor,  # noqa: A002
    weight: RemoteTensor,
    bias: RemoteTensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *_: Any,
) -> RemoteTensor:
    x, w = node_of(input), node_of(weight)
    rank = len(w.shape) - 2
    if not is_float(x.dtype):
        raise NotImplementedError("remote_accelerator has no convolution of integers: use float32, which is exact up to 2^24")
    if rank not in (1, 2, 3):
        raise RuntimeError(f"convolution: expected a weight of 3 to 5 dimensions, but got {list(w.shape)}")
    alone = len(x.shape) == rank + 1
    if alone:
        x = build.reshape(x, (1, *x.shape))
    if x.shape[1] != (w.shape[0] if transposed else w.shape[1] * groups):
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(w.shape)}, expected input{list(x.shape)} to have "
            f"{w.shape[0] if transposed else w.shape[1] * groups} channels, but got {x.shape[1]} channels instead"
        )
    stride, padding, dilation, output_padding = (per_axis(v, rank) for v in (stride, padding, dilation, output_padding))
    if rank == 1:
        # A row of an image.
        x, w = build.reshape(x, (*x.shape[:2], 1, x.shape[2])), build.reshape(w, (*w.shape[:2], 1, w.shape[2]))
        stride, padding, dilation, output_padding = (1, *stride), (0, *padding), (1, *dilation), (0, *output_padding)
    bias_node = None if bias is None else node_of(bias)
    if transposed:
        made = _transposed(x, w, bias_node, stride, padding, dilation, output_padding, groups)
    else:
        made = _convolved(x, w, bias_node, stride, padding, padding, dilation, groups)
    if rank == 1:
        made = build.reshape(made, (*made.shape[:2], made.shape[3]))
    return wrap(build.reshape(made, made.shape[1:]) if alone else made)


def _convolved(
    x: Node, w: Node, bias: Node | None, stride: Sizes, before: Sizes, after: Sizes, dilation: Sizes, groups: int
) -> Node:
    if len(stride) == 2:
        return build.conv2d(x, w, bias, stride, (*before, *after), dilation, groups)  # type: ignore[arg-type]
    # A volume is its planes, each seen by one plane of the weight at a time.
    x = build.pad(x, (0, 0, before[0], 0, 0), (0, 0, after[0], 0, 0), 0)
    n, c, depth, height, width = x.shape
    planes = (depth - dilation[0] * (w.shape[2] - 1) - 1) // stride[0] + 1
    if planes < 1:
        raise RuntimeError(f"Kernel size can't be greater than actual input size: {list(w.shape[2:])} and {list(x.shape[2:])}")
    made: Node | None = None
    for k in range(w.shape[2]):
        first = k * dilation[0]
        part = build.slice_axis(x, 2, first, first + (planes - 1) * stride[0] + 1, stride[0])
        part = build.reshape(build.transpose(part, (0, 2, 1, 3, 4)), (n * planes, c, height, width))
        plane = build.reshape(build.slice_axis(w, 2, k, k + 1), (*w.shape[:2], *w.shape[3:]))
        part = build.conv2d(part, plane, bias if k == 0 else None, stride[1:], (*before[1:], *after[1:]), dilation[1:], groups)  # type: ignore[arg-type]
        made = part if made is None else build.add(made, part)
    assert made is not None
    made = build.reshape(made, (n, planes, *made.shape[1:]))
    return build.transpose(made, (0, 2, 1, 3, 4))


def _transposed(
    x: Node, w: Node, bias: Node | None, stride: Sizes, padding: Sizes, dilation: Sizes, output_padding: Sizes, groups: int
) -> Node:
    """As a convolution of the input with zeros between its elements, by the weight turned round (Dumoulin and Visin 2016)."""
    rank, (c, out), kernel = len(stride), w.shape[:2], w.shape[2:]
    for axis, step in enumerate(stride, 2):
        if step > 1:
            size = x.shape[axis]
            spread = build.reshape(x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
            spread = build.pad(spread, (0,) * (rank + 3), [step - 1 if i == axis + 1 else 0 for i in range(rank + 3)], 0)
            spread = build.reshape(spread, (*x.shape[:axis], size * step, *x.shape[axis + 1 :]))
            x = build.slice_axis(spread, axis, 0, (size - 1) * step + 1)
    before = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding)]
    after = [b + o for b, o in zip(before, output_padding)]
    for i in range(rank):
        axis = 2 + i
        x = build.slice_axis(x, axis, max(0, -before[i]), x.shape[axis] - max(0, -after[i]))
    w = build.reshape(w, (groups, c // groups, out, *kernel))
    w = build.flip(build.transpose(w, (0, 2, 1, *range(3, 3 + rank))), range(3, 3 + rank))
    w = build.reshape(w, (groups * out, c // groups, *kernel))
    first, last = (tuple(max(0, b) for b in side) for side in (before, after))
    return _convolved(x, w, bias, (1,) * rank, first, last, dilation, groups)
