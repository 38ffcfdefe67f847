"""The same for asyncio: `session = await genie.aio.connect(...)`.

Each call runs on a thread of the session's own pool, which Python's lock does not hold up: any number of them are in flight together. A
task that is cancelled stops waiting; its call comes to its end, and what it made on the server is freed.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import _connect, _model
from ._array import Array
from ._native import Binding, Cache, Graph, Node, Program, Tensor
from ._progress import Progress
from ._session import Device, Session

if TYPE_CHECKING:
    import os
    from typing_extensions import Unpack

T = TypeVar("T")
Piece = TypeVar("Piece", str, int)

#: Calls of one session that are in flight together; more wait.
CALLS = 16


async def connect(uri: str | None = None, **options: Unpack[_connect.Options]) -> AsyncSession:
    """Opens a session, as `genie.connect` does."""
    pool = ThreadPoolExecutor(CALLS, thread_name_prefix="genie-aio")
    try:
        session = await _run(pool, functools.partial(_connect.connect, uri, **options))
    except BaseException:
        pool.shutdown(wait=False)
        raise
    return AsyncSession(session, pool)


async def _run(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


class AsyncSession:
    """A `genie.Session` whose calls are awaited."""

    def __init__(self, session: Session, pool: ThreadPoolExecutor) -> None:
        #: The session itself: what is not awaited here can be called there.
        self.session = session
        self._pool = pool

    async def _call(self, work: Callable[..., T], *arguments: Any, **options: Any) -> T:
        return await _run(self._pool, functools.partial(work, *arguments, **options))

    async def put(
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
        """See `Session.put`. `data` must not be changed before this is done, or its task's call after it was cancelled."""
        return await self._call(
            self.session.put,
            data,
            name=name,
            weight=weight,
            device=device,
            dtype=dtype,
            shape=shape,
            progress=progress,
        )

    async def get(self, tensor: Tensor, *, progress: Progress = None) -> Array:
        """See `Session.get`."""
        return await self._call(self.session.get, tensor, progress=progress)

    async def lookup(self, name: str) -> Tensor:
        """See `Session.lookup`."""
        return await self._call(self.session.lookup, name)

    async def define(self, graph: Graph | bytes, device: int | None = None) -> Program:
        """See `Session.define`."""
        return await self._call(self.session.define, graph, device)

    async def bind(
        self,
        program: Program,
        *,
        residents: Mapping[Any, Tensor | Cache] | None = None,
        weights: Mapping[Any, Tensor] | None = None,
        fixed: Mapping[Any, Any] | None = None,
    ) -> Binding:
        """See `Session.bind`."""
        return await self._call(self.session.bind, program, residents=residents, weights=weights, fixed=fixed)

    async def create_cache(self, program: Program, input: str | int | Node, reserve: int = 0) -> Cache:
        """See `Session.create_cache`."""
        return await self._call(self.session.create_cache, program, input, reserve)

    async def run(
        self,
        what: Binding | Program | Graph,
        inputs: Mapping[Any, Any] | None = None,
        wanted: int | Iterable[int | str] | None = None,
        keep: int | Iterable[int | str] = 0,
        position: int | None = None,
    ) -> list[Any]:
        """See `Session.run`."""
        return await self._call(self.session.run, what, inputs, wanted, keep, position)

    async def load(
        self,
        path: str | os.PathLike[str],
        *,
        device: int | None = None,
        dtype: str | None = None,
        progress: Progress = None,
    ) -> _model.Model | dict[str, Tensor]:
        """See `Session.load`."""
        return await self._call(self.session.load, path, device=device, dtype=dtype, progress=progress)

    def generate(
        self, model: _model.Model, prompt: str | Iterable[int], max_new_tokens: int = 64, **options: Any
    ) -> AsyncGeneration[Any]:
        """See `Model.generate`: `async for piece in session.generate(model, "...")`."""
        generation: _model.Generation[Any] = model.generate(prompt, max_new_tokens, **options)
        return AsyncGeneration(generation, self._pool)

    async def devices(self) -> list[Device]:
        """See `Session.devices`."""
        return await self._call(self.session.devices)

    async def stats(self) -> dict[str, int]:
        """See `Session.stats`."""
        return await self._call(self.session.stats)

    async def traffic(self) -> tuple[int, int]:
        """See `Session.traffic`."""
        return await self._call(self.session.traffic)

    async def ping(self) -> float:
        """See `Session.ping`."""
        return await self._call(self.session.ping)

    async def close(self) -> None:
        """See `Session.close`."""
        await self._call(self.session.close)
        self._pool.shutdown(wait=False)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncGeneration(Generic[Piece], AsyncIterator[Piece]):
    """What a model says, as it comes."""

    def __init__(self, generation: _model.Generation[Piece], pool: ThreadPoolExecutor) -> None:
        #: The generation itself, with its tokens so far.
        self.generation: _model.Generation[Piece] = generation
        self._pool = pool

    async def __anext__(self) -> Piece:
        def step() -> Piece | None:
            # A StopIteration cannot pass through a future.
            return next(self.generation, None)

        piece = await _run(self._pool, step)
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def text(self) -> str:
        """The rest of it, joined."""
        return await _run(self._pool, self.generation.text)
