"""Progress, as it is shown."""

from __future__ import annotations

import io
import sys

import genie
import numpy as np
import pytest
from genie import _progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_for_long_transfers_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _progress.shown(None, 1 << 40)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert _progress.shown(None, 1 << 40) and not _progress.shown(None, 1000)
    assert _progress.shown(True, 1000) and not _progress.shown(False, 1 << 40)


def test_a_plain_bar_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(_progress, "QUIET", 60)
    with _progress.Bar("sending") as quick:
        quick(1, 2)
    assert not terminal.getvalue(), "what is over at once is not shown"
    monkeypatch.setattr(_progress, "QUIET", 0)
    with _progress.Bar("sending") as bar:
        bar(500_000_000, 1_000_000_000)
        bar.say("and now", 1_000_000_000, 1_000_000_000)
    text = terminal.getvalue()
    assert "sending:  50 % of 1.00 GB" in text and "and now: 100 %" in text and text.endswith("\r")


def test_what_is_told_ends_with_all_of_it(session: genie.Session) -> None:
    told: list[tuple[int, int]] = []
    tensor = session.put(np.ones(10, np.float32), progress=lambda done, total: told.append((done, total)))
    session.get(tensor, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (40, 40)


def test_an_error_in_the_callback_ends_the_call(session: genie.Session) -> None:
    def told(done: int, total: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        session.put(np.ones(10, np.float32), progress=told)
    assert session.get(session.put([1.0])).tolist() == [1.0]
