"""The device's figures, each beside its goal and its floor in the same run.

    python figures.py [--tokens 50] [--turns 5] [--small]

`--small` has a tiny GPT-2 instead of the 124M one: to see that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import genie
import genie.torch
import torch
from genie import _native
from genie.torch import run
from genie.torch.run import Runner
from genie.torch.server import Server
from served import Served

ROOT = Path(__file__).resolve().parents[4]
DEVICE = "remote_accelerator:0"


def median(times: int, work: Callable[[], object]) -> float:
    """Seconds, in the middle of so many."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def row(what: str, value: str, beside: str, goal: str, met: bool | None) -> None:
    state = "" if met is None else "met" if met else "MISSED"
    print(f"| {what} | {value} | {beside} | {goal} | {state} |", flush=True)


def relu_and_back(command: str, uri: str, turns: int) -> None:
    x = torch.randn(1000, 1000)
    size = x.numel() * 4

    def there_and_back() -> torch.Tensor:
        return x.to(DEVICE).relu().cpu()

    assert torch.equal(there_and_back(), x.relu())
    for _ in range(20):
        there_and_back()
    echo = [command, "--json", "bench", "latency", "--connect", uri, "--sizes", str(size)]
    ratios, rates, floors = [], [], []
    for _ in range(turns):
        seconds = median(40, there_and_back)
        (said,) = json.loads(subprocess.run(echo, check=True, capture_output=True, text=True).stdout)
        floor = said["p50_us"] / 1e6
        ratios.append(floor / seconds)
        rates.append(2 * size / seconds / 1e9)
        floors.append(2 * size / floor / 1e9)
    rate, ratio = statistics.median(rates), statistics.median(ratios)
    row("4 MB through relu and back", f"{rate:.2f} GB/s", f"echo {statistics.median(floors):.2f} GB/s: {ratio:.2f}", ">= 1 GB/s each way, >= 0.9x", rate >= 1 and ratio >= 0.9)


def capturing(turns: int) -> None:
    x = torch.randn(8, 8, device=DEVICE).materialize()
    w = torch.randn(8, 8, device=DEVICE).materialize()
    most = 0.0
    said = []
    for name, work in {
        "relu": lambda: x.relu(),
        "x + 1": lambda: x + 1,
        "x * w": lambda: x * w,
        "x @ w": lambda: x @ w,
        "view": lambda: x.view(64),
        "softmax": lambda: x.softmax(-1),
        "cat": lambda: torch.cat([x, w]),
        "slice": lambda: x[2:5],
    }.items():
        with torch.no_grad():
            took = min(median(3, lambda work=work: [work() for _ in range(500)]) / 500 for _ in range(turns)) * 1e6
        most = max(most, took)
        said.append(f"{name} {took:.1f}")
    row("capturing an op", f"{most:.1f} us at the most", ", ".join(said), "<= 20 us", most <= 20)


def cached_run(runner: Runner, turns: int) -> None:
    x = torch.randn(8, 8).to(DEVICE).materialize()
    one = lambda: x.relu().sum().item()  # noqa: E731
    for _ in range(200):
        one()
    calls: list[tuple[object, ...]] = []
    backend = runner.backend
    plain = type(backend).run

    def spy(self: object, *args: object) -> object:
        calls.append(args)
        return plain(self, *args)  # type: ignore[arg-type]

    type(backend).run = spy  # type: ignore[method-assign]
    one()
    type(backend).run = plain  # type: ignore[method-assign]
    program, bound, given, wanted, keep, cache = calls[0]
    binding = backend._binding(program, bound)
    from genie.torch.server import _argument

    inputs = {g.line: _argument(g) for g in given}
    raw_one = lambda: _native.Session.run(backend.session, binding, inputs, wanted=wanted, keep=keep)  # noqa: E731
    added, raws = [], []
    for _ in range(turns):
        raw = median(300, raw_one)
        added.append((median(300, one) - raw) * 1e6)
        raws.append(raw * 1e6)
    over = statistics.median(added)
    row("a cached graph's run adds", f"{over:.1f} us", f"to a raw request of {statistics.median(raws):.1f} us, capture of 3 ops among it", "<= 50 us", over <= 50)


def generating(runner: Runner, tokens: int, turns: int, small: bool) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_embd=64, n_head=2) if small else transformers.GPT2Config()
    model = transformers.GPT2LMHeadModel(config).eval()
    there = transformers.GPT2LMHeadModel(config).eval()
    there.load_state_dict(model.state_dict())
    there.to(DEVICE)
    ids = torch.randint(0, config.vocab_size, (1, 72))
    remote = ids.to(DEVICE)

    def generate(which: torch.nn.Module, given: torch.Tensor) -> torch.Tensor:
        return which.generate(given, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0).cpu()

    alike = torch.equal(generate(model, ids), generate(there, remote))
    generate(there, remote)
    before, requests = runner.backend.traffic(), runner.counts.requests
    generate(there, remote)
    moved = sum(runner.backend.traffic()) - sum(before)
    requests = runner.counts.requests - requests
    ratios, speeds = [], []
    for _ in range(turns):
        local = median(1, lambda: generate(model, ids))
        far = median(1, lambda: generate(there, remote))
        ratios.append(local / far)
        speeds.append(tokens / far)
    ratio = statistics.median(ratios)
    name = "tiny GPT-2" if small else "GPT-2 124M"
    row(f"{name}, generate, {tokens} tokens", f"{statistics.median(speeds):.1f} tokens/s", f"local PyTorch: {ratio:.2f}", ">= 0.9x", ratio >= 0.9)
    row(f"{name}: the tokens", "identical" if alike else "different", "", "identical", alike)
    row(f"{name}: bytes a step on the wire", f"{moved / tokens:.0f}", f"{requests} requests for {tokens} tokens", "<= 1024", moved / tokens <= 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    command = os.environ.get("GENIE_COMMAND") or str(ROOT / "target/release/genie")
    print("| what | measured | beside | goal | |\n|---|---|---|---|---|")
    with Served(command) as served, genie.connect(served.uri) as session:
        runner = run.use(Server(session))
        relu_and_back(command, served.uri, asked.turns)
        capturing(asked.turns)
        cached_run(runner, asked.turns)
        generating(runner, asked.tokens, asked.turns, asked.small)


if __name__ == "__main__":
    main()
