"""Runs what was captured: one request for everything that somebody asks for at once.

What is asked for, and all it needs, becomes one graph. Graphs that are equal but for the numbers and tensors they read are defined
once; after that a run is a program's handle, the handles of the tensors it reads, and a few numbers.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .caches import Caches, KvCache, place
from .node import Node, Shape

#: Programs that a device keeps; the one used longest ago goes first.
MOST_PROGRAMS = 96
#: Outputs of one run: as many as come back and stay together may be 64.
MOST_OUTPUTS = 48
#: Inputs of one run that are given with it.
MOST_ARGUMENTS = 64
#: Bytes that travel inside a request or its answer; what is larger is put and fetched.
INLINE_BYTES = 32 << 10
#: Tensors of this process that travel with one run, and how large one is that is put once it has travelled twice.
MOST_HERE, WORTH_KEEPING = 24, 256
#: Numbers of one graph that may be arguments.
MOST_LIFTED = 24
#: Nodes of one graph.
MOST_NODES = 8192


#: One node of a graph, as a server takes it: operation, attributes, the lines before it that it reads, type, shape. The operation is
#: the graph's, or `argument` or `weight`: tensors given with a run, or bound once.
Line = tuple[str, tuple[tuple[str, Any], ...], tuple[int, ...], str, Shape]


@dataclass(slots=True)
class Given:
    """An argument of a run: a number or bytes that travel with it, or a tensor that is on the server."""

    line: int
    dtype: str
    shape: Shape
    number: bool | int | float | None = None
    data: Any = None
    tensor: Any = None


class Backend(Caches, Protocol):
    """A server, as it is needed here."""

    def define(self, device: int, lines: Sequence[Line], outputs: Sequence[int], phase: str | None) -> Any:
        """Registers a graph; gives its program."""

    def forget(self, program: Any) -> None:
        """The program is not needed any more."""

    def run(
        self,
        program: Any,
        bound: Sequence[tuple[int, Any]],
        given: Sequence[Given],
        wanted: int,
        keep: int,
        cache: tuple[int, KvCache] | None,
    ) -> list[Any]:
        """Runs it, with tensors bound and given, and the cache that it appends to, which is made if it has no handle yet. Gives, an output each, its bytes where bit i of `wanted` is set, and its tensor where bit i of `keep` is."""

    def put(self, device: int, data: Any, dtype: str, shape: Shape, weight: bool) -> Any:
        """Brings data to the server; gives the tensor."""

    def get(self, tensor: Any) -> Any:
        """The bytes of a tensor."""

    def copy(self, tensor: Any, device: int) -> Any:
        """The same tensor on another device."""

    def devices(self) -> list[dict[str, Any]]:
        """What devices there are."""

    def allocated(self, device: int) -> int:
        """Bytes of the tensors and KV caches that this process has on a device."""

    def synchronise(self) -> None:
        """Waits until all that was asked for is done, and all that is not needed is freed."""

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received so far."""

    def describe(self, lines: Sequence[Line], outputs: Sequence[int], phase: str | None) -> tuple[str, int, int]:
        """A graph as text, its floating-point operations, and the bytes that it reads and writes."""


@dataclass(slots=True)
class Plan:
    """A program, and which of its numbers are arguments."""

    program: Any
    lifted: frozenset[int]
    values: tuple[Any, ...]


@dataclass(slots=True)
class Runs:
    """What has run: for `genie.explain`, and for tests."""

    requests: int = 0
    defined: int = 0
    nodes: int = 0


@dataclass(frozen=True, slots=True)
class Ran:
    """A graph that ran: its lines and outputs, and how many bytes its arguments had here and on the server."""

    lines: list[Line]
    outputs: tuple[int, ...]
    phase: str | None
    bytes_up: int
    bytes_there: int


class Runner:
    """Runs nodes on one server."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.plans: OrderedDict[Any, Plan] = OrderedDict()
        self.counts = Runs()
        self._lock = threading.RLock()
        self._watch: Callable[[Ran], None] | None = None

    def realise(self, roots: Sequence[Node], fetch: bool = False, watch: Callable[[Ran], None] | None = None) -> list[Any]:
        """Computes nodes of one device, and all they need. With `fetch` it gives the bytes of each; `watch` is told of each run."""
        with self._lock:
            self._watch = watch
            found: dict[int, Any] = {}
            between: list[Node] = []
            try:
                while waiting := [node for node in dict.fromkeys(roots) if not node.is_leaf()]:
                    order = order_of(waiting)
                    part = _part(order, waiting)
                    if part is not waiting:
                        # The rest needs what this part gives.
                        for node in part:
                            node.holders += 1
                        between += part
                    self._run(order if part is waiting else order_of(part), part, found if fetch and part is waiting else None)
                    if fetch and part is waiting:
                        break
            finally:
                for node in between:
                    node.holders -= 1
            return [self._bytes(node, found) for node in roots] if fetch else []

    def put(self, node: Node, weight: bool = False) -> None:
        """Brings the data of a `host` node to the server."""
        with self._lock:
            node.settle(self.backend.put(node.device, node.value, node.dtype, node.shape, weight))

    def _bytes(self, node: Node, found: dict[int, Any]) -> Any:
        data = found.get(id(node))
        if data is not None:
            return data
        if node.op == "empty":
            return b""
        if node.op == "cached":
            self._uncache(node)
        return node.value if node.op == "host" else self.backend.get(node.value)

    def _run(self, order: list[Node], roots: list[Node], fetched: dict[int, Any] | None) -> None:
        asked = set(map(id, roots))
        inside = _readers(order)

        def stays(node: Node) -> bool:
            # Whoever holds a value, or has captured something that reads it, will want it, and it is there now. The rest is for this
            # run alone.
            return node.holders > 0 or node.readers > inside[id(node)]

        kept = [node for node in order if not node.is_leaf() and (id(node) in asked or (node.op != "full" and stays(node)))]
        # The same elements in another shape cost nothing to have again.
        there = set(map(id, kept))
        kept = [n for n in kept if n.op != "reshape" or id(n) in asked or not (n.inputs[0].is_leaf() or id(n.inputs[0]) in there)]
        many = len(kept) > MOST_OUTPUTS
        if many:
            kept = roots
        # What a cache takes in stays there, so everything that was computed from it must stay, too.
        attended = [node for node in order if node.op == "attended"]
        placed = place(attended, lambda node: not many and id(node) not in asked and stays(node), self.backend) if attended else None
        if placed is not None:
            grown = {id(node) for node, _, _ in placed.parts}
            kept = [node for node in kept if id(node) not in grown]
        if attended or len(kept) != len(roots):
            order = order_of(kept)
        here = []
        for node in order:
            if node.op == "cached":
                self._uncache(node)
            elif node.op == "host":
                here.append(node)
        # What is large, or comes again and again, or is too much for one request, is put where it stays.
        for node in here:
            node.sent += 1
            if len(here) > MOST_HERE or node.nbytes > INLINE_BYTES or (node.sent > 2 and node.nbytes > WORTH_KEEPING):
                self.put(node)
        captured = Captured(order)
        phase = roots[0].phase or (placed.phase if placed is not None else _phase(order))
        outputs = tuple(captured.index[id(node)] for node in kept)
        plan = self._plan(captured, outputs, roots[0].device, phase)
        if self._watch is not None:
            self._watch(captured.told(outputs, plan.lifted, phase))
        wanted = keep = 0
        for bit, node in enumerate(kept):
            if fetched is not None and id(node) in asked and node.nbytes <= INLINE_BYTES:
                wanted |= 1 << bit
                if not stays(node):
                    continue
            keep |= 1 << bit
        self.counts.requests += 1
        self.counts.nodes += len(order)
        bound, given = captured.arguments(plan.lifted)
        values = self.backend.run(plan.program, bound, given, wanted, keep, captured.cache)
        if placed is not None:
            placed.settle()
        for bit, (node, (data, tensor)) in enumerate(zip(kept, values)):
            if fetched is not None and wanted >> bit & 1:
                fetched[id(node)] = data
            if keep >> bit & 1:
                node.settle(tensor)

    def _uncache(self, node: Node) -> None:
        """Somebody reads a cache's keys or values as the tensor that they are in torch: they become one."""
        data = self.backend.read_cache(node.value.cache.handle, node.value)
        node.settle(self.backend.put(node.device, data, node.dtype, node.shape, False))

    def _plan(self, captured: Captured, outputs: tuple[int, ...], device: int, phase: str | None) -> Plan:
        key = (device, phase, outputs, tuple(captured.lines))
        values = tuple(captured.numbers.values())
        plan = self.plans.get(key)
        if plan is None:
            # A graph has its numbers as floats of 64 bits.
            odd = (line for line, value in captured.numbers.items() if not _is_plain(value))
            plan = Plan(None, frozenset(odd), values)
        else:
            lines = tuple(captured.numbers)
            changed = {line for line, a, b in zip(lines, plan.values, values) if not _same(a, b)} - plan.lifted
            if not changed:
                self.plans.move_to_end(key)
                return plan
            # The same but for numbers: those that change are arguments from now on, unless they are too many.
            self.backend.forget(plan.program)
            lifted = plan.lifted | changed
            if len(lifted) > MOST_LIFTED:
                lifted = frozenset(line for line, value in captured.numbers.items() if not _is_plain(value))
            plan = Plan(None, lifted, values)
        plan.program = self.backend.define(device, captured.definition(plan.lifted), outputs, phase)
        self.counts.defined += 1
        self.plans[key] = plan
        while len(self.plans) > MOST_PROGRAMS:
            self.backend.forget(self.plans.popitem(last=False)[1].program)
        return plan


class Captured:
    """A graph as it was captured: its shape, and apart from that the numbers and tensors that it reads."""

    __slots__ = ("cache", "given", "index", "lines", "numbers", "weights")

    def __init__(self, order: Sequence[Node]) -> None:
        self.index: dict[int, int] = {}
        self.lines: list[Line] = []
        #: Numbers, by line.
        self.numbers: dict[int, Any] = {}
        #: Weights and other tensors that come from outside, by line.
        self.weights: list[tuple[int, Node]] = []
        self.given: list[tuple[int, Node]] = []
        self.cache: tuple[int, KvCache] | None = None
        index, lines = self.index, self.lines
        for i, node in enumerate(order):
            index[id(node)] = i
            op, attrs = node.op, node.attrs
            if op == "full":
                self.numbers[i] = attrs[0][1]
                attrs = ()
            elif op in ("resident", "host"):
                weight = node.residency == "weight" and op == "resident"
                op = "weight" if weight else "argument"
                (self.weights if weight else self.given).append((i, node))
            elif op == "kv_cache":
                self.cache = i, node.value
            lines.append((op, attrs, tuple([index[id(x)] for x in node.inputs]), node.dtype, node.shape))

    def definition(self, lifted: frozenset[int]) -> list[Line]:
        """The graph with its numbers, but for those that are arguments."""
        lines = list(self.lines)
        for i, value in self.numbers.items():
            op, _, inputs, dtype, shape = lines[i]
            lines[i] = ("argument", (), (), dtype, shape) if i in lifted else (op, (("value", value),), inputs, dtype, shape)
        return lines

    def told(self, outputs: tuple[int, ...], lifted: frozenset[int], phase: str | None) -> Ran:
        """What `explain` says of it."""
        up = sum(node.nbytes for _, node in self.given if node.op == "host") + 8 * len(lifted)
        there = sum(node.nbytes for _, node in [*self.given, *self.weights] if node.op == "resident")
        return Ran(self.definition(lifted), outputs, phase, up, there)

    def arguments(self, lifted: frozenset[int]) -> tuple[list[tuple[int, Any]], list[Given]]:
        """What is bound to the program once, and what is given with this run."""
        bound = [(i, node.value) for i, node in self.weights]
        given = [Given(i, self.lines[i][3], (), number=self.numbers[i]) for i in lifted]
        room = MOST_ARGUMENTS - len(given) - sum(node.op == "host" for _, node in self.given)
        for i, node in self.given:
            if node.op == "host":
                given.append(Given(i, node.dtype, node.shape, data=node.value))
            elif room > 0:
                room -= 1
                given.append(Given(i, node.dtype, node.shape, tensor=node.value))
            else:
                bound.append((i, node.value))
        return bound, given


def _same(a: Any, b: Any) -> bool:
    # NaN is the same number here, True and 1 are not; nor are 0.0 and -0.0.
    return type(a) is type(b) and repr(a) == repr(b) if isinstance(a, float) else a == b and type(a) is type(b)


def _is_plain(value: Any) -> bool:
    return not isinstance(value, int) or abs(value) <= 1 << 53


def order_of(roots: Sequence[Node]) -> list[Node]:
    """All nodes that the roots need, each after those that it reads."""
    order: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            for read in reversed(node.inputs):
                if id(read) not in seen:
                    stack.append((read, False))
    return order


def _phase(order: Sequence[Node]) -> str | None:
    """The phase that a graph without a KV cache shows: images are looked at by convolutions."""
    return "vision" if any(node.op == "conv2d" for node in order) else None


def _readers(order: Sequence[Node]) -> dict[int, int]:
    """How many of the nodes read each."""
    readers = dict.fromkeys(map(id, order), 0)
    for node in order:
        for read in node.inputs:
            readers[id(read)] += 1
    return readers


def _part(order: list[Node], roots: list[Node]) -> list[Node]:
    """What to run first: the roots, or else the values that pass the longest cut of the order that one run can make."""
    asked = set(map(id, roots))
    held = sum(1 for node in order if id(node) in asked)
    if held <= MOST_OUTPUTS and len(order) <= MOST_NODES:
        return roots
    last = {id(read): at for at, node in enumerate(order) for read in node.inputs}
    alive: dict[int, Node] = {}
    best: list[Node] = []
    for at, node in enumerate(order[:MOST_NODES]):
        for read in node.inputs:
            if last[id(read)] == at and id(read) not in asked:
                alive.pop(id(read), None)
        if not node.is_leaf():
            if last.get(id(node), -1) > at or id(node) in asked:
                alive[id(node)] = node
            if alive and len(alive) <= MOST_OUTPUTS:
                best = list(alive.values())
    return best


_RUNNERS: list[Runner] = []
#: Not empty where the runner is of the session that `genie.connect` opened last, rather than one that `use` was given.
_FOLLOWS: list[bool] = []


def is_known() -> bool:
    """Whether anything says which server `runner` is to use."""
    from .server import is_named

    return bool(_RUNNERS) or is_named()


def runner() -> Runner:
    """What runs the nodes of `remote_accelerator`: on the server of `genie.connect`, or of GENIE_SERVER."""
    import genie

    last = genie.current_session()
    if not _RUNNERS or (last is not None and _FOLLOWS and last is not _RUNNERS[0].backend.session):  # type: ignore[attr-defined]
        from .server import connect

        # The session that was opened last: the one before may be closed, or its server gone.
        _RUNNERS[:] = [Runner(connect())]
        _FOLLOWS[:] = [True]
    return _RUNNERS[0]


def use(backend: Backend) -> Runner:
    """Has everything run on this server from now on. Tensors of another one stay there, and cannot be used with those of this."""
    _RUNNERS[:] = [Runner(backend)]
    _FOLLOWS.clear()
    return _RUNNERS[0]


def bound(node: Node, depth: int) -> None:
    """Computes a node if so many others have to run for it one after the other."""
    # Some of them may have run since it was counted.
    for one in order_of([node]):
        one.depth = 0 if one.is_leaf() else 1 + max((x.depth for x in one.inputs), default=0)
    if node.depth > depth:
        realise([node])


def realise(roots: Sequence[Node], fetch: bool = False) -> list[Any]:
    """Computes nodes of one device, and all they need; with `fetch` it gives the bytes of each."""
    return runner().realise(roots, fetch)
