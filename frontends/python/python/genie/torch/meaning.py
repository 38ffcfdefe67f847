"""What data is for: recognised from the graph, or said."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from . import run
from .node import CURRENT, Node
from .tensor import RemoteTensor, node_of

PHASES = ("prefill", "decode", "vision", "fusion")
RESIDENCIES = ("weight", "kv-cache", "activation")


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """What is captured in this context belongs to a phase, whatever it looks like: `prefill`, `decode`, `vision` or `fusion`."""
    if name not in PHASES:
        raise ValueError(f"'{name}' is no phase: say one of {', '.join(PHASES)}")
    before, CURRENT.phase = CURRENT.phase, name
    try:
        yield
    finally:
        CURRENT.phase = before


def annotate(tensor: RemoteTensor, *, residency: str) -> RemoteTensor:
    """Says what a tensor is, where it is not what it looks like.

    `weight`: it stays the same from run to run, and is bound to programs once. `kv-cache`: keys or values that the next token's will be
    joined with. `activation`: neither.
    """
    if residency not in RESIDENCIES:
        raise ValueError(f"'{residency}' is no residency: say one of {', '.join(RESIDENCIES)}")
    _node(tensor).residency = residency
    return tensor


@dataclass(frozen=True)
class Explanation:
    """What a tensor takes to compute. `str()` of it is for people."""

    #: The graph, as text.
    graph: str
    #: The phase that it runs in, if there is one.
    phase: str | None
    #: Nodes.
    nodes: int
    #: Bytes that travel with the request, and that lie on the server already.
    bytes_up: int
    bytes_there: int
    #: Floating-point operations, and bytes that they read and write: what was estimated.
    flops: int
    bytes_touched: int
    #: What was measured: seconds until it was there, and bytes on the wire in both directions. None where there was nothing to run.
    seconds: float | None
    wire_up: int
    wire_down: int

    def __str__(self) -> str:
        lines = [
            self.graph.rstrip(),
            "",
            f"phase             {self.phase or 'not recognised'}",
            f"nodes             {self.nodes}",
            f"bytes to move     {self.bytes_up} up; {self.bytes_there} are on the server",
            f"estimated         {self.flops / 1e6:.3f} MFLOP, {self.bytes_touched / 1e6:.3f} MB read and written",
        ]
        if self.seconds is None:
            lines.append("measured          nothing: there is nothing to compute")
        else:
            rates = f"{self.flops / self.seconds / 1e9:.2f} GFLOP/s, {self.bytes_touched / self.seconds / 1e9:.2f} GB/s"
            lines.append(f"measured          {self.seconds * 1e3:.3f} ms ({rates}); {self.wire_up} bytes up, {self.wire_down} down")
        return "\n".join(lines)


def explain(tensor: RemoteTensor) -> Explanation:
    """Computes a tensor, and says what that was: its graph, phase, bytes to move, and the estimated cost beside what was measured."""
    node = _node(tensor)
    runner = run.runner()
    before = runner.backend.traffic()
    began = time.perf_counter()
    ran: list[run.Ran] = []
    runner.realise([node], watch=ran.append)
    seconds = time.perf_counter() - began
    after = runner.backend.traffic()
    if not ran:
        return Explanation(_leaf(node), None, 0, 0, node.nbytes, 0, 0, None, 0, 0)
    described = [runner.backend.describe(one.lines, one.outputs, one.phase) for one in ran]
    return Explanation(
        "\n".join(text for text, _, _ in described),
        ran[-1].phase,
        sum(len(one.lines) for one in ran),
        sum(one.bytes_up for one in ran),
        sum(one.bytes_there for one in ran),
        sum(flops for _, flops, _ in described),
        sum(touched for _, _, touched in described),
        seconds,
        after[0] - before[0],
        after[1] - before[1],
    )


def _leaf(node: Node) -> str:
    where = {"resident": "on the server", "cached": "in a KV cache on the server", "host": "in this process, to travel with the run that first reads it"}
    return f"{node.dtype}{list(node.shape)}: {where.get(node.op, 'without elements')}"


def _node(tensor: object) -> Node:
    if isinstance(tensor, RemoteTensor):
        return node_of(tensor)
    where = getattr(tensor, "device", type(tensor).__name__)
    raise TypeError(f"this is about tensors of remote_accelerator, not of {where}: bring it there with .to('remote_accelerator:0')")
