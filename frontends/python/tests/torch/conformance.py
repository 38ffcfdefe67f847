"""What PyTorch's own database of operations says of `remote_accelerator`: every sample of it, forward, against the CPU.

Used by the tests, and by itself to print how each operation fares:

    python conformance.py [--dtype float32] [--only NAME,NAME] [--verbose]
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.testing._internal.common_device_type import tol, toleranceOverride
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import DecorateInfo, OpInfo, SampleInput
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = "remote_accelerator:0"
#: Types that the device has.
SUPPORTED = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool))
#: Operations whose values are drawn or not set: only shapes and types can be compared.
DRAWN = frozenset({
    "bernoulli", "empty", "empty_like", "empty_permuted", "empty_strided", "exponential", "geometric", "cauchy", "log_normal",
    "multinomial", "new_empty", "new_empty_strided", "nn.functional.alpha_dropout", "nn.functional.dropout", "nn.functional.dropout2d",
    "nn.functional.dropout3d", "nn.functional.feature_alpha_dropout", "nn.functional.rrelu", "normal", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "uniform",
})  # fmt: skip
#: Sums of products that may cancel, in an order of the device's own: an element is as exact as the largest of them lets it be.
SUMMED = frozenset({
    "__rmatmul__", "addbmm", "addmm", "addmv", "addr", "baddbmm", "bmm", "cdist", "corrcoef", "cov", "einsum", "inner", "matmul", "mm",
    "mv", "nn.functional.bilinear", "nn.functional.conv1d", "nn.functional.conv2d", "nn.functional.conv3d",
    "nn.functional.conv_transpose1d", "nn.functional.conv_transpose2d", "nn.functional.conv_transpose3d", "nn.functional.linear",
    "nn.functional.multi_head_attention_forward", "nn.functional.scaled_dot_product_attention", "tensordot",
})  # fmt: skip


@dataclasses.dataclass
class Outcome:
    """How an operation fared."""

    name: str
    #: The operation of aten that it comes down to, as the database has it.
    aten: str = ""
    samples: int = 0
    passed: int = 0
    #: Samples that ask for float64, complex numbers or another type that the device has not: they say nothing of the operation.
    left_out: int = 0
    #: The largest difference from the CPU, relative to the largest magnitude of the CPU's result.
    error: float = 0.0
    #: What the first failure said.
    said: str = ""
    #: It said NotImplementedError.
    refused: bool = False

    @property
    def works(self) -> bool:
        return self.samples > 0 and self.passed == self.samples


def name_of(op: OpInfo) -> str:
    return op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")


def remote(value: Any) -> Any:
    """A sample's tensors on the device; numbers, dtypes and the like as they are, and scalars of types that the device has not."""
    if isinstance(value, torch.Tensor):
        if not value.dim() and value.dtype not in SUPPORTED:
            return value
        return value.detach().to(DEVICE)
    if isinstance(value, torch.device) or value == "cpu" and isinstance(value, str):
        return torch.device(DEVICE)
    return value


def elsewhere(value: Any) -> bool:
    """Whether it asks for a type that the device has not."""
    if isinstance(value, torch.Tensor):
        return value.dim() > 0 and value.dtype not in SUPPORTED
    return isinstance(value, torch.dtype) and value not in SUPPORTED


def ours(value: Any) -> bool:
    """Whether it says that the device is meant."""
    return isinstance(value, (torch.Tensor, torch.device)) or isinstance(value, str) and value == "cpu"


def tolerance(op: OpInfo, dtype: torch.dtype) -> tol | None:
    """The tolerance that torch's own tests give an operation, where it is another than the usual one."""
    for info in op.decorators:
        if isinstance(info, DecorateInfo) and info.cls_name == "TestCommon" and info.device_type in (None, "cpu"):
            for decorator in info.decorators:
                if isinstance(decorator, toleranceOverride) and dtype in decorator.d:
                    return decorator.d[dtype]
    return None


def drops(op: OpInfo, sample: SampleInput) -> bool:
    """Whether dropout is part of it, so that it comes out differently each time."""
    positional = sample.args[9] if op.name == "nn.functional.multi_head_attention_forward" else 0.0
    probability = sample.kwargs.get("dropout_p", positional)
    return bool(probability) and sample.kwargs.get("training", True)


def samples(op: OpInfo, dtype: torch.dtype) -> Iterator[SampleInput]:
    torch.manual_seed(0)
    yield from op.sample_inputs("cpu", dtype, requires_grad=False)


def check(op: OpInfo, dtype: torch.dtype, outcome: Outcome, verbose: bool = False) -> None:
    wider = tolerance(op, dtype)
    always = name_of(op) in DRAWN or op.name in DRAWN
    for sample in samples(op, dtype):
        drawn = always or drops(op, sample)
        args = (sample.input, *sample.args)
        given = tree_flatten((args, dict(sample.kwargs)))[0]
        if any(map(elsewhere, given)):
            outcome.left_out += 1
            continue
        if not any(map(ours, given)):
            continue
        try:
            there = tree_map(remote, args), tree_map(remote, dict(sample.kwargs))
            expected = op(*args, **sample.kwargs)
        except Exception as error:  # noqa: BLE001: a sample that the CPU refuses says nothing
            if "remote_accelerator" in str(error):
                outcome.samples += 1
                outcome.said = outcome.said or str(error)
                outcome.refused = True
            continue
        outcome.samples += 1
        try:
            found = op(*there[0], **there[1])
            compare(expected, found, outcome, drawn, op.name in SUMMED, wider)
        except Exception as error:  # noqa: BLE001: whatever it is, it is what the operation gave
            if verbose:
                print(f"  {name_of(op)}: {sample}\n    {type(error).__name__}: {error}"[:1200])
            outcome.refused = outcome.refused or isinstance(error, NotImplementedError)
            outcome.said = outcome.said or f"{type(error).__name__}: {error}"
            continue
        outcome.passed += 1


def compare(expected: Any, found: Any, outcome: Outcome, drawn: bool, summed: bool = False, wider: tol | None = None) -> None:
    wanted, form = tree_flatten(expected)
    given, other = tree_flatten(found)
    assert len(wanted) == len(given), f"{len(given)} results instead of {len(wanted)}"
    for want, have in zip(wanted, given):
        if not isinstance(want, torch.Tensor):
            assert want == have, f"{have} instead of {want}"
            continue
        assert isinstance(have, torch.Tensor), f"{type(have)} instead of a tensor"
        if not want.numel() or want.dim():
            assert have.device.type == "remote_accelerator", f"the result is on {have.device}"
        here = have.cpu()
        if drawn:
            assert (here.shape, here.dtype) == (want.shape, want.dtype), f"{here.shape} {here.dtype}"
            continue
        rtol, atol = torch.testing._comparison.default_tolerances(want)
        if wider is not None:
            rtol, atol = max(rtol, wider.rtol), max(atol, wider.atol)
        if summed and want.is_floating_point() and torch.isfinite(want).any():
            atol = max(atol, 2 * rtol * want[torch.isfinite(want)].abs().max().item())
        torch.testing.assert_close(here, want, equal_nan=True, check_device=False, check_stride=False, rtol=rtol, atol=atol)
        if want.is_floating_point() and want.numel():
            finite = torch.isfinite(want)
            scale = want[finite].abs().max().item() if finite.any() else 0.0
            if scale:
                outcome.error = max(outcome.error, (here[finite] - want[finite]).abs().max().item() / scale)


def survey(dtype: torch.dtype, only: set[str] | None = None, verbose: bool = False) -> list[Outcome]:
    """Every operation of the database that has this type on the CPU."""
    outcomes = []
    for op in op_db:
        if dtype not in op.supported_dtypes("cpu") or (only and name_of(op) not in only and op.name not in only):
            continue
        outcome = Outcome(name_of(op), op.aten_name or "")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                check(op, dtype, outcome, verbose)
            except Exception as error:  # noqa: BLE001: a database that cannot make its samples
                outcome.said = outcome.said or f"{type(error).__name__}: {error}"
        if outcome.samples:
            outcomes.append(outcome)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only")
    parser.add_argument("--verbose", action="store_true")
    asked = parser.parse_args()
    only = set(asked.only.split(",")) if asked.only else None
    outcomes = survey(getattr(torch, asked.dtype), only, asked.verbose)
    for outcome in outcomes:
        if not outcome.works:
            said = " ".join(outcome.said.split())
            print(f"{outcome.name}: {outcome.passed} of {outcome.samples}: {said[:230]}")
    working = sum(outcome.works for outcome in outcomes)
    print(f"{working} of {len(outcomes)} operations pass all samples in {asked.dtype}")


if __name__ == "__main__":
    sys.exit(main())
