"""Matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import build
from ..caches import shared_heads, weights_of
from ..dispatch import HANDLERS, LIBRARY, aten
from ..dtypes import is_float, name_of
from ..node import Node
from ..operands import device_among, integers, operand, scalar
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
    terms = build.mul(left, right)
    made = build.reduce("sum", terms, (len(terms.shape) - 2,))
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


def attention(
    query: RemoteTensor,
    key: RemoteTensor,
    value: RemoteTensor,
    attn_mask: RemoteTensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> RemoteTensor:
    """Attention in one piece: torch would take it apart before a device sees it."""
    device = device_among((query, key, value))
    q, k, v = (operand(t, name_of(t.dtype), device) for t in (query, key, value))
    bias = None if attn_mask is None else operand(attn_mask, name_of(attn_mask.dtype), device)
    if bias is not None and is_causal:
        raise RuntimeError("_scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True")
    lead = build.broadcast_shapes(*(t.shape[: -3 if enable_gqa else -2] for t in (q, k, v)))
    # Whatever stands before heads is one batch; where there are no heads, there is one.
    rows, heads = (math.prod(lead[:-1]), lead[-1]) if not enable_gqa and lead else (math.prod(lead), 1)

    def laid(t: Node) -> Node:
        inner = t.shape[-3:] if enable_gqa else t.shape[-2:]
        t = build.expand(t, (*lead, *inner))
        return build.reshape(t, (rows, *inner) if enable_gqa else (rows, heads, *inner))

    if bias is not None:
        inner = (q.shape[-3], q.shape[-2], k.shape[-2]) if enable_gqa else (q.shape[-2], k.shape[-2])
        if len(bias.shape) > len(lead) + len(inner) or math.prod(bias.shape[: -len(inner)] or (1,)) > 1:
            bias = build.expand(bias, (*lead, *inner))
            bias = build.reshape(bias, (rows, *inner) if enable_gqa else (rows, heads, *inner))
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if dropout_p:
        weights = weights_of(laid(q), laid(k), bias, is_causal, factor)
        dropped = node_of(aten.native_dropout.default(wrap(weights), dropout_p, True)[0])
        made = build.matmul(dropped, shared_heads(laid(v), q.shape[-3] if enable_gqa else heads))
    else:
        made = build.attended(laid(q), laid(k), laid(v), bias, is_causal, factor)
    return wrap(build.reshape(made, (*lead, *(q.shape[-3:-1] if enable_gqa else q.shape[-2:-1]), v.shape[-1])))


for _key in ("PrivateUse1", "AutogradPrivateUse1"):
    LIBRARY.impl("scaled_dot_product_attention", attention, _key)
