"""The same for asyncio: `session = await genie.aio.connect(...)`.

Each call runs on a thread of the session's own pool, which Python's lock does not hold up: any number of them are in flight together. A
task that is cancelled stops waiting; its call is cancelled on the server, too, and what it made there is freed.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import _connect, _model, _native
from ._array import Array
from ._native import Binding, Cache, Graph, Node, Program, Tensor
from ._progress import Progress
from ._session import Device, Session
from .errors import Error, SessionLost

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
        session = await _run(pool, functools.partial(_connect.opened, uri, **options))
    except BaseException:
        pool.shutdown(wait=False)
        raise
    # Only now: one that nobody waited for is closed again.
    _connect.remember(session)
    return AsyncSession(session, pool)


def _begin(pool: ThreadPoolExecutor, work: Callable[[], T]) -> Future[T]:
    try:
        return pool.submit(work)
    except RuntimeError:
        raise SessionLost("this session was closed: connect again, and upload again what it held") from None


async def _run(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    cancel = _native.Cancel()
    call = _begin(pool, functools.partial(cancel.run, work))
    try:
        return await asyncio.wrap_future(call)
    except asyncio.CancelledError:
        # One that has not begun is not begun any more; one that has sees this, and gives its thread back.
        cancel.set()
        raise


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
        """See `Session.close`. Calls that are in flight, or wait for a thread, fail."""
        # On a thread of its own: all of the others may be waiting.
        closing = ThreadPoolExecutor(1, thread_name_prefix="genie-aio-close")
        try:
            await _run(closing, self.session.close)
        finally:
            closing.shutdown(wait=False)
            self._pool.shutdown(wait=False)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except Error:
            # What went wrong first says more.
            if error is None:
                raise


class AsyncGeneration(Generic[Piece], AsyncIterator[Piece]):
    """What a model says, as it comes."""

    def __init__(self, generation: _model.Generation[Piece], pool: ThreadPoolExecutor) -> None:
        #: The generation itself, with its tokens so far.
        self.generation: _model.Generation[Piece] = generation
        self._pool = pool
        self._step: Future[Piece | None] | None = None

    async def __anext__(self) -> Piece:
        def step() -> Piece | None:
            # A StopIteration cannot pass through a future.
            return next(self.generation, None)

        coming = self._step = self._step or _begin(self._pool, step)
        try:
            piece = await asyncio.shield(asyncio.wrap_future(coming))
        except asyncio.CancelledError:
            # Nobody waits, but the piece will come: it is the next one's.
            raise
        except BaseException:
            self._step = None
            raise
        self._step = None
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def text(self) -> str:
        """The rest of it, joined."""
        if not self.generation.is_text:
            return self.generation.text()
        return "".join([str(piece) async for piece in self])
