"""Prints docs/ops.md: how each operation of PyTorch's own database fares on the device, against the CPU, in float32.

    python ops_page.py [--server COMMAND] > docs/ops.md

runs a server of its own, of the command given, of GENIE_COMMAND or of target/debug/genie. `tools/test-python --torch --ops` does it all.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import conformance
import torch
from conformance import Outcome

ROOT = Path(__file__).resolve().parents[4]
PAGE = ROOT / "docs/ops.md"
_CLAIM = re.compile(r"^\| `([^`]+)` \|")
_VERSION = re.compile(r"op_db`, torch ([0-9.]+)\)")

HEAD = """# Operations of the PyTorch device

{working} of {all} operations of PyTorch's own database (`torch.testing._internal.common_methods_invocations.op_db`, torch {version})
work: each of their float32 samples gives on `remote_accelerator` what it gives on the CPU, within the tolerance of PyTorch's own tests.
The error is the largest difference seen, divided by the largest magnitude in the result. Samples that ask for a type that the device has
not (float64, complex numbers, 8- and 16-bit integers but uint8) say nothing of the operation, and are not counted. Operations that draw
numbers are compared by shape and type.

`tools/test-python --torch --ops` writes this page; a test runs every sample of what it claims.

## What works

| operation | aten | samples | largest error |
|---|---|---|---|
"""

REST = """
## What does not

What is refused raises `NotImplementedError`, which names the operation and what works instead. Where some of the samples pass, their
number is given.

| operation | passing samples | what is said |
|---|---|---|
"""


def lines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    working = [outcome for outcome in outcomes if outcome.works]
    yield HEAD.format(working=len(working), all=len(outcomes), version=torch.__version__.partition("+")[0])
    for outcome in sorted(working, key=lambda o: o.name):
        yield f"| `{outcome.name}` | {outcome.aten} | {outcome.samples} | {f'{outcome.error:.1e}' if outcome.error else '0'} |\n"
    yield REST
    for outcome in sorted(outcomes, key=lambda o: o.name):
        if not outcome.works:
            passing = f"{outcome.passed} of {outcome.samples}" if outcome.passed else ""
            yield f"| {outcome.name} | {passing} | {said(outcome)} |\n"


def said(outcome: Outcome) -> str:
    """The first sentence of a refusal; of another failure that results differ."""
    if not outcome.refused:
        return "results differ from the CPU's"
    return " ".join(outcome.said.split()).removeprefix("NotImplementedError: ").removeprefix("remote_accelerator has ").partition(":")[0]


def claimed() -> list[str]:
    """The operations that the page says work."""
    head = PAGE.read_text().partition("## What does not")[0]
    return [found.group(1) for line in head.splitlines() if (found := _CLAIM.match(line))]


def version() -> str:
    """The torch that the page was written with."""
    found = _VERSION.search(PAGE.read_text())
    assert found is not None, f"{PAGE} names no torch"
    return found.group(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default=os.environ.get("GENIE_COMMAND") or str(ROOT / "target/debug/genie"), help="the command `genie`")
    asked = parser.parse_args()
    import genie
    from genie.torch import run
    from genie.torch.server import Server
    from served import Served

    with Served(asked.server) as served, genie.connect(served.uri) as session:
        run.use(Server(session))
        sys.stdout.writelines(lines(conformance.survey(torch.float32)))


if __name__ == "__main__":
    main()
