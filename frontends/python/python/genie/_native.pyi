from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, TypeVar

from ._array import Array

__version__: str

_Path = str | PathLike[str]
_T = TypeVar("_T")
_Told = Callable[[int, int], object]

class Memory:
    def __buffer__(self, flags: int, /) -> memoryview: ...

def memory(data: object, dtype: object = None, shape: list[int] | None = None) -> Array: ...
def describe(memory: Memory) -> tuple[str, tuple[int, ...], int, bool]: ...
def to_dlpack(memory: Memory, versioned: bool) -> object: ...
def dump(encoded: bytes) -> str:
    """An encoded graph as text."""

def after_fork() -> None: ...

class Cancel:
    """Ends what another thread is doing in `run`."""

    def run(self, work: Callable[[], _T]) -> _T: ...
    def set(self) -> None: ...

class Tensor:
    """A tensor that lives on the server. Freed there when nothing refers to it any more."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> int: ...
    def free(self) -> None:
        """Frees it now. Any use of it fails from here on."""

class Cache:
    """A KV cache on the server."""

class Program:
    """A graph that the server has verified and planned."""

    @property
    def inputs(self) -> list[tuple[str, int, str, str, tuple[int | str, ...]]]:
        """Name, node, role, element type and dimensions of each input."""
    @property
    def outputs(self) -> list[str]:
        """The names of the outputs, in order."""
    @property
    def output_bytes(self) -> list[int | None]:
        """Bytes of each output; `None` where they depend on the run."""
    def output_bytes_of(self, symbols: Mapping[str, int]) -> list[int | None]:
        """The same in a run where `batch`, `sequence` and `position` are as large as this says."""
    @property
    def device(self) -> int: ...
    @property
    def hash(self) -> str:
        """BLAKE3 of the graph's encoding, in hexadecimal digits."""

class Binding:
    """A program joined with residents: what runs."""

    @property
    def outputs(self) -> list[str]:
        """The names of the program's outputs, in order."""

class Node:
    """A node of a graph, by its place there."""

    @property
    def id(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int | str, ...]: ...
    def __index__(self) -> int: ...

class Graph:
    """Builds a graph node by node; each is checked as it is added."""

    def __new__(cls, name: str = "graph") -> Graph: ...
    def input(self, name: str, dtype: object, dims: list[int | str] | tuple[int | str, ...], role: str = "argument") -> Node:
        """Adds an input. Roles: argument, weight, kv-cache, tokens, positions, sampling-real, sampling-int."""
    def op(self, name: str, *inputs: Node | int, **attributes: Any) -> Node:
        """Adds an op that reads earlier nodes."""
    def output(self, name: str, node: Node | int) -> None:
        """Makes a node a named result."""
    def annotate(self, *, phase: str | None = None, residency: str | None = None, modality: str | None = None) -> None:
        """Says what the nodes that follow are for; what is left out stays as it was."""
    def encode(self) -> bytes:
        """The graph in its binary form, after all of it was checked."""
    def dump(self) -> str:
        """The graph as text."""
    def cost(self, *, batch: int = 1, sequence: int = 1, position: int = 0) -> tuple[int, int]:
        """What a run costs, for these sizes: floating-point operations, and bytes read and written."""
    def __len__(self) -> int: ...

class Model:
    uploaded: tuple[int, int, int]
    @property
    def name(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def end_ids(self) -> list[int]: ...
    def encode(self, text: str, chat: bool = False) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def generate(
        self,
        prompt: list[int],
        max_new: int,
        *,
        stop: list[int],
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int,
        text: bool,
        after: bool,
    ) -> Tokens: ...
    def close(self, patience: float | None = None) -> None: ...
    def traffic(self) -> tuple[int, int]: ...

class Tokens:
    def next(self) -> tuple[int | None, str | None, str | None]: ...
    def stop(self) -> None: ...

def load_model(
    session: Session,
    path: str,
    *,
    device: int = 0,
    dtype: object = None,
    or_none: bool = False,
    progress: Callable[[str, int, int], object] | None = None,
) -> Model | None: ...
def load_tensors(
    session: Session, path: str, *, device: int = 0, progress: Callable[[str, int, int], object] | None = None
) -> dict[str, Tensor]: ...

class Session:
    def __new__(
        cls,
        uri: str,
        *,
        token: str | None = None,
        token_file: _Path | None = None,
        ca: _Path | None = None,
        cert: _Path | None = None,
        key: _Path | None = None,
        link: str | None = None,
        lease: float = 600.0,
        quota: int = 0,
        timeout: float = 0.0,
        reconnect: float = 15.0,
    ) -> Session: ...
    @property
    def uri(self) -> str:
        """Where the server is."""
    @property
    def closed(self) -> bool: ...
    @property
    def lost(self) -> int:
        """How often what the session held was lost, and another one opened in its place."""
    def close(self, patience: float | None = None) -> None: ...
    def put(
        self,
        data: object,
        *,
        name: str | None = None,
        weight: bool = False,
        device: int = 0,
        dtype: object = None,
        shape: list[int] | None = None,
        progress: _Told | None = None,
    ) -> Tensor: ...
    def get(self, tensor: Tensor, *, progress: _Told | None = None) -> Array: ...
    def lookup(self, name: str) -> Tensor:
        """Finds a tensor by its name."""
    def define(self, graph: Graph | bytes, device: int = 0) -> Program: ...
    def bind(
        self,
        program: Program,
        *,
        residents: Mapping[Any, Tensor | Cache] | None = None,
        weights: Mapping[Any, Tensor] | None = None,
        fixed: Mapping[Any, Any] | None = None,
    ) -> Binding:
        """Joins a program with what is the same in every run, by the name, number or node of the input.

        Either all of the program's weights are in `weights`, or each of them is among the residents.
        """
    def create_cache(self, program: Program, input: str | int | Node, reserve: int = 0) -> Cache:
        """Makes an empty KV cache that fits an input of a program, with room for `reserve` tokens."""
    def fork_cache(self, cache: Cache) -> Cache:
        """A second cache with the same tokens."""
    def truncate_cache(self, cache: Cache, length: int) -> None:
        """Forgets a cache's tokens from `length` on."""
    def run(
        self,
        binding: Binding,
        inputs: Mapping[Any, Any] | None = None,
        wanted: int | None = None,
        keep: int = 0,
        position: int | None = None,
    ) -> list[Any]: ...
    def devices(self) -> list[tuple[int, str, str, str, int, int]]: ...
    def stats(self) -> dict[str, int]:
        """The server's counters."""
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received so far, headers included."""
    def ping(self) -> float:
        """Seconds of an empty round trip."""
