"""What people do with tensors and modules beside computing with them."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import genie
import pytest
import safetensors.torch
import torch
from genie import _autoload
from genie.torch import run
from served import Served

ROOT = Path(__file__).resolve().parents[4]
DEVICE = "remote_accelerator:0"


def test_a_transposed_tensor_in_place_leaves_its_memory_as_it_is() -> None:
    x = torch.arange(6.0, device=DEVICE).view(2, 3)
    y = x.view(6)
    x.transpose_(0, 1)
    assert x.shape == (3, 2) and torch.equal(y.cpu(), torch.arange(6.0))
    x[0, 1] = 9
    assert y.tolist() == [0, 1, 2, 9, 4, 5]
    gru = torch.nn.GRU(3, 4, batch_first=True)
    given = torch.randn(2, 5, 3)
    with torch.no_grad():
        wanted = gru(given)[0]
        got = copy.deepcopy(gru).to(DEVICE)(given.to(DEVICE))[0]
    torch.testing.assert_close(got.cpu(), wanted)


def test_a_graph_of_more_outputs_than_a_run_has_runs_in_parts() -> None:
    parts = [torch.full((2,), float(i), device=DEVICE) * 2 for i in range(3000)]
    assert torch.stack(parts).sum().item() == 2 * 2 * 3000 * 2999 / 2


def test_numbers_there_become_a_tensor_here() -> None:
    x = torch.tensor([1.5, 2.5], device=DEVICE)
    assert torch.equal(torch.tensor([x[0], x[1] * 2]), torch.tensor([1.5, 5.0]))


def test_floats_become_bytes_as_torch_makes_them() -> None:
    x = torch.tensor([300.0, -3.7, 7.9, 255.0])
    assert torch.equal(x.to(DEVICE).to(torch.uint8).cpu(), x.to(torch.uint8))


def test_a_default_type_that_is_not_there_is_named() -> None:
    x = torch.arange(3, device=DEVICE)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(NotImplementedError, match="float64"):
            x / 2
    finally:
        torch.set_default_dtype(torch.float32)


def test_copies_and_files_keep_what_tensors_are() -> None:
    x = torch.ones(2, 2, device=DEVICE)
    y = copy.copy(x)
    y[0, 0] = 5
    assert y.device.type == "remote_accelerator" and x[0, 0].item() == 5
    module = torch.nn.Linear(2, 3).to(DEVICE)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert isinstance(again.weight, torch.nn.Parameter) and torch.equal(again.weight, module.weight.cpu())
    assert repr(module.weight).startswith("Parameter containing:\n")


def test_safetensors_sees_which_tensors_share_memory(tmp_path: Path) -> None:
    x = torch.arange(8.0, device=DEVICE)
    safetensors.torch.save_file({"x": x, "y": x + 1}, tmp_path / "two.safetensors")
    loaded = safetensors.torch.load_file(tmp_path / "two.safetensors")
    assert torch.equal(loaded["y"], torch.arange(8.0) + 1)
    with pytest.raises(RuntimeError, match="share memory"):
        safetensors.torch.save_file({"x": x, "y": x.view(2, 4)}, tmp_path / "one.safetensors")


def test_sequences_of_several_lengths_are_packed() -> None:
    lstm = torch.nn.LSTM(3, 4, bidirectional=True)
    there = copy.deepcopy(lstm).to(DEVICE)
    x, lengths = torch.randn(5, 3, 3), torch.tensor([2, 5, 3])

    def through(which: torch.nn.Module, given: torch.Tensor) -> torch.Tensor:
        packed = torch.nn.utils.rnn.pack_padded_sequence(given, lengths, enforce_sorted=False)
        return torch.nn.utils.rnn.pad_packed_sequence(which(packed)[0], padding_value=-1.0)[0]

    with torch.no_grad():
        torch.testing.assert_close(through(there, x.to(DEVICE)).cpu(), through(lstm, x))


def test_memory_is_counted_by_tensor_and_device() -> None:
    count = torch.remote_accelerator.memory_allocated
    before = count(0)
    held = torch.ones(1 << 20, device=DEVICE)
    assert count(0) == before, "nothing has run"
    held = (held + 1).materialize()
    assert count(0) == before + (4 << 20)
    assert count(1) == 0
    with genie.connect(run.runner().backend.session.uri) as other:
        there = other.put(bytes(1 << 20))
        assert count(0) == before + (4 << 20), "another session's are not counted"
        del there
    del held
    assert count(0) == before


def test_workers_that_pin_memory_get_a_copy() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(6.0))
    got = [batch for (batch,) in torch.utils.data.DataLoader(data, batch_size=3, pin_memory=True)]
    assert torch.equal(torch.cat(got), torch.arange(6.0))


def test_the_session_opened_last_is_used() -> None:
    command = os.environ.get("GENIE_COMMAND") or str(ROOT / "target/debug/genie")
    with Served(command) as first, Served(command) as second:
        script = f"""
import genie, torch
with genie.connect({first.uri!r}):
    assert torch.ones(3, device={DEVICE!r}).sum().item() == 3
with genie.connect({second.uri!r}):
    x = torch.ones(4, device={DEVICE!r}).materialize()
    assert x.sum().item() == 4
    assert genie.current_session().stats()["genie_session_bytes"] > 0
"""
        subprocess.run([sys.executable, "-c", script], check=True, env=_nobody())


def test_without_a_server_torch_is_as_without_genie() -> None:
    script = """
import torch
with torch.random.fork_rng():
    torch.manual_seed(1)
assert torch.device("remote_accelerator:0").type == "remote_accelerator"
try:
    torch.ones(1, device="remote_accelerator:0").cpu()
except RuntimeError as error:
    assert "no server" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", "import genie" + script], check=True, env=_nobody())


def _nobody() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "GENIE_SERVER"}


def test_a_compiled_function_changes_what_it_was_given() -> None:
    def doubled(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x * 2

    compiled = torch.compile(doubled, backend="genie")
    for _ in range(3):
        x = torch.arange(4.0)
        got = compiled(x)
        assert torch.equal(x, torch.arange(4.0) + 1) and torch.equal(got, (torch.arange(4.0) + 1) * 2)
    norm, plain = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    given = torch.randn(8, 3)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(norm, backend="genie")(given), plain(given))
    torch.testing.assert_close(norm.running_mean, plain.running_mean)


def test_a_compiled_function_draws_anew_and_makes_tensors() -> None:
    compiled = torch.compile(lambda x: torch.nn.functional.dropout(x, 0.5) + torch.arange(64) * 0, backend="genie")
    with torch.no_grad():
        torch.manual_seed(3)
        first, second = compiled(torch.ones(64)), compiled(torch.ones(64))
        torch.manual_seed(3)
        again = compiled(torch.ones(64))
    assert not torch.equal(first, second) and torch.equal(first, again)


def test_a_compiled_module_sees_other_weights() -> None:
    module = torch.nn.Linear(2, 2, bias=False)
    compiled, x = torch.compile(module, backend="genie"), torch.ones(1, 2)
    with torch.no_grad():
        compiled(x)
        module.weight.data = torch.full((2, 2), 3.0)
        assert compiled(x).tolist() == [[6.0, 6.0]]


def test_a_loop_that_asks_for_nothing_does_not_fill_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genie.torch.tensor.MOST_DEPTH", 100)
    requests = run.runner().counts.requests
    x = torch.zeros(2, device=DEVICE)
    for _ in range(1000):
        x = x + 1
    assert run.runner().counts.requests - requests in range(8, 12)
    assert x.tolist() == [1000.0, 1000.0]
    # What has run already is no part of what waits.
    requests = run.runner().counts.requests
    for _ in range(100):
        y = x + 1
        x = y * 2 - y
        y.materialize()
    assert run.runner().counts.requests - requests == 100


def test_a_phase_is_of_its_thread() -> None:
    seen: list[str | None] = []
    x = torch.ones(2, device=DEVICE).materialize()
    with genie.phase("prefill"):
        thread = threading.Thread(target=lambda: seen.append(genie.explain(x + 1).phase))
        thread.start()
        thread.join()
        seen.append(genie.explain(x + 2).phase)
    assert seen == [None, "prefill"]


def test_what_is_said_of_tensors_here_is_refused() -> None:
    with pytest.raises(TypeError, match="remote_accelerator, not of cpu"):
        genie.annotate(torch.ones(2), residency="weight")
    with pytest.raises(TypeError, match="not of list"):
        genie.explain([1])


def test_a_gpu_of_ones_own_stays_the_accelerator_until_a_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[bool] = []
    monkeypatch.setattr(_autoload, "_register", lambda: registered.append(True))
    monkeypatch.setattr(_autoload, "_ASKED_FOR", False)
    monkeypatch.setattr(_autoload, "_GPUS", (os.devnull,))
    monkeypatch.delenv("GENIE_SERVER", raising=False)
    _autoload.load()
    assert not registered
    monkeypatch.setenv("GENIE_SERVER", "genie://127.0.0.1:1")
    _autoload.load()
    monkeypatch.delenv("GENIE_SERVER")
    monkeypatch.setattr(_autoload, "_GPUS", ())
    _autoload.load()
    assert len(registered) == 2
