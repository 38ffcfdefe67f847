"""What changes tensors in place, and what is written by index."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_views import same

DEVICE = "remote_accelerator:0"

CHANGES: dict[str, Callable[[torch.Tensor], object]] = {
    "add": lambda x: x.add_(2),
    "operator": lambda x: x.__imul__(3),
    "relu": lambda x: x.sub_(5).relu_(),
    "clamp": lambda x: x.clamp_(2, 7),
    "fill": lambda x: x.fill_(4),
    "zero": lambda x: x.zero_(),
    "copy": lambda x: x.copy_(x.flip(0)),
    "broadcast copy": lambda x: x.copy_(x[0].clone()),
    "mask": lambda x: x.masked_fill_(x > 3, -1),
    "set by mask": lambda x: x.__setitem__(x % 2 == 0, 50.0),
    "set by mask of rows": lambda x: x.__setitem__(x[:, 0] > 4, 50.0),
    "set by indices": lambda x: x.__setitem__([0, 2], 9.0),
    "set by two indices": lambda x: x.__setitem__(([0, 1, 1], [1, 1, 2]), x[3, :3].clone()),
    "set by negative indices": lambda x: x.__setitem__(-1, x[0] * 2),
    "set by a range and indices": lambda x: x.__setitem__((slice(1, 3), [0, 4]), -7.0),
    "index add": lambda x: x.index_add_(0, torch.tensor([0, 0, 2], device=x.device), torch.ones(3, 6, device=x.device)),
    "index copy": lambda x: x.index_copy_(1, torch.tensor([4, 1], device=x.device), torch.ones(4, 2, device=x.device)),
    "index put": lambda x: x.index_put_((torch.tensor([1, 1], device=x.device),), torch.ones(6, device=x.device), accumulate=True),
    "scatter": lambda x: x.scatter_(1, torch.tensor([[5], [0], [2], [2]], device=x.device), 11.0),
    "scatter add": lambda x: x.scatter_add_(1, torch.zeros(4, 3, dtype=torch.int64, device=x.device), torch.ones(4, 3, device=x.device)),
    "compare": lambda x: x.gt_(3),
    "sqrt": lambda x: x.sqrt_(),
    "addcmul": lambda x: x.addcmul_(x, x, value=0.5),
    "lerp": lambda x: x.lerp_(torch.ones(4, 6, device=x.device), 0.25),
    "power": lambda x: x.pow_(2),
    "row by row": lambda x: [x[i].mul_(i) for i in range(4)],
    "transposed": lambda x: x.t()[2].add_(x[0].sum()),
    "triangle": lambda x: x.tril_(),
    "foreach": lambda x: torch._foreach_add_([x[0], x[2]], 1.5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes(name: str) -> None:
    def change(x: torch.Tensor) -> None:
        CHANGES[name](x)

    same(change, 4, 6)


def test_results_go_where_out_says() -> None:
    def change(x: torch.Tensor) -> list[torch.Tensor]:
        out, half = torch.empty(4, 6, device=x.device), torch.empty(4, 3, device=x.device)
        torch.add(x, 1, out=out)
        torch.mul(x[:, ::2], 2, out=half)
        torch.exp(half * 0.01, out=x[:, 3:])
        grown = torch.empty(0, device=x.device)
        torch.matmul(x, x.t(), out=grown)
        values, where = torch.empty(4, device=x.device), torch.empty(4, dtype=torch.int64, device=x.device)
        torch.max(x, 1, out=(values, where))
        return [out, half, grown, values, where]

    same(change, 4, 6)


def test_types_that_cannot_hold_the_result_are_refused() -> None:
    x = torch.arange(4, device=DEVICE)
    with pytest.raises(RuntimeError, match="can't be cast"):
        x.add_(0.5)
    with pytest.raises(RuntimeError, match="can't be cast"):
        x /= 2
    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        x.add_(torch.ones(3, 4, dtype=torch.int64, device=DEVICE))
    assert x.tolist() == [0, 1, 2, 3]


def test_data_is_replaced() -> None:
    x = torch.zeros(3, device=DEVICE)
    seen = x.view(3)
    x.data = torch.arange(4.0, device=DEVICE)
    assert x.shape == (4,) and x.tolist() == [0, 1, 2, 3]
    assert seen.tolist() == [0, 0, 0], "what it looked at before is as it was"
    with pytest.raises(RuntimeError, match="make a new tensor"):
        x.data = torch.zeros(2)


def test_copies_between_here_and_there() -> None:
    here = torch.arange(6.0).reshape(2, 3)
    there = torch.zeros(2, 3, device=DEVICE)
    there.copy_(here)
    there[0].copy_(torch.tensor([7, 8, 9]))
    back = torch.zeros(2, 3)
    back.copy_(there)
    assert back.tolist() == [[7, 8, 9], [3, 4, 5]]
    strided = torch.zeros(3, 2).t()
    strided.copy_(there * 2)
    assert strided.tolist() == [[14, 16, 18], [6, 8, 10]]
    assert torch.arange(12.0).reshape(3, 4).t()[::2].to(DEVICE).tolist() == [[0, 4, 8], [2, 6, 10]]


def test_a_tensor_read_before_it_changes_keeps_its_values() -> None:
    x = torch.ones(3, device=DEVICE)
    y = x * 2
    x.add_(10)
    z = x * 2
    assert (y.tolist(), z.tolist()) == ([2, 2, 2], [22, 22, 22])


def test_sizes_change_in_place() -> None:
    x = torch.arange(6.0, device=DEVICE)
    x.resize_(2, 2)
    assert x.tolist() == [[0, 1], [2, 3]]
    x.resize_(3, 2)
    assert x.shape == (3, 2) and x[:2].tolist() == [[0, 1], [2, 3]]
