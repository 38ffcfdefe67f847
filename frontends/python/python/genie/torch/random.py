"""Random numbers, drawn on the server: the counter-based generator that every device of it has."""

from __future__ import annotations

import struct

from . import build, node
from .node import Node, Shape


class Generator:
    """A key and a counter: the same seed gives the same numbers, on every device."""

    def __init__(self) -> None:
        self._key, self._next = 0, 0

    def seed(self, seed: int) -> None:
        """Starts again with this key."""
        # As int64: torch's seeds go from -2^63 to 2^64 - 1.
        self._key, self._next = (int(seed) + (1 << 63)) % (1 << 64) - (1 << 63), 0

    def state(self) -> tuple[int, int]:
        """Key and counter."""
        return self._key, self._next

    def restore(self, key: int, counter: int) -> None:
        """Continues from there."""
        self._key, self._next = key, counter

    def draw(self, kind: str, shape: Shape, dtype: str, device: int) -> Node:
        """Numbers that were not drawn before: `uniform` in [0, 1), `normal`, or `bits`, uniform in [0, 2^63)."""
        seed = node.host(struct.pack("<qq", self._key, self._next), (2,), "i64", device)
        n = 1
        for dim in shape:
            n *= dim
        # A counter gives four words of 32 bits; `normal` and `bits` take two a number at the most.
        self._next += -(-2 * n // 4)
        return build.random(kind, seed, shape, dtype)


GENERATOR = Generator()
