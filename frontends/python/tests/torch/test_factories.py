"""Tensors from nothing, from Python, and from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

DEVICE = "remote_accelerator:0"
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]

MADE: dict[str, Callable[[Any], torch.Tensor]] = {
    "zeros": lambda d: torch.zeros(2, 3, device=d),
    "ones": lambda d: torch.ones((2, 3), device=d, dtype=torch.int32),
    "full": lambda d: torch.full((2, 2), 7, device=d),
    "full of floats": lambda d: torch.full((2, 2), 0.1, device=d),
    "full of truth": lambda d: torch.full((2,), True, device=d),
    "nothing": lambda d: torch.zeros(0, 4, device=d),
    "scalar": lambda d: torch.tensor(3.5, device=d),
    "list": lambda d: torch.tensor([[1, 2], [3, 4]], device=d),
    "list of bools": lambda d: torch.tensor([True, False], device=d),
    "as tensor": lambda d: torch.as_tensor([1.5, 2.5], device=d),
    "arange": lambda d: torch.arange(7, device=d),
    "arange by steps": lambda d: torch.arange(1, 2, 0.3, device=d),
    "arange backwards": lambda d: torch.arange(5, -3, -2, device=d),
    "linspace": lambda d: torch.linspace(-1, 3, 9, device=d),
    "logspace": lambda d: torch.logspace(0, 2, 5, device=d),
    "eye": lambda d: torch.eye(3, 4, device=d),
    "like": lambda d: torch.ones_like(torch.zeros(2, 3, device=d)),
    "full like": lambda d: torch.full_like(torch.zeros(2, 3, device=d), 5, dtype=torch.int64),
    "new": lambda d: torch.zeros(1, device=d).new_full((2,), 4.0),
    "new tensor": lambda d: torch.zeros(1, device=d).new_tensor([1, 2]),
    "empty like": lambda d: torch.empty_like(torch.ones(2, 3, device=d)).zero_(),
    "triangle's indices": lambda d: torch.tril_indices(3, 4, device=d),
    "hann": lambda d: torch.hann_window(6, device=d),
    "large integers": lambda d: torch.tensor([2**62 + 1, -(2**63)], device=d),
    "a large integer": lambda d: torch.full((2,), 2**62 + 1, device=d),
}


@pytest.mark.parametrize("name", MADE)
def test_made(name: str) -> None:
    wanted, found = MADE[name]("cpu"), MADE[name](DEVICE)
    assert found.device == torch.device(DEVICE)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    torch.testing.assert_close(found.cpu(), wanted)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_goes_there_and_back(dtype: torch.dtype) -> None:
    here = torch.tensor([[0, 1, 2], [100, 7, 1]]).to(dtype)
    there = here.to(DEVICE)
    assert there.dtype == dtype
    assert torch.equal(there.cpu(), here)
    assert torch.equal(there.to(torch.float32).cpu(), here.to(torch.float32))
    assert torch.equal((there.float() * 1.5).to(dtype).cpu(), (here.float() * 1.5).to(dtype))


def test_a_default_device_and_a_context() -> None:
    with torch.device(DEVICE):
        assert torch.zeros(2).device == torch.device(DEVICE)
        assert torch.nn.Linear(2, 2).weight.device == torch.device(DEVICE)
    assert torch.zeros(2).device.type == "cpu"
    assert torch.zeros(2, device="remote_accelerator").device == torch.device(DEVICE)


def test_a_device_without_an_index_is_the_current_one() -> None:
    """PyTorch asks the device's guard for the index here: 2.6 to 2.9 have one that this package makes."""
    here = torch.arange(3.0)
    there = here.to("remote_accelerator")
    assert torch.equal(there.cpu(), here)
    moved = torch.nn.Linear(2, 2).to("remote_accelerator").weight
    made = (there, there.to("remote_accelerator"), there.new_zeros(2), there.new_tensor([1]), there.remote_accelerator(), moved)
    assert {x.device for x in made} == {torch.device(DEVICE)}


@pytest.mark.filterwarnings("ignore:The argument 'device':DeprecationWarning")
def test_tensors_of_the_cpu_can_still_be_asked_whether_they_are_pinned() -> None:
    assert not torch.zeros(2).is_pinned()
    assert not torch.zeros(2).is_pinned("cuda")


def test_a_seed_gives_the_same_numbers() -> None:
    def drawn(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        made = [
            torch.rand(5, device=DEVICE),
            torch.randn(3, 4, device=DEVICE),
            torch.randint(0, 1000, (6,), device=DEVICE),
            torch.randperm(8, device=DEVICE),
            torch.empty(5, device=DEVICE).uniform_(-1, 1),
            torch.bernoulli(torch.full((9,), 0.5, device=DEVICE)),
            torch.nn.functional.dropout(torch.ones(16, device=DEVICE), 0.5),
            torch.multinomial(torch.ones(10, device=DEVICE), 4),
        ]
        return [x.cpu() for x in made]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert sum(not torch.equal(a, b) for a, b in zip(first, other)) >= 6


def test_a_state_goes_on_where_it_was() -> None:
    torch.manual_seed(5)
    torch.rand(3, device=DEVICE)
    state = torch.remote_accelerator.get_rng_state()
    first = torch.rand(4, device=DEVICE).tolist()
    torch.remote_accelerator.set_rng_state(state)
    assert torch.rand(4, device=DEVICE).tolist() == first


def test_two_draws_differ() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(100, device=DEVICE), torch.randn(100, device=DEVICE)
    assert not torch.equal(a.cpu(), b.cpu())


def test_draws_are_of_their_distributions() -> None:
    torch.manual_seed(11)
    n = 40_000
    normal = torch.randn(n, device=DEVICE).cpu()
    assert abs(normal.mean().item()) < 0.03 and abs(normal.std().item() - 1) < 0.03
    assert abs((normal.abs() < 1).float().mean().item() - 0.6827) < 0.015
    uniform = torch.rand(n, device=DEVICE).cpu()
    assert 0 <= uniform.min() and uniform.max() < 1
    assert torch.histc(uniform, 10, 0, 1).sub(n / 10).abs().max() < 300
    integers = torch.randint(-3, 4, (n,), device=DEVICE).cpu()
    assert integers.unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert torch.bincount(integers + 3).sub(n / 7).abs().max() < 350
    order = torch.randperm(100, device=DEVICE).cpu()
    assert order.sort().values.tolist() == list(range(100)) and order.tolist() != list(range(100))
    weights = torch.tensor([0.1, 0.0, 0.6, 0.3])
    drawn = torch.multinomial(weights.to(DEVICE), n, replacement=True).cpu()
    assert torch.bincount(drawn, minlength=4).div(n).sub(weights).abs().max() < 0.015
    assert sorted(torch.multinomial(weights.to(DEVICE), 3).tolist()) == [0, 2, 3]
    kept = torch.nn.functional.dropout(torch.ones(n, device=DEVICE), 0.3).cpu()
    assert abs((kept > 0).float().mean().item() - 0.7) < 0.015
    torch.testing.assert_close(kept.max().item(), 1 / 0.7)
    assert abs(torch.empty(n, device=DEVICE).exponential_(2.0).mean().item() - 0.5) < 0.02
