"""What people do with tensors and modules beside computing: print, save, copy, move; and what they are told where something is not there."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

DEVICE = "remote_accelerator:0"


def there(*values: float) -> torch.Tensor:
    return torch.tensor([float(v) for v in values]).to(DEVICE)


def test_values_come_here() -> None:
    x = there(1.5, -2.0)
    assert x.tolist() == [1.5, -2.0]
    assert x[1].item() == -2.0
    assert (float(x[0]), int(x[1])) == (1.5, -2)
    assert bool((x > 0).any()) and not bool((x > 5).any())
    assert isinstance(x.numpy(), numpy.ndarray) and x.numpy().tolist() == [1.5, -2.0]
    assert numpy.asarray(x).tolist() == [1.5, -2.0]
    assert [v.item() for v in x] == [1.5, -2.0]
    assert len(x) == 2 and -2.0 in x
    with pytest.raises(RuntimeError, match="ambiguous|more than one value"):
        bool(x)


def test_text() -> None:
    text = repr(there(1.5, -2.0))
    assert text == "tensor([ 1.5000, -2.0000], device='remote_accelerator:0')"
    assert str(torch.zeros(0, device=DEVICE)) == "tensor([], device='remote_accelerator:0')"
    assert "requires_grad=True" in repr(there(1.0).requires_grad_())
    assert f"{there(0.25)[0]:.3f}" == "0.250"


def test_comparisons_of_whole_tensors() -> None:
    x = there(1, 2, 3)
    assert torch.equal(x, there(1, 2, 3)) and not torch.equal(x, there(1, 2, 4))
    assert torch.allclose(x, x + 1e-7) and not torch.allclose(x, x + 1)
    assert torch.isclose(x, there(1, 2.1, 3)).tolist() == [True, False, True]
    torch.testing.assert_close(x, there(1, 2, 3))


def test_files() -> None:
    x = there(1, 2, 3)
    file = io.BytesIO()
    torch.save({"x": x, "view": x[1:]}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded["x"].device.type == "cpu" and loaded["x"].tolist() == [1, 2, 3] and loaded["view"].tolist() == [2, 3]
    assert pickle.loads(pickle.dumps(x)).tolist() == [1, 2, 3]


def test_copies_of_tensors_and_modules() -> None:
    x = there(1, 2, 3)
    y = copy.deepcopy(x)
    y.add_(1)
    assert (x.tolist(), y.tolist()) == ([1, 2, 3], [2, 3, 4])
    layer = torch.nn.Linear(3, 2).to(DEVICE)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight.zero_()
    assert layer.weight.abs().sum() > 0 and twin.weight.abs().sum() == 0
    assert isinstance(twin.weight, torch.nn.Parameter)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(),
        torch.nn.Linear(64, 8), torch.nn.LayerNorm(8), torch.nn.GELU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3), torch.nn.Softmax(-1),
    ).eval()  # fmt: skip


def test_modules_move_there_and_back() -> None:
    model, x = network(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        wanted = model(x)
        model.to(DEVICE)
        assert all(p.device == torch.device(DEVICE) for p in (*model.parameters(), *model.buffers()))
        assert all(isinstance(p, torch.nn.Parameter) for p in model.parameters())
        torch.testing.assert_close(model(x.to(DEVICE)).cpu(), wanted)
        model.to("cpu")
        torch.testing.assert_close(model(x), wanted)


def test_states_are_saved_and_loaded() -> None:
    model, other, x = network().to(DEVICE), network(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
        wanted = other(x)
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(model(x.to(DEVICE)).cpu(), wanted)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        third = network()
        third.load_state_dict(torch.load(file, weights_only=True))
        torch.testing.assert_close(third(x), wanted)
        assert list(model.state_dict()) == list(third.state_dict())


def test_files_are_loaded_to_the_device() -> None:
    """`map_location` once ended the process: torch makes a storage there, for which it has no allocator."""
    base = torch.arange(12.0).reshape(3, 4)
    saved = {
        "base": base, "turned": base.t(), "part": base[1:, ::2], "bytes": torch.tensor([1, 2, 255], dtype=torch.uint8),
        "half": torch.randn(5, 7).bfloat16(), "count": torch.tensor(3), "none": torch.zeros(0, 2), "weight": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    for location in (DEVICE, "remote_accelerator", torch.device(DEVICE)):
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        found = torch.load(file, map_location=location, weights_only=True)
        for name, wanted in saved.items():
            have = found[name]
            assert (have.device, have.dtype, have.stride()) == (torch.device(DEVICE), wanted.dtype, wanted.stride()), name
            assert torch.equal(have.cpu(), wanted), name
        assert isinstance(found["weight"], torch.nn.Parameter)
        found["base"][2, 0] = -1
        assert found["turned"][0, 2].item() == found["part"][1, 0].item() == -1, "they shared memory, and do so there"


def test_a_state_on_the_device_goes_into_a_module(tmp_path: Path) -> None:
    model, other, x = network().to(DEVICE), network(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
        torch.save(other.state_dict(), tmp_path / "state.pt")
        for options in ({}, {"mmap": True}):
            model.load_state_dict(torch.load(tmp_path / "state.pt", map_location=DEVICE, **options), assign=bool(options))
            torch.testing.assert_close(model(x.to(DEVICE)).cpu(), other(x))


def test_files_that_cannot_be_loaded_there_are_refused() -> None:
    file = io.BytesIO()
    torch.save(torch.ones(3), file, _use_new_zipfile_serialization=False)
    file.seek(0)
    with pytest.raises(NotImplementedError, match="map_location='cpu'"):
        torch.load(file, map_location=DEVICE)
    file = io.BytesIO()
    torch.save(torch.ones(3, dtype=torch.float64), file)
    file.seek(0)
    with pytest.raises(NotImplementedError, match="float64"):
        torch.load(file, map_location=DEVICE)


def test_types_of_modules() -> None:
    model, x = network(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        wanted = model(x)
        half = model.to(DEVICE, torch.bfloat16)
        found = half(x.to(DEVICE, torch.bfloat16))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float().cpu(), wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_autograd(guard: Callable[[], Any]) -> None:
    model, x = network().to(DEVICE), torch.randn(2, 3, 8, 8).to(DEVICE)
    with guard():
        out = model(x)
    assert not out.requires_grad and out.shape == (2, 3)


def test_numbers_and_cpu_scalars_mix_in_but_cpu_tensors_do_not() -> None:
    x = there(1, 2)
    assert (x + torch.tensor(10)).tolist() == [11, 12]
    assert (torch.tensor(3.0) * x).tolist() == [3, 6]
    assert x[torch.tensor([1, 0])].tolist() == [2, 1], "indices may be here, as torch allows"
    with pytest.raises(RuntimeError, match=r"same device.*\.to\(\)"):
        x + torch.ones(2)
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2).add_(x)


def test_types_are_promoted_as_torch_does() -> None:
    kinds = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]
    for a in kinds:
        for b in kinds:
            left, right = torch.ones(2, dtype=a), torch.ones(2, dtype=b)
            found = left.to(DEVICE) * right.to(DEVICE)
            assert found.dtype == (left * right).dtype
            assert (left.to(DEVICE) * right[0].to(DEVICE)).dtype == (left * right[0]).dtype
        for number in (2, 2.5, True):
            assert (left.to(DEVICE) * number).dtype == (left * number).dtype


# ---- what is not there


def test_there_is_no_autograd() -> None:
    x = there(1, 2).requires_grad_()
    with pytest.raises(NotImplementedError, match=r"no autograd.*torch\.no_grad"):
        (x * 2).sum().backward()
    model = torch.nn.Linear(2, 1).to(DEVICE)
    with pytest.raises(NotImplementedError, match="no autograd"):
        model(there(1, 2)).sum().backward()


ABSENT: dict[str, tuple[Callable[[torch.Tensor], object], str]] = {
    "float64": (lambda x: x.double(), r"torch\.float64.*float32"),
    "complex": (lambda x: torch.complex(x, x), "complex.*two float32"),
    "int16": (lambda x: x.short(), r"torch\.int16.*int32"),
    "fft": (lambda x: torch.fft.rfft(x), r"_fft_r2c.*x\.cpu\(\)"),
    "linear algebra": (lambda x: torch.linalg.svd(x.view(1, 2)), r"_linalg_svd.*x\.cpu\(\)"),
    "sparse": (lambda x: x.to_sparse(), r"sparse.*dense"),
    "special": (lambda x: torch.special.airy_ai(x), "special_airy_ai.*erf"),
    "generator": (lambda x: x.normal_(generator=torch.Generator()), "manual_seed"),
}


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_absent_is_named_with_what_works(name: str) -> None:
    call, said = ABSENT[name]
    with pytest.raises(NotImplementedError, match=said):
        call(there(1, 2))
