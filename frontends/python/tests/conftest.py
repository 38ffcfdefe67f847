"""A server for the tests: `genie serve`, as it was built."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import genie
import pytest

ROOT = Path(__file__).resolve().parents[3]


class Server:
    """A process of `genie serve` on a port of its own."""

    def __init__(self, *arguments: str) -> None:
        command = os.environ.get("GENIE_COMMAND") or str(ROOT / "target/debug/genie")
        listen = [] if "--listen" in arguments else ["--listen", "tcp://127.0.0.1:0"]
        self.process = subprocess.Popen(
            [command, "serve", *listen, "--device", "cpu", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = ""
        while True:
            line = self.process.stdout.readline()
            assert line, f"genie serve ended: {self.said}"
            self.said += line
            found = re.search(r"(tcps?|shm|uring)://[^\s,]+", line)
            if found:
                self.uri = found.group(0)
                break

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def session(server: Server) -> Iterator[genie.Session]:
    with genie.connect(server.uri) as session:
        yield session


sys.dont_write_bytecode = True
