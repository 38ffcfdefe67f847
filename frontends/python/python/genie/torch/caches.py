"""Which attention reads a KV cache.

Nothing in torch says that a tensor is one. It shows: keys and values that somebody keeps after attention has read them, and that come
back joined with those of the next token. Once recognised they lie in the server's cache, which is appended to in place: a step names
the cache, and neither keys nor values travel or are copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from . import build
from .dtypes import BYTES
from .node import Node
from .operands import scalar

#: Tokens in one block of a KV cache.
BLOCK = 64


class Caches(Protocol):
    """A server's caches, as they are needed here."""

    def fork_cache(self, cache: Any, length: int) -> Any:
        """A second cache with the first `length` tokens."""

    def read_cache(self, cache: Any, part: Part) -> Any:
        """The elements of a part, `[1, kv_heads, length, head_dim]`."""


@dataclass(eq=False)
class KvCache:
    """A cache of the server. `handle` is made with the first program that appends to it."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    device: int
    length: int = 0
    handle: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of its blocks."""
        return -(-self.length // BLOCK) * self.layers * 2 * self.kv_heads * BLOCK * self.head_dim * BYTES[self.dtype]

    @property
    def attrs(self) -> tuple[tuple[str, Any], ...]:
        """What a program must know of it."""
        return (("layers", self.layers), ("kv_heads", self.kv_heads), ("head_dim", self.head_dim))


@dataclass(frozen=True, slots=True)
class Part:
    """The keys or values of a layer, of the first `length` tokens."""

    cache: KvCache
    layer: int
    values: bool
    length: int


@dataclass(slots=True)
class Placed:
    """The cache that a run appends to, and the nodes that are parts of it afterwards."""

    cache: KvCache
    grown: int
    parts: list[tuple[Node, int, bool]]

    @property
    def phase(self) -> str:
        """What such a run is: one token more, or a whole prompt."""
        return "decode" if self.cache.length else "prefill"

    def settle(self) -> None:
        """The run is done."""
        self.cache.length += self.grown
        for node, layer, values in self.parts:
            node.settle_cached(Part(self.cache, layer, values, self.cache.length))


def place(found: Sequence[Node], staying: Any, caches: Caches) -> Placed | None:
    """Chooses how each `attended` node of a run is computed, and rewrites it so. At most one cache is appended to in a run.

    `staying` says of a node whether it will be needed after the run.
    """
    placed = _next_tokens(found, staying, caches) or _prompt(found, staying)
    for node in found:
        if node.op == "attended":
            node.rewrite(_plain(node))
    return placed


def _next_tokens(found: Sequence[Node], staying: Any, caches: Caches) -> Placed | None:
    """Every layer's keys and values are a cache's, joined with one token's."""
    cache: KvCache | None = None
    length = 0
    layers: dict[int, Node] = {}
    for node in found:
        parts = [_joined(x) for x in node.inputs[1:3]]
        if len(node.inputs) != 3 or node.inputs[0].shape[2] != 1 or None in parts:
            continue
        key, value = (part for part in parts if part is not None)
        if cache is None:
            cache, length = key.cache, key.length
        # Who does not keep what is joined has no use for a cache that has grown; nor may a part of it be asked for as it is.
        if not (staying(node.inputs[1]) and staying(node.inputs[2])):
            return None
        same = key.cache is cache and value.cache is cache and key.length == value.length == length
        if not same or key.layer != value.layer or key.values or not value.values or key.layer in layers:
            return None
        layers[key.layer] = node
    if cache is None or len(layers) != cache.layers:
        return None
    if cache.length != length:
        # Somebody goes on from an earlier token: the later ones stay for whoever has them.
        cache = KvCache(cache.layers, cache.kv_heads, cache.head_dim, cache.dtype, cache.device, length, caches.fork_cache(cache.handle, length))
    return _appended(cache, layers, lambda x: x.inputs[1], 1)


def _joined(x: Node) -> Part | None:
    if x.op == "concat" and len(x.inputs) == 2 and x.attrs[0][1] == 2 and x.inputs[0].op == "cached" and x.inputs[1].shape[2] == 1:
        part: Part = x.inputs[0].value
        return part
    return None


def _prompt(found: Sequence[Node], staying: Any) -> Placed | None:
    """Layers of one shape, whose keys and values are all of this run's tokens and stay."""
    layers: dict[int, Node] = {}
    for node in found:
        q, k, v = node.inputs[:3]
        causal = node.attrs[0][1]
        if len(node.inputs) != 3 or q.shape[0] != 1 or not (causal or q.shape[2] == 1):
            continue
        if q.shape[2] != k.shape[2] or k.shape != v.shape or k is v or k.is_leaf() or v.is_leaf():
            continue
        if any(x.residency == "activation" or not (staying(x) or x.residency == "kv-cache") for x in (k, v)):
            continue
        if layers and (k.shape, k.dtype) != (layers[0].inputs[1].shape, layers[0].inputs[1].dtype):
            return None
        layers[len(layers)] = node
    if not layers:
        return None
    k = layers[0].inputs[1]
    cache = KvCache(len(layers), k.shape[1], k.shape[3], k.dtype, k.device)
    return _appended(cache, layers, lambda x: x, k.shape[2])


def _appended(cache: KvCache, layers: dict[int, Node], new: Any, grown: int) -> Placed:
    k = layers[0].inputs[1]
    held = Node("kv_cache", cache.attrs, (), (), cache.dtype, k.device)
    held.value = cache
    placed = Placed(cache, grown, [])
    for layer, node in layers.items():
        q, k, v = node.inputs
        (_, causal), (_, scale) = node.attrs
        node.rewrite(build.attention(q, new(k), new(v), held, layer, causal or grown == 1, scale))
        placed.parts += [(k, layer, False), (v, layer, True)]
    return placed


def _plain(node: Node) -> Node:
    """Attention of tensors."""
    q, k, v, *bias = node.inputs
    (_, causal), (_, scale) = node.attrs
    if not bias and v.shape == k.shape and q.shape[2:] == k.shape[2:]:
        return build.attention(q, k, v, None, 0, causal, scale)
    weights = weights_of(q, k, bias[0] if bias else None, causal, scale)
    return build.matmul(weights, shared_heads(v, q.shape[1]))


def weights_of(q: Node, k: Node, bias: Node | None, causal: bool, scale: float) -> Node:
    """How much each row of q `[B, H, S, D]` looks at each of k `[B, H', L, D]` -> `[B, H, S, L]`; nothing where all is masked."""
    k = shared_heads(k, q.shape[1])
    scores = build.matmul(build.mul(q, scalar(scale, q.dtype, q.device)), build.transpose(k, (0, 1, 3, 2)))
    nothing = scalar(-math.inf, scores.dtype, q.device)
    if causal:
        length, seen = scores.shape[2:]
        rows, columns = build.arange(0, 1, length, "i64", q.device), build.arange(0, 1, seen, "i64", q.device)
        shown = build.compare("le", build.reshape(columns, (1, seen)), build.reshape(rows, (length, 1)))
        scores = build.where(shown, scores, nothing)
    if bias is None:
        return build.softmax(scores, 3)
    if bias.dtype == "bool":
        scores = build.where(bias, scores, nothing)
    else:
        scores = build.add(scores, build.cast(bias, scores.dtype))
    masked = build.compare("eq", build.reduce("max", scores, (3,), True), nothing)
    return build.where(masked, scalar(0, scores.dtype, q.device), build.softmax(scores, 3))


def shared_heads(x: Node, heads: int) -> Node:
    """Keys or values `[B, H', L, D]` for so many heads: each serves as many queries' heads as it takes."""
    batch, kv_heads, length, width = x.shape
    if kv_heads == heads:
        return x
    x = build.expand(build.reshape(x, (batch, kv_heads, 1, length, width)), (batch, kv_heads, heads // kv_heads, length, width))
    return build.reshape(x, (batch, heads, length, width))
