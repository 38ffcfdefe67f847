"""A server for the tests: `genie serve`, as it was built."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import genie
import numpy as np
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


class Halted:
    """A server of a test's own that can be stopped: it answers nothing, and no connection breaks."""

    def __init__(self) -> None:
        self.server = Server()
        self.uri = self.server.uri

    def halt(self) -> None:
        process = self.server.process
        process.send_signal(signal.SIGSTOP)
        while "T (stopped)" not in Path(f"/proc/{process.pid}/status").read_text():
            time.sleep(0.01)

    def go_on(self) -> None:
        self.server.process.send_signal(signal.SIGCONT)


@pytest.fixture
def halted() -> Iterator[Halted]:
    halted = Halted()
    yield halted
    halted.server.stop()


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    names = {"float32": "F32", "int64": "I64", "uint8": "U8", "bool": "BOOL", "float64": "F64"}
    header, data = {}, b""
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": names[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + tensor.nbytes],
        }
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


sys.dont_write_bytecode = True
