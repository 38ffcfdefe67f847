"""Layers: norms, embeddings, convolutions, pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


from .. import build
from ..dispatch import HANDLERS
from ..dtypes import is_float
from ..node import Node
from ..operands import integers, scalar
from ..tensor import RemoteTensor, node_of, wrap
from .index import _ids


def _constant(shape: Sequence[int], value: float, like: Node) -> Node:
    return build.full(tuple(shape), value, like.dtype, like.device)


def _given(tensor: RemoteTensor | None, shape: Sequence[int], value: float, like: Node) -> Node:
    return _constant(shape, value, like) if tensor is None else node_of(tensor)


@HANDLERS.add("native_layer_norm.default")
def layer_norm(
    input: RemoteTensor, normalized_shape: Sequence[int], weight: RemoteTensor | None, bias: RemoteTensor | None, eps: float  # noqa: A002
) -> tuple[RemoteTensor, ...]:
    x, shape = node_of(input), tuple(normalized_shape)
    if x.shape[len(x.shape) - len(shape) :] != shape:
        raise RuntimeError(f"Given normalized_shape={list(shape)}, expected input with shape [*, {', '.join(map(str, shape))}], but got input of size{list(x.shape)}")
    width, outer = math.prod(shape), x.shape[: len(x.shape) - len(shape)]
    rows = build.reshape(x, (*outer, width))
    weights = (build.reshape(_given(t, shape, value, x), (width,)) for t, value in ((weight, 1), (bias, 0)))
    made = build.reshape(build.layer_norm(rows, *weights, eps), x.shape)
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
    made = build.reshape(build.cast(build.mul(off, inverse), x.dtype), (N, C, HxW))
    if weight is not None:
        made = build.mul(made, build.reshape(node_of(weight), (1, C, 1)))
    if bias is not None:
        made = build.add(made, build.reshape(node_of(bias), (1, C, 1)))
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
    channels = x.shape[1]
    nothing = wrap(build.empty((0,), "f32", x.device))
    weights = [_given(t, (channels,), value, x) for t, value in ((weight, 1), (bias, 0))]
    if not training:
        made = build.batch_norm(x, *weights, node_of(running_mean), node_of(running_var), eps)  # type: ignore[arg-type]
        return wrap(made), nothing, nothing
    axes = tuple(i for i in range(len(x.shape)) if i != 1)
    count = x.numel // channels
    wide = build.cast(x, "f32")
    spread, middle = variance(wide, axes, False, 0)
    statistics = [build.cast(t, x.dtype) for t in (middle, spread)]
    made = build.batch_norm(x, *weights, *statistics, eps)
    for running, now in ((running_mean, middle), (running_var, build.mul(spread, scalar(count / max(1, count - 1), "f32", x.device)))):
        if running is not None:
            running.mul_(1 - momentum).add_(wrap(now), alpha=momentum)
    inverse = build.unary("rsqrt", build.add(spread, scalar(eps, "f32", x.device)))
    return wrap(made), wrap(middle), wrap(inverse)


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


# ---- convolutions


def _pair(values: Any, rank: int = 2) -> tuple[int, ...]:
    values = [values] if isinstance(values, int) else list(values)
    return tuple(values * rank if len(values) == 1 else values)


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
    if rank not in (1, 2):
        raise NotImplementedError(f"remote_accelerator has no convolution over {rank} dimensions: it has conv1d and conv2d; x.cpu() brings it here")
    alone = len(x.shape) == rank + 1
    if alone:
        x = build.reshape(x, (1, *x.shape))
    if x.shape[1] != (w.shape[0] if transposed else w.shape[1] * groups):
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(w.shape)}, expected input{list(x.shape)} to have "
            f"{w.shape[0] if transposed else w.shape[1] * groups} channels, but got {x.shape[1]} channels instead"
        )
    stride, padding, dilation, output_padding = (_pair(v, rank) for v in (stride, padding, dilation, output_padding))
    if rank == 1:
        # A row of an image.
        x, w = build.reshape(x, (*x.shape[:2], 1, x.shape[2])), build.reshape(w, (*w.shape[:2], 1, w.shape[2]))
        stride, padding, dilation, output_padding = (1, *stride), (0, *padding), (1, *dilation), (0, *output_padding)
    bias_node = None if bias is None else node_of(bias)
    if transposed:
        made = _transposed(x, w, bias_node, stride, padding, dilation, output_padding, groups)
    else:
        made = build.conv2d(x, w, bias_node, stride, (*padding, *padding), dilation, groups)
    if rank == 1:
        made = build.reshape(made, (*made.shape[:2], made.shape[3]))
    return wrap(build.reshape(made, made.shape[1:]) if alone else made)


def _transposed(
    x: Node, w: Node, bias: Node | None, stride: Any, padding: Any, dilation: Any, output_padding: Any, groups: int
) -> Node:
    """As a convolution of the input with zeros between its elements, by the weight turned round (Dumoulin and Visin 2016)."""
    n, c, height, width = x.shape
    _, out, kh, kw = w.shape
    for axis, step in ((2, stride[0]), (3, stride[1])):
        if step > 1:
            size = x.shape[axis]
            shape = (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :])
            gaps = _constant((*x.shape[: axis + 1], step - 1, *x.shape[axis + 1 :]), 0, x)
            spread = build.concat([build.reshape(x, shape), gaps], axis + 1)
            spread = build.reshape(spread, (*x.shape[:axis], size * step, *x.shape[axis + 1 :]))
            x = build.slice_axis(spread, axis, 0, (size - 1) * step + 1)
    before = [dilation[i] * (k - 1) - padding[i] for i, k in enumerate((kh, kw))]
    after = [b + o for b, o in zip(before, output_padding)]
    for i in (0, 1):
        axis = 2 + i
        cut = max(0, -before[i]), x.shape[axis] - max(0, -after[i])
        x = build.slice_axis(x, axis, *cut)
    w = build.reshape(w, (groups, c // groups, out, kh, kw))
    w = build.flip(build.transpose(w, (0, 2, 1, 3, 4)), (3, 4))
    w = build.reshape(w, (groups * out, c // groups, kh, kw))
    pads = (max(0, before[0]), max(0, before[1]), max(0, after[0]), max(0, after[1]))
    return build.conv2d(x, w, bias, (1, 1), pads, dilation, groups)


# ---- pools


def _pooled(
    kind: str, self: RemoteTensor, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool, count_padding: bool
) -> Node:
    x = node_of(self)
    alone = len(x.shape) == 3
    if alone:
        x = build.reshape(x, (1, *x.shape))
    kernel, pads = _pair(kernel_size), _pair(padding)
    steps = _pair(stride) if stride is not None and (isinstance(stride, int) or len(stride)) else kernel
    end = list(pads)
    if ceil_mode:
        for i in (0, 1):
            size = x.shape[2 + i]
            last = -(-(size + 2 * pads[i] - kernel[i]) // steps[i])
            if last * steps[i] >= size + pads[i]:
                # A window that begins in the padding behind it is none.
                last -= 1
            end[i] = max(pads[i], last * steps[i] + kernel[i] - size - pads[i])
    if kind == "max" or all(e < k and p < k for e, k, p in zip(end, kernel, pads)) and (tuple(end) == pads or not count_padding):
        made = build.pool(kind, x, kernel, steps, (*pads, *end), count_padding)  # type: ignore[arg-type]
    else:
        raise NotImplementedError("remote_accelerator has no avg_pool2d with ceil_mode=True that counts padding: use count_include_pad=False")
    return build.reshape(made, made.shape[1:]) if alone else made


@HANDLERS.add("avg_pool2d.default")
def avg_pool2d(
    self: RemoteTensor,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> RemoteTensor:
    if divisor_override:
        kernel = _pair(kernel_size)
        made = _pooled("average", self, kernel_size, stride, padding, ceil_mode, True)
        return wrap(build.mul(made, scalar(kernel[0] * kernel[1] / divisor_override, made.dtype, made.device)))
    return wrap(_pooled("average", self, kernel_size, stride, padding, ceil_mode, count_include_pad))


@HANDLERS.add("max_pool2d_with_indices.default")
def max_pool2d(
    self: RemoteTensor, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> tuple[RemoteTensor, RemoteTensor]:
    if set(_pair(dilation)) != {1}:
        raise NotImplementedError("remote_accelerator has no max_pool2d with dilation: use dilation=1")
    made = _pooled("max", self, kernel_size, stride, padding, ceil_mode, False)
    # Where the largest are is for the way back: asking for it is refused when it is asked for, by an operation no server has.
    return wrap(made), wrap(Node("max_pool2d_indices", (), (made,), made.shape, "i64", made.device))


@HANDLERS.add("_adaptive_avg_pool2d.default")
def adaptive_avg_pool2d(self: RemoteTensor, output_size: Sequence[int]) -> RemoteTensor:
    x = node_of(self)
    lead = len(x.shape) - 2
    for i, n in enumerate(output_size):
        axis, size = lead + i, x.shape[lead + i]
        if n == size:
            continue
        if size % n == 0:
            shape = (*x.shape[:axis], n, size // n, *x.shape[axis + 1 :])
            x = build.reduce("mean", build.reshape(x, shape), (axis + 1,))
            continue
        parts = []
        for k in range(n):
            part = build.slice_axis(x, axis, k * size // n, -(-(k + 1) * size // n))
            parts.append(build.reduce("mean", part, (axis,), True))
        x = build.concat(parts, axis)
    return wrap(x)


# ---- images


def _nearest(name: str, middle: float) -> None:
    @HANDLERS.add(f"{name}.default")
    def apply(self: RemoteTensor, output_size: Sequence[int], scales_h: float | None = None, scales_w: float | None = None) -> RemoteTensor:
        x = node_of(self)
        for axis, n, scale in ((2, output_size[0], scales_h), (3, output_size[1], scales_w)):
            size = x.shape[axis]
            step = 1 / scale if scale else size / n
            if size != n or step != 1:
                ids = [min(size - 1, int((i + middle) * step)) for i in range(n)]
                x = build.take(x, integers(ids, (n,), x.device), axis)
        return wrap(x)


_nearest("upsample_nearest2d", 0.0)
# From the middle of each element, as other libraries do it.
_nearest("_upsample_nearest_exact2d", 0.5)
