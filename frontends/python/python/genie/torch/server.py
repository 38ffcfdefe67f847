"""A session, as `run` needs a server."""

from __future__ import annotations

import os
import struct
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from genie import _native

from .caches import BLOCK, KvCache, Part
from .dtypes import BYTES
from .node import Shape
from .run import Given, Line

#: Bindings that a program keeps, one for each set of weights that it ran with.
MOST_BINDINGS = 8

_UNARY = frozenset((
    "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc", "erfinv", "lgamma", "digamma",
    "expm1", "log1p", "log2", "log10", "exp2", "rsqrt", "reciprocal", "i0", "floor", "ceil", "round", "trunc", "sign", "not", "is_nan",
    "is_inf", "is_finite",
))  # fmt: skip
_BINARY = frozenset((
    "pow", "maximum", "minimum", "remainder", "fmod", "floor_divide", "atan2", "hypot", "copysign", "nextafter", "bit_and", "bit_or",
    "bit_xor", "shift_left", "shift_right",
))  # fmt: skip
_COMPARE = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
#: Operations of the graph that come in kinds, by what a node calls them.
KINDS = {
    **dict.fromkeys(_UNARY, "unary"),
    **dict.fromkeys(_BINARY, "binary"),
    **dict.fromkeys(_COMPARE, "compare"),
}
#: Operations that read nothing: their type is declared.
DECLARED = frozenset(("full", "arange"))
#: Attributes that also say the type of the result.
TYPED = frozenset(("random",))

_FORMATS = {"f32": "<f", "i64": "<q", "i32": "<i", "u8": "<B", "bool": "<?", "f16": "<e"}


class Resident:
    """A tensor on the server, freed there when nobody refers to it any more."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


class Program:
    """A program, and what it was joined with."""

    __slots__ = ("__weakref__", "bindings", "program", "weights")

    def __init__(self, program: Any, weights: frozenset[int]) -> None:
        self.program = program
        #: Lines of its weights: together they take a few bytes of a bind, where they came to the server together.
        self.weights = weights
        self.bindings: OrderedDict[tuple[int, ...], tuple[Any, list[Any]]] = OrderedDict()


class Server:
    """One server: everything that its tensors need goes through one session."""

    def __init__(self, session: Any) -> None:
        self.session = session
        # What this process has there, for as long as it has it.
        self._tensors: weakref.WeakSet[Resident] = weakref.WeakSet()
        self._caches: weakref.WeakSet[KvCache] = weakref.WeakSet()

    def _held(self, tensor: Any) -> Resident:
        held = Resident(tensor)
        self._tensors.add(held)
        return held

    # ---- tensors

    def put(self, device: int, data: Any, dtype: str, shape: Shape, weight: bool) -> Resident:
        """Brings data to the server. A weight is named by its content: one that is there already does not travel."""
        return self._held(_native.Session.put(self.session, data, device=device, dtype=dtype, shape=list(shape), weight=weight))

    def get(self, tensor: Resident) -> Any:
        """The bytes of a tensor."""
        return _native.Session.get(self.session, tensor.tensor)

    def copy(self, tensor: Resident, device: int) -> Resident:
        """The same tensor on another device."""
        return self._held(_native.Session.copy(self.session, tensor.tensor, device))

    # ---- programs

    def define(self, device: int, lines: Sequence[Line], outputs: Sequence[int], phase: str | None) -> Program:
        """Registers a graph."""
        weights = frozenset(i for i, line in enumerate(lines) if line[0] == "weight")
        return Program(_native.Session.define(self.session, graph_of(lines, outputs, phase), device=device), weights)

    def forget(self, program: Program) -> None:
        """Frees a program and what it was joined with."""
        # The server is told with the next call.
        program.bindings.clear()
        program.program = None

    def run(
        self,
        program: Program,
        bound: Sequence[tuple[int, Resident]],
        given: Sequence[Given],
        wanted: int,
        keep: int,
        cache: tuple[int, KvCache] | None,
    ) -> list[tuple[Any, Resident | None]]:
        """Runs a program: see [`run.Backend.run`]."""
        position = None
        if cache is not None:
            line, kv = cache
            self._caches.add(kv)
            if kv.handle is None:
                kv.handle = Resident(_native.Session.create_cache(self.session, program.program, line))
            bound = [*bound, (line, kv.handle)]
            position = kv.length
        binding = self._binding(program, bound)
        inputs = {argument.line: _argument(argument) for argument in given}
        values = iter(_native.Session.run(self.session, binding, inputs, wanted=wanted, keep=keep, position=position))
        # An output that is wanted and kept comes twice: its elements, then its tensor.
        out: list[tuple[Any, Resident | None]] = []
        for bit in range((wanted | keep).bit_length()):
            data = next(values) if wanted >> bit & 1 else None
            kept = self._held(next(values)) if keep >> bit & 1 else None
            out.append((data, kept))
        return out

    def _binding(self, program: Program, bound: Sequence[tuple[int, Resident]]) -> Any:
        key = tuple(id(resident) for _, resident in bound)
        found = program.bindings.get(key)
        if found is not None:
            program.bindings.move_to_end(key)
            return found[0]
        weights, residents = {}, {}
        for line, resident in bound:
            (weights if line in program.weights else residents)[line] = resident.tensor
        made = _native.Session.bind(self.session, program.program, weights=weights, residents=residents)
        # It must not keep alive what nobody else needs, so it goes with the first of them that goes.
        there = weakref.ref(program)

        def gone(_: Any) -> None:
            alive = there()
            if alive is not None:
                alive.bindings.pop(key, None)

        program.bindings[key] = made, [weakref.ref(resident, gone) for _, resident in bound]
        if len(program.bindings) > MOST_BINDINGS:
            program.bindings.popitem(last=False)
        return made

    # ---- caches

    def fork_cache(self, cache: Resident, length: int) -> Resident:
        """A second cache with the first `length` tokens."""
        made = _native.Session.fork_cache(self.session, cache.tensor)
        _native.Session.truncate_cache(self.session, made, length)
        return Resident(made)

    def read_cache(self, cache: Resident, part: Part) -> bytes:
        """The elements of a part, `[1, kv_heads, length, head_dim]`."""
        kv = part.cache
        data = memoryview(_native.Session.get_cache(self.session, cache.tensor)).cast("B")
        row = kv.head_dim * BYTES[kv.dtype]
        block = kv.layers * 2 * kv.kv_heads * BLOCK * row
        out = bytearray()
        for head in range(kv.kv_heads):
            inner = ((part.layer * 2 + part.values) * kv.kv_heads + head) * BLOCK * row
            for first in range(0, part.length, BLOCK):
                at = first // BLOCK * block + inner
                out += data[at : at + min(BLOCK, part.length - first) * row]
        return bytes(out)

    # ---- the server itself

    def devices(self) -> list[dict[str, Any]]:
        """What devices it has."""
        names = ("index", "name", "model", "capability", "total_bytes", "free_bytes")
        return [dict(zip(names, device)) for device in _native.Session.devices(self.session)]

    def allocated(self, device: int) -> int:
        """Bytes of the tensors and KV caches that this process has on a device."""
        tensors = sum(x.tensor.nbytes for x in list(self._tensors) if x.tensor.device == device)
        return tensors + sum(x.nbytes for x in list(self._caches) if x.device == device)

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received so far."""
        sent, received = _native.Session.traffic(self.session)
        return sent, received

    def describe(self, lines: Sequence[Line], outputs: Sequence[int], phase: str | None) -> tuple[str, int, int]:
        """A graph as text, its floating-point operations, and the bytes that it reads and writes."""
        graph = graph_of(lines, outputs, phase)
        flops, touched = graph.cost()
        return graph.dump(), flops, touched

    def synchronise(self) -> None:
        """Waits until it has answered all that was asked of it, and has freed what nobody needs."""
        _native.Session.ping(self.session)


def _argument(given: Given) -> Any:
    if given.tensor is not None:
        return given.tensor.tensor
    if given.data is not None:
        return given.data, given.dtype, list(given.shape)
    return number(given.number, given.dtype), given.dtype, []


def number(value: Any, dtype: str) -> bytes:
    """A number as its type holds it."""
    if dtype == "bf16":
        # The upper half of a float32, rounded to even.
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        if value != value:
            return b"\xc0\x7f"
        return struct.pack("<H", (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
    try:
        return struct.pack(_FORMATS[dtype], value)
    except OverflowError:
        # Beyond the largest: an infinity of its sign, as any conversion to the type makes it.
        return struct.pack(_FORMATS[dtype], float("inf") if value > 0 else float("-inf"))


def graph_of(lines: Sequence[Line], outputs: Sequence[int], phase: str | None) -> Any:
    """The graph that the lines say."""
    graph = _native.Graph("torch")
    if phase is not None:
        graph.annotate(phase=phase)
    for i, (op, attrs, inputs, dtype, shape) in enumerate(lines):
        if op in ("argument", "weight"):
            graph.input(f"{i}", dtype, list(shape), role=op)
        elif op == "kv_cache":
            kv = dict(attrs)
            dims = ["position", kv["layers"], 2, kv["kv_heads"], BLOCK, kv["head_dim"]]
            graph.input(f"{i}", dtype, dims, role="kv_cache")
        elif op in DECLARED:
            graph.op(op, dtype=dtype, dims=list(shape), **dict(attrs))
        elif op in TYPED:
            graph.op(op, *inputs, dtype=dtype, dims=list(shape), **dict(attrs))
        elif op == "embedding":
            graph.op(op, *inputs, dtype=dtype)
        elif op in KINDS:
            graph.op(KINDS[op], *inputs, kind=op, **dict(attrs))
        else:
            graph.op(op, *inputs, **dict(attrs))
    for i, line in enumerate(outputs):
        graph.output(f"{i}", line)
    return graph


def is_named() -> bool:
    """Whether `genie.connect` or GENIE_SERVER says which server it is."""
    import genie

    return genie.current_session() is not None or bool(os.environ.get("GENIE_SERVER"))


def connect() -> Server:
    """The server of `genie.connect`, if that was called; else of GENIE_SERVER.

    Raises RuntimeError where neither says which.
    """
    import genie

    if not is_named():
        raise RuntimeError(
            "no server for remote_accelerator: call genie.connect('tcp://HOST:7070'), or set GENIE_SERVER, before the first tensor "
            "(a server for a try: genie serve --listen tcp://127.0.0.1:7070)"
        )
    session = genie.current_session()
    return Server(genie.connect() if session is None else session)
