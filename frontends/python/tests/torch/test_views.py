"""Views share memory: what is written through one is seen through all. Each case does the same here and there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

DEVICE = "remote_accelerator:0"
Changed = Callable[[torch.Tensor], object]


def same(change: Changed, *shape: int) -> None:
    """What a function does to a tensor and gives is the same on both."""
    here = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    there = here.to(DEVICE)
    wanted, found = change(here), change(there)
    torch.testing.assert_close(there.cpu(), here)
    for a, b in zip(wanted if isinstance(wanted, (list, tuple)) else [wanted], found if isinstance(found, (list, tuple)) else [found]):
        if isinstance(a, torch.Tensor):
            assert b.device.type == "remote_accelerator"
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            torch.testing.assert_close(b.cpu(), a)
        else:
            assert a == b


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "slice": lambda x: x[1:3],
    "steps": lambda x: x[:, 1::2],
    "row": lambda x: x[2],
    "element": lambda x: x[1, 2],
    "transpose": lambda x: x.t(),
    "permute": lambda x: x.reshape(2, 2, 6).permute(2, 0, 1),
    "reshape": lambda x: x.view(6, 4),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x.view(4, 1, 6).squeeze(1),
    "diagonal": lambda x: x.diagonal(),
    "diagonal above": lambda x: x.diagonal(2),
    "narrow": lambda x: x.narrow(1, 2, 3),
    "flatten": lambda x: x.flatten(),
    "unflatten": lambda x: x.unflatten(1, (2, 3)),
    "as strided": lambda x: x.as_strided((3, 2), (7, 2), 1),
    "unbind": lambda x: x.unbind(1)[2],
    "split": lambda x: x.split(2, 1)[1],
    "chunk": lambda x: x.chunk(3, 1)[2],
    "movedim": lambda x: x.view(2, 2, 6).movedim(0, 2),
    "unfold apart": lambda x: x.unfold(1, 2, 2),
    "slice of transpose": lambda x: x.t()[1:4, ::2],
    "transpose of slice": lambda x: x[1:, 2:5].t(),
    "slice of slice": lambda x: x[1:, 1:][1:, ::2],
    "row of a slice of a view": lambda x: x.view(2, 2, 6)[1][:, 3:][0],
    "detach": lambda x: x.detach(),
    "alias by data": lambda x: x.data,
}


@pytest.mark.parametrize("name", VIEWS)
def test_reading(name: str) -> None:
    same(VIEWS[name], 4, 6)


@pytest.mark.parametrize("name", VIEWS)
def test_writing_through_a_view_is_seen_by_its_base(name: str) -> None:
    def change(x: torch.Tensor) -> torch.Tensor:
        view = VIEWS[name](x)
        view.mul_(10).add_(1)
        return view

    same(change, 4, 6)


@pytest.mark.parametrize("name", VIEWS)
def test_writing_to_the_base_is_seen_through_a_view(name: str) -> None:
    def change(x: torch.Tensor) -> torch.Tensor:
        view = VIEWS[name](x)
        x[1:, 2:] = -1
        x += 100
        return view

    same(change, 4, 6)


@pytest.mark.parametrize("first", ["slice", "transpose", "diagonal", "steps"])
@pytest.mark.parametrize("second", ["reshape", "slice of transpose", "row"])
def test_two_views_see_each_other(first: str, second: str) -> None:
    def change(x: torch.Tensor) -> list[torch.Tensor]:
        a, b = VIEWS[first](x), VIEWS[second](x)
        a.fill_(7)
        b.sub_(3)
        a[0] = 5
        return [a, b]

    same(change, 4, 6)


def test_writing_a_range_to_another_range_of_the_same_memory() -> None:
    def change(x: torch.Tensor) -> None:
        x[0:2] = x[2:4].clone()
        x[:, 0] = x[:, 5]

    same(change, 4, 6)


def test_a_view_of_an_expanded_tensor_is_read_but_not_written() -> None:
    x = torch.arange(3.0).to(DEVICE)
    wide = x.expand(4, 3)
    torch.testing.assert_close(wide.cpu(), torch.arange(3.0).expand(4, 3))
    with pytest.raises(RuntimeError, match="single memory location"):
        wide.add_(1)
    with pytest.raises(RuntimeError, match="single memory location"):
        wide[1] = 5
    assert x.tolist() == [0, 1, 2]


def test_views_have_torchs_strides_and_offsets() -> None:
    here = torch.zeros(4, 6)
    there = here.to(DEVICE)
    for name, view in VIEWS.items():
        a, b = view(here), view(there)
        assert (a.shape, a.stride(), a.storage_offset()) == (b.shape, b.stride(), b.storage_offset()), name


def test_views_in_place_change_how_the_tensor_looks() -> None:
    def change(x: torch.Tensor) -> torch.Tensor:
        view = x.view(1, 4, 6)
        view.squeeze_(0).t_()
        view[0] = 9
        view.unsqueeze_(1)
        return view

    same(change, 4, 6)


def test_copies_do_not_share() -> None:
    def change(x: torch.Tensor) -> list[torch.Tensor]:
        copies = [x.clone(), x.t().contiguous(), x.flip(0), x.repeat(2, 1), x[[0, 1]], x * 1]
        x.zero_()
        for copy in copies:
            copy[0] = 3
        return copies

    same(change, 4, 6)


def test_views_without_elements() -> None:
    same(lambda x: x[2:2], 4, 6)
    same(lambda x: x[:, 6:].t(), 4, 6)

    def change(x: torch.Tensor) -> torch.Tensor:
        x[1:1] = 5
        return x[3:1].add_(1)

    same(change, 4, 6)


def test_bits_are_not_looked_at_as_another_type() -> None:
    x = torch.zeros(4, device=DEVICE)
    with pytest.raises(NotImplementedError, match=r"x\.cpu\(\)\.view\(dtype\)"):
        x.view(torch.int32)
