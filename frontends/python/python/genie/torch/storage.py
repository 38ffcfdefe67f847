"""What tensors that share memory share, and how each looks at it.

The server's tensors do not change, so writing in place makes a new node and hands it to everyone who looks at the storage: a view is a
chain of steps from the storage's tensor to its own, each of which can be read through and written through.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from . import build
from .node import Node, Shape


#: Addresses that no process can read or write: whoever takes them for memory of this one ends, and harms nothing.
_ADDRESSES = itertools.count(1 << 60, 1 << 41)


class Storage:
    """One tensor's worth of memory: the node that says what is in it now."""

    __slots__ = ("_address", "node", "version")

    def __init__(self, node: Node) -> None:
        node.holders += 1
        self.node = node
        self.version = 0
        self._address = 0

    @property
    def address(self) -> int:
        """A number that no other storage has, to tell by which tensors share memory."""
        if not self._address:
            self._address = next(_ADDRESSES) % (1 << 63)
        return self._address

    def set(self, node: Node) -> None:
        """Replaces what is in it."""
        node.holders += 1
        self.node.holders -= 1
        self.node = node
        self.version += 1

    def __del__(self) -> None:
        self.node.holders -= 1


class Step:
    """How a view looks at what is before it."""

    __slots__ = ()

    def read(self, base: Node) -> Node:
        """What the view shows."""
        raise NotImplementedError

    def write(self, base: Node, new: Node) -> Node:
        """The base, with what the view shows replaced."""
        raise NotImplementedError


class Reshape(Step):
    """The same elements in another shape."""

    __slots__ = ("shape",)

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def read(self, base: Node) -> Node:
        return build.reshape(base, self.shape)

    def write(self, base: Node, new: Node) -> Node:
        return build.reshape(new, base.shape)


class Permute(Step):
    """Dimensions in another order."""

    __slots__ = ("back", "perm")

    def __init__(self, perm: Sequence[int]) -> None:
        self.perm = tuple(perm)
        back = [0] * len(self.perm)
        for i, p in enumerate(self.perm):
            back[p] = i
        self.back = tuple(back)

    def read(self, base: Node) -> Node:
        return build.transpose(base, self.perm)

    def write(self, base: Node, new: Node) -> Node:
        return build.transpose(new, self.back)


class Slice(Step):
    """A range of one dimension."""

    __slots__ = ("axis", "end", "start", "step")

    def __init__(self, axis: int, start: int, end: int, step: int) -> None:
        self.axis, self.start, self.end, self.step = axis, start, end, step

    def read(self, base: Node) -> Node:
        return build.slice_axis(base, self.axis, self.start, self.end, self.step)

    def write(self, base: Node, new: Node) -> Node:
        axis, size = self.axis, base.shape[self.axis]
        if 0 in new.shape:
            return base
        if self.step == 1:
            before = build.slice_axis(base, axis, 0, self.start)
            after = build.slice_axis(base, axis, self.end, size)
            return build.concat([before, new, after], axis)
        ids = build.arange(self.start, self.step, new.shape[axis], "i64", base.device)
        shape = tuple(dim if i == axis else 1 for i, dim in enumerate(new.shape))
        return build.scatter_along(base, build.expand(build.reshape(ids, shape), new.shape), new, axis)


class Expand(Step):
    """Broadcast; several of its elements are one of the base, so it cannot be written."""

    __slots__ = ("shape",)

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def read(self, base: Node) -> Node:
        return build.expand(base, self.shape)

    def write(self, base: Node, new: Node) -> Node:
        if new.shape == base.shape:
            return new
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
            "Please clone() the tensor before performing the operation."
        )


class Strided(Step):
    """Any elements of the base, by size, stride and offset."""

    __slots__ = ("offset", "size", "stride")

    def __init__(self, size: Shape, stride: Shape, offset: int) -> None:
        self.size, self.stride, self.offset = size, stride, offset

    def _ids(self, device: int) -> Node:
        rank = len(self.size)
        ids = build.full((1,) * rank, self.offset, "i64", device)
        for i, (size, stride) in enumerate(zip(self.size, self.stride)):
            if size > 1 and stride:
                steps = build.arange(0, stride, size, "i64", device)
                ids = build.add(ids, build.reshape(steps, (*(1,) * i, size, *(1,) * (rank - i - 1))))
        return build.expand(ids, self.size)

    def read(self, base: Node) -> Node:
        if 0 in self.size:
            return build.empty(self.size, base.dtype, base.device)
        return build.gather(build.reshape(base, (base.numel,)), self._ids(base.device))

    def write(self, base: Node, new: Node) -> Node:
        if 0 in self.size:
            return base
        flat = build.reshape(base, (base.numel,))
        ids = build.reshape(self._ids(base.device), (new.numel,))
        return build.reshape(build.scatter_along(flat, ids, build.reshape(new, (new.numel,)), 0), base.shape)


Chain = tuple[Step, ...]


def read(storage: Storage, chain: Chain) -> Node:
    """What a view shows now."""
    node = storage.node
    for step in chain:
        node = step.read(node)
    return node


def write(storage: Storage, chain: Chain, new: Node) -> None:
    """Replaces what a view shows; `new` has its shape and type."""
    bases = [storage.node]
    for step in chain[:-1]:
        bases.append(step.read(bases[-1]))
    for base, step in zip(reversed(bases), reversed(chain)):
        new = step.write(base, new)
    storage.set(new)
