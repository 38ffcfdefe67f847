"""Models and files of tensors."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from pathlib import Path

import genie
import numpy as np
import pytest
from conftest import ROOT

TINY = ROOT / "tests/golden/tiny-gpt2"
SMOLLM2 = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genie/models/SmolLM2-135M-Instruct.Q4_1.gguf"
)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    names = {"float32": "F32", "int64": "I64", "uint8": "U8", "bool": "BOOL", "float64": "F64"}
    header, data = {}, b""
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": names[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + tensor.nbytes],
        }
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


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
            await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await remote.ping() > 0
            model.close()

    asyncio.run(main())
