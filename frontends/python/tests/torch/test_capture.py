"""What is captured, and what of it runs when."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import genie.torch
import pytest
import torch
from genie.torch.run import Runner

DEVICE = "remote_accelerator:0"


def test_a_chain_is_one_request(runner: Runner) -> None:
    x = torch.randn(64, 64).to(DEVICE)
    x.materialize()
    before = runner.counts.requests
    y = x.relu().sigmoid().tanh()
    assert runner.counts.requests == before, "nothing runs before somebody asks"
    here = y.cpu()
    assert runner.counts.requests == before + 1
    torch.testing.assert_close(here, x.cpu().relu().sigmoid().tanh())


def test_equal_graphs_are_defined_once(runner: Runner) -> None:
    def one(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return (torch.randn(8, 8, device=DEVICE) * 3).sum()

    one(0).item()
    defined, requests = runner.counts.defined, runner.counts.requests
    values = {one(seed).item() for seed in range(5)}
    assert len(values) == 5
    assert (runner.counts.defined, runner.counts.requests) == (defined, requests + 5)


def test_a_number_that_changes_becomes_an_argument(runner: Runner) -> None:
    x = torch.arange(6.0, device=DEVICE)
    x.materialize()
    before = runner.counts.defined
    for i in range(6):
        assert (x * (i + 0.5)).cpu().tolist() == [k * (i + 0.5) for k in range(6)]
    # Once with the number in it, and once with it as an argument.
    assert runner.counts.defined == before + 2


def test_what_is_held_stays_and_is_not_computed_again(runner: Runner) -> None:
    x = torch.randn(16, 16, device=DEVICE)
    y = x @ x
    z = y.sum()
    z.item()
    nodes = runner.counts.nodes
    torch.testing.assert_close(y.cpu(), x.cpu() @ x.cpu())
    assert runner.counts.nodes == nodes, "both were there already"


def test_what_was_captured_but_not_asked_for_finds_what_it_reads(runner: Runner) -> None:
    x = torch.randn(16, device=DEVICE)
    y = (x * 2).exp()
    later = y + 1
    del y
    (later.detach() * 0).sum()
    total = x.sum()
    total.item()
    requests = runner.counts.requests
    later.materialize()
    assert runner.counts.requests == requests + 1


def test_a_long_loop_is_cut_in_parts_of_what_a_run_can_hold(runner: Runner) -> None:
    x = torch.zeros(4, device=DEVICE)
    for _ in range(20_000):
        x = x + 1
    assert x.cpu().tolist() == [20_000.0] * 4


def test_more_results_than_one_run_can_give(runner: Runner) -> None:
    x = torch.arange(200.0, device=DEVICE)
    rows = [(row + 1) * 2 for row in x.split(1)]
    x.sum().item()
    assert [row.item() for row in rows] == [(k + 1) * 2 for k in range(200)]


def test_seeds_give_the_same_numbers_again() -> None:
    torch.manual_seed(7)
    first = torch.randn(100, device=DEVICE).cpu(), torch.rand(3, 5, device=DEVICE).cpu()
    torch.manual_seed(7)
    again = torch.randn(100, device=DEVICE).cpu(), torch.rand(3, 5, device=DEVICE).cpu()
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0], torch.randn(100, device=DEVICE).cpu())


def test_the_device_is_one_of_torch() -> None:
    assert torch.device(DEVICE).type == "remote_accelerator"
    assert torch.remote_accelerator.device_count() >= 1
    properties = torch.remote_accelerator.get_device_properties(0)
    assert properties.total_memory > 0 and properties.device == "cpu:0"
    torch.remote_accelerator.synchronize()
    held = torch.ones(1 << 20, device=DEVICE)
    held = (held + 1).materialize()
    assert torch.remote_accelerator.memory_allocated() >= 4 << 20
    with pytest.raises(RuntimeError, match="there is no remote_accelerator:99"):
        torch.remote_accelerator.set_device(99)
    del held


def test_torch_is_as_it_was_where_no_server_is_named() -> None:
    """In a process of its own: the package is loaded by whoever imports torch, and may not stand in the way of what the CPU does."""
    program = """
import torch
with torch.random.fork_rng():
    torch.manual_seed(1)
layer = torch.nn.Linear(2, 2)
layer(torch.ones(1, 2)).sum().backward()
assert not torch.ones(2).is_pinned()
print(torch.remote_accelerator.device_count(), torch.remote_accelerator.is_available(), layer.weight.grad is not None)
try:
    torch.ones(2, device="remote_accelerator").cpu()
except RuntimeError as error:
    print(str(error)[:32])
"""
    environment = {name: value for name, value in os.environ.items() if name != "GENIE_SERVER"}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert said.stdout.splitlines() == ["0 False True", "no server for remote_accelerator"], said.stderr


def test_a_loss_that_is_here_has_no_gradients_from_there() -> None:
    """torch's threads for the device once ended the process with the first error in them; before 2.10 torch itself does not start them."""
    said = "no autograd" if hasattr(torch._C, "_acc") else "PrivateUse1HooksInterface"
    here, there = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).to(DEVICE)
    x = torch.ones(1, 2)
    for loss in (there(x.to(DEVICE)).cpu().sum(), here(x).to(DEVICE).relu().cpu().sum()):
        with pytest.raises(RuntimeError, match=said):
            loss.backward()
    here(x).sum().backward()
    assert here.weight.grad is not None


def test_what_is_not_there_says_so() -> None:
    x = torch.ones(3, 3, device=DEVICE)
    with pytest.raises(NotImplementedError, match="autograd"):
        x.clone().requires_grad_().sum().backward()
    with pytest.raises(NotImplementedError, match="float32"):
        torch.ones(3, device=DEVICE, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="geqrf"):
        torch.geqrf(x)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3, 3)


def test_compile_runs_by_handle(runner: Runner) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4)).eval()
    x = torch.randn(5, 8)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, backend="genie")
        torch.testing.assert_close(compiled(x), expected)
        defined, requests = runner.counts.defined, runner.counts.requests
        for _ in range(3):
            torch.testing.assert_close(compiled(x), expected)
        assert (runner.counts.defined, runner.counts.requests) == (defined, requests + 3)


def test_explain_says_what_it_took() -> None:
    x = torch.randn(128, 128).to(DEVICE)
    told = genie.torch.explain((x @ x).relu())
    assert told.flops >= 2 * 128**3 and told.seconds is not None and told.seconds > 0
    assert "matmul" in told.graph and "relu" in told.graph
    assert told.wire_up > 0 and "measured" in str(told)
    with genie.torch.phase("vision"):
        assert genie.torch.explain(x.exp()).phase == "vision"
    with pytest.raises(ValueError, match="no phase"), genie.torch.phase("lunch"):
        pass


def test_the_example_runs_as_users_have_it(runner: Runner) -> None:
    """A process of its own, where nothing but torch is imported before the device is named."""
    example = Path(__file__).resolve().parents[4] / "examples/pytorch/hello.py"
    environment = {**os.environ, "GENIE_SERVER": runner.backend.session.uri}
    said = subprocess.run([sys.executable, str(example)], env=environment, capture_output=True, text=True, timeout=300)
    assert (said.stdout.split(), said.returncode) == (["0.52", "True", "prefill"], 0), said.stderr
