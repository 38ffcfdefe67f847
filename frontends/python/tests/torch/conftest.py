"""The device on a server of the tests' own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import genie
import genie.torch
import pytest
from genie.torch import run
from genie.torch.run import Runner
from genie.torch.server import Server

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="session", autouse=True)
def runner() -> Iterator[Runner]:
    """What runs on the server, which counts."""
    from served import Served

    with Served(os.environ.get("GENIE_COMMAND") or str(ROOT / "target/debug/genie")) as served, genie.connect(served.uri) as session:
        yield run.use(Server(session))
