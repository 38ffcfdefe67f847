"""Models and files of tensors."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import genie
import numpy as np
import pytest
from conftest import ROOT, Halted, write_safetensors

TINY = ROOT / "tests/golden/tiny-gpt2"
SMOLLM2 = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genie/models/SmolLM2-135M-Instruct.Q4_1.gguf"
)


def test_a_file_of_tensors(session: genie.Session, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    tensors = {
        "large": rng.standard_normal((700, 300)).astype(np.float32),
        "ids": np.arange(5),
        "flags": np.array([True, False]),
        "scalar": np.array(3, np.uint8),
    }
    path = tmp_path / "some.safetensors"
    write_safetensors(path, tensors)
    told: list[tuple[int, int]] = []
    loaded = session.load(path, progress=lambda done, total: told.append((done, total)))
    assert isinstance(loaded, dict) and loaded.keys() == tensors.keys() and told
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(session.get(loaded[name]).numpy(), tensor)
    with genie.connect(session.uri) as other:
        before = other.traffic()[0]
        again = other.load(path)
        assert other.traffic()[0] - before < 5000, "the server has them"
        np.testing.assert_array_equal(other.get(again["large"]).numpy(), tensors["large"])
    # Beside the configuration of a model that is not known, too.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", "architectures": ["ResNet"]}))
    assert isinstance(session.load(path), dict)


def test_files_that_cannot_be_loaded_say_why(session: genie.Session, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    write_safetensors(path, {"x": np.zeros(3)})
    with pytest.raises(genie.BadInput, match="'x' is stored as F64"):
        session.load(path)
    write_safetensors(path, {"x": np.zeros(3, np.float32)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(genie.BadInput):
        session.load(path)
    for name, word in [("none.safetensors", "none"), ("none.gguf", "none"), ("model.pt", "pickle")]:
        if name == "model.pt":
            (tmp_path / name).write_bytes(b"x")
        with pytest.raises(genie.BadInput, match=word):
            session.load(tmp_path / name)


def test_a_model_goes_on_with_tokens(session: genie.Session) -> None:
    with session.load(TINY) as model:
        assert isinstance(model, genie.Model) and model.nbytes > 0
        first = model.generate([1, 2, 3], 8)
        tokens = list(first)
        assert len(tokens) == 8 and first.tokens == tokens and first.finish == "length"
        assert list(session.generate(model, [1, 2, 3], 8)) == tokens
        sampled = [list(model.generate([1, 2, 3], 8, temperature=1.0, seed=seed)) for seed in (5, 5, 6)]
        assert sampled[0] == sampled[1] != sampled[2]
        stopped = model.generate([1, 2, 3], 8, stop=[tokens[3]])
        assert list(stopped) == tokens[: tokens.index(tokens[3]) + 1] and stopped.finish == "stop"
        # One that nobody reads does not hold up the next.
        model.generate([1, 2, 3], 100)
        assert next(model.generate([1, 2, 3], 1)) == tokens[0]
        with pytest.raises(genie.BadInput, match="tokenizer"):
            model.generate("text")
        with pytest.raises(genie.BadInput, match="shorten"):
            model.generate(range(5000))
        with pytest.raises(genie.BadInput, match="temperature"):
            model.generate([1], temperature=-1)
    with pytest.raises(genie.SessionLost, match="closed"):
        next(model.generate([1], 1))


def sessions(session: genie.Session) -> int:
    return session.stats()["genie_sessions"]


def comes_to(session: genie.Session, count: int) -> bool:
    until = time.monotonic() + 30
    while sessions(session) != count and time.monotonic() < until:
        time.sleep(0.02)
    return sessions(session) == count


# Its session stayed on the server until the lease ended.
def test_a_model_that_nobody_refers_to_is_closed(halted: Halted) -> None:
    with genie.connect(halted.uri) as session:
        model = session.load(TINY)
        assert sessions(session) == 2
        # A generation goes on without it.
        generation = model.generate([1, 2, 3], 8)
        del model
        assert len(list(generation)) == 8
        assert comes_to(session, 1)
        script = "import genie, sys; genie._session.AT_EXIT = 60; model = genie.connect(sys.argv[1]).load(sys.argv[2])"
        subprocess.run([sys.executable, "-c", script, halted.uri, TINY], check=True, timeout=120)
        assert comes_to(session, 1)


# It waited for all of a generation, which nothing could end.
def test_a_model_that_is_closed_ends_its_generation(halted: Halted) -> None:
    with genie.connect(halted.uri) as session:
        model = session.load(TINY)
        assert isinstance(model, genie.Model)
        # It has not made a token when the model is closed, and is ended by its first.
        halted.halt()
        generation = model.generate([1, 2, 3], 8)
        time.sleep(0.1)
        assert model.traffic()[0] > 0
        began = time.monotonic()
        with pytest.raises(genie.ConnectError, match="in time"):
            model.close(0.3)
        assert time.monotonic() - began < 30
        halted.go_on()
        with pytest.raises(genie.SessionLost, match="closed"):
            list(generation)
        with pytest.raises(genie.SessionLost, match="closed"):
            model.traffic()
        assert comes_to(session, 1)


MODEL_FORKS = """
import genie, os, sys
model = genie.connect(sys.argv[1]).load(sys.argv[2])
expected = list(model.generate([1, 2, 3], 8))
begun = model.generate([1, 2, 3], 8)
child = os.fork()
if child == 0:
    for work in (lambda: model.generate([1], 1), model.traffic, model.close, lambda: next(begun)):
        try:
            work()
            os._exit(1)
        except genie.SessionLost as error:
            assert "fork" in str(error)
    del model, begun
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert list(model.generate([1, 2, 3], 8)) == expected == list(begun)
"""


def test_a_model_stays_with_the_process_that_loaded_it(halted: Halted) -> None:
    subprocess.run([sys.executable, "-c", MODEL_FORKS, halted.uri, TINY], check=True, timeout=120)


# What the server had already was held for ever, when what it lacked could not be sent.
def test_a_file_that_cannot_be_loaded_leaves_nothing(halted: Halted, tmp_path: Path) -> None:
    small, large = np.ones(1000, np.float32), np.zeros(3_000_000, np.float32)
    write_safetensors(tmp_path / "small.safetensors", {"small": small})
    write_safetensors(tmp_path / "both.safetensors", {"large": large, "small": small})
    with genie.connect(halted.uri) as first, genie.connect(halted.uri, quota=1_000_000) as second:
        kept = first.load(tmp_path / "small.safetensors")
        before = first.stats()["genie_handles"]
        with pytest.raises(genie.RemoteOutOfMemory):
            second.load(tmp_path / "both.safetensors")
        until = time.monotonic() + 30
        while first.stats()["genie_handles"] != before and time.monotonic() < until:
            time.sleep(0.02)
        assert first.stats()["genie_handles"] == before and kept


@pytest.mark.skipif(not SMOLLM2.exists(), reason="no demo model: make model")
def test_a_model_answers(session: genie.Session) -> None:
    with session.load(SMOLLM2) as model:
        generation = model.generate("The capital of France is", 5)
        assert "Paris" in generation.text() and len(generation.tokens) <= 5
        assert model.decode(model.encode("Hello there")).strip() == "Hello there"


def test_asyncio(session: genie.Session) -> None:
    async def main() -> None:
        async with await genie.aio.connect(session.uri) as remote:
            arrays = [np.full(100_000, i, np.float32) for i in range(10)]
            tensors = await asyncio.gather(*(remote.put(array) for array in arrays))
            back = await asyncio.gather(*(remote.get(tensor) for tensor in tensors))
            assert [array.numpy()[0] for array in back] == list(range(10))
            g = genie.Graph()
            g.output("y", g.op("neg", g.input("x", "f32", (2,))))
            [y] = await remote.run(g, {"x": [1.0, -2.0]})
            assert y.tolist() == [-1.0, 2.0]
            model = await remote.load(TINY)
            assert isinstance(model, genie.Model)
            tokens = [token async for token in remote.generate(model, [1, 2, 3], 5)]
            assert tokens == list(model.generate([1, 2, 3], 5))
            with pytest.raises(genie.NotFound):
                await remote.lookup("no such name")
            task = asyncio.create_task(remote.put(np.zeros(5_000_000, np.float32)))
            await asyncio.sleep(0)
            # Its thread has begun; the loop hears of an end only after the next line but one.
            time.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await remote.ping() > 0
            model.close()

    asyncio.run(main())
