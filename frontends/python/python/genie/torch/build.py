"""Makes nodes: one function an operation of the graph, with its shape inference.

Every function takes and gives nodes of one device. Types must agree where the graph asks for it: who calls promotes. What changes
nothing makes no node.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

from .node import Node, Shape, host
from .node import empty as empty

Scalar = bool | int | float


def _make(op: str, inputs: tuple[Node, ...], shape: Shape, dtype: str, /, **attrs: object) -> Node:
    if 0 in shape:
        return empty(shape, dtype, inputs[0].device)
    return Node(op, tuple(attrs.items()), inputs, shape, dtype, inputs[0].device)


def _declared(op: str, shape: Shape, dtype: str, device: int, /, **attrs: object) -> Node:
    if 0 in shape:
        return empty(shape, dtype, device)
    return Node(op, tuple(attrs.items()), (), shape, dtype, device)


def axis_of(axis: int, rank: int) -> int:
    """The axis, counted from the front. Raises IndexError, as torch words it, for one that is not there."""
    span = max(rank, 1)
    if not -span <= axis < span:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-span}, {span - 1}], but got {axis})")
    return axis + span if axis < 0 else axis


def axes_of(axes: Sequence[int] | int | None, rank: int) -> tuple[int, ...]:
    """The axes, counted from the front, in order; all of them for None and for an empty list."""
    if axes is None:
        return tuple(range(rank))
    if isinstance(axes, int):
        axes = (axes,)
    if not axes:
        return tuple(range(rank))
    found = sorted(axis_of(axis, rank) for axis in axes)
    if not rank:
        return ()
    for a, b in zip(found, found[1:]):
        if a == b:
            raise RuntimeError(f"dim {a} appears multiple times in the list of dims")
    return tuple(found)


def broadcast_shapes(*shapes: Shape) -> Shape:
    """NumPy's rule. Raises RuntimeError, as torch words it, where sizes do not fit."""
    first = shapes[0]
    for shape in shapes:
        if shape != first:
            break
    else:
        return first
    rank = max(map(len, shapes))
    out = [1] * rank
    for shape in shapes:
        start = rank - len(shape)
        for i, dim in enumerate(shape, start):
            if dim != 1 and out[i] != dim:
                if out[i] != 1:
                    raise RuntimeError(
                        f"The size of tensor a ({out[i]}) must match the size of tensor b ({dim}) at non-singleton dimension {i}"
                    )
                out[i] = dim
    return tuple(out)


# ---- creation


def full(shape: Shape, value: Scalar, dtype: str, device: int) -> Node:
    """Every element is `value`. A scalar is one number that is broadcast, so that the program does not depend on it."""
    return expand(number(bool(value) if dtype == "bool" else value, dtype, device), shape)


def number(value: Scalar, dtype: str, device: int) -> Node:
    """A scalar of this value, which is one of the type's."""
    if dtype == "i64" and not -EXACT <= value <= EXACT:
        # The graph's numbers are floats of 64 bits: this one would become another.
        return host(struct.pack("<q", value), (), dtype, device)
    return Node("full", (("value", value),), (), (), dtype, device)


#: Integers up to here are floats of 64 bits, too.
EXACT = 1 << 53


def arange(start: Scalar, step: Scalar, count: int, dtype: str, device: int) -> Node:
    """`start + i * step`."""
    if count == 0:
        return empty((0,), dtype, device)
    exact = "i64" if dtype in ("i64", "i32", "u8") else "f32"
    if exact == "i64":
        start, step = int(start), int(step)
    counted = _declared("arange", (count,), exact, device, start=0.0, step=1.0)
    if step != 1:
        counted = mul(counted, full((), step, exact, device))
    if start != 0:
        counted = add(counted, full((), start, exact, device))
    return cast(counted, dtype)


def random(kind: str, seed: Node, shape: Shape, dtype: str) -> Node:
    """Numbers of the counter-based generator: `seed` is `i64 [2]`, its key and the first counter."""
    return _make("random", (seed,), shape, dtype, kind=kind)


# ---- elementwise


def unary(op: str, x: Node, dtype: str | None = None) -> Node:
    """An operation of one operand without attributes (`relu`, `exp`, `erf`, ...)."""
    return _make(op, (x,), x.shape, dtype or x.dtype)


def gelu(x: Node, tanh: bool) -> Node:
    """The Gaussian error linear unit."""
    return _make("gelu", (x,), x.shape, x.dtype, tanh=tanh)


def _pair(a: Shape, b: Shape) -> Shape:
    # Mostly one is a number, or they are the same.
    return a if a == b or not b else b if not a else broadcast_shapes(a, b)


def binary(op: str, a: Node, b: Node) -> Node:
    """An operation of two operands of one type, broadcast."""
    return _make(op, (a, b), _pair(a.shape, b.shape), a.dtype)


def add(a: Node, b: Node) -> Node:
    """a + b."""
    return binary("add", a, b)


def sub(a: Node, b: Node) -> Node:
    """a - b."""
    return binary("sub", a, b)


def mul(a: Node, b: Node) -> Node:
    """a * b."""
    return binary("mul", a, b)


def div(a: Node, b: Node) -> Node:
    """a / b; integers truncate."""
    return binary("div", a, b)


def compare(op: str, a: Node, b: Node) -> Node:
    """`eq`, `ne`, `lt`, `le`, `gt` or `ge` of two operands of one type -> bool."""
    return _make(op, (a, b), _pair(a.shape, b.shape), "bool")


def where(condition: Node, a: Node, b: Node) -> Node:
    """a where the condition holds, else b."""
    return _make("where", (condition, a, b), broadcast_shapes(condition.shape, a.shape, b.shape), a.dtype)


def cast(x: Node, dtype: str) -> Node:
    """The same numbers in another type."""
    if x.dtype == dtype:
        return x
    if dtype == "u8" and x.dtype in ("f32", "f16", "bf16"):
        # torch cuts a float off to int64 first, and takes the lowest byte: -1.0 is 255, 300.0 is 44.
        x = cast(x, "i64")
    if x.op == "full" and not (x.dtype == "f32" and dtype in ("i64", "i32", "u8")):
        return Node("full", x.attrs, (), x.shape, dtype, x.device) if dtype != "bool" else _make("cast", (x,), x.shape, dtype, to=dtype)
    return _make("cast", (x,), x.shape, dtype, to=dtype)


# ---- layout


def reshape(x: Node, shape: Shape) -> Node:
    """The same elements in another shape."""
    if x.shape == shape:
        return x
    if x.op == "reshape":
        x = x.inputs[0]
        if x.shape == shape:
            return x
    return _make("reshape", (x,), shape, x.dtype, dims=shape)


def transpose(x: Node, perm: Sequence[int]) -> Node:
    """Dimension i of the result is dimension `perm[i]` of x."""
    perm = tuple(perm)
    if x.op == "transpose":
        first = dict(x.attrs)["perm"]
        perm = tuple(first[p] for p in perm)
        x = x.inputs[0]
    if perm == tuple(range(len(perm))):
        return x
    shape = tuple(x.shape[p] for p in perm)
    # Nothing moves where only dimensions of size 1 change places.
    if [p for p in perm if x.shape[p] != 1] == [p for p in range(len(perm)) if x.shape[p] != 1]:
        return reshape(x, shape)
    return _make("transpose", (x,), shape, x.dtype, perm=perm)


def expand(x: Node, shape: Shape) -> Node:
    """x, broadcast."""
    if x.shape == shape:
        return x
    return _make("broadcast", (x,), shape, x.dtype, dims=shape)


def slice_axis(x: Node, axis: int, start: int, end: int, step: int = 1) -> Node:
    """`x[start:end:step]` along an axis; bounds lie within it."""
    size = x.shape[axis]
    if start == 0 and end == size and step == 1:
        return x
    count = max(0, -(-(end - start) // step))
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    if x.op == "concat" and count and dict(x.attrs)["axis"] == axis:
        # What is joined only to be taken apart again need not be joined.
        at = 0
        for part in x.inputs:
            size = part.shape[axis]
            if at <= start and end <= at + size:
                return slice_axis(part, axis, start - at, end - at, step)
            at += size
    return _make("slice", (x,), shape, x.dtype, axis=axis, start=start, end=end, step=step)


def concat(parts: Sequence[Node], axis: int) -> Node:
    """Joined along an axis."""
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    if 0 in shape:
        return empty(tuple(shape), parts[0].dtype, parts[0].device)
    filled = [part for part in parts if part.shape[axis]]
    if len(filled) == 1:
        return filled[0]
    # As many as one node may read; then these are joined.
    while len(filled) > MOST_JOINED:
        filled = [concat(filled[i : i + MOST_JOINED], axis) for i in range(0, len(filled), MOST_JOINED)]
    return _make("concat", tuple(filled), tuple(shape), parts[0].dtype, axis=axis)


MOST_JOINED = 32


def flip(x: Node, axes: Sequence[int]) -> Node:
    """Backwards along the axes."""
    axes = tuple(axis for axis in axes if x.shape[axis] > 1)
    return _make("flip", (x,), x.shape, x.dtype, axes=axes) if axes else x


def pad(x: Node, before: Sequence[int], after: Sequence[int], value: Scalar) -> Node:
    """x with elements of a value around it: so many before and after, a dimension each."""
    if not any(before) and not any(after):
        return x
    shape = tuple(n + b + a for n, b, a in zip(x.shape, before, after))
    if 0 in x.shape:
        return full(shape, value, x.dtype, x.device)
    return _make("pad", (x,), shape, x.dtype, before=tuple(before), after=tuple(after), value=_held(value, x.dtype))


def _held(value: Scalar, dtype: str) -> float:
    """A number as its type holds it."""
    if dtype == "bool":
        return float(bool(value))
    if dtype in ("i64", "i32", "u8"):
        return float(int(value) % 256 if dtype == "u8" else int(value))
    return float(value)


# ---- reductions and scans

_IDENTITY: dict[str, Callable[[str], Scalar]] = {
    "sum": lambda _: 0,
    "prod": lambda _: 1,
    "mean": lambda _: math.nan,
}


def reduced_shape(shape: Shape, axes: Sequence[int], keep: bool) -> Shape:
    """The shape after a reduction."""
    if keep:
        return tuple(1 if i in axes else dim for i, dim in enumerate(shape))
    return tuple(dim for i, dim in enumerate(shape) if i not in axes)


def reduce(kind: str, x: Node, axes: Sequence[int], keep: bool = False) -> Node:
    """`sum`, `mean`, `max`, `min` or `prod` over the axes, which are counted from the front."""
    shape = reduced_shape(x.shape, axes, keep)
    if not axes:
        return x
    if 0 in x.shape and 0 not in shape:
        if kind not in _IDENTITY:
            raise IndexError(f"{kind}(): Expected reduction dim to be specified for input.numel() == 0")
        return full(shape, _IDENTITY[kind](x.dtype), x.dtype, x.device)
    if x.dtype == "bool":
        # Of truth values the sum is whether any holds, the product whether all do.
        kind = {"sum": "max", "prod": "min"}.get(kind, kind)
    return _make("reduce", (x,), shape, x.dtype, kind=kind, axes=tuple(axes), keep_dims=keep)


def arg_reduce(kind: str, x: Node, axis: int, keep: bool = False) -> Node:
    """The index of the largest (`max`) or smallest (`min`) element along an axis -> i64; NaN is both."""
    return _make("arg_reduce", (x,), reduced_shape(x.shape, (axis,), keep), "i64", kind=kind, axis=axis, keep_dims=keep)


def cumulative(kind: str, x: Node, axis: int) -> Node:
    """The running `sum`, `prod`, `max` or `min` along an axis."""
    return _make("cumulative", (x,), x.shape, x.dtype, kind=kind, axis=axis)


def argsort(x: Node, axis: int, descending: bool) -> Node:
    """Where the elements in order come from -> i64; stable, NaN is greatest."""
    return _make("argsort", (x,), x.shape, "i64", axis=axis, descending=descending)


def softmax(x: Node, axis: int) -> Node:
    """Softmax over an axis."""
    return _make("softmax", (x,), x.shape, x.dtype, axis=axis)


# ---- indexing


def gather(x: Node, ids: Node) -> Node:
    """Rows of x: `x[ids]` along its first dimension; ids are in range."""
    return _make("gather", (x, ids), (*ids.shape, *x.shape[1:]), x.dtype)


def take(x: Node, ids: Node, axis: int) -> Node:
    """`x[:, ids]` along an axis: ids `[n]`."""
    if axis == 0:
        return gather(x, ids)
    perm = (axis, *(i for i in range(len(x.shape)) if i != axis))
    taken = gather(transpose(x, perm), ids)
    back = [0] * len(perm)
    for i, p in enumerate(perm):
        back[p] = i
    return transpose(taken, back)


def embedding(table: Node, ids: Node) -> Node:
    """Rows of a table `[V, H]`."""
    return _make("embedding", (table, ids), (*ids.shape, table.shape[1]), table.dtype, dtype=table.dtype)


def take_along(x: Node, ids: Node, axis: int) -> Node:
    """torch.gather: ids have the rank of x."""
    return _make("take_along", (x, ids), ids.shape, x.dtype, axis=axis)


def scatter_along(x: Node, ids: Node, updates: Node, axis: int, kind: str = "set") -> Node:
    """torch.scatter: updates have the shape of ids. `kind`: `set`, `add`, `mul`, `max` or `min`."""
    if 0 in ids.shape:
        return x
    if x.dtype == "bool" and kind != "set":
        # Of truth values the sum is whether any holds, the product whether all do.
        kind = {"add": "max", "mul": "min"}.get(kind, kind)
        return cast(scatter_along(cast(x, "u8"), ids, cast(updates, "u8"), axis, kind), "bool")
    return _make("scatter_along", (x, ids, updates), x.shape, x.dtype, axis=axis, kind=kind)


# ---- products and layers


def matmul(a: Node, b: Node) -> Node:
    """a `[.., M, K]` by b `[.., K, N]`, leading dimensions equal, or b of rank 2."""
    shape = (*a.shape[:-1], b.shape[-1])
    if a.shape[-1] == 0 and 0 not in shape:
        return full(shape, 0, a.dtype, a.device)
    return _make("matmul", (a, b), shape, a.dtype)


def linear(x: Node, weight: Node, bias: Node | None, layout: str = "out_in") -> Node:
    """x `[.., K]` by a weight `[N, K]` (`out_in`) or `[K, N]` (`in_out`)."""
    n = weight.shape[0] if layout == "out_in" else weight.shape[1]
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return _make("linear", inputs, (*x.shape[:-1], n), x.dtype, layout=layout)


def layer_norm(x: Node, weight: Node, bias: Node, eps: float) -> Node:
    """Over the last dimension."""
    return _make("layer_norm", (x, weight, bias), x.shape, x.dtype, eps=eps)


def batch_norm(x: Node, weight: Node, bias: Node, mean: Node, variance: Node, eps: float) -> Node:
    """The inference form, a channel each."""
    return _make("batch_norm", (x, weight, bias, mean, variance), x.shape, x.dtype, eps=eps)


def attended(q: Node, k: Node, v: Node, bias: Node | None, causal: bool, scale: float) -> Node:
    """Attention as it is captured: q `[B, H, S, D]`, k and v `[B, H', L, D]` with H' dividing H, a bias or mask that is broadcast.

    How it is computed is chosen when it runs: by then it is known whether k and v stay, and are a KV cache.
    """
    inputs = (q, k, v) if bias is None else (q, k, v, bias)
    return _make("attended", inputs, (*q.shape[:-1], v.shape[-1]), q.dtype, causal=causal, scale=scale)


def attention(q: Node, k: Node, v: Node, cache: Node | None, layer: int, causal: bool, scale: float) -> Node:
    """Attention in one operation: q `[B, H, S, D]`, k and v `[B, H', S, D]`, which a cache takes in."""
    batch, heads, length, width = q.shape
    rows = [reshape(transpose(t, (0, 2, 1, 3)), (batch, length, t.shape[1] * width)) for t in (q, k, v)]
    inputs = tuple(rows) if cache is None else (*rows, cache)
    made = _make(
        "attention", inputs, rows[0].shape, q.dtype,
        layer=layer, heads=heads, kv_heads=k.shape[1], head_dim=width, scale=scale, causal=causal,
    )  # fmt: skip
    return transpose(reshape(made, (batch, length, heads, width)), (0, 2, 1, 3))


def conv2d(
    x: Node,
    weight: Node,
    bias: Node | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Node:
    """x `[N, C, H, W]`, weight `[O, C / groups, kh, kw]`; padding: top, left, bottom, right."""
    size = (
        (x.shape[2 + i] + padding[i] + padding[2 + i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    inputs = (x, weight) if bias is None else (x, weight, bias)
    shape = (x.shape[0], weight.shape[0], *size)
    return _make("conv2d", inputs, shape, x.dtype, stride=stride, padding=padding, dilation=dilation, groups=groups)


def pool(
    kind: str,
    x: Node,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    count_padding: bool,
) -> Node:
    """`max` or `average` of windows of x `[N, C, H, W]`."""
    size = ((x.shape[2 + i] + padding[i] + padding[2 + i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    shape = (*x.shape[:2], *size)
    return _make(
        "pool", (x,), shape, x.dtype,
        kind=kind, kernel=kernel, stride=stride, padding=padding, count_padding=count_padding,
    )  # fmt: skip
