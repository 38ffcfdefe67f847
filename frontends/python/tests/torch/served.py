"""`genie serve` as a process."""

from __future__ import annotations

import json
import subprocess
from typing import Any


class Served:
    """A server on the CPU, on a port of its own, until the context is left."""

    def __init__(self, command: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [command, "--json", "serve", "--listen", "tcp://127.0.0.1:0", "--device", "cpu", "--with-parent", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.uri: str = json.loads(self.process.stdout.readline())["uri"]

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
