"""What docs/ops.md claims: every float32 sample that PyTorch's database has of an operation.

The page is of one torch. Older ones lack a few of its operations, which are skipped there; what they have is held to the same claim.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from conformance import Outcome, check, name_of, op_db
from ops_page import claimed, version

CLAIMED = claimed()
OPERATIONS = {name_of(op): op for op in op_db}
MISSING = [name for name in CLAIMED if name not in OPERATIONS]
OF_THE_PAGE = torch.__version__.partition("+")[0] == version()


def test_there_are_enough() -> None:
    assert len(CLAIMED) - len(MISSING) >= 200
    assert not (OF_THE_PAGE and MISSING), "not in the database of the torch that the page was written with"


@pytest.mark.parametrize("name", CLAIMED)
def test_every_sample_passes(name: str) -> None:
    if name in MISSING and not OF_THE_PAGE:
        pytest.skip(f"not in the database of torch {torch.__version__}: what is claimed is of {version()}")
    outcome = Outcome(name)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(OPERATIONS[name], torch.float32, outcome)
    assert outcome.samples, "no sample was run"
    assert outcome.passed == outcome.samples, outcome.said
