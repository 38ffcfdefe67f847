"""What docs/ops.md claims: every float32 sample that PyTorch's database has of an operation."""

from __future__ import annotations

import warnings

import pytest
import torch
from conformance import Outcome, check, name_of, op_db
from ops_page import claimed

CLAIMED = claimed()
OPERATIONS = {name_of(op): op for op in op_db}


def test_there_are_enough() -> None:
    assert len(CLAIMED) >= 200
    assert not set(CLAIMED) - set(OPERATIONS), "not in the database of this torch"


@pytest.mark.parametrize("name", CLAIMED)
def test_every_sample_passes(name: str) -> None:
    outcome = Outcome(name)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(OPERATIONS[name], torch.float32, outcome)
    assert outcome.samples, "no sample was run"
    assert outcome.passed == outcome.samples, outcome.said
