"""Calls that are awaited, and tasks that are cancelled."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import genie
import numpy as np
import pytest
from conftest import ROOT, Halted
from genie import _connect
from genie.aio import CALLS

TINY = ROOT / "tests/golden/tiny-gpt2"


# It ran on the same threads as the calls, and waited for one of them.
def test_a_session_closes_while_all_threads_are_busy(session: genie.Session) -> None:
    async def main() -> None:
        over = threading.Event()
        remote = await genie.aio.connect(session.uri)
        busy = [asyncio.create_task(remote._call(over.wait)) for _ in range(CALLS)]
        late = asyncio.create_task(remote.ping())
        await asyncio.sleep(0.1)
        try:
            await asyncio.wait_for(remote.close(), 30)
        finally:
            over.set()
        await asyncio.gather(*busy)
        for call in (late, remote.ping()):
            with pytest.raises(genie.SessionLost, match="closed"):
                await call
        await remote.close()

    asyncio.run(main())


# Its thread waited on for an answer that nobody wanted, and sixteen such calls were the last.
def test_a_cancelled_call_gives_its_thread_back(halted: Halted) -> None:
    async def main() -> None:
        remote = await genie.aio.connect(halted.uri)
        tensor = await remote.put([1.0])
        halted.halt()
        calls = [asyncio.create_task(remote.get(tensor)) for _ in range(2 * CALLS)]
        await asyncio.sleep(0.2)
        for call in calls:
            call.cancel()
        assert all(isinstance(done, asyncio.CancelledError) for done in await asyncio.gather(*calls, return_exceptions=True))
        assert await asyncio.wait_for(remote._call(lambda: 7), 30) == 7
        halted.go_on()
        assert (await remote.get(tensor)).tolist() == [1.0]
        await remote.close()

    asyncio.run(main())


def test_a_connection_that_nobody_waits_for_is_closed(halted: Halted, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, opened = threading.Event(), _connect.opened

    def noted(*arguments: Any, **options: Any) -> genie.Session:
        begun.set()
        return opened(*arguments, **options)

    async def main() -> None:
        connecting = asyncio.create_task(genie.aio.connect(halted.uri))
        assert await asyncio.to_thread(begun.wait, 30)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        halted.go_on()
        for _ in range(600):
            if session.stats()["genie_sessions_opened_total"] == 2 and session.stats()["genie_sessions"] == 1:
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError(session.stats())

    session = genie.connect(halted.uri)
    monkeypatch.setattr(_connect, "opened", noted)
    halted.halt()
    asyncio.run(main())
    assert genie.current_session() is session
    session.close()


def test_a_step_that_was_cancelled_is_not_skipped(session: genie.Session) -> None:
    async def main() -> None:
        async with await genie.aio.connect(session.uri) as remote:
            model = await remote.load(TINY)
            assert isinstance(model, genie.Model)
            expected = list(model.generate([1, 2, 3], 5))
            generation = remote.generate(model, [1, 2, 3], 5)
            for _ in range(3):
                step = asyncio.create_task(generation.__anext__())
                await asyncio.sleep(0)
                step.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await step
                await asyncio.sleep(0.05)
            assert [token async for token in generation] == expected
            with pytest.raises(genie.BadInput, match="token ids"):
                await generation.text()
            model.close()

    asyncio.run(main())


# Closing a session whose server is gone hid why the block had ended.
def test_what_went_wrong_first_is_told(halted: Halted) -> None:
    async def main() -> None:
        async with await genie.aio.connect(halted.uri, reconnect=0.2, timeout=60) as remote:
            await remote.put(np.zeros(3, np.float32))
            halted.server.stop()
            raise LookupError("first")

    with pytest.raises(LookupError, match="first"):
        asyncio.run(main())
