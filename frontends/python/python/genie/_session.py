"""Sessions on a server."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _native
from ._array import Array, asarray
from ._native import Binding, Graph, Node, Program, Tensor
from ._progress import Bar, Progress, shown
from .errors import BadInput, Error

if TYPE_CHECKING:
    from ._model import Generation, Model

#: Open sessions and models: what is still open when the interpreter ends is closed then, so that the server need not keep it.
open_things: weakref.WeakSet[Session | Model] = weakref.WeakSet()

#: Seconds that the end of the interpreter waits for a server.
AT_EXIT = 2.0

#: Bytes that the outputs of one run may bring along; larger ones are fetched by themselves.
_INLINE = 4 << 20


@dataclass(frozen=True)
class Device:
    """A device of the server."""

    #: What `device=` takes.
    index: int
    #: `cpu:0`, `cuda:1`.
    name: str
    #: What the hardware calls itself.
    model: str
    #: Instruction set or compute capability.
    capability: str
    total_bytes: int
    free_bytes: int


class Session(_native.Session):
    """A session on a server: `genie.connect` opens one. Threads may share it; their calls do not wait for each other."""

    #: Where tensors and programs go unless a call says otherwise.
    device: int = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        open_things.add(self)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Error:
            # What went wrong first says more.
            if error is None:
                raise

    def close(self, patience: float | None = None) -> None:
        """Frees all that the session has on the server, and ends it.

        A server that does not answer within `patience` seconds is left alone: the session ends with its lease.
        """
        open_things.discard(self)
        super().close(patience)

    def put(
        self,
        data: object,
        *,
        name: str | None = None,
        weight: bool = False,
        device: int | None = None,
        dtype: object = None,
        shape: list[int] | tuple[int, ...] | None = None,
        progress: Progress = None,
    ) -> Tensor:
        """Makes the elements of an array a tensor on the server, and waits for it.

        `data` has the buffer protocol (NumPy) or DLPack (PyTorch, on the CPU); its memory is sent from where it lies, and held until the
        transfer is over, whatever is interrupted. It must have no gaps. `dtype` and `shape` are as in `genie.asarray`. Others find
        the tensor by `name`. A `weight` cannot be changed; the server knows it by its content, and what it has already is not sent.
        """
        if isinstance(data, (list, tuple, int, float)):
            data = asarray(data)
        device = self.device if device is None else device
        array = data if isinstance(data, Array) and dtype is None and shape is None else asarray(data, dtype, shape)
        if not shown(progress, array.nbytes):
            return super().put(array, name=name, weight=weight, device=device)
        if callable(progress):
            return super().put(array, name=name, weight=weight, device=device, progress=progress)
        with Bar("sending") as bar:
            return super().put(array, name=name, weight=weight, device=device, progress=bar)

    def get(self, tensor: Tensor, *, progress: Progress = None) -> Array:
        """The elements of a tensor, in memory that nobody else has."""
        if not shown(progress, tensor.nbytes):
            return super().get(tensor)
        if callable(progress):
            return super().get(tensor, progress=progress)
        with Bar("receiving") as bar:
            return super().get(tensor, progress=bar)

    def define(self, graph: Graph | bytes, device: int | None = None) -> Program:
        """Registers a graph, or its encoding: the server verifies and plans it. Equal graphs are planned once."""
        return super().define(graph, self.device if device is None else device)

    def run(
        self,
        what: Binding | Program | Graph,
        inputs: Mapping[Any, Any] | None = None,
        wanted: int | Iterable[int | str] | None = None,
        keep: int | Iterable[int | str] = 0,
        position: int | None = None,
    ) -> list[Any]:
        """Runs a program once, and gives its outputs in order: arrays for those that come back, tensors for those that stay.

        `inputs` are arrays, and for a program or a graph also tensors of the session, by the name, number or node of the input. `wanted`
        and `keep` choose outputs by name or number, or are masks with a bit for each. Without `wanted`, all those come back that are not
        kept. A `Binding` is the quick way to run something again and again.
        """
        if isinstance(what, Binding):
            if not isinstance(keep, int):
                keep = _mask(keep, what.outputs)
            if wanted is not None and not isinstance(wanted, int):
                wanted = _mask(wanted, what.outputs)
            return super().run(what, inputs, wanted, keep, position)
        program = self.define(what) if isinstance(what, Graph) else what
        names = program.outputs
        kept = _mask(keep, names)
        back = _mask(range(len(names)), names) & ~kept if wanted is None else _mask(wanted, names)
        residents: dict[Any, Any] = {}
        arrays: dict[Any, Any] = {}
        for key, value in (inputs or {}).items():
            if isinstance(value, (Tensor, _native.Cache)):
                residents[key] = value
            else:
                arrays[key] = asarray(value) if isinstance(value, (list, tuple, int, float)) else value
        binding = self.bind(program, residents=residents)
        # What does not fit into the answer stays there, and is fetched.
        sizes = program.output_bytes
        if None in sizes:
            sizes = program.output_bytes_of(_symbols(program, {**residents, **arrays}))
        room, fetched = _INLINE - 4096, 0
        for index, size in enumerate(sizes):
            if back >> index & 1:
                if size is None or size > room:
                    fetched |= 1 << index
                else:
                    room -= size
        results = super().run(binding, arrays, back & ~fetched, kept | fetched, position)
        if not fetched:
            return results
        both = _both(results, names, back & ~fetched, kept | fetched)
        done: list[Any] = []
        for index in range(len(names)):
            array, tensor = both.get(index, (None, None))
            if fetched >> index & 1:
                array = self.get(tensor)
            if back >> index & 1:
                done.append(array)
            if kept >> index & 1:
                done.append(tensor)
        return done

    def devices(self) -> list[Device]:  # type: ignore[override]
        """The server's devices."""
        return [Device(*device) for device in super().devices()]

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        device: int | None = None,
        dtype: str | None = None,
        progress: Progress = None,
    ) -> Model | dict[str, Tensor]:
        """Brings a model, or a file of tensors, to the server; what it has already is not sent.

        A `.gguf` file, a folder with `config.json`, or a `.safetensors` file beside one, of an architecture that Genie knows, gives a
        `Model`, in a session of its own. Another `.safetensors` file gives its tensors by name, as weights of this session.
        """
        from ._model import load

        return load(self, path, self.device if device is None else device, dtype, progress)

    def generate(self, model: Model, prompt: str | Iterable[int], max_new_tokens: int = 64, **options: Any) -> Generation[Any]:
        """The same as `model.generate`."""
        return model.generate(prompt, max_new_tokens, **options)

    def __repr__(self) -> str:
        return f"<genie.Session on {self.uri}{' (closed)' if self.closed else ''}>"


def _symbols(program: Program, given: Mapping[Any, Any]) -> dict[str, int]:
    """What the symbols among the inputs' dimensions stand for, as far as what is given shows."""
    found: dict[str, int] = {}
    ports = {key: port for port in program.inputs for key in (port[0], port[1])}
    for key, value in given.items():
        port = ports.get(key.id if isinstance(key, Node) else key)
        if port is None or isinstance(value, _native.Cache):
            continue
        shape = value.shape if isinstance(value, Tensor) else asarray(value).shape
        found.update((dim, size) for dim, size in zip(port[4], shape) if isinstance(dim, str))
    return found


def _mask(chosen: int | Iterable[int | str], names: list[str]) -> int:
    if isinstance(chosen, int) and not isinstance(chosen, bool):
        return chosen
    if isinstance(chosen, (bool, str)):
        raise BadInput("choose outputs by a list of names or numbers, or by a mask")
    mask = 0
    for one in chosen:
        if isinstance(one, str) and one not in names:
            raise BadInput(f"the program has no output '{one}': it has {', '.join(names)}")
        index = names.index(one) if isinstance(one, str) else one
        if not 0 <= index < min(len(names), 64):
            raise BadInput(f"output {one} cannot be chosen: the program has {len(names)}, of which the first 64 can")
        mask |= 1 << index
    return mask


def _both(results: list[Any], names: list[str], back: int, kept: int) -> dict[int, tuple[Any, Any]]:
    both: dict[int, tuple[Any, Any]] = {}
    rest = iter(results)
    for index in range(len(names)):
        array = next(rest) if back >> index & 1 else None
        tensor = next(rest) if kept >> index & 1 else None
        both[index] = (array, tensor)
    return both


def _forked() -> None:
    _native.after_fork()
    open_things.clear()


# A child has its parent's sockets, which it must not use.
os.register_at_fork(after_in_child=_forked)


@atexit.register
def _close_all() -> None:
    for thing in list(open_things):
        try:
            thing.close(AT_EXIT)
        except Error:
            # The server is gone, or will end the session with its lease.
            pass
