"""What is to be computed: nodes of a semantically rich graph that has not run yet.

A node is immutable but for its value: once the server has computed it, the node has the resident and forgets what it was computed
from. Nothing here touches the server.
"""

from __future__ import annotations

from typing import Any

from .dtypes import BYTES

Shape = tuple[int, ...]


class Node:
    """One value: an operation over other nodes, data of this process that has not travelled yet, or a tensor on the server.

    `op` is the graph's name of the operation, or one of three that are no operation: `resident` (`value` is the server's tensor),
    `host` (`value` is the data, little-endian and row-major) and `empty` (a shape that has no element). `holders` counts the
    storages that hold the node: what is computed and held stays on the server.
    """

    __slots__ = ("attrs", "device", "dtype", "holders", "inputs", "op", "phase", "pending", "residency", "shape", "value")

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
        self.phase: str | None = CURRENT.phase
        self.residency: str | None = None
        # Nodes that would have to run for this one, at the most: those that two inputs share are counted twice.
        pending = 1
        for node in inputs:
            pending += node.pending
        self.pending = pending

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
        self.inputs = ()
        self.pending = 0

    def __repr__(self) -> str:
        return f"Node({self.op} {self.dtype}{list(self.shape)})"


LEAVES = frozenset(("resident", "host", "empty"))


class _Current:
    """The phase that `genie.phase` has set for what is captured now."""

    __slots__ = ("phase",)

    def __init__(self) -> None:
        self.phase: str | None = None


CURRENT = _Current()


def resident(value: Any, shape: Shape, dtype: str, device: int) -> Node:
    """A tensor that is on the server."""
    node = Node("resident", (), (), shape, dtype, device)
    node.value = value
    node.pending = 0
    return node


def host(data: Any, shape: Shape, dtype: str, device: int) -> Node:
    """Data of this process, which travels with the run that first needs it."""
    node = Node("host", (), (), shape, dtype, device)
    node.value = data
    node.pending = 0
    return node


def empty(shape: Shape, dtype: str, device: int) -> Node:
    """A tensor without elements: there is nothing to compute, and nothing to send."""
    node = Node("empty", (), (), shape, dtype, device)
    node.pending = 0
    return node
