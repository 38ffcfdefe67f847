"""The examples run, and so does the guide's first one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Server
from test_models import SMOLLM2

EXAMPLES = ROOT / "examples/python"


def run(server: Server, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "GENIE_SERVER": server.uri},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["tensors.py", "graph.py", "gather.py"])
def test_an_example_runs(server: Server, name: str) -> None:
    assert run(server, str(EXAMPLES / name))


@pytest.mark.skipif(not SMOLLM2.exists(), reason="no demo model: make model")
def test_the_model_of_the_example_answers(server: Server) -> None:
    assert "Paris" in run(server, str(EXAMPLES / "generate.py"), str(SMOLLM2), "The capital of France is")


def test_the_guide_has_every_op() -> None:
    guide = (ROOT / "docs/guide/python.md").read_text()
    known = re.findall(r'^        "(\w+)" => ', (ROOT / "frontends/python/src/ops.rs").read_text(), re.MULTILINE)
    assert len(known) > 50
    assert [name for name in known if name != "input" and f"`{name}`" not in guide] == []


def test_the_code_of_the_guide_runs(server: Server, tmp_path: Path) -> None:
    text = (ROOT / "docs/guide/python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 4
    script = tmp_path / "guide.py"
    script.write_text("\n".join(blocks).replace('"MODEL"', repr(str(ROOT / "tests/golden/tiny-gpt2"))))
    run(server, str(script))
