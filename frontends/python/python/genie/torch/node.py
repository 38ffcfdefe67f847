"""What is to be computed: nodes of a semantically rich graph that has not run yet.

A node is immutable but for its value: once the server has computed it, the node has the resident and forgets what it was computed
from. Nothing here touches the server.
"""

from __future__ import annotations

import threading
from typing import Any

from .dtypes import BYTES

Shape = tuple[int, ...]


class Node:
    """One value: an operation over other nodes, data of this process that has not travelled yet, or a tensor on the server.

    `op` is the graph's name of the operation, or one of those that are none: `resident` (`value` is the server's tensor), `host`
    (`value` is the data, little-endian and row-major), `empty` (a shape that has no element), `cached` (`value` says which part of a
    KV cache it is), and `attended`, attention whose form is chosen when it runs. `holders` counts the
    storages that hold the node, and `readers` the nodes that are to be computed from it: what is computed and held, or read by what
    was not computed with it, stays on the server. `depth` is how many nodes have to run one after the other for it,
    at the most: some may have run since.
    """

    __slots__ = ("attrs", "depth", "device", "dtype", "holders", "inputs", "op", "phase", "readers", "residency", "sent", "shape", "value")

    def __init__(
        self,
        op: str,
        attrs: tuple[tuple[str, Any], ...],
        inputs: tuple[Node, ...],
        shape: Shape,
        dtype: str,
        device: int,
    ) -> None:
        self.op = op
        self.attrs = attrs
        self.inputs = inputs
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.value: Any = None
        self.holders = 0
        self.readers = 0
        self.phase: str | None = CURRENT.phase
        self.residency: str | None = None
        # How often data of this process has travelled with a run.
        self.sent = 0
        depth = 0
        for node in inputs:
            node.readers += 1
            if node.depth > depth:
                depth = node.depth
        self.depth = depth + 1

    def __del__(self) -> None:
        for node in self.inputs:
            node.readers -= 1

    @property
    def numel(self) -> int:
        """Elements."""
        n = 1
        for dim in self.shape:
            n *= dim
        return n

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.numel * BYTES[self.dtype]

    def is_leaf(self) -> bool:
        """Whether there is nothing left to compute."""
        return self.op in LEAVES

    def settle(self, value: Any) -> None:
        """The server has computed it: what it was computed from is not needed for it any more."""
        self.value = value
        self.op = "resident"
        self.attrs = ()
        for node in self.inputs:
            node.readers -= 1
        self.inputs = ()
        self.depth = 0

    def rewrite(self, other: Node) -> None:
        """The same value, computed another way."""
        for node in other.inputs:
            node.readers += 1
        for node in self.inputs:
            node.readers -= 1
        self.op, self.attrs, self.inputs = other.op, other.attrs, other.inputs

    def settle_cached(self, value: Any) -> None:
        """The server has it as a part of a KV cache."""
        self.settle(value)
        self.op = "cached"

    def __repr__(self) -> str:
        return f"Node({self.op} {self.dtype}{list(self.shape)})"


LEAVES = frozenset(("resident", "host", "empty", "cached", "kv_cache"))


class _Current(threading.local):
    """The phase that `genie.phase` has set for what this thread captures now."""

    phase: str | None = None


CURRENT = _Current()


def resident(value: Any, shape: Shape, dtype: str, device: int) -> Node:
    """A tensor that is on the server."""
    node = Node("resident", (), (), shape, dtype, device)
    node.value = value
    return node


def host(data: Any, shape: Shape, dtype: str, device: int) -> Node:
    """Data of this process, which travels with the run that first needs it."""
    node = Node("host", (), (), shape, dtype, device)
    node.value = data
    return node


def empty(shape: Shape, dtype: str, device: int) -> Node:
    """A tensor without elements: there is nothing to compute, and nothing to send."""
    node = Node("empty", (), (), shape, dtype, device)
    return node
