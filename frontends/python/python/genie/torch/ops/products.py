"""Matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .. import build
from ..dispatch import HANDLERS, aten
from ..dtypes import is_float
from ..node import Node
from ..operands import integers, operand, scalar
from ..tensor import RemoteTensor, node_of, wrap


def _pair(a: RemoteTensor, b: Any) -> tuple[Node, Node]:
    x = node_of(a)
    if a.dtype != b.dtype:
        raise RuntimeError(f"expected m1 and m2 to have the same dtype, but got: {a.dtype} != {b.dtype}")
    return x, operand(b, x.dtype, x.device)


def product(a: Node, b: Node, bias: Node | None = None) -> Node:
    """a `[.., M, K]` by b `[K, N]` or `[.., K, N]`, with a bias `[N]`."""
    if a.shape[-1] != b.shape[-2]:
        raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({a.shape[-2]}x{a.shape[-1]} and {b.shape[-2]}x{b.shape[-1]})")
    if not is_float(a.dtype):
        return _of_integers(a, b, bias)
    if len(b.shape) == 2 and a.shape[-1]:
        # A weight stays as it lies in memory.
        if b.op == "transpose":
            return build.linear(a, b.inputs[0], bias)
        if bias is not None:
            return build.linear(a, b, bias, "in_out")
    made = build.matmul(a, b)
    return made if bias is None else build.add(made, bias)


def _of_integers(a: Node, b: Node, bias: Node | None) -> Node:
    # Products of integers are few and small: their sums must be exact, so no matrix unit is asked.
    left = build.reshape(a, (*a.shape, 1))
    right = build.reshape(b, (*b.shape[:-2], 1, *b.shape[-2:]))
    made = build.reduce("sum", build.mul(left, right), (len(right.shape) - 2,))
    return made if bias is None else build.add(made, bias)


@HANDLERS.add("mm.default")
def mm(self: RemoteTensor, mat2: RemoteTensor) -> RemoteTensor:
    return wrap(product(*_pair(self, mat2)))


@HANDLERS.add("bmm.default")
def bmm(self: RemoteTensor, mat2: RemoteTensor) -> RemoteTensor:
    a, b = _pair(self, mat2)
    if a.shape[0] != b.shape[0]:
        raise RuntimeError(f"Expected size for first two dimensions of batch2 tensor to be: [{a.shape[0]}, {a.shape[2]}] but got: {list(b.shape[:2])}.")
    return wrap(product(a, b))


@HANDLERS.add("mv.default")
def mv(self: RemoteTensor, vec: RemoteTensor) -> RemoteTensor:
    a, b = _pair(self, vec)
    return wrap(build.reshape(product(a, build.reshape(b, (*b.shape, 1))), a.shape[:1]))


@HANDLERS.add("dot.default", "vdot.default")
def dot(self: RemoteTensor, tensor: RemoteTensor) -> RemoteTensor:
    a, b = _pair(self, tensor)
    if a.shape != b.shape:
        raise RuntimeError(f"inconsistent tensor size, expected tensor {list(a.shape)} and src {list(b.shape)} to have the same number of elements")
    return wrap(build.reduce("sum", build.mul(a, b), (0,)))


def _scaled(x: Node, factor: Any) -> Node:
    return x if factor == 1 else build.mul(x, scalar(factor, x.dtype, x.device))


def _plus(self: RemoteTensor, made: Node, beta: Any, alpha: Any) -> RemoteTensor:
    made = _scaled(made, alpha)
    if beta == 0:
        return wrap(made)
    x = _scaled(node_of(self), beta)
    if build.broadcast_shapes(x.shape, made.shape) != made.shape:
        raise RuntimeError(f"The expanded size of the tensor {list(made.shape)} must match the existing size {list(x.shape)}")
    return wrap(build.add(made, x))


@HANDLERS.add("addmm.default")
def addmm(self: RemoteTensor, mat1: RemoteTensor, mat2: RemoteTensor, *, beta: Any = 1, alpha: Any = 1) -> RemoteTensor:
    a, b = _pair(mat1, mat2)
    if beta == 1 and alpha == 1 and self.dim() == 1 and self.shape[0] == mat2.shape[-1] and self.dtype == mat1.dtype:
        return wrap(product(a, b, node_of(self)))
    return _plus(self, product(a, b), beta, alpha)


@HANDLERS.add("addmv.default")
def addmv(self: RemoteTensor, mat: RemoteTensor, vec: RemoteTensor, *, beta: Any = 1, alpha: Any = 1) -> RemoteTensor:
    return _plus(self, node_of(mv(mat, vec)), beta, alpha)


@HANDLERS.add("baddbmm.default")
def baddbmm(self: RemoteTensor, batch1: RemoteTensor, batch2: RemoteTensor, *, beta: Any = 1, alpha: Any = 1) -> RemoteTensor:
    return _plus(self, node_of(bmm(batch1, batch2)), beta, alpha)


@HANDLERS.add("addbmm.default")
def addbmm(self: RemoteTensor, batch1: RemoteTensor, batch2: RemoteTensor, *, beta: Any = 1, alpha: Any = 1) -> RemoteTensor:
    a, b = _pair(batch1, batch2)
    n, rows, inner = a.shape
    if (n, inner) != b.shape[:2]:
        raise RuntimeError(f"Expected size for first two dimensions of batch2 tensor to be: [{n}, {inner}] but got: {list(b.shape[:2])}.")
    # The sum over the batch is one over a longer inner dimension.
    a = build.reshape(build.transpose(a, (1, 0, 2)), (rows, n * inner))
    return _plus(self, product(a, build.reshape(b, (n * inner, b.shape[2]))), beta, alpha)


@HANDLERS.add("addr.default")
def addr(self: RemoteTensor, vec1: RemoteTensor, vec2: RemoteTensor, *, beta: Any = 1, alpha: Any = 1) -> RemoteTensor:
    a, b = _pair(vec1, vec2)
    if a.dtype == "bool":
        made = build.binary("bit_and", build.reshape(a, (*a.shape, 1)), build.reshape(b, (1, *b.shape)))
        return wrap(build.binary("bit_or", made, node_of(self)) if beta else made)
    return _plus(self, build.mul(build.reshape(a, (*a.shape, 1)), build.reshape(b, (1, *b.shape))), beta, alpha)


@HANDLERS.whole("linear.default")
def linear(self: RemoteTensor, weight: RemoteTensor, bias: RemoteTensor | None = None) -> RemoteTensor:
    x, w = _pair(self, weight)
    row = build.reshape(x, (1, *x.shape)) if len(x.shape) == 1 else x
    if len(w.shape) == 1:
        # A vector for a weight: a product with it, without a dimension for it.
        w = build.reshape(w, (1, *w.shape))
    if row.shape[-1] != w.shape[1]:
        raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({math.prod(row.shape[:-1])}x{row.shape[-1]} and {w.shape[1]}x{w.shape[0]})")
    plain = bias is None or tuple(bias.shape) == w.shape[:1]
    if not is_float(x.dtype) or not x.shape[-1] or not plain:
        made = product(row, build.transpose(w, (1, 0)))
        made = made if bias is None else build.add(made, node_of(bias))
    else:
        made = build.linear(row, w, None if bias is None else node_of(bias))
    return wrap(build.reshape(made, (*x.shape[:-1], *weight.shape[:-1])))


@HANDLERS.add("_trilinear.default")
def trilinear(
    i1: RemoteTensor, i2: RemoteTensor, i3: RemoteTensor,
    expand1: Sequence[int], expand2: Sequence[int], expand3: Sequence[int], sumdim: Sequence[int], unroll_dim: int = 1,
) -> RemoteTensor:  # fmt: skip
    made: Node | None = None
    for tensor, expanded in ((i1, expand1), (i2, expand2), (i3, expand3)):
        x = node_of(tensor)
        shape = list(x.shape)
        for axis in sorted(expanded):
            shape.insert(axis, 1)
        x = build.reshape(x, tuple(shape))
        made = x if made is None else build.mul(made, x)
    assert made is not None
    return wrap(build.reduce("sum", made, build.axes_of(sumdim, len(made.shape))))


# ---- distances


def norm_of(off: Node, p: float) -> Node:
    """The p-norm over the last dimension."""
    axis = (len(off.shape) - 1,)
    if not off.shape[-1]:
        return build.full(off.shape[:-1], 0, off.dtype, off.device)
    if p == 0:
        return build.reduce("sum", build.cast(build.compare("ne", off, scalar(0, off.dtype, off.device)), off.dtype), axis)
    if p == 2:
        return build.unary("sqrt", build.reduce("sum", build.mul(off, off), axis))
    size = build.unary("abs", off)
    if p == 1:
        return build.reduce("sum", size, axis)
    if p == math.inf:
        return build.reduce("max", size, axis)
    powers = build.binary("pow", size, scalar(p, off.dtype, off.device))
    return build.binary("pow", build.reduce("sum", powers, axis), scalar(1 / p, off.dtype, off.device))


@HANDLERS.add("_cdist_forward.default")
def cdist(x1: RemoteTensor, x2: RemoteTensor, p: float, compute_mode: int | None = None) -> RemoteTensor:
    a, b = _pair(x1, x2)
    left = build.reshape(a, (*a.shape[:-1], 1, a.shape[-1]))
    right = build.reshape(b, (*b.shape[:-2], 1, *b.shape[-2:]))
    return wrap(norm_of(build.sub(left, right), p))


@HANDLERS.add("_pdist_forward.default")
def pdist(self: RemoteTensor, p: float = 2) -> RemoteTensor:
    x = node_of(self)
    n = x.shape[0]
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    if not pairs:
        return wrap(build.empty((0,), x.dtype, x.device))
    left, right = (build.gather(x, integers([pair[k] for pair in pairs], (len(pairs),), x.device)) for k in (0, 1))
    return wrap(norm_of(build.sub(left, right), p))


# ---- attention


@HANDLERS.add("_fused_sdp_choice.default")
def attention_choice(*_: Any, **__: Any) -> int:
    # torch has attention in one piece asked of the device, instead of taking it apart.
    return int(torch.nn.attention.SDPBackend.OVERRIDEABLE)


@HANDLERS.add("_scaled_dot_product_fused_attention_overrideable.default")
def attention(
    query: RemoteTensor,
    key: RemoteTensor,
    value: RemoteTensor,
    attn_bias: RemoteTensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    q, k, v = (node_of(t) for t in (query, key, value))
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    made = attended(q, k, v, None if attn_bias is None else node_of(attn_bias), is_causal, factor, dropout_p)
    # What comes beside it is for the way back, and for generators of dropout.
    nothing = wrap(build.empty((0,), "f32", q.device))
    seed = wrap(build.empty((0,), "i64", q.device))
    return wrap(made), nothing, nothing, nothing, q.shape[2], k.shape[2], seed, seed, nothing


def attended(q: Node, k: Node, v: Node, bias: Node | None, causal: bool, scale: float, dropout: float = 0.0) -> Node:
    """q `[B, H, S, D]`, k and v `[B, H', L, D]` with H' dividing H."""
    batch, heads, length, width = q.shape
    kv_heads, seen = k.shape[1], k.shape[2]
    plain = bias is None and not dropout and v.shape[-1] == width and 0 not in (*q.shape, *k.shape)
    if plain and length == seen:
        flat = [build.reshape(build.transpose(t, (0, 2, 1, 3)), (batch, t.shape[2], t.shape[1] * width)) for t in (q, k, v)]
        made = build.attention(*flat, heads, kv_heads, width, scale, causal)
        return build.transpose(build.reshape(made, (batch, length, heads, width)), (0, 2, 1, 3))
    if kv_heads != heads:
        k, v = (_shared(t, heads) for t in (k, v))
    scores = build.matmul(_scaled(q, scale), build.transpose(k, (0, 1, 3, 2)))
    if causal:
        rows, columns = build.arange(0, 1, length, "i64", q.device), build.arange(0, 1, seen, "i64", q.device)
        shown = build.compare("le", build.reshape(columns, (1, seen)), build.reshape(rows, (length, 1)))
        scores = build.where(shown, scores, scalar(-math.inf, scores.dtype, scores.device))
    if bias is not None:
        if bias.dtype == "bool":
            scores = build.where(bias, scores, scalar(-math.inf, scores.dtype, scores.device))
        else:
            scores = build.add(scores, build.cast(bias, scores.dtype))
    weights = build.softmax(scores, 3)
    if dropout:
        weights = node_of(aten.native_dropout.default(wrap(weights), dropout, True)[0])
    return build.matmul(weights, v)


def _shared(x: Node, heads: int) -> Node:
    batch, kv_heads, length, width = x.shape
    x = build.expand(build.reshape(x, (batch, kv_heads, 1, length, width)), (batch, kv_heads, heads // kv_heads, length, width))
    return build.reshape(x, (batch, heads, length, width))
