"""Progress of long transfers."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

#: What a caller may give as `progress`: whether to show a bar (`None`: on a terminal), or who is told bytes done and in all.
Progress = bool | Callable[[int, int], object] | None

#: Transfers of fewer bytes are over before anybody could look.
LONG = 64 << 20

#: Seconds that something may take without a word.
QUIET = 0.5


def shown(progress: Progress, nbytes: int) -> bool:
    """Whether a transfer of so many bytes is to be shown."""
    if progress is None:
        return nbytes >= LONG and sys.stderr is not None and sys.stderr.isatty()
    return progress is not False


class Bar:
    """A bar on standard error: tqdm's, or a plain one where that is not installed."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = time.monotonic()
        self._bar: Any = None
        self._width = 0
        self._tqdm: Any = None
        try:
            self._tqdm = importlib.import_module("tqdm").tqdm
        except ImportError:
            pass

    def say(self, what: str, done: int, total: int) -> None:
        """Another thing is being done, or the same."""
        if what != self._what:
            self.close()
            self._what, self._bar, self._width = what, None, 0
        self(done, total)

    def __call__(self, done: int, total: int) -> None:
        passed = time.monotonic() - self._began
        if passed < QUIET and self._bar is None and not self._width:
            return
        if self._tqdm is None:
            rate = done / max(passed, 1e-6) / 1e9
            text = f"{self._what}: {100 * done / max(total, 1):3.0f} % of {total / 1e9:.2f} GB ({rate:.2f} GB/s)"
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)
            return
        if self._bar is None:
            self._bar = self._tqdm(total=total, desc=self._what, unit="B", unit_scale=True, leave=False)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Takes it away."""
        if self._bar is not None:
            self._bar.close()
        elif self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
